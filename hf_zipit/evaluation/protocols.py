"""The evaluation protocols of the papers: how a batch of outputs becomes predictions.

A protocol takes the outputs of each task, `{task: (B, D)}`. It returns the scores of each task's classes,
`{task: (B, classes)}`, and the joint scores `(B, all classes)`, whose argmax is the prediction if the task is unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from hf_zipit.errors import DataError

Scores = tuple[dict[str, Tensor], Tensor]
Protocol = Callable[[Mapping[str, Tensor]], Scores]
SCALE = 100  # factor on cosines before a softmax, as in CLIP


def own_classes(outputs: Mapping[str, Tensor]) -> Scores:
    """Outputs that are logits of each task's own classes. Joint: softmax per task, then argmax over all.

    This is the protocol of ZipIt!, section 5.

    >>> own_classes({"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[1.0, 0.0]])})[1].argmax(-1)
    tensor([0])
    """
    return dict(outputs), torch.cat([value.log_softmax(-1) for value in outputs.values()], -1)


@dataclass(frozen=True)
class ClassEmbeddings:
    """Outputs that are embeddings, compared by cosine with one embedding per class, such as CLIP's text features.

    Per task, the class with the largest cosine is predicted. Joint, with one head per task: softmax of 100 times the
    cosines per task, then argmax over all. Joint, with `average`: the mean of the heads' outputs equals the output of
    the averaged head, and the largest cosine among all classes wins (ZipIt!, section 5.1; MuDSC, section 4).

    Attributes:
        vectors: for each task the embeddings of its classes, `(classes, D)`.
        ids: for each task the data set's labels of its classes, any integers; by default `0, 1, ...`.
        average: compare the mean of all heads' outputs instead of each head's own.

    Raises:
        DataError: the embeddings differ in width, or the number of labels is wrong.
    """

    vectors: Mapping[str, Tensor]
    ids: Mapping[str, Sequence[int]] | None = None
    average: bool = False

    def __post_init__(self) -> None:
        shapes = {task: list(v.shape) for task, v in self.vectors.items()}
        if len({shape[-1] for shape in shapes.values()}) > 1 or any(len(shape) != 2 for shape in shapes.values()):
            raise DataError(
                f"class embeddings have the shapes {shapes}: they must be (classes, D), with the same D for all tasks"
            )
        for task, ids in (self.ids or {}).items():
            if task not in shapes or len(ids) != shapes[task][0]:
                classes = shapes.get(task, [0])[0]
                raise DataError(f"class embeddings: {len(ids)} labels for {classes} classes of '{task}'; give one each")

    def classes(self, task: str) -> dict[int, int]:
        """The index of each class in the task, by the data set's label.

        Raises:
            DataError: there are no embeddings for the task.
        """
        if task not in self.vectors:
            raise DataError(f"no class embeddings for task '{task}', only for {', '.join(self.vectors)}")
        ids = (self.ids or {}).get(task, range(len(self.vectors[task])))
        return {int(label): number for number, label in enumerate(ids)}

    def __call__(self, outputs: Mapping[str, Tensor]) -> Scores:
        """Scores per task, and joint scores.

        Raises:
            DataError: the outputs and the embeddings differ in width.
        """
        mean = torch.stack(list(outputs.values())).mean(0) if self.average else None
        cosines = {task: self._cosines(task, value if mean is None else mean) for task, value in outputs.items()}
        if self.average:
            return cosines, torch.cat(list(cosines.values()), -1)
        return cosines, torch.cat([(SCALE * value).log_softmax(-1) for value in cosines.values()], -1)

    def _cosines(self, task: str, value: Tensor) -> Tensor:
        vectors = self.vectors[task].to(value)
        if vectors.shape[-1] != value.shape[-1]:
            raise DataError(
                f"class embeddings have {vectors.shape[-1]} values, the outputs of '{task}' {value.shape[-1]}"
            )
        return normalize(value, dim=-1) @ normalize(vectors, dim=-1).T


def read_class_embeddings(file: str | Path, average: bool = False) -> ClassEmbeddings:
    """Read class embeddings from a safetensors file.

    The file holds a tensor `TASK (classes, D)` for each task. If the data set's labels of these classes are not
    0, 1, ..., it also holds a tensor `TASK.ids (classes,)` with them.

    Args:
        file: the safetensors file.
        average: as for `ClassEmbeddings`.

    Raises:
        DataError: the file cannot be read, or its tensors do not fit each other.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read the class embeddings {file}: {error}") from None
    ids = {name.removesuffix(".ids"): value.tolist() for name, value in tensors.items() if name.endswith(".ids")}
    vectors = {name: value for name, value in tensors.items() if not name.endswith(".ids")}
    return ClassEmbeddings(vectors, ids or None, average)
