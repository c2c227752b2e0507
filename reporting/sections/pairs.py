"""Likeness of generated volumes and the real ones whose map or images asked for them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm3d.metrics import image
from edm3d.metrics.bootstrap import bootstrap, weighted_means
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.section import DECODED, Score, Section, missing
from edm3d.reporting.sections import fidelity
from edm3d.reporting.tables import finite, with_ends

PAIRS = 256  # that are measured at most, the first ones
MEASURES = {"psnr_db": ("PSNR [dB]", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 4)}
CEILING = "held-out volumes through the first stage"


class PairFigures(NamedTuple):
    """Values [P,3] of MEASURES (NaN where one is not measured) of generated volumes, by their number, and of those
    against another's real volume; ids of the real ones; the same values of decoded volumes.
    """

    values: dict[int, np.ndarray]
    floor: dict[int, np.ndarray]
    ids: dict[int, str]
    decoded: np.ndarray


class ImagePairs(Section):
    """PSNR, SSIM and LPIPS of each generated volume against the real one whose map or images asked for it.

    pairs.{available, num, of, real}     num: pairs that were measured, of so many; real: different real volumes
    pairs.{psnr_db, ssim, lpips}.{available, value, low, high, floor, floor_low, floor_high, ceiling, ceiling_low,
                                  ceiling_high}
    pairs.lpips.{path, hash, slices}
    """

    words = {"image pairs": "A generated volume beside the real one whose own map or images asked for it, never a "
             "random other. PSNR over all channels, SSIM (Gaussian windows of 7 voxels) the mean of channels, LPIPS a "
             "learned distance of slices. Floor: each against the real volume of another pair. Ceiling: held-out "
             "volumes and what their first stage gives back. Intervals: percentile bootstrap, samples of one real "
             "volume together."}
    sets = DECODED
    citations = {
        "SSIM": "Wang Z, et al. Image quality assessment: from error visibility to structural similarity. IEEE Trans "
                "Image Process 2004;13:600-612",
        "LPIPS": "Zhang R, et al. The unreasonable effectiveness of deep features as a perceptual metric. CVPR 2018"}

    def measure(self, item: DecodedCase, context: Comparison) -> np.ndarray | None:
        if context.partner is None:
            return None
        return likeness(item.decoded._replace(held=item.real.held), item.real, context)

    def gather(self, rows: dict[str, list], context: Comparison) -> PairFigures:
        decoded = [row for row in rows.get("decoded", []) if row is not None]
        values, floor, ids = {}, {}, {}
        for i in range(len(context.generated) if context.partner else 0):
            if len(values) == PAIRS:
                break
            if (real := context.partner(i)) is not None:
                values[i], ids[i] = likeness(context.generated.case(i), real, context), real.id
        for i in values:
            others = [j for j in values if ids[j] != ids[i]]
            if others:
                rng = np.random.default_rng([context.seed, i])
                floor[i] = likeness(context.generated.case(i), context.partner(int(rng.choice(others))), context)
        return PairFigures(values, floor, ids, np.stack(decoded) if decoded else np.empty((0, len(MEASURES))))

    def compute(self, found: PairFigures, context: Comparison) -> dict[str, Any]:
        if not found.values:
            return {"pairs": missing(context.missing.get("pairs") or "no generated volume was asked for by the map or "
                                     "the images of a real volume")}
        ids, entries = list(found.ids.values()), {}
        sets = {"": (list(found.values.values()), ids), "floor": (list(found.floor.values()), [found.ids[i] for i in
                                                                                               found.floor]),
                "ceiling": (list(found.decoded), range(len(found.decoded)))}
        for m, name in enumerate(MEASURES):
            columns = {}
            for key, (rows, groups) in sets.items():
                columns |= with_intervals(np.array([row[m] for row in rows]), key, groups, context.seed)
            entries[name] = {"available": True, **columns} if columns["value"] is not None else missing(
                context.missing.get("lpips", "no weights were given (--lpips)") if name == "lpips" else
                f"sides of {min(context.real.case(0).image.shape[1:])} voxels are too short for it")
        if entries["lpips"]["available"]:
            entries["lpips"] |= dict(context.lpips.record)
        return {"pairs": {"available": True, "num": len(found.values), "of": len(context.generated),
                          "real": len(set(ids)), **entries}}

    def columns(self, found: PairFigures, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        if name != "generated" or not found.values:
            return {}
        nothing = np.full(len(MEASURES), np.nan)
        return {f"pair_{key}": [f"{value:.6g}" if np.isfinite(value) else "" for value in
                                (found.values.get(i, nothing)[m] for i in range(len(context.generated)))]
                for m, key in enumerate(MEASURES)}

    def lines(self, report: dict) -> list[str]:
        part = report["pairs"]
        if not part["available"]:
            return [f"Image pairs: not available: {part['reason']}"]
        said = [f"{title} {with_ends(part[key], 'value', digits)} (floor {with_ends(part[key], 'floor', digits)}, "
                f"ceiling {with_ends(part[key], 'ceiling', digits)})" if part[key]["available"] else
                f"{title} not available: {part[key]['reason']}" for key, (title, digits) in MEASURES.items()]
        return [f"Image pairs: {part['num']}: {'; '.join(said)}"]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        part = report["pairs"]
        return {"consistency": [Score(f"pairs: {title.removesuffix(' [dB]')}", unit="dB" * (key == "psnr_db"), **{
            name: part[key][name] for name in ("value", "low", "high", "floor", "ceiling")})
            for key, (title, _) in MEASURES.items() if part[key]["available"]]} if part["available"] else {}

    def cited(self, report: dict) -> Mapping[str, str]:
        part = report["pairs"]
        return {name: text for name, text in self.citations.items()
                if part["available"] and part[name.lower()]["available"]}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["pairs"], "<h2>Image pairs</h2>"
        if not part["available"]:
            return title + html_missing("Image pairs", part)
        lines = [[name, *(with_ends(part[key], which, digits) for which in ("value", "floor", "ceiling"))]
                 for key, (name, digits) in MEASURES.items() if part[key]["available"]]
        said = (f"<p class=note>{part['num']} of {part['of']} generated volumes, each beside the real volume whose map "
                f"or images asked for it ({part['real']} different ones).</p>")
        head = ["pairs", "generated (95 % interval)", "floor: another real volume", f"ceiling: {CEILING}"]
        return title + said + html_table(head, lines, main=1) + "".join(
            html_missing(name, part[key]) for key, (name, _) in MEASURES.items())


def likeness(one: Case, other: Case, context: Comparison) -> np.ndarray:
    """MEASURES [3] of two volumes in the slices that count of the first, NaN for one that cannot be measured."""
    layout = context.layout
    one, other = one.inside, other._replace(held=one.held).inside
    return np.array([fidelity.psnr(one.image, other.image, layout.data_range), mean_ssim(one, other, layout),
                     np.nan if context.lpips is None else
                     context.lpips.distance(*(unit_range(each.image, layout) for each in (one, other)))])


def mean_ssim(one: Case, other: Case, layout: Layout) -> float:
    """Mean over the channels; NaN for sides that are too short for its windows."""
    window = min(7, *one.image.shape[1:])
    if window < 3:
        return float("nan")
    return float(np.mean([image.ssim(a, b, layout.data_range, window - 1 + window % 2)
                          for a, b in zip(one.image, other.image, strict=True)]))


def unit_range(volume: np.ndarray, layout: Layout) -> np.ndarray:
    """Intensities as shares of their range, 0 to 1."""
    return np.clip((volume - layout.lo) / layout.data_range, 0, 1).astype(np.float32)


def with_intervals(values: np.ndarray, key: str, groups: Sequence[object], seed: int) -> dict[str, float | None]:
    """The mean of values [P] with the ends of its interval; None without values."""
    names = [key or "value", *(f"{key}_{end}" if key else end for end in ("low", "high"))]
    if not np.isfinite(values).any():
        return dict.fromkeys(names)
    ends = bootstrap(lambda weights: weighted_means(values[:, None], weights), groups, seed)
    return dict(zip(names, (finite(x) for x in (np.nanmean(values), ends.low[0], ends.high[0])), strict=True))
