"""How volumes come back from a first stage: figures, pictures and the page of `evaluate.py --autoencoder`.

Keys of its report.json; a number that does not exist is null, a part that could not be had is
{"available": false, "reason": "..."}:
  title, date, command, versions, definitions.NAME
  real.{path, content_hash, split, num}, autoencoder.{path, hash, network, posterior, latent_shape, reduction, tile}
  verdict.{passed, psnr_db, wanted}                 passed is null where nothing was wanted
  psnr_db, ceiling.{available, psnr_db, gap_db}, dice.CLASS, dice_min.CLASS
  channels.CHANNEL.{psnr_db, psnr_min, ssim, ssim_min, spectrum_db, sharpness, real.KEY, decoded.KEY,
                    real_curve, decoded_curve}      KEY: mean, std, gradient_energy
  latents.N.{mean, std, posterior_std, correlation.CHANNEL}
  codes.{available, size, used, perplexity}
  worst.[{id, psnr_db}]
"""

import csv
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from metrics import image, overlap
from reporting.charts import spectrum_chart
from reporting.features import Case, Layout, radial_log_power
from reporting.montages import montage
from reporting.reference import speckle_free
from reporting.report import (
    DEFINITIONS,
    html_dark,
    html_facts,
    html_frame,
    html_grid,
    html_missing,
    html_table,
)
from reporting.tables import number, percent

POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
EQUAL = 200.0  # dB of volumes that come back as they were
CONTRAST = 0.25  # share of the intensities shown that is white in pictures of differences
WORDS = {
    "PSNR": f"{DEFINITIONS['PSNR']} {EQUAL:g} dB stands for equal images.", "Dice": DEFINITIONS["Dice"],
    "SSIM": "Structural similarity (Wang et al. 2004) of decoded and real volumes, Gaussian windows of 7 voxels, mean "
            "over held-out cases; 1 for equal ones.",
    "spectrum": "Root mean square over frequencies of the difference in mean log radial power, in dB.",
    "sharpness": "Gradient energy (mean squared difference of neighbouring voxels) of all decoded volumes by that of "
                 "the real ones: 1 is as sharp, less is blurred, more is rough.",
    "latents": "Mean and standard deviation over all positions of posterior means; posterior std: root mean square of "
               "the posteriors' own; correlation (Pearson) with the image averaged to the size of the latents.",
    "codes": "Share of the codebook that is used at all, and its perplexity: to how many codes used equally often it "
             "comes.",
}


class Decoded(NamedTuple):
    """A volume before and after, and its latents: posterior mean and std [z,*s]."""

    real: Case
    decoded: Case
    mean: np.ndarray
    std: np.ndarray


class Row(NamedTuple):
    """What is kept of one volume: figures per channel [C], Dice per class [K], curves [C,F], latents, small image."""

    id: str
    psnr: float
    psnrs: np.ndarray
    ssims: np.ndarray
    dice: np.ndarray
    moments: np.ndarray   # [2,C,3]: of real and decoded; mean, mean square, gradient energy
    spectra: np.ndarray   # [2,C,F]
    mean: np.ndarray      # [z,*s]
    square: np.ndarray    # [z]: mean of std^2
    small: np.ndarray     # [C,*s]


# ---- parts that the report of generated volumes has, too ----


def missing(reason: str) -> dict:
    """A part of a report that could not be had."""
    return {"available": False, "reason": reason}


def defined(figure: Callable[[np.ndarray], float], values: np.ndarray) -> float | None:
    """A figure of the values that are not NaN, None where there are none."""
    kept = values[values == values]
    return float(figure(kept)) if kept.size else None


