"""Head maps beside slow, obvious oracles."""

import pytest
import torch

from hf_zipit.heads.maps import logit_maps, logit_spectrum, power, random_maps, value_maps, value_reads
from hf_zipit.specs.spaces import Row
from hf_zipit.transform.heads import HeadMatch

HEADS, UNITS, WIDTH = 4, 6, 10


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def second(units, seed, rank=None):
    """A second moment of `units` units, of this rank."""
    x = random(400, rank or units, seed=seed) @ random(rank or units, units, seed=seed + 1)
    return x.T @ x / len(x)


def expected_error(difference, queries, keys):
    """E (q' D k)^2 for independent queries and keys."""
    return float(torch.trace(difference.T @ queries @ difference @ keys))


def test_a_power_of_a_matrix():
    m = second(UNITS, 0)
    torch.testing.assert_close(power(m, 0.5) @ power(m, 0.5), m)
    torch.testing.assert_close(power(m, -0.5) @ m @ power(m, -0.5), torch.eye(UNITS, dtype=torch.float64))


def test_with_all_units_the_logits_stay():
    a, b = logit_maps(second(UNITS, 0), second(UNITS, 2), UNITS)
    torch.testing.assert_close(a.T @ b, torch.eye(UNITS, dtype=torch.float64))


@pytest.mark.parametrize("units", [1, 3])
def test_no_other_low_rank_logits_are_closer(units):
    queries, keys = second(UNITS, 0), second(UNITS, 2)
    a, b = logit_maps(queries, keys, units)
    best = expected_error(a.T @ b - torch.eye(UNITS), queries, keys)
    assert best == pytest.approx(float(logit_spectrum(queries, keys)[units:].square().sum()))
    for seed in range(50):  # small changes of the maps, and other maps altogether
        other = (a + 0.1 * random(units, UNITS, seed=seed)).T @ (b + 0.1 * random(units, UNITS, seed=seed + 99))
        assert expected_error(other - torch.eye(UNITS), queries, keys) > best
        far = random(UNITS, units, seed=seed) @ random(units, UNITS, seed=seed + 99)
        assert expected_error(far - torch.eye(UNITS), queries, keys) > best


def test_heads_of_low_rank_keep_their_logits():
    queries, keys = second(UNITS, 0, rank=2), second(UNITS, 2)
    a, b = logit_maps(queries, keys, 2)
    q = random(20, 2, seed=9) @ random(2, UNITS, seed=1)  # in the span of the queries
    k = random(20, UNITS, seed=5)
    torch.testing.assert_close(q @ a.T @ b @ k.T, q @ k.T, rtol=1e-4, atol=1e-4)


def test_many_heads_are_mapped_as_each_by_itself():
    queries = torch.stack([second(UNITS, s) for s in range(HEADS)])
    keys = torch.stack([second(UNITS, s + 50) for s in range(HEADS)])
    a, b = logit_maps(queries, keys, 3)
    for h in range(HEADS):
        one = logit_maps(queries[h], keys[h], 3)
        torch.testing.assert_close(a[h].T @ b[h], one[0].T @ one[1])


def outputs(rank=None, seed=0):
    """Outputs of some heads, each of this rank, and how each writes."""
    parts = [
        random(500, rank or UNITS, seed=seed + h) @ random(rank or UNITS, UNITS, seed=99 + h) for h in range(HEADS)
    ]
    return torch.cat(parts, 1), [random(UNITS, WIDTH, seed=seed + 200 + h) for h in range(HEADS)]


def covariance(x):
    x = x - x.mean(0)
    return x.T @ x / len(x)


def written(x, maps, reads, writes):
    """What is written through the maps and back."""
    return sum(x[:, h * UNITS : (h + 1) * UNITS] @ maps[h].T @ reads[h].T @ writes[h] for h in range(HEADS))


def test_with_all_units_the_values_stay():
    x, writes = outputs()
    maps = value_maps(covariance(x), writes, UNITS)
    reads = value_reads(covariance(x), writes, maps)
    torch.testing.assert_close(written(x, maps, reads, writes), x @ torch.cat(writes), rtol=1e-4, atol=1e-4)


