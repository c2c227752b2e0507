"""Claims: what was drawn is worth something to a segmenter that is tested on real volumes (32^3 phantoms, 2 CPU cores).

alone: trained on generated pairs alone it reaches at least 90 % of the mean Dice of one trained on as many real pairs.
both: trained on both it is not worse than on the real pairs by more than 0.01. few: beside 32 real pairs, the generated
ones add at least 0.01. All on the test split, in the mean of several seeds, each segmenter of echo3d_segmentation for
as many images.

512 real pairs have taught first stage and echo3d_semantic_edm; the generated ones are drawn by these to 256 maps that
no network has seen. So `few` says what a segmenter with 32 labelled volumes of its own gains by what others have learnt
from more, not what 32 volumes alone could give.

Run from the top of the checkout: python -m benchmarks.downstream [--seed N] [--seeds 3] [--folder FOLDER]
Another --seed is other phantoms, other trainings and other noise. A folder keeps what was made; another call goes on,
also in the folder of a finished `make semantic-demo`, whose networks and samples are then taken.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.common import json_line
from benchmarks.conditions import Bench

ALONE, BOTH, FEW = 0.9, -0.01, 0.01  # share of the Dice of real pairs, and differences from it
MAPS, NUM, SOME = 256, 230, 32  # maps drawn to; pairs that segmenters learn (a tenth is held out); those that are few
REAL, ASKED, DRAWN = "data/echo.h5", "data/echo_maps.h5", "results/semantic_demo/samples.h5"
SETS = {"real": ([REAL], [NUM]), "generated": ([DRAWN], [NUM]), "both": ([REAL, DRAWN], [NUM, NUM]),
        "few": ([REAL], [SOME]), "few_both": ([REAL, DRAWN], [SOME, NUM])}  # files, and how many items of each


class Downstream(Bench):
    """A folder with real pairs and generated ones, and segmenters of both."""

    def prepare(self) -> None:
        """Real pairs, networks that learn from them, and a generated pair for every map."""
        own = f"training.options.seed={self.seed}"
        self.once(REAL, "phantoms", "dataset_tool.py", "phantom", "--dest", REAL, "--seed", str(2 * self.seed))
        self.once(ASKED, "phantoms", "dataset_tool.py", "phantom", "--dest", ASKED, "--num", str(MAPS), "--seed",
                  str(2 * self.seed + 1), "--split", "1", "0", "0")
        self.once("results/*-echo_vae/network-snapshot-*", "first_stage", "train.py", "-cn=echo_vae", own)
        self.once("data/echo_latents.h5", "encode", "dataset_tool.py", "encode", "--autoencoder", "echo_vae",
                  "--source", REAL, "--dest", "data/echo_latents.h5")
        self.once("results/*-echo3d_semantic_edm/network-snapshot-*", "semantic", "train.py",
                  "-cn=echo3d_semantic_edm", own)
        self.once(DRAWN, "draw", "generate.py", "-cn=echo3d_semantic_edm", f"sampling.conditions={ASKED}",
                  f"sampling.seeds=0-{MAPS - 1}", f"sampling.outdir={Path(DRAWN).parent}")

    def once(self, made: str, name: str, script: str, *arguments: str) -> None:
        """Run a command unless what it makes is there."""
        if not list(self.folder.glob(made)):
            self.run(name, script, *arguments)

    def segmenter(self, name: str, seed: int) -> str:
        """The name of a segmenter of one of SETS."""
        paths, nums = SETS[name]
        desc = f"{name}-{seed}"
        self.once(f"results/*-echo3d_segmentation-{desc}/network-snapshot-*", name, "train.py",
                  "-cn=echo3d_segmentation", "dataset=mixed", f"training.dataset.path=[{','.join(paths)}]",
                  f"training.dataset.num=[{','.join(map(str, nums))}]", f"training.options.seed={seed}",
                  f"training.dataset.shares=[{','.join('1' * len(paths))}]", f"training.options.desc={desc}")
        return f"echo3d_segmentation-{desc}"


def claims(runs: list[dict], seeds: int) -> dict:
    """Means of Dice over the seeds, in the order of SETS, and what is claimed of them."""
    values = {name: [run["dice"]["value"] for run in runs[i * seeds:(i + 1) * seeds]] for i, name in enumerate(SETS)}
    dice = {name: sum(of_seeds) / seeds for name, of_seeds in values.items()}
    found = {"alone": dice["generated"] / dice["real"], "both": dice["both"] - dice["real"],
             "few": dice["few_both"] - dice["few"]}
    limits = {"alone": ALONE, "both": BOTH, "few": FEW}
    return {"dice": {name: [round(value, 4) for value in of_seeds] for name, of_seeds in values.items()},
            **{name: round(value, 4) for name, value in found.items()}, "limits": limits,
            "holds": {name: value >= limits[name] for name, value in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Downstream((given.folder or Path(folder)).resolve(), given.seed)
        bench.prepare()
        runs = [bench.segmenter(name, 100 * given.seed + seed) for name in SETS for seed in range(given.seeds)]
        bench.run("evaluate", "evaluate.py", "downstream", "--real", REAL, "--runs", *runs, "--dest", "results/tested",
                  "--overwrite")
        runs = json.loads((bench.folder / "results/tested/report.json").read_text())["runs"]
        print(json_line("downstream", seed=given.seed, **claims(runs, given.seeds),
                        minutes={name: round(value, 2) for name, value in bench.minutes.items()}), flush=True)


if __name__ == "__main__":
    main()
