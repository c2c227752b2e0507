"""What the latents of a first stage look like, and the use of its codes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from edm3d.reporting.cases import DecodedCase
from edm3d.reporting.first_stage import RoundTrip
from edm3d.reporting.html import html_table
from edm3d.reporting.section import DECODED, Section, missing
from edm3d.reporting.tables import number, percent

POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


class Kept(NamedTuple):
    """What is kept of one volume: posterior mean [z,*s], mean of the posterior's std^2 [z], the image at the size of
    the latents [C,*s], and how often each code was chosen [K].
    """

    mean: np.ndarray
    square: np.ndarray
    small: np.ndarray
    counts: np.ndarray


class Latents(Section):
    """Spread of every latent channel and what it has to do with the image; use of the codebook.

    latents.N.{mean, std, posterior_std, correlation.CHANNEL}
    codes.{available, size, used, perplexity}
    """

    words = {
        "latents": "Mean and standard deviation over all positions of posterior means; posterior std: root mean square "
                   "of the posteriors' own; correlation (Pearson) with the image averaged to the size of the latents.",
        "codes": "Share of the codebook that is used at all, and its perplexity: to how many codes used equally often "
                 "it comes.",
    }
    sets = DECODED

    def measure(self, item: DecodedCase, context: RoundTrip) -> Kept:
        codes = np.zeros(0, np.int64) if item.codes is None else item.codes.ravel()
        return Kept(item.mean, np.square(item.std, dtype=np.float64).reshape(len(item.std), -1).mean(1),
                         shrunk(item.real.image, item.mean.shape[1:]),
                         np.bincount(codes, minlength=getattr(context.net, "codebook_size", 0)))

    def compute(self, found: dict[str, list], context: RoundTrip) -> dict[str, Any]:
        rows = found["decoded"]
        return {"latents": latent_measures(rows, context.layout.channels),
                "codes": code_measures(context.net, sum(row.counts for row in rows))}

    def lines(self, report: dict) -> list[str]:
        codes = report["codes"]
        return [f"Codes {codes['used']:.1%} of {codes['size']} used, perplexity {codes['perplexity']:.1f}"] \
            if codes["available"] else []

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        names, coder, codes = list(report["latents"][0]["correlation"]), report["autoencoder"], report["codes"]
        rows = [[str(i), number(row["mean"]), number(row["std"]), number(row["posterior_std"]),
                 *(number(row["correlation"][name]) for name in names)] for i, row in enumerate(report["latents"])]
        body = (f"<h2>Latents</h2><p>{escape(' x '.join(map(str, coder['latent_shape'])))}, {coder['reduction']:.1f} "
                f"times fewer numbers than the image; posterior: {escape(coder['posterior'])}.</p>")
        body += html_table(["channel", "mean", "standard deviation", "posterior std",
                            *(f"correlation with {name}" for name in names)], rows)
        if codes["available"]:
            body += html_table(["codebook", "used", "perplexity"],
                               [[str(codes["size"]), percent(codes["used"]), f"{codes['perplexity']:.1f}"]], main=2)
        return body


def shrunk(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Images [C,*S] averaged to another size [C,*s]."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return POOLS[len(size)](tensor[None], tuple(size))[0].numpy()


def latent_measures(rows: Sequence[Kept], channels: Sequence[str]) -> list[dict[str, Any]]:
    """Measures of every latent channel."""
    means, small = (np.stack(parts).swapaxes(0, 1).reshape(len(parts[0]), -1).astype(np.float64)
                    for parts in ([row.mean for row in rows], [row.small for row in rows]))
    squares = np.mean([row.square for row in rows], axis=0)
    return [{"mean": float(z.mean()), "std": float(z.std()), "posterior_std": float(np.sqrt(square)),
             "correlation": {name: correlation(z, x) for name, x in zip(channels, small, strict=True)}}
            for z, square in zip(means, squares, strict=True)]


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation of two rows of numbers, None where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None


def code_measures(net: torch.nn.Module, counts: np.ndarray) -> dict[str, Any]:
    """Used share and perplexity of the codes over all volumes."""
    if not counts.size:
        return missing("the first stage has no codebook")
    used, perplexity = map(float, net.codebook_usage(torch.from_numpy(counts).float()))
    return {"available": True, "size": net.codebook_size, "used": used, "perplexity": perplexity}
