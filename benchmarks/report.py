"""Claim: the report of 1,000 against 1,000 volumes of 64^3 takes at most 20 CPU minutes, in memory that is flat in N.

Both sets are phantoms, those of the second seed written as samples that name a snapshot: a denoiser of latents and a
first stage, untrained, of the sizes of the demo. `--train N` times the audit instead: so many training volumes, the
samples and as many held-out volumes. One line of JSON: CPU seconds of `evaluate.py` by section (what they measure, and
what they make of it), by extractor, and of the rest (reading, the samples' first stage, writing), and the peak of
resident memory. Drawing is not counted; what is drawn stays in the folder for the next time. Run from the checkout's
top, with OMP_NUM_THREADS=1 for the CPU seconds of one core:
python -m benchmarks.report [--num 1000] [--size 64] [--train 0] [--folder FOLDER]
"""

import argparse
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.common import json_line
from edm3d.formats.facts import LatentScaling, volume_facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import write_rows
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import audit, evaluate
from edm3d.inference.extractors import Extractor
from edm3d.inference.phantoms import PhantomOptions, draw_phantoms, source_of
from edm3d.inference.snapshot import CarriedStage, Snapshot, network_hash
from edm3d.reporting import sections
from edm3d.utils.config import build

LIMIT_SECONDS = 20 * 60
STAGE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "num_classes": 4, "latent_channels": 4,
         "spatial_dims": 3, "channels": [8, 32, 64], "num_blocks": 1, "num_blocks_decoder": 1}
DENOISER = {"_target_": "networks.precond.EDMPrecond", "model": {
    "_target_": "networks.unet.ADMUNet", "in_channels": 4, "out_channels": 4, "spatial_dims": 3, "model_channels": 32,
    "channel_mult": [1, 2, 2], "num_blocks": 1, "attention_levels": [1, 2], "dropout": 0}}
TIMED = ("measure", "gather", "compute", "figures", "animations", "embedded", "columns", "page")


class CpuSeconds:
    """CPU seconds of this process, by name; what a timed call spends in another counts for the inner one alone."""

    def __init__(self):
        self.found: Counter[str] = Counter()
        self.inner = [0.0]

    def timed(self, name: str, work: Callable) -> Callable:
        """The same function, whose time is counted."""

        def run(*arguments: object, **named: object) -> object:
            start = time.process_time()
            self.inner.append(0.0)
            try:
                return work(*arguments, **named)
            finally:
                took = time.process_time() - start
                self.found[name] += took - self.inner.pop()
                self.inner[-1] += took

        return run


def by_extractor(seconds: CpuSeconds, call: Callable) -> Callable:
    """The call of an extractor, counted under its name."""
    return lambda self, *arguments: seconds.timed(f"features: {self.record.name}", call)(self, *arguments)


def phantoms(folder: Path, num: int, size: int, seed: int) -> Path:
    """A volumes file of phantoms, all in the training split."""
    path = folder / f"phantoms_{num}_{size}_{seed}.h5"
    draw_phantoms(path, PhantomOptions(num, seed, (1.0, 0.0, 0.0), "echo", source_of("echo", (size,))))
    return path


def samples_of(source: Path, learnt: Path) -> Path:
    """The volumes of a file as samples, of a snapshot that says it learnt from another one."""
    dest, file, train = source.with_suffix(".samples.h5"), VolumesFile(source), VolumesFile(learnt)
    facts, snapshot = volume_facts(train, "train"), source.with_suffix(".pt")
    torch.manual_seed(0)
    weights, denoiser = build(STAGE).state_dict(), build(DENOISER).state_dict()
    stage = CarriedStage(LatentScaling([0.0] * 4, [1.0] * 4), STAGE, weights, network_hash(STAGE, weights))
    shape = (4, *(size // 4 for size in facts.spatial_shape))
    Snapshot("diffusion", DENOISER, facts, shape, stage, denoiser).save(snapshot)

    def row(name: str, index: int) -> object:
        item = file.read("train", index)
        return item.image if name == "images" else item.label

    write_rows(dest, range(file.length("train")), ("images", "labels"), row, file.affines("train")[0],
               SampleMeta(facts, str(snapshot), Snapshot.read(snapshot).hash, {"num_steps": 18}))
    return dest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("num", 1000), ("size", 64), ("train", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    real, drawn = (phantoms(folder, asked.num, asked.size, seed) for seed in (1, 2))
    learnt = phantoms(folder, asked.train, asked.size, 3) if asked.train else real
    samples = samples_of(drawn, learnt)
    options = evaluate.ComparisonOptions(split="all", overwrite=True, train=learnt if asked.train else None,
                                         **({"num_noise": 0, "planes": ("none",)} if asked.train else {}))
    seconds = CpuSeconds()
    for section in (*sections.NUMBERS, *sections.COMPARISON):
        for name in TIMED:
            if hasattr(section, name):
                setattr(section, name, seconds.timed(type(section).__name__, getattr(section, name)))
    start = time.process_time()
    with patch.object(audit, "attack", seconds.timed("membership", audit.attack)), \
            patch.object(audit, "find_copies", seconds.timed("copies", audit.find_copies)), \
            patch.object(Extractor, "__call__", by_extractor(seconds, Extractor.__call__)):
        found = evaluate.evaluate(real, samples, folder / "report", options)
    spent = time.process_time() - start
    by_part = {name: round(value, 1) for name, value in seconds.found.most_common() if value >= 0.05}
    extractors = {name: {"what": each["source"], "sees": each["preprocessing"], "width": each["width"]}
                  for name, each in found["feature_distances"]["extractors"].items()}
    what = f"audit of {asked.num} samples, {asked.train} training volumes" if asked.train else \
        f"report of {asked.num} against {asked.num} volumes"
    print(json_line(f"{what} of {asked.size}^3", num=asked.num, size=asked.size, train=asked.train,
                    cpu_seconds=round(spent, 1), limit=None if asked.train else LIMIT_SECONDS,
                    threads=torch.get_num_threads(), per_volume=round(spent / (2 * asked.num), 3),
                    peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                    rest=round(spent - sum(seconds.found.values()), 1), by_part=by_part, extractors=extractors))


if __name__ == "__main__":
    main()
