"""C2M3: its objective and gradient against loops, planted permutations, any order of the models, refusals."""

from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
import torch

import hf_zipit
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.blocks import blocks_of
from hf_zipit.matching.matcher import Matcher
from hf_zipit.matching.options import Options
from hf_zipit.matching.universe import (
    best_permutations,
    bound,
    climb,
    gains_along,
    gradients,
    objective,
    universe_match,
)
from hf_zipit.sources.load import load_source
from hf_zipit.specs.spaces import FeatureSpace, Row
from hf_zipit.transform.permute import permuted, random_labels
from tests.helpers import oracles
from tests.helpers.models import images, tiny
from tests.matching.test_methods import MODELS, PIXELS

SHAPES = {"first": (4, 3), "bias": (4,), "deep": (6, 4, 2), "square": (4, 4, 3), "last": (5, 6)}
ROWS = [  # two spaces: "a", read and written, and "b", read in one tile of two columns beside a fixed part
    Row("first", 0, 0, 4, "write", "a"),
    Row("bias", 0, 0, 4, "carry", "a"),
    Row("deep", 0, 0, 6, "write", "b", before=2),
    Row("deep", 1, 0, 4, "read", "a"),
    Row("square", 0, 0, 4, "write", "a"),
    Row("square", 1, 0, 4, "read", "a"),
    Row("last", 1, 0, 6, "read", "b", before=2),
]
WHERE = {  # the unit of each index, by hand: None for an axis without units
    "first": ("a", None),
    "bias": ("a",),
    "deep": ("b", "a", None),
    "square": ("a", "a", None),
    "last": (None, "b"),
}
SIZES = {"a": 4, "b": 3}


def small(models=3):
    """Random weights of small networks, their blocks, and doubly stochastic maps that are no permutations."""
    g = torch.Generator().manual_seed(0)
    states = [{name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()} for _ in range(models)]
    binding = oracles.bound(ROWS, **SIZES)
    maps = {}
    for name, size in SIZES.items():
        draws = [[torch.eye(size)[torch.randperm(size, generator=g)] for _ in range(3)] for _ in states]
        maps[name] = [0.5 * a + 0.3 * b + 0.2 * c for a, b, c in draws]
    return states, blocks_of(states, binding, SIZES), maps


def in_the_universe(state, maps, model):
    """Every weight of a model, added where its units are in the universe, one by one."""
    out = {}
    for name, value in state.items():
        there = np.zeros(value.shape)
        for source in np.ndindex(*value.shape):
            ways = []
            for index, space in zip(source, WHERE[name], strict=True):
                if space is None:
                    ways.append([(index, 1.0)])
                    continue
                tile, unit = divmod(index, SIZES[space])
                ways.append(
                    [(tile * SIZES[space] + u, float(maps[space][model][u, unit])) for u in range(SIZES[space])]
                )
            for way in product(*ways):
                there[tuple(index for index, _ in way)] += np.prod([x for _, x in way]) * float(value[source])
        out[name] = there
    return out


def slow_objective(states, maps):
    """The inner products of all pairs of models, from their description."""
    there = [in_the_universe(state, maps, k) for k, state in enumerate(states)]
    return sum((p[name] * q[name]).sum() for p, q in combinations(there, 2) for name in p)


def moved(maps, space, model, change):
    values = list(maps[space])
    values[model] = values[model] + change
    return {**maps, space: values}


def test_the_objective_is_the_sum_over_pairs_of_models():
    states, blocks, maps = small()
    assert objective(blocks, maps) == pytest.approx(slow_objective(states, maps), rel=1e-5)


def test_the_gradient_is_that_of_central_differences():
    """The objective has degree two in an entry of a map, so that central differences are exact."""
    states, blocks, maps = small(2)
    found = gradients(blocks, maps)
    for space, size in SIZES.items():
        for unit in np.ndindex(size, size):
            change = torch.zeros(size, size)
            change[unit] = 0.5
            there, back = (slow_objective(states, moved(maps, space, 1, sign * change)) for sign in (1, -1))
            assert float(found[space][1][unit]) == pytest.approx(there - back, abs=1e-3)


def test_the_gain_of_a_step_is_a_polynomial_of_its_length():
    _, blocks, maps = small()
    families = [[FeatureSpace(name, size, ())] for name, size in SIZES.items()]
    targets = best_permutations(families, gradients(blocks, maps))
    paths = gains_along(blocks, maps, targets)
    for length in (0.0, 0.3, 1.0):
        for number, path in enumerate(paths):
            there = {
                name: [value.lerp(targets[name][k], length * (number in (0, k + 1))) for k, value in enumerate(values)]
                for name, values in maps.items()
            }
            gain = objective(blocks, there) - objective(blocks, maps)
            assert path(length) == pytest.approx(gain, abs=1e-3)


