"""The adversary of a first stage: a discriminator of images and reconstructions, with its optimiser and criterion."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from edm3d.samplers.noise import Noise
from edm3d.training.schedule import scheduled
from edm3d.training.slices import SliceDraw, take_slices
from edm3d.utils.checks import check_choice, check_least, check_positive
from edm3d.utils.files import first_line

KEY = "training.discriminator"


class Adversary:
    """A patch discriminator (Isola et al. 2017) and how it is used.

    network: images [M,C,*S] -> scores [M,1,*s], or a list that ends with them, as MONAI's PatchDiscriminator gives.
    optimizer(parameters) makes its optimiser. It learns from start_kimg on; the reconstruction's term begins there and
    reaches its weight after warmup_kimg more. With per_slice the network is 2D and sees a share of the slices across
    slice_axes (null: all three), drawn anew for every image. ValueError for a BatchNorm.
    """

    def __init__(self, network: torch.nn.Module, optimizer: Callable[..., torch.optim.Optimizer],
                 criterion: str = "least_squares", weight: float = 0.01, start_kimg: float = 0,
                 warmup_kimg: float = 0, per_slice: bool = False, slice_share: float = 0.25,
                 slice_axes: Sequence[int] | None = None):
        check_choice("criterion", criterion, CRITERIA)
        check_positive({"weight": weight})
        check_least(0, {"start_kimg": start_kimg, "warmup_kimg": warmup_kimg})
        for name, layer in network.named_modules():
            if isinstance(layer, _BatchNorm):
                raise ValueError(f"network.{name} is a {type(layer).__name__}: it mixes the images of a batch, and its "
                                 "statistics differ from rank to rank; choose network.norm=INSTANCE or GROUP")
        self.network, self.optimizer, self.criterion = network, optimizer(network.parameters()), CRITERIA[criterion]
        self.weight, self.start_kimg, self.warmup_kimg = weight, start_kimg, warmup_kimg
        self.slices = SliceDraw(slice_share, slice_axes) if per_slice else None
        if self.slices:
            self.slices.check("slice_")

    @torch.no_grad()
    def check(self, shape: Sequence[int]) -> None:
        """ValueError unless images [C,*S] are large enough for the network."""
        if self.slices and len(shape) == 2:
            raise ValueError(f"{KEY}.per_slice=true: lines have no slices; set it to false")
        weights = {name: value.to("meta")  # shapes alone; a plan's network has no more
                   for name, value in (*self.network.named_parameters(), *self.network.named_buffers())}
        for size in map(list, self.slices.shapes(shape[1:]) if self.slices else [shape[1:]]):
            try:
                scores = last(functional_call(self.network, weights, torch.empty(1, shape[0], *size, device="meta")))
            except (RuntimeError, ValueError) as e:
                raise ValueError(f"{KEY}.network: images of size {size} do not go through it ({first_line(e)}); they "
                                 f"may be too small: lower {KEY}.network.num_layers_d") from e
            if 0 in scores.shape:
                raise ValueError(f"{KEY}.network: nothing is left of images of size {size}; lower "
                                 f"{KEY}.network.num_layers_d")

    def is_on(self, nimg: float) -> bool:
        """Whether the discriminator learns in the step that starts at nimg images."""
        return nimg >= self.start_kimg * 1000

    def weight_at(self, nimg: float) -> float:
        """Weight of the reconstruction's term in the step that starts at nimg images."""
        if not self.is_on(nimg):
            return 0
        ramp = [[self.start_kimg, 0], [self.start_kimg + self.warmup_kimg, 1]]
        return self.weight * (scheduled(ramp, nimg / 1000) if self.warmup_kimg else 1)

    def reconstruction_loss(self, image: torch.Tensor, noise: Noise) -> torch.Tensor:
        """How much reconstructions [N,C,*S] look like such, [N]; no gradient goes to the discriminator's weights."""
        with frozen(self.network):
            return self.judge(self.scores(self.network, image, noise), True, for_discriminator=False)

    def discriminator_loss(self, module: torch.nn.Module, real: torch.Tensor, fake: torch.Tensor, noise: Noise
                           ) -> dict[str, torch.Tensor]:
        """What the discriminator is to lower, [N] for images and for their reconstructions, each with weight 1/2."""
        return {"real": self.judge(self.scores(module, real, noise), True) / 2,
                "fake": self.judge(self.scores(module, fake.detach(), noise), False) / 2}

    def judge(self, scores: list[torch.Tensor], real: bool, for_discriminator: bool = True) -> torch.Tensor:
        """Means [N] of the criterion over the scores of an image, each axis alike."""
        return torch.stack([self.criterion(s, real, for_discriminator).mean(1) for s in scores]).mean(0)

    def scores(self, module: torch.nn.Module, image: torch.Tensor, noise: Noise) -> list[torch.Tensor]:
        """Scores [N,s] of images [N,C,*S], float32, for each axis that is sliced across, or for whole images."""
        if self.slices is None:
            return [last(module(image)).float().flatten(1)]
        indices = self.slices.draw(image.shape[2:], noise.for_purpose("discriminator"))
        return [last(module(x.flatten(0, 1))).float().reshape(len(image), -1) for x in take_slices(image, indices)]


def hinge(scores: torch.Tensor, real: bool, for_discriminator: bool) -> torch.Tensor:
    """Hinge (Lim and Ye 2017). MONAI's sends scores through a tanh, which no margin is left of."""
    if not for_discriminator:
        return -scores
    return (1 - scores if real else 1 + scores).relu()


def least_squares(scores: torch.Tensor, real: bool, for_discriminator: bool) -> torch.Tensor:
    """Squared distance from 1 for what is real, or is to look so, and from 0 (Mao et al. 2017)."""
    return (scores - float(real)).square()


CRITERIA = {"hinge": hinge, "least_squares": least_squares}


@contextmanager
def frozen(network: torch.nn.Module) -> Iterator[None]:
    """Leave a network's weights out of what is recorded for gradients."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def last(out: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """The scores, which MONAI's discriminators give behind the features that lead to them."""
    return out if isinstance(out, torch.Tensor) else out[-1]
