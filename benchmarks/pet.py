"""Claims: drawn high doses of PET scans are nearer to the activity than what else the low dose gives, and know by how
much they may be wrong (281 slices of one BrainWeb subject, 64x64, or phantoms of another file of that form).

error: the posterior mean's relative L2 error to the phantom, on 70 held-out slices, is at least 25 % below that of the
low-dose MLEM image and below that of its best rival: MLEM post-filtered at its best width, MLEM stopped at its best
iteration, both chosen on these very slices. coverage: the 90 % interval of 32 draws holds 85 to 95 % of the high-dose
image's pixels inside of the head; those outside stand beside. minutes: trained in at most 30 minutes of CPU time.
shuffled: told the low dose of another slice, the network's held-out loss is at least a fifth higher. late: begun at a
lower noise level around the low dose, with a share of the calls, the error is at most 2 % above that of the full road.

Run from the top of the checkout: python -m benchmarks.pet --phantoms FILE.npz [--order string] [--seed N]
    [--folder FOLDER] [--train KEY=VALUE ...] [--sample KEY=VALUE ...] [--late KEY=VALUE ...]
A folder keeps what was made; another call goes on, also in one in which `train.py -cn=pet_phantoms` has run. The
overrides are of train.py, of both generate.py, and of the late start alone. Another --seed is another training.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import json_line
from benchmarks.conditions import Bench
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.physics.activity_scale import ActivityScale
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.config import build

EXPERIMENT = "pet_phantoms"
BELOW_LOW, INSIDE, CPU_MINUTES, SHUFFLED, LATE = 0.25, (0.85, 0.95), 30, 1.2, 1.02
SCANS, DRAWS, REPEATS = 70, 32, 8  # held-out slices; draws of each; noise levels of each in the loss
LATE_START = ["sampling.start_sigma=2", "sampling.sampler.num_steps=8"]
KEPT = "minutes.json"  # of the folder: CPU minutes of what was made in it


class Pet(Bench):
    """A folder with a network, its draws of the held-out slices by both roads, and their reports."""

    def __init__(self, folder: Path, seed: int):
        super().__init__(folder, seed)
        self.kept = folder / KEPT
        if self.kept.exists():
            self.minutes = json.loads(self.kept.read_text())

    def once(self, made: str, name: str, script: str, *arguments: str) -> None:
        """Run a command unless what it makes is there."""
        if not list(self.folder.glob(made)):
            self.run(name, script, *arguments)
            self.kept.write_text(json.dumps(self.minutes))

    def train(self, phantoms: Path, order: str, overrides: Sequence[str]) -> Path:
        """The snapshot of the network."""
        self.once(f"results/*-{EXPERIMENT}/network-snapshot-*.pt", "train", "train.py", f"-cn={EXPERIMENT}",
                  f"training.dataset.path={phantoms}", f"training.dataset.order={order}",
                  f"training.options.seed={self.seed}", *overrides)
        return sorted(self.runs(EXPERIMENT)[-1].glob("network-snapshot-*.pt"))[-1]

    def road(self, name: str, overrides: Sequence[str]) -> dict:
        """The report of draws by some road from noise to image."""
        outdir = f"results/pet_{name}"
        self.once(f"{outdir}/samples.h5", f"draw_{name}", "generate.py", f"-cn={EXPERIMENT}",
                  f"sampling.seeds=0-{SCANS - 1}", f"sampling.samples_per_condition={DRAWS}",
                  f"sampling.outdir={outdir}", "sampling.montage=0", *overrides)
        self.once(f"{outdir}/report/report.json", f"evaluate_{name}", "evaluate.py", "enhancement", "--samples",
                  f"{outdir}/samples.h5", "--dest", f"{outdir}/report")
        return json.loads((self.folder / outdir / "report/report.json").read_text())


@torch.no_grad()
def held_out_loss(snapshot: Snapshot, samples: SamplesFile) -> dict[str, float]:
    """The loss of training on the scans of samples, told their own low dose, that of another slice, and none.

    All are told at the same noise and levels.
    """
    net, loss = snapshot.build(), build(snapshot.config["training"]["loss"])
    first = np.flatnonzero(samples.array("draws") == 0)
    scales = torch.from_numpy(samples.array("scales")[first])
    high, low = (ActivityScale.to_network(torch.from_numpy(np.stack([samples.row(name, row) for row in first])), scales)
                 for name in ("high_images", "cond_images"))
    others = torch.roll(torch.arange(len(first)), len(first) // 2)  # far away in the head
    told = {"own": low, "shuffled": low[others], "none": torch.zeros_like(low)}
    found = dict.fromkeys(told, 0.0)
    for repeat in range(REPEATS):
        for name, images in told.items():
            for rows in torch.arange(len(first)).split(14):
                noise = ImageGenerators(rows.tolist(), seed=repeat)
                errors = loss(net, high[rows], Condition(images=images[rows]), noise).loss
                found[name] += float(errors.flatten(1).mean(1).sum()) / (len(first) * REPEATS)
    return found


def claims(full: dict, late: dict, minutes: float | None, loss: dict[str, float]) -> dict:
    """What is claimed, and found."""
    errors = {name: row["phantom"]["relative_l2"]["mean"] for name, row in full["methods"].items() if row["available"]}
    rivals = {name: errors[name] for name in ("filtered", "early") if name in errors}
    best = min(rivals, key=rivals.get)
    regions = {name: full["calibration"][name]["coverage"]["90"]["value"] for name in ("inside", "outside")}
    found = {"error_below_low": 1 - errors["mean"] / errors["low"], "error_below_best_rival": 1 - errors["mean"]
             / rivals[best], "coverage_inside": regions["inside"], "cpu_minutes": minutes,
             "shuffled": loss["shuffled"] / loss["own"],
             "late": late["methods"]["mean"]["phantom"]["relative_l2"]["mean"] / errors["mean"]}
    asked = {"error_below_low": BELOW_LOW, "error_below_best_rival": 0, "coverage_inside": INSIDE,
             "cpu_minutes": CPU_MINUTES, "shuffled": SHUFFLED, "late": LATE}
    holds = {"error_below_low": found["error_below_low"] >= BELOW_LOW,
             "error_below_best_rival": found["error_below_best_rival"] > 0,
             "coverage_inside": INSIDE[0] <= regions["inside"] <= INSIDE[1],
             "cpu_minutes": None if minutes is None else minutes <= CPU_MINUTES,
             "shuffled": found["shuffled"] >= SHUFFLED, "late": found["late"] <= LATE}
    return {"errors": {name: round(value, 4) for name, value in errors.items()}, "best_rival": best,
            "rivals": {name: full["rivals"][name]["best"] for name in rivals},
            "found": {name: value if value is None else round(value, 4) for name, value in found.items()},
            "asked": asked, "holds": holds, "coverage_outside": round(regions["outside"], 4),
            "coverage_inside_late": round(late["calibration"]["inside"]["coverage"]["90"]["value"], 4),
            "spread": full["calibration"]["spread"]["ratio"],
            "held_out_loss": {name: round(value, 4) for name, value in loss.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--order", default="string")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    for name in ("train", "sample"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--late", nargs="*", default=LATE_START, metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Pet((given.folder or Path(folder)).resolve(), given.seed)
        snapshot = bench.train(given.phantoms.resolve(), given.order, given.train)
        full, late = bench.road("full", given.sample), bench.road("late", [*given.sample, *given.late])
        loss = held_out_loss(Snapshot.read(snapshot), SamplesFile(bench.folder / "results/pet_full/samples.h5"))
        print(json_line("PET: drawn high doses against what the low dose gives", seed=given.seed,
                        **claims(full, late, bench.minutes.get("train"), loss), late_start=given.late,
                        minutes={name: round(value, 2) for name, value in bench.minutes.items()}), flush=True)


if __name__ == "__main__":
    main()
