"""Scores of a classifier's outputs on all images of a task at once, by what its outputs mean."""

from collections.abc import Callable

import torch
from torch import Tensor

Scores = dict[str, float]


def scores_of(problem: str, outputs: Tensor, values: Tensor) -> Scores:
    """The scores of one task by name; the first is the main one.

    Args:
        problem: what the outputs mean, see `sources.source.PROBLEMS`.
        outputs: `(images, outputs)`.
        values: what is true, as in `evaluation.classes.Target`.
    """
    return _SCORES[problem](outputs.double(), values)


def _single_label(outputs: Tensor, values: Tensor) -> Scores:
    return {"accuracy": float((outputs.argmax(-1) == values).double().mean())}


def _binary(outputs: Tensor, values: Tensor) -> Scores:
    """The share of images whose logit has the right sign."""
    return {"accuracy": float(((outputs[:, 0] > 0).long() == values).double().mean())}


def _multi_label(outputs: Tensor, values: Tensor) -> Scores:
    """The mean over classes of the average precision, and the share of labels with a logit of the right sign.

    Classes that every image has, or none, have no precision that means something.
    """
    known = values.isfinite()
    right = (outputs > 0) == (values > 0.5)
    precisions = []
    for k in range(values.shape[1]):
        there = values[known[:, k], k] > 0.5
        if there.any() and not there.all():
            precisions.append(average_precision(outputs[known[:, k], k], there))
    return {
        "mAP": sum(precisions) / len(precisions) if precisions else float("nan"),
        "label accuracy": float(right[known].double().mean()),
    }


def _regression(outputs: Tensor, values: Tensor) -> Scores:
    """The mean absolute error."""
    return {"L1": float((outputs - values).abs().mean())}


_SCORES: dict[str, Callable[[Tensor, Tensor], Scores]] = {
    "single-label": _single_label,
    "binary": _binary,
    "multi-label": _multi_label,
    "regression": _regression,
}


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """The area under the curve of precision over recall, as a sum over the distinct scores.

    Args:
        scores: `(images,)`.
        positive: whether the class is there, `(images,)`; at least one is.

    >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, False, True]))  # (1 + 2/3) / 2
    0.8333333333333333
    """
    order = scores.argsort(descending=True)
    ranked = scores[order]
    hits = positive[order].double().cumsum(0)
    last = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])])  # the last image of each score
    hits = hits[last]
    precision = hits / (last.nonzero().flatten() + 1)
    gained = hits.diff(prepend=hits.new_zeros(1)) / hits[-1]
    return float((gained * precision).sum())
