"""The gathers and segment sums against dense merge and unmerge matrices."""

import pytest
import torch

from hf_zipit.specs.spaces import Row
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states, unmerge_reads
from tests.helpers.oracles import bound, random_match


@pytest.mark.parametrize("width", [4, 6, 9])
def test_a_layer_is_m_w_u_summed_over_the_models(width):
    rows = [Row("w", 0, 0, 6, "write", "s"), Row("w", 1, 0, 5, "read", "p"), Row("b", 0, 0, 6, "write", "s")]
    matches = {"s": random_match(6, 3, width, 0), "p": random_match(5, 3, 4, 1)}
    states = [{"w": torch.randn(6, 5, 3, 3), "b": torch.randn(6), "n": torch.tensor(7)} for _ in range(3)]
    merged = merge_states(states, bound(rows, s=6, p=5), matches, ["w", "b", "n"])
    m, u = matches["s"].merge.split(6, 1), matches["p"].unmerge.split(5)
    expected = sum(torch.einsum("ai,ijxy,jb->abxy", m[k], states[k]["w"], u[k]) for k in range(3))
    torch.testing.assert_close(merged["w"], expected)
    torch.testing.assert_close(merged["b"], sum(m[k] @ states[k]["b"] for k in range(3)))
    assert merged["n"] == 7


def test_slices_tiles_and_fixed_parts_keep_their_places():
    """An axis of [fixed 2 | two tiles of a | b repeated twice inside | fixed 1]."""
    rows = [
        Row("w", 1, 2, 6, "read", "a", before=2),
        Row("w", 1, 8, 4, "read", "b", after=2),
    ]
    matches = {"a": Match(torch.tensor([1, 0, 0]), (3,), 2), "b": Match(torch.tensor([1, 0]), (2,), 2)}
    w = torch.arange(13.0)[None]
    merged = merge_states([{"w": w}], bound(rows, a=3, b=2), matches, ["w"])["w"]
    assert merged.tolist() == [[0, 1, 3 + 4, 2, 6 + 7, 5, 10, 11, 8, 9, 12]]


def test_a_grouped_convolution_equals_its_dense_form():
    """Groups move whole: the input index of a row stays inside the row's group."""
    groups, inner = 3, 2
    order, places = torch.tensor([1, 2, 0]), torch.tensor([[0, 1], [1, 0], [1, 0]])
    labels = (order[:, None] * inner + places).flatten()
    match = Match(labels, (6,), 6)
    rows = [Row("w", 0, 0, 6, "write", "s"), Row("w", 1, 0, 2, "read", "s", local=True)]
    w = torch.randn(6, 2, 3, 3)
    merged = merge_states([{"w": w}], bound(rows, s=6), {"s": match}, ["w"])["w"]
    x = torch.randn(1, 6, 8, 8)
    moved = torch.empty_like(x)
    moved[:, labels] = x
    expected = torch.nn.functional.conv2d(x, w, groups=groups)
    out = torch.nn.functional.conv2d(moved, merged, groups=groups)
    torch.testing.assert_close(out[:, labels], expected)


def test_dropped_units_contribute_nothing():
    match = Match(torch.tensor([0, -1, 0, 1]), (2, 2), 2)
    rows = [Row("w", 0, 0, 2, "write", "s"), Row("v", 1, 0, 2, "read", "s")]
    states = [{"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([[1.0, 2.0]])} for _ in range(2)]
    merged = merge_states(states, bound(rows, s=2), {"s": match}, ["w", "v"])
    assert merged["w"].tolist() == [1, 2]
    assert merged["v"].tolist() == [[1, 1]]  # the mean of the two models' own (unmatched) output axis


def test_a_head_reads_merged_units_and_writes_its_own():
    match = Match(torch.tensor([1, 0, 0, 1, 2, 2]), (3, 3), 3)
    rows = [Row("w", 1, 0, 3, "read", "s"), Row("b", 0, 0, 2, "write", "other")]
    state = {"w": torch.randn(2, 3), "b": torch.randn(2)}
    out = unmerge_reads(state, bound(rows, s=3), {"s": match}, ["w", "b"], 1)
    torch.testing.assert_close(out["w"], state["w"] @ match.unmerge[3:])
    assert torch.equal(out["b"], state["b"])
    assert out["b"] is not state["b"]
