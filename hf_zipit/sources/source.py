"""A model to merge, whatever library it comes from: its module, classes, preprocessing and origin.

A plain model has one branch behind its trunk; a model that is itself a merge may have several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_zipit.errors import SourceError

MAX_IMAGE_SIDE = 2**14
DETECTION = "object-detection"
KINDS = (  # of tasks, as pipelines name them
    "depth-estimation",
    "image-classification",
    "image-feature-extraction",
    "image-segmentation",
    "image-to-image",
    DETECTION,
)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of PIL images, by channels
PROBLEMS = ("single-label", "binary", "multi-label", "regression")  # what the logits of a classifier mean
NOWHERE: dict[str, Any] = {"id": None, "folder": None, "revision": None, "sha256": None}  # origin of a module


@dataclass(frozen=True)
class Branch:
    """The layers behind a trunk, and the tasks they classify.

    Attributes:
        tasks: name and classes of each task; their logits lie side by side.
        state: state dict of the backbone; only the layers behind the cut are used.
        gather: `(n,)`, the unit of the trunk that each of the branch's n inputs is; `None` if it reads all in order.
        problems: what the logits of each task mean, see `PROBLEMS`; by default single-label.
    """

    tasks: tuple[tuple[str, list[str]], ...]
    state: Mapping[str, Tensor]
    gather: Tensor | None = None
    problems: tuple[str, ...] = ()


class OneTask(nn.Module):
    """A merged model as a classifier for one of its tasks."""

    def __init__(self, network: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self.network = network
        self.start = start
        self.stop = stop

    def forward(self, pixels: Tensor) -> Tensor:
        """The columns of the logits that belong to the task."""
        out = self.network(pixels)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits[..., self.start : self.stop]


@dataclass(frozen=True)
class Source:
    """A model to merge; the module is never changed.

    Attributes:
        name: of the model; by default it names its task.
        model: the module. If it is a merge with a cut, only its trunk counts.
        backbone: what rebuilds the architecture: library, class or architecture, arguments.
        labels: class names in id order; of a merge those of all its tasks.
        preprocessing: the settings behind `transform`, with `input_size` where it is known.
        transform: PIL image -> pixels `(channels, H, W)`. The image has the mode `MODES[channels]`.
        origin: where the model came from (Hub id, revision, folder name, SHA-256), without a path of this machine.
        settings: preprocessing in the form that timm saves (`pretrained_cfg`); empty for other libraries.
        folder: where the model was loaded from.
        processor: the image processor of transformers.
        branches: the layers behind the trunk, if the model is itself a merge.
        trunk: the steps up to which a merge with a cut can be merged again.
        cut: the name of that cut.
        network: the whole model, where `model` is only its backbone.
        kind: the task as pipelines name it, one of `KINDS`.
        problem: what the logits mean, one of `PROBLEMS`: one class of several (softmax), the second of two classes
            (one logit, sigmoid), any number of classes (a sigmoid each), or quantities.
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
    problem: str = "single-label"

    @property
    def parts(self) -> tuple[Branch, ...]:
        """The branches; a plain model has exactly one."""
        own = Branch(((self.name, self.labels),), self.model.state_dict(), problems=(self.problem,))
        return self.branches or (own,)

    def alone(self) -> "list[Source]":
        """One source per task, whose model returns the logits of that task; a plain model is returned as it is."""
        if not self.branches:
            return [self]
        network = self.network or self.model
        out = []
        start = 0
        for (name, labels), problem in zip(self.tasks, self.problems, strict=True):
            model = OneTask(network, start, start + len(labels))
            alone = replace(self, name=name, model=model, labels=labels, branches=(), trunk=None, network=None)
            out.append(replace(alone, problem=problem))
            start += len(labels)
        return out

    @property
    def tasks(self) -> list[tuple[str, list[str]]]:
        """Name and classes of every task, in the order of the logits."""
        return [task for branch in self.parts for task in branch.tasks]

    @property
    def problems(self) -> list[str]:
        """What the logits of every task mean, in the order of the tasks."""
        plain = "single-label"
        return [problem for branch in self.parts for problem in branch.problems or (plain,) * len(branch.tasks)]

    def __post_init__(self) -> None:
        if "input_size" in self.preprocessing and max(self.input_size) > MAX_IMAGE_SIDE:
            raise SourceError(
                f"{self.name} states an input size of {list(self.input_size)}; the largest side is {MAX_IMAGE_SIDE}"
            )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input image. Not every model states it; see `preprocessing`."""
        channels, height, width = self.preprocessing["input_size"]
        return int(channels), int(height), int(width)
