"""Rules for ops that mix units, and the table of the rules of all ops.

Rules for data movement and element-wise ops are in `moves`. The inputs of an op without a rule become fixed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_zipit.tracing import moves, picking
from hf_zipit.tracing.facts import Facts, Label, constant, varying
from hf_zipit.tracing.moves import NoRule, Op, Outputs

Rule = Callable[[Facts, Op], Outputs]


def product(facts: Facts, op: Op) -> Outputs:
    """Matrix products."""
    a, b = op.args[:2]
    return [facts.contract((a, facts.of(a)), (b, facts.of(b)))]


def affine(facts: Facts, op: Op) -> Outputs:
    """A matrix product plus a bias."""
    bias, a, b = op.args[:3]
    out = op.outputs[0]
    labels = facts.contract((a, facts.of(a)), (b, facts.of(b)))
    return [facts.pointwise([(out, labels), (bias, facts.of(bias))], out.ndim)]


def attention(facts: Facts, op: Op) -> Outputs:
    """Attention, `softmax(q k^T + mask) v`."""
    q, k, v = op.args[:3]
    masks = [t for t in op.tensors() if t is not q and t is not k and t is not v]
    keys = k.transpose(-1, -2), [x.transpose(-1, -2) for x in facts.of(k)]
    scores = q @ keys[0]  # (B, H, N, M)
    labels = facts.contract((q, facts.of(q)), keys)
    labels = facts.pointwise([(scores, labels), *((t, facts.of(t)) for t in masks)], scores.ndim)
    return [facts.contract((scores, labels), (v, facts.of(v)))] + [[] for _ in op.outputs[1:]]


def convolution(facts: Facts, op: Op) -> Outputs:
    """Convolutions contract input channels. Depthwise ones are element-wise; grouped ones keep groups together."""
    x, weight, bias = op.args[:3]
    transposed = bool(op.args[6])
    groups = int(op.args[8])
    if any(varying(label) - {0, 1} for t in (x, weight) for label in facts.of(t)) or (transposed and groups > 1):
        raise NoRule
    out = op.outputs[0]
    kernel = weight.flatten(2)[..., 0]  # (O, C / groups); one spatial position stands for all
    mine = [label.flatten(2)[..., 0] for label in facts.of(weight)]
    if transposed:
        kernel, mine = kernel.t(), [label.t() for label in mine]
    if groups == 1:
        pixels = x.flatten(2).transpose(1, 2)  # (B, P, C)
        labels = facts.contract(
            (pixels, [label.flatten(2).transpose(1, 2) for label in facts.of(x)]),
            (kernel.t(), [label.t() for label in mine]),
        )
        labels = [label.transpose(1, 2) for label in labels]  # (B, O, P)
    else:
        channels = [label.flatten(2) for label in facts.of(x)]
        labels = _grouped(facts, op, (x.flatten(2), channels), (kernel, mine), groups)
    if bias is not None:
        shape = (1, -1, 1)
        labels = facts.pointwise(
            [(out.flatten(2), labels), (bias.reshape(shape), [b.reshape(shape) for b in facts.of(bias)])], 3
        )
    return [[label.reshape(*label.shape, *[1] * (out.ndim - 3)) for label in labels]]


def _grouped(
    facts: Facts, op: Op, x: tuple[Tensor, list[Label]], weight: tuple[Tensor, list[Label]], groups: int
) -> list[Label]:
    kernel, labels = weight
    rows = [label.flatten() for label in labels if varying(label) == {0}]
    if kernel.shape[1] == 1 and len(kernel) == groups:  # depthwise
        operands = [x, (kernel[:, 0].view(1, -1, 1), [row.view(1, -1, 1) for row in rows])]
        return facts.pointwise(operands, 3)
    channels = [label.flatten() for label in x[1] if varying(label) == {1}]
    if any(0 in varying(label) for label in x[1]):
        raise NoRule
    together = facts.new(groups)[:, None]
    for units in (*rows, *channels):
        facts.member(units.view(groups, -1), together)
    if not op.grouped(op.args[1], groups, channels[0] if channels else None):
        raise NoRule
    if not channels and not constant(x[0], 1):
        facts.freeze(together)
    return [row.view(1, -1, 1) for row in rows]


def batch_norm(facts: Facts, op: Op) -> Outputs:
    """Batch norm, element-wise in the channels; as weight standardisation, symmetric in the other axes."""
    x = op.args[0]
    shape = [1, -1] + [1] * (x.ndim - 2)
    vectors = [t for t in op.args[1:5] if isinstance(t, Tensor)]
    operands = [(x, facts.of(x)), *((t.reshape(shape), [v.reshape(shape) for v in facts.of(t)]) for t in vectors)]
    return [facts.pointwise(operands, x.ndim)] + [[] for _ in op.outputs[1:]]


def layer_norm(facts: Facts, op: Op) -> Outputs:
    """Layer norm: symmetric over the normalised axes, element-wise in weight and bias."""
    x = op.args[0]
    axes = range(x.ndim - len(op.args[1]), x.ndim)
    _gather(facts, facts.of(x), axes)
    vectors = [t for t in op.args[2:4] if isinstance(t, Tensor)]
    labels = facts.pointwise([(x, facts.of(x)), *((t, facts.of(t)) for t in vectors)], x.ndim)
    return [labels] + [[] for _ in op.outputs[1:]]


def group_norm(facts: Facts, op: Op) -> Outputs:
    """Group norm: channels of a group stay together."""
    x, weight, bias = op.args[:3]
    groups = int(op.args[6])
    shape = [1, -1] + [1] * (x.ndim - 2)
    vectors = [t for t in (weight, bias) if t is not None]
    operands = [(x, facts.of(x)), *((t.reshape(shape), [v.reshape(shape) for v in facts.of(t)]) for t in vectors)]
    labels = facts.pointwise(operands, x.ndim)
    for label in labels if groups > 1 else []:
        if varying(label) != {1}:
            raise NoRule
        facts.member(label.reshape(groups, -1), facts.new(groups)[:, None])
    return [labels] + [[] for _ in op.outputs[1:]]


def spatial(facts: Facts, op: Op) -> Outputs:
    """Pooling and resizing of the last two axes; units along these become fixed."""
    x = op.args[0]
    labels = []
    for label in facts.of(x):
        if varying(label) & {x.ndim - 1, x.ndim - 2}:
            facts.freeze(label)
        else:
            labels.append(label)
    return [labels] + [[] for _ in op.outputs[1:]]


def reduction(facts: Facts, op: Op) -> Outputs:
    """Sums, means, norms: symmetric over the reduced axes."""
    x = op.args[0]
    axes = op.argument(2 if op.name == "linalg_vector_norm" else 1, "dim")
    if isinstance(axes, int) and not isinstance(axes, bool):
        axes = [axes]
    dims = [d % x.ndim for d in axes] if isinstance(axes, list | tuple) and axes else list(range(x.ndim))
    labels = [label for label in (facts.reduce(label, dims) for label in facts.of(x)) if label is not None]
    found: Outputs = []
    for out in op.outputs:
        shapes = [[n for d, n in enumerate(v.shape) if d not in dims] if out.ndim < x.ndim else v.shape for v in labels]
        found.append(facts.merge(v.reshape(shape) for v, shape in zip(labels, shapes, strict=True)))
    return found


def softmax(facts: Facts, op: Op) -> Outputs:
    """Softmax: units that share a denominator are a group."""
    _gather(facts, facts.of(op.args[0]), [op.args[1] % op.args[0].ndim])
    return moves.keep(facts, op)


def _gather(facts: Facts, labels: list[Label], axes: Sequence[int]) -> None:
    for label in labels:
        if varying(label) & set(axes):
            facts.reduce(label, axes)


def _table(*kinds: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in kinds for name in names.split()}


RULES = _table(
    (moves.keep, "clone detach alias _to_copy contiguous lift_fresh lift_fresh_copy dropout native_dropout"),
    (
        moves.move,
        "view _unsafe_view reshape permute transpose t unsqueeze squeeze expand slice select split split_with_sizes "
        "unbind roll flip index index_select repeat narrow chunk diagonal pixel_shuffle pixel_unshuffle unfold",
    ),
    (moves.pad, "constant_pad_nd"),
    (moves.strided, "as_strided"),
    (moves.cat, "cat"),
    (moves.stack, "stack"),
    (moves.copy, "copy"),
    (product, "mm bmm"),
    (affine, "addmm baddbmm"),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_flash_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    (convolution, "convolution"),
    (
        batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm",
    ),
    (layer_norm, "native_layer_norm _fused_rms_norm"),
    (group_norm, "native_group_norm"),
    (
        spatial,
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d "
        "upsample_bicubic2d upsample_nearest2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa max_pool2d "
        "reflection_pad2d replication_pad2d",
    ),
    (reduction, "mean sum amax amin var var_mean std std_mean linalg_vector_norm logsumexp"),
    (softmax, "_softmax softmax _log_softmax _safe_softmax"),
    (moves.embedding, "embedding"),
    (picking.ranking, "max min argmax argmin topk sort"),
    (picking.gather, "gather"),
    (picking.sample, "grid_sampler_2d"),
    (moves.pointwise, "hardswish hardsigmoid hardtanh gelu where masked_fill add sub mul div rsub _prelu_kernel"),
)
SILENT = {  # ops that only use the shape or type of their input
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones"),
    *("new_empty", "new_full", "new_empty_strided", "zero", "fill", "is_same_size"),
}


def rule_for(op: Op) -> Rule:
    """The rule of an op. Ops that PyTorch tags as pointwise need no entry in the table.

    Raises:
        NoRule: the op is unknown.
    """
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.function.tags:
        return moves.pointwise
    raise NoRule
