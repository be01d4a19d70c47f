# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A merge of models of several classes: one trunk, and the remaining layers of each. Copied into merged repositories.

It imports torch, transformers, the libraries of the tasks' models, and the files beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor
from transformers.modeling_outputs import (
    BaseModelOutput,
    DepthEstimatorOutput,
    ImageClassifierOutput,
    ImageSuperResolutionOutput,
    ModelOutput,
    SemanticSegmenterOutput,
)

from .boxes import joint_boxes
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
DETECTION = "object-detection"


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
        outputs = self._outputs(pixel_values, chosen, kwargs if alone else {})
        return outputs[chosen[0]] if alone else ZipItModelOutput(task_outputs=outputs)

    def _outputs(self, pixel_values: Tensor, tasks: Sequence[str], arguments: dict[str, Any]) -> dict[str, Any]:
        """The output of each task's own model, all of which get the same further arguments."""
        numbers = [self.config.tasks.index(task) for task in tasks]
        outputs = {}
        for task, number, computed in zip(tasks, numbers, self._trunk(pixel_values, numbers), strict=True):
            with trunk_outputs(computed):
                output = self.heads[number](pixel_values, **arguments)
            outputs[task] = _typed(output, (self.config.heads or [])[number]["kind"])
        return outputs

    @torch.no_grad()
    def detect(
        self,
        images: Any,
        *,
        threshold: float = 0.5,
        tasks: Sequence[str] | str | None = None,
        suppress: float | None = None,
        processor: Any = None,
    ) -> list[list[dict[str, Any]]]:
        """The boxes that all detectors find, in one list per image; the trunk runs once for all of them.

        Args:
            images: a PIL image, or a list of them, of any size.
            threshold: boxes with a lower score are left out. Scores are those of the tasks' own models; nothing makes
                the scores of one task comparable with those of another.
            tasks: the tasks to run; by default the active task, or all detectors if none is active.
            suppress: leave out a box that overlaps a surer one of another task by more than this (intersection over
                union); by default all boxes are kept.
            processor: the image processor; by default the one that is saved beside the model.

        Returns:
            For each image a list of boxes, the surest first. A box has a `score`, a `label` `task/class`, a `task`, and
            a `box` with `xmin`, `ymin`, `xmax`, `ymax` in pixels of the image.

        Raises:
            ValueError: no task detects objects, one of `tasks` does not, or there is no image processor.

        >>> model.detect(Image.open("street.jpg"))[0][0]["label"]  # doctest: +SKIP
        'signs/stop'
        """
        chosen = detectors(self.config, None if tasks is None else self._chosen(tasks))
        names = {head["task"]: head["id2label"] for head in self.config.heads or []}
        processor = processor or self._own_processor()
        found = []
        for image in images if isinstance(images, list | tuple) else [images]:
            inputs = processor(images=[image], return_tensors="pt").to(self.device)
            pixels = inputs.pop("pixel_values").to(self.dtype)
            size = torch.tensor([[image.height, image.width]], device=self.device)
            outputs = self._outputs(pixels, chosen, dict(inputs))
            boxes = {
                task: processor.post_process_object_detection(output, threshold=threshold, target_sizes=size)[0]
                for task, output in outputs.items()
            }
            found.append(joint_boxes(boxes, names, suppress))
        return found

    def _own_processor(self) -> Any:
        """The image processor in memory, or else the one where the model was loaded from."""
        if self.image_processor is not None:
            return self.image_processor
        place, revision = self.origin or (None, None)
        try:
            return AutoImageProcessor.from_pretrained(place, revision=revision)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                "no image processor is saved beside the merge: pass that of its parents as processor"
            ) from error

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


def detectors(config: ZipItModelConfig, tasks: Sequence[str] | None = None) -> list[str]:
    """Those of some tasks, by default of the active one or all, that detect objects.

    Raises:
        ValueError: a named task does not, or none does.
    """
    kinds = {head["task"]: head["kind"] for head in config.heads or []}
    active = [config.active_task] if config.active_task else list(kinds)
    wrong = [task for task in tasks or () if kinds[task] != DETECTION]
    found = [task for task in tasks or active if kinds[task] == DETECTION]
    if wrong or not found:
        raise ValueError(f"{', '.join(wrong or active)}: no detector of objects; detect is for object-detection only")
    return found


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
