"""The fixed texts of the model card: its sections, and how to use the model, by format."""

MERGED = (
    "This model combines models that were trained on different tasks. hf-zipit merged their weights without further "
    "training."
)
FOLDED = (
    "This model is a smaller version of another: hf-zipit merged its similar units with each other, without training."
)
SECTIONS = """
# {title}

{what}

{picture}

| task | output | parent |
|---|---|---|
{parents}

{verdict}

{begin}
{results}
{end}

## Use

{use}

## How it was merged

{how}

{reproduction}:

```yaml
{recipe}
```

## Limits

{limits}
"""
PIPELINES = """```python
import hf_zipit  # without hf-zipit: pass trust_remote_code=True to pipeline and from_pretrained instead
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")  # the classes of all tasks
classify(Image.open("image.jpg").convert("RGB"))
```

```python
only = pipeline("image-classification", model="{name}", model_kwargs={{"active_task": {task}}})
only(Image.open("image.jpg").convert("RGB"))  # the classes of one task
```

"""
ZIPIT = """```python
import hf_zipit  # without hf-zipit: pass trust_remote_code=True to from_pretrained instead
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModelForImageClassification.from_pretrained("{name}").eval()
pixels = processor(Image.open("image.jpg").convert("{mode}"), return_tensors="pt")["pixel_values"]
out = model(pixel_values=pixels)  # the shared layers run once for all tasks
out.task_logits[{task}]  # the logits of one task
out.logits  # {logits}
```"""
SEVERAL = """```python
import hf_zipit  # without hf-zipit: pass trust_remote_code=True to from_pretrained instead
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}").eval()
pixels = torch.zeros(1, *model.config.input_size)  # replace with your images, preprocessed as for the parents
out = model(pixel_values=pixels)  # the shared layers run once for all tasks
out.task_outputs[{task}]  # the output of that task's parent
```

For one task alone, pass `active_task={task}` to `from_pretrained`. Pipelines for classification, segmentation, depth
and object detection take it as `pipeline(..., model_kwargs={{"active_task": {task}}})`. Where tasks detect objects,
`model.detect(image)` lists the boxes of all of them."""
TRANSFORMERS = """```python
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")
classify(Image.open("image.jpg").convert("RGB"))
```"""
TIMM = (
    """```python
import timm
from PIL import Image

model = timm.create_model("{prefix}:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0))
```

transformers loads it as well:

"""
    + TRANSFORMERS
)
