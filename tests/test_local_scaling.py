"""Scales that go by the values of another image and by label classes."""

import pytest
import torch

from edm3d.networks.local_scaling import LEAST_STD, LocalScaling, grouped, interpolated


def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Voxels [1,8] of which half lie where the other image is 0, with -1 and 1, half where it is 1, with 3 and 7."""
    image = torch.tensor([[-1.0, 1, -1, 1, 3, 7, 3, 7]])
    other = torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]])
    return image, other, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])


def test_means_and_deviations_go_by_the_value_of_the_other_image():
    image, other, _ = pair()
    made = LocalScaling.measured(image, other, None, 0, 2, 0.5)
    assert made == ([[[0.0, 1.0]]], [[[0.0, 5.0]]], [[[0.5, 0.25]]])
    at = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0]).reshape(1, 1, 5)
    mean, gain = made.at(at, None)
    assert mean.flatten().tolist() == [0, 2.5, 5, 5, 0] and gain.flatten().tolist() == [0.5, 0.375, 0.25, 0.25, 0.5]
    x = made.scaled(image[None], other[None], None)
    assert x.flatten().tolist() == [-0.5, 0.5, -0.5, 0.5] * 2
    torch.testing.assert_close(made.restored(x, other[None], None), image[None])


def test_classes_have_tables_of_their_own_and_one_without_voxels_that_of_all():
    image, other, _ = pair()
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    made = LocalScaling.measured(image, other, labels, 3, 1, 0.5)
    assert [of_class[0][0] for of_class in made.mean] == [0.0, 2.5, 5.0]
    assert made.gain[0][0][0] == 0.5 and made.gain[2][0][0] == 0.25
    mean, _ = made.at(torch.zeros(1, 1, 3), torch.tensor([[0, 1, 2]]))
    assert mean.flatten().tolist() == [0.0, 2.5, 5.0]


def test_tables_of_classes_want_a_label_map():
    image, other, labels = pair()
    made = LocalScaling.measured(image, other, labels, 2, 1, 0.5)
    with pytest.raises(ValueError, match="scaled by 2 label classes, and there is no label map"):
        made.at(other[None], None)


def test_channels_are_scaled_apart():
    image, other, _ = pair()
    made = LocalScaling.measured(torch.cat([image, 10 * image]), torch.cat([other, other]), None, 0, 1, 0.5)
    assert made.gain[0][0][0] == pytest.approx(10 * made.gain[0][1][0])


def test_what_hardly_varies_is_not_blown_up():
    image, other = torch.tensor([[0.0, 0, 0, 0, -2, 2, -2, 2]]), pair()[1]
    made = LocalScaling.measured(image, other, None, 0, 2, 0.5)
    assert made.gain[0][0][0] == pytest.approx(0.5 / (LEAST_STD * float(image.double().std())))


def test_an_image_without_anything_to_draw_is_refused():
    with pytest.raises(ValueError, match="the same in all voxels"):
        LocalScaling.measured(torch.ones(1, 8), pair()[1], None, 0, 2, 0.5)


def test_groups_are_as_large_as_equal_values_allow():
    parts = grouped(torch.tensor([3.0, 0, 0, 0, 0, 1, 2, 0]), 4)
    assert [len(part) for part in parts] == [6, 2]
    assert sorted(i for part in parts for i in part.tolist()) == list(range(8))
    assert [len(part) for part in grouped(torch.arange(8.0), 4)] == [2, 2, 2, 2]


def test_lines_between_knots():
    found = interpolated(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), [1.0, 3.0], [10.0, 20.0], [0.0, -4.0])
    assert [each.tolist() for each in found] == [[10, 10, 15, 20, 20], [0, 0, -2, -4, -4]]
    assert interpolated(torch.tensor([2.0, 5.0]), [1.0], [7.0])[0].tolist() == [7, 7]


def test_knots_that_are_one_number_in_single_precision_give_no_nan():
    assert interpolated(torch.tensor([1.0]), [1.0, 1.0 + 1e-12], [10.0, 20.0])[0].isfinite().all()
