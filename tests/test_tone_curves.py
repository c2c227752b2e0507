"""Random curves of intensity: what curves do, known by hand, and that images draw their own."""

import pytest
import torch

from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.tone_curves import ToneCurves, curve


def phantoms(count: int, levels: int = 4) -> Batch:
    """Images whose values are the whole numbers up to `levels`, the largest of which is 1."""
    numbers = torch.randint(0, levels + 1, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return Batch(2 * numbers / levels - 1, None, Condition())


def test_curve_is_linear_between_its_values():
    heights = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.125, 0.5, 0.9, 1.0]])
    nodes = torch.tensor([[0.0, 0.8, 0.4], [0.0, 0.2, 1.0]])
    wanted = torch.tensor([[0.0, 0.4, 0.8, 0.6, 0.4], [0.0, 0.05, 0.2, 0.84, 1.0]])
    torch.testing.assert_close(curve(heights, nodes), wanted)


def test_images_beside_condition_images_are_refused():
    batch = phantoms(2)
    with pytest.raises(ValueError, match="choose augment=mild"):
        ToneCurves(2)(batch._replace(condition=Condition(images=batch.images)), ImageGenerators(range(2)))


def test_each_activity_is_drawn_anew_and_empty_stays_empty():
    batch = phantoms(200)
    images, labels = ToneCurves(2, levels=4)(batch, ImageGenerators(range(200)))
    assert labels.shape == (200, 0)
    found, old = images.images[:, 0], batch.images[:, 0]
    assert (found[old == -1] == -1).all()
    for image, was in zip(found, old):
        assert all(image[was == value].unique().numel() == 1 for value in was.unique())
    heights = torch.stack([(image[was == 1][0] + 1) / 2 for image, was in zip(found, old)])
    assert 0.25 <= heights.min() < 0.28 and 0.97 < heights.max() <= 1
    assert heights.mean() == pytest.approx(0.625, abs=0.04)
    assert heights.std() == pytest.approx(0.75 / 12 ** 0.5, abs=0.02)


def test_share_of_images_is_changed_by_their_own_numbers():
    batch = phantoms(400)
    kept = ToneCurves(2, p=0)(batch, ImageGenerators(range(400)))[0]
    assert torch.equal(kept.images, batch.images)
    some = ToneCurves(2, p=0.25)(batch, ImageGenerators(range(400)))[0].images
    changed = (some != batch.images).flatten(1).any(1)
    assert 70 <= int(changed.sum()) <= 130
    alone = ToneCurves(2, p=0.25)(Batch(batch.images[7:8], None, Condition()), ImageGenerators([7]))[0].images
    assert torch.equal(alone[0], some[7])


@pytest.mark.parametrize("wrong", [{"p": 1.5}, {"p": -0.1}, {"levels": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ToneCurves(2, **wrong)
