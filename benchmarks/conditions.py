"""Claims: volumes are drawn as they are asked for, by a label map or by attributes (32^3 phantoms, 2 CPU cores).

map: a segmenter trained here on other real phantoms finds the maps that were asked for, which no network saw before,
with a Dice of 0.85 or more in the mean of the organs, and at least 0.35 above that against maps asked of other samples;
segmenter, training of echo3d_semantic_edm and drawing together in at most 20 minutes of CPU time. Its Dice on real
phantoms, and on those that have gone through the first stage, says what can be reached at best.
attributes: Spearman correlation of asked and measured LV volume over 64 samples 0.9 or more, of wall thickness 0.8 or
more, measured on the label maps that are drawn along under guidance of strength 2; with no attribute asked for, the KS
distance of the LV volumes to those of 512 fresh phantoms is at most 0.22. The correlations without guidance stand
beside them.

Run from the top of the checkout: python -m benchmarks.conditions [--only map attributes] [--seed N] [--folder FOLDER]
The folder may be that of a finished demo (data/ and results/), whose first stage is then taken. Another --seed is other
phantoms for all that learns and for what is asked, another training, and other noise.
"""

import argparse
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.common import json_line
from benchmarks.first_stages import command
from benchmarks.segmenter import Segmenter, dice_of_others, images_of, labels_of, organ_dice, phantoms
from edm3d.formats.samples import SamplesFile
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.metrics.clinical import structure_volumes, wall_thickness
from edm3d.metrics.distribution import ks_distance
from edm3d.physics.phantoms import ATTRIBUTES, EXTENT
from edm3d.utils.runs import find_file

DICE, ABOVE_OTHERS, CPU_MINUTES, VOLUME, THICKNESS, KS, NUM = 0.85, 0.35, 20, 0.9, 0.8, 0.22, 64
ATTRIBUTE_RUN = ["-cn=echo_edm", "training.network.model.attribute_dim=auto",
                 "training.network.model.attribute_dropout=0.1", "training.network.model.attribute_gaps=0.05",
                 "training.options.desc=attributes"]
GUIDED = "sampling.guidance.strength=2"


class Bench:
    """A folder with the files of the demo, and the seed that everything follows from."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed, self.minutes = folder, seed, {}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, script: str, *arguments: str) -> None:
        """Run a command of ours; the CPU minutes that it takes go under a name."""
        self.minutes[name] = self.minutes.get(name, 0) + command(self.folder, script, *arguments)

    def prepare(self) -> None:
        """Phantoms, first stage and latents as in the demo, unless they are there, and phantoms to be asked for."""
        if not (self.folder / "data/echo.h5").exists():
            self.run("phantoms", "dataset_tool.py", "phantom", "--dest", "data/echo.h5", "--seed", str(self.seed))
        if not self.runs("echo_vae"):
            self.run("first_stage", "train.py", "-cn=echo_vae")
        if not (self.folder / "data/echo_latents.h5").exists():
            self.run("encode", "dataset_tool.py", "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5",
                     "--dest", "data/echo_latents.h5")
        self.run("phantoms", "dataset_tool.py", "phantom", "--dest", f"data/asked{self.seed}.h5", "--num", str(NUM),
                 "--seed", str(self.seed + 1003), "--split", "1", "0", "0")

    def runs(self, name: str) -> list[Path]:
        """Finished runs by the end of their names, oldest first."""
        return sorted(p.parent for p in self.folder.glob(f"results/*-{name}/network-snapshot-*.pt"))

    def train(self, name: str, *arguments: str) -> Path:
        """Train a network by the seed; its run folder."""
        self.run(name, "train.py", *arguments, f"training.options.seed={self.seed}")
        return self.runs(name)[-1]

    def draw(self, name: str, network: Path, outdir: str, *arguments: str) -> SamplesFile:
        """Draw samples of a network, by noise of the seed."""
        first = 1000 * self.seed
        self.run(name, "generate.py", "-cn=echo_edm", f"sampling.network={network.relative_to(self.folder)}",
                 f"sampling.outdir=results/{outdir}", "sampling.overwrite=true", "sampling.nifti=false",
                 "sampling.montage=0", f"sampling.seeds={first}-{first + NUM - 1}", *arguments)
        return SamplesFile(self.folder / "results" / outdir / "samples.h5")

    def asked(self) -> str:
        """What asks for the phantoms that no network saw."""
        return f"sampling.conditions=data/asked{self.seed}.h5"


def own_minutes() -> float:
    """CPU minutes of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) / 60


