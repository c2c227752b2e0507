"""The autoencoder task: what is reconstructed of what, and when images are augmented."""

import pytest
import torch

from edm3d.inference.batch import Batch
from edm3d.networks.autoencoder import Posterior, Reconstruction
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators, Noise
from edm3d.training.phases import LossOutput
from edm3d.training.tasks.autoencoder import autoencoder_task
from tests.toy import BLANK


class Watcher(torch.nn.Module):
    """An autoencoder that keeps what it is given and gives back half of the image."""

    def forward(self, image, label, noise):
        self.given = image, label, noise
        return Reconstruction(image / 2, None, Posterior(torch.zeros(1), torch.zeros(1)), torch.zeros(1))


def loss(out: Reconstruction, image: torch.Tensor, label: torch.Tensor, kimg: float, noise: Noise
         ) -> dict[str, torch.Tensor]:
    """Distances to image and label map [N]."""
    return {"image": (image - out.image).abs().flatten(1).sum(1), "label": label.flatten(1).sum(1).float()}


def augment(batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
    """Ten times the image, a label map of twos, and augmentation labels, which are nobody's."""
    return batch._replace(images=batch.images * 10, labels=batch.labels * 2), torch.ones(len(batch.images), 1)


def take_loss(net: Watcher, augmentation=None) -> LossOutput:
    """The task's loss of two images [1,4] of ones, their label maps ones."""
    batch = Batch(torch.ones(2, 1, 4), torch.ones(2, 4, dtype=torch.uint8), Condition())
    task = autoencoder_task(net, loss, torch.optim.SGD([torch.zeros(1)]), BLANK, augmentation, batch_size=2)
    return task.phases[0].loss(net, batch, ImageGenerators([5, 6], seed=7))


@pytest.mark.parametrize(("training", "augmentation", "scale"), [
    (True, None, 1), (True, augment, 10), (False, augment, 1), (False, None, 1)])
def test_images_and_their_targets_are_augmented_together_in_training_only(training, augmentation, scale):
    net = Watcher().train(training)
    out = take_loss(net, augmentation)
    image, label, _ = net.given
    assert image.unique().tolist() == [scale] and label.unique().tolist() == [1 if scale == 1 else 2]
    assert out.parts["image"].item() == 2 * 4 * scale / 2 and out.parts["label"].item() == 2 * 4 * label.max()
    assert out.count == 2 and out.loss.item() == out.parts["image"].item() + out.parts["label"].item()


def test_latents_are_drawn_by_the_generators_of_the_images():
    net = Watcher()
    take_loss(net)
    wanted = ImageGenerators([5, 6], seed=7).for_purpose("posterior").randn((2, 2))
    assert torch.equal(net.given[2].randn((2, 2)), wanted)
