# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A merged model: one trunk, a head per task. A leaf file: it is copied into every merged repository.

It needs torch, transformers and the library of the backbone, and nothing else of hf-zipit but its configuration.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_zipit import ZipItConfig
from .steps import part, run_steps, step_name


@dataclass
class ZipItOutput(ImageClassifierOutput):
    """`logits (B, classes)` over the joint classes, and `task_logits`, one `(B, classes of the task)` per task.

    With several tasks `logits` holds each task's log-probabilities side by side, so its argmax is the joint
    prediction of ZipIt!, section 5: softmax per task, argmax over all. With one task it holds that task's logits.
    """

    task_logits: dict[str, Tensor] | None = None


class Unmerge(nn.Module):
    """Merged units -> one model's units: a gather, no arithmetic."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.index: Tensor
        self.register_buffer("index", torch.zeros(size, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Gather this model's units along the channel axis."""
        return x.index_select(self.axis, self.index)


class ZipItPreTrainedModel(PreTrainedModel):
    """What all merged models share: how tasks are named, and how a merge is saved."""

    config: ZipItConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = "trunk"
    model_tags = ["zipit", "merge"]  # noqa: RUF012  (transformers reads a list)
    auto_classes: tuple[str, ...] = ()  # the Auto classes that load it where the code is trusted
    spec_text: str | None = None  # the spec it was merged with, where it is known
    places: dict[str, Any] | None = None  # where sources and data were, for the recipe that is saved beside the model
    image_processor: Any = None  # transformers sources: what is saved beside the model

    def _chosen(self, tasks: Sequence[str] | str | None) -> list[str]:
        known = self.config.tasks
        if tasks is None:
            return known if self.config.active_task is None else [self.config.active_task]
        tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            raise ValueError(f"unknown task {unknown[0] if unknown else tasks!r}; tasks: {', '.join(known)}")
        return tasks

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the model, after making sure that its config describes it.

        Raises:
            ValueError: a backbone that was given in memory is not what its name and arguments build.
        """
        with torch.device("meta"):
            planned = {k: v.shape for k, v in type(self)(self.config).state_dict().items()}
        mine = {k: v.shape for k, v in self.state_dict().items()}
        odd = sorted(k for k in planned.keys() | mine.keys() if planned.get(k) != mine.get(k))
        if odd:
            raise ValueError(
                f"{(self.config.backbone or {}).get('architecture')} cannot be rebuilt by name: {odd[0]} differs. "
                "Merge Hub-format folders, whose config.json holds the models' arguments, or "
                "hf_zipit.load_source(module, model_args={...})"
            )
        type(self.config).register_for_auto_class()  # so the code files go along
        type(self).register_for_auto_class(self.auto_classes[0])
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the checkpoint; only buffers that are never saved need values."""
        for name in ("init_non_persistent_buffers", "_init_buffers"):
            if hasattr(module, name):
                getattr(module, name)()
                return


class ZipItForImageClassification(ZipItPreTrainedModel):
    """The trunk runs once, then only the heads asked for.

    >>> model = ZipItForImageClassification.from_pretrained("merged")  # doctest: +SKIP
    >>> model(pixel_values=pixels, tasks=["birds"]).task_logits["birds"]  # doctest: +SKIP
    """

    config_class = ZipItConfig
    auto_classes = ("AutoModelForImageClassification",)

    def __init__(self, config: ZipItConfig, backbones: Sequence[nn.Module] | None = None) -> None:
        """Build from the config alone, or from one backbone per task, which are then taken apart."""
        super().__init__(config)
        heads, trunk, head = config.heads or [], config.trunk or [], config.head or []
        classes = [len(h["id2label"]) for h in heads]
        if backbones is None:
            backbones = [build_backbone(config.backbone or {}, n) for n in (classes if head else [sum(classes)])]
        self.heads, self.unmerge = nn.ModuleList(), nn.ModuleList()
        if not head:
            self.trunk = backbones[0]
        else:
            owns, unmerge = config.owns or {}, config.unmerge
            used = [[n for s in map(step_name, steps) for n in owns.get(s, [s])] for steps in (trunk, head)]
            self.trunk = part(copy.deepcopy(backbones[0]), used[0])
            self.heads.extend(part(b, used[1]) for b in backbones)
            self.unmerge.extend(Unmerge(unmerge["size"], unmerge["axis"]) if unmerge else nn.Identity() for _ in heads)
        for name, shape in (config.shapes or {}).items():
            resize(self, name, shape)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        tasks: Sequence[str] | str | None = None,
        **_: Any,
    ) -> ZipItOutput:
        """Classify images.

        Args:
            pixel_values: `(B, 3, H, W)`.
            labels: `(B,)` ids among the classes of `logits`; adds the cross-entropy as `loss`.
            tasks: the tasks to run, all (or the active one) by default.

        Raises:
            ValueError: an unknown task.
        """
        task_logits = self._heads(pixel_values, self._chosen(tasks))
        parts = list(task_logits.values())
        logits = parts[0] if len(parts) == 1 else torch.cat([part.log_softmax(-1) for part in parts], -1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ZipItOutput(loss=loss, logits=logits, task_logits=task_logits)

    def _heads(self, pixel_values: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """One trunk pass, then the chosen heads; without a chain one classifier holds the classes of all tasks."""
        known, head = self.config.tasks, self.config.head or []
        if not head:
            output = self.trunk(pixel_values)
            logits = output if isinstance(output, Tensor) else output.logits
            parts = logits.split([len(h["id2label"]) for h in self.config.heads or []], -1)
            return {task: parts[known.index(task)] for task in tasks}
        size = pixel_values.shape[-2:]
        features = run_steps(self.trunk, self.config.trunk or [], pixel_values, size)
        numbers = {task: known.index(task) for task in tasks}
        return {task: run_steps(self.heads[i], head, self.unmerge[i](features), size) for task, i in numbers.items()}


def build_backbone(backbone: dict[str, Any], num_classes: int) -> nn.Module:
    """The backbone with a classifier of its own, untrained."""
    if backbone["library"] == "transformers":
        import transformers

        config = transformers.AutoConfig.for_model(**{**backbone["config"], "num_labels": num_classes})
        classifier: nn.Module
        if "architecture" in backbone:  # several classes may share one kind of configuration
            classifier = getattr(transformers, backbone["architecture"])(config)
        else:
            classifier = transformers.AutoModelForImageClassification.from_config(config)
        return classifier.eval()
    import timm

    if backbone["architecture"] == "cifar_resnet20":
        from .cifar_resnet import cifar_resnet20  # noqa: F401  (registers it)
    elif backbone["architecture"] == "cifar_vgg11":
        from .cifar_vgg import cifar_vgg11  # noqa: F401  (registers it)
    model: nn.Module = timm.create_model(
        backbone["architecture"], pretrained=False, num_classes=num_classes, **backbone.get("model_args", {})
    )
    return model.eval()


def resize(root: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Give one parameter or buffer another shape, and its module the widths that go with it."""
    path, _, leaf = name.rpartition(".")
    module = root.get_submodule(path)
    old = getattr(module, leaf)
    new = torch.zeros(math.prod(shape), dtype=old.dtype, device=old.device).view(*shape)
    setattr(module, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    if leaf != "weight":
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels:
            module.groups = shape[0]
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
