"""The model card of a merged repository: Hub metadata, parents, results, usage, recipe and limits."""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.pretrained_zipit import PLACE
from hf_zipit.saving.card_results import BEGIN, CLASSIFICATION, END, results_text, verdict_text
from hf_zipit.saving.card_texts import FOLDED, MERGED, PIPELINES, SECTIONS, SEVERAL, TIMM, TRANSFORMERS, ZIPIT
from hf_zipit.saving.picture import PICTURE
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.processors import channels_of
from hf_zipit.sources.source import MODES
from hf_zipit.text import markdown_cell as cell

NAMED = 4  # from so many tasks on, the title counts them


def card(
    config: ZipItConfig,
    name: str = PLACE,
    *,
    library: str = "zipit",
    task: str | None = None,
    license: Mapping[str, str] | None = None,
    recipe: str = "",
    reproduction: str = "",
) -> str:
    """The text of the model card.

    Args:
        config: config of the merged model.
        name: the Hub id or folder that the examples load.
        library: the format it is saved in: `zipit`, `timm` or `transformers`.
        task: the only task that is kept, for the ordinary formats; by default all.
        license: the metadata keys `license`, `license_name` and `license_link`, if known.
        recipe: the YAML text of the recipe.
        reproduction: a sentence without its final stop that introduces the recipe.
    """
    about = Provenance.of(config)
    rows = [
        f"| {cell(head['task'])} | {_output(head)} | {_parent(about.sources[head['source']])} |"
        for head in config.heads or []
    ]
    several = config.model_type == "zipit-model"
    channels = _channels(config)
    merged = SEVERAL if several else (PIPELINES if channels == 3 else "") + ZIPIT  # pipelines read RGB only
    use = {"zipit": merged, "timm": TIMM, "transformers": TRANSFORMERS}[library]
    alike = not any(head.get("problem") for head in config.heads or [])
    tasks = [task] if task else config.tasks
    limits = [
        textwrap.fill(f"- {line}", 120, subsequent_indent="  ") for line in _limits(about, several, library, len(tasks))
    ]
    text = SECTIONS.format(
        title=_title(config, about, task),
        what=FOLDED if len(about.sources) == 1 else f"{MERGED}\n{_shared_layers(config, several)}",
        parents="\n".join(rows),
        picture=f"![What the tasks share, and what each has of its own]({PICTURE})" if library == "zipit" else "",
        verdict=verdict_text(about.verdict),
        begin=BEGIN,
        results=results_text(None, config.tasks, several),
        end=END,
        use=use.format(
            name=name,
            task=json.dumps(config.tasks[0], ensure_ascii=False),
            prefix="local-dir" if "/" not in name else "hf-hub",
            mode=MODES.get(channels, "RGB"),
            logits=f"the {'log-probabilities' if alike else 'outputs'} of all tasks, concatenated",
        ),
        how="\n".join(f"- {key}: `{value}`" for key, value in _how(about).items()),
        reproduction=reproduction,
        recipe=recipe.strip(),
        limits="\n".join(limits),
    )
    data = _metadata(config, library, license or {})
    text = re.sub(r"\n{3,}", "\n\n", text)  # where a part is empty
    return f"---\n{data.to_yaml()}\n---\n{text}"


def _title(config: ZipItConfig, about: Provenance, task: str | None) -> str:
    """The title of the card."""
    if len(about.sources) == 1:
        return f"A smaller {', '.join(map(cell, config.tasks))}"
    if task:
        return f"{cell(task)}, one task of a merged model"
    *others, last = map(cell, config.tasks)
    named = f"{', '.join(others)} and {last}"
    return f"One model for {named if len(others) < NAMED else f'{len(config.tasks)} tasks'}"


def _channels(config: ZipItConfig) -> int:
    """The channels of the images that a merge reads."""
    given: Any = config
    sizes = (getattr(given, "input_size", None), (getattr(given, "pretrained_cfg", None) or {}).get("input_size"))
    stated = next((size[0] for size in sizes if size), None)
    return int(stated or channels_of((config.backbone or {}).get("config") or {}))


