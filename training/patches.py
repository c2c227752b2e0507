"""Training on patches: random crops around what matters, with flips and changes of intensity, one seed per image.

Or on whole images with these flips and changes alone.
"""

from collections.abc import Callable, Sequence

import torch

from edm3d.inference.batch import Batch
from edm3d.networks.layers import per_axis
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.checks import check_least

KEY = "training.augment"


class PatchAugment:
    """Crops of images and maps alike, by MONAI's transforms; validation and encoding see whole volumes.

    size: of the patch, one number or one per axis; None: nothing is cut. A share `foreground` of the crops is centred
    on a voxel whose label is above 0, or, in data without labels, whose value in any channel is above `background`; the
    others anywhere. flip: probability per axis, one number or one per axis. intensity: probability of each of a factor
    1 +- scale on the height above -1, a power out of `gamma` of the height above the patch's lowest, an offset of +-
    shift, and noise of a standard deviation of up to `noise`; 0, and null for gamma, leaves one out.
    """

    label_dim = 0  # the network is not told

    def __init__(self, spatial_dims: int, size: int | Sequence[int] | None = 64, foreground: float = 0.5,
                 flip: float | Sequence[float] = 0.5, intensity: float = 0.15, scale: float = 0.1, shift: float = 0.1,
                 gamma: Sequence[float] | None = (0.7, 1.5), noise: float = 0.05, background: float = -0.95):
        self.size = None if size is None else per_axis(size, spatial_dims, "size")
        self.flip = [float(p) for p in (flip if isinstance(flip, Sequence) else [flip] * spatial_dims)]
        if len(self.flip) != spatial_dims:
            raise ValueError(f"flip={flip}: wanted one number or {spatial_dims}, one per axis")
        for name, value in {"foreground": foreground, "intensity": intensity, "flip": min(self.flip),
                            "flip ": max(self.flip)}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name.strip()}={value}: wanted a probability, 0 .. 1")
        check_least(0, {"scale": scale, "shift": shift, "noise": noise})
        if gamma is not None and not (len(gamma) == 2 and 0 < gamma[0] <= gamma[1]):
            raise ValueError(f"gamma={list(gamma)}: wanted two powers above 0 in order, as in [0.7,1.5], or null")
        self.background = background
        self.transform = transforms(self.size, foreground, self.flip, intensity, scale, shift, gamma, noise)

    def check(self, size: Sequence[int], key: str = KEY) -> None:
        """ValueError, with the nearest size, for a patch that is larger than volumes of a size [*S]; key: its own."""
        if self.size is not None:
            check_fits(self.size, size, f"{key}.size")

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
        """The batch of patches, and labels of width 0: an autoencoder is not told."""
        seeds = (generators.for_purpose("patches").on_host().rand((), torch.float64) * 2 ** 32).long().tolist()
        items = [self.transform.set_random_state(seed)(self.item(batch, i)) for i, seed in enumerate(seeds)]
        items = items if self.size is None else [crops[0] for crops in items]
        images = torch.stack([item["image"].as_subclass(torch.Tensor) for item in items]) - 1
        labels, semantic = (torch.stack([item[key].as_subclass(torch.Tensor)[0] for item in items])
                            if key in items[0] else None for key in ("label", "semantic"))
        return Batch(images, labels, batch.condition.replace(semantic=semantic)), images.new_zeros(len(images), 0)

    def item(self, batch: Batch, i: int) -> dict[str, torch.Tensor]:
        """One image [C,*S], 0 at the lowest, the maps [1,*S] that there are, and where crops may have centres."""
        image, maps = batch.images[i], {"label": batch.labels, "semantic": batch.condition.semantic}
        maps = {key: map_[i][None] for key, map_ in maps.items() if map_ is not None}
        if self.size is None:
            return {"image": image + 1, **maps}
        foreground = maps["label"] > 0 if "label" in maps else (image > self.background).any(0)
        anywhere = torch.arange(foreground.numel())
        chosen = anywhere[foreground.flatten().cpu()]
        chosen = chosen if len(chosen) else anywhere
        return {"image": image + 1, **maps, "foreground": chosen, "anywhere": anywhere}


def check_fits(patch: Sequence[int], size: Sequence[int], key: str) -> None:
    """ValueError, with the key and the nearest size, for a patch that is larger than volumes of a size [*S]."""
    if any(part > whole for part, whole in zip(patch, size, strict=True)):
        nearest = [min(part, whole) for part, whole in zip(patch, size, strict=True)]
        raise ValueError(f"{key}={list(patch)}: larger than the volumes, which are {list(size)}; the nearest that fits "
                         f"is {nearest}")


def transforms(size: Sequence[int] | None, foreground: float, flip: Sequence[float], intensity: float, scale: float,
               shift: float, gamma: Sequence[float] | None, noise: float) -> Callable:
    """MONAI's transforms of dictionaries with `image`, maps and the flat indices `foreground` and `anywhere`.

    size None: of whole images, for which no indices are needed.
    """
    from monai.transforms import (  # here, since importing MONAI takes seconds
        Compose,
        RandAdjustContrastd,
        RandCropByPosNegLabeld,
        RandFlipd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )
    both = {"keys": ["image", "label", "semantic"], "allow_missing_keys": True}
    parts = [] if size is None else [
        RandCropByPosNegLabeld(label_key="image", spatial_size=size, pos=foreground, neg=1 - foreground,
                               fg_indices_key="foreground", bg_indices_key="anywhere", **both)]
    parts += [RandFlipd(prob=p, spatial_axis=axis, **both) for axis, p in enumerate(flip) if p]
    if intensity:
        parts += [RandScaleIntensityd("image", scale, prob=intensity)] if scale else []
        parts += [RandAdjustContrastd("image", prob=intensity, gamma=tuple(gamma))] if gamma is not None else []
        parts += [RandShiftIntensityd("image", shift, prob=intensity)] if shift else []
        parts += [RandGaussianNoised("image", prob=intensity, std=noise)] if noise else []
    return Compose(parts)
