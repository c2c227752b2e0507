"""Which layout, compilation and images at a time make a step fastest on this device, measured at the start of a run.

What is chosen stands in the training states, and what goes on from one takes it over: it is never measured twice.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm3d.inference.batch import Batch, collate
from edm3d.training.phases import PhaseStep, Task
from edm3d.training.resume import RunRecord
from edm3d.training.step import split_batch
from edm3d.training.training_loop import Trainer
from edm3d.utils import distributed
from edm3d.utils.compiled import keep_compiled
from edm3d.utils.log import RunLog, is_lack_of_memory
from edm3d.utils.schema import Options
from edm3d.utils.stats import Collector

DEVICES = ("cuda",)  # where it is worth the time
WAYS = ((False, True), (True, True), (True, False))  # channels_last and compile, besides neither
WARM_UP, TIMED = 2, 3  # steps of each candidate
MARGIN = 0.03  # by which more than the plainest has to be faster


class Switches(NamedTuple):
    """The three options that are chosen."""

    channels_last: bool
    compile: bool
    batch_gpu: int

    @property
    def words(self) -> str:
        """As a line of the log says it."""
        ways = [name for name, on in (("compiled", self.compile), ("channels_last", self.channels_last)) if on]
        return f"{self.batch_gpu} at a time, {' and '.join(ways) or 'plain'}"


def taken_over(options: Options, environment: Mapping[str, Any]) -> Options:
    """Options with what a training state was made under; at other numbers of ranks, rounds that divide their share."""
    share = options.batch_size // distributed.world_size()
    most = environment.get("batch_gpu", share)
    return replace(options, channels_last=bool(environment.get("channels_last")),
                   compile=bool(environment.get("compile")),
                   batch_gpu=max(size for size in divisors(share) if size == 1 or size <= most))


def measured(options: Options, dataset: Sized, assemble: Callable[[], Task], device: torch.device,
             clock: Callable[[], float] = time.perf_counter) -> tuple[Options, list[str]]:
    """Options with the fastest choice, and lines that give the reason. All ranks call this together.

    assemble gives a fresh task, whose weights may be moved. ValueError where not even one image at a time fits.
    """
    keep_compiled()
    found: dict[Switches, float] = {}

    def seconds(choice: Switches) -> float:
        own = seconds_of(replace(options, **choice._asdict()), dataset, assemble, device, clock)
        found[choice], = distributed.max_over_ranks([own])
        return found[choice]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        best = choose(options.batch_size // distributed.world_size(), options.batch_gpu, seconds)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return replace(options, **best._asdict()), list(lines(found, best))


def choose(share: int, batch_gpu: int | None, seconds: Callable[[Switches], float]) -> Switches:
    """The fastest, by the seconds of a step (inf: no memory, or it does not compile), of a rank's share of the batch.

    Images at a time first, from batch_gpu (None: the share) down by halves or less, until fewer are no faster; then
    layout and compilation.
    """
    best, least = None, inf
    for size in sorted((size for size in divisors(share) if size <= (batch_gpu or share)), reverse=True):
        if best is not None and size > best.batch_gpu / 2:
            continue
        took = seconds(Switches(False, False, size))
        if took < least * (1 - MARGIN):
            best, least = Switches(False, False, size), took
        elif best is not None:
            break
    if best is None:
        raise ValueError("training.options.tune: not even a step with one image at a time fits the device's memory; "
                         "dataset_tool.py plan says what makes it smaller")
    plain = least
    for way in WAYS:
        took = seconds(candidate := Switches(*way, best.batch_gpu))
        if took < min(least, plain * (1 - MARGIN)):
            best, least = candidate, took
    return best


def divisors(count: int) -> list[int]:
    """All whole numbers that divide one, rising."""
    return [size for size in range(1, count + 1) if count % size == 0]


def seconds_of(options: Options, dataset: Sized, assemble: Callable[[], Task], device: torch.device,
               clock: Callable[[], float]) -> float:
    """Seconds of a step of this rank by itself; inf where memory runs out, or nothing can be compiled."""
    try:
        torch.manual_seed(options.seed)  # for the same weights on all ranks
        trainer = Trainer(assemble(), dataset, options, run_dir=Path(), device=device, log=RunLog(False),
                          record=RunRecord({}, dataset.facts if hasattr(dataset, "facts") else None))
        _, rounds = split_batch(options.batch_size, options.batch_gpu, distributed.world_size())
        items = iter(range(options.batch_size))
        batches = [collate([dataset[next(items) % len(dataset)] for _ in range(options.batch_gpu)])
                   for _ in range(rounds)]
        trainer.progress.nimg = trainer.total  # late phases have begun
        times = []
        for _ in range(WARM_UP + TIMED):
            start = clock()
            own_step(trainer, batches)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - start)
        return min(times[WARM_UP:])
    except RuntimeError as e:  # of torch.compile, too
        if not (is_lack_of_memory(e) or options.compile):
            raise
        return inf
    finally:
        trainer = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def own_step(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """What a rank does in a step without the others."""
    steps, handed = {}, [None] * len(batches)
    for i in range(len(trainer.task.phases)):
        _, totals, handed = trainer.stepper.accumulate(i, batches, trainer.progress.nimg, Collector(), handed)
        steps[i] = PhaseStep(torch.zeros((), device=trainer.device), totals, handed)
    trainer.apply(steps, torch.zeros((), dtype=torch.bool, device=trainer.device), Collector())
    trainer.average(trainer.progress.nimg)


def lines(found: Mapping[Switches, float], best: Switches) -> Iterator[str]:
    """What was measured, and what is chosen."""
    for choice, took in found.items():
        said = f"{took * 1000:.1f} ms a step" if took < inf else "no memory, or not to be compiled"
        yield f"Tune        {choice.words}: {said}{', chosen' if choice == best else ''}"
    yield (f"Tune        the same from the start, without measuring: training.options.channels_last="
           f"{str(best.channels_last).lower()} training.options.compile={str(best.compile).lower()} "
           f"training.options.batch_gpu={best.batch_gpu}")
