"""What fewer units keep, beside a look at samples."""

import pytest
import torch

from hf_zipit.heads.maps import logit_maps, value_maps
from hf_zipit.heads.spectrum import logit_shares, logits_kept, stream_spectrum, values_kept
from tests.heads.test_maps import UNITS, covariance, fit_error, outputs, random, second


def test_the_share_of_the_logits():
    queries, keys = second(UNITS, 0), second(UNITS, 2)
    shares = logit_shares(queries, keys).tolist()
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    for units in range(1, UNITS + 1):
        assert logits_kept(queries, keys, *logit_maps(queries, keys, units)) == pytest.approx(shares[units - 1])
    variances = torch.linalg.eigvals(queries @ keys).real  # of the logits, whose sum is the trace
    assert shares[0] == pytest.approx(float(variances.max() / variances.sum()))


def test_the_share_of_the_values_is_that_of_the_best_reader():
    x, writes = outputs()
    maps = value_maps(covariance(x), writes, 3)
    target = x @ torch.cat(writes)
    lost = fit_error(x, maps, writes) / float((target - target.mean(0)).square().mean())
    assert values_kept(covariance(x), writes, maps) == pytest.approx(1 - lost, abs=1e-6)


def test_equal_streams_fit_into_one():
    x = random(400, 5)
    twice = covariance(torch.cat([x, 100 * x], 1))
    assert stream_spectrum(twice, 2)[4] == pytest.approx(1)
    apart = covariance(torch.cat([x, random(400, 5, seed=1)], 1))
    assert 0.5 < float(stream_spectrum(apart, 2)[4]) < 0.8
