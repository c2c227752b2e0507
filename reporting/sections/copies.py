"""Copies of training volumes among the samples."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.copies import LEVEL, Threshold, nearest_features
from edm3d.reporting import charts
from edm3d.reporting.audit import Copies, Distances, Planted, limit_of
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import wilson_interval
from edm3d.reporting.features import VOLUME
from edm3d.reporting.html import html_grid, html_missing, html_strips, html_table
from edm3d.reporting.section import Score, Section, missing
from edm3d.reporting.strips import strips
from edm3d.reporting.tables import number, percent

BY_LATENTS = ", by latents"
POWER = 0.95  # of planted copies of a kind: a distance that finds fewer sees such copies badly
PRIVATE = "reads private data, not for release"
NO_TRAIN = "the volumes that the networks learnt from were not given (--train)"


class CopiesFound(Section):
    """The nearest training volume of every sample.

    private.{marked, words, shown}                             where --train is given
    copies.{available, num, training, held_out, left_out, seconds, equal}
    copies.pixels.{available, threshold, of, rank, expected, low, high, closer, share, share_low, share_high, median,
                   held_out_median}     distances: 0 a copy, 1 as near as 1 of 20 training volumes to each other;
                   expected, low, high: share of false alarms at the threshold
    copies.latents                                             the same, 1: as far as the first stage moves a volume
    copies.features.NAME                                       the same, in standard deviations
    copies.planted.KIND.{available, num, found, right, low, high}   right: found and given its own original; of "KIND,
                                                               by latents" likewise
    copies.weak                                                kinds of which a distance finds too few, in words
    copies.twins.{available, closer, share, share_low, share_high, equal, floor}   floor: share of held-out volumes
    copies.closest[].{sample, training, distance}
    """

    words = {"copies": "The nearest training volume of each sample after a search over all flips, shifts by up to 2 "
                       "voxels, gain and offset. Closer than the threshold: nearer than 1 in 100 volumes "
                       "that are no copies: held-out ones, and training volumes held against the others, both gone "
                       "through the first stage where samples did. Planted copies were made by the audit itself.",
             "distance to training": "0: a copy; 1: as near as 1 in 20 training volumes is to another. The least over "
                                     "three bands of frequency, of 1 - correlation of what tells volumes apart. By "
                                     "latents 1 is as far as a training volume moves that is decoded of a draw of its "
                                     "posterior and encoded again, each latent in units of how far it then moves."}

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        audit = context.audit
        if audit is None:
            return {"copies": missing(NO_TRAIN)}
        marks = {"private": {"marked": audit.private, "shown": audit.shown, "words": PRIVATE if audit.private else ""}}
        if isinstance(audit.copies, str):
            return {**marks, "copies": missing(audit.copies)}
        part = audit.copies
        return {**marks, "copies": {
            "available": True, "num": len(part.nearest), "training": len(part.train_ids), "held_out": len(part.held),
            "left_out": part.left_out, "seconds": part.seconds, "equal": part.equal,
            "pixels": judged(distances_of(part), part.held_distances, part.others),
            "latents": missing(part.latent) if isinstance(part.latent, str) else
            judged(part.latent.samples, part.latent.held_out, part.latent.others),
            "features": {name: judged(each.samples, each.held_out, each.others)
                         for name, each in by_features(context).items()},
            "planted": (planted := planted_rows(part)), "weak": weak_kinds(planted), "twins": twin_row(part),
            "closest": [{"sample": sample_name(context, pair.number), "training": part.train_ids[pair.index],
                         "distance": pair.distance} for pair in part.pairs]}}

    def figures(self, found: Any, context: Comparison, report: dict) -> dict[str, Figure]:
        audit = context.audit
        if audit is None or isinstance(audit.copies, str):
            return {}
        chart = {"copies_distances": distances_chart(audit.copies)}
        return chart | (pair_pictures(audit.copies, context) if audit.shown else {})

    def columns(self, found: Any, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        audit = context.audit
        if audit is None or isinstance(audit.copies, str):
            return {}
        part = audit.copies
        if name == "generated":
            return {"nearest_training": [part.train_ids[each.index] for each in part.nearest],
                    "training_distance": [f"{each.distance:.6g}" for each in part.nearest]}
        of_held = dict(zip(part.held, part.held_distances, strict=True)) if name == "real" else {}
        count = len(found[name])
        return {"nearest_training": [""] * count,
                "training_distance": [f"{of_held[i]:.6g}" if i in of_held else "" for i in range(count)]}

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        part = report["copies"]
        rows = {"": part["pixels"], ", by latents": part["latents"]} if part["available"] else {}
        return {"compliance": [Score(f"samples nearer to training than 1 in 100 held-out{name}", row["share"],
                                     low=row["share_low"], high=row["share_high"], floor=row["expected"])
                               for name, row in rows.items() if row["available"]]}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        marks = [(PRIVATE, "this report")] if report.get("private", {}).get("marked") else []
        part = report["copies"]
        if part["available"] and part["pixels"]["available"]:
            marks.append((percent(part["pixels"]["share"]), "of samples nearer to training than 1 in 100 held-out"))
            if part["latents"]["available"]:
                marks.append((percent(part["latents"]["share"]), "the same by latents of the first stage"))
        return marks

    def lines(self, report: dict) -> list[str]:
        part = report["copies"]
        mark = [f"Report    {PRIVATE}"] if report.get("private", {}).get("marked") else []
        if not part["available"]:
            return [*mark, f"Copies: not available: {part['reason']}"]
        pixels = part["pixels"]
        share = f"{pixels['closer']} of {part['num']} samples nearer to training than the limit, " + expected(pixels) \
            if pixels["available"] else f"no threshold: {pixels['reason']}"
        latents = f"; by latents {part['latents']['closer']}, " + expected(part["latents"]) \
            if part["latents"]["available"] else ""
        return [*mark, f"Copies: {share}{latents}; {part['equal']} equal a training volume ({part['seconds']:.0f} s)",
                *part["weak"]]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part = report["copies"]
        if not part["available"]:
            return "<h2>Copies</h2>" + html_missing("Copies", part)
        marks = report["private"]
        note = f"<p class=missing>{escape(PRIVATE)}</p>" if marks["marked"] else ""
        pictures = html_strips("copies", figures) if marks["shown"] else \
            "<p class=missing>Pictures of the closest pairs: not available: the training volumes are private; " \
            "--show-private shows them</p>"
        return (f"<h2>Copies</h2>{note}<p>{part['num']} samples against {part['training']} training volumes, beside "
                f"{part['held_out']} held-out real ones; {part['left_out']} real volumes are training volumes and are "
                f"left out. {part['equal']} samples equal a training volume. {part['seconds']:.0f} s.</p>"
                + distance_table(part) + planted_table(part) + twins_text(part)
                + html_grid(["copies_distances"], figures) + pictures)


def sample_name(context: Comparison, index: int) -> str:
    """What a sample is called."""
    return f"seed {context.seeds[index]}" if len(context.seeds) > index else str(index)


def distances_of(part: Copies) -> np.ndarray:
    """Of all samples [N]."""
    return np.array([each.distance for each in part.nearest])


def judged(samples: np.ndarray, held_out: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """How many samples are nearer to training than volumes that are no copies usually are."""
    limit = limit_of(held_out, others)
    if limit is None:
        return missing("no real volume is held out: all are training volumes; give --real or --split others")
    closer = int((samples < limit.value).sum())
    low, high = wilson_interval(closer, len(samples))
    return {"available": True, "threshold": limit.value, "of": limit.num, "rank": limit.rank,
            "expected": limit.expected, "low": limit.low, "high": limit.high, "closer": closer,
            "share": closer / len(samples), "share_low": low, "share_high": high,
            "median": float(np.median(samples)), "held_out_median": float(np.median(held_out))}


def by_features(context: Comparison) -> dict[str, Distances]:
    """Distances by each extractor's features of whole volumes, of those that looked at all three sets."""
    found, part = {}, context.audit.copies
    for name, views in (context.features.found if context.features else {}).items():
        sets = views.get(VOLUME, {})
        if {"train", "real", "generated"} <= sets.keys() and len(sets["real"]) > max(part.held, default=-1):
            index, distances = nearest_features(sets["generated"], sets["train"])
            held = nearest_features(sets["real"][list(part.held)], sets["train"])[1] if len(part.held) else np.zeros(0)
            found[name] = Distances(index, distances, held)
    return found


