# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A merge of models of several classes: one trunk, and the remaining layers of each. Copied into merged repositories.

It imports torch, transformers, the libraries of the tasks' models, and the files beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    DepthEstimatorOutput,
    ImageClassifierOutput,
    ImageSuperResolutionOutput,
    ModelOutput,
    SemanticSegmenterOutput,
)

from .configuration_zipit_model import ZipItModelConfig
from .modeling_zipit import Unmerge, build_backbone, resize, set_attributes
from .pretrained_zipit import ZipItPreTrainedModel
from .resume import Steps, find_step, resume_after, trunk_outputs

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForDepthEstimation",
    "AutoModelForObjectDetection",
)


@dataclass
class ZipItModelOutput(ModelOutput):
    """The outputs of several tasks.

    Attributes:
        loss: always `None`; with an active task, the loss is in that task's own output.
        task_outputs: the output of each task's own model. A bare tensor is wrapped in the output class of its kind.
    """

    loss: Tensor | None = None
    task_outputs: dict[str, Any] | None = None


class ZipItModel(ZipItPreTrainedModel):
    """A merge of models of several classes. The trunk runs once, then the remaining layers of the tasks asked for.

    >>> model = ZipItModel.from_pretrained("merged")  # doctest: +SKIP
    >>> model(pixel_values=pixels).task_outputs["scenes"].logits  # doctest: +SKIP
    """

    config_class = ZipItModelConfig
    config: ZipItModelConfig
    trunk: Steps
    auto_classes = AUTO_CLASSES

    def __init__(
        self, config: ZipItModelConfig, trunk: Steps | None = None, models: Sequence[nn.Module] | None = None
    ) -> None:
        """Build from the config alone, or from given parts.

        Args:
            config: config of the merged model.
            trunk: the merged steps.
            models: one whole model per task; they are taken apart and become parts of this model.
        """
        super().__init__(config)
        heads = config.heads or []
        if trunk is None:
            whole = build_model(config.backbone or {})
            paths = {step: _joined(config.backbone_path, step) for step in config.trunk or []}
            trunk = Steps({step: find_step(whole, path) for step, path in paths.items()})
        if models is None:
            models = [build_model(head["model"]) for head in heads]
        self.trunk = trunk
        self.heads = nn.ModuleList(
            resume_after(model, head["steps"], head["fields"]) for model, head in zip(models, heads, strict=True)
        )
        self.unmerge = nn.ModuleList(
            nn.ModuleDict({str(tap["step"]): Unmerge(tap["size"], tap["axis"]) for tap in head["taps"]})
            for head in heads
        )
        for name, shape in (config.shapes or {}).items():
            resize(self, name, shape)
        set_attributes(self.trunk, config.attributes or {})
        self.post_init()
        for number, head in enumerate(self.heads):  # transformers collects these from direct parts only
            tied: dict[str, str] = getattr(head, "all_tied_weights_keys", None) or {}
            self.all_tied_weights_keys |= {f"heads.{number}.{a}": f"heads.{number}.{b}" for a, b in tied.items()}

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | str | None = None, **kwargs: Any) -> Any:
        """Run the trunk, then the models of some tasks from where it ends.

        Args:
            pixel_values: `(B, 3, H, W)`.
            tasks: the tasks to run; by default the active task, or all if none is active.
            **kwargs: passed to the active task's own model, such as `labels`.

        Returns:
            The active task's own output if one is active and `tasks` is `None`, else a `ZipItModelOutput`.

        Raises:
            ValueError: a task is unknown.
        """
        chosen = self._chosen(tasks)
        alone = tasks is None and self.config.active_task is not None
        numbers = [self.config.tasks.index(task) for task in chosen]
        outputs = {}
        for task, number, computed in zip(chosen, numbers, self._trunk(pixel_values, numbers), strict=True):
            with trunk_outputs(computed):
                output = self.heads[number](pixel_values, **(kwargs if alone else {}))
            outputs[task] = _typed(output, (self.config.heads or [])[number]["kind"])
        return outputs[chosen[0]] if alone else ZipItModelOutput(task_outputs=outputs)

    def _trunk(self, pixel_values: Tensor, numbers: Sequence[int]) -> list[list[Tensor]]:
        """Run the trunk once; for each head, the output of every step in the head's own units.

        An output that the head does not read is replaced by zeros of the same shape that take no memory.
        """
        computed: list[list[Tensor]] = [[] for _ in numbers]
        for i, value in enumerate(self.trunk.outputs(pixel_values)):
            unread = value.new_zeros(()).expand(value.shape)
            for number, outputs in zip(numbers, computed, strict=True):
                taps: Any = self.unmerge[number]
                outputs.append(taps[str(i)](value) if str(i) in taps else unread)
        return computed


def build_model(description: dict[str, Any]) -> nn.Module:
    """Build the untrained model of a task from its description in the config.

    Raises:
        ValueError: the model was passed in memory, so that no library can build it.
    """
    library, architecture = description["library"], description.get("architecture", "")
    if library == "memory":
        raise ValueError(
            f"{architecture} was passed in memory and cannot be rebuilt: a merge of it runs, but cannot be saved"
        )
    if library == "segmentation-models-pytorch":
        import segmentation_models_pytorch as smp

        model: nn.Module = getattr(smp, architecture)(**description["model_args"])
    elif library == "transformers" and architecture:
        import transformers

        classes = {"num_labels": description["num_classes"]} if description.get("num_classes") else {}
        config = transformers.AutoConfig.for_model(**{**description["config"], **classes})
        model = getattr(transformers, architecture)(config)
    else:
        model = build_backbone(description, description["num_classes"])
    return model.eval()


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _typed(output: Any, kind: str) -> Any:
    """Wrap a bare tensor in the output class that pipelines of its kind read; other outputs are unchanged."""
    if not isinstance(output, Tensor):
        return output
    if kind == "image-classification":
        return ImageClassifierOutput(logits=output)
    if kind == "image-segmentation":
        return SemanticSegmenterOutput(logits=output)
    if kind == "depth-estimation":
        return DepthEstimatorOutput(predicted_depth=output.squeeze(1) if output.ndim == 4 else output)
    if kind == "image-to-image":
        return ImageSuperResolutionOutput(reconstruction=output)
    return BaseModelOutput(last_hidden_state=output)
