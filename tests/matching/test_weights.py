"""Weight similarity and sweeps against loops written from their description."""

import functools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_zipit.find_spec import find_spec
from hf_zipit.matching.average import average_match
from hf_zipit.matching.matcher import Matcher
from hf_zipit.matching.options import Options
from hf_zipit.matching.similarity import reference_correlation
from hf_zipit.matching.sweeps import reference_sweeps
from hf_zipit.matching.weights import WeightSimilarity, _shortened, readers
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source
from hf_zipit.specs.spaces import FeatureSpace, Row
from hf_zipit.transform.match import Match
from tests.helpers.models import hf_vit, images, timm_vit, tiny, vgg
from tests.helpers.oracles import bound, published, random_match

MODELS = {"resnet": functools.partial(tiny, "cifar_resnet20"), "vit": hf_vit, "fused vit": timm_vit, "vgg": vgg}


def coordinates(length, rows, matches, model, models, swapped, eps):
    """The dense matrix that brings one axis to merged units: `(length, merged length)`."""
    blocks, done = [], 0
    for row in sorted(rows, key=lambda r: r.offset):
        blocks.append(np.eye(row.offset - done))
        size = row.length // row.before // row.after
        if row.space in matches:
            match = matches[row.space]
            one_hot = np.eye(match.width)[match.of(model).numpy()]
            averaged = models * one_hot / (match.counts.numpy() + eps)
            inner = averaged if (row.role == "read") == swapped else one_hot
        else:
            inner = np.eye(size) if swapped else np.zeros((size, 0))
        blocks.append(np.kron(np.eye(row.before), np.kron(inner, np.eye(row.after))))
        done = row.offset + row.length
    blocks.append(np.eye(length - done))
    out = np.zeros((length, sum(b.shape[1] for b in blocks)))
    i = j = 0
    for block in blocks:
        out[i : i + block.shape[0], j : j + block.shape[1]] = block
        i, j = i + block.shape[0], j + block.shape[1]
    return out


def slow_similarity(states, binding, space, matches, compat):
    """Every unit's vector, piece by piece; then numpy's correlation."""
    models, vectors = len(states), [[] for _ in range(len(states) * space.size)]
    for name, rows in binding.rows(states[0]).items():
        if "running_" in name or (name in binding.classifier and not compat):
            continue
        for row in (row for row in rows if row.space == space.name):
            for k, state in enumerate(states):
                w = state[name].double().numpy()
                for axis in {r.axis for r in rows} - {row.axis}:
                    others = [r for r in rows if r.axis == axis]
                    d = coordinates(w.shape[axis], others, matches, k, models, compat, 1e-5 if compat else 0)
                    w = np.moveaxis(np.tensordot(w, d, (axis, 0)), -1, axis)
                for u in range(space.size):
                    places = [
                        row.offset + (b * space.size + u) * row.after + a
                        for b in range(row.before)
                        for a in range(row.after)
                    ]
                    vectors[k * space.size + u].append(np.take(w, places, row.axis).swapaxes(0, row.axis).ravel())
    return np.corrcoef(np.array([np.concatenate(v) for v in vectors]))


def check(states, binding, space, matches, compat):
    found = WeightSimilarity(states, binding, compat)(space, matches)
    expected = slow_similarity(states, binding, space, matches, compat)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5, rtol=0, err_msg=space.name)
    across = WeightSimilarity(states, binding, compat)(space, matches, within=False)
    np.testing.assert_allclose(across[: space.size, space.size :], expected[: space.size, space.size :], atol=2e-5)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(3)
def test_weight_similarity_equals_its_description(name, compat):
    states = [MODELS[name](seed).state_dict() for seed in range(3)]
    binding = find_spec(load_source(MODELS[name]()))
    matches = {n: random_match(s.size, 3, s.size, i) for i, (n, s) in enumerate(binding.spaces.items())}
    for unmatched in list(matches)[1::3]:
        del matches[unmatched]
    for space in binding.spaces.values():
        check(states, binding, space, matches, compat)


