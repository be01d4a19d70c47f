# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a merged model with outputs of any kind. A leaf file: it is copied into merged repositories."""

from typing import Any

from .configuration_zipit import ZipItConfig


class ZipItModelConfig(ZipItConfig):
    """What is needed to rebuild a merge of models of several classes.

    Attributes:
        backbone: how the model is built whose layers are the trunk's architecture.
        backbone_path: where its backbone lies in it; `""` is the model itself.
        trunk: the merged steps in running order: paths of modules of the backbone, and of methods (`_pos_embed`).
        heads: one entry per task: `{"task", "kind", "id2label", "source", "model", "steps", "fields", "taps"}`. `kind`
            is the task as pipelines name it, `model` how the task's own model is built, `steps` its modules that the
            trunk has run already, `fields` where their tensors lie in what they return, if that is more than a tensor,
            `taps` the steps whose outputs it reads: `[{"step", "axis", "size"}]`.
        input_size: (channels, height, width) of an input image.
        preprocessing: timm's settings, where another image processor is saved beside the model.
        active_task: the task whose output the model returns by itself.
    """

    model_type = "zipit-model"
    backbone_path: str = ""
    input_size: list[int] | None = None
    preprocessing: dict[str, Any] | None = None
