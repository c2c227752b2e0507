"""Attributes as networks see them: a token for each, all of them in one vector, or attended to."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from edm3d.networks.layers import NORMS, conv, linear
from edm3d.utils.checks import check_positive


class AttributeTokens(nn.Module):
    """Tokens [N,A,channels] of attributes [N,A], one for each; NaN is missing, for which a token of its own is learned.

    mean, std: of each attribute, by which it is normalised; None: 0 and 1.
    """

    def __init__(self, count: int, channels: int, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None):
        super().__init__()
        for key, default, numbers in (("mean", 0.0, mean), ("std", 1.0, std)):
            numbers = [default] * count if numbers is None else list(numbers)
            if len(numbers) != count:
                raise ValueError(f"attribute_{key}={numbers}: wanted {count} numbers, as attribute_dim is {count}")
            self.register_buffer(key, torch.tensor(numbers, dtype=torch.float32), persistent=False)
            check_positive({f"attribute_std[{i}]": number for i, number in enumerate(numbers)} if key == "std" else {})
        self.count = count
        self.names = nn.Embedding(2 * count, channels)  # of attributes that are there, then of those that are missing
        self.directions = nn.Embedding(count, channels)
        self.out = linear(channels, channels)

    def forward(self, attributes: torch.Tensor) -> torch.Tensor:
        missing = attributes.isnan()
        values = ((attributes.float() - self.mean) / self.std).masked_fill(missing, 0)
        which = torch.arange(self.count, device=attributes.device).expand(len(attributes), -1)
        directions = self.directions(which)
        tokens = self.names(which + self.count * missing) + values.to(directions.dtype).unsqueeze(-1) * directions
        return self.out(silu(tokens))


class AttributeEmbedding(nn.Module):
    """A vector [N,out_channels] of attributes [N,A]: an MLP of their tokens' sum."""

    def __init__(self, tokens: AttributeTokens, channels: int, out_channels: int):
        super().__init__()
        self.tokens = tokens
        self.layer0, self.layer1 = linear(channels, channels), linear(channels, out_channels)

    def forward(self, attributes: torch.Tensor) -> torch.Tensor:
        together = self.tokens(attributes).sum(1) / sqrt(self.tokens.count)
        return self.layer1(silu(self.layer0(silu(together))))


class CrossAttention(nn.Module):
    """x [N,C,*S] plus what its positions find among tokens [N,A,token_channels]; nothing at the start."""

    def __init__(self, dims: int, channels: int, token_channels: int, heads: int, eps: float = 1e-5,
                 norm: str = "group"):
        super().__init__()
        self.heads = heads
        self.norm = NORMS[norm](channels, eps)
        self.query = conv(dims, channels, channels, 1)
        self.key_value = linear(token_channels, 2 * channels)
        self.proj = conv(dims, channels, channels, 1, init=0)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        q = self.query(self.norm(x)).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3).contiguous()
        k, v = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        found = scaled_dot_product_attention(q, k, v)
        return x + self.proj(found.transpose(2, 3).reshape(x.shape))
