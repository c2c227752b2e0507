"""Claim: at 1 % false alarms the audit finds at least 95 of 100 planted copies of every kind, in 2D and in 3D.

What `evaluate.py --train` does (inference/audit.py), on echo phantoms of seeds of their own: training volumes, held-out
ones that give the threshold with them, and unseen ones in the place of samples, which tell how many false alarms there
are. `--first-stage` names a trained autoencoder (run, folder or snapshot): copies are then taken through it, too, with
noise of its posterior, and those of all kinds are looked for by pixels and by latents. One line of JSON: found and
right (found, and given its own original) of each kind, false alarms and what was expected, CPU seconds, and the
exponent by which the search grows with the number of volumes on both sides. Run from the checkout's top:
python -m benchmarks.copies --spatial-dims 2 --size 64 --seed 9000 [--first-stage results/echo_vae]
"""

import time
from pathlib import Path

import click
import numpy as np

from benchmarks.common import json_line
from edm3d.inference.audit import find_copies, through
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.phantoms import source_of
from edm3d.inference.snapshot import Snapshot
from edm3d.metrics.copies import Reference, Threshold
from edm3d.physics.phantom_kinds import PhantomSource
from edm3d.reporting.audit import Planted, limit_of
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.reference import Cases
from edm3d.utils.runs import find_file

DECODED = "pixels, through the first stage"


def drawn(source: PhantomSource, count: int, seed: int) -> Cases:
    """Phantoms of a seed."""
    found = [source.draw(i, seed) for i in range(count)]
    cases = [Case(f"phantom-seed{seed}-{i}", each.image[None], each.label) for i, each in enumerate(found)]
    return Cases(f"{count} phantoms of seed {seed}", count, cases.__getitem__)


def open_stage(run: str) -> FirstStage:
    """A trained autoencoder."""
    snapshot = Snapshot.read(find_file(run, "network-snapshot", Path("results"), "--first-stage"), "autoencoder")
    return FirstStage(snapshot.build(), snapshot.facts)


def found_of(planted: Planted, limit: float) -> dict[str, int]:
    """How many planted copies are found, and how many of these as a copy of what they are one of."""
    near = planted.distances < limit
    return {"found": int(near.sum()), "right": int((near & planted.right).sum())}


def exponent_of(train: Cases, unseen: Cases) -> float:
    """By which the CPU seconds of the search grow where there are 4 times as many volumes on both sides."""
    seconds = []
    for count in (len(train) // 4, len(train)):
        part = Reference(lambda i: train.case(i).image, count, 1.0)
        start = time.process_time()
        for i in range(20):
            part.nearest(unseen.case(i).image)
        seconds.append((time.process_time() - start) * count)
    return float(np.log(seconds[1] / seconds[0]) / np.log(4))


@click.command(help=__doc__)
@click.option("--spatial-dims", default=2)
@click.option("--size", default=64)
@click.option("--train", "num_train", default=256)
@click.option("--held-out", default=400)
@click.option("--unseen", "num_unseen", default=400)
@click.option("--copies", default=100)
@click.option("--seed", default=9000)
@click.option("--first-stage")
def main(spatial_dims: int, size: int, num_train: int, held_out: int, num_unseen: int, copies: int, seed: int,
         first_stage: str | None) -> None:
    source = source_of("echo", (size,), spatial_dims=spatial_dims)
    train, held, unseen = (drawn(source, count, seed + k) for k, count in enumerate((num_train, held_out, num_unseen)))
    layout = Layout(source.channels, source.label_classes, (1.0,) * spatial_dims, 0.0, 1.0, "a.u.")
    stage = open_stage(first_stage) if first_stage else "no --first-stage was given"
    sets = {"pixels": [*unseen]}
    if first_stage:
        rng = np.random.default_rng(seed)
        sets[DECODED] = [through(stage, case, rng) for case in unseen]
    samples = [case for each in sets.values() for case in each]
    start = time.process_time()
    audit = find_copies(Cases("", len(samples), samples.__getitem__), train, held, layout, stage, copies, seed)
    spent = time.process_time() - start
    kinds = {kind: found_of(planted, audit.limit.value) for kind, planted in audit.planted.items()}
    distances = np.array([each.distance for each in audit.nearest])
    alarms = {name: said(distances[i * num_unseen:(i + 1) * num_unseen], audit.limit) for i, name in enumerate(sets)}
    if not isinstance(audit.latent, str):
        limit = limit_of(audit.latent.held_out, audit.latent.others)
        alarms["latents"] = said(audit.latent.samples[num_unseen:], limit)
        kinds |= {f"{kind}, by latents": found_of(each, limit.value) for kind, each in audit.latent.planted.items()}
    print(json_line(f"copies of echo phantoms, {spatial_dims}D {size}: of {copies} of each kind", seed=seed,
                    train=num_train, held_out=held_out, unseen=num_unseen, least=0.95 * copies, planted=kinds,
                    false_alarms=alarms, cpu_seconds=round(spent, 1), exponent=round(exponent_of(train, unseen), 2)))


def said(distances: np.ndarray, limit: Threshold) -> dict[str, float | int]:
    """Of unseen volumes, and what the threshold promises of them."""
    return {"alarms": int((distances < limit.value).sum()), "of": len(distances), "expected": round(limit.expected, 4),
            "threshold_of": limit.num}


if __name__ == "__main__":
    main()
