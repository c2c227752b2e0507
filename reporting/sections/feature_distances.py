"""How far generated volumes are from real ones in features, by every extractor, of volumes and of planes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from edm3d.reporting.charts import distances_chart
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.feature_measures import EXTRAPOLATED, METRICS, SHARES, compare_view
from edm3d.reporting.features import SLICES, VOLUME, Features
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.section import NOISE, Section, missing
from edm3d.reporting.tables import aligned
from edm3d.utils.names import one_line

TITLES = {"frechet": "Frechet distance", EXTRAPOLATED: "Frechet, extrapolated", "kid": "KID", "mmd": "MMD",
          **{name: name for name in SHARES}}
COLUMNS = {"matched": "generated", "floor_median": "real", "floor_p95": "95 %", "floor_p99": "99 %", "noise": NOISE,
           "train": "training"}
NO_PASS = "no features were made"


class FeatureDistances(Section):
    """Distances and shares in features, of which `Comparison.features` has as many as there are.

    feature_distances.{available, min_samples, missing.NAME}      missing: why an extractor, or a second one, is not
                                                                  there
    feature_distances.extractors.NAME.{kind, source, hash, preprocessing, relative, width, seconds, views.VIEW}
    views.VIEW.{num.SET, rows_per_volume, at, at_noise, at_train, draws, bandwidth, METRIC}
    METRIC.{available, value, low, high}                          of all volumes, and its 95 % interval; the Frechet
                                                                  distance has none, frechet_extrapolated has
    METRIC.{matched, floor_median, floor_p95, floor_p99}          of `at` generated and as many real volumes; of two
                                                                  halves of the real set, `at` in each: of distances
                                                                  what so many halves stay below, of shares what they
                                                                  reach
    METRIC.{noise, train}                                         of `at_noise` volumes of decoded noise, and `at_train`
                                                                  training volumes, against as many real ones
    VIEW is volume, or a plane by name; METRIC: frechet, frechet_extrapolated, kid, mmd, precision, recall, density,
    coverage. Numbers that there are not are null.
    """

    words = {
        "Frechet distance": "Of two normal distributions with the means and covariances of the features of two sets "
                            "(Heusel et al. 2017). Few volumes push it up: compare it at one number of volumes, by one "
                            "extractor, alone. It has no interval, since none about it holds the true distance.",
        "Frechet, extrapolated": "The Frechet distance of unlimited volumes: twice that of all volumes less that of "
                                 "halves of both sets, since what few volumes add goes as one by their number (Chong "
                                 "and Forsyth 2020). About 0, below too, for equal distributions. Its interval: the "
                                 "volumes of both sets drawn anew with repeats, the draws moved so that their median "
                                 "is the value. Not of fewer than 1.5 times as many volumes as features.",
        "KID": "Kernel distance (Binkowski et al. 2018): unbiased squared maximum mean discrepancy with the kernel "
               "(x y / d + 1)^3 on d features; about 0, below too, for equal distributions. Its interval and that of "
               "MMD: 1000 draws of volumes with repeats, no volume paired with itself. Slices of one volume are none "
               "of its pairs either.",
        "MMD": "The same with the kernel exp(-|x - y|^2 / (2 b^2)), b the median distance of two real volumes (Gretton "
               "et al. 2012).",
        "precision": "Share of generated volumes that lie within reach of a real one: no farther than its fifth "
                     "nearest real neighbour (Kynkaanniemi et al. 2019). Of planes one slice of each volume counts.",
        "recall": "Share of real volumes that lie within reach of a generated one, likewise.",
        "density": "How many real volumes reach a generated one, by five (Naeem et al. 2020); 1 for equal "
                   "distributions, and no upper end.",
        "coverage": "Share of real volumes that have a generated one within reach (Naeem et al. 2020).",
        "relative only": "Features of a network that has learnt nothing: its distances say which of two sets in one "
                         "report is nearer, and compare with no other number.",
    }
    sets = ()

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, Any]:
        features = context.features
        if features is None:
            return missing(NO_PASS)
        found = {name: described(features, name) | {"views": {
            view: compare_view(sets, 1 if view == VOLUME else SLICES, context.min_samples, context.seed)
            for view, sets in features.found.get(name, {}).items()}} for name in features.records}
        why = "; ".join(f"{name}: {reason}" for name, reason in features.missing.items())
        return {"available": True, "min_samples": context.min_samples, "missing": dict(features.missing),
                "extractors": found} if found else missing(why or NO_PASS)

    def compute(self, found: dict[str, Any], context: Comparison) -> dict[str, Any]:
        return {"feature_distances": found}

    def figures(self, found: dict[str, Any], context: Comparison, report: dict) -> dict[str, Figure]:
        return {figure_name(name, view): distances_chart(rows, f"{name}, {view}")
                for name, view, part in parts(found) if (rows := {
                    TITLES[metric]: part[metric] for metric in METRICS
                    if part[metric]["available"] and part[metric]["floor_median"] is not None})}

    def lines(self, report: dict) -> list[str]:
        found = report["feature_distances"]
        if not found["available"]:
            return [f"Feature distances: not available: {found['reason']}"]
        lines = []
        for name, view, part in parts(found):
            lines += ["", about_view(name, found["extractors"][name], view, part),
                      *(aligned([head(part), *body]).split("\n") if (body := table(part)) else [])]
        gone = [f"Warning: {what}: not available: {part['reason']}" for what, part in absent(found)]
        missing_ = [f"Features of {one_line(name)}: not available: {reason}" if name != "second extractor"
                    else f"No second extractor: {reason}" for name, reason in found["missing"].items()]
        return [*lines, "", *gone, *missing_]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        found = report["feature_distances"]
        body = f"<h2>Distances in features</h2>{html_missing('Distances in features', found)}"
        if not found["available"]:
            return body
        for name, reason in found["missing"].items():
            body += html_missing(f"Features of {name}" if name != "second extractor" else "A second extractor",
                                 missing(reason))
        body += html_table(["extractor", "what it is", "images as it sees them", "features", "seconds", "hash"], [
            [name + (", relative only" if each["relative"] else ""), each["source"], each["preprocessing"],
             str(each["width"]), f"{each['seconds']:.1f}", each["hash"][:16]]
            for name, each in found["extractors"].items()], kind="words")
        for name, view, part in parts(found):
            rows = table(part)
            body += html_table([about_view(name, found["extractors"][name], view, part), *head(part)[1:]], rows,
                               main=1) if rows else ""
        body += "".join(html_missing(*each) for each in absent(found))
        return body + html_grid([figure_name(name, view) for name, view, _ in parts(found)], figures) + "\n"


def described(features: Features, name: str) -> dict[str, Any]:
    """What report.json says of an extractor."""
    record = features.records[name]._asdict()
    return {key: value for key, value in record.items() if key != "name"} | {"seconds": features.seconds.get(name)}


def parts(found: Mapping[str, Any]) -> Iterator[tuple[str, str, dict]]:
    """Extractor, view and what is said of it."""
    for name, each in found.get("extractors", {}).items():
        for view, part in each["views"].items():
            yield name, view, part


def absent(found: Mapping[str, Any]) -> list[tuple[str, dict]]:
    """Which metrics of which views are not there, and why; those of one reason together."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, view, part in parts(found):
        metrics: dict[str, list[str]] = defaultdict(list)
        for metric in METRICS:
            if not part[metric]["available"]:
                metrics[part[metric]["reason"]].append(TITLES[metric])
        for reason, titles in metrics.items():
            places[" and ".join(titles), reason].append(f"{one_line(name)}, {view}")
    return [(f"{titles} ({'; '.join(views)})", missing(reason)) for (titles, reason), views in places.items()]


def figure_name(name: str, view: str) -> str:
    """Of the chart of a view."""
    return f"features_{name}_{view}".replace(" ", "_").replace(",", "")


def about_view(name: str, extractor: Mapping, view: str, part: Mapping) -> str:
    """Extractor, view and how many volumes."""
    return (f"{one_line(name)}, {view}{', relative only' if extractor['relative'] else ''}: "
            f"{part['num']['generated']} generated, {part['num']['real']} real")


def head(part: Mapping) -> list[str]:
    """Of the table of a view."""
    at = f"{part['at']} against {part['at']}"
    return ["", "all", "95 % interval", f"{at}: generated", "real against real", "95 %", "99 %",
            NOISE + (f" ({part['at_noise']})" if part["at_noise"] else ""),
            "training" + (f" ({part['at_train']})" if part["at_train"] else "")]


def table(part: Mapping) -> list[list[str]]:
    """A row for each metric that there is."""
    return [[TITLES[metric], short(row["value"]), "-" if row["low"] is None else
             f"{short(row['low'])} to {short(row['high'])}", *(short(row[key]) for key in COLUMNS)]
            for metric in METRICS if (row := part[metric])["available"]]


def short(value: float | None) -> str:
    """A number of three digits, whatever its size."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
