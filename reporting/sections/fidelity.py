"""How images and label maps come back from a first stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics import image, overlap
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.charts import spectrum_chart
from edm3d.reporting.distances import radial_log_power, spectrum_distance
from edm3d.reporting.first_stage import RoundTrip
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.reference import speckle_free
from edm3d.reporting.section import DECODED, Context, Section, missing
from edm3d.reporting.tables import number

EQUAL = 200.0  # dB of volumes that come back as they were
WORDS = {
    "PSNR": "10 log10(range^2 / mean square error), mean over held-out cases. The ceiling is the PSNR of the image "
            "without speckle against the speckled one: no first stage can know the speckle.",
    "Dice": "Mean over held-out cases of the overlap between given and decoded labels, per class.",
}


class FidelityRow(NamedTuple):
    """What is kept of one volume: measures per channel [C], Dice per class [K], curves [C,F], and see speckle_psnr."""

    psnr: float
    psnrs: np.ndarray
    ssims: np.ndarray
    dice: np.ndarray
    moments: np.ndarray   # [2,C,3]: of real and decoded; mean, mean square, gradient energy
    spectra: np.ndarray   # [2,C,F]
    ceiling: float | str


class Fidelity(Section):
    """Likeness of images, channel by channel, and of label maps.

    verdict.{passed, psnr_db, wanted}                 passed is null where nothing was wanted
    psnr_db, ceiling.{available, psnr_db, gap_db}, dice.CLASS, dice_min.CLASS
    channels.CHANNEL.{psnr_db, psnr_min, ssim, ssim_min, spectrum_db, sharpness, real.KEY, decoded.KEY,
                      real_curve, decoded_curve}      KEY: mean, std, gradient_energy
    """

    words = {
        "PSNR": f"{WORDS['PSNR']} {EQUAL:g} dB stands for equal images.", "Dice": WORDS["Dice"],
        "SSIM": "Structural similarity (Wang et al. 2004) of decoded and real volumes, Gaussian windows of 7 voxels, "
                "mean over held-out cases; 1 for equal ones.",
        "spectrum": "Root mean square over frequencies of the difference in mean log radial power, in dB.",
        "sharpness": "Gradient energy (mean squared difference of neighbouring voxels) of all decoded volumes by that "
                     "of the real ones: 1 is as sharp, less is blurred, more is rough.",
    }
    sets = DECODED

    def measure(self, item: DecodedCase, context: Context) -> FidelityRow:
        inside, scale = item.inside, context.layout.data_range
        real, back = inside.real.image, inside.decoded.image
        pairs = list(zip(real, back, strict=True))
        window = min(7, *real.shape[1:])
        return FidelityRow(
            psnr(back, real, scale), np.array([psnr(b, a, scale) for a, b in pairs]),
            np.array([image.ssim(b, a, scale, window - 1 + window % 2) for a, b in pairs]),
            case_dice(item, context.layout),
            np.array([[[v.mean(dtype=np.float64), np.square(v, dtype=np.float64).mean(), image.gradient_energy(v)]
                       for v in values] for values in (real, back)]),
            np.stack([np.stack([radial_log_power(v) for v in values]) for values in (real, back)]),
            speckle_psnr(item.real, context))

    def gather(self, rows: dict[str, list], context: Context) -> FidelityRow:
        """All rows as one, the volumes along axis 0 of each part."""
        *parts, ceilings = zip(*rows["decoded"], strict=True)
        return FidelityRow(*map(np.stack, parts), list(ceilings))

    def compute(self, found: FidelityRow, context: RoundTrip) -> dict[str, Any]:
        mean, wanted, layout = float(found.psnr.mean()), context.min_psnr, context.layout
        return {"verdict": {"passed": None if wanted is None else mean >= wanted, "psnr_db": mean, "wanted": wanted},
                "psnr_db": mean, **dice_measures(found.dice, layout.label_classes),
                "channels": {name: channel_measures(found, c) for c, name in enumerate(layout.channels)},
                "ceiling": ceiling(found.ceiling, mean)}

    def figures(self, found: FidelityRow, context: RoundTrip, report: dict) -> dict[str, Figure]:
        return {f"spectrum_{name}": spectrum_chart(row) for name, row in report["channels"].items()}

    def columns(self, found: FidelityRow, context: RoundTrip, name: str) -> dict[str, Sequence[str]]:
        columns = {"psnr_db": found.psnr}
        before, after = found.moments[..., 2].swapaxes(0, 1)
        sharp = np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)
        for c, channel in enumerate(context.layout.channels):
            columns |= {f"{key}_{channel}": values[:, c] for key, values in
                        (("psnr_db", found.psnrs), ("ssim", found.ssims), ("sharpness", sharp))}
        columns |= {f"dice_{label}": found.dice[:, k] for k, label in enumerate(context.layout.label_classes) if k}
        return {key: [f"{value:.6g}" if value == value else "" for value in values] for key, values in columns.items()}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        top, channels = report["ceiling"], report["channels"].items()
        facts = [(f"{report['psnr_db']:.2f} dB", "PSNR")]
        if top["available"]:
            facts.append((f"{top['psnr_db']:.2f} dB", "PSNR of the image without speckle, the ceiling"))
        return [*facts, *((number(row["ssim"]), f"SSIM, {name}") for name, row in channels),
                *((value, "least Dice of a class") for value in least_dice(report)),
                *((number(row["sharpness"]), f"sharpness, {name}") for name, row in channels)]

    def lines(self, report: dict) -> list[str]:
        lines = [f"{name}: PSNR {row['psnr_db']:.2f} dB (worst {row['psnr_min']:.2f}), SSIM {number(row['ssim'])}, "
                 f"spectrum {row['spectrum_db']:.2f} dB, sharpness {number(row['sharpness'])}"
                 for name, row in report["channels"].items()]
        top = report["ceiling"]
        if top["available"]:
            lines.append(f"Ceiling without speckle {top['psnr_db']:.2f} dB, gap {top['gap_db']:.2f} dB")
        return lines + [f"Dice {text}" for text in dice_text(report)]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        channels, top = report["channels"], report["ceiling"]
        body = "<h2>Images</h2>" + html_table(
            ["", "PSNR [dB]", "worst PSNR", "SSIM", "worst SSIM", "spectrum [dB]", "sharpness"],
            [[name, f"{row['psnr_db']:.2f}", f"{row['psnr_min']:.2f}", number(row["ssim"]), number(row["ssim_min"]),
              number(row["spectrum_db"], 2), number(row["sharpness"])] for name, row in channels.items()], main=1)
        body += html_missing("Ceiling of the PSNR", top)
        if top["available"]:
            body += (f"<p>An image without its speckle has {top['psnr_db']:.2f} dB, {top['gap_db']:.2f} dB more.</p>")
        rows = [[f"{name}, {side}", number(row[side]["mean"], 4), number(row[side]["std"], 4),
                 f"{row[side]['gradient_energy']:.4g}"]
                for name, row in channels.items() for side in ("real", "decoded")]
        body += html_table(["", "mean", "standard deviation", "gradient energy"], rows)
        labels = "<h2>Label maps</h2>" + dice_table(report) if report["dice"] else ""
        return body + html_grid([f"spectrum_{name}" for name in channels], figures) + "\n" + labels


def channel_measures(rows: FidelityRow, channel: int) -> dict[str, Any]:
    """Measures of an image channel over all volumes."""
    psnrs, ssims = rows.psnrs[:, channel], rows.ssims[:, channel]
    moments, curves = rows.moments[:, :, channel].mean(0), rows.spectra[:, :, channel].mean(0)
    sides = {name: {"mean": float(mean), "std": float(np.sqrt(max(square - mean ** 2, 0))), "gradient_energy": float(g)}
             for name, (mean, square, g) in zip(("real", "decoded"), moments)}
    sharp = sides["real"]["gradient_energy"]
    return {"psnr_db": float(psnrs.mean()), "psnr_min": float(psnrs.min()), "ssim": float(ssims.mean()),
            "ssim_min": float(ssims.min()), "spectrum_db": spectrum_distance(curves[1], curves[0]),
            "sharpness": sides["decoded"]["gradient_energy"] / sharp if sharp else None, **sides,
            "real_curve": curves[0].tolist(), "decoded_curve": curves[1].tolist()}


# ---- what the report of generated volumes says of their first stage, too ----


def psnr(decoded: np.ndarray, real: np.ndarray, data_range: float) -> float:
    """PSNR in dB, EQUAL at most."""
    return min(image.psnr(decoded, real, data_range), EQUAL)


def speckle_psnr(case: Case, context: Context) -> float | str:
    """PSNR in dB of a phantom without speckle against the speckled one, or why there is none."""
    if context.provenance.get("kind") != "phantom":
        return "the noise-free truth is known of phantoms only"
    try:
        clean = case._replace(image=speckle_free(case, context.provenance))
        return image.psnr(clean.inside.image, case.inside.image, context.layout.data_range)
    except ValueError as error:
        return str(error)


def ceiling(found: Sequence[float | str], reached: float) -> dict[str, Any]:
    """Mean of `speckle_psnr`, and how far the first stage stays below."""
    for reason in found:
        if isinstance(reason, str):
            return missing(reason)
    mean = float(np.mean(found))
    return {"available": True, "psnr_db": mean, "gap_db": mean - reached}


def case_dice(item: DecodedCase, layout: Layout) -> np.ndarray:
    """Dice [K] of every class, the background included; NaN for one that is in neither map."""
    classes = len(layout.label_classes)
    return overlap.dice(item.decoded.label, item.real.label, classes) if classes else np.zeros(0)


def dice_measures(dice: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Means and least values of Dice [N,K] per class, the background aside."""
    return {key: {name: defined(measure, dice[:, k]) for k, name in enumerate(names) if k}
            for key, measure in (("dice", np.mean), ("dice_min", np.min))}


def defined(measure: Callable[[np.ndarray], float], values: np.ndarray) -> float | None:
    """A measure of the values that are not NaN, None where there are none."""
    kept = values[values == values]
    return float(measure(kept)) if kept.size else None


def least_dice(part: dict) -> list[str]:
    """The least of the mean Dice, if there are any."""
    values = [value for value in part["dice"].values() if value is not None]
    return [number(min(values))] if values else []


def dice_text(part: dict) -> list[str]:
    """Mean Dice of every class, if there are any, in a line."""
    return [", ".join(f"{name} {number(value)}" for name, value in part["dice"].items())] if part["dice"] else []


def dice_table(part: dict) -> str:
    """Mean and least Dice of every class, if there are any."""
    rows = [[name, number(part["dice"][name]), number(part["dice_min"][name])] for name in part["dice"]]
    return html_table(["Dice", "mean", "worst case"], rows, main=1) if rows else ""