def _shared_layers(config: ZipItConfig, several: bool) -> str:
    """A sentence that says which layers the tasks share."""
    if config.cut:
        return f"The tasks share the layers up to `{config.cut}`; each keeps its own layers after it."
    if several:
        return "The tasks share all layers that their models have in common; each keeps its own remaining layers."
    return "The tasks share all layers but the classifiers."


def _output(head: Mapping[str, Any]) -> str:
    """A task's output: its number of classes, or its kind if it is not classification."""
    kind = str(head.get("kind", CLASSIFICATION))
    return f"{len(head['id2label'])} classes" if kind == CLASSIFICATION else kind


def _metadata(config: ZipItConfig, library: str, license: Mapping[str, str]) -> ModelCardData:
    """The card's metadata; only parents on the Hub are base models."""
    sources = Provenance.of(config).sources
    ids = [source["id"] for source in sources if source.get("id")]
    one = len(sources) == 1
    values: dict[str, Any] = {
        **license,
        "library_name": "timm" if library == "timm" else "transformers",
        "tags": ["zipit", *(["pruning"] if one else ["merge", "model-merging"])],
    }
    kinds = {head.get("kind", CLASSIFICATION) for head in config.heads or []}
    values |= {"pipeline_tag": kinds.pop()} if len(kinds) == 1 else {}
    if ids:
        values |= {"base_model": ids}
        values |= {} if one else {"base_model_relation": "merge"}
    return ModelCardData(**values)


def _how(about: Provenance) -> dict[str, Any]:
    """Method, images and software of the merge, as far as they are recorded."""
    images = ", ".join(f"{part['num_images']} of {part['name']}" for part in about.data)
    scale, base = (about.recipe.get(name) for name in ("scale", "base"))
    how = {
        "method": about.recipe.get("method"),
        "chosen because": about.choice and "; ".join(about.choice["reasons"]),
        "scale of the differences": scale if isinstance(scale, float) else None,
        "fine-tuned from": None if base is None else base.get("id") or base.get("folder") or "a model in memory",
        "attention heads": about.kept_heads and f"those of all parents: {about.kept_heads}",
        "unlabelled images": images or "none",
        "as wide as before": about.kept
        and "; ".join(f"{reason} (feature spaces: {len(names)})" for reason, names in about.kept.items()),
        "software": about.generator,
    }
    return {key: value for key, value in how.items() if value is not None}


def _limits(about: Provenance, several: bool, library: str, tasks: int) -> list[str]:
    """What a user of the model should know before using it, one sentence or two per line."""
    lines = ["A merge is usually less accurate than each parent on the parent's task. Measure it on your own images."]
    if len(about.sources) == 1:
        lines = ["A smaller model is usually less accurate than the one it was made of. Measure it on your own images."]
    if tasks > 1 and library == "zipit" and not several:
        lines.append(
            "The joint prediction compares the confidences of heads that were never trained together. Its scores are "
            f"at most 1/{tasks}, because every task adds up to the same share."
        )
    elif tasks > 1 and library != "zipit":
        lines.append(
            "The logits are the tasks' raw logits side by side. The classifiers were never trained together, and "
            "unlike in the zipit format their logits are not normalised per task: a softmax over all classes mixes "
            "their scales."
        )
    if not all(source.get("license") for source in about.sources):
        lines.append("At least one parent states no license. Ask its authors before you use or share this model.")
    return [*lines, "It inherits the biases and limits of its parents and of their training data."]


def _parent(source: Mapping[str, Any]) -> str:
    """A parent as Markdown: a link to the Hub, a folder name, or what it was."""
    if source.get("id"):
        return f"[{source['id']}](https://huggingface.co/{source['id']}) at `{source.get('revision')}`"
    return f"`{Path(source['folder']).name}`" if source.get("folder") else "a model in memory"