def planted_rows(part: Copies) -> dict[str, dict]:
    """How many planted copies are found at the threshold, by kind."""
    rows = {kind: missing(reason) for kind, reason in part.not_planted.items()}
    rows |= {kind: planted_row(each, part.limit) for kind, each in part.planted.items()}
    if not isinstance(part.latent, str):
        limit = limit_of(part.latent.held_out, part.latent.others)
        rows |= {kind + BY_LATENTS: planted_row(each, limit) for kind, each in part.latent.planted.items()}
    return rows


def kinds_of(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The kinds of planted copies that there are."""
    return [name for name, row in rows.items() if row["available"] and not name.endswith(BY_LATENTS)]


def found_by(rows: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Mapping[str, Any]]:
    """How many of a kind are found by each distance that there is."""
    found = {"pixels": rows[kind], "latents": rows.get(kind + BY_LATENTS)}
    return {name: row for name, row in found.items() if row and row["available"]}


def weak_kinds(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is to be known of kinds of copies of which pixels or latents find less than POWER, a sentence for each."""
    said = []
    for kind in kinds_of(rows):
        found = found_by(rows, kind)
        strong = [name for name, row in found.items() if row["found"] >= POWER * row["num"]]
        counts = " and ".join(f"by {name} {row['found']} of {row['num']}" for name, row in found.items()
                              if name not in strong)
        end = f"read what {strong[0]} say of such copies" if strong else \
            "that no such copy is found among the samples does not say that there is none"
        said += [f"Planted, {kind}: this audit finds only {counts}; {end}."] * bool(counts)
    return said


def planted_row(each: Planted, limit: Threshold | None) -> dict[str, Any]:
    """How many copies of a kind are nearer than a threshold."""
    if limit is None:
        return missing("no real volume is held out, which would give the threshold")
    found = each.distances < limit.value
    low, high = wilson_interval(int(found.sum()), len(found))
    return {"available": True, "num": len(found), "found": int(found.sum()), "low": low, "high": high,
            "right": int((found & each.right).sum())}


def twin_row(part: Copies) -> dict[str, Any]:
    """How many samples have another that is nearer than the threshold."""
    if part.twins is None or part.limit is None:
        return missing("there are fewer than 2 samples" if part.twins is None else "no real volume is held out")
    closer = sum(each.distance < part.limit.value for each in part.twins)
    low, high = wilson_interval(closer, len(part.twins))
    floor = float((part.floor_twins < part.limit.value).mean()) if len(part.floor_twins) else None
    return {"available": True, "closer": closer, "share": closer / len(part.twins), "share_low": low,
            "share_high": high, "equal": part.equal_twins, "floor": floor}


def expected(row: Mapping[str, Any]) -> str:
    """What a threshold is worth."""
    return (f"at which {percent(row['expected'])} of held-out ones are expected "
            f"({percent(row['low'])} to {percent(row['high'])})")


def distance_table(part: Mapping[str, Any]) -> str:
    """Shares of samples closer than the threshold, by each distance."""
    named = {"pixels": part["pixels"], "latents": part["latents"],
             **{f"features, {name}": row for name, row in part["features"].items()}}
    rows = [[name, f"{percent(row['share'])} ({percent(row['share_low'])} to {percent(row['share_high'])})",
             f"{percent(row['expected'])} ({percent(row['low'])} to {percent(row['high'])})", number(row["median"]),
             number(row["held_out_median"]), number(row["threshold"])] for name, row in named.items()
            if row["available"]]
    first = [] if part["pixels"]["available"] and part["pixels"]["rank"] > 1 else \
        [f"<p class=note>{part['pixels'].get('of', 0)} volumes that are no copies: the threshold is the least of their "
         "distances, and more than 1 % of false alarms may be expected.</p>"]
    gone = "" if part["features"] else html_missing("Distance by features", missing(
        "no extractor looked at training, real and generated volumes"))
    return html_table(["distance", "closer than threshold", "expected of held-out", "median", "median, held out",
                       "threshold"], rows, main=1) + "".join(first) + gone + "".join(
        html_missing(f"Distance by {name}", row) for name, row in named.items())


def planted_table(part: Mapping[str, Any]) -> str:
    """What the audit finds of its own copies, by each distance, and what that means where it is little."""
    by_kind = {kind: found_by(part["planted"], kind) for kind in kinds_of(part["planted"])}
    names = list(max(by_kind.values(), key=len, default={"pixels": {}}))
    cells = [[kind, *(cell for row in found.values() for cell in (
        f"{row['found']} of {row['num']} ({percent(row['low'])} to {percent(row['high'])})", str(row["right"])))]
        for kind, found in by_kind.items()]
    head = [f"planted copies, at {100 * LEVEL:g} %", *(cell for name in names for cell in (
        f"found by {name} (95 %)", "given their own original"))]
    return html_table(head, cells, main=1) + "".join(html_missing(f"Planted, {kind}", row) for kind, row in
                                             part["planted"].items()) + "".join(
        f"<p class=missing>{escape(text)}</p>" for text in part["weak"])


def twins_text(part: Mapping[str, Any]) -> str:
    """Duplicates among the samples."""
    row = part["twins"]
    if not row["available"]:
        return html_missing("Duplicates among samples", row)
    floor = "" if row["floor"] is None else f" Of held-out volumes among themselves: {percent(row['floor'])}."
    return (f"<p>Duplicates among samples: {row['closer']} ({percent(row['share'])}) have another one nearer than the "
            f"threshold, {row['equal']} equal one before them.{floor}</p>")


def distances_chart(part: Copies) -> Figure:
    """Distances to training of samples, held-out volumes and planted copies."""
    figure, axes = charts.chart("distance to training", "share of volumes")
    planted = [each.distances for each in part.planted.values()]
    shown = {"held out": (part.held_distances, charts.COLOURS["real"]),
             "samples": (distances_of(part), charts.COLOURS["generated"]),
             "planted": (np.concatenate(planted) if planted else np.zeros(0), charts.COLOURS["noise"])}
    edges = np.linspace(0, max(1.2, *(values.max(initial=0) for values, _ in shown.values())), 49)
    for name, (values, colour) in shown.items():
        if len(values):
            axes.stairs(np.histogram(values, edges)[0] / len(values), edges, color=colour, lw=1.6,
                        label=f"{name} (n = {len(values)})")
    if part.limit is not None:
        axes.axvline(part.limit.value, color=charts.INK, lw=1, ls=":", label="threshold")
    charts.legend(figure)
    return figure


def pair_pictures(part: Copies, context: Comparison) -> dict[str, Figure]:
    """The closest pairs: a sample, its training volume where it is, and the size of their difference."""
    layout = context.layout
    blocks = [("Sample", [(pair.sample, None) for pair in part.pairs]),
              ("Nearest in training, moved to it", [(pair.training, None) for pair in part.pairs]),
              ("Difference", [(np.abs(pair.sample - pair.training) + layout.lo, None) for pair in part.pairs])]
    captions = [f"{sample_name(context, pair.number)} ~ {part.train_ids[pair.index]}, {pair.distance:.2f}"
                for pair in part.pairs]
    return strips("copies", blocks, layout, captions=captions)
