"""How much of several models fits into one: the share that fewer units keep of heads and of streams.

These are the numbers to look at before a merge of large models. Where the shares are low, keep more units (`width`), or
keep all units of every head (`heads="all-full"`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.heads.maps import best_reader, logit_spectrum


def logit_shares(queries: Tensor, keys: Tensor) -> Tensor:
    """The share of the variance of the logits of some heads that 1, 2, ... u units of each can keep, `(u,)`.

    Args:
        queries: second moments of the queries, `(..., u, u)`.
        keys: those of the keys, centred over the tokens of each image, `(..., u, u)`.

    >>> logit_shares(torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)).tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    squares = logit_spectrum(queries, keys).square().reshape(-1, queries.shape[-1]).sum(0)
    shares: Tensor = squares.cumsum(0) / squares.sum().clamp(min=1e-30)
    return shares


def logits_kept(queries: Tensor, keys: Tensor, a: Tensor, b: Tensor) -> float:
    """The share of the variance of the logits of some heads that given maps keep; below 0 if they add to the error.

    Args:
        queries: second moments of the queries, `(..., u, u)`.
        keys: those of the keys, centred over the tokens of each image, `(..., u, u)`.
        a: maps of the queries, `(..., r, u)`.
        b: maps of the keys, `(..., r, u)`.
    """
    change = a.mT @ b - torch.eye(a.shape[-1]).to(a)
    lost = ((change.mT @ queries @ change) * keys).sum()
    return 1 - float(lost / (queries * keys).sum().clamp(min=1e-30))


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