def dice_figures(dice: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Means and least values of Dice [N,K] per class, the background aside."""
    return {key: {name: defined(figure, dice[:, k]) for k, name in enumerate(names) if k}
            for key, figure in (("dice", np.mean), ("dice_min", np.min))}


def speckle_ceiling(provenance: dict, cases: Sequence[Case], data_range: float, psnr: float) -> dict:
    """PSNR of speckle-free phantoms against the speckled ones, and how far the first stage stays below."""
    if provenance.get("kind") != "phantom":
        return missing("the noise-free truth is known of phantoms only")
    try:
        ceiling = float(np.mean([image.psnr(speckle_free(c, provenance), c.image, data_range) for c in cases]))
    except ValueError as error:
        return missing(str(error))
    return {"available": True, "psnr_db": ceiling, "gap_db": ceiling - psnr}


# ---- figures ----


def measure(item: Decoded, layout: Layout) -> Row:
    """All figures of one volume."""
    pairs, scale = list(zip(item.real.image, item.decoded.image, strict=True)), layout.hi - layout.lo
    both = (item.real.image, item.decoded.image)
    classes = len(layout.label_classes)
    dice = overlap.dice(item.decoded.label, item.real.label, classes) if classes else np.zeros(0)
    window = min(7, *item.real.image.shape[1:])
    return Row(
        item.real.id, min(image.psnr(item.decoded.image, item.real.image, scale), EQUAL),
        np.array([min(image.psnr(b, a, scale), EQUAL) for a, b in pairs]),
        np.array([image.ssim(b, a, scale, window - 1 + window % 2) for a, b in pairs]), dice,
        np.array([[[v.mean(dtype=np.float64), np.square(v, dtype=np.float64).mean(), image.gradient_energy(v)]
                   for v in values] for values in both]),
        np.stack([np.stack([radial_log_power(v) for v in values]) for values in both]),
        item.mean, np.square(item.std, dtype=np.float64).reshape(len(item.std), -1).mean(1),
        shrunk(item.real.image, item.mean.shape[1:]))


def shrunk(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Images [C,*S] averaged to another size [C,*s]."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return POOLS[len(size)](tensor[None], tuple(size))[0].numpy()


def summary(rows: Sequence[Row], layout: Layout) -> dict:
    """Figures of all volumes: psnr_db, dice, dice_min, channels, latents (keys: see the top of this file)."""
    return {"psnr_db": float(np.mean([row.psnr for row in rows])),
            **dice_figures(np.stack([row.dice for row in rows]), layout.label_classes),
            "channels": {name: channel_figures(rows, c) for c, name in enumerate(layout.channels)},
            "latents": latent_figures(rows, layout.channels)}


def channel_figures(rows: Sequence[Row], channel: int) -> dict:
    """Figures of an image channel."""
    psnr, ssim = (np.array([values[channel] for values in table])
                  for table in ([row.psnrs for row in rows], [row.ssims for row in rows]))
    moments = np.mean([row.moments[:, channel] for row in rows], axis=0)
    curves = np.mean([row.spectra[:, channel] for row in rows], axis=0)
    sides = {name: {"mean": float(mean), "std": float(np.sqrt(max(square - mean ** 2, 0))), "gradient_energy": float(g)}
             for name, (mean, square, g) in zip(("real", "decoded"), moments)}
    sharp = sides["real"]["gradient_energy"]
    return {"psnr_db": float(psnr.mean()), "psnr_min": float(psnr.min()), "ssim": float(ssim.mean()),
            "ssim_min": float(ssim.min()), "spectrum_db": float(10 * np.sqrt(np.mean((curves[1] - curves[0]) ** 2))),
            "sharpness": sides["decoded"]["gradient_energy"] / sharp if sharp else None, **sides,
            "real_curve": curves[0].tolist(), "decoded_curve": curves[1].tolist()}


def latent_figures(rows: Sequence[Row], channels: Sequence[str]) -> list[dict]:
    """Figures of every latent channel."""
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


def verdict(psnr: float, wanted: float | None) -> dict:
    """Whether a first stage reaches the PSNR that diffusion asks for."""
    return {"passed": None if wanted is None else psnr >= wanted, "psnr_db": psnr, "wanted": wanted}


def verdict_line(found: dict) -> str:
    """The same in words."""
    if found["passed"] is None:
        return f"PSNR {found['psnr_db']:.2f} dB; none was asked for"
    said = "passes" if found["passed"] else "fails"
    return f"{said}: PSNR {found['psnr_db']:.2f} dB, min_psnr {found['wanted']:g} dB"


def cases_csv(rows: Sequence[Row], layout: Layout) -> str:
    """CSV text, one row per volume."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{key}_{channel}" for channel in layout.channels for key in ("psnr_db", "ssim", "sharpness")]
    writer.writerow(["id", "psnr_db", *names, *(f"dice_{name}" for name in layout.label_classes[1:])])
    for row in rows:
        sharp = [b / a if a else np.nan for a, b in row.moments[:, :, 2].T]
        figures = [value for triple in zip(row.psnrs, row.ssims, sharp, strict=True) for value in triple]
        writer.writerow([row.id, *(f"{value:.6g}" if value == value else "" for value in
                                   (row.psnr, *figures, *row.dice[1:]))])
    return out.getvalue()


