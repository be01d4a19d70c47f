# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a merged model whose tasks have outputs of any kind. Copied into merged repositories."""

from typing import Any, ClassVar

from .configuration_zipit import HEAD_RULES, RULES, Rule, ZipItConfig, are, is_map, is_text, is_whole


def _is_field(value: Any) -> bool:
    return is_whole(value) or is_text(value)


def _is_tap(value: Any) -> bool:
    return is_map(value) and is_whole(value.get("axis"), -4) and all(is_whole(value.get(k)) for k in ("step", "size"))


def _is_size(value: Any) -> bool:
    return are(value, lambda v: is_whole(v, 1)) and len(value) == 3


class ZipItModelConfig(ZipItConfig):
    """Everything needed to rebuild a merge of models of several classes except its weights.

    `head`, `owns` and `unmerge` are not used.

    Attributes:
        backbone: how the model is built from which the trunk is taken.
        backbone_path: path of the backbone inside that model; `""` is the model itself.
        trunk: the merged steps in running order: paths of modules of the backbone, or of its methods (`_pos_embed`).
        cut: the name of the cut as the user gave it; `None` to share all common layers.
        heads: one entry per task: `{"task", "kind", "id2label", "source", "model", "steps", "fields", "taps"}`. `kind`
            is the task as pipelines name it, `model` how the task's own model is built, `steps` are the paths of its
            modules that the trunk replaces, `fields` tells where in the output of a step its tensor lies, if the output
            is more than a tensor, and `taps` lists the steps whose outputs it reads: `[{"step", "axis", "size"}]`. With
            `reduce_labels`, masks hold 0 for no class, and k + 1 for class k of the task.
        shapes: shapes of the trunk's parameters that differ from those the backbone is built with, by name.
        attributes: attributes of the trunk's modules that differ from those the backbone is built with, by the path of
            the module: the number of attention heads and what depends on it.
        input_size: (channels, height, width) of an input image.
        preprocessing: timm's settings, if another image processor is saved beside the model.
        active_task: the task whose output the model returns by itself; `None` for those of all tasks.
        zipit: provenance: software, sources, recipe, data, and the composition of the merged units.
    """

    model_type = "zipit-model"
    rules: ClassVar[dict[str, Rule]] = {
        **RULES,
        "backbone_path": ("a text", is_text),
        "input_size": ("[channels, height, width]", _is_size),
        "preprocessing": ("a mapping", is_map),
    }
    head_rules: ClassVar[dict[str, Rule]] = {
        **HEAD_RULES,
        "kind": ("a text", is_text),
        "model": RULES["backbone"],
        "steps": ("a list of the names of steps", lambda value: are(value, is_text)),
        "fields": ("a mapping of steps to fields", lambda value: is_map(value, _is_field)),
        "taps": ("a list of mappings with a step, an axis and a size", lambda value: are(value, _is_tap)),
    }
    backbone_path: str = ""
    input_size: list[int] | None = None
    preprocessing: dict[str, Any] | None = None

    @property
    def branches(self) -> list[list[int]]:
        """The task numbers of each branch: every task has a model of its own."""
        return [[number] for number in range(len(self.heads or []))]
