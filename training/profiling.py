"""Where the time of a step goes: its parts by the clock, a trace of a few steps, its share of the device's rate."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from edm3d.utils.files import atomic_path, write_text
from edm3d.utils.precision import HALVES

WARM_UP, TIMED, TRACED = 5, 10, 3  # steps: not looked at, by the clock, and after them under the profiler
WHOLE, REST = "step", "the rest"
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product gives the rate
PRODUCTS = 10
OPERATORS = 15
Mark = float | torch.cuda.Event


class Planned(NamedTuple):
    """What is known of a rank's step without making it: flops, and bytes at its peak by part."""

    flops: int
    memory: Mapping[str, int]


class Profile:
    """Watches the steps of a run from the sixth on and writes a folder: profile.txt and trace.json.gz.

    It reads clocks and nothing else: what is trained is the same to the last bit.
    """

    def __init__(self, folder: Path, device: torch.device, precision: str, images: int, plan: Planned | None,
                 log: Callable[[str], None]):
        """images: of a step, on this rank."""
        self.folder, self.device, self.precision, self.images = folder, device, precision, images
        self.plan, self.log = plan, log
        self.steps, self.trace = 0, None
        self.spans: list[tuple[str, Mark, Mark]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step of the run."""
        if self.steps == WARM_UP + TIMED:
            cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self.trace = profile(activities=[ProfilerActivity.CPU, *cuda])
            self.trace.start()
        with self.part(WHOLE):
            yield
        self.steps += 1
        if self.steps == WARM_UP + TIMED + TRACED:
            self.trace.stop()
            self.write()
            self.trace = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Around a part of a step, which may come several times."""
        if self.trace:
            with record_function(f"[{name}]"):
                yield
        elif WARM_UP <= self.steps < WARM_UP + TIMED:
            start = self.mark()
            yield
            self.spans.append((name, start, self.mark()))
        else:
            yield

    def mark(self) -> Mark:
        """Now, on a GPU at this place of its queue."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Mark, end: Mark) -> float:
        """Milliseconds from one mark to another."""
        return start.elapsed_time(end) if self.device.type == "cuda" else (end - start) * 1000

    def write(self) -> None:
        """The trace and the table."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.folder.mkdir(exist_ok=True)
        with atomic_path(self.folder / "trace.json.gz") as path:
            self.trace.export_chrome_trace(str(path))
        write_text(self.folder / "profile.txt", "\n".join(self.lines()) + "\n")
        self.log(f"Profile     {self.folder}/profile.txt and trace.json.gz (for ui.perfetto.dev)")

    def lines(self) -> Iterator[str]:
        """The table."""
        times = by_part([(name, self.between(start, end)) for name, start, end in self.spans])
        whole = times[WHOLE]
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else \
            f"the CPU, {torch.get_num_threads()} threads"
        yield f"A step of {self.images} images on {name}, {self.precision}: {whole:.2f} ms, " \
              f"{self.images / whole * 1000:.1f} images per second"
        yield f"Of {TIMED} steps after {WARM_UP} that of median length, " + (
            "by the clock of the GPU, which waits for the host where that is late:" if self.device.type == "cuda"
            else "by the clock:")
        yield from (f"    {part:<28s} {ms:10.2f} ms {ms / whole:6.1%}" for part, ms in times.items() if part != WHOLE)
        rate = matrix_rate(self.device, self.precision, self.mark, self.between)
        yield f"\nMatrix product of {SIDE[self.device.type]} x {SIDE[self.device.type]}, {self.precision}: " \
              f"{rate / 1e12:.3g} TFLOP/s"
        if self.plan:
            reached = self.plan.flops / (whole / 1000)
            yield f"The step: {self.plan.flops / 1e9:.4g} GFLOP by the plan, {reached / 1e12:.3g} TFLOP/s, " \
                  f"{reached / rate:.1%} of that"
            yield "\nMemory by the plan:"
            yield from (f"    {part:<28s} {count / 2 ** 20:10.1f} MiB" for part, count in self.plan.memory.items())
        else:
            yield "The step could not be planned: no share of that, and no memory by part"
        if self.device.type == "cuda":
            yield f"    {'measured, with the cache':<28s} {torch.cuda.max_memory_reserved() / 2 ** 20:10.1f} MiB"
        by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        yield f"\nOperators of {TRACED} steps; the profiler itself makes them slower:"
        yield self.trace.key_averages().table(sort_by=by, row_limit=OPERATORS, max_name_column_width=50)


def by_part(spans: list[tuple[str, float]]) -> dict[str, float]:
    """Times of the parts of the step of median length, with what is outside of all parts, and the whole last.

    spans: parts of steps with their times, in the order in which they ended; a step ends after its parts.
    """
    steps: list[dict[str, float]] = [{}]
    for name, took in spans:
        if name == WHOLE:
            steps[-1] |= {REST: took - sum(steps[-1].values()), WHOLE: took}
            steps.append({})
        else:
            steps[-1][name] = steps[-1].get(name, 0) + took
    ordered = sorted(steps[:-1], key=lambda step: step[WHOLE])
    return ordered[len(ordered) // 2]


def matrix_rate(device: torch.device, precision: str, mark: Callable[[], Mark],
                between: Callable[[Mark, Mark], float]) -> float:
    """Multiplications and sums per second of a large product of matrices in a precision, the median of a few."""
    side, random = SIDE[device.type], torch.Generator().manual_seed(0)  # not the run's random numbers
    a = torch.randn(side, side, generator=random).to(device, HALVES.get(precision, torch.float32))
    marks = []
    for _ in range(PRODUCTS + 3):
        start = mark()
        a @ a
        marks.append((start, mark()))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 2 * side ** 3 / statistics.median(between(*pair) / 1000 for pair in marks[3:])
