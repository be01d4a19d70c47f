"""Every rule against a slow oracle written from its formula, and what all rules have in common."""

import itertools

import numpy as np
import pytest
import torch

from hf_zipit.deltas import spectral
from hf_zipit.deltas.rules import dare, task_arithmetic, ties
from hf_zipit.deltas.spectral import iso_c, iso_cts, tsv, wudi

RULES = {
    "task-arithmetic": task_arithmetic,
    "ties": lambda deltas: ties(deltas, 0.4),
    "dare": lambda deltas: dare(deltas, 0.5, 3),
    "tsv": tsv,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
    "wudi": wudi,
}
ALONE = {**RULES, "ties": lambda deltas: ties(deltas, 1.0), "dare": lambda deltas: dare(deltas, 1.0, 3)}


def random_deltas(models=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"linear": (12, 20), "conv": (8, 3, 3, 3), "bias": (12,), "scale": (), "row": (1, 5)}
    draw = {name: torch.randn(models, *shape, generator=generator).double() for name, shape in shapes.items()}
    return [{name: value[k] for name, value in draw.items()} for k in range(models)]


def by_entry(deltas, density):
    """TIES, entry by entry."""
    kept = []
    for delta in deltas:
        flat = np.concatenate([value.numpy().ravel() for value in delta.values()])
        smallest = np.sort(np.abs(flat))[::-1][round(density * len(flat)) - 1]
        kept.append({n: np.where(np.abs(v.numpy()) >= smallest, v.numpy(), 0.0) for n, v in delta.items()})
    out = {}
    for name, first in deltas[0].items():
        merged = np.zeros(first.shape)
        for place in np.ndindex(*first.shape):
            values = [mine[name][place] for mine in kept]
            sign = np.sign(sum(values))
            agreeing = [value for value in values if value and np.sign(value) == sign]
            merged[place] = np.mean(agreeing) if agreeing else 0.0
        out[name] = torch.from_numpy(merged)
    return out


def polar(matrix):
    """The polar factor by the inverse square root of the smaller Gram matrix."""
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ vectors @ np.diag(values**-0.5) @ vectors.T


def as_matrices(deltas, name):
    return [delta[name].numpy().reshape(len(delta[name]), -1) for delta in deltas]


