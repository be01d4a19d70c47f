"""Trunks of other widths: which spaces can have them, what they cost, and which ones a FLOP buys most accuracy with."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_zipit.errors import OptionError
from hf_zipit.matching.widen import unit_count
from hf_zipit.models.modeling_zipit import resize
from hf_zipit.models.steps import run_steps
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.match import Match

GRID = 8  # widths are chosen in steps of an eighth of a model's
ROUNDING = 1e-9


@torch.no_grad()
def free_spaces(model: nn.Module, binding: Binding, input_size: Sequence[int]) -> set[str]:
    """The spaces that may have another width: the model runs with them, and no layer norm averages over them.

    Attention heads, for one, have the width their module was built with.
    """
    spaces = {name for name, space in binding.spaces.items() if not space.one_to_one and space.probes}
    if _runs(model, binding, spaces, input_size):
        return spaces
    return {name for name in spaces if _runs(model, binding, {name}, input_size)}


def _runs(model: nn.Module, binding: Binding, names: Iterable[str], input_size: Sequence[int]) -> bool:
    net = copy.deepcopy(model).to("meta").eval()
    ratios = dict.fromkeys(names, 2.0)
    for name, value in net.state_dict().items():
        shape = grown(binding, name, value.shape, ratios)
        if shape != list(value.shape):
            resize(net, name, shape)
    try:
        net(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, ValueError):
        return False
    return True


def grown(binding: Binding, parameter: str, shape: Sequence[int], ratios: Mapping[str, float]) -> list[int]:
    """The shape that a parameter has if spaces grow by some ratios."""
    out = list(shape)
    for row in binding.rows([parameter])[parameter]:
        out[row.axis] += round(row.length * (ratios.get(row.space, 1.0) - 1))
    return out


@dataclass(frozen=True)
class _Layer:
    """FLOPs of one linear map in a model, and the rows that they grow with."""

    flops: float
    rows: tuple[tuple[Row, ...], ...]  # of its output axis, of its input axis
    lengths: tuple[int, int]
    classifies: bool

    def at(self, ratios: Mapping[str, float]) -> float:
        """FLOPs where spaces have grown."""
        flops = self.flops
        for rows, length in zip(self.rows, self.lengths, strict=True):
            flops *= 1 + sum(row.length * (ratios.get(row.space, 1.0) - 1) for row in rows) / length
        return flops


class Costs:
    """FLOPs of a merge of several models, for any cut and widths."""

    def __init__(self, sources: Sequence[Source], binding: Binding) -> None:
        self.binding, self.models, input_size = binding, len(sources), sources[0].input_size
        self.classifiers = sum(len(source.labels) for source in sources) / max(1, len(sources[0].labels))
        net = copy.deepcopy(sources[0].model).to("meta").eval()
        value = torch.empty(1, *input_size, device="meta")
        self.layers: list[list[_Layer]] = []
        self.rest: list[float] = []
        runs: list[Callable[[Tensor], Tensor]] = [
            partial(run_steps, net, [step], size=input_size[-2:]) for step in binding.steps
        ]
        for run in runs or [net]:
            found: list[_Layer] = []
            hooks = [m.register_forward_hook(self._hook(n, found)) for n, m in net.named_modules()]
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                value = run(value)
            for hook in hooks:
                hook.remove()
            self.layers.append(found)
            self.rest.append(counter.get_total_flops() - sum(layer.flops for layer in found))
        self.one = sum(self.rest) + sum(layer.flops for step in self.layers for layer in step)

    def _hook(self, path: str, found: list[_Layer]) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _: object, out: object) -> None:
            if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(out, Tensor):
                weight = module.weight
                rows = self.binding.rows([f"{path}.weight"])[f"{path}.weight"]
                axes = tuple(tuple(row for row in rows if row.axis == axis) for axis in (0, 1))
                flops, classifies = 2.0 * out.numel() * weight[0].numel(), f"{path}.weight" in self.binding.classifier
                found.append(_Layer(flops, axes, (weight.shape[0], weight.shape[1]), classifies))

        return hook

    def flops(self, depth: int, ratios: Mapping[str, float], gathers: bool) -> float:
        """FLOPs of trunk and heads, in forwards of one parent.

        Args:
            depth: steps in the trunk; 0 where there is no chain.
            ratios: widths of spaces, relative to a model's.
            gathers: whether heads read a model's own units, and so cost what they did.
        """
        trunk, inside = depth or len(self.rest), {} if gathers else ratios
        total = sum(self.rest[:trunk]) + self.models * sum(self.rest[trunk:])
        for number, step in enumerate(self.layers):
            for layer in step:
                times = self.classifiers if layer.classifies else 1 if number < trunk else self.models
                total += times * layer.at(ratios if number < trunk else inside)
        return total / self.one


def unexplained(statistics: SpaceStatistics, match: Match) -> float:
    """Share of all units' variance that no linear function of the merged units gives back, in [0, 1].

    Units are standardised; of `C` their correlation and `M` the merge this is
    `1 - trace(C M^T (M C M^T)^-1 M C) / n`.
    """
    covariance = statistics.pooled.covariance
    deviation = covariance.diagonal().sqrt()
    alive = deviation > 1e-6 * deviation.max()
    scale = torch.where(alive, 1 / deviation.clamp(min=1e-30), 0)
    correlation = covariance * scale[:, None] * scale
    merge = match.aim.merge.to(correlation)
    read = merge @ covariance @ merge.T
    read = read + 1e-6 * read.diagonal().mean() * torch.eye(len(read), dtype=read.dtype, device=read.device)
    cross = (merge @ covariance) * scale  # (m, n)
    explained = (cross * torch.linalg.solve(read, cross)).sum()
    return float(1 - explained / correlation.diagonal().sum().clamp(min=1))


@dataclass(frozen=True)
class Offer:
    """A cut (number of steps) and widths, and what they cost and leave unexplained."""

    depth: int
    widths: dict[str, int]
    flops: float
    error: float


def spend(
    budget: float,
    depths: Mapping[int, tuple[set[str], bool]],
    costs: Costs,
    binding: Binding,
    errors: Mapping[str, Mapping[float, float]],
) -> Offer:
    """The cut and the widths that leave least unexplained for a budget of FLOPs.

    For every cut, all spaces start at the smallest ratio; time after time the one grows that saves most error per
    FLOP and still fits. The errors are summed over the trunk's spaces: what lies behind the cut has none.

    Args:
        budget: FLOPs of all tasks, in forwards of one parent; never exceeded.
        depths: the legal cuts: the trunk's spaces, and whether heads gather.
        costs: what cuts and widths cost.
        binding: the spaces.
        errors: what each space leaves unexplained at each ratio; a space of one width has one.

    Raises:
        OptionError: nothing fits into the budget.
    """
    offers = [_grow(budget, depth, names, gathers, costs, errors) for depth, (names, gathers) in depths.items()]
    if not any(offers):
        least = min(
            costs.flops(depth, {n: min(errors[n]) for n in names if n in errors}, gathers)
            for depth, (names, gathers) in depths.items()
        )
        raise OptionError(f"flops_budget is {budget:g}: these models need at least {math.ceil(1000 * least) / 1000:g}")
    depth, ratios, flops, error = min((offer for offer in offers if offer), key=lambda offer: (offer[3], offer[2]))
    widths = {}
    for name, ratio in ratios.items():
        space = binding.spaces[name]
        if len(errors[name]) > 1:
            widths[name] = unit_count(space.size, space.groups, costs.models, ratio)
    return Offer(depth, widths, flops, error)


def _grow(
    budget: float,
    depth: int,
    names: set[str],
    gathers: bool,
    costs: Costs,
    errors: Mapping[str, Mapping[float, float]],
) -> tuple[int, dict[str, float], float, float] | None:
    ratios = {name: min(errors[name]) for name in names if name in errors}
    spent = costs.flops(depth, ratios, gathers)
    if spent > budget + ROUNDING:
        return None
    while True:
        best, move = 0.0, None
        for name, ratio in ratios.items():
            for wider in (r for r in errors[name] if r > ratio):
                cost = costs.flops(depth, {**ratios, name: wider}, gathers)
                gain = (errors[name][ratio] - errors[name][wider]) / max(cost - spent, 1e-12)
                if cost <= budget + ROUNDING and gain > best:
                    best, move = gain, (name, wider, cost)
        if move is None:
            return depth, ratios, spent, sum(errors[name][ratio] for name, ratio in ratios.items())
        ratios[move[0]], spent = move[1], move[2]