@pytest.mark.parametrize("compat", [False, True])
def test_tiles_and_fixed_parts_count_as_weights(compat):
    """Axis 0: [fixed 1 | a in two tiles]; axis 1: [b repeated three times inside | fixed 2]."""
    rows = [
        Row("w", 0, 1, 8, "write", "a", before=2),
        Row("w", 1, 0, 15, "read", "b", after=3),
        Row("v", 0, 0, 4, "carry", "a"),
        Row("v", 1, 0, 5, "read", "b"),
    ]
    binding = bound(rows, a=4, b=5)
    g = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(9, 17, 2, generator=g), "v": torch.randn(4, 5, generator=g)} for _ in range(2)]
    matches = {"a": random_match(4, 2, 3, 1), "b": random_match(5, 2, 6, 2)}
    for space in binding.spaces.values():
        check(states, binding, space, matches, compat)


def test_grouped_kernels_count_places_inside_the_group():
    """Three groups of two units: group g of a model is at group `order[g]` of the merge, its units at `places`."""
    groups, inner, out = 3, 2, 4
    g = torch.Generator().manual_seed(0)
    rows = [Row("w", 0, 0, groups * out, "write", "s"), Row("w", 1, 0, inner, "read", "p", local=True)]
    binding = bound(rows, p=groups * inner, s=groups * out)
    states = [{"w": torch.randn(groups * out, inner, 3, generator=g)} for _ in range(2)]
    labels = {"p": [], "s": []}
    for _ in states:
        order = torch.randperm(groups, generator=g)
        for name, units in (("p", inner), ("s", out)):
            places = torch.stack([torch.randperm(units, generator=g) for _ in range(groups)])
            labels[name].append((order[:, None] * units + places).flatten())
    matches = {n: Match(torch.cat(x), (len(x[0]),) * 2, len(x[0])) for n, x in labels.items()}
    written, read = [], []
    for state, p, s in zip(states, labels["p"], labels["s"], strict=True):
        w = state["w"]
        for row in range(groups * out):  # what a unit of s reads, by merged place
            mine = {int(p[row // out * inner + i]) % inner: w[row, i] for i in range(inner)}
            written.append(torch.cat([mine[i] for i in range(inner)]))
        for unit in range(groups * inner):  # what reads a unit of p, by merged place
            rows_of = range(unit // inner * out, (unit // inner + 1) * out)
            mine = {int(s[row]) % out: w[row, unit % inner] for row in rows_of}
            read.append(torch.cat([mine[i] for i in range(out)]))
    similarity, spaces = WeightSimilarity(states, binding), binding.spaces
    torch.testing.assert_close(similarity(spaces["s"], matches), torch.corrcoef(torch.stack(written)))
    torch.testing.assert_close(similarity(spaces["p"], matches), torch.corrcoef(torch.stack(read)))
    assert similarity(spaces["s"], {}) is None


def merger(models):
    return Merger(models, images(32), tasks=[f"t{i}" for i in range(len(models))], cache=False)


def inputs(run, options):
    spaces = list(run.parents.binding.spaces.values())
    statistics = run.statistics(run.parents.binding.spaces, options.compat) if options.needs_statistics else {}
    return spaces, statistics


@pytest.mark.parametrize("method", ["git-rebasin", "weight-zip", "mudsc-zip"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.sample(2)
def test_skipping_spaces_without_news_changes_nothing(name, method):
    run, options = merger([MODELS[name](seed) for seed in (0, 1)]), Options(method=method)
    spaces, statistics = inputs(run, options)
    found = Matcher(statistics, run.parents.states, run.parents.binding, options).matches(spaces)
    matcher = Matcher(statistics, run.parents.states, run.parents.binding, options)
    families, matches = matcher.families(spaces), {}
    if options.needs_statistics:
        for family in families:
            matches |= matcher.match(family)
    changed = True
    while changed:
        changed = False
        for family in families:
            new, gain = matcher.rematch(family, matches)
            if gain > 1e-6 and any(n not in matches or (m.labels != matches[n].labels).any() for n, m in new.items()):
                matches |= new
                changed = True
    assert all(torch.equal(match.labels, matches[name].labels) for name, match in found.items())


@pytest.mark.parametrize("method", ["git-rebasin", "mudsc-align", "weight-zip", "mudsc-zip"])
@pytest.mark.sample(2)
def test_compat_equals_the_published_sweeps(method):
    """Random order, neighbours as they are now, best mean score kept: with dense matrices and plain loops."""
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    run, options = merger(models), Options(method=method, alpha=0.5, beta=1.0, compat=True, balance=0.3, sweeps=3)
    spaces, statistics = inputs(run, options)

    def psi(s):
        n = len(s) // 2
        if method.endswith("zip"):
            values = []
            return Match(torch.tensor(published(s, 2, 0.5, 1.0, values)), (n, n), n), np.mean(values)
        rows, columns = linear_sum_assignment(s[:n, n:].numpy(), maximize=True)
        labels = torch.cat([torch.arange(n), torch.from_numpy(np.argsort(columns))])
        return Match(labels, (n, n), n), s[:n, n:].numpy()[rows, columns].mean()

    matches, acts = {}, {}
    for name, entry in statistics.items():
        acts[name] = reference_correlation(entry.moments)
        matches[name] = psi(acts[name])[0]
    generator, best, value = torch.Generator().manual_seed(0), None, -np.inf
    for _ in range(3):
        scores = []
        for index in torch.randperm(len(spaces), generator=generator).tolist():
            space = spaces[index]
            s = torch.from_numpy(slow_similarity(run.parents.states, run.parents.binding, space, matches, True)).float()
            if acts:
                s = 0.3 * s + 0.7 * acts[space.name]
            matches[space.name], score = psi(s)
            scores.append(score)
        if np.mean(scores) > value:
            best, value = dict(matches), np.mean(scores)
        matches = dict(best)
    found = Matcher(statistics, run.parents.states, run.parents.binding, options).matches(spaces)
    assert {n: m.labels.tolist() for n, m in found.items()} == {n: m.labels.tolist() for n, m in best.items()}


def test_reference_sweeps_restore_the_best_and_stop_after_five_without_gain():
    scores = iter([1.0, 2.0, 1.5, 2.0, 1.9, 0.0, 2.0, 9.0])
    seen, space = [], FeatureSpace("a", 2, ())

    def rematch(family, matches):
        seen.append(matches["a"].score)
        match = average_match([2, 2])
        return {"a": Match(match.labels, match.sizes, 2, next(scores))}, 0.0

    best = reference_sweeps([(space,)], rematch, {"a": Match(torch.zeros(4).long(), (2, 2), 1, -1.0)}, 100)
    assert seen == [-1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert best["a"].score == 2.0


def test_readers_of_units_that_never_vary_read_nothing():
    model = tiny("cifar_resnet20")
    binding = find_spec(load_source(model))
    space = binding.spaces["layer2.0.out"]
    states = [model.state_dict()] * 2
    count = 2 * space.size
    found = readers(states, binding, space, torch.zeros(count, count))
    assert found.abs().max() < 1e-12
    varies = torch.eye(count) * (torch.arange(count) > 0)  # all but one
    found = readers(states, binding, space, varies)
    assert found.isfinite().all()
    assert found[:, 0].abs().max() < 1e-3 * found.abs().max()


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_shortened_readers_see_what_all_readers_see(copies):
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(200, 8, generator=draw) @ torch.diag(10.0 ** torch.linspace(-5, 2, 8))
    root = root.repeat(1, copies)  # of units that are there several times, no factor is exact
    short = _shortened(root)
    assert short.shape == (8 * copies, 8 * copies)
    gram = root.T @ root
    assert (short.T @ short - gram).abs().max() < 1e-5 * gram.abs().max()
