"""The README.md of a merged repository: metadata for the Hub, what was merged and how, results, use, and limits."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.text import si

Results = Mapping[str, Any]  # {"data": [name, ...], "rows": [row as in `evaluate`, ...], "plot": file name or None}
BEGIN, END = "<!-- hf-zipit: results -->", "<!-- hf-zipit: end of results -->"
_TEXT = """
# {title}

Merged by hf-zipit, without training, from models that were trained on different tasks: {where}.

| task | classes | parent |
|---|---|---|
{parents}

{begin}
{results}
{end}

## Use

{use}

## How it was merged

{how}

{again}:

```yaml
{recipe}
```

## Limits

{limits}
"""
_ZIPIT = """```python
import hf_zipit  # without hf-zipit installed: pass trust_remote_code=True to from_pretrained and pipeline
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")  # over the classes of all tasks
classify(Image.open("image.jpg").convert("RGB"))
```

```python
only = pipeline("image-classification", model="{name}", model_kwargs={{"active_task": "{task}"}})
only(Image.open("image.jpg").convert("RGB"))  # the classes of one task
```

```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModelForImageClassification.from_pretrained("{name}").eval()
pixels = processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")["pixel_values"]
out = model(pixel_values=pixels)
out.task_logits["{task}"]  # one tensor per task; the trunk runs once
out.logits  # joint: each task's log-probabilities side by side
```"""
_SEVERAL = """```python
import hf_zipit  # without hf-zipit installed: pass trust_remote_code=True to from_pretrained
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}").eval()
pixels = torch.zeros(1, *model.config.input_size)  # your images, preprocessed as the parents were trained
out = model(pixel_values=pixels)  # the trunk runs once
out.task_outputs["{task}"]  # what each task's own model returns
```

`from_pretrained(..., active_task="{task}")` gives a model of that task alone; so does
`pipeline(..., model_kwargs={{"active_task": "{task}"}})`, for classification, segmentation and depth."""
_TRANSFORMERS = """```python
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")
classify(Image.open("image.jpg").convert("RGB"))
```"""
_TIMM = (
    """```python
import timm
from PIL import Image

model = timm.create_model("{prefix}:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0))
```

transformers reads it as well:

"""
    + _TRANSFORMERS
)


def card(
    config: ZipItConfig,
    name: str = "path/or/id",
    *,
    library: str = "zipit",
    task: str | None = None,
    licence: Mapping[str, str] | None = None,
    recipe: str = "",
    again: str = "",
    results: Results | None = None,
) -> str:
    """The text of the model card.

    Args:
        config: of the merged model.
        name: the Hub id or folder that the examples load.
        library: the format it is saved in, `zipit`, `timm` or `transformers`.
        task: the only task it was saved with, for the ordinary formats.
        licence: the metadata `license`, `license_name` and `license_link`, as far as it has them.
        recipe: the YAML text that makes the weights again.
        again: how it does, as a sentence without its stop.
        results: what an evaluation gave.
    """
    about: dict[str, Any] = config.zipit or {}
    sources, heads = about.get("sources", []), config.heads or []
    rows = (f"| {h['task']} | {_answers(h)} | {_shown(sources[h['source']])} |" for h in heads)
    several = config.model_type == "zipit-model"
    own = _SEVERAL if several else _ZIPIT
    use = {"zipit": own, "timm": _TIMM, "transformers": _TRANSFORMERS}[library]
    tasks = [task] if task else config.tasks
    text = _TEXT.format(
        title=f"The task {task} of a merged model" if task else f"One model for {len(tasks)} tasks",
        where=f"shared up to `{config.cut}`, with the layers after it kept for each task"
        if config.cut
        else "all layers but the classifiers are shared",
        parents="\n".join(rows),
        begin=BEGIN,
        results=_results_text(results, config.tasks, several),
        end=END,
        use=use.format(name=name, task=config.tasks[0], prefix="local-dir" if "/" not in name else "hf-hub"),
        how="\n".join(f"- {key}: `{value}`" for key, value in _how(about).items()),
        again=again,
        recipe=recipe.strip(),
        limits="\n".join(f"- {textwrap.fill(line, 118)}" for line in _limits(config, library, tasks, results)),
    )
    data = _metadata(config, library, licence or {}, results)
    return f"---\n{data.to_yaml()}\n---\n{text}"


def _answers(head: Mapping[str, Any]) -> str:
    """The number of a task's classes, and its kind where that is not classification."""
    kind = head.get("kind", "image-classification")
    return str(len(head["id2label"])) if kind == "image-classification" else kind