def follows_map(bench: Bench) -> dict:
    """How well the maps that were asked for are found again in the images that were drawn."""
    before = own_minutes()
    segment = Segmenter(phantoms(512, bench.seed + 1001), bench.seed)
    held_out = phantoms(NUM, bench.seed + 1002)
    images, labels = images_of(held_out), labels_of(held_out)
    first_stage = first_stage_of(bench.folder)
    through = first_stage.round_trip(torch.from_numpy(images), torch.from_numpy(labels)).image.numpy()
    ceilings = {"real": organ_dice(segment(images), labels), "first_stage": organ_dice(segment(through), labels)}
    bench.minutes["segmenter"] = own_minutes() - before
    network = bench.train("echo3d_semantic_edm", "-cn=echo3d_semantic_edm")
    samples = bench.draw("draw_maps", network, f"map{bench.seed}", bench.asked())
    asked, found = samples.array("maps")[:], segment(samples.array("images")[:])
    others = dice_of_others(found, asked)
    agreed = organ_dice(found, asked)
    used = sum(bench.minutes[name] for name in ("segmenter", "echo3d_semantic_edm", "draw_maps"))
    return {"dice": agreed, "limit_dice": DICE, "dice_of_others": round(others, 4),
            "above_others": round(agreed["mean"] - others, 4), "limit_above_others": ABOVE_OTHERS,
            "drawn_labels": organ_dice(samples.array("labels")[:], asked), "ceilings": ceilings,
            "cpu_minutes": round(used, 1), "limit_cpu_minutes": CPU_MINUTES}


def follows_attributes(bench: Bench) -> dict:
    """How well what was asked for is measured again, and what is drawn where nothing is asked."""
    network = bench.train("echo_edm-attributes", *ATTRIBUTE_RUN)
    samples = bench.draw("draw_attributes", network, f"attributes{bench.seed}", bench.asked(), GUIDED)
    plain = bench.draw("draw_attributes", network, f"plain{bench.seed}", bench.asked())
    free = measured(bench.draw("draw_free", network, f"free{bench.seed}").array("labels")[:])
    fresh = measured(labels_of(phantoms(512, bench.seed + 1004)))
    return {"spearman": correlations(samples), "limit_spearman": {"lv_volume": VOLUME, "wall_thickness": THICKNESS},
            "spearman_unguided": correlations(plain),
            "free_ks": {name: round(ks_distance(free[name], fresh[name]), 4) for name in free},
            "limit_free_ks": {"lv_volume": KS}}


def correlations(samples: SamplesFile) -> dict[str, float]:
    """Spearman correlation of what was asked for and what is measured on the label maps that were drawn."""
    asked, drawn = samples.array("attributes")[:], measured(samples.array("labels")[:])
    names = [name for name, _ in ATTRIBUTES]
    return {name: round(float(spearmanr(asked[:, names.index(name)], values, nan_policy="omit")[0]), 4)
            for name, values in drawn.items()}


def measured(labels: np.ndarray) -> dict[str, np.ndarray]:
    """LV volume in mL, wall thickness in mm and volume of the atrium in mL of label maps [N,*S] of the cube."""
    spacing = [EXTENT / n for n in labels.shape[1:]]
    volumes = np.array([structure_volumes(label, spacing, 4) for label in labels])
    walls = np.array([wall_thickness(label, spacing) for label in labels])
    return {"lv_volume": volumes[:, 1], "wall_thickness": walls, "la_volume": volumes[:, 3]}


def first_stage_of(folder: Path) -> FirstStage:
    """The first stage of the newest run."""
    snapshot = Snapshot.read(find_file("echo_vae", "network-snapshot", folder / "results", "--folder"), "autoencoder")
    return FirstStage(snapshot.build(), snapshot.facts)


CLAIMS = {"map": follows_map, "attributes": follows_attributes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench((given.folder or Path(name)).resolve(), given.seed)
        bench.prepare()
        for claim in given.only:
            found = CLAIMS[claim](bench)
            print(json_line(f"conditions: drawn as asked by {claim}", seed=given.seed, **found,
                            minutes={name: round(value, 2) for name, value in bench.minutes.items()}), flush=True)


if __name__ == "__main__":
    main()
