"""Perceptual distance of images by the features of a frozen network that comes as a TorchScript file."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from edm3d.samplers.noise import Noise
from edm3d.training.slices import SliceDraw, per_image, take_slices
from edm3d.utils.checks import listed
from edm3d.utils.files import first_line

KEY, OFF = "training.loss.perceptual.path", "training.loss.perceptual_weight=0 turns the term off"


class PerceptualDistance:
    """Squared distance of feature vectors of length 1, mean over positions and layers (Zhang et al. 2018, unweighted).

    path: a TorchScript file from images [M,channels,H,W] in [-1,1] to features [M,F,h,w], one tensor or a list of them.
    Of volumes it sees a share of the slices across each of `axes` (null: all three). Where the image has other channels
    than the network, each is a grey image of its own. Nothing is read before `open`.
    """

    def __init__(self, path: str | None = None, channels: int = 3, share: float = 0.25,
                 axes: Sequence[int] | None = None):
        if channels < 1:
            raise ValueError(f"channels={channels}: wanted the number of channels that the network takes, 1 or 3")
        self.path, self.channels, self.slices = path, channels, SliceDraw(share, axes)
        self.slices.check("")
        self.network, self.device = None, torch.device("cpu")

    def open(self, size: Sequence[int]) -> None:
        """Read the network and try it on what it will see of images of a size [*S]; ValueError where it cannot be."""
        if len(size) == 1:
            raise ValueError(f"training.loss.perceptual_weight: lines have no slices; {OFF}")
        if self.path is None or not Path(self.path).is_file():
            raise ValueError(f"{KEY}={self.path}: there is no such file; wanted a TorchScript file (nothing is "
                             f"downloaded; docs/first_stages.md says how to make one); {OFF}")
        self.network = load_script(self.path)
        for shape in self.slices.shapes(size):
            self.try_on(shape)

    def try_on(self, shape: tuple[int, ...]) -> None:
        """ValueError unless the network makes features of one black image of a shape [H,W]."""
        try:
            with torch.no_grad():
                maps = self.features(torch.full((1, self.channels, *shape), -1.0))
        except (RuntimeError, TypeError) as e:
            raise ValueError(f"{KEY}={self.path}: the network does not take an image [1,{self.channels},"
                             f"{','.join(map(str, shape))}] ({first_line(e)}); set training.loss.perceptual.channels "
                             f"to its channels; {OFF}") from e
        if not maps or not all(isinstance(f, torch.Tensor) and f.ndim == 4 for f in maps):
            raise ValueError(f"{KEY}={self.path}: wanted features [M,F,h,w], or a list of them, from the network; "
                             f"{OFF}")

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps [M,F,h,w] of images [M,channels,H,W]."""
        maps = self.network(x)
        return [maps] if isinstance(maps, torch.Tensor) else list(maps)

    def __call__(self, image: torch.Tensor, target: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Distances [N] of images [N,C,*S] to targets, in float32; the gradient goes to the images."""
        if self.device != image.device:
            self.network, self.device = self.network.to(image.device), image.device
        indices = self.slices.draw(image.shape[2:], noise.for_purpose("perceptual"))
        with torch.autocast(image.device.type, enabled=False):
            planes = [self.plane_distance(a, b) for a, b in zip(
                take_slices(image.float(), indices), take_slices(target.float(), indices), strict=True)]
        return torch.stack(planes).mean(0)

    def plane_distance(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Distances [N] of slices [N,n,C,H,W]."""
        with torch.no_grad():
            wanted = self.features(self.as_seen(target))
        maps = self.features(self.as_seen(image))
        return torch.stack([per_image((unit(a) - unit(b)).square().sum(1), len(image))
                            for a, b in zip(maps, wanted, strict=True)]).mean(0)

    def as_seen(self, x: torch.Tensor) -> torch.Tensor:
        """Slices [N,n,C,H,W] as images [M,channels,H,W]."""
        if x.shape[2] == self.channels:
            return x.flatten(0, 1)
        return x.flatten(0, 2).unsqueeze(1).expand(-1, self.channels, -1, -1)


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features [M,F,h,w] with vectors of length 1; those near 0 stay there, and their gradients finite."""
    return features * (features.square().sum(1, keepdim=True) + 1e-6).rsqrt()


def load_script(path: str) -> torch.nn.Module:
    """A TorchScript file's network on the CPU, frozen; ValueError when it is none, or takes not just one input."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated is no news to a user
            network = torch.jit.load(path, map_location="cpu").eval()
            needed = [a.name for a in network.forward.schema.arguments[1:] if not a.has_default_value()]
    except (RuntimeError, ValueError, AttributeError) as e:
        raise ValueError(f"{KEY}={path}: cannot be read as TorchScript ({first_line(e)}); {OFF}") from e
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if len(needed) != 1:
        raise ValueError(f"{KEY}={path}: the network takes {len(needed)} inputs ({listed(needed)}); wanted one "
                         f"image, a network that compares two by itself is not supported; {OFF}")
    return network
