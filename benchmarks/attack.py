"""Claim: no damaged or hostile file, race or kill makes a command lie, run what a file says, or lose what is there.

Run from the top of the checkout: python -m benchmarks.attack [--share 0.02] [--seed 0] [--report FILE.jsonl]

Bad files are read by every command that reads their kind, in forks of this process, which has imported everything and
holds what the same commands make of good files; each is watched (attack_watch.py) and judged (attack_judge.py). A
finding is seen again by --only PART/NUMBER and the same --seed.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import IO

os.environ["MPLBACKEND"] = "Agg"

import click
import torch

from benchmarks.attack_files import Ground, content_kinds, content_trial, damage_trial, try_whole
from benchmarks.attack_judge import FAULTS, Verdict
from benchmarks.attack_kinds import all_kinds
from benchmarks.attack_names import PLACES, name_trial
from benchmarks.attack_races import JOBS, PAIRS, kill_trial, race_trial, try_alone
from benchmarks.attack_watch import spread
from benchmarks.attack_world import make_world
from benchmarks.common import json_line, usable_cores

WHOLE = {"damages": 2000, "contents": 500, "names": 200, "races": 60, "kills": 100}
MEMORY = "/dev/shm"  # where there is one, nobody waits for a disk
SHOWN = 25  # findings of a fault that go to stderr


def numbers_of(share: float, only: str | None) -> dict[str, list[int]]:
    """Which trials of each part: spread over all of them, at least one; or the one that is asked for."""
    if only:
        part, _, number = only.partition("/")
        if part not in WHOLE or not number.isdecimal():
            raise click.BadParameter(f"{only}: wanted {', '.join(WHOLE)} and a number, as in damages/17")
        return {name: [int(number)] * (name == part) for name in WHOLE}
    counts = {name: max(1, round(share * count)) for name, count in WHOLE.items()}
    return {name: sorted(random.Random(name).sample(range(WHOLE[name]), count)) for name, count in counts.items()}


def tasks_of(ground: Ground, numbers: dict[str, list[int]], jobs: int) -> list[Callable[[], Verdict]]:
    """All trials, once the commands have shown what they do undisturbed."""
    kinds = all_kinds()
    sealed = content_kinds(kinds)
    makers = {"damages": partial(damage_trial, ground, kinds), "contents": partial(content_trial, ground, sealed),
              "names": partial(name_trial, ground), "races": partial(race_trial, ground),
              "kills": partial(kill_trial, ground)}
    if len(numbers["damages"]) > len(kinds):  # all are used, most of them often; else they are seen when needed
        try_whole([(each.name, each.commands) for each in (*kinds, *PLACES)], ground, jobs)
    jobs_used = {JOBS[n % len(JOBS)] for n in numbers["kills"]} | {
        job for n in numbers["races"] for job in PAIRS[n % len(PAIRS)]}
    try_alone(sorted(jobs_used, key=lambda job: job.name), ground, jobs)
    return [partial(makers[part], number) for part in WHOLE for number in numbers[part]]


def attack(numbers: dict[str, list[int]], seed: int, jobs: int, report: IO[str] | None) -> tuple[dict, bool]:
    """Run all trials; the numbers to print, and whether there was a fault. Findings go to stderr and the report."""
    torch.set_num_threads(1)
    start, faults, outcomes = time.monotonic(), Counter[str](), Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="attack-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null):
            make_world(folder / "world")
        ground = Ground(seed, folder / "world", folder / "cages", {})
        for trial in spread(tasks_of(ground, numbers, jobs), jobs):
            outcomes += trial.outcomes
            for finding in trial.findings:
                faults[finding.fault] += 1
                if report:
                    print(json.dumps({"seed": seed, **finding._asdict()}), file=report, flush=True)
                if faults[finding.fault] <= SHOWN:
                    print(f"{finding.fault}: {finding.trial} {finding.what}; {finding.command}\n    "
                          + finding.last_lines.replace("\n", "\n    "), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = {part: len(found) for part, found in numbers.items()}
    return {**counts, "commands": sum(outcomes.values()), **{name: outcomes[name] for name in sorted(outcomes)},
            **{name: faults[name] for name in FAULTS}, "seed": seed, "jobs": jobs,
            "seconds": round(time.monotonic() - start)}, bool(faults)


@click.command()
@click.option("--share", default=1.0, show_default=True, type=click.FloatRange(0, 1), help="Of all trials.")
@click.option("--seed", default=0, show_default=True, help="Of the damages and moments.")
@click.option("--jobs", default=usable_cores(), show_default=True, type=click.IntRange(min=1), help="At a time.")
@click.option("--only", help="A single trial, as in damages/17.")
@click.option("--parts", default=",".join(WHOLE), show_default=True, help="Leave the others out.")
@click.option("--report", type=click.File("w"), help="A line of JSON for each finding.")
def main(share: float, seed: int, jobs: int, only: str | None, parts: str, report: IO[str] | None) -> None:
    """Attack every command that reads files, and print one line of JSON; exit code 1 for any fault."""
    numbers = numbers_of(share, only)
    chosen: Sequence[str] = parts.split(",")
    numbers = {part: found if part in chosen else [] for part, found in numbers.items()}
    found, bad = attack(numbers, seed, jobs, report)
    print(json_line("bad files, races and kills: nothing lies, nothing rules, nothing is lost", **found))
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
