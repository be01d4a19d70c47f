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
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_zipit import ZipItConfig
from .pretrained_zipit import ZipItPreTrainedModel
from .steps import part, run_steps, step_name

# arguments of timm.create_model that make it read files or other repositories
READING = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


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


class ZipItForImageClassification(ZipItPreTrainedModel):
    """The trunk runs once, then only the heads asked for.

    >>> model = ZipItForImageClassification.from_pretrained("merged")  # doctest: +SKIP
    >>> model(pixel_values=pixels, tasks=["birds"]).task_logits["birds"]  # doctest: +SKIP
    """

    config_class = ZipItConfig
    auto_classes = ("AutoModelForImageClassification",)

    def __init__(self, config: ZipItConfig, backbones: Sequence[nn.Module] | None = None) -> None:
        """Build from the config alone, or from one backbone per branch, which are then taken apart."""
        super().__init__(config)
        trunk, head = config.trunk or [], config.head or []
        if backbones is None:
            backbones = [build_backbone(config.backbone or {}, sum(sizes)) for sizes in self._sizes]
        self.heads, self.unmerge = nn.ModuleList(), nn.ModuleList()
        if not head:
            self.trunk = backbones[0]
        else:
            owns, unmerge = config.owns or {}, config.unmerge
            used = [[n for s in map(step_name, steps) for n in owns.get(s, [s])] for steps in (trunk, head)]
            self.trunk = part(copy.deepcopy(backbones[0]), used[0])
            self.heads.extend(part(b, used[1]) for b in backbones)
            self.unmerge.extend(
                Unmerge(unmerge["size"], unmerge["axis"]) if unmerge else nn.Identity() for _ in backbones
            )
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

    @property
    def _sizes(self) -> list[list[int]]:
        """The numbers of classes of each branch's tasks."""
        heads = self.config.heads or []
        return [[len(heads[i]["id2label"]) for i in group] for group in self.config.branches]

    def _heads(self, pixel_values: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """One trunk pass, then the branches of the chosen tasks; without a chain the network is the one branch."""
        head, size = self.config.head or [], pixel_values.shape[-2:]
        if not head:
            output = self.trunk(pixel_values)
            features = output if isinstance(output, Tensor) else output.logits
        else:
            features = run_steps(self.trunk, self.config.trunk or [], pixel_values, size)
        found: dict[str, Tensor] = {}
        for i, (group, sizes) in enumerate(zip(self.config.branches, self._sizes, strict=True)):
            names = [self.config.tasks[k] for k in group]
            if not set(names).isdisjoint(tasks):
                logits = run_steps(self.heads[i], head, self.unmerge[i](features), size) if head else features
                found |= zip(names, logits.split(sizes, -1), strict=True)
        return {task: found[task] for task in tasks}


def build_backbone(backbone: dict[str, Any], num_classes: int) -> nn.Module:
    """The backbone with a classifier of its own, untrained."""
    if backbone["library"] == "transformers":
        import transformers

        config = transformers.AutoConfig.for_model(**{**backbone["config"], "num_labels": num_classes})
        classifier: nn.Module
        if "architecture" in backbone:  # several classes may share one kind of configuration
            kind = getattr(transformers, backbone["architecture"])
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                raise ValueError(f"{backbone['architecture']} is no model of transformers")
            classifier = kind(config)
        else:
            classifier = transformers.AutoModelForImageClassification.from_config(config)
        return classifier.eval()
    import timm

    _register(backbone["architecture"])
    args = backbone.get("model_args", {})
    if not timm.is_model(backbone["architecture"]) or not READING.isdisjoint(args):
        raise ValueError(f"{backbone['architecture']}({', '.join(args)}) is no plain model of timm")
    model: nn.Module = timm.create_model(backbone["architecture"], pretrained=False, num_classes=num_classes, **args)
    return model.eval()


def _register(architecture: str) -> None:
    """Tell timm of an architecture that comes with hf-zipit; a saved merge has only the lines that it needs."""


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
