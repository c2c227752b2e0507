"""Whether a trained classifier finds in generated volumes the class that was asked for."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.formats.prediction import class_by_threshold
from edm3d.metrics.classification import confusion
from edm3d.reporting import charts
from edm3d.reporting.cases import Case
from edm3d.reporting.comparison import Classifier, Comparison
from edm3d.reporting.distances import wilson_interval
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.section import Score, Section, missing
from edm3d.reporting.sections.voxel_classes import MOST_CLASSES
from edm3d.reporting.tables import number, percent, with_ends

DRAWS = 2000
SETS = {"generated": "asked for, generated volumes", "real": "true, real volumes"}


class JudgedRow(NamedTuple):
    """What is kept of a volume: name of its class, attributes [A], and the class that was found."""

    class_name: str | None
    attributes: np.ndarray | None
    found: int


class CycleClassifier(Section):
    """Accuracy of a classifier on the classes that were asked for, beside its accuracy on real volumes.

    cycle.{available, classifier.{name, path, hash, predicts}, notes, num, accuracy, low, high, chance, floor}
    cycle.real.{available, num, accuracy, low, high, at_mix}   at_mix: at the shares in which classes were asked for
    cycle.{ratio, ratio_low, ratio_high}                       of accuracy to real.at_mix; null without
    cycle.by_class.NAME.{num, generated, real}                 shares found
    cycle.confusion.{generated, real}.[[...]]                  by class asked for or true, then by class found
    """

    words = {"cycle accuracy": "Share of generated volumes in which a trained classifier finds the class that they "
             "were asked for, with its Wilson interval. Accuracy on real volumes says how far the classifier is to be "
             "believed; the ratio is to real accuracy with every class in the share in which it was asked for, its "
             "interval by resampling both sets. Floor: the same against the classes that other samples were asked for."}
    sets = ("real", "generated")
    citations = {"cycle accuracy": "Ravuri S, Vinyals O. Classification accuracy score for conditional generative "
                                   "models. NeurIPS 2019 (a classifier against generated data)"}

    def measure(self, item: Case, context: Comparison) -> JudgedRow | None:
        judge = context.classifier
        if judge is None or (item.class_name not in judge.names if judge.threshold is None
                             else item.attributes is None):
            return None
        return JudgedRow(item.class_name, item.attributes, judge.class_of(item))

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, np.ndarray]:
        """Class that it should be, or -1, and that is found [N,2] by set."""
        judge = context.classifier
        return {} if judge is None else {
            name: np.array([(-1, -1) if row is None else (truth_of(judge, name, row), row.found) for row in kept]
                           ).reshape(-1, 2) for name, kept in rows.items()}

    def compute(self, found: dict[str, np.ndarray], context: Comparison) -> dict[str, Any]:
        judge = context.classifier
        if judge is None:
            return {"cycle": missing(context.missing.get("classifier", "no classifier was given (--classifier)"))}
        counts = {name: confusion(*rows[rows[:, 0] >= 0].T, len(judge.names)) for name, rows in found.items()}
        asked, real = counts["generated"], counts.get("real", np.zeros((len(judge.names),) * 2, np.int64))
        if not asked.any():
            return {"cycle": missing("no generated volume was asked for by a class that the classifier knows")}
        shares = {name: [finite_share(row[k], row.sum()) for k, row in enumerate(table)]
                  for name, table in (("generated", asked), ("real", real))}
        entry = {"available": True, "classifier": dict(judge.record), "notes": list(judge.notes), **accuracy(asked),
                 "chance": 1 / len(judge.names),
                 "floor": float(asked.sum(1) @ asked.sum(0) / asked.sum() ** 2),
                 "real": {"available": True, **accuracy(real), "at_mix": at_mix(asked[None], real[None])[0]}
                 if real.any() else missing("no real volume is of a class that the classifier knows"),
                 **ratio(asked, real, context.seed),
                 "by_class": {name: {"num": int(asked[k].sum()), **{key: of[k] for key, of in shares.items()}}
                              for k, name in enumerate(judge.names)},
                 "confusion": {"generated": asked.tolist(), "real": real.tolist()}}
        if entry["real"]["available"] and np.isnan(entry["real"]["at_mix"]):
            entry["real"]["at_mix"] = None
        return {"cycle": entry}

    def figures(self, found: dict[str, np.ndarray], context: Comparison, report: dict) -> dict[str, Figure]:
        part = report["cycle"]
        if not part["available"] or len(part["by_class"]) > MOST_CLASSES:
            return {}
        return {f"cycle_{name}": charts.confusion_chart(np.array(table), list(part["by_class"]), SETS[name])
                for name, table in part["confusion"].items() if np.any(table)}

    def columns(self, found: dict[str, np.ndarray], context: Comparison, name: str) -> dict[str, Sequence[str]]:
        if name not in found:
            return {}
        names = context.classifier.names
        return {"classifier_found": [names[k] if k >= 0 else "" for k in found[name][:, 1]]}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        part = report["cycle"]
        if not part["available"]:
            return []
        return [("class found by the classifier", percent(part["real"].get("accuracy")), percent(part["accuracy"]), "",
                 percent(part["floor"]), "")]

    def lines(self, report: dict) -> list[str]:
        part = report["cycle"]
        if not part["available"]:
            return [f"Cycle classifier: not available: {part['reason']}"]
        return [f"Cycle classifier: accuracy {with_ends(part, 'accuracy')} on generated, {said_of_real(part)} on real "
                f"volumes; ratio {with_ends(part, 'ratio')}", *part["notes"]]

    def facts(self, report: dict) -> list[tuple[str, str]]:
        part = report["cycle"]
        return [(percent(part["accuracy"]), "cycle accuracy of the class asked for")] if part["available"] else []

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        part = report["cycle"]
        if not part["available"]:
            return {}
        real = part["real"].get("at_mix")
        return {"consistency": [Score("cycle accuracy", part["accuracy"], low=part["low"], high=part["high"],
                                      floor=part["floor"], ceiling=real, real=part["real"].get("accuracy"))]}

    def cited(self, report: dict) -> Mapping[str, str]:
        return self.citations if report["cycle"]["available"] else {}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["cycle"], "<h2>Cycle classifier</h2>"
        if not part["available"]:
            return title + html_missing("Cycle classifier", part)
        judge, notes = part["classifier"], "".join(f"<p class=note>{escape(line)}</p>" for line in part["notes"])
        lines = [[name, percent(row["real"]), percent(row["generated"]), str(row["num"])]
                 for name, row in part["by_class"].items()]
        every = ["all", said_of_real(part), with_ends(part, "accuracy"), str(part["num"])]
        table = html_table(["class found", "real", "generated (95 % interval)", "generated volumes"],
                           [every, *lines], main=2)
        beside = html_table(None, [
            ["ratio to real, classes in the shares asked for", with_ends(part, "ratio")],
            ["floor: against the classes of other samples", number(part["floor"])],
            ["chance", number(part["chance"])]], kind="plain")
        said = (f"<p>By {escape(judge['path'])} ({escape(judge['hash'][:16])}), which predicts "
                f"{escape(judge['predicts'])}.</p>")
        return (title + said + notes + table + html_missing("Accuracy on real volumes", part["real"]) + beside
                + html_grid([f"cycle_{name}" for name in SETS], figures))


def truth_of(judge: Classifier, name: str, row: JudgedRow) -> int:
    """The class that the classifier is to find in a volume of a set, -1 where it is not known."""
    if judge.threshold is None:
        return judge.names.index(row.class_name) if row.class_name in judge.names else -1
    if row.attributes is None or name not in judge.columns:
        return -1
    return int(class_by_threshold(np.float32(row.attributes[judge.columns[name]]), judge.threshold))


def finite_share(part: int, whole: int) -> float | None:
    """A share, None of nothing."""
    return float(part / whole) if whole else None


def accuracy(counts: np.ndarray) -> dict[str, Any]:
    """Of a confusion table [K,K]: how many cases, the share that is right, and its interval."""
    right, total = int(np.trace(counts)), int(counts.sum())
    low, high = wilson_interval(right, total)
    return {"num": total, "accuracy": right / total, "low": low, "high": high}


def at_mix(asked: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Accuracy [R] of tables `real` [R,K,K] with classes in the shares of the rows of `asked` [R,K,K]; NaN where a
    class that was asked for has no real case.
    """
    mix, cases, right = asked.sum(2), real.sum(2), np.diagonal(real, axis1=1, axis2=2)
    each = np.divide(right, cases, out=np.full(right.shape, np.nan), where=cases > 0)
    return np.where(mix > 0, mix * each, 0).sum(1) / mix.sum(1)


def ratio(asked: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float | None]:
    """Accuracy of one table [K,K] by that of the other at its mix, with the interval over draws of both sets."""
    rng = np.random.default_rng(seed)

    def drawn(counts: np.ndarray) -> np.ndarray:
        return rng.multinomial(counts.sum(), (counts / counts.sum()).ravel(), DRAWS).reshape(-1, *counts.shape)

    def of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        beside, right = at_mix(one, other), np.trace(one, axis1=1, axis2=2) / one.sum((1, 2))
        return np.divide(right, beside, out=np.full(len(one), np.nan), where=beside > 0)

    value = of(asked[None], real[None])[0]
    if np.isnan(value):
        return dict.fromkeys(("ratio", "ratio_low", "ratio_high"))
    draws = of(drawn(asked), drawn(real))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {"ratio": float(value), "ratio_low": float(low), "ratio_high": float(high)}


def said_of_real(part: Mapping[str, Any]) -> str:
    """Accuracy on real volumes with its interval."""
    return with_ends(part["real"], "accuracy")