# ---- pictures ----


def pictures(items: Sequence[Decoded], layout: Layout, captions: Sequence[str] = ()) -> dict[str, Figure]:
    """Real, decoded and their difference, for every image channel; a column per volume."""
    return {name: channel_pictures(items, c, layout, captions) for c, name in enumerate(layout.channels)}


def channel_pictures(items: Sequence[Decoded], channel: int, layout: Layout, captions: Sequence[str]) -> Figure:
    """Real, decoded and their difference in one channel, where grey is none."""
    real, decoded = ([(case.image[channel], case.label) for case in cases]
                     for cases in ([item.real for item in items], [item.decoded for item in items]))
    values = np.concatenate([np.ravel(picture) for picture, _ in real])
    low, high = float(values.min()), float(np.percentile(values, 99.8))
    high = high if high > low else low + 1
    middle, gain = (low + high) / 2, 0.5 / CONTRAST
    off = [(middle + gain * (b.astype(np.float32) - a), None) for (a, _), (b, _) in zip(real, decoded, strict=True)]
    return montage([("Real", real), ("Decoded from its latents", decoded), ("Decoded less real", off)], layout.spacing,
                   window=(low, high), label_classes=layout.label_classes, captions=captions, aligned=True)


def spectra(result: dict) -> dict[str, Figure]:
    """Charts of the power spectra."""
    return {f"spectrum_{name}": spectrum_chart(row) for name, row in result["channels"].items()}


# ---- the page ----


def html_page(result: dict, figures: dict[str, bytes]) -> str:
    """The page, with style and figures inside it."""
    return html_frame(result["title"], [_head(result), _channels(result, figures), _labels(result),
                                        _pictures(result, figures), _latents(result), _origin(result)])


def _head(result: dict) -> str:
    real, least = result["real"], [v for v in result["dice"].values() if v is not None]
    facts = [(f"{result['psnr_db']:.2f} dB", "PSNR")]
    if result["ceiling"]["available"]:
        facts.append((f"{result['ceiling']['psnr_db']:.2f} dB", "PSNR of the image without speckle, the ceiling"))
    facts += [(number(row["ssim"]), f"SSIM, {name}") for name, row in result["channels"].items()]
    facts += [(number(min(least)), "least Dice of a class")] if least else []
    facts += [(number(row["sharpness"]), f"sharpness, {name}") for name, row in result["channels"].items()]
    facts.append((str(real["num"]), f"volumes of split {real['split']!r}"))
    return (f"<h1>First stage</h1>\n<p class=\"lead\">{escape(result['title'])}, {escape(result['date'])}.</p>\n"
            f"<p>Verdict: <b>{escape(verdict_line(result['verdict']))}</b></p>\n{html_facts(facts)}")