def with_results(card: str, config: ZipItConfig, results: Results) -> str:
    """A card with the results of an evaluation in the place of earlier ones; whatever else it says is kept."""
    known = ModelCard(card, ignore_metadata_errors=True)
    for key, value in _evaluated(config, results).items():
        known.data[key] = value
    before, found, rest = known.text.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    text = f"{before.strip()}\n\n{BEGIN}\n{_results_text(results, config.tasks)}\n{END}{after}"
    return f"---\n{known.data.to_yaml()}\n---\n\n{text}"


def _metadata(config: ZipItConfig, library: str, licence: Mapping[str, str], results: Results | None) -> ModelCardData:
    """The front matter; only models on the Hub are base models."""
    about = config.zipit or {}
    ids = [source["id"] for source in about.get("sources", []) if source.get("id")]
    values: dict[str, Any] = {
        **licence,
        "library_name": "timm" if library == "timm" else "transformers",
        "tags": ["zipit", "merge", "model-merging"],
    }
    kinds = {head.get("kind", "image-classification") for head in config.heads or []}
    values |= {"pipeline_tag": kinds.pop()} if len(kinds) == 1 else {}
    if ids:
        values |= {"base_model": ids, "base_model_relation": "merge"}
    return ModelCardData(**values, **(_evaluated(config, results) if results else {}))


def _evaluated(config: ZipItConfig, results: Results) -> dict[str, Any]:
    """One result for each task, and one for all classes together."""
    merged = next(row for row in results["rows"] if row["model"] == "merged")
    names = list(results["data"])
    each = names if len(names) == len(config.tasks) else names * len(config.tasks)
    found = [
        (name, f"accuracy on {task}, among its classes", merged["tasks"][task])
        for task, name in zip(config.tasks, each, strict=False)
    ]
    found.append((" and ".join(names), "joint accuracy, among the classes of all tasks", merged["joint"]))
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=name,
            dataset_name=name,
            metric_type="accuracy",
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for name, metric, value in found
    ]
    return {"model_name": f"{' + '.join(config.tasks)}, merged", "eval_results": entries, "metrics": ["accuracy"]}


def _results_text(results: Results | None, tasks: Sequence[str], several: bool = False) -> str:
    if not results and several:
        return "Not evaluated yet: `hf-zipit eval FOLDER --data D` gives each task's own metric."
    if not results:
        return "Not evaluated yet: `hf-zipit eval FOLDER --data D --update-card` fills this in."
    lines = ["## Results", "", f"Accuracy in percent on {', '.join(results['data'])}.", ""]
    lines.append(f"| | {' | '.join(tasks)} | average | joint | FLOPs | parameters |")
    lines.append("|---" * (len(tasks) + 5) + "|")
    for row in results["rows"]:
        mine = [f"{100 * row['tasks'][task]:.1f}" if task in row["tasks"] else "-" for task in tasks]
        rest = [f"{100 * row['average']:.1f}", f"{100 * row['joint']:.1f}"]
        cost = [si(row["flops"]), si(row["parameters"])]
        lines.append(f"| {' | '.join([row['model'], *mine, *rest, *cost])} |")
    lines += [
        "",
        "Per task among its own classes; `joint` among the classes of all tasks (softmax per task, argmax over all).",
    ]
    return "\n".join(lines + ([f"\n![Accuracy against cost]({results['plot']})"] if results.get("plot") else []))


def _how(about: Mapping[str, Any]) -> dict[str, Any]:
    images = ", ".join(f"{part['num_images']} of {part['name']}" for part in about.get("data", []))
    method = about.get("recipe", {}).get("method")
    how = {"method": method, "images, without labels": images or "none", "made by": about.get("generator")}
    return {key: value for key, value in how.items() if value is not None}


def _limits(config: ZipItConfig, library: str, tasks: Sequence[str], results: Results | None) -> list[str]:
    lines = ["A merge is usually less accurate than its parents on their own tasks; measure it on your own images."]
    if len(tasks) > 1 and library == "zipit":
        lines.append("The joint prediction compares the confidence of heads that were never trained together.")
    elif len(tasks) > 1:
        lines.append(
            "The logits are the tasks' raw logits side by side. They were never trained together, and unlike in the "
            "zipit format they are not normalised per task: a softmax over all classes mixes their scales."
        )
    sources = (config.zipit or {}).get("sources", [])
    if not all(source.get("license") for source in sources):
        lines.append("Not every parent states a licence: ask its authors before you use or share this model.")
    return [*lines, "It inherits the biases and the limits of its parents and of their training data."]


def _shown(source: Mapping[str, Any]) -> str:
    if source.get("id"):
        return f"[{source['id']}](https://huggingface.co/{source['id']}) at `{source.get('revision')}`"
    return f"`{Path(source['folder']).name}`" if source.get("folder") else "a model in memory"
