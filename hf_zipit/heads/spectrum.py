"""How much of several models fits into one: the share that fewer units keep of heads and of streams.

These are the numbers to look at before a merge of large models. Where the shares are low, keep more units (`width`), or
keep all units of every head (`heads="all-full"`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.heads.maps import best_reader, logit_spectrum


def logits_kept(queries: Tensor, keys: Tensor, units: int) -> float:
    """The share of the variance of the logits of some heads that r units of each can give, 0 to 1.

    Args:
        queries: second moments of the queries, `(..., u, u)`.
        keys: those of the keys, centred over the tokens of each image, `(..., u, u)`.
        units: r.

    >>> logits_kept(torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), 3)
    0.75
    """
    squares = logit_spectrum(queries, keys).square()
    return float(squares[..., :units].sum() / squares.sum().clamp(min=1e-30))


def values_kept(moment: Tensor, written: Sequence[Tensor], maps: Tensor) -> float:
    """The share of what some heads write together that the best reader gets from their mapped outputs, 0 to 1.

    Args:
        moment: centred second moment of the outputs of all heads side by side, `(n * u, n * u)`.
        written: for each head, how it writes, `(u, d)`.
        maps: of every head, `(n, r, u)`.
    """
    joint = torch.cat(list(written)).to(moment)
    back, cross = best_reader(moment, written, maps)
    return float((back * cross).sum() / (joint * (moment @ joint)).sum().clamp(min=1e-30))


def stream_spectrum(covariance: Tensor, models: int) -> Tensor:
    """The share of the variance of the streams of all models that their first directions hold, `(N * d,)`.

    Entry `d - 1` is what a stream of one model's width can carry of the streams of all models. Every model counts the
    same.

    Args:
        covariance: of the units of all models' streams side by side, `(N * d, N * d)`.
        models: N.
    """
    size = len(covariance) // models
    power = covariance.diagonal().reshape(models, size).sum(1).clamp(min=1e-30).rsqrt().repeat_interleave(size)
    values = torch.linalg.eigvalsh(covariance * power * power[:, None]).flip(0).clamp(min=0)
    shares: Tensor = values.cumsum(0) / values.sum()
    return shares
