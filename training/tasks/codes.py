"""What a codebook learns by besides gradients, and whether its codes are in use."""

from typing import NamedTuple

import torch

from edm3d.samplers.noise import Noise
from edm3d.training.phases import StepStatistics
from edm3d.utils.tensors import tensor_on

FEW, ALIKE = 0.05, 2  # share of the codes in use, and perplexity, below which a codebook counts as collapsed


def code_totals(net: torch.nn.Module, codes: NamedTuple, noise: Noise, batch_size: int) -> dict[str, torch.Tensor]:
    """Sums over the images of a round for `net.absorb`: how often each code is used, what by, and what may replace it.

    counts [K], sums [K,D] of the vectors nearest to each code, and candidates [batch_size*m,D]: m vectors of each
    image, drawn by its generator, in the rows of its own place in the step and 0 in those of others, so that the sum
    over rounds and ranks gathers them, however many there are.
    """
    vectors = codes.vectors.detach().float().flatten(2).movedim(1, 2)  # [N,tokens,D]
    indices, (images, tokens, width) = codes.indices.flatten(), vectors.shape
    counts = vectors.new_zeros(net.codebook_size).index_add_(0, indices, vectors.new_ones(len(indices)))
    sums = vectors.new_zeros(net.codebook_size, width).index_add_(0, indices, vectors.flatten(0, 1))
    m = min(tokens, -(-net.codebook_size // batch_size))
    chosen = noise.for_purpose("codes").rand((tokens,)).to(vectors.device).argsort(dim=1)[:, :m]
    candidates = vectors.new_zeros(batch_size, m, width)
    places = tensor_on(vectors.device, [key % batch_size for key in noise.keys])
    candidates[places] = vectors[torch.arange(images, device=vectors.device)[:, None], chosen]
    return {"counts": counts, "sums": sums, "candidates": candidates.flatten(0, 1)}


class CodeWatch:
    """Gives a network the totals of a step, says how its codes are used, and warns when they collapse."""

    def __init__(self, net: torch.nn.Module):
        self.net, self.seen = net, None  # counts [K] since the last tick

    def absorb(self, totals: dict[str, torch.Tensor], nimg: int) -> StepStatistics:
        """Move the codebook; the used share and the perplexity of the codes of the step."""
        self.net.absorb(totals["counts"], totals["sums"], totals["candidates"], nimg)
        self.seen = totals["counts"] + (0 if self.seen is None else self.seen)
        used, perplexity = self.net.codebook_usage(totals["counts"])
        return StepStatistics("codes", {"used": used, "perplexity": perplexity})

    def warn(self, tick: int) -> list[str]:
        """What is wrong with the use of codes over the tick that ends; the first has them still finding their place."""
        seen, self.seen = self.seen, None
        if seen is None or tick < 2:
            return []
        used, perplexity = map(float, self.net.codebook_usage(seen))
        if used >= FEW and perplexity >= ALIKE:
            return []
        return [f"Warning: the codebook has collapsed: {used:.1%} of {self.net.codebook_size} codes in use, perplexity "
                f"{perplexity:.3g}; lower training.optimizer.lr or training.loss.commitment_weight, choose a smaller "
                "training.network.code_dim, or raise training.network.restart_below"]
