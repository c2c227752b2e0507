"""RandAugment (Cubuk et al. 2020): each image goes through a few operations out of a list, all of one magnitude.

Moves take label maps and conditions along, as AugmentPipe does; changes of intensity are of the image alone. Heights
are shares of the way from -1, black, to 1.
"""

from collections.abc import Callable, Sequence
from math import pi

import torch
from torch.nn.functional import pad

from edm3d.inference.batch import Batch
from edm3d.networks.layers import POOLS
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.augment import F64, AugmentPipe, Move, rotation
from edm3d.utils.checks import listed

LEVELS = 30  # magnitudes are 0 .. LEVELS, as in torchvision's 31 bins
ROTATE, SHEAR, TRANSLATE, SCALE = 30.0, 0.3, 0.45, 0.5  # at the largest magnitude: degrees, a slope, of the size, log2
ENHANCE, GAMMA, NOISE, BITS = 0.9, 1.0, 0.2, 4  # a share, log2 of the power, standard deviation of heights, bits lost


def brightness(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Heights times 1 + 0.9 s."""
    return h * (1 + ENHANCE * s)


def contrast(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Distances from the mean times 1 + 0.9 s."""
    return h.mean() + (1 + ENHANCE * s) * (h - h.mean())


def gamma(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Heights to the power of 2^s."""
    return h.clamp_min(0) ** 2 ** (GAMMA * s)


def sharpness(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Distances from the mean of the 3^d voxels around times 1 + 0.9 s: sharper, or, for s below 0, blurred."""
    dims = h.ndim - 1
    around = pad(h[None], [1] * (2 * dims), mode="replicate")
    smooth = POOLS[dims](around, 3, stride=1)[0]
    return smooth + (1 + ENHANCE * s) * (h - smooth)


def add_noise(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Noise of a standard deviation of 0.2 |s|."""
    return h + NOISE * abs(s) * noise


def posterize(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """8 - 4 |s| bits, in place of 8."""
    levels = 2 ** (8 - round(BITS * abs(s)))
    return (h * levels).floor().clamp_max(levels - 1) / (levels - 1)


def solarize(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Heights from 1 - |s| on upside down."""
    return torch.where(h >= 1 - abs(s), 1 - h, h)


def auto_contrast(h: torch.Tensor, s: float, noise: torch.Tensor) -> torch.Tensor:
    """Heights from the lowest to the highest of the image spread over 0 to 1, whatever the magnitude."""
    low, high = h.min(), h.max()
    return (h - low) / (high - low).clamp_min(1e-6)


INTENSITY: dict[str, Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]] = {
    "brightness": brightness, "contrast": contrast, "gamma": gamma, "sharpness": sharpness, "noise": add_noise,
    "posterize": posterize, "solarize": solarize, "auto_contrast": auto_contrast}
MOVES = ("rotate", "shear", "translate", "scale")
OPERATIONS = ("identity", *MOVES, *INTENSITY)


class RandAugment:
    """`ops` operations for each image, each drawn evenly out of `operations` (None: all), all of magnitude 0 .. 30.

    Which ones, their directions and signs are drawn for each image by its own generator; docs/augmentation.md says what
    each does. spacing gives voxels that are no cubes, per axis of the array. Values stay between -1 and the larger of 1
    and the image's highest. Lines know no rotation and no shear. ValueError for numbers out of range.
    """

    label_dim = 0  # the network is not told

    def __init__(self, spatial_dims: int, ops: int = 2, magnitude: float = 9, operations: Sequence[str] | None = None,
                 spacing: Sequence[float] | None = None, semantic_dim: int | None = None):
        if ops < 1:
            raise ValueError(f"ops={ops}: wanted 1 or more operations for each image")
        if not 0 <= magnitude <= LEVELS:
            raise ValueError(f"magnitude={magnitude}: wanted 0 .. {LEVELS}")
        chosen = OPERATIONS if operations is None else tuple(operations)
        if not chosen or (unknown := [name for name in chosen if name not in OPERATIONS]):
            raise ValueError(f"operations={listed(unknown) if chosen else '[]'}: wanted some of "
                             f"{', '.join(OPERATIONS)}")
        self.pipe = AugmentPipe(spatial_dims, spacing=spacing, semantic_dim=semantic_dim)
        self.operations = [name for name in chosen if spatial_dims > 1 or name not in ("rotate", "shear")]
        self.ops, self.strength = ops, magnitude / LEVELS

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
        """The batch after all operations, and labels of width 0."""
        dims, noise = self.pipe.spatial_dims, generators.for_purpose("rand_augment").on_host()
        which = (noise.rand((self.ops,), F64) * len(self.operations)).long().tolist()
        signs = 2 * (noise.rand((self.ops,), F64) < 0.5) - 1
        axes = noise.rand((self.ops, 2), F64)
        planes = noise.randn((self.ops, 2, dims), F64)
        for k in range(self.ops):
            names = [self.operations[row[k]] for row in which]
            strengths = (self.strength * signs[:, k]).tolist()
            move = self.move(names, strengths, axes[:, k], planes[:, k], batch.images.shape[2:])
            batch = self.changed(self.pipe.moved(move, batch), names, strengths, generators.for_purpose(f"noise {k}"))
        return batch, batch.images.new_zeros(len(batch.images), 0)

    def move(self, names: Sequence[str], strengths: Sequence[float], axes: torch.Tensor, planes: torch.Tensor,
             size: Sequence[int]) -> Move:
        """What moves the images of operations by name [N], of signed strengths [N], on a grid of a size [d].

        axes [N,2] in 0 .. 1: along which a shear or a shift is, and which axis a shear goes by. planes [N,2,d]: of
        rotations.
        """
        count, d = len(names), len(size)
        eye = torch.eye(d, dtype=F64).repeat(count, 1, 1)
        matrix, offset = eye.clone(), torch.zeros(count, d, dtype=F64)
        for i, (name, s) in enumerate(zip(names, strengths, strict=True)):
            along = int(axes[i, 0] * d)
            if name == "rotate":
                matrix[i] = rotation(torch.tensor([s * ROTATE * pi / 180], dtype=F64), planes[i:i + 1])[0]
            elif name == "shear":
                by = (along + 1 + int(axes[i, 1] * (d - 1))) % d
                matrix[i, along, by] = s * SHEAR
            elif name == "scale":
                matrix[i] *= 2 ** (s * SCALE)
            elif name == "translate":
                offset[i, along] = round(s * TRANSLATE * size[along])
        spacing = torch.tensor(self.pipe.spacing, dtype=F64)
        return Move(eye, offset, matrix * spacing / spacing[:, None], torch.zeros_like(offset))

    def changed(self, batch: Batch, names: Sequence[str], strengths: Sequence[float], generators: ImageGenerators
                ) -> Batch:
        """A batch whose images have their intensities changed by operations by name [N]."""
        rows = [i for i, name in enumerate(names) if name in INTENSITY and (strengths[i] or name == "auto_contrast")]
        if not rows:
            return batch
        images = batch.images.clone()
        noise = generators.randn_like(images) if "noise" in names else images
        for i in rows:
            highest = images[i].max().clamp_min(1)
            h = INTENSITY[names[i]]((images[i] + 1) / 2, strengths[i], noise[i])
            images[i] = (2 * h - 1).clamp_min(-1).minimum(highest)
        return batch._replace(images=images)
