"""The autoencoder with a gamma posterior, for images of a sector: latents are above 0 inside and 0 outside."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import softplus

from edm3d.networks.autoencoder import BACKGROUND, Autoencoder, Reconstruction, full, within
from edm3d.networks.layers import up
from edm3d.networks.posteriors import DIRECTIONS, PRIOR_ALPHA, PRIOR_BETA, Draws, GammaPosterior
from edm3d.utils.checks import check_choice, check_least, check_positive

MARGIN = 1e-3  # above the background; a grey value of 8 bits is 8 times as much


class AutoencoderGamma(Autoencoder):
    """Variational autoencoder with gamma posterior and prior, whose arguments but the last five are the trunk's.

    The prior has shape prior_alpha and rate prior_beta. kl_direction: "posterior" is KL(posterior || prior), "prior"
    the reverse. With `mask`, latents are 0 where a whole cell of the image is background, and decoded images are
    background where no latent is above sector_threshold; a share of 1.6e-4 of the prior is below 0.02. Of images whose
    semantic map leaves out some cells, which `masked` takes, the map says so in their place.
    """

    posterior, moments = "gamma", 2

    def __init__(self, in_channels: int, num_classes: int = 0, latent_channels: int = 1, spatial_dims: int = 3,
                 channels: Sequence[int] = (32, 64, 128), strides: int | Sequence = 2, kernel_size: int | Sequence = 3,
                 num_blocks: int = 2, num_blocks_decoder: int = 2, bottleneck_attention: bool = False,
                 attention_levels: Sequence[int] = (), layout: str = "compact", label_input: str = "onehot",
                 masked: bool = False, prior_alpha: float = PRIOR_ALPHA, prior_beta: float = PRIOR_BETA,
                 kl_direction: str = "posterior", mask: bool = True, sector_threshold: float = 0.02):
        super().__init__(in_channels, num_classes, latent_channels, spatial_dims, channels, strides, kernel_size,
                         num_blocks, num_blocks_decoder, bottleneck_attention, attention_levels, layout, label_input,
                         masked)
        check_positive({"prior_alpha": prior_alpha, "prior_beta": prior_beta})
        check_choice("kl_direction", kl_direction, DIRECTIONS)
        check_least(0, {"sector_threshold": sector_threshold})
        self.prior_alpha, self.prior_beta, self.kl_direction = prior_alpha, prior_beta, kl_direction
        self.mask, self.sector_threshold = mask, sector_threshold
        nn.init.ones_(self.encoder[-1].bias)  # next to the prior

    def read(self, h: torch.Tensor, image: torch.Tensor, cells: torch.Tensor | None = None) -> GammaPosterior:
        """Shape and rate, as multiples of the prior's, in the cells of the image's sector."""
        alpha, beta = softplus(full(h), beta=10).clamp_min(1e-7).chunk(2, dim=1)
        own = self.sector(image) if self.mask else torch.ones_like(alpha[:, :1], dtype=torch.bool)
        inside = of_maps(cells, own)
        return GammaPosterior(alpha * self.prior_alpha, beta * self.prior_beta, inside,
                              self.prior_alpha, self.prior_beta, self.kl_direction)

    def sector(self, image: torch.Tensor) -> torch.Tensor:
        """Cells [N,1,*s] of images [N,C,*S] in which there is anything above the background."""
        return self.cells((image > BACKGROUND + MARGIN).any(1, keepdim=True))

    def visible(self, z: torch.Tensor) -> torch.Tensor:
        """Cells [N,1,*s] of latents [N,z,*s] that are not background."""
        return (z > self.sector_threshold).any(1, keepdim=True)

    def prepare(self, z: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Latents with exact zeros in the background."""
        return within(z, of_maps(cells, self.visible(z)) if self.mask else cells)

    def split(self, out: torch.Tensor, z: torch.Tensor, inside: torch.Tensor | None = None
              ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image [N,C,*S], background where latents z [N,z,*s] are, and logits [N,K,*S] (None without labels)."""
        return self.covered(out, of_maps(self.cells(inside), self.visible(z)), inside)

    def covered(self, out: torch.Tensor, cells: torch.Tensor, inside: torch.Tensor | None
                ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image and logits in what the decoder gave, the image background but for cells [N,1,*s] and voxels inside."""
        image, logits = super().split(out, None, inside)
        if self.mask:
            image = torch.where(up(cells.to(image.dtype), self.factor) > 0, image, BACKGROUND)
        return image, logits

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None, noise: Draws | None = None,
                semantic: torch.Tensor | None = None) -> Reconstruction:
        """Encode, draw latents (the mean without noise), decode within the image's own sector, or its map's."""
        posterior = self.encode(image, label, semantic)
        z = posterior.sample(noise)
        parts = self.covered(self.decoder(z), posterior.inside, self.inside(semantic))
        return Reconstruction(*parts, posterior, z)


def of_maps(cells: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
    """Cells [N,1,*s] of maps, and an image's own where its map, or that of all, leaves none out."""
    if cells is None:
        return own
    whole = cells.flatten(1).all(1).reshape(-1, *[1] * (cells.ndim - 1))
    return torch.where(whole, own, cells)