def test_every_step_gains_and_the_maps_stay_doubly_stochastic():
    _, blocks, _ = small()
    families = [[FeatureSpace(name, size, ())] for name, size in SIZES.items()]
    start = {name: [torch.eye(size) for _ in range(3)] for name, size in SIZES.items()}
    reached = [objective(blocks, start)]
    for maps in climb(blocks, families, start, 50):
        reached.append(objective(blocks, maps))
        for value in (value for values in maps.values() for value in values):
            assert value.min() >= -1e-6
            torch.testing.assert_close(value.sum(0), torch.ones(len(value)))
            torch.testing.assert_close(value.sum(1), torch.ones(len(value)))
    assert len(reached) < 50
    assert all(later >= earlier - 1e-4 for earlier, later in pairwise(reached))
    assert reached[-1] > 1.2 * reached[0]


def copies(model, binding, count):
    labels = [{name: torch.arange(space.size) for name, space in binding.spaces.items()}]
    labels += [random_labels(binding, seed) for seed in range(1, count)]
    return [permuted(model, binding, mine) for mine in labels], labels


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(3)
def test_planted_permutations_reach_the_bound_and_are_found(name):
    """Units of any kind: in groups, heads, grouped kernels, fused projections and several tiles."""
    model = MODELS[name]()
    binding = find_spec(load_source(model))
    models, labels = copies(model, binding, 3)
    states = [one.state_dict() for one in models]
    blocks = blocks_of(states, binding, binding.spaces)
    planted = {space: [torch.eye(len(one[space]))[one[space]].T for one in labels] for space in binding.spaces}
    back = {space: [value.T for value in values] for space, values in planted.items()}
    assert objective(blocks, back) == pytest.approx(bound(blocks), rel=1e-5)
    found = Matcher({}, states, binding, Options(method="c2m3")).matches(binding.spaces.values())
    for space, match in found.items():
        assert match.score == pytest.approx(1, abs=1e-5)
        for k in (1, 2):
            assert torch.equal(match.of(k)[labels[k][space]], match.of(0)), space


def noisy(model, seed):
    """A copy with other weights, no more alike than trained models are."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.add_(value.std() * torch.randn(value.shape, generator=g))
    return model


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.sample(1)
def test_any_order_of_the_models_gives_the_same_merge(name):
    binding = find_spec(load_source(MODELS[name]()))
    models = [noisy(model, seed) for seed, model in enumerate(copies(MODELS[name](), binding, 3)[0])]
    reached = []
    for order in permutations(range(3)):
        tasks = [f"t{k}" for k in order]
        merged = hf_zipit.merge([models[k] for k in order], method="c2m3", calibrate="none", verdict=False, tasks=tasks)
        with torch.no_grad():
            reached.append(merged(PIXELS).task_logits)
    for other in reached[1:]:
        for task, expected in reached[0].items():
            torch.testing.assert_close(other[task], expected, rtol=1e-5, atol=1e-5)


def test_maps_between_models_agree_around_a_cycle():
    states, _, _ = small()
    families = [[FeatureSpace(name, size, ())] for name, size in SIZES.items()]
    for match in universe_match(states, oracles.bound(ROWS, **SIZES), families).values():
        to = [[match.of(b).argsort()[match.of(a)] for b in range(3)] for a in range(3)]
        assert torch.equal(to[2][0][to[1][2][to[0][1]]], torch.arange(len(to[0][0])))


def test_a_cut_leaves_out_what_is_behind_it():
    states, _, _ = small()
    assert {block.spaces for block in blocks_of(states, oracles.bound(ROWS, **SIZES), ["a"])} == {("a",), ("a", "a")}


def test_it_refuses_what_it_cannot_do():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    tasks = {"tasks": ["a", "b"], "calibrate": "none"}
    with pytest.raises(OptionError, match="'c2m3' supports only width 1, as it aligns all layers at once"):
        hf_zipit.merge(models, method="c2m3", width=1.5, **tasks)
    with pytest.raises(OptionError, match="flops_budget reads activations, but method 'c2m3' does not"):
        hf_zipit.merge(models, images(8), method="c2m3", flops_budget=1.5, **tasks)
    with pytest.raises(OptionError, match="method is 'c2m3', but the models have different widths"):
        hf_zipit.merge([models[0], tiny("cifar_resnet20", 1, width=2)], method="c2m3", **tasks)
    states, _, _ = small()
    binding = oracles.bound([Row("deep", 1, 0, 4, "read", "a"), Row("deep", 0, 0, 6, "write", "b", before=2)], **SIZES)
    with pytest.raises(OptionError, match="c2m3 compares weights, and of space 'a' none can be compared"):
        universe_match(states, binding, [[FeatureSpace("a", 4, ())]])
