"""Metrics of classification and dense prediction, accumulated over batches, and MuDSC's scaled performance."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_zipit.data.targets import IGNORED
from hf_zipit.sources.source import DETECTION


class Metric(Protocol):
    """Accumulates batches of outputs and targets."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""

    def value(self) -> float:
        """The metric over all batches; NaN without any."""


class Accuracy:
    """The share of images or pixels that are classified correctly."""

    def __init__(self) -> None:
        self.hits = 0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs `(B, C)` or `(B, C, h, w)` and labels `(B,)` or `(B, H, W)`.

        Outputs are resized to their targets. Pixels labelled 255 are left out.
        """
        counted = counts(target)
        self.hits += int((classes_of(output, target) == target)[counted].sum())
        self.count += int(counted.sum())

    def value(self) -> float:
        """Correct answers as a share of all."""
        return self.hits / self.count if self.count else float("nan")


class MeanIoU:
    """Intersection over union of each class over the whole data set, averaged over the classes that occur.

    A class occurs if it is a label or a prediction of any pixel.

    >>> metric = MeanIoU()
    >>> metric.update(torch.tensor([[[[2.0, 2.0]], [[1.0, 3.0]]]]), torch.tensor([[[0, 0]]]))
    >>> metric.value()  # class 0: 1 of 2; class 1 is predicted once, wrongly: 0
    0.25
    """

    def __init__(self) -> None:
        self.confusion = torch.zeros(0, 0, dtype=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs `(B, C, h, w)` and labels `(B, H, W)`."""
        predicted = classes_of(output, target)
        counted = counts(target)
        classes = max(output.shape[1], 2)
        if not len(self.confusion):
            self.confusion = torch.zeros(classes, classes, dtype=torch.long)
        cells = target[counted].long() * classes + predicted[counted]  # index of (label, prediction) in the matrix
        self.confusion += cells.bincount(minlength=classes**2).view(classes, classes).cpu()

    def value(self) -> float:
        """The mean over classes."""
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return float((intersection[union > 0] / union[union > 0]).double().mean())


class MeanLoss:
    """`sum(loss * mask) / sum(mask)` over the whole data set (MuDSC's Taskonomy protocol).

    The mask is 1 where a target is finite, or where a label is not 255.

    Args:
        loss: maps outputs and targets `(B, ...)` to losses of the targets' shape.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.total = 0.0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if output.ndim == target.ndim == 4 and output.shape[2:] != target.shape[2:]:
            output = nn.functional.interpolate(output, size=target.shape[2:], mode="bilinear", align_corners=False)
        counted = target.isfinite() if target.is_floating_point() else counts(target)
        values = self.loss(output, torch.where(counted, target, torch.zeros_like(target)))
        self.total += float(values[counted].double().sum())
        self.count += int(counted.sum())

    def value(self) -> float:
        """The mean loss."""
        return self.total / self.count if self.count else float("nan")


class WeightedErrorRate:
    """The error rate of each class over the whole data set, averaged over the classes that occur as labels.

    This weights every pixel by one over the number of pixels of its true class. MuDSC uses a weighted error rate for
    semantic segmentation; its weights are not published, so these are our reading of it.

    >>> metric = WeightedErrorRate()
    >>> metric.update(torch.tensor([[[[2.0, 2.0, 0.0]], [[1.0, 1.0, 3.0]]]]), torch.tensor([[[0, 1, 0]]]))
    >>> metric.value()  # class 0: one of two pixels is wrong; class 1: the only one
    0.75
    """

    def __init__(self) -> None:
        self.wrong = torch.zeros(0, dtype=torch.long)
        self.count = torch.zeros(0, dtype=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs `(B, C, h, w)` or `(B, C)` and labels."""
        counted = counts(target)
        truth = target[counted].long()
        wrong = (classes_of(output, target) != target)[counted]
        classes = max(output.shape[1], 2)
        if not len(self.count):
            self.wrong = torch.zeros(classes, dtype=torch.long)
            self.count = torch.zeros(classes, dtype=torch.long)
        self.count += truth.bincount(minlength=classes)
        self.wrong += truth[wrong].bincount(minlength=classes)

    def value(self) -> float:
        """The mean over classes."""
        seen = self.count > 0
        return float((self.wrong[seen] / self.count[seen]).double().mean())


def absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """`|output - target|`, the loss of MuDSC's regression tasks."""
    return (output.reshape(target.shape) - target).abs()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each label; for soft targets `(B, C)` that of each image, repeated over the classes."""
    if target.is_floating_point():
        loss = -(target * output.log_softmax(1)).sum(1, keepdim=True)
        return loss.expand_as(target)
    return nn.functional.cross_entropy(output, target.long(), reduction="none")


class LabelAccuracy:
    """The share of labels whose logit has the right sign, for several labels per image; unknown ones are left out."""

    def __init__(self) -> None:
        self.hits = 0
        self.count = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits and of ones and zeros, both `(B, classes)`; NaN is unknown."""
        known = target.isfinite()
        self.hits += int(((output > 0) == (target > 0.5))[known].sum())
        self.count += int(known.sum())

    def value(self) -> float:
        """Right labels as a share of all."""
        return self.hits / self.count if self.count else float("nan")


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "pixel accuracy": Accuracy,
    "label accuracy": LabelAccuracy,
    "mIoU": MeanIoU,
    "weighted error rate": WeightedErrorRate,
    "L1": lambda: MeanLoss(absolute_error),
    "cross-entropy": lambda: MeanLoss(cross_entropy),
}
OF_KIND = {
    "image-classification": ("accuracy",),
    "image-segmentation": ("mIoU", "pixel accuracy", "weighted error rate"),
    "depth-estimation": ("L1",),
    "image-to-image": ("L1",),
    DETECTION: ("mAP", "mAP50"),  # see `detection`
}
OF_PROBLEM = {"multi-label": ("label accuracy",), "regression": ("L1",)}
LOWER_IS_BETTER = frozenset({"weighted error rate", "L1", "cross-entropy"})


def counts(target: Tensor) -> Tensor:
    """Which labels count: pixels but those labelled 255, and all images, whose classes may be more than 255."""
    return target != IGNORED if target.ndim > 1 else torch.ones_like(target, dtype=torch.bool)


def classes_of(output: Tensor, target: Tensor) -> Tensor:
    """The predicted class of every image or pixel; a single channel is the logit of class 1."""
    if output.ndim == 4 and output.shape[2:] != target.shape[-2:]:
        output = nn.functional.interpolate(output, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)


def constant_estimator(targets: Iterable[Tensor], published: bool = False) -> Tensor:
    """The mean target, which is the best constant answer under squared error.

    Args:
        targets: batches of targets `(B, ...)`, in the order of the data set.
        published: follow MuDSC's code, which divides the sum over the last batch alone by the size of the data set.
            The result is near zero, which makes scaled performances larger.

    Returns:
        The constant, with the shape of one target, in double precision.
    """
    total = torch.zeros(())
    last = torch.zeros(())
    count = 0
    for batch in targets:
        last = batch.double().sum(0)
        total = total + last
        count += len(batch)
    return (last if published else total) / count


def scaled_performance(loss: float, alone: float, constant: float) -> float:
    """How much of a model's gain over a constant answer a merge keeps: `(L0 - L) / (L0 - L1)` (MuDSC, section 4.2).

    Args:
        loss: loss `L` of the merge.
        alone: loss `L1` of the task's own model.
        constant: loss `L0` of a constant answer, see `constant_estimator`.

    Returns:
        1 if the merge is as good as the task's own model, 0 if it is no better than the constant; values may lie
        beyond both. NaN if the task's own model is no better than the constant, so that there is no gain to keep.

    >>> scaled_performance(0.3, alone=0.2, constant=0.6)
    0.75
    """
    return (constant - loss) / (constant - alone) if constant > alone else float("nan")
