"""What every benchmark shares: one JSON line per claim, with the machine it was measured on, and peaks of memory."""

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from torch.utils.flop_counter import FlopCounterMode

from edm3d.networks import layers

FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # environment in which what is freed goes back to the system
Result = TypeVar("Result")


def cpu_name() -> str:
    """The processor as its maker calls it, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def json_line(claim: str, **numbers: float | int | str | bool | None) -> str:
    """One line of JSON: the claim, date, machine and versions, then the numbers (ours, peer, ratio, limit, ...)."""
    machine = {"cpu": cpu_name(), "cores": usable_cores()}
    versions = {"python": platform.python_version(), "torch": version("torch")}
    return json.dumps({"claim": claim, "date": datetime.date.today().isoformat(), **machine, **versions, **numbers})


def repeated_first() -> AbstractContextManager:
    """Networks that up-sample before they convolve, as they are written, without the sums of RepeatConv."""
    return patch.object(layers, "FEW", sys.maxsize)


@contextmanager
def flops_as_written() -> Iterator[FlopCounterMode]:
    """Count FLOPs of networks layer by layer, as they are written: what RepeatConv saves is then time that is saved."""
    with repeated_first(), FlopCounterMode(display=False) as counter:
        yield counter


def clock_of(device: str) -> Callable[[], float]:
    """Seconds: of CPU time on a CPU, which other work on the machine hardly changes, by the wall on another device."""
    return time.process_time if device == "cpu" else time.perf_counter


def in_turns(variants: Mapping[str, Callable[[], object]], repeats: int,
             clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Median seconds of each by a clock (of CPU time), after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(repeats + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if round_:
                seconds[name].append(clock() - start)
    return {name: statistics.median(column) for name, column in seconds.items()}


def with_peak(work: Callable[[], Result]) -> tuple[Result, int]:
    """What `work` gives, and the bytes to which resident memory rose meanwhile above the level before (on Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak since now
    before = _resident("VmRSS")
    result = work()
    return result, _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
