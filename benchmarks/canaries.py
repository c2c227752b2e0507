"""Claim: private training gives no canaries away, where plain training of the same network does.

Canaries are volumes of independent noise, which nothing but memory tells from others of their kind: 64 are planted
among phantoms of a training set, 64 are left out. The attack is that of the report (inference/membership.py): the
denoising loss, with the same noise for all; low for those that were trained on. Two runs of the same network, one
plain and over-fitted (AUC of 0.9 or more wanted), one at epsilon 10 (upper end of the 95 % interval of 0.65 or less).
One line of JSON.

Run from the top of the checkout: python -m benchmarks.canaries [--seed 0] [--folder FOLDER]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import json_line
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.membership import attack
from edm3d.inference.snapshot import Snapshot
from edm3d.physics.phantoms import echo_phantom
from edm3d.reporting.audit import Membership
from edm3d.reporting.reference import file_volumes
from edm3d.utils.runs import list_files

ROOT = Path(__file__).resolve().parents[1]
SIZE, CANARIES, OTHERS = 4, 64, 64
LEAST_PLAIN, MOST_PRIVATE = 0.9, 0.65
META = VolumesMeta(3, ("image",), ("target",), (), (), (), (), Intensity(0.0, 1.0, True, "a.u."))
SHARED = [
    "training.network.model.model_channels=32", "training.network.model.channel_mult=[1,2]",
    "training.network.model.attention_levels=[]", "training.network.model.dropout=0", "training.validation.max_items=0",
    "training.options.kimg_per_tick=8", "training.options.snapshot_ticks=null", "training.options.state_ticks=null",
    "training.options.lr_rampup_kimg=0.5",
    "training.options.num_workers=0",
]
RUNS = {
    "plain": ["training.options.batch_size=64", "training.options.total_kimg=160",
              "training.options.ema_halflife_kimg=1", "training.optimizer.lr=3e-3"],
    "private": ["privacy=eps10", "training.options.batch_size=64", "training.options.total_kimg=3.84",
                "training.options.ema_halflife_kimg=0.2", "training.optimizer.lr=3e-3"],
}


def canary(number: int, seed: int) -> np.ndarray:
    """Noise [1,4,4,4] in [0,1], every voxel by itself."""
    return np.random.default_rng([seed, number]).uniform(size=(1, *[SIZE] * 3)).astype(np.float32)


def phantom(number: int, seed: int) -> np.ndarray:
    """An echo phantom [1,4,4,4] in [0,1], drawn at twice the size."""
    image = echo_phantom(number, seed=seed, size=2 * SIZE, spatial_dims=3).image
    return image.reshape(SIZE, 2, SIZE, 2, SIZE, 2).mean((1, 3, 5))[None].astype(np.float32)


def write(path: Path, seed: int) -> None:
    """Canaries and phantoms to train on (split train), canaries alone that are left out (split test)."""
    def item(name: str, image: np.ndarray) -> Item:
        return Item(image, None, None, None, name, name, np.diag([32.0, 32.0, 32.0, 1.0]), full_box(image.shape[1:]))

    with VolumesWriter(path, META, {"kind": "canaries", "seed": seed}) as writer:
        for i in range(CANARIES):
            writer.add("train", item(f"canary-{i:03d}", canary(i, seed)))
        for i in range(OTHERS):
            writer.add("train", item(f"phantom-{i:03d}", phantom(i, seed)))
        for i in range(CANARIES, 2 * CANARIES):
            writer.add("test", item(f"canary-{i:03d}", canary(i, seed)))


def trained(folder: Path, name: str, seed: int) -> tuple[Snapshot, float]:
    """The last snapshot of a run, and the minutes of CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(ROOT / "train.py"), "-cn=voxels_edm", *SHARED, *RUNS[name],
                    "training.dataset.path=canaries.h5", f"training.options.seed={seed}",
                    f"training.options.run_root={name}"],
                   cwd=folder, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run, = sorted((folder / name).glob("*-voxels_edm"))[-1:]
    return Snapshot.read(list_files(run, "network-snapshot")[-1]), (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def attacked(snapshot: Snapshot, path: Path, seed: int) -> Membership:
    """The attack on all canaries, planted and left out."""
    file = VolumesFile(path)
    sets = {name: [file_volumes(file, split, [0]).case(i) for i in range(CANARIES)]
            for name, split in (("train", "train"), ("held out", "test"))}
    return attack(snapshot, None, sets, seed, False, torch.device("cpu"))


def said(found: Membership, minutes: float) -> dict[str, Any]:
    """AUC of the attack with its interval, and of the strongest single noise level."""
    best = max(found.by_sigma.values(), key=lambda each: each.auc)
    return {"auc": round(found.mean.auc, 3), "low": round(found.mean.low, 3), "high": round(found.mean.high, 3),
            "best_level": [round(value, 3) for value in best], "cpu_minutes": round(minutes, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (given.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "canaries.h5"
        write(path, given.seed)
        found, privacy = {}, None
        for run in RUNS:
            snapshot, minutes = trained(folder, run, given.seed)
            found[run] = said(attacked(snapshot, path, given.seed), minutes)
            print(run, found[run], file=sys.stderr, flush=True)
            privacy = privacy or snapshot.privacy
        print(json_line(
            "canaries: AUC of telling planted ones from those left out, by the denoising loss", **found,
            limit_plain=LEAST_PLAIN, limit_private_high=MOST_PRIVATE, planted=CANARIES, left_out=CANARIES,
            others=OTHERS, epsilon=round(privacy.epsilon, 2), delta=privacy.delta, steps=privacy.ledger.steps,
            noise_multiplier=round(privacy.ledger.history[-1].noise_multiplier, 3), seed=given.seed,
            held=found["plain"]["auc"] >= LEAST_PLAIN and found["private"]["high"] <= MOST_PRIVATE))


if __name__ == "__main__":
    main()
