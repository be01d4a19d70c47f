# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A merged model with outputs of any kind: one trunk, and what is left of every task's own model. A leaf file.

It needs torch, transformers and the libraries of the tasks' models, and of hf-zipit only the files beside it.
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
from .modeling_zipit import Unmerge, build_backbone, resize
from .pretrained_zipit import ZipItPreTrainedModel
from .resume import Steps, after, find_step, resumed

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForDepthEstimation",
)


@dataclass
class ZipItModelOutput(ModelOutput):
    """`task_outputs`: what each task's own model returns; a bare tensor is put in the output class of its kind."""

    loss: Tensor | None = None
    task_outputs: dict[str, Any] | None = None


class ZipItModel(ZipItPreTrainedModel):
    """The trunk runs once, then what is left of the models of the tasks asked for.

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
        """Build from the config alone, or from a trunk and one whole model per task, which are then taken apart."""
        super().__init__(config)
        heads, steps = config.heads or [], config.trunk or []
        if trunk is None:
            whole = build_model(config.backbone or {})
            trunk = Steps({step: find_step(whole, _joined(config.backbone_path, step)) for step in steps})
        if models is None:
            models = [build_model(head["model"]) for head in heads]
        self.trunk = trunk
        self.heads = nn.ModuleList(
            resumed(model, head["steps"], head["fields"]) for model, head in zip(models, heads, strict=True)
        )
        self.unmerge = nn.ModuleList(
            nn.ModuleDict({str(tap["step"]): Unmerge(tap["size"], tap["axis"]) for tap in head["taps"]})
            for head in heads
        )
        for name, shape in (config.shapes or {}).items():
            resize(self, name, shape)
        self.post_init()

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | str | None = None, **kwargs: Any) -> Any:
        """Run the trunk and the heads of some tasks.

        Args:
            pixel_values: `(B, 3, H, W)`.
            tasks: the tasks to run; all by default.
            **kwargs: passed to the active task's own model, such as `labels`.

        Returns:
            The active task's own output if there is one and no `tasks` are named, else a `ZipItModelOutput`.

        Raises:
            ValueError: an unknown task.
        """
        chosen, known = self._chosen(tasks), self.config.tasks
        alone = tasks is None and self.config.active_task is not None
        numbers = [known.index(task) for task in chosen]
        outputs = {}
        for task, number, done in zip(chosen, numbers, self._trunk(pixel_values, numbers), strict=True):
            with after(done):
                output = self.heads[number](pixel_values, **(kwargs if alone else {}))
            outputs[task] = _typed(output, (self.config.heads or [])[number]["kind"])
        return outputs[chosen[0]] if alone else ZipItModelOutput(task_outputs=outputs)

    def _trunk(self, pixel_values: Tensor, numbers: Sequence[int]) -> list[list[Tensor]]:
        """One pass of the trunk; for each head what its steps return: its own units where it reads them.

        Where it does not, the place is held by a tensor of the right shape that takes no memory.
        """
        done: list[list[Tensor]] = [[] for _ in numbers]
        for i, value in enumerate(self.trunk.outputs(pixel_values)):
            unread = value.new_zeros(()).expand(value.shape)
            for number, mine in zip(numbers, done, strict=True):
                taps: Any = self.unmerge[number]
                mine.append(taps[str(i)](value) if str(i) in taps else unread)
        return done


def build_model(description: dict[str, Any]) -> nn.Module:
    """A whole model of a task, untrained, from its description in the config.

    Raises:
        ValueError: it was given in memory, and no library can build it.
    """
    library, architecture = description["library"], description.get("architecture", "")
    if library == "memory":
        raise ValueError(f"a {architecture} given in memory cannot be rebuilt: its merges run, but cannot be saved")
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
    """A bare tensor in the output class that pipelines of its kind read; everything else as it is."""
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
