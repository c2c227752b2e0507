"""Autoregression along the axes, taken off and given back."""

import pytest
import torch

from edm3d.networks.decorrelation import correlated, decorrelated


def test_what_the_voxel_before_says_is_taken_off():
    x = torch.tensor([[[2.0, 1.0, 3.0]]])
    made = decorrelated(x, [[0.6]])  # sqrt(1 - 0.36) = 0.8
    torch.testing.assert_close(made, torch.tensor([[[2.0, (1 - 1.2) / 0.8, (3 - 0.6) / 0.8]]]))


@pytest.mark.parametrize("correlation", [[[0.6, 0.0, -0.3]], [[0.6, 0.1, 0.2], [0.0, 0.9, 0.0]]])
def test_it_is_undone_exactly(correlation):
    x = torch.randn(2, len(correlation), 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(correlated(decorrelated(x, correlation), correlation), x, rtol=0, atol=1e-12)
    assert not torch.allclose(decorrelated(x, correlation), x)


def test_white_noise_gets_the_correlation_and_keeps_its_variance():
    noise = torch.randn(1, 2, 300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = correlated(noise, [[0.5, 0.0], [-0.2, 0.7]])
    for channel, axis, wanted in ((0, 0, 0.5), (0, 1, 0.0), (1, 0, -0.2), (1, 1, 0.7)):
        values = x[0, channel]
        size = values.shape[axis] - 1
        found = (values.narrow(axis, 0, size) * values.narrow(axis, 1, size)).mean() / values.square().mean()
        assert abs(float(found) - wanted) < 0.02
    assert x.square().mean().item() == pytest.approx(1, abs=0.03)


def test_nothing_is_changed_where_nothing_correlates():
    x = torch.randn(1, 1, 4, 4)
    for correlation in ((), [[0.0, 0.0]]):
        assert decorrelated(x, correlation) is x and correlated(x, correlation) is x
