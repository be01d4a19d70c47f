"""The choice among the fits of a layer by the error on held-out images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.calibration.refit.affine import FoldedLayer, FoldedNorm, Regression
from hf_zipit.calibration.refit.normal_equations import Solution
from hf_zipit.matching.shared_work import work_on_all

OUTPUTS = 64  # upper limit on the outputs of a layer that choose its ridge
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)  # as multiples of the mean second moment of an input
TIE = 1e-4  # errors that differ by less than this share of the error of the merged weights are equal
FEW = (10.0, 1.0, *RIDGES)  # where few positions of an image are read


@dataclass
class PartFit:
    """The regressions of those units of a layer that are read at the same positions.

    Attributes:
        units: which of the outputs of each group.
        read: the positions at which they are read, `(P,)`; `None` if at all.
        fit: of the fitted images, at the positions that are read.
        test: of the held-out images, there.
        rest: of the fitted images, at the other positions; `None` if there are none.
    """

    units: Tensor
    read: Tensor | None
    fit: Regression
    test: Regression
    rest: Regression | None

    def update(self, x: Tensor, e: Tensor, fitted: Tensor, held: Tensor) -> None:
        """Add images.

        Args:
            x: what the layer reads, `(B, P, G, d)`.
            e: what its output lacks, `(B, P, G, units)`.
            fitted: the images to fit, `(B,)`.
            held: the held-out ones.
        """
        e = e if len(self.units) == e.shape[-1] else e[..., self.units]
        here = slice(None) if self.read is None else self.read
        self.fit.update(x[fitted][:, here].flatten(0, 1), e[fitted][:, here].flatten(0, 1))
        self.test.update(x[held][:, here].flatten(0, 1), e[held][:, here].flatten(0, 1))
        if self.rest is not None and self.read is not None:
            self.rest.update(x[fitted][:, ~self.read].flatten(0, 1), e[fitted][:, ~self.read].flatten(0, 1))

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the samples of this process by those of all processes."""
        for samples in (self.fit, self.test, self.rest):
            if samples is not None:
                samples.reduce(accelerator)

    def best(self, folded: FoldedLayer | FoldedNorm, accelerator: Accelerator) -> Solution | None:
        """The change with the smallest error on the held-out images; `None` if no error is below the present one.

        What is chosen is the ridge, and whether it pulls towards the merged weights as they are or with batch norms
        re-estimated. Units that are not read everywhere are first fitted at all positions. Then this fit is what the
        ridge pulls towards in a fit at the positions that are read. Of wide layers only some outputs have a say. Once
        this is chosen, the held-out images are fitted as well.
        """
        if not self.fit.count or not self.test.count:
            return None
        everywhere = self.fit if self.rest is None else together(self.fit, self.rest)
        priors: list[Tensor | None] = [None]
        if folded.normed:
            priors.append((folded.reset(everywhere) - folded.weight)[:, self.units])
        intercept = folded.intercept
        some = slice(None, None, -(-len(self.units) // OUTPUTS))
        few, trial = everywhere.of(some), self.test.of(some)
        starts = [None if prior is None else prior[:, some] for prior in priors]
        wide = _best(few, trial, RIDGES, starts, intercept, accelerator)
        error = wide.error
        narrow = None
        if self.rest is not None:
            start, _ = few.solve(wide.ridge, starts[wide.prior], intercept)
            narrow = _best(self.fit.of(some), trial, FEW, [start], intercept, accelerator)
            narrow = narrow if narrow.error < error else None
            error = error if narrow is None else narrow.error
        if error >= float(trial.error().sum()):
            return None
        best = together(everywhere, self.test).solve(wide.ridge, priors[wide.prior], intercept)
        return best if narrow is None else together(self.fit, self.test).solve(narrow.ridge, best[0], intercept)


@dataclass(frozen=True)
class _Choice:
    """The best of several fits: its ridge, the number of its prior, and its error on the held-out images."""

    ridge: float
    prior: int
    error: float


def _best(
    fit: Regression,
    trial: Regression,
    ridges: tuple[float, ...],
    priors: Sequence[Tensor | None],
    intercept: bool,
    accelerator: Accelerator,
) -> _Choice:
    """The ridge and the prior whose fit is best on the held-out images.

    Priors behind the first must be better by more than rounding: where the inputs hardly vary, re-estimated norms make
    weights large that make no difference on these images, but on others. The ridges become smaller. Once a smaller one
    is worse, none is tried that is smaller still. Of several processes each tries another ridge.
    """

    def errors(ridge: float) -> list[float]:
        return [float(trial.error(*one).sum()) for one in fit.solve_all(ridge, priors, intercept)]

    tie = TIE * float(trial.error().sum())
    best = _Choice(ridges[0], 0, math.inf)
    count = accelerator.num_processes
    for start in range(0, len(ridges), count):
        some = ridges[start : start + count]
        for ridge, found in zip(some, work_on_all(errors, some, "Solving", accelerator), strict=True):
            number = min(range(len(found)), key=lambda k: found[k] + (k > 0) * tie)
            if not found[number] < best.error:
                return best
            best = _Choice(ridge, number, found[number])
    return best


def split(mask: Tensor | None, units: int) -> list[tuple[Tensor, Tensor | None]]:
    """The units of a layer by the positions at which they are read: `(units, positions)`, `None` for all positions.

    Args:
        mask: whether each position of each unit is read, `(P, units)`; `None` if all are.
        units: how many outputs each group of the layer has.

    >>> split(torch.tensor([[True, True, True], [False, True, True]]), 3)
    [(tensor([0]), tensor([ True, False])), (tensor([1, 2]), None)]
    """
    if mask is None:
        return [(torch.arange(units), None)]
    kinds, kind = torch.unique(mask, dim=1, return_inverse=True)
    return [((kind == i).nonzero().flatten(), None if read.all() else read) for i, read in enumerate(kinds.T)]


def choose(folded: FoldedLayer | FoldedNorm, parts: Sequence[PartFit], accelerator: Accelerator) -> None:
    """Give a layer the weights with the smallest error on the held-out images, where that is below the merged weights'.

    Args:
        folded: the layer, changed in place.
        parts: the regressions of all its units.
        accelerator: its processes share the work, and find the same.
    """
    found = [part.best(folded, accelerator) for part in parts]
    if all(solution is None for solution in found):
        return
    change = torch.zeros_like(folded.weight)
    shift = torch.zeros_like(folded.weight[..., 0])
    for part, solution in zip(parts, found, strict=True):
        if solution is not None:
            change[:, part.units], shift[:, part.units] = solution
    first = parts[0]
    folded.write(change, shift, together(first.fit, first.test) if folded.normed else first.fit)


def together(one: Regression, other: Regression) -> Regression:
    """The regression of both sets of samples."""
    return one + other  # type: ignore[operator]  # both are of one kind