def test_heads_of_low_rank_keep_their_values():
    x, writes = outputs(rank=2)
    maps = value_maps(covariance(x), writes, 2)
    reads = value_reads(covariance(x), writes, maps)
    torch.testing.assert_close(written(x, maps, reads, writes), x @ torch.cat(writes), rtol=1e-4, atol=1e-4)


def test_heads_that_write_alike_share_the_work():
    """Equal heads of full rank fit into as many heads of half the rank."""
    x, writes = outputs()
    x = torch.cat([x[:, :UNITS]] * HEADS, 1)
    shares = [writes[0] / HEADS] * HEADS
    maps = value_maps(covariance(x), shares, UNITS // 2)
    reads = value_reads(covariance(x), shares, maps)
    wanted = x[:, :UNITS] @ writes[0]
    torch.testing.assert_close(written(x, maps, reads, shares), wanted, rtol=1e-4, atol=1e-4)


def fit_error(x, maps, writes):
    """The error of the best linear reader of the mapped outputs, by plain least squares."""
    target = x @ torch.cat(writes)
    mapped = torch.cat([x[:, h * UNITS : (h + 1) * UNITS] @ maps[h].T for h in range(HEADS)], 1)
    mapped, target = mapped - mapped.mean(0), target - target.mean(0)
    return float((target - mapped @ torch.linalg.lstsq(mapped, target).solution).square().mean())


@pytest.mark.parametrize("units", [1, 3])
def test_value_maps_beat_those_of_each_head_by_itself(units):
    mixed = random(HEADS * UNITS, HEADS * UNITS, seed=77)  # outputs of one head tell about those of another
    x, writes = outputs()
    x = x @ mixed
    maps = value_maps(covariance(x), writes, units)
    alone = []
    for h in range(HEADS):
        block = covariance(x[:, h * UNITS : (h + 1) * UNITS])
        left, _, _ = torch.linalg.svd(power(block, 0.5) @ writes[h])
        alone.append((power(block, -0.5) @ left[:, :units]).T)
    chance = random_maps(HEADS, UNITS, units, seed=0)
    assert fit_error(x, maps, writes) < fit_error(x, alone, writes) < fit_error(x, chance, writes)


def test_a_head_that_writes_nothing_takes_nothing_from_the_others():
    x, writes = outputs(rank=3)
    writes[1] = torch.zeros_like(writes[1])
    maps = value_maps(covariance(x), writes, 3)
    reads = value_reads(covariance(x), writes, maps)
    torch.testing.assert_close(written(x, maps, reads, writes), x @ torch.cat(writes), rtol=1e-4, atol=1e-4)
    assert maps.isfinite().all()
    assert reads.isfinite().all()


@pytest.mark.parametrize("role", ["write", "read"])
@pytest.mark.parametrize("model", [0, 1])
def test_heads_are_mapped_as_by_one_large_matrix_with_a_block_for_each(role, model):
    models, fewer = 2, 4
    maps, reads = random(models, HEADS, fewer, UNITS), random(models, HEADS, UNITS, fewer, seed=1)
    match = HeadMatch((HEADS * UNITS,) * models, HEADS, {("attn.v", 0): maps}, reads)
    matrix = torch.zeros(models, HEADS, fewer, HEADS * UNITS, dtype=torch.float64)
    for head in range(HEADS):
        mine = maps[model, head] if role == "write" else reads[model, head].T
        matrix[model, head, :, head * UNITS : (head + 1) * UNITS] = mine
    row = Row("attn.proj", 1, 0, HEADS * UNITS, role, "heads", after=3)
    weight = random(5, HEADS * UNITS * 3, 7, seed=2)
    found = match.applied(weight, 1, row, model)
    wanted = torch.einsum("wu,ouak->owak", matrix.flatten(0, 2), weight.reshape(5, HEADS * UNITS, 3, 7))
    torch.testing.assert_close(found, wanted.reshape(5, match.width * 3, 7))
