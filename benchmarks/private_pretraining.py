"""Claims: public pre-training makes private training worth it: both of `make private-demo` at epsilon 10, on stacks.

The Frechet distance of samples to held-out private stacks (features of the network's first stage), above that of real
against real, is with public pre-training at most a third of what it is without. And the KS distance of LV volume is at
most half of that of decoded noise. Both have the demo's first stage, data, steps and budget; each has the learning rate
that was best among three, by the held-out loss of a private training on other public stacks, so that no private stack
was looked at for it. One line of JSON.

Run from the top of the checkout: python -m benchmarks.private_pretraining [--folder FOLDER]
The demo's commands run in the folder, those that are done already are done with, and so are runs of a second call.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import json_line

ROOT = Path(__file__).resolve().parents[1]
RATES = ("3e-4", "1e-3", "3e-3")
MOST_OF_WITHOUT, MOST_OF_NOISE = 1 / 3, 1 / 2
STARTS = {"pretrained": ["training.options.init_from=private_demo_ldm-public"], "random": []}
TRIAL = "data/private_demo_trial"  # public stacks of a seed of their own


def demo() -> list[list[str]]:
    """The demo's commands, as make prints them."""
    lines = subprocess.run(["make", "-n", "private-demo", "-o", ".venv/.installed"], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout.splitlines()
    return [line.split()[1:] for line in lines if line.startswith("python ")]


def run(folder: Path, words: list[str]) -> None:
    """Run one of our commands in a folder."""
    script, *arguments = words
    subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=folder, check=True, stdout=sys.stderr,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})


def private_run(command: list[str], start: str, rate: str, desc: str, *more: str) -> list[str]:
    """The demo's private training from another start, at another rate."""
    kept = [word for word in command if not word.startswith((
        "training.options.desc=", "training.options.init_from=", "training.optimizer.lr="))]
    return [*kept, *STARTS[start], f"training.optimizer.lr={rate}", f"training.options.desc={desc}", *more]


def held_out_loss(folder: Path, desc: str) -> float:
    """The last loss on held-out latents of a run."""
    path, = sorted((folder / "results").glob(f"*-private_demo_ldm-{desc}/stats.jsonl"))[-1:]
    return [row["val/loss"] for row in map(json.loads, path.read_text().splitlines()) if "val/loss" in row][-1]


def best_rate(folder: Path, private: list[str], start: str) -> tuple[str, dict[str, float]]:
    """The rate of the least held-out loss of private trainings on public stacks, and the losses of all."""
    found = {}
    for rate in RATES:
        desc = f"trial_{start}_{rate}"
        run(folder, private_run(private, start, rate, desc, f"training.dataset.path={TRIAL}_latents.h5",
                                "training.validation.max_items=64", "training.validation.split=test",
                                "training.validation.every_ticks=1"))
        found[rate] = held_out_loss(folder, desc)
    return min(found, key=found.__getitem__), found


def measured(folder: Path, commands: list[list[str]], desc: str) -> dict[str, Any]:
    """Samples of a run and their report."""
    dest = f"results/private_demo_{desc}"
    draw, judge = commands[-2:]
    run(folder, [*(word for word in draw if not word.startswith("sampling.network=")),
                 f"sampling.network=private_demo_ldm-{desc}", f"sampling.outdir={dest}"])
    run(folder, [word.replace("results/private_demo", dest) for word in judge])
    report = json.loads((folder / dest / "report.json").read_text())
    frechet = report["feature_distances"]["extractors"]["autoencoder"]["views"]["volume"]["frechet"]
    volume, said = report["metrics"]["lv_volume"], report["generated"]["privacy"]
    return {"frechet": frechet["matched"], "floor": frechet["floor_median"],
            "above": frechet["matched"] - frechet["floor_median"], "of_noise": frechet["noise"],
            "lv_ks": volume["ks"], "lv_ks_floor": volume["floor_median"], "lv_ks_noise": volume["noise"],
            "epsilon": said["epsilon"], "steps": said["ledger"]["history"][-1]["steps"],
            "noise_multiplier": said["ledger"]["history"][-1]["noise_multiplier"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (given.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        commands = demo()
        for command in commands:
            run(folder, command)
        private, = (command for command in commands if "privacy=eps10" in command)
        phantoms, encode = commands[1], commands[4]
        source = phantoms[phantoms.index("--dest") + 1]
        run(folder, [{source: f"{TRIAL}.h5", "private": "public", "100": "200"}.get(word, word) for word in phantoms])
        run(folder, [{source: f"{TRIAL}.h5", "data/private_demo_latents.h5": f"{TRIAL}_latents.h5"}.get(word, word)
                     for word in encode])
        found: dict[str, Any] = {}
        for start in STARTS:
            rate, losses = best_rate(folder, private, start)
            run(folder, private_run(private, start, rate, f"best_{start}"))
            found[start] = {"rate": rate, "losses": losses, **measured(folder, commands, f"best_{start}")}
        with_, without = found["pretrained"], found["random"]
        print(json_line(
            "private training at epsilon 10 with and without public pre-training: Frechet distance above the floor",
            ratio=round(with_["above"] / without["above"], 3), limit=MOST_OF_WITHOUT,
            ks_of_noise=round(with_["lv_ks"] / with_["lv_ks_noise"], 3), limit_ks=MOST_OF_NOISE, **found,
            cpu_minutes=round(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) / 60, 1)))


if __name__ == "__main__":
    main()
