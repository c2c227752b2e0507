"""Networks in windows: the same as at once where they see no neighbours, and as MONAI blends where they do."""

import pytest
import torch

from edm3d.networks.windows import windowed


def volumes(*size: int) -> torch.Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pointwise(x: torch.Tensor) -> torch.Tensor:
    """Two classes by the voxel alone."""
    return torch.cat([x, x.square()], dim=1)


@pytest.mark.parametrize("size", [(13, 9), (20, 11, 7)])
def test_a_network_that_sees_one_voxel_gives_the_same_in_windows(size):
    x = volumes(*size)
    torch.testing.assert_close(windowed(pointwise, x, (6,) * len(size)), pointwise(x), rtol=0, atol=2e-6)


def test_a_volume_as_large_as_the_window_is_seen_at_once():
    net, x = torch.nn.Conv2d(1, 3, 3, padding=1), volumes(8, 6)
    with torch.no_grad():
        assert torch.equal(windowed(net, x, (8, 6)), net(x))


def test_smaller_volumes_are_surrounded_by_an_empty_image():
    """A sum over 3 voxels sees -1 beyond the border where the volume ends before the window does."""
    seen = []

    def total(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return torch.nn.functional.conv1d(x, torch.ones(1, 1, 3), padding=1)

    out = windowed(total, torch.tensor([[[1.0, 2.0, 3.0]]]), (7,))
    assert seen == [(1, 1, 7)]
    torch.testing.assert_close(out, torch.tensor([[[-1 + 1 + 2, 6.0, 2 + 3 - 1]]]))


def test_windows_lie_inside_the_volume_and_cover_it():
    seen = []

    def count(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0, 0].clone())
        return torch.zeros_like(x)

    line = torch.arange(10.0).reshape(1, 1, 10, 1).expand(1, 1, 10, 4)
    windowed(count, line, (4, 4))
    firsts = sorted(float(window[0, 0]) for window in seen)
    assert firsts == [0, 2, 4, 6]  # half of each is the next one's


def test_one_axis_may_be_smaller_and_the_other_larger():
    x = volumes(3, 17)
    out = windowed(pointwise, x, (8, 8))
    assert out.shape == (2, 2, 3, 17)
    torch.testing.assert_close(out, pointwise(x), rtol=0, atol=2e-6)
