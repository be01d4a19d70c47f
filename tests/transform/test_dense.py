"""Dense matches in the transform, beside explicit matrices."""

import pytest
import torch

from hf_zipit.calibration.refit.targets import trunk_target
from hf_zipit.specs.spaces import Row
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states, unmerge_reads
from tests.helpers.oracles import bound, random_match


def dense(width, *sizes, seed=0):
    """Random matrices."""
    generator = torch.Generator().manual_seed(seed)
    m, u, spread = (torch.randn(width, sum(sizes), dtype=torch.float64, generator=generator) for _ in range(3))
    return DenseMatch(m, u.T.contiguous(), spread.softmax(1), sizes)


def expanded(matrix, before, after):
    """The matrix of an axis that holds a space several times."""
    eye = torch.eye
    return torch.kron(torch.kron(eye(before).double(), matrix), eye(after).double())


@pytest.mark.parametrize("hard", [False, True])
def test_a_layer_is_m_w_u_summed_over_the_models(hard):
    rows = [Row("w", 0, 0, 6, "write", "s"), Row("w", 1, 0, 5, "read", "p"), Row("b", 0, 0, 6, "write", "s")]
    matches = {"s": dense(7, 6, 6, 6), "p": random_match(5, 3, 4, 1) if hard else dense(4, 5, 5, 5, seed=1)}
    states = [{"w": torch.randn(6, 5, 3, 3), "b": torch.randn(6), "n": torch.tensor(7)} for _ in range(3)]
    merged = merge_states(states, bound(rows, s=6, p=5), matches, ["w", "b", "n"])
    expected = torch.zeros(7, 4, 3, 3, dtype=torch.float64)
    for k, state in enumerate(states):
        m, u = matches["s"].merge_of(k), matches["p"].unmerge[5 * k : 5 * k + 5].double()
        for x in range(3):
            for y in range(3):
                expected[:, :, x, y] += m @ state["w"][:, :, x, y].double() @ u
    torch.testing.assert_close(merged["w"], expected.float())
    bias = sum(matches["s"].merge_of(k) @ state["b"].double() for k, state in enumerate(states))
    torch.testing.assert_close(merged["b"], bias.float())
    assert merged["n"] == 7


def test_slices_tiles_and_fixed_parts_keep_their_places():
    """An axis of [fixed 2 | two tiles of a | c | b repeated twice inside | fixed 1]; c has a match of labels."""
    rows = [
        Row("w", 1, 2, 6, "read", "a", before=2),
        Row("w", 1, 8, 2, "read", "c"),
        Row("w", 1, 10, 4, "read", "b", after=2),
        Row("v", 0, 2, 6, "write", "a", before=2),
        Row("v", 0, 8, 2, "write", "c"),
        Row("v", 0, 10, 4, "write", "b", after=2),
    ]
    a, b, c = dense(2, 3, 3), dense(3, 2, 2, seed=1), Match(torch.tensor([1, 0, 0, 1]), (2, 2), 2)
    states = [{"w": torch.randn(4, 15).double(), "v": torch.randn(15, 2).double()} for _ in range(2)]
    merged = merge_states(states, bound(rows, a=3, b=2, c=2), {"a": a, "b": b, "c": c}, ["w", "v"])
    reads, writes = [], []
    for k in range(2):
        own = slice(2 * k, 2 * k + 2)
        fixed, last = torch.eye(2).double(), torch.eye(1).double()
        inside = [expanded(a.unmerge_of(k), 2, 1), c.unmerge[own].double(), expanded(b.unmerge_of(k), 1, 2)]
        reads.append(states[k]["w"] @ torch.block_diag(fixed, *inside, last))
        inside = [expanded(a.merge_of(k), 2, 1), c.merge[:, own].double(), expanded(b.merge_of(k), 1, 2)]
        writes.append(torch.block_diag(fixed / 2, *inside, last / 2) @ states[k]["v"])
    torch.testing.assert_close(merged["w"], sum(reads) / 2)  # its outputs are those of no space
    torch.testing.assert_close(merged["v"], sum(writes))


def test_models_of_different_widths():
    rows = [Row("w", 0, 0, 5, "write", "s"), Row("v", 1, 0, 5, "read", "s")]
    match = dense(5, 3, 5)
    states = [{"w": torch.randn(n).double(), "v": torch.randn(2, n).double()} for n in (3, 5)]
    merged = merge_states(states, bound(rows, s=5), {"s": match}, ["w", "v"])
    torch.testing.assert_close(merged["w"], match.merge[:, :3] @ states[0]["w"] + match.merge[:, 3:] @ states[1]["w"])
    expected = (states[0]["v"] @ match.unmerge[:3] + states[1]["v"] @ match.unmerge[3:]) / 2
    torch.testing.assert_close(merged["v"], expected)


def test_a_head_reads_merged_units_and_writes_its_own():
    match = dense(3, 4, 3)
    rows = [Row("w", 1, 0, 4, "read", "s"), Row("b", 0, 0, 2, "write", "other")]
    state = {"w": torch.randn(2, 3).double(), "b": torch.randn(2)}
    out = unmerge_reads(state, bound(rows, s=4), {"s": match}, ["w", "b"], 1)
    torch.testing.assert_close(out["w"], state["w"] @ match.unmerge[4:])
    assert torch.equal(out["b"], state["b"])
    few = torch.tensor([2, 0])
    alone = match.alone(1, few)
    out = unmerge_reads({"w": state["w"][:, few]}, bound([Row("w", 1, 0, 2, "read", "s")], s=2), {"s": alone}, ["w"], 0)
    torch.testing.assert_close(out["w"], state["w"][:, few] @ match.unmerge[4:][few])


def test_what_a_refit_aims_at():
    """The mean of the mapped outputs, or those of the parent of an image's task alone."""
    rows = [Row("w.weight", 0, 0, 4, "write", "s")]
    match = dense(4, 4, 4)
    outputs = [torch.randn(3, 2, 4).double() for _ in range(2)]
    task = torch.tensor([0, 1, 0])
    given = [out @ match.merge_of(k).T for k, out in enumerate(outputs)]
    target = trunk_target(bound(rows, s=4), {"s": match}, "w.weight", [4, 4], per_task=False)
    torch.testing.assert_close(target(outputs, task), given[0] + given[1], rtol=1e-5, atol=1e-6)
    target = trunk_target(bound(rows, s=4), {"s": match}, "w.weight", [4, 4], per_task=True)
    torch.testing.assert_close(
        target(outputs, task), 2 * torch.stack([given[0][0], given[1][1], given[0][2]]), rtol=1e-5, atol=1e-6
    )
