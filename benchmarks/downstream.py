"""Claims: what was drawn is worth something to a segmenter that is tested on real images (phantoms, 2 CPU cores).

Volumes (32^3, echo_vae and echo3d_semantic_edm; segmenters of echo3d_segmentation):
alone: trained on generated pairs alone it reaches at least 90 % of the mean Dice of one trained on as many real pairs.
both: trained on both it is not worse than on the real pairs by more than 0.01.
few_volumes: what the generated ones add beside 32 real pairs; nothing is claimed of it, since 32 volumes already teach
as much as 230.
Images (64^2, echo2d_edm made small; the same segmenter for 4 kimg without augmentation):
few: beside 32 real pairs, the generated ones add at least 0.01.
All on the test split, in the mean of several seeds, each segmenter of a set for as many images.

512 real pairs have taught the networks that draw, to 256 maps that none of them has seen. So `few` says what a
segmenter with 32 labelled images of its own gains by what others have learnt from more, not what 32 alone could give.

Run from the top of the checkout: python -m benchmarks.downstream [--only volumes images] [--seed N] [--seeds 3]
[--folder FOLDER]. Another --seed is other phantoms, other trainings and other noise. A folder keeps what was made;
another call goes on, also in the folder of a finished `make semantic-demo`, whose networks and samples are then taken.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import json_line
from benchmarks.conditions import Bench

LIMITS = {"alone": 0.9, "both": -0.01, "few": 0.01}  # share of the Dice of real pairs, and differences from it
MAPS, NUM, SOME = 256, 230, 32  # maps drawn to; pairs that segmenters learn (a tenth is held out); those that are few
SETS = {"real": [NUM, 0], "generated": [0, NUM], "both": [NUM, NUM], "few": [SOME, 0], "few_both": [SOME, NUM]}


class Pairs(NamedTuple):
    """Real pairs, the maps that others are drawn to, these, and how a segmenter learns of them."""

    real: str
    maps: str
    drawn: str
    phantoms: list[str]
    segmenter: list[str]


KINDS = {
    "volumes": Pairs("data/echo.h5", "data/echo_maps.h5", "results/semantic_demo/samples.h5", [], []),
    "images": Pairs("data/echo2d.h5", "data/echo2d_maps.h5", "results/drawn2d/samples.h5",
                   ["--spatial-dims", "2", "--size", "64"],
                   ["augment=none", "training.options.total_kimg=4", "training.options.kimg_per_tick=1"])}
SMALL = ["codec=fold", "augment=none", "optimizer=adam", "training.optimizer.lr=1e-3",
         "training.network.model.model_channels=48", "training.network.model.channel_mult=[1,2]",
         "training.network.model.num_blocks=1", "training.network.model.attention_resolutions=null",
         "training.network.model.attention_levels=[1]", "training.network.model.channels_per_head=48",
         "training.network.model.dropout=0", "training.network.model.semantic_hidden=32",
         "training.options.batch_size=16", "training.options.total_kimg=24", "training.options.kimg_per_tick=2",
         "training.options.lr_schedule=cosine", "training.options.lr_rampup_kimg=1",
         "training.options.ema_halflife_kimg=1", "training.validation.preview_ticks=null"]


class Downstream(Bench):
    """A folder with real pairs and generated ones, and segmenters of both."""

    def prepare(self, name: str) -> None:
        """Real pairs of a kind, networks that learn from them, and a generated pair for every map."""
        kind, own = KINDS[name], f"training.options.seed={self.seed}"
        for path, seed, more in ((kind.real, 2 * self.seed, []),
                                 (kind.maps, 2 * self.seed + 1, ["--num", str(MAPS), "--split", "1", "0", "0"])):
            self.once(path, "phantoms", "dataset_tool.py", "phantom", "--dest", path, "--seed", str(seed),
                      *kind.phantoms, *more)
        drawer, more = "echo2d_edm", ["sampling.batch_size=32", "sampling.sampler.num_steps=18",
                                      "sampling.sampler.S_churn=0"]
        if name == "volumes":
            drawer, more = "echo3d_semantic_edm", []
            self.once("results/*-echo_vae/network-snapshot-*", "first_stage", "train.py", "-cn=echo_vae", own)
            self.once("data/echo_latents.h5", "encode", "dataset_tool.py", "encode", "--autoencoder", "echo_vae",
                      "--source", kind.real, "--dest", "data/echo_latents.h5")
        self.once(f"results/*-{drawer}/network-snapshot-*", f"{drawer}", "train.py", f"-cn={drawer}", own,
                  *([] if name == "volumes" else [f"training.dataset.path={kind.real}", *SMALL]))
        self.once(kind.drawn, f"draw {name}", "generate.py", f"-cn={drawer}", f"sampling.conditions={kind.maps}",
                  f"sampling.seeds=0-{MAPS - 1}", f"sampling.outdir={Path(kind.drawn).parent}", *more)

    def once(self, made: str, name: str, script: str, *arguments: str) -> None:
        """Run a command unless what it makes is there."""
        if not list(self.folder.glob(made)):
            self.run(name, script, *arguments)

    def segmenter(self, name: str, of: str, seed: int) -> str:
        """The name of a segmenter of one of SETS, of a kind."""
        kind = KINDS[name]
        found = [(path, num) for path, num in zip((kind.real, kind.drawn), SETS[of], strict=True) if num]
        desc = f"{of}-{seed}" if name == "volumes" else f"{name}-{of}-{seed}"
        self.once(f"results/*-echo3d_segmentation-{desc}/network-snapshot-*", f"segmenters of {name}", "train.py",
                  "-cn=echo3d_segmentation", "dataset=mixed",
                  f"training.dataset.path=[{','.join(path for path, _ in found)}]",
                  f"training.dataset.num=[{','.join(str(num) for _, num in found)}]",
                  f"training.dataset.shares=[{','.join('1' * len(found))}]",
                  f"training.options.seed={seed}", f"training.options.desc={desc}", *kind.segmenter)
        return f"echo3d_segmentation-{desc}"

    def measure(self, name: str, seeds: int) -> dict[str, list[float]]:
        """Dice of the segmenters of every set, of each seed, on the test split of a kind."""
        self.prepare(name)
        runs = [self.segmenter(name, of, 100 * self.seed + seed) for of in SETS for seed in range(seeds)]
        self.run(f"test {name}", "evaluate.py", "downstream", "--real", KINDS[name].real, "--runs", *runs, "--dest",
                 f"results/tested_{name}", "--overwrite")
        found = json.loads((self.folder / f"results/tested_{name}/report.json").read_text())["runs"]
        return {of: [run["dice"]["value"] for run in found[i * seeds:(i + 1) * seeds]] for i, of in enumerate(SETS)}


def claims(dice: dict[str, dict[str, list[float]]]) -> dict:
    """What is claimed of Dice by kind, set and seed, in the means over the seeds."""
    mean = {kind: {of: sum(values) / len(values) for of, values in sets.items()} for kind, sets in dice.items()}
    found = {}
    if "volumes" in mean:
        of = mean["volumes"]
        found |= {"alone": of["generated"] / of["real"], "both": of["both"] - of["real"],
                  "few_volumes": of["few_both"] - of["few"]}
    if "images" in mean:
        of = mean["images"]
        found |= {"few": of["few_both"] - of["few"], "alone_images": of["generated"] / of["real"],
                  "both_images": of["both"] - of["real"]}
    return {"dice": {kind: {of: [round(value, 4) for value in values] for of, values in sets.items()}
                     for kind, sets in dice.items()},
            **{name: round(value, 4) for name, value in found.items()}, "limits": LIMITS,
            "holds": {name: found[name] >= limit for name, limit in LIMITS.items() if name in found}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Downstream((given.folder or Path(folder)).resolve(), given.seed)
        dice = {name: bench.measure(name, given.seeds) for name in given.only}
        print(json_line("downstream", seed=given.seed, **claims(dice),
                        minutes={name: round(value, 2) for name, value in bench.minutes.items()}), flush=True)


if __name__ == "__main__":
    main()
