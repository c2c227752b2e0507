"""Claim: the memory of making one samples file of old samples and new parts does not grow with their number.

Half of the samples lie in a file, half in parts; each merge is a process of its own, and counted is what its resident
memory rises to above the level before. The rise from 250 to 2,000 samples is less than a tenth of what they hold.

Run from the top of the checkout: python -m benchmarks.merge_memory [--few 250] [--many 2000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import FREEING, json_line, with_peak
from edm3d.formats.facts import Facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import FORMATS, SamplesFile, write_rows
from edm3d.inference.generation import merge
from edm3d.inference.parts import Parts

ROOT = Path(__file__).resolve().parents[1]
ROWS = {"latents": (4, 8, 8, 8), "images": (1, 24, 24, 24), "labels": (24, 24, 24)}
BYTES = sum(np.prod(shape) * (1 if name == "labels" else 4) for name, shape in ROWS.items())  # of a sample
LIMIT = 0.1
META = SampleMeta(Facts("", ""), "", "", {})


def sample(seed: int) -> dict[str, np.ndarray]:
    """Latents, image and label map of a seed."""
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 4, shape, np.uint8) if name == "labels" else random.random(shape, np.float32)
            for name, shape in ROWS.items()}


def write(path: Path, parts: Parts, count: int) -> None:
    """Even seeds in a file, odd ones in parts."""
    seeds = list(range(0, count, 2))
    write_rows(path, seeds, list(ROWS), lambda name, index: sample(seeds[index])[name], np.eye(4), META)
    for seed in range(1, count, 2):
        parts.write(seed, sample(seed))


def measure(path: Path, count: int) -> None:
    """Merge, and print peak and seconds."""
    parts, warm = (Parts(path.parent / name, name, lambda *_: None) for name in ("parts", "warm"))
    first = path.with_stem("first")
    write(path, parts, count)
    write(first, warm, 4)
    merge(first, SamplesFile(first), warm, [1, 3], META)  # what is loaded at the first call
    start = time.perf_counter()
    merged, peak = with_peak(lambda: merge(path, SamplesFile(path), parts, list(range(1, count, 2)), META))
    seconds = time.perf_counter() - start
    for seed in (0, count - 1):
        assert all(np.array_equal(merged.row(name, seed), array) for name, array in sample(seed).items())
    print(json.dumps({"peak": peak, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=250)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), int(given.measure[1]))
        return
    numbers = {}
    for kind in FORMATS:
        for count in (given.few, given.many):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "benchmarks.merge_memory", "--measure", f"{folder}/samples.{kind}",
                           str(count)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                                      env={**os.environ, **FREEING})
            found = json.loads(done.stdout.splitlines()[-1])
            numbers |= {f"{kind}_{count}_mib": round(found["peak"] / 2 ** 20, 1),
                        f"{kind}_{count}_seconds": round(found["seconds"], 1)}
        rise = (numbers[f"{kind}_{given.many}_mib"] - numbers[f"{kind}_{given.few}_mib"]) * 2 ** 20
        numbers[f"{kind}_rise"] = round(rise / ((given.many - given.few) * BYTES), 4)
    print(json_line("merging samples, rise of peak memory with their number as a share of what they hold",
                    ours=max(numbers[f"{kind}_rise"] for kind in FORMATS), limit=LIMIT,
                    samples_mib=round(given.many * BYTES / 2 ** 20), few=given.few, many=given.many, **numbers))


if __name__ == "__main__":
    main()
