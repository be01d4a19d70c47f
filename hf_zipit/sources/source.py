"""A model to merge, whatever library it comes from: its module, classes, preprocessing and origin.

Behind its trunk a plain model has one branch, and one that is itself a merge may have several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_zipit.errors import SourceError

MAX_IMAGE_SIDE = 2**14


@dataclass(frozen=True)
class Branch:
    """Layers behind a trunk, and the tasks they classify.

    `tasks` holds each task's name and classes, side by side in the branch's logits. `state` is the backbone's state
    dict, of which the layers behind the cut are used. `gather (n,)` says which unit of the trunk each unit that the
    branch reads is; `None` where it reads all in order.
    """

    tasks: tuple[tuple[str, list[str]], ...]
    state: Mapping[str, Tensor]
    gather: Tensor | None = None


class OneTask(nn.Module):
    """A merged model as a classifier for one of its tasks."""

    def __init__(self, network: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self.network, self.start, self.stop = network, start, stop

    def forward(self, pixels: Tensor) -> Tensor:
        """The task's columns of the logits."""
        out = self.network(pixels)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits[..., self.start : self.stop]


@dataclass(frozen=True)
class Source:
    """A model to merge; the module is never changed.

    `backbone` rebuilds the architecture, `labels` are the class names in id order, `preprocessing` the settings behind
    `transform` (PIL image -> pixels) and `settings` their library's form; `origin` says where the model came from
    without naming a place on this machine. A source that is itself a merge has `branches`, and its `labels` are those
    of all its tasks; where it was cut, `trunk` holds the steps that it can be merged at (of `model` only they count),
    `cut` their name, and `network` is what classifies; where `model` is a backbone it is what surrounds it. `kind`
    is what the model does, as pipelines name it.
    """

    name: str
    model: nn.Module
    backbone: dict[str, Any]
    labels: list[str]
    preprocessing: dict[str, Any]
    transform: Callable[[Any], Tensor] | None
    origin: dict[str, Any]
    settings: dict[str, Any]
    folder: Path | None = None
    processor: Any = None
    branches: tuple[Branch, ...] = ()
    trunk: tuple[str, ...] | None = None
    cut: str | None = None
    network: nn.Module | None = None
    kind: str = "image-classification"

    @property
    def parts(self) -> tuple[Branch, ...]:
        """The branches; of a plain model the only one."""
        return self.branches or (Branch(((self.name, self.labels),), self.model.state_dict()),)

    def alone(self) -> "list[Source]":
        """A source for each task, whose model gives that task's logits; of a plain model the source itself."""
        if not self.branches:
            return [self]
        out, start, network = [], 0, self.network or self.model
        for name, labels in self.tasks:
            model = OneTask(network, start, start + len(labels))
            out.append(replace(self, name=name, model=model, labels=labels, branches=(), trunk=None, network=None))
            start += len(labels)
        return out

    @property
    def tasks(self) -> list[tuple[str, list[str]]]:
        """Name and classes of every task, in the order of the logits."""
        return [task for branch in self.parts for task in branch.tasks]

    def __post_init__(self) -> None:
        if "input_size" in self.preprocessing and max(self.input_size) > MAX_IMAGE_SIDE:
            raise SourceError(f"{self.name} is made for images of {list(self.input_size)}: no image is that large")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input image; models that only surround a backbone need not say it."""
        channels, height, width = self.preprocessing["input_size"]
        return int(channels), int(height), int(width)