def _channels(result: dict, figures: dict[str, bytes]) -> str:
    body = "<h2>Images</h2>" + html_table(
        ["", "PSNR [dB]", "worst", "SSIM", "worst", "spectrum [dB]", "sharpness"],
        [[name, f"{row['psnr_db']:.2f}", f"{row['psnr_min']:.2f}", number(row["ssim"]), number(row["ssim_min"]),
          number(row["spectrum_db"], 2), number(row["sharpness"])] for name, row in result["channels"].items()], main=1)
    ceiling = result["ceiling"]
    if ceiling["available"]:
        body += (f"<p>An image without its speckle has {ceiling['psnr_db']:.2f} dB, {ceiling['gap_db']:.2f} dB more."
                 "</p>")
    else:
        body += html_missing("Ceiling of the PSNR", ceiling["reason"])
    rows = [[f"{name}, {side}", number(row[side]["mean"], 4), number(row[side]["std"], 4),
             f"{row[side]['gradient_energy']:.4g}"]
            for name, row in result["channels"].items() for side in ("real", "decoded")]
    return body + html_table(["", "mean", "standard deviation", "gradient energy"], rows) \
        + html_grid([f"spectrum_{name}" for name in result["channels"]], figures)


def _labels(result: dict) -> str:
    if not result["dice"]:
        return ""
    rows = [[name, number(result["dice"][name]), number(result["dice_min"][name])] for name in result["dice"]]
    return "<h2>Label maps</h2>" + html_table(["Dice", "mean", "worst case"], rows, main=1)


def _pictures(result: dict, figures: dict[str, bytes]) -> str:
    body = ("<h2>Pictures</h2><p class=note>The first cases, not a choice. Slices through the middle of what is "
            "labelled in the real volume. Black is the minimum and white the 99.8 % point of the real images shown; "
            f"in differences grey is none, and black and white are {CONTRAST:.0%} of that range.</p>")
    body += "".join(html_dark(f"pictures_{name}", figures) for name in result["channels"])
    worst = ", ".join(f"{case['id']} {case['psnr_db']:.2f} dB" for case in result["worst"])
    body += f"<h2>Worst cases</h2><p class=note>Those of the lowest PSNR: {escape(worst)}.</p>"
    return body + "".join(html_dark(f"worst_{name}", figures) for name in result["channels"])


def _latents(result: dict) -> str:
    names = list(result["channels"])
    rows = [[str(i), number(row["mean"]), number(row["std"]), number(row["posterior_std"]),
             *(number(row["correlation"][name]) for name in names)] for i, row in enumerate(result["latents"])]
    stage, codes = result["autoencoder"], result["codes"]
    body = (f"<h2>Latents</h2><p>{escape(' x '.join(map(str, stage['latent_shape'])))}, {stage['reduction']:.1f} times "
            f"fewer numbers than the image; posterior: {escape(stage['posterior'])}.</p>")
    body += html_table(["channel", "mean", "standard deviation", "posterior std",
                        *(f"correlation with {name}" for name in names)], rows)
    if codes["available"]:
        body += html_table(["codebook", "used", "perplexity"],
                           [[str(codes["size"]), percent(codes["used"]), f"{codes['perplexity']:.1f}"]], main=2)
    return body


def _origin(result: dict) -> str:
    real, stage = result["real"], result["autoencoder"]
    rows = [["real", f"{real['path']} (content {real['content_hash'][:16]}), split {real['split']}"],
            ["autoencoder", f"{stage['path']} ({stage['hash'][:16]}), {stage['network']}"],
            ["decoded", f"in tiles of {stage['tile']}" if stage["tile"] else "whole"],
            ["versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())],
            ["command", result["command"]]]
    what: list[list[Any]] = [[name, text] for name, text in result["definitions"].items()]
    return (f"<h2>Where this comes from</h2>{html_table(None, rows, kind='plain')}"
            f"<h2>What the words mean</h2>{html_table(None, what, kind='plain')}")