def test_ties_entry_by_entry():
    deltas = random_deltas()
    for name, value in by_entry(deltas, 0.4).items():
        torch.testing.assert_close(ties(deltas, 0.4)[name], value)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_tsv_by_its_formula(name):
    matrices = as_matrices(random_deltas(), name)
    found = [np.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    kept = min(matrices[0].shape) // 3
    u = polar(np.concatenate([u[:, :kept] for u, _, _ in found], 1))
    v = polar(np.concatenate([v[:kept] for _, _, v in found], 0).T).T
    wanted = u @ np.diag(np.concatenate([s[:kept] for _, s, _ in found])) @ v
    np.testing.assert_allclose(tsv(random_deltas())[name].numpy().reshape(wanted.shape), wanted, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_iso_c_by_its_formula(name):
    total = sum(as_matrices(random_deltas(), name))
    wanted = np.linalg.svd(total)[1].mean() * polar(total)
    np.testing.assert_allclose(iso_c(random_deltas())[name].numpy().reshape(wanted.shape), wanted, atol=1e-10)


def test_iso_cts_by_its_formula():
    matrices = as_matrices(random_deltas(2), "linear")  # 12 directions: 10 in common, 1 of each task
    u, s, v = np.linalg.svd(sum(matrices), full_matrices=False)
    u, s, v = u[:, :10], s[:10], v[:10]
    own = [np.linalg.svd(m - u @ u.T @ m, full_matrices=False) for m in matrices]
    mean = np.mean([*s, *(mine[1][0] for mine in own)])
    left = np.concatenate([u, *(mine[0][:, :1] for mine in own)], 1)
    right = np.concatenate([v, *(mine[2][:1] for mine in own)], 0)
    wanted = mean * polar(left) @ polar(right.T).T
    np.testing.assert_allclose(iso_cts(random_deltas(2))["linear"].numpy(), wanted, atol=1e-10)


def test_wudi_solves_its_least_squares():
    """The gradient of `sum_t |(D - D_t) D_t'|^2 / |D_t|^2 + ridge |D|^2` vanishes."""
    deltas = random_deltas()
    merged = wudi(deltas)["linear"]
    gradient = sum((merged - d["linear"]) @ d["linear"].T @ d["linear"] / d["linear"].square().sum() for d in deltas)
    inputs = sum(d["linear"].T @ d["linear"] / d["linear"].square().sum() for d in deltas)
    ridge = spectral.RIDGE * torch.linalg.eigvalsh(inputs).max()
    assert (gradient + ridge * merged).abs().max() < 1e-10


def test_dare_keeps_the_mean():
    deltas = [{"w": torch.ones(100_000)}]
    found = dare(deltas, 0.2, 0)["w"]
    assert set(found.unique().tolist()) == {0.0, 5.0}
    assert abs(float(found.mean()) - 1) < 0.02


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_models_does_not_matter(rule):
    deltas = random_deltas()
    first = RULES[rule](deltas)
    for order in itertools.permutations(range(3)):
        for name, value in RULES[rule]([deltas[k] for k in order]).items():
            torch.testing.assert_close(value, first[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_no_difference_stays_none(rule):
    found = RULES[rule]([{name: torch.zeros_like(value) for name, value in delta.items()} for delta in random_deltas()])
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("rule", [name for name in ALONE if not name.startswith("iso")])
def test_one_task_gives_its_own_model_back(rule, monkeypatch):
    monkeypatch.setattr(spectral, "RIDGE", 1e-8)
    deltas = random_deltas(1)
    for name, value in ALONE[rule](deltas).items():
        torch.testing.assert_close(value, deltas[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_shapes_and_precision_are_kept(rule):
    deltas = [{name: value.float() for name, value in delta.items()} for delta in random_deltas()]
    found = RULES[rule](deltas)
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, torch.float32) for name, value in deltas[0].items()
    }


def low_rank(models=2, size=64, rank=4, apart=True):
    """Differences of low rank in float32, as adapters have them; `apart`: in orthogonal directions."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
    out = []
    for k in range(models):
        own = slice(k * rank, (k + 1) * rank) if apart else slice(k, k + rank)
        out.append({"w": (u[:, own] * torch.arange(1.0, rank + 1)) @ v[:, own].T})
    return out


def test_tsv_leaves_out_directions_that_a_difference_does_not_have():
    deltas = low_rank()
    torch.testing.assert_close(tsv(deltas)["w"], deltas[0]["w"] + deltas[1]["w"])
    alone = [deltas[0], {"w": torch.zeros(64, 64)}]  # one of the models is the base
    torch.testing.assert_close(tsv(alone)["w"], deltas[0]["w"])


@pytest.mark.parametrize("rule", [iso_c, iso_cts])
def test_equal_singular_values_are_given_to_directions_that_exist(rule):
    deltas = low_rank()
    merged = rule(deltas)["w"]
    span = torch.linalg.qr(torch.cat([delta["w"].T @ torch.randn(64, 4) for delta in deltas], 1))[0]
    torch.testing.assert_close(merged @ span @ span.T, merged, rtol=1e-4, atol=1e-4)
    assert (torch.linalg.svdvals(merged) > 1e-3).sum() == 8


@pytest.mark.parametrize("rule", ["tsv", "iso-c", "iso-cts", "wudi"])
def test_the_order_of_adapters_does_not_matter(rule):
    deltas = low_rank(3, apart=False)
    torch.testing.assert_close(RULES[rule](deltas)["w"], RULES[rule](deltas[::-1])["w"], rtol=1e-3, atol=1e-3)
