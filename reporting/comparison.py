"""The report of generated volumes against real ones: what its sections may ask for, and what stands around them.

Keys of its report.json, besides those of reporting.report and of its sections:
  real.{path, content_hash, reference, num}         what generated volumes are held against
  generated.{path, sha256, num, seeds, snapshot, snapshot_hash, sampling, quality, labels}
  generated.quality.{available, attempts, num_of_attempt, flagged, flagged_seeds, ranges, said}
                                                    samples that were drawn again; num_of_attempt: kept of each attempt
  generated.labels.{available, network, hash, source, settings}   the last four where they are of a segmenter
  train.{path, reference, num}                      where --train names what networks learnt from
  real.preparation, generated.trained_on.{source, content_hash}   how the real file was made; the data of the networks
  licences.{real data, weights, training data}      as files state them
  options.{split, seed, ignore_spacing, size}       by which volumes were compared
  noise.{available, num, seed}                      decoded noise: N(0, sigma_data^2) latents, decoded
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.sample_settings import SweptAttribute
from edm3d.reporting.audit import Audit
from edm3d.reporting.cases import Case
from edm3d.reporting.features import Features
from edm3d.reporting.html import html_facts
from edm3d.reporting.reference import Cases
from edm3d.reporting.report import Frame
from edm3d.reporting.section import COMPARED, NOISE, Context, Section
from edm3d.reporting.tables import aligned
from edm3d.utils.names import one_line

MOST_TEXT = 600  # characters of a cell
NOT_STATED = "not stated"  # of a licence
HEADER = ("", "real", "generated", "KS", "floor p99", NOISE)  # of the table on the terminal


class Classifier(NamedTuple):
    """A trained classifier: names of its classes, what is said of it, and the class that it gives a volume.

    threshold: where its classes are of an attribute, the value from which on a volume is of the second; columns: of
    this attribute among those of a case, by set.
    """

    names: Sequence[str]
    record: Mapping[str, str]
    notes: Sequence[str]
    class_of: Callable[[Case], int]
    threshold: float | None = None
    columns: Mapping[str, int] = {}


class Perceptual(NamedTuple):
    """A learned distance: what is said of it, and the distance of two images [C,*S] in [0,1]."""

    record: Mapping[str, str]
    distance: Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class Comparison(Context):
    """Real and generated volumes by number, and of the latter the seeds, and the ids that they were asked for by, if
    any; held_out: split of the set `decoded`; seed: of pairs and resampling. train: volumes that networks learnt from;
    features: of all sets, there as soon as all is measured; min_samples: volumes that a Frechet distance takes;
    audit: of copies and membership, where train is there.

    told: names of the classes of `Case.semantic`, of generated and of real volumes. partner: the real volume whose map
    or images asked for a generated one, by its number, None where there is none. utility: what a report of downstream
    networks says. ways: PNGs of the way from noise to image by name. sweep: the attribute that goes
    through values, if any. Why one of these is not there is in `missing`, by its name.
    """

    real: Cases
    generated: Cases
    seeds: Sequence[int] = ()
    asked: Sequence[str] = ()
    held_out: str = ""
    seed: int = 0
    train: Cases | None = None
    features: Features | None = None
    told: Mapping[str, Sequence[str]] = field(default_factory=dict)
    classifier: Classifier | None = None
    partner: Callable[[int], Case | None] | None = None
    lpips: Perceptual | None = None
    utility: Mapping[str, Any] | None = None
    min_samples: int = 2
    audit: Audit | None = None
    ways: Mapping[str, bytes] = field(default_factory=dict)
    sweep: SweptAttribute | None = None


def keys(context: Comparison, name: str, ids: Sequence[str]) -> dict[str, Sequence[str]]:
    """Set, id and seed of the volumes of a set, and the ids that they were asked for by, where any were."""
    of_seeds = {"seed": [str(seed) for seed in context.seeds], **({"asked": context.asked} if context.asked else {})}
    return {"set": [name] * len(ids), "id": ids,
            **{key: values if name == "generated" else [""] * len(ids) for key, values in of_seeds.items()}}


def head(report: dict, facts: list[tuple[str, str]]) -> str:
    """Top of the page."""
    real = report["real"]
    numbers = [(str(report["generated"]["num"]), "generated volumes"), (str(real["num"]), "real volumes")]
    return (f"<h1>Real against generated</h1>\n<p class=\"lead\">{escape(report['title'])}, {escape(report['date'])}. "
            f"Held against: {escape(real['reference'])}.</p>\n{html_facts([*numbers, *facts])}")


def origin(report: dict) -> list[list[str]]:
    """What was compared."""
    real, generated = report["real"], report["generated"]
    return [["real", f"{real['path']} (content {real['content_hash'][:16]})"],
            ["held against", real["reference"]],
            ["generated", f"{generated['path']} (sha256 {generated['sha256'][:16]})"],
            ["seeds", generated["seeds"]],
            ["snapshot", f"{generated['snapshot']} ({generated['snapshot_hash'][:16]})"],
            ["quality check", by_quality(generated["quality"])],
            *([["label maps", by_segmenter(generated["labels"])]] if "network" in generated["labels"] else []),
            ["sampling", json.dumps(generated["sampling"])],
            *([["made from", shortened(json.dumps(real["preparation"]))]] if real.get("preparation") else []),
            *([["networks learnt from", f"{training['source']} (content {training['content_hash'][:16]})"
                if training["content_hash"] else f"{training['source'] or 'data'}; the snapshot does not say which"]]
              if (training := generated.get("trained_on")) else []),
            *([f"licence, {name}", text] for name, text in report.get("licences", {}).items()),
            *([f"extractor {name}", f"{row['kind']} {row['source']} ({row['hash'][:16]}), {row['preprocessing']}"]
              for name, row in report.get("provenance", {}).get("extractors", {}).items())]


def shortened(text: str) -> str:
    """A text of a few lines at most."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ... (all in report.json)"


def by_quality(quality: Mapping) -> str:
    """What a quality check at generation did; it takes away what is unusual, so what is measured is of what it left."""
    if not quality["available"]:
        return f"none: {quality['reason']}"
    spans = ", ".join(f"{one_line(name)} {lo:.4g} to {hi:.4g}" for name, (lo, hi) in quality["ranges"].items())
    return f"{quality['said']} ({quality['attempts']} attempts at most; ranges {spans}); the report is of what was kept"


def by_segmenter(labels: Mapping) -> str:
    """Whose the label maps of generated volumes are that a segmenter gave."""
    whose = f"{one_line(labels['network'])} ({one_line(labels['hash'][:16])})"
    return f"of generated volumes by the segmenter {whose}; its errors count in what is measured on them"


def text(sections: Sequence[Section], report: dict) -> str:
    """What is held against what, and what all sections say, for the terminal."""
    table = aligned([HEADER, *(row for section in sections for row in section.rows(report))])
    lines = [line for section in sections for line in section.lines(report)]
    return "\n".join([f"Real      {report['real']['reference']}\n\n{table}\n", *lines])


FRAME = Frame(COMPARED, keys, head, origin)
