"""The vector-quantised autoencoder: latents stand for the nearest of a set of learnt codes."""

from collections.abc import Sequence

import torch
from torch import nn

from edm3d.networks.autoencoder import Autoencoder, Codes, Reconstruction, full, within
from edm3d.networks.layers import conv
from edm3d.networks.posteriors import Draws, PointPosterior
from edm3d.utils.checks import check_choice, check_count

CHUNK = 2 ** 24  # distances held at a time
GRACE = 1.3  # use that a code starts again with, over the least: some 25 steps of none at decay 0.99


class AutoencoderVQ(Autoencoder):
    """Autoencoder with a codebook (van den Oord et al. 2017), whose arguments but the last seven are the trunk's.

    Vectors of code_dim numbers (None: latent_channels) go to the nearest of codebook_size codes. latent: what diffusion
    sees, "before" the encoder's output, which decode quantises, or "after" the quantised one, which decode takes as it
    is; pointwise convolutions lie between the two where latent_channels is not code_dim. codebook: "ema" learns by
    running means of the vectors that chose a code, with `decay` per step, "loss" by gradients of a loss term. Codes
    used less than restart_below times the mean start again, at vectors of the step (0: never).
    """

    posterior, moments = "point", 1

    def __init__(self, in_channels: int, num_classes: int = 0, latent_channels: int = 4, spatial_dims: int = 3,
                 channels: Sequence[int] = (32, 64, 128), strides: int | Sequence = 2, kernel_size: int | Sequence = 3,
                 num_blocks: int = 2, num_blocks_decoder: int = 2, bottleneck_attention: bool = False,
                 attention_levels: Sequence[int] = (), layout: str = "compact", label_input: str = "onehot",
                 masked: bool = False, codebook_size: int = 512, code_dim: int | None = None, latent: str = "before",
                 codebook: str = "ema", decay: float = 0.99, restart_below: float = 0.3):
        super().__init__(in_channels, num_classes, latent_channels, spatial_dims, channels, strides, kernel_size,
                         num_blocks, num_blocks_decoder, bottleneck_attention, attention_levels, layout, label_input,
                         masked)
        check_choice("latent", latent, ("before", "after"))
        check_choice("codebook", codebook, ("ema", "loss"))
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below={restart_below}: wanted a share of the mean use, from 0 to below 1")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: wanted what a step keeps of the running means, 0 or more and less than 1")
        self.code_dim = latent_channels if code_dim is None else code_dim
        check_count(1, {"codebook_size": codebook_size, "code_dim": self.code_dim})
        self.codebook_size, self.latent, self.decay, self.restart_below = codebook_size, latent, decay, restart_below
        apart = self.code_dim != latent_channels
        self.to_code = conv(spatial_dims, latent_channels, self.code_dim, 1) if apart else nn.Identity()
        self.from_code = conv(spatial_dims, self.code_dim, latent_channels, 1) if apart else nn.Identity()
        start = torch.empty(codebook_size, self.code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if codebook == "loss":
            self.codebook = nn.Embedding(codebook_size, self.code_dim, _weight=start)
        else:
            self.register_buffer("codebook", start)
            self.register_buffer("sums", torch.zeros_like(start))
        self.register_buffer("usage", torch.zeros(codebook_size))

    # ---- quantisation ----

    @property
    def learns_by_loss(self) -> bool:
        """Whether gradients move the codes."""
        return isinstance(self.codebook, nn.Embedding)

    def table(self) -> torch.Tensor:
        """The codes [K,D]."""
        return self.codebook.weight if self.learns_by_loss else self.codebook

    def look_up(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes [N,D,*s] of indices [N,*s]."""
        codes = self.codebook(indices) if self.learns_by_loss else self.codebook[indices]
        return codes.movedim(-1, 1)

    @torch.no_grad()
    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Indices [N,*s] of the codes nearest to vectors [N,D,*s], the first of several."""
        flat, table = vectors.movedim(1, -1).flatten(0, -2), self.table()
        chunks = flat.split(max(1, CHUNK // self.codebook_size))  # not by products, which lose small distances
        indices = [torch.cdist(part, table, compute_mode="donot_use_mm_for_euclid_dist").argmin(1) for part in chunks]
        return torch.cat(indices).reshape(len(vectors), *vectors.shape[2:])

    def quantise(self, h: torch.Tensor) -> tuple[torch.Tensor, Codes]:
        """The latents [N,z,*s] of the codes nearest to what the encoder gave [N,z,*s], in float32 under autocast.

        Gradients pass as if nothing had been quantised.
        """
        with torch.autocast("cuda" if h.is_cuda else "cpu", enabled=False):
            vectors = self.to_code(full(h))
            indices = self.nearest(vectors)
            codes = self.look_up(indices)
            commitment = mean_square(vectors - codes.detach())
            codebook = mean_square(vectors.detach() - codes) if self.learns_by_loss else None
            through = codes.detach() + (vectors - vectors.detach())  # the codes to the last bit
            return self.from_code(through), Codes(indices, vectors, commitment, codebook)

    def codes_to_latent(self, indices: torch.Tensor) -> torch.Tensor:
        """Latents [N,z,*s] of indices [N,*s], which decode to what the codes stand for."""
        if self.latent == "before" and self.code_dim != self.latent_channels:
            raise ValueError(f"latent=before: codes of {self.code_dim} numbers have no latents of "
                             f"{self.latent_channels} channels; train with latent=after, or with code_dim=null")
        return self.from_code(self.look_up(indices))

    # ---- the autoencoder ----

    def read(self, h: torch.Tensor, image: torch.Tensor, cells: torch.Tensor | None = None) -> PointPosterior:
        """What the encoder gave, or the latents of the nearest codes."""
        h = within(full(h), cells)
        return PointPosterior(h if self.latent == "before" else within(self.quantise(h)[0], cells))

    def prepare(self, z: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Quantise latents taken before that."""
        z = within(z, cells)
        return self.quantise(z)[0] if self.latent == "before" else z

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None, noise: Draws | None = None,
                semantic: torch.Tensor | None = None) -> Reconstruction:
        """Encode, quantise, decode; nothing is drawn."""
        inside = self.inside(semantic)
        cells = self.cells(inside)
        h = within(full(self.encoder(self.joined(image, label))), cells)
        quantised, codes = self.quantise(h)
        z = h if self.latent == "before" else within(quantised, cells)
        parts = self.split(self.decoder(quantised if self.latent == "before" else z), z, inside)
        return Reconstruction(*parts, PointPosterior(z), z, codes)

    # ---- learning ----

    @torch.no_grad()
    def absorb(self, counts: torch.Tensor, sums: torch.Tensor, candidates: torch.Tensor, key: int) -> None:
        """Move the codebook by a step's totals, once for each step and alike on all ranks.

        counts [K]: how often each code was chosen, sums [K,D] of the vectors that chose it, candidates [M,D]: vectors
        among which codes start that are out of use, all of them in the first step, shuffled by `key`. Where nothing was
        counted, as in a step that is skipped, no code starts again.
        """
        table, first = self.table(), ~(self.usage > 0).any()
        if hasattr(table, "device_mesh"):
            raise ValueError("training.network.codebook=loss: codes cannot start again where ranks hold shares of "
                             "them; choose training.network.codebook=ema or training.options.parallel=ddp")
        self.usage.lerp_(counts.to(self.usage), 1 - self.decay)
        if not self.learns_by_loss:
            self.sums.lerp_(sums.to(self.sums), 1 - self.decay)
            used = self.usage[:, None] > torch.finfo(self.usage.dtype).tiny
            table.copy_(torch.where(used, self.sums / self.usage[:, None], table))
        mean = self.usage.mean()
        dead = (first | (self.usage < self.restart_below * mean)) & (counts.sum() > 0)
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(key))
        picked = order[torch.arange(self.codebook_size) % len(candidates)].to(candidates.device, non_blocking=True)
        table.copy_(torch.where(dead[:, None], candidates[picked].to(table), table))
        self.usage.copy_(torch.where(dead, torch.where(first, mean, GRACE * self.restart_below * mean), self.usage))
        if not self.learns_by_loss:
            self.sums.copy_(torch.where(dead[:, None], table * self.usage[:, None], self.sums))

    def codebook_usage(self, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Share [] of the codes that are in use, and perplexity [] of their use, by how often each was chosen [K]."""
        p = counts.double() / counts.sum().clamp_min(1)
        return (counts > 0).double().mean(), torch.special.entr(p).sum().exp()


def mean_square(x: torch.Tensor) -> torch.Tensor:
    """Mean squares [N] of [N,...]."""
    return x.square().flatten(1).mean(1)
