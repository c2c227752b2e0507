"""Whether the label maps of generated volumes are the maps that these were asked for by."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm3d.metrics.bootstrap import bootstrap, weighted_means
from edm3d.metrics.overlap import joint_dice
from edm3d.reporting.cases import Case, DecodedCase
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.section import DECODED, Score, Section, missing
from edm3d.reporting.tables import finite, number, with_ends
from edm3d.utils.checks import listed

FLOOR_VOLUMES = 64  # that are held against a map of another
CEILING = "held-out volumes through the first stage"


class MapRow(NamedTuple):
    """What is kept of a volume: Dice [K] to the map that it was asked for by, and a digest of this map."""

    dice: np.ndarray
    asked: str


class MapFigures(NamedTuple):
    """Names of the classes, what was measured of generated and of decoded volumes, and what others' maps give; or why
    there is nothing.
    """

    names: Sequence[str]
    generated: list[MapRow | None]
    decoded: list[MapRow]
    floor: list[MapRow]
    reason: str = ""


class AskedMaps(Section):
    """Dice of the label map of each generated volume, drawn or of a segmenter, to the map that it was asked for by.

    asked_maps.{available, num, maps, floor_num, ceiling.{available, num}}     maps: how many different ones asked
    asked_maps.{mean, by_class.NAME}.{dice, low, high, floor, floor_low, floor_high, ceiling, ceiling_low, ceiling_high}
                                        mean: over the classes of each volume; null where there is none
    """

    words = {"Dice to the map asked for": "Overlap of the label map of a generated volume with the map that it was "
             "asked for by, of classes of the same name, mean over volumes; a class that is in neither is left out. "
             "Floor: the same with the map of another sample, which says how alike the maps are by themselves. "
             "Ceiling: real held-out volumes decoded again from their latents, against their own maps. Intervals: "
             "percentile bootstrap, samples of one map together."}
    sets = ("generated", *DECODED)

    def measure(self, item: Case | DecodedCase, context: Comparison) -> MapRow | None:
        if isinstance(item, DecodedCase):
            return map_row(item.decoded.label, item.real.semantic, shared_classes(context, "real"))
        return map_row(item.label, item.semantic, shared_classes(context, "generated"))

    def gather(self, rows: dict[str, list], context: Comparison) -> MapFigures:
        shared, generated = shared_classes(context, "generated"), rows.get("generated", [])
        if reason := why_not(context, generated):
            return MapFigures((), [], [], [], reason)
        decoded = [row for row in rows.get("decoded", []) if row is not None]
        same = [name for name, *_ in shared_classes(context, "real")] == [name for name, *_ in shared]
        return MapFigures([name for name, *_ in shared], generated, decoded if same else [],
                     shuffled(generated, context, shared))

    def compute(self, found: MapFigures, context: Comparison) -> dict[str, Any]:
        if found.reason:
            return {"asked_maps": missing(found.reason)}
        generated, columns = [row for row in found.generated if row is not None], {}
        for key, rows in (("", generated), ("floor", found.floor), ("ceiling", found.decoded)):
            columns |= with_intervals(rows, key, len(found.names), context.seed)
        entries = [{key: finite(values[k]) for key, values in columns.items()} for k in range(1 + len(found.names))]
        ceiling = {"available": True, "num": len(found.decoded)} if found.decoded else missing(
            context.missing.get("decoded") or "held-out volumes have no maps of the same classes")
        return {"asked_maps": {"available": True, "num": len(generated), "maps": len({row.asked for row in generated}),
                               "floor_num": len(found.floor), "ceiling": ceiling, "mean": entries[0],
                               "by_class": dict(zip(found.names, entries[1:], strict=True))}}

    def columns(self, found: MapFigures, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        if name != "generated":
            return {}
        return {f"dice_asked_{each}": ["" if row is None or np.isnan(row.dice[k]) else f"{row.dice[k]:.6g}"
                                       for row in found.generated] for k, each in enumerate(found.names)}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        part = report["asked_maps"]
        return [(number(part["mean"]["dice"]), "Dice to the map asked for")] if part["available"] else []

    def lines(self, report: dict) -> list[str]:
        part = report["asked_maps"]
        if not part["available"]:
            return [f"Maps as asked: not available: {part['reason']}"]
        row, floor, ceiling = part["mean"], "maps of other samples", CEILING
        return [f"Maps as asked: Dice {with_ends(row, 'dice')}; floor ({floor}) {with_ends(row, 'floor')}; ceiling "
                f"({ceiling}) {with_ends(row, 'ceiling')}"]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        part = report["asked_maps"]
        if not part["available"]:
            return {}
        row = part["mean"]
        return {"consistency": [Score("Dice to the map asked for", row["dice"], low=row["low"], high=row["high"],
                                      floor=row["floor"], ceiling=row["ceiling"])]}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["asked_maps"], "<h2>Maps as asked</h2>"
        if not part["available"]:
            return title + html_missing("Maps as asked", part)
        lines = [[name, *(with_ends(row, key) for key in ("dice", "floor", "ceiling"))]
                 for name, row in (("mean of classes", part["mean"]), *part["by_class"].items())]
        said = (f"<p class=note>{part['num']} volumes, asked for by {part['maps']} different maps. Floor: "
                f"{part['floor_num']} of them against the map of another.</p>")
        head = ["Dice to the map asked for", "generated (95 % interval)", "floor: maps of other samples",
                f"ceiling: {CEILING}"]
        return title + said + html_missing("Ceiling", part["ceiling"]) + html_table(head, lines, main=1)


def shared_classes(context: Comparison, name: str) -> list[tuple[str, int, int]]:
    """Classes that label maps and the maps of a set have by the same name but the first: name, and value in each."""
    told, classes = list(context.told.get(name, ())), context.layout.label_classes
    return [(each, value, told.index(each)) for value, each in enumerate(classes) if value and each in told]


def map_row(label: np.ndarray | None, asked: np.ndarray | None, shared: Sequence[tuple[str, int, int]]
            ) -> MapRow | None:
    """Of a volume, None where one of the maps is not there."""
    if label is None or asked is None or not shared:
        return None
    digest = hashlib.sha256(np.ascontiguousarray(asked)).hexdigest()
    return MapRow(joint_dice(label, asked, [pair[1:] for pair in shared]), digest)


def why_not(context: Comparison, rows: Sequence[MapRow | None]) -> str:
    """Why no map is held against another; '' where some are."""
    if any(row is not None for row in rows):
        return ""
    if context.missing.get("maps"):
        return context.missing["maps"]
    if not context.layout.label_classes:
        return "the generated volumes hold no label maps; a segmenter can give them some (dataset_tool.py segment)"
    return (f"no class of the maps that asked ({listed(context.told.get('generated', ())) or 'none'}) is one of the "
            f"label maps ({listed(context.layout.label_classes)})")


def shuffled(rows: Sequence[MapRow | None], context: Comparison, shared: Sequence[tuple[str, int, int]]
             ) -> list[MapRow]:
    """The first generated volumes, each against the map of another one that was asked for by another map."""
    rng, found = np.random.default_rng(context.seed), []
    digests = np.array(["" if row is None else row.asked for row in rows])
    for i in np.flatnonzero(digests != "")[:FLOOR_VOLUMES]:
        others = np.flatnonzero((digests != digests[i]) & (digests != ""))
        if len(others):
            other = context.generated.case(int(rng.choice(others))).semantic
            row = map_row(context.generated.case(int(i)).label, other, shared)
            found.append(MapRow(row.dice, digests[i]))
    return found


def with_intervals(rows: Sequence[MapRow], key: str, num_classes: int, seed: int) -> dict[str, np.ndarray]:
    """Means [1+K] over volumes, of all classes and of each, with the ends of their intervals; NaN without volumes."""
    names = [key or "dice", *(f"{key}_{end}" if key else end for end in ("low", "high"))]
    if not rows:
        return {name: np.full(1 + num_classes, np.nan) for name in names}
    dice = np.stack([row.dice for row in rows])
    values = np.concatenate([weighted_means(dice.T).T, dice], axis=1)
    ends = bootstrap(lambda weights: weighted_means(values, weights), [row.asked for row in rows], seed)
    return dict(zip(names, (weighted_means(values)[0], ends.low, ends.high), strict=True))
