"""How outputs become answers: the evaluation protocols of the papers, for one batch of any models' outputs.

A protocol takes `{task: outputs (B, D)}` and returns a score for every class of each task, `{task: (B, classes)}`, and
scores `(B, all classes)` of all these tasks side by side, which say what is answered when the task is not known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from hf_zipit.errors import DataError, OptionError

Scores = tuple[dict[str, Tensor], Tensor]
Protocol = Callable[[Mapping[str, Tensor]], Scores]
SCALE = 100  # of cosines before a softmax, as CLIP does


def own_classes(outputs: Mapping[str, Tensor]) -> Scores:
    """Every head has classes of its own: joint is softmax per task, argmax over all (ZipIt!, section 5).

    >>> own_classes({"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[1.0, 0.0]])})[1].argmax(-1)
    tensor([0])
    """
    return dict(outputs), torch.cat([value.log_softmax(-1) for value in outputs.values()], -1)


@dataclass(frozen=True)
class ClassEmbeddings:
    """Models that all put out embeddings, which are compared with one embedding for each class (CLIP's text features).

    Per task: the class with the largest cosine among the task's. Joint, with a head for each task: softmax of 100 times
    the cosines per task, argmax over all. Joint, with `average`: the mean of the heads' outputs is the output of the
    averaged head; the largest cosine among all classes wins (ZipIt!, section 5.1; MuDSC, section 4).

    Args:
        vectors: for each task the embeddings of its classes, `(classes, D)`; tasks may have any number of classes.
        ids: for each task the data set's label of each of its classes, any integers; `0, 1, ...` by default.
        average: compare the mean of all heads' outputs instead of each task's own.

    Raises:
        DataError: the embeddings have different widths, or there is not one label for each.
    """

    vectors: Mapping[str, Tensor]
    ids: Mapping[str, Sequence[int]] | None = None
    average: bool = False

    def __post_init__(self) -> None:
        shapes = {task: list(v.shape) for task, v in self.vectors.items()}
        if len({shape[-1] for shape in shapes.values()}) > 1 or any(len(shape) != 2 for shape in shapes.values()):
            raise DataError(f"class embeddings have the shapes {shapes}: (classes, D) with one D is needed")
        for task, ids in (self.ids or {}).items():
            if task not in shapes or len(ids) != shapes[task][0]:
                raise DataError(
                    f"class embeddings: {len(ids)} labels for {shapes.get(task, [0])[0]} classes of '{task}'"
                )

    def classes(self, task: str) -> dict[int, int]:
        """The data set's label -> the number of the class in the task.

        Raises:
            DataError: there are no embeddings for the task.
        """
        if task not in self.vectors:
            raise DataError(f"no class embeddings for task '{task}': there are some for {', '.join(self.vectors)}")
        ids = (self.ids or {}).get(task, range(len(self.vectors[task])))
        return {int(label): number for number, label in enumerate(ids)}

    def __call__(self, outputs: Mapping[str, Tensor]) -> Scores:
        """The protocol.

        Raises:
            DataError: the models' outputs have another width than the embeddings.
        """
        mean = torch.stack(list(outputs.values())).mean(0) if self.average else None
        cosines = {task: self._cosines(task, value if mean is None else mean) for task, value in outputs.items()}
        if self.average:
            return cosines, torch.cat(list(cosines.values()), -1)
        return cosines, torch.cat([(SCALE * value).log_softmax(-1) for value in cosines.values()], -1)

    def _cosines(self, task: str, value: Tensor) -> Tensor:
        vectors = self.vectors[task].to(value)
        if vectors.shape[-1] != value.shape[-1]:
            raise DataError(f"class embeddings have {vectors.shape[-1]} values, the models' outputs {value.shape[-1]}")
        return normalize(value, dim=-1) @ normalize(vectors, dim=-1).T


def read_class_embeddings(file: str | Path, average: bool = False) -> ClassEmbeddings:
    """Read class embeddings from a safetensors file: a tensor `TASK (classes, D)` for each task.

    A tensor `TASK.ids (classes,)` beside it holds the data set's labels of these classes, where they are not 0, 1, ...

    Raises:
        DataError: it cannot be read, or its tensors do not fit each other.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read the class embeddings {file}: {error}") from None
    ids = {name.removesuffix(".ids"): value.tolist() for name, value in tensors.items() if name.endswith(".ids")}
    return ClassEmbeddings({k: v for k, v in tensors.items() if not k.endswith(".ids")}, ids or None, average)


def scaled_performance(loss: float, alone: float, constant: float) -> float:
    """How much of what a model alone gains over a constant answer is kept, `(L0 - L) / (L0 - L1)` (MuDSC, section 4.2).

    Args:
        loss: of the merged model, `L`.
        alone: of the task's own model, `L1`.
        constant: of the best constant answer, `L0`.

    Returns:
        1 for a merge as good as the model alone, 0 for one no better than a constant; it may lie beyond either.

    Raises:
        OptionError: the model alone is no better than the constant, so there is nothing to keep.

    >>> scaled_performance(0.3, alone=0.2, constant=0.6)
    0.75
    """
    if not alone < constant:
        raise OptionError(f"the model alone has the loss {alone:g}, a constant answer {constant:g}: nothing to compare")
    return (constant - loss) / (constant - alone)
