# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A merged classifier: one trunk, and a head per task. Copied into every merged repository.

It imports torch, transformers, the library of the backbone, and the files beside it.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_zipit import ZipItConfig
from .pretrained_zipit import ZipItPreTrainedModel
from .rerun import Outline, keep_only
from .steps import OPS, interrupted, part, run_steps, step_name

# arguments that make timm.create_model read files or repositories; refused, as a config may come from anybody
READING = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


@dataclass
class ZipItOutput(ImageClassifierOutput):
    """The output of a merged classifier.

    Attributes:
        loss: cross-entropy, if labels were given.
        logits: `(B, joint classes)`. With several tasks, the log-probabilities of all tasks side by side, so that
            their argmax is the joint prediction of ZipIt!, section 5: softmax per task, then argmax over all. With
            one task, the logits of that task. If a task does not predict one class of several, the outputs of all
            tasks side by side, which have no joint prediction.
        task_logits: for each task its logits, `(B, classes of the task)`.
    """

    task_logits: dict[str, Tensor] | None = None


class Unmerge(nn.Module):
    """Gather the units of one parent from the merged units.

    `index (size,)` holds the merged unit of each of the parent's units.
    """

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.index: Tensor
        self.register_buffer("index", torch.zeros(size, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """The parent's units, along the channel axis."""
        return x.index_select(self.axis, self.index)


class ZipItForImageClassification(ZipItPreTrainedModel):
    """A merged classifier. The trunk runs once, then the heads of the tasks asked for.

    >>> model = ZipItForImageClassification.from_pretrained("merged")  # doctest: +SKIP
    >>> model(pixel_values=pixels, tasks=["birds"]).task_logits["birds"]  # doctest: +SKIP
    """

    config_class = ZipItConfig
    auto_classes = ("AutoModelForImageClassification",)

    def __init__(self, config: ZipItConfig, backbones: Sequence[nn.Module] | None = None) -> None:
        """Build from the config alone, or from given backbones.

        Args:
            config: config of the merged model.
            backbones: one per branch; they are taken apart and become parts of this model.
        """
        super().__init__(config)
        trunk = config.trunk or []
        head = config.head or []
        unknown = [step for step in map(step_name, [*trunk, *head]) if step[:3] == "op:" and step[3:] not in OPS]
        if unknown:
            raise ValueError(f"unknown step {unknown[0]}; functions: {', '.join(OPS)}")
        if backbones is None:
            backbones = [build_backbone(config.backbone or {}, sum(sizes)) for sizes in self._sizes]
        self.outline = self._outline_of(backbones[0])
        self.heads = nn.ModuleList()
        self.unmerge = nn.ModuleList()
        if not head:
            self.trunk = backbones[0]
        else:
            unmerge = config.unmerge
            self.trunk = self._part(copy.deepcopy(backbones[0]), trunk, head)
            self.heads.extend(self._part(backbone, head, trunk) for backbone in backbones)
            self.unmerge.extend(
                Unmerge(unmerge["size"], unmerge["axis"]) if unmerge else nn.Identity() for _ in backbones
            )
        for name, shape in (config.shapes or {}).items():
            resize(self, name, shape)
        set_attributes(self.trunk, config.attributes or {})
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
            labels: `(B,)` class ids that index `logits`; with them the output has the cross-entropy as `loss`.
            tasks: the tasks to run; by default the active task, or all if none is active.

        Raises:
            ValueError: a task is unknown; or there are labels, and a task does not predict one class of several.
        """
        chosen = self._chosen(tasks)
        task_logits = self._heads(pixel_values, chosen)
        parts = list(task_logits.values())
        others = [head["task"] for head in self.config.heads or [] if head["task"] in chosen and head.get("problem")]
        if labels is not None and others:
            raise ValueError(f"labels: task '{others[0]}' does not predict one class of several; leave them out")
        comparable = len(parts) > 1 and not others
        logits = torch.cat([part.log_softmax(-1) for part in parts] if comparable else parts, -1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ZipItOutput(loss=loss, logits=logits, task_logits=task_logits)

    @property
    def _sizes(self) -> list[list[int]]:
        """For each branch, the number of classes of each of its tasks."""
        heads = self.config.heads or []
        return [[len(heads[i]["id2label"]) for i in group] for group in self.config.branches]

    def _owned(self, steps: Sequence[str]) -> list[str]:
        """The modules and parameters of the backbone that some steps use."""
        owns = self.config.owns or {}
        return [name for step in map(step_name, steps) for name in owns.get(step, [step])]

    def _outline_of(self, backbone: nn.Module) -> Outline | None:
        """The outline of a backbone, if its own forward runs in parts."""
        steps = [*(self.config.trunk or []), *(self.config.head or [])]
        if interrupted(steps) is None:
            return None
        return Outline(backbone, {step: self._owned([step]) for step in steps})

    def _part(self, backbone: nn.Module, steps: Sequence[str], others: Sequence[str]) -> nn.Module:
        """A backbone, changed in place, with only what some of its steps use; `others` are all other steps."""
        if self.outline is None:
            return part(backbone, self._owned(steps))
        return keep_only(self.outline.watch(backbone), self._owned(steps), self._owned(others))

    def _heads(self, pixel_values: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """The logits of the chosen tasks: one pass of the trunk, then the branches of these tasks.

        Without head steps the whole network is the trunk, and its output holds the logits of all tasks.
        """
        head = self.config.head or []
        size = pixel_values.shape[-2:]
        if not head:
            output = self.trunk(pixel_values)
            features = output if isinstance(output, Tensor) else output.logits
        else:
            features = run_steps(self.trunk, self.config.trunk or [], pixel_values, size, self.outline)
        found: dict[str, Tensor] = {}
        for i, (group, sizes) in enumerate(zip(self.config.branches, self._sizes, strict=True)):
            names = [self.config.tasks[k] for k in group]
            if not set(names).isdisjoint(tasks):
                logits = self._run_head(i, features, size) if head else features
                found |= zip(names, logits.split(sizes, -1), strict=True)
        return {task: found[task] for task in tasks}

    def _run_head(self, number: int, features: Tensor, size: Sequence[int]) -> Tensor:
        """The logits of a branch."""
        own = self.unmerge[number](features)
        return run_steps(self.heads[number], self.config.head or [], own, size, self.outline)


def build_backbone(backbone: dict[str, Any], num_classes: int) -> nn.Module:
    """Build an untrained backbone with a classifier.

    Args:
        backbone: its description, as in `ZipItConfig.backbone`.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: the architecture is not a plain timm or transformers model.
    """
    if backbone["library"] == "transformers":
        import transformers

        config = transformers.AutoConfig.for_model(**{**backbone["config"], "num_labels": num_classes})
        classifier: nn.Module
        if "architecture" in backbone:  # one config class may belong to several models
            kind = getattr(transformers, backbone["architecture"])
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                raise ValueError(f"{backbone['architecture']} is not a transformers model")
            classifier = kind(config)
        else:
            classifier = transformers.AutoModelForImageClassification.from_config(config)
        return classifier.eval()
    import timm

    _register(backbone["architecture"])
    args = backbone.get("model_args", {})
    if not timm.is_model(backbone["architecture"]) or not READING.isdisjoint(args):
        raise ValueError(f"{backbone['architecture']}({', '.join(args)}) is not a plain timm model")
    model: nn.Module = timm.create_model(backbone["architecture"], pretrained=False, num_classes=num_classes, **args)
    return model.eval()


def _register(architecture: str) -> None:
    """Register an architecture of hf-zipit in timm; a saved merge keeps only the lines it needs."""
    if architecture == "cifar_resnet20":
        from .cifar_resnet import cifar_resnet20  # noqa: F401
    if architecture == "cifar_vgg11":
        from .cifar_vgg import cifar_vgg11  # noqa: F401


def set_attributes(root: nn.Module, attributes: Mapping[str, Mapping[str, int | float]]) -> None:
    """Set attributes of modules that are numbers, such as the number of attention heads.

    Args:
        root: the model, changed in place.
        attributes: path of a module -> attribute -> value.

    Raises:
        ValueError: the module has no such attribute, or it is not a number of the same type.
    """
    for path, values in attributes.items():
        held = vars(root.get_submodule(path))
        for name, value in values.items():
            if isinstance(held.get(name), bool) or type(held.get(name)) is not type(value):
                raise ValueError(f"{path or 'the model'} has no attribute '{name}' of type {type(value).__name__}")
            held[name] = value


def resize(root: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Replace a parameter or buffer by zeros of another shape, and adapt the widths of its module.

    Args:
        root: the model, changed in place.
        name: the parameter's name in the state dict.
        shape: the new shape.
    """
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
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)
