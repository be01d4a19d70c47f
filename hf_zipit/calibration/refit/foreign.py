"""Ridge regression of classifiers that hold no opinion on images of other tasks, so that they can be compared.

A head is as sure of itself on an image of another task as on its own, and the joint prediction takes its word. With a
data set per model it is known which images are foreign to a head, without any class label. There it is fitted to
logits that are all equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_zipit.calibration.refit.normal_equations import NormalEquations

FOLDS = 5  # of a cross-validation
DRAWS = 3  # of the folds, because the choice of a weight depends on them
RIDGES = (1.0, 1e-1, 1e-2, 1e-3)  # as multiples of the mean second moment of an input
DOUBT = 0.5  # standard errors by which a larger weight must be better
WEIGHTS = (0.0, 0.01, 0.03, 0.1, 0.3)  # of a foreign image, ascending; 1 as for an own one costs the tasks too much

Solution = tuple[Tensor, Tensor]  # weight (m, d) and bias (m,)


@dataclass(frozen=True)
class Opinions:
    """What a classifier reads, and what its parent thinks of the same images.

    Attributes:
        x: what the classifier reads, `(n, d)`.
        logits: the parent's logits for the classes of one or more tasks, side by side, `(n, m)`.
        own: whether an image is from the parent's data set, `(n,)`.
        sizes: the number of classes of each task; they add up to m.
        weight, bias: the classifier as it is, `(m, d)` and `(m,)`. The ridge pulls towards it.
        intercept: whether the bias may change.
    """

    x: Tensor
    logits: Tensor
    own: Tensor
    sizes: Sequence[int]
    weight: Tensor
    bias: Tensor
    intercept: bool = True

    def by_task(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits `(n, m)` task by task."""
        return logits.split_with_sizes(list(self.sizes), 1)

    def centred(self, logits: Tensor) -> Tensor:
        """Logits `(n, m)` in double precision without their mean over the classes of a task, which softmax ignores."""
        return torch.cat([task - task.mean(1, keepdim=True) for task in self.by_task(logits.double())], 1)


