"""A segmenter of echo phantoms, small enough to train within a benchmark: which organ it sees in every voxel."""

import numpy as np
import torch
from monai.networks.nets import UNet
from torch.nn.functional import cross_entropy

from edm3d.metrics.overlap import dice
from edm3d.physics.phantoms import LABEL_CLASSES, Phantom, echo_phantom

CLASSES = len(LABEL_CLASSES)


def phantoms(num: int, seed: int, size: int = 32) -> list[Phantom]:
    """The first `num` 3D phantoms of a seed."""
    return [echo_phantom(index, seed=seed, size=size) for index in range(num)]


def images_of(items: list[Phantom], speckle: np.ndarray | float = 1) -> np.ndarray:
    """Images [N,1,*S] in [0,1], with so much of their speckle, [N] from 0 to 1."""
    share = np.reshape(np.broadcast_to(speckle, len(items)), (-1, 1, 1, 1)).astype(np.float32)
    clean = np.stack([item.clean for item in items])
    return (clean + share * (np.stack([item.image for item in items]) - clean))[:, None]


def labels_of(items: list[Phantom]) -> np.ndarray:
    """Label maps [N,*S] uint8."""
    return np.stack([item.label for item in items])


class Segmenter:
    """MONAI's UNet with residual units, trained by cross-entropy on real images and their label maps alone.

    Every second image has less speckle than it came with, as first stages give it back.
    """

    def __init__(self, items: list[Phantom], seed: int, steps: int = 500, batch_size: int = 8, lr: float = 3e-3):
        torch.manual_seed(seed)
        self.net = UNet(3, 1, CLASSES, channels=(16, 32, 64), strides=(2, 2), num_res_units=1)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            drawn = [items[row] for row in rng.integers(0, len(items), batch_size)]
            speckle = np.where(rng.random(batch_size) < 0.5, 1, rng.random(batch_size))
            loss = cross_entropy(self.net(seen(images_of(drawn, speckle))), torch.from_numpy(labels_of(drawn)).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.net.eval()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Label maps [N,*S] of images [N,1,*S] in [0,1]."""
        return np.concatenate([self.net(seen(part)).argmax(1).numpy() for part in np.array_split(images, 8)])


def seen(images: np.ndarray) -> torch.Tensor:
    """Images as the network takes them, in [-1,1]."""
    return torch.from_numpy(np.asarray(images, np.float32)) * 2 - 1


def organ_dice(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean Dice over pairs of label maps [N,*S] of each organ, and of all in the mean."""
    means = np.nanmean([dice(a, b, CLASSES)[1:] for a, b in zip(found, wanted, strict=True)], axis=0)
    return {name: round(float(value), 4) for name, value in (*zip(LABEL_CLASSES[1:], means), ("mean", means.mean()))}


def dice_of_others(found: np.ndarray, wanted: np.ndarray, shifts: int = 8) -> float:
    """The mean of `organ_dice` against maps that were asked of other images."""
    return float(np.mean([organ_dice(found, np.roll(wanted, shift, 0))["mean"] for shift in range(1, shifts + 1)]))
