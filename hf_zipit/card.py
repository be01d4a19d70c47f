"""The README.md of a merged repository."""

from typing import Any

import yaml

from hf_zipit.configuration_zipit import ZipItConfig


def card(config: ZipItConfig) -> str:
    """The text of the model card: front matter, what was merged and how, and how to use it."""
    about: dict[str, Any] = config.zipit or {}
    ids = [source["id"] for source in about.get("sources", []) if source.get("id")]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["zipit", "merge", "model-merging"],
    }
    if ids:
        front |= {"base_model": ids, "base_model_relation": "merge"}
    heads = config.heads or []
    rows = "\n".join(
        f"| {head['task']} | {len(head['id2label'])} | {_shown(source)} |"
        for head, source in zip(heads, about.get("sources", []), strict=True)
    )
    options = "\n".join(f"- {key}: `{value}`" for key, value in about.get("recipe", {}).items())
    where = f"up to and including `{config.cut}`" if config.cut else "in all layers but the classifiers"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# One model for {len(heads)} tasks

Merged without training by [hf-zipit](https://github.com/hf-zipit/hf-zipit) {where}: the trunk runs once per image,
then only the heads that are asked for.

| task | classes | source |
|---|---|---|
{rows}

## Use

```python
import hf_zipit  # or pass trust_remote_code=True
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("path/or/id")
out = model(pixel_values=pixels)
out.logits       # joint: each task's log-probabilities side by side
out.task_logits  # one tensor per task
```

`from_pretrained(..., active_task="{config.tasks[0]}")` makes `logits` and the labels those of one task. The joint
prediction compares the confidence of heads that were never trained together.

## How it was merged

{options}
"""


def _shown(source: dict[str, Any]) -> str:
    if source.get("id"):
        return f"[{source['id']}](https://huggingface.co/{source['id']}) at `{source.get('revision')}`"
    return f"`{source['folder']}`" if source.get("folder") else "a model in memory"
