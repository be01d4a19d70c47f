"""Metrics of dense predictions, summed up batch by batch, and MuDSC's scaled performance."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

IGNORED = 255  # the label of pixels that do not count


class Metric(Protocol):
    """Sums up batches of outputs and targets."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""

    def value(self) -> float:
        """The metric over all that was added; NaN if nothing was."""


class Accuracy:
    """The share of right answers, of images or of pixels: outputs `(B, C)` or `(B, C, h, w)`, targets of ids."""

    def __init__(self) -> None:
        self.hits, self.count = 0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch; maps are scaled to the size of their targets, pixels labelled 255 are left out."""
        counted = target != IGNORED
        self.hits += int((classes_of(output, target) == target)[counted].sum())
        self.count += int(counted.sum())

    def value(self) -> float:
        """Hits over all."""
        return self.hits / self.count if self.count else float("nan")


class MeanIoU:
    """Intersection over union of each class over the whole data set, averaged over the classes that occur.

    >>> metric = MeanIoU()
    >>> metric.update(torch.tensor([[[[2.0, 2.0]], [[1.0, 3.0]]]]), torch.tensor([[[0, 0]]]))
    >>> metric.value()  # class 0: 1 of 2; class 1: predicted once, 0
    0.25
    """

    def __init__(self) -> None:
        self.confusion = torch.zeros(0, 0, dtype=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs `(B, C, h, w)` and labels `(B, H, W)`."""
        found = classes_of(output, target)
        counted = target != IGNORED
        classes = max(output.shape[1], 2)
        if not len(self.confusion):
            self.confusion = torch.zeros(classes, classes, dtype=torch.long)
        places = target[counted].long() * classes + found[counted]
        self.confusion += places.bincount(minlength=classes**2).view(classes, classes).cpu()

    def value(self) -> float:
        """The mean over classes."""
        both = self.confusion.diagonal()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        return float((both[either > 0] / either[either > 0]).double().mean())


class MeanLoss:
    """`sum(loss * mask) / sum(mask)` over the whole data set (MuDSC's Taskonomy protocol).

    A pixel counts where its target is finite; a loss gives `(B, ...)` values of the targets' shape.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss, self.total, self.count = loss, 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if output.ndim == target.ndim == 4 and output.shape[2:] != target.shape[2:]:
            output = nn.functional.interpolate(output, size=target.shape[2:], mode="bilinear", align_corners=False)
        counted = target.isfinite() if target.is_floating_point() else target != IGNORED
        values = self.loss(output, torch.where(counted, target, torch.zeros_like(target)))
        self.total += float(values[counted].double().sum())
        self.count += int(counted.sum())

    def value(self) -> float:
        """The mean over all that counts."""
        return self.total / self.count if self.count else float("nan")


class WeightedErrorRate:
    """The share of wrong pixels, where every class of the data set counts as much as any other.

    That is the error rate with weights of one over the pixels of the true class (MuDSC's protocol for semantic
    segmentation; our reading of it, as its weights are not published).

    >>> metric = WeightedErrorRate()
    >>> metric.update(torch.tensor([[[[2.0, 2.0, 0.0]], [[1.0, 1.0, 3.0]]]]), torch.tensor([[[0, 1, 0]]]))
    >>> metric.value()  # class 0: one of two is wrong; class 1: the only one is
    0.75
    """

    def __init__(self) -> None:
        self.wrong, self.count = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs `(B, C, h, w)` or `(B, C)` and labels."""
        counted = target != IGNORED
        truth, wrong = target[counted].long(), (classes_of(output, target) != target)[counted]
        classes = max(output.shape[1], 2)
        if not len(self.count):
            self.wrong, self.count = (torch.zeros(classes, dtype=torch.long) for _ in range(2))
        self.count += truth.bincount(minlength=classes)
        self.wrong += truth[wrong].bincount(minlength=classes)

    def value(self) -> float:
        """The mean over classes."""
        seen = self.count > 0
        return float((self.wrong[seen] / self.count[seen]).double().mean())


def absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """|output - target|, the loss of MuDSC's regression tasks."""
    return (output.reshape(target.shape) - target).abs()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each label, or towards soft targets `(B, C)` of each image, repeated over the classes."""
    if target.is_floating_point():
        loss = -(target * output.log_softmax(1)).sum(1, keepdim=True)
        return loss.expand_as(target)
    return nn.functional.cross_entropy(output, target.long(), reduction="none")


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "pixel accuracy": Accuracy,
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
}


def classes_of(output: Tensor, target: Tensor) -> Tensor:
    """The answered class of every image or pixel; one channel alone is the logit of class 1."""
    if output.ndim == 4 and output.shape[2:] != target.shape[-2:]:
        output = nn.functional.interpolate(output, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)


def constant_estimator(targets: Iterable[Tensor], published: bool = False) -> Tensor:
    """The mean target, the answer of a model that does not look: `(...)` of one target.

    Args:
        targets: batches of targets `(B, ...)`, in the order of the data set.
        published: as MuDSC's code computes it: the sum over the last batch alone, divided by the size of the data set.
            It is near zero, which makes the scaled performances larger.
    """
    total, last, count = torch.zeros(()), torch.zeros(()), 0
    for batch in targets:
        last = batch.double().sum(0)
        total = total + last
        count += len(batch)
    return (last if published else total) / count


def scaled_performance(loss: float, alone: float, constant: float) -> float:
    """`(L0 - L) / (L0 - L1)`: 1 as good as the task's own model (`alone`), 0 no better than the constant estimator.

    MuDSC, section 8 of its appendix. NaN where the model alone is no better than the constant estimator.

    >>> scaled_performance(0.2, alone=0.1, constant=0.5)
    0.75
    """
    return (constant - loss) / (constant - alone) if constant > alone else float("nan")