def fit_opinions(classifiers: Sequence[Opinions], origin: Tensor, seed: int = 0) -> tuple[float, list[Solution]]:
    """Fit classifiers to their parents' opinions on their own images, and to no opinion on foreign ones.

    An opinion is the logits minus their mean over the classes of a task. None at all is zero for every class. Images
    are divided into folds, and what is chosen is judged on images that were not fitted: for each classifier the ridge
    with the smallest error, and for all together the weight of foreign images (see `choose_weight`).

    Args:
        classifiers: in the order of the joint prediction.
        origin: the number of the data set of every image, `(n,)`. Each data set has two images or more.
        seed: draws the folds.

    Returns:
        The weight of foreign images, and for each classifier its new weight and bias.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [draw_folds(origin, generator) for _ in range(DRAWS)]
    found = [_Fit(one) for one in classifiers]
    trials = [[fit.trials(folds) for fit in found] for folds in draws]
    guesses = {eps: [[trial[eps].guess for trial in draw] for draw in trials] for eps in WEIGHTS}
    eps = choose_weight(guesses, classifiers, origin)
    errors = [sum(trial[eps].errors for trial in column) for column in zip(*trials, strict=True)]
    return eps, [fit.solution(eps, int(error.argmin())) for fit, error in zip(found, errors, strict=True)]


def draw_folds(origin: Tensor, generator: torch.Generator) -> Tensor:
    """The fold of every image, `(n,)`: drawn at random, with an almost equal share of each data set in each fold."""
    counts = origin.bincount()
    folds = torch.zeros_like(origin)
    for number, count in enumerate(counts.tolist()):
        order = torch.randperm(count, generator=generator)
        folds[origin == number] = order % min(FOLDS, int(counts.min()))
    return folds


def choose_weight(
    guesses: Mapping[float, Sequence[Sequence[Tensor]]], classifiers: Sequence[Opinions], origin: Tensor
) -> float:
    """The weight of foreign images that serves tasks and joint prediction best, or a smaller one that may be as good.

    Half of an image's score is the probability that its own parent gives to the class predicted in the parent's task,
    or its mean over several tasks. The other half is what that parent gives to the class of the joint prediction: none
    if it is a class of another parent. So a class that the parent itself hardly prefers costs little. Every data set
    counts the same. The smallest weight is chosen whose mean score is within `DOUBT` standard errors of the best.

    Args:
        guesses: for each weight, in ascending order, and for each draw of the folds the logits of each classifier,
            `(n, m)`.
        classifiers: the classifiers.
        origin: the number of the data set of every image, `(n,)`.
    """
    counts = origin.bincount().double()
    share = 1 / (counts[origin] * len(counts))  # what an image counts, (n,)
    scores = {
        eps: torch.stack([_scores(draw, classifiers) for draw in draws]).mean(0) for eps, draws in guesses.items()
    }
    best = max(scores.values(), key=lambda score: float(score @ share))
    leads = {eps: best - score for eps, score in scores.items()}
    return next(eps for eps, lead in leads.items() if lead @ share <= DOUBT * ((lead - lead @ share) * share).norm())


def _scores(guesses: Sequence[Tensor], classifiers: Sequence[Opinions]) -> Tensor:
    """The score of every image, `(n,)`."""
    joint = []  # log-probabilities of all classes, and what the parents of the images think of them
    beliefs = []
    alone = torch.zeros(len(guesses[0]), dtype=torch.float64)
    tasks = torch.zeros_like(alone)
    for guess, one in zip(guesses, classifiers, strict=True):
        for mine, theirs in zip(one.by_task(guess), one.by_task(one.logits.double()), strict=True):
            joint.append(mine.log_softmax(1))
            beliefs.append(theirs.softmax(1) * one.own[:, None])
            alone += _at(beliefs[-1], mine.argmax(1))
            tasks += one.own
    return (alone / tasks + _at(torch.cat(beliefs, 1), torch.cat(joint, 1).argmax(1))) / 2


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """One value of every row, `(n,)`."""
    return values.gather(1, columns[:, None])[:, 0]


@dataclass(frozen=True)
class _Trial:
    """A cross-validation with one weight of foreign images.

    Attributes:
        guess: the logits of every image by a fit to the other folds, with the best ridge, `(n, m)`.
        errors: for each ridge, the sum of the squared errors.
    """

    guess: Tensor
    errors: Tensor


class _Fit:
    """Ridge regressions of what a classifier lacks on what it reads."""

    def __init__(self, one: Opinions) -> None:
        x = one.x.double()
        self.one = one
        self.weight = one.centred(one.weight.T).T
        self.bias = one.centred(one.bias[None])[0]
        self.now = x @ self.weight.T + self.bias
        self.lacking = one.centred(one.logits) * one.own[:, None] - self.now
        few = len(x) < x.shape[1]
        self.basis = torch.linalg.qr(x.T)[0] if few else None  # of what the images span, (d, n)
        self.x = x if self.basis is None else x @ self.basis
        self.ridges = [ridge * self.x.shape[1] / x.shape[1] for ridge in RIDGES]  # relative to the mean over d inputs

    def trials(self, folds: Tensor) -> dict[float, _Trial]:
        """A cross-validation for each weight of foreign images; `folds (n,)`: the fold of every image."""
        held = [folds == fold for fold in range(int(folds.max()) + 1)]
        fits = [self._equations(~mine) for mine in held]
        out = {}
        for eps in WEIGHTS:
            missed = self.lacking.new_zeros(len(self.ridges), *self.lacking.shape)
            for mine, fit in zip(held, fits, strict=True):
                for left, ridge in zip(missed, self.ridges, strict=True):
                    change, shift = fit.solve(eps, ridge, self.one.intercept)
                    left[mine] = self.lacking[mine] - self.x[mine] @ change.T - shift
            counts = torch.where(self.one.own, 1.0, eps).double()[:, None]
            errors = (counts * missed.square()).sum((1, 2))
            out[eps] = _Trial((self.now + self.lacking - missed[errors.argmin()]).float(), errors)
        return out

    def solution(self, eps: float, ridge: int) -> Solution:
        """The fit to all images with a weight of foreign images, and one of the ridges."""
        change, shift = self._equations(torch.ones_like(self.one.own)).solve(
            eps, self.ridges[ridge], self.one.intercept
        )
        change = change if self.basis is None else change @ self.basis.T
        return self.weight + change, self.bias + shift

    def _equations(self, some: Tensor) -> "_Equations":
        return _Equations(self.x[some], self.lacking[some], self.one.own[some])


class _Equations:
    """The normal equations of the images of a task, and those of foreign images."""

    def __init__(self, x: Tensor, e: Tensor, own: Tensor) -> None:
        self.parts = []
        for mine in (own, ~own):
            part = NormalEquations.empty(1, x.shape[1], e.shape[1])
            part.update(x[mine, None], e[mine, None])
            self.parts.append(part)

    def solve(self, eps: float, ridge: float, intercept: bool) -> Solution:
        """Weight `(m, r)` and bias `(m,)`, where a foreign image counts `eps` times as much as one of the task."""
        own, foreign = self.parts
        both = own + replace(foreign, **{name: eps * getattr(foreign, name) for name in ("count", "xx", "xe", "ee")})
        weight, bias = both.solve(ridge, intercept=intercept)
        return weight[0], bias[0]
