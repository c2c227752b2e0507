"""What leaves a private run: snapshots that say nothing of their data but what training has paid for, and a statement.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.facts import Facts, LatentScaling, rows_of
from edm3d.formats.intensity import Intensity
from edm3d.formats.privacy import NAME, UNITS, Earlier, PrivacyStatement, once
from edm3d.inference.snapshot import Snapshot
from edm3d.training.private.budget import HASH, Budget
from edm3d.utils.files import write_text

LONG_S = 2
SOURCE = "private data"  # in place of a path
MINMAX = "minmax"  # the scaling of latents that takes their range
SAID = ("_target_", "split")  # of a data set, texts that say nothing of the data
PATHS = ("real", "conditions")  # of data, in the sampling half
ALWAYS = (
    "the choice of settings, and of when to stop, where private data was looked at for it",
    "the form of the data (channels, names of classes and attributes, shape, voxel size) and how many there are",
    "times and memory in log.txt, stats.jsonl and TensorBoard, which go with the sizes of batches",
    "the rest of the run folder: log.txt, status.json, config.yaml and training states name the data and have figures "
    "of them; only snapshots and samples are made to be given away",
)


class Release:
    """Makes snapshots of a private run fit to be given away.

    public: the snapshot that the weights started from; what it knows of its data is taken as public. measures: whether
    anything is measured on held-out items while training; trained: which part of the weights moves.
    refined: what is known of the privacy of the first stage that a network refines.
    """

    def __init__(self, budget: Budget, public: Snapshot | None = None, measures: bool = False, trained: str = "",
                 refined: PrivacyStatement | None = None):
        self.budget, self.public, self.measures, self.trained = budget, public, measures, trained
        self.refined = refined
        self.seconds = 0.0  # that the accountant took last

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """The same with its statement, and without what was measured on private data and no budget covers."""
        stage = snapshot.first_stage
        return replace(snapshot, facts=public_facts(snapshot.facts, self.public and self.public.facts),
                       config=without_sources(snapshot.config), privacy=self.statement(snapshot),
                       first_stage=stage and replace(stage, round_trip=None, scaling=needed(stage.scaling)))

    def fields(self, releases: bool) -> dict[str, float]:
        """How much is spent, among the numbers of a tick; while that is quickly told, or the tick releases something.
        """
        if not releases and self.seconds > LONG_S:
            return {}
        start = time.perf_counter()
        spent = self.budget.epsilon()
        self.seconds = time.perf_counter() - start
        return {"privacy/epsilon": spent}

    def statement(self, snapshot: Snapshot) -> PrivacyStatement:
        """What can be said of the weights by now."""
        budget, stage = self.budget, self.stage(snapshot)
        return PrivacyStatement(
            budget.epsilon(), budget.options.target_delta, budget.ledger, budget.options.noise_multiplicity,
            stage.words, "random" if self.public is None else f"of {started(self.public)}",
            list(self.not_covered(snapshot)), self.trained, self.earlier(stage))

    def stage(self, snapshot: Snapshot) -> "StageSaid":
        """What is known of the privacy of the first stage of what the network sees or refines."""
        stage, refines = snapshot.first_stage, snapshot.refines
        if stage is None and refines is None:
            return StageSaid("none, the network sees voxels")
        found, spent = (refines.first_stage, self.refined) if stage is None else (stage.hash, stage.privacy)
        name = (found or "of unknown weights")[:HASH]
        if spent is not None:
            return StageSaid(f"{name}, privately trained: {in_short(spent)}", name, spent)
        public = self.public and (self.public.first_stage or self.public.refines)
        if found and public and found in (getattr(public, "hash", None), getattr(public, "first_stage", None)):
            return StageSaid(f"{name}, that of the weights at the start, taken as public", name)
        return StageSaid(f"{name}, of which nothing is known: public, or not covered here", name, unknown=True)

    def earlier(self, stage: "StageSaid") -> list[Earlier]:
        """The private trainings that first stage and weights at the start come from, each once."""
        found = [] if stage.spent is None else stage.spent.as_earlier(f"first stage {stage.name}")
        if self.public is not None and self.public.privacy is not None:
            found += self.public.privacy.as_earlier(f"weights at the start, {self.public.hash[:HASH]}")
        return once(found)

    def not_covered(self, snapshot: Snapshot) -> Iterator[str]:
        """What else was taken from the data."""
        facts, known = snapshot.facts, self.public and self.public.facts
        if not said_before(facts.intensity, known and known.intensity):
            yield (f"the intensity range, {facts.intensity.lo:g} to {facts.intensity.hi:g} {facts.intensity.unit}, "
                   "unless it was fixed without looking at the data")
        means = attribute_means(snapshot.network)
        if means and means != (attribute_means(self.public.network) if self.public else []):
            yield "mean and standard deviation of the attributes, in the network, unless they were given"
        stage, said = snapshot.first_stage, self.stage(snapshot)
        public = self.public and self.public.first_stage
        if stage and needed(stage.scaling) != (public and needed(public.scaling)):
            ranged = ", and their range" if stage.scaling.scaling == MINMAX else ""
            yield f"mean and standard deviation of the latents{ranged}, by which they are scaled"
        if snapshot.refines and not (self.public and self.public.refines == snapshot.refines):
            yield "mean, gain and correlation by which a refiner scales what it draws"
        if snapshot.dose and snapshot.dose != (self.public and self.public.dose):
            yield "the mean scale of scans, by which a pair is drawn that has none, and the share of pixels beyond it"
        if said.unknown:
            yield f"what the first stage {said.name} has learnt, unless it was trained on other data"
        if self.measures:
            yield "what was measured on held-out items while training, and the choice of network-best.pt by it"
        if self.budget.options.unit == "record":
            yield "patients with several records, of which each counts by itself (training.privacy.unit=group)"
        yield from ALWAYS


class StageSaid(NamedTuple):
    """What can be said of a first stage: in words, the start of its hash, what it has spent, and whether it is unknown
    on whose data it was trained.
    """

    words: str
    name: str = ""
    spent: PrivacyStatement | None = None
    unknown: bool = False


def said_before(intensity: Intensity, known: Intensity | None) -> bool:
    """Whether an intensity range tells nothing: each image was scaled by itself, or public data has the same."""
    return intensity == known or intensity.percentiles is not None


def needed(scaling: LatentScaling) -> LatentScaling:
    """How latents are scaled, without the range of them where that takes no part in it."""
    return scaling if scaling.scaling == MINMAX else scaling._replace(limits=None)


def attribute_means(node: Mapping[str, Any]) -> list[Any]:
    """The means of attributes in a network node, and in the nodes in it."""
    inner = [value for value in node.values() if isinstance(value, Mapping)]
    return [mean for mean in (node.get("attribute_mean"),) if mean] + [
        mean for each in inner for mean in attribute_means(each)]


def started(public: Snapshot) -> str:
    """What is known of the weights that a run started from."""
    name = f"{public.path.name} ({public.hash[:HASH]})"
    return f"{name}, privately trained: {in_short(public.privacy)}" if public.privacy else f"{name}, taken as public"


def in_short(spent: PrivacyStatement) -> str:
    """What another training has spent."""
    return (f"epsilon {spent.epsilon:.4g} at delta {spent.delta:g} per {spent.ledger.unit}, of {spent.ledger.count} "
            f"{UNITS[spent.ledger.unit]} of its own")


def public_facts(facts: Facts, known: Facts | None) -> Facts:
    """What is known of data without what only they could tell: ids, place, hash, statistics, orientation."""
    spacing = [*map(float, facts.spacing), *[1.0] * (3 - len(facts.spacing))]
    same = known is not None and known.attribute_names == facts.attribute_names
    return replace(facts, source=SOURCE, content_hash="", latents=None, affine=rows_of(np.diag([*spacing, 1.0])),
                   attribute_statistics=known.attribute_statistics if same else None)


def without_sources(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the places of data, and other words about them, and without a measurement."""
    training, sampling = dict(config.get("training") or {}), dict(config.get("sampling") or {})
    if isinstance(training.get("dataset"), Mapping):
        training["dataset"] = {k: v for k, v in training["dataset"].items() if k in SAID or not has_text(v)}
    sampling |= {name: None for name in PATHS if name in sampling} | ({"posterior": {}} if sampling else {})
    if isinstance(sampling.get("quality"), Mapping):
        sampling["quality"] = {**sampling["quality"], "reference": None}
    return {**config, **({"training": training} if training else {}), **({"sampling": sampling} if sampling else {})}


def has_text(value: object) -> bool:
    """Whether a plain value is a text or holds one, which may be a place or an id."""
    if isinstance(value, Mapping):
        return any(map(has_text, value.values()))
    return isinstance(value, str) or (isinstance(value, Sequence) and any(map(has_text, value)))


def write_statement(run_dir: Path, statement: PrivacyStatement) -> None:
    """Keep a statement in a run folder."""
    write_text(run_dir / NAME, json.dumps(statement.plain(), indent=1) + "\n")

