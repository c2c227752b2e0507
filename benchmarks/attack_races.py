"""Two commands at once on one output, and commands killed at any moment: nothing is lost, nothing half left."""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.attack_files import Ground
from benchmarks.attack_judge import Offence, Verdict, findings_of, kind_of_death, kind_of_words
from benchmarks.attack_kinds import latents_in, niftis_in, report_in, volumes_in
from benchmarks.attack_watch import Observed, digest, own_bars, spread
from benchmarks.attack_world import ALONE, EVALUATE, GENERATE, LATENT_RUN, TOOL
from edm3d.formats.samples import SamplesFile
from edm3d.utils.files import TEMPORARY

HEAD_START_S = 0.25  # that one side of a race has at most
LATEST_S = 0.02      # after a change of the folder at which a kill comes at the latest
TRIES = 5            # to kill a command before it ends
SLOW = ("sampling.sampler.num_steps=12", "sampling.batch_size=1")


class Job(NamedTuple):
    """A command, what it writes to, and all that it must have left there: the same whoever else was at work."""

    name: str
    command: click.Command
    words: tuple[str, ...]
    dest: str
    read: Callable[[], object]


def drawn(name: str, seeds: str, *more: str, kind: str = "h5") -> Job:
    """Draw seeds into out; its rows there, and its NIfTI."""
    first, last = map(int, seeds.split("-"))

    def rows() -> object:
        file = SamplesFile(f"out/samples.{kind}")
        there = {seed: file.row("images", file.rows[seed]) for seed in range(first, last + 1)}
        pictures = niftis_in("out/nifti") if "sampling.nifti=true" in more else {}
        return [there, {name: image for name, image in pictures.items() if first <= int(name[4:10]) <= last}]

    words = (*LATENT_RUN, "sampling.network=latent.pt", "sampling.outdir=out", f"sampling.seeds={seeds}", *SLOW,
             f"sampling.format={kind}", *more)
    return Job(name, GENERATE, words, "out", rows)


def tool(name: str, read: Callable[[], object], dest: str, *words: str) -> Job:
    """A command of dataset_tool.py."""
    return Job(name, TOOL, (name.split(":")[0], *words, "--dest", dest), dest, read)


def decoded(name: str, latents: str, dest: str, *more: str, ids: str = "") -> Job:
    """Decode into a file or a folder; of a folder only what this side has made."""
    def read() -> object:
        if dest.endswith(".h5"):
            return volumes_in(dest)
        return {path: image for path, image in niftis_in(dest).items() if path.startswith((f"images/{ids}",
                                                                                           f"labels/{ids}"))}

    return tool(name, read, dest, "--latents", latents, *ALONE, *more)


ENCODE = tool("encode", partial(latents_in, "l.h5"), "l.h5", "--autoencoder", "stage.pt", "--source", "vols.h5",
              "--batch-size", "1", *ALONE)
ENCODE_OTHER = ENCODE._replace(name="encode: of others", words=(
    "encode", "--autoencoder", "stage2.pt", "--source", "vols2.h5", "--batch-size", "1", *ALONE, "--dest", "l.h5"))
DRAWN = drawn("generate", "0-3", "sampling.nifti=true")
DRAWN_MORE = drawn("generate: others", "4-7", "sampling.nifti=true")
DRAWN_OVERLAP = drawn("generate: overlapping", "2-5", "sampling.nifti=true")
NPZ, NPZ_MORE = (drawn(f"generate: npz {seeds}", seeds, kind="npz") for seeds in ("0-3", "4-7"))
DECODED = decoded("decode", "lat.h5", "d.h5", "--montage", "0")
DECODED_OTHER = decoded("decode: of others", "lat2.h5", "d.h5", "--montage", "0")
FOLDER = decoded("decode: folder", "lat.h5", "out", ids="item")
FOLDER_OTHER = decoded("decode: other to folder", "samples.h5", "out", ids="seed")
PREPARED = tool("prepare", partial(volumes_in, "p.h5"), "p.h5", "--images", "gz/images", "--labels", "gz/labels")
PREPARED_OTHER = tool("prepare: of others", partial(volumes_in, "p.h5"), "p.h5", "--images", "npy/images")
EXPORTED = tool("export", partial(niftis_in, "out"), "out", "vols.h5", "--format", "nifti")
EXPORTED_OTHER = tool("export: of others", partial(niftis_in, "out"), "out", "vols2.h5", "--format", "nifti")
REPORT, REPORT_OTHER = (Job(f"evaluate {seed}", EVALUATE, (
    "--real", "vols.h5", "--generated", samples, "--dest", "out", "--num-noise", "2", "--snapshot", "latent.pt",
    "--run-root", "out/results"),
    "out", report_in) for seed, samples in enumerate(("samples.h5", "samples2.h5")))
