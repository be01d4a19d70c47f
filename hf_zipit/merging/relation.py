"""How models to merge are related, read from their weights: fine-tunes of one base, or of own initialisations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding

ONE_BASE, OWN, SAME = "one base", "own initialisations", "same weights"
RELATED = 0.2  # agreement above which models have one base; independent ones agree by 0, give or take a few hundredths
DIFFERENT = 1e-3  # relative difference above which two tensors are not nearly equal


@dataclass(frozen=True)
class Relation:
    """How models are related.

    Attributes:
        kind: `one base`, `own initialisations` or `same weights`; of several models, that of the least related two.
        agreement: how far the weights agree beyond chance, 1 if they are equal and 0 if they are independent.
        spaces: the same for the weights that write each space.
    """

    kind: str
    agreement: float
    spaces: dict[str, float]

    def __str__(self) -> str:
        """The relation as a sentence, for the output and the card."""
        agree = f"their weights agree by {round(self.agreement, 2) + 0.0:.2f}, where 0 is chance and 1 is equal"
        return {
            ONE_BASE: f"the models come from one base or initialisation ({agree})",
            OWN: f"the models have initialisations of their own ({agree})",
            SAME: f"the models have the same trunk ({agree})",
        }[self.kind]


def relation(states: Sequence[Mapping[str, Tensor]], binding: Binding) -> Relation:
    """Compare models weight by weight, in the order that their units are in.

    The agreement of two weights is their cosine minus its mean over all orders of the units of one of them. So what all
    units have in common does not count. Vectors, such as biases and norms, and classifiers are left out.

    Args:
        states: state dicts of two or more models.
        binding: their spec, which says which weights write which space.

    >>> relation(parents.states, parents.binding).kind  # doctest: +SKIP
    'own initialisations'
    """
    pairs = list(combinations(states, 2))
    found = [_agreements(one, other, binding) for one, other in pairs]
    overall = [_mean(sums.values()) for sums in found]
    weakest = min(range(len(pairs)), key=overall.__getitem__)
    spaces = {name: _mean([sums]) for name, sums in found[weakest].items()}
    alike = all(_same_shapes(one, other, binding) for one, other in pairs)  # models of one base have one width
    kind = ONE_BASE if overall[weakest] > RELATED and alike else OWN
    same = all(_same(one, other, binding) for one, other in pairs)
    return Relation(SAME if same else kind, overall[weakest], spaces)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], binding: Binding) -> bool:
    """Whether all tensors of two models but their classifiers are (nearly) equal, norms and biases among them."""
    for name in one.keys() - set(binding.classifier):
        a, b = one[name].double(), other.get(name, torch.empty(0)).double()
        if a.shape != b.shape or (a - b).norm() > DIFFERENT * a.norm():
            return False
    return True


def _same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor], binding: Binding) -> bool:
    """Whether the tensors that two models both have are of equal shapes, apart from their classifiers."""
    names = one.keys() & other.keys() - set(binding.classifier)
    return all(one[name].shape == other[name].shape for name in names)


def _agreements(one: Mapping[str, Tensor], other: Mapping[str, Tensor], binding: Binding) -> dict[str, Tensor]:
    """For each space, the sums of products and of both squares of the weights that write it, `(3,)`."""
    sums: dict[str, Tensor] = {}
    for row in binding.table:
        a, b = one.get(row.parameter), other.get(row.parameter)
        if row.role == "read" or row.parameter in binding.classifier or a is None or b is None:
            continue
        if a.ndim < 2 or a.shape != b.shape:
            continue
        stop = row.offset + row.length
        x, y = (_centred(value, row.axis, row.offset, stop) for value in (a, b))
        products = torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()])
        sums[row.space] = sums.get(row.space, 0) + products
    return sums


def _centred(value: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """The units of a weight `(units, features)` without what they have in common."""
    units = value.detach().double().movedim(axis, 0)[start:stop].flatten(1)
    return units - units.mean(0)


def _mean(sums: Iterable[Tensor]) -> float:
    """The cosine from sums of products and squares; 0 without any."""
    total = torch.stack([torch.zeros(3, dtype=torch.float64), *sums]).sum(0)
    return float(total[0] / (total[1] * total[2]).sqrt().clamp(min=1e-300))
