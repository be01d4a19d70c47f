import numpy as np
import pytest
import torch

from hf_zipit.matching.similarity import correlation, reference_correlation
from hf_zipit.statistics import moments as moments_module
from hf_zipit.statistics.moments import Moments, ReferenceMoments, add_gram, moment_bytes


def filled(samples, parts):
    moments = Moments.empty(samples.shape[1])
    for part in samples.split(parts):
        moments.update(part)
    return moments


@pytest.mark.parametrize("n", [5, 300, 700])
def test_moments_equal_numpy(n):
    samples = torch.randn(257, n, dtype=torch.float64).cumsum(1)
    moments = filled(samples, 50)
    assert moments.count == 257
    np.testing.assert_allclose(moments.covariance, np.cov(samples.T, bias=True), rtol=1e-10, atol=1e-10)


def test_variance_survives_a_huge_mean():
    samples = torch.randn(1000, 3, dtype=torch.float64) * 1e-3 + 1e6
    expected = np.cov((samples - 1e6).T, bias=True)
    np.testing.assert_allclose(filled(samples, 7).covariance, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n", [5, 600, moments_module.WIDE + 1])
def test_products_in_single_precision_are_as_good_as_the_samples(n):
    """Units of any scale and mean, in float32, beside the covariance of the same samples in float64."""
    draw = torch.Generator().manual_seed(0)
    causes = torch.randn(400, n, generator=draw)
    samples = (causes + causes[:, :1]) * 10.0 ** torch.linspace(-6, 6, n)
    samples += 100 * samples.std(0) * torch.linspace(-1, 1, n)
    found = filled(samples, 150)
    exact = samples.double() - samples.double().mean(0)
    covariance = exact.T @ exact / len(exact)
    deviation = covariance.diagonal().sqrt()
    error = (found.covariance.double() - covariance) / deviation / deviation[:, None]
    assert error.abs().max() < 1e-5
    assert torch.allclose(found.variance.double(), covariance.diagonal(), rtol=1e-5, atol=0)
    assert torch.allclose(correlation(found).double(), covariance / deviation / deviation[:, None], atol=1e-5)


def test_a_wide_space_is_held_in_half_of_its_matrix():
    narrow, wide = (Moments.empty(n).upper.nbytes / n**2 for n in (512 * 8, 512 * 12))
    assert narrow < 0.6 * 8
    assert wide < 0.6 * 4
    assert moment_bytes(700) == Moments.empty(700).upper.nbytes


def test_the_gram_of_samples():
    x = torch.randn(40, 1100, dtype=torch.float64)
    out = torch.ones(1100, 1100, dtype=torch.float64)
    add_gram(out, x)
    torch.testing.assert_close(out, x.T @ x + 1)


def test_batches_of_any_size_give_the_same():
    samples = torch.randn(100, 4, dtype=torch.float64)
    whole, parts = filled(samples, 100), filled(samples, 7)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [96, 700])
def test_covariance_and_correlation_are_symmetric_to_the_last_bit(n):
    samples = torch.randn(23, n) * torch.rand(n).exp() + 3  # what rounds to one side decides ties in a matching
    moments = filled(samples, 10)
    for matrix in (moments.scatter, moments.covariance, correlation(moments)):
        assert torch.equal(matrix, matrix.T)


def test_dead_units_are_like_nothing():
    samples = torch.randn(50, 4)
    samples[:, 1] = 0.1  # constant, not representable exactly
    samples[:, 2] = samples[:, 0] * -3
    similarity = correlation(filled(samples, 8))
    assert similarity[1].abs().max() == 0
    assert similarity[0, 2] == pytest.approx(-1)
    assert similarity.isfinite().all()


def test_reference_moments_follow_their_formula():
    batches = [torch.randn(4, 9, 3), torch.randn(2, 9, 3)]
    moments = ReferenceMoments.empty(3)
    for batch in batches:
        moments.update(batch)
    flat = torch.cat([b.flatten(0, 1) for b in batches])
    np.testing.assert_allclose(moments.covariance, np.cov(flat.T, bias=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reference_correlation(moments), np.corrcoef(flat.T), rtol=1e-4, atol=1e-4)
