"""The report of generated volumes against real ones: what its sections may ask for, and what stands around them.

Keys of its report.json, besides those of reporting.report and of its sections:
  real.{path, content_hash, reference, num}         what generated volumes are held against
  generated.{path, sha256, num, seeds, snapshot, snapshot_hash, sampling, labels}
  generated.labels.{available, network, hash, source, settings}   the last four where they are of a segmenter
  train.{path, reference, num}                      where --train names what networks learnt from
  noise.{available, num, seed}                      decoded noise: N(0, sigma_data^2) latents, decoded
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edm3d.reporting.audit import Audit
from edm3d.reporting.features import Features
from edm3d.reporting.html import html_facts
from edm3d.reporting.reference import Cases
from edm3d.reporting.report import Frame
from edm3d.reporting.section import COMPARED, NOISE, Context, Section
from edm3d.reporting.tables import aligned
from edm3d.utils.names import one_line

HEADER = ("", "real", "generated", "KS", "floor p99", NOISE)  # of the table on the terminal


@dataclass(frozen=True, kw_only=True)
class Comparison(Context):
    """Real and generated volumes by number, and of the latter the seeds, and the ids that they were asked for by, if
    any; held_out: split of the set `decoded`; seed: of pairs and resampling. train: volumes that networks learnt from;
    features: of all sets, there as soon as all is measured; audit: of copies and membership, where train is there.
    """

    real: Cases
    generated: Cases
    seeds: Sequence[int] = ()
    asked: Sequence[str] = ()
    held_out: str = ""
    seed: int = 0
    train: Cases | None = None
    features: Features | None = None
    audit: Audit | None = None


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
            *([["label maps", by_segmenter(generated["labels"])]] if "network" in generated["labels"] else []),
            ["sampling", json.dumps(generated["sampling"])]]


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