PAIRS = ((DRAWN, DRAWN_MORE), (ENCODE, ENCODE), (DECODED, DECODED), (FOLDER, FOLDER), (PREPARED, PREPARED_OTHER),
         (EXPORTED, EXPORTED), (REPORT, REPORT_OTHER), (DRAWN, FOLDER), (DRAWN, DRAWN_OVERLAP), (NPZ, NPZ_MORE),
         (ENCODE, ENCODE_OTHER), (DECODED, DECODED_OTHER), (FOLDER, FOLDER_OTHER), (EXPORTED, EXPORTED_OTHER),
         (PREPARED, PREPARED))
JOBS = (ENCODE, DRAWN, DECODED, FOLDER, PREPARED)


# ---- processes ----


def start(job: Job, work: Path, said: Path, pause: float = 0) -> ForkProcess:
    """Fork a command that works in a folder, its output in two files, said.1 and said.2."""
    def run() -> None:
        os.setsid()
        own_bars()
        os.chdir(work)
        streams = [open(f"{said}.{n}", "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
                   for n in (1, 2)]
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = streams
        time.sleep(pause)
        code: object = 0
        try:
            job.command.main([*job.words], prog_name="edm3d")
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 70
        for stream in streams:
            stream.flush()
        os._exit(code if isinstance(code, int) else bool(code))

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def ended(process: ForkProcess, name: str, said: Path, limit_s: float) -> Observed:
    """Wait for the end of a command, or kill it."""
    process.join(limit_s)
    code: int | str = process.exitcode if process.exitcode is not None else "hangs"
    if code == "hangs":
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    elif code < 0:
        code = f"signal {-code}"
    out, err = (path.read_text(errors="backslashreplace") if path.is_file() else ""
                for path in (Path(f"{said}.{n}") for n in (1, 2)))
    return Observed(name, code, out, err)


def read_of(job: Job, work: Path) -> str:
    """Hash of what a job has left in a folder, or why it cannot be read; in a process of its own."""
    def read() -> str:
        os.chdir(work)
        try:
            return digest(job.read())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return next(spread([read], 1))


def names_in(work: Path) -> set[str]:
    """All files, relative."""
    return {os.path.relpath(os.path.join(folder, name), work) for folder, _, names in os.walk(work) for name in names}


def fresh(ground: Ground, name: str) -> tuple[Path, Path]:
    """A folder of good files, and where output goes."""
    cage = ground.cages / name
    ground.copy(cage / "work")
    return cage / "work", cage / "said"


class Alone(NamedTuple):
    """What a job does undisturbed: hash of its result, all files then, how long it takes, and changes of files."""

    digest: str
    names: set[str]
    seconds: float
    changes: int


ALONE_JOBS: dict[str, Alone] = {}


def try_alone(jobs: list[Job], ground: Ground, at_a_time: int) -> None:
    """Run jobs undisturbed; RuntimeError when one does not work."""
    def task(job: Job) -> tuple[str, Observed, Alone]:
        work, said = fresh(ground, f"alone-{job.name.replace(' ', '-')}")
        begin = time.monotonic()
        process = start(job, work, said)
        changes = changes_in(process, work, ground.limit_s)
        seen = ended(process, job.name, said, ground.limit_s)
        seconds = time.monotonic() - begin
        found = Alone(read_of(job, work), names_in(work), seconds, changes)
        shutil.rmtree(work.parent)
        return job.name, seen, found

    for name, seen, found in spread([partial(task, job) for job in jobs], at_a_time):
        if seen.code or ":" in found.digest:
            raise RuntimeError(f"{name}: does not work alone ({seen.code}, {found.digest})\n{seen.text[-3000:]}")
        ALONE_JOBS[name] = found


def temporary_in(work: Path) -> list[str]:
    """Temporary files below a folder."""
    return sorted(name for name in names_in(work) if TEMPORARY.match(Path(name).name))


# ---- races ----


def race_trial(ground: Ground, number: int) -> Verdict:
    """Both sides of pair N mod pairs at once; each ends by 0 with its result there, or is refused by name."""
    pair, chance = PAIRS[number % len(PAIRS)], ground.chance("races", number)
    work, said = fresh(ground, f"races-{number}")
    pauses = chance.choice([(0, 0), (0, chance.uniform(0, HEAD_START_S)), (chance.uniform(0, HEAD_START_S), 0)])
    logs = [said.with_name(f"said-{side}") for side in (0, 1)]
    sides = [start(job, work, log, pause) for job, log, pause in zip(pair, logs, pauses)]
    seen = [ended(side, job.name, log, ground.limit_s) for side, job, log in zip(sides, pair, logs)]
    what, name = f"{pair[0].name} and {pair[1].name}", f"races/{number}"
    findings: list[Offence] = []
    for job, one in zip(pair, seen):
        faults = kind_of_death(one)
        if one.code and not faults:
            faults += kind_of_words(one, [job.dest])
        elif not one.code and (found := read_of(job, work)) != ALONE_JOBS[job.name].digest:
            faults.append("lost_outputs")
            one.err += f"\nits result is not there: {found}"
        findings += findings_of(faults, name, what, one)
    if all(one.code for one in seen):
        findings += findings_of(["lost_outputs"], name, f"{what}: both were refused", seen[0])
    if left := temporary_in(work):
        findings += findings_of(["leftovers"], name, f"{what}: {left[:3]}", seen[0])
    shutil.rmtree(work.parent)
    return Verdict("races", Counter(f"race ended {'+'.join('0' if not one.code else 'refused' for one in seen)}"
                                  for one in seen[:1]), findings)


# ---- kills ----


def await_moment(process: ForkProcess, work: Path, alone: Alone, chance: random.Random) -> None:
    """Wait for any moment, or for one shortly after one of the changes in the folder."""
    if chance.random() < 0.4:
        time.sleep(chance.uniform(0, alone.seconds))
        return
    changes_in(process, work, limit_s=float("inf"), most=chance.randint(1, max(1, alone.changes)))
    time.sleep(chance.choice([0, 0, chance.uniform(0, LATEST_S)]))


def changes_in(process: ForkProcess, work: Path, limit_s: float, most: float = float("inf")) -> int:
    """Look at the files until a process ends, or so many have come or gone; how many did."""
    known, changes, end = names_in(work), 0, time.monotonic() + limit_s
    while process.is_alive() and changes < most and time.monotonic() < end:
        found = names_in(work)
        changes += len(found ^ known)
        known = found
    return changes


def kill_trial(ground: Ground, number: int) -> Verdict:
    """Kill job N mod jobs, start it again: it ends by 0, with the same result, and nothing else is left."""
    job, chance = JOBS[number % len(JOBS)], ground.chance("kills", number)
    alone, name = ALONE_JOBS[job.name], f"kills/{number}"
    for attempt in range(TRIES):
        work, said = fresh(ground, f"kills-{number}")
        process = start(job, work, said)
        await_moment(process, work, alone, chance)
        process.kill()
        process.join()
        if process.exitcode or attempt == TRIES - 1:
            break
        shutil.rmtree(work.parent)
    outcome = "kill came too late" if process.exitcode == 0 else "kill in a write" if temporary_in(work) else "kill"
    seen = ended(start(job, work, said), job.name, said, ground.limit_s)
    faults = kind_of_death(seen)
    if seen.code and not faults:
        faults.append("lost_outputs")
    elif not seen.code and (found := read_of(job, work)) != alone.digest:
        faults.append("lost_outputs")
        seen.err += f"\nits result is not that of an undisturbed run: {found}"
    if not seen.code and (odd := sorted(names_in(work) ^ alone.names)):
        faults.append("leftovers")
        seen.err += f"\nother files than those of an undisturbed run: {odd[:5]}"
    findings = findings_of(faults, name, f"{job.name}: {outcome}", seen)
    shutil.rmtree(work.parent)
    return Verdict("kills", Counter({outcome: 1}), findings)
