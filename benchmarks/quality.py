"""Claim: our recipe reaches the distance of MONAI's in a sixth of its compute, and a sixth of it at equal compute.

Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.quality --latents LATENTS.h5
--autoencoder SNAPSHOT [--minutes 10] [--seeds 0 1 2] [--rates 5e-4 1e-3 2e-3 4e-3] [--at 1/6] [--only ours]
[--ours NAME="KEY=VALUE KEY=VALUE" ...]. Without latents it makes a few phantoms of 16^3 and a first stage of them.

Ours is echo_edm by train.py, as it stands and with other overrides by NAME (its ramp and average are as long a share of
a training as in the demo). The peer is MONAI's 3D latent diffusion tutorial: DiffusionModelUNet, within 5 % of our
FLOPs, DDPMScheduler (1000 steps, scaled_linear_beta 0.0015 to 0.0195) that predicts the noise, Adam at a constant rate,
no average of weights, drawn by DDIM in 100 steps. Its latents are whitened as ours, to variance 1, and its estimates
clipped to 4 (there to 1, which latents exceed), or not at all: the better of the two counts. Both take batches of 16
images.

Equal minutes: CPU time of one thread. Steps of all are timed in turns, and each then takes as many images as fill the
minutes; `cpu_s` is what that took, for ours with the start of train.py. Each has the same rates to choose from, by the
distance of the first seed; --at trains ours for shares of the minutes at the rate that was best for the whole.
--step-s takes the seconds of steps from an earlier line, as for a second process with --only.

One JSON line, and one on stderr as each training ends: Frechet distance of latents, in their first principal
components, to draws from the posteriors of real items, and the mean over label classes of the KS distance of the
volumes of decoded label maps, both above the floors: what draws from the posteriors of other real items give. Ratios
are of the means over the seeds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import mse_loss

from benchmarks.common import in_turns, json_line
from benchmarks.first_stages import command
from benchmarks.plan_memory import trainer_of
from benchmarks.quality_calls import METHODS, Components, RealDraws, default_levels, flat, run, trained
from benchmarks.sample import DDIM_STEPS, FLOPS_WITHIN, flops_of, monai_network, monai_run, our_network, scheduler
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.metrics.clinical import structure_volumes
from edm3d.metrics.distribution import ks_distance
from edm3d.samplers import ImageGenerators
from edm3d.training.batch_transforms import DrawLatents
from edm3d.training.datasets.latents import LatentsDataset
from edm3d.utils.compose import compose

WHOLE = Fraction(1)
LIMIT, BATCH, SETS, TIMED = 1 / 6, 16, 3, 5
EXPERIMENT, SIGMA_DATA, RAMPUP, HALFLIFE = "echo_edm", 0.5, 1 / 42, 1.5 / 42  # shares of a training
NOISE = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
CLIPS = {"clipped": {"clip_sample": True, "clip_sample_min": -4.0, "clip_sample_max": 4.0},
         "not clipped": {"clip_sample": False}}
PEER = "monai"
DRAWN_FROM = 50_000  # seed of the noise that is drawn from


class Judge:
    """Draws held against those from the posteriors of real items, as latents and as volumes of decoded structures."""

    def __init__(self, latents: Path, autoencoder: Path, samples: int):
        statistics = LatentsDataset(str(latents)).facts.latents.statistics
        first = Snapshot.read(autoencoder, "autoencoder")
        scaling = DrawLatents(**statistics, sigma_data=SIGMA_DATA).scaling
        self.draws, self.stage = RealDraws(latents, scaling), FirstStage(first.build(), first.facts, scaling)
        self.components = Components(flat(self.draws.in_turn(4 * samples, seed=10 * samples)))
        sets = [self.seen(self.draws.in_turn(samples, seed=i * samples)) for i in range(SETS + 1)]
        apart = [self.distances(a, b) for a, b in pairwise(sets)]
        self.real, self.floor = sets[:SETS], {key: mean(each[key] for each in apart) for key in apart[0]}

    def seen(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows [N,d] of latents, and the volumes [N,K-1] of the structures that they are decoded to, in voxels."""
        maps = [label for some in latents.split(BATCH) for label in self.stage.decode(some)[1].numpy()]
        classes = len(self.stage.facts.label_classes)
        return flat(latents), np.array([structure_volumes(one, [10.0] * one.ndim, classes)[1:] for one in maps])

    def distances(self, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        """Of two sets."""
        return {"frechet": self.components.distance(a[0], b[0]),
                "ks": mean(ks_distance(x, y) for x, y in zip(a[1].T, b[1].T, strict=True))}

    def __call__(self, latents: torch.Tensor) -> dict[str, float]:
        """Distances of draws above the floors, in the mean over sets of real ones."""
        drawn = self.seen(latents)
        found = [self.distances(real, drawn) for real in self.real]
        return {key: mean(each[key] for each in found) - floor for key, floor in self.floor.items()}


def mean(values: Sequence[float]) -> float:
    """Of any iterable."""
    return float(np.mean(list(values)))


class PeerRun:
    """MONAI's training, step by step, and what it draws."""

    def __init__(self, draws: RealDraws, rate: float, seed: int):
        torch.manual_seed(seed)
        self.net, self.draws, self.seed, self.images = monai_network().train(), draws, seed, 0
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate)
        self.noise, self.random = scheduler("DDPMScheduler", 1000, **NOISE), np.random.default_rng(seed)

    def step(self) -> None:
        """One batch."""
        items = self.random.choice(len(self.draws.data), BATCH)
        seeds = range(self.images, self.images + BATCH)
        z = self.draws.of(items, seeds, f"{PEER} {self.seed}") / SIGMA_DATA
        eps, t = torch.randn_like(z), torch.randint(0, self.noise.num_train_timesteps, (BATCH,))
        self.optimizer.zero_grad(set_to_none=True)
        mse_loss(self.net(self.noise.add_noise(z, eps, t), t), eps).backward()
        self.optimizer.step()
        self.images += BATCH

    @torch.no_grad()
    def draw(self, noise: torch.Tensor, clip: Mapping[str, float | bool]) -> torch.Tensor:
        """Latents as ours are scaled, of unit noise."""
        net, made = self.net.eval(), scheduler("DDIMScheduler", DDIM_STEPS, **NOISE, **clip)
        return torch.cat([monai_run(lambda x, t: net(x, t.expand(len(x))), made, some)
                          for some in noise.split(BATCH)]) * SIGMA_DATA


class Trainings(NamedTuple):
    """What all trainings share. calls: samplers of ours by name, with their calls of the network."""

    folder: Path
    latents: Path
    judge: Judge
    samples: int
    calls: dict[str, int]

    def ours(self, name: str, overrides: Sequence[str], images: int, rate: float, seed: int) -> dict:
        """Train by train.py, and draw by every sampler: distances above the floors, and the CPU time that it took."""
        kimg, desc = images / 1000, f"{name}_{images}_{rate:g}_{seed}"
        minutes = command(self.folder, "train.py", f"-cn={EXPERIMENT}", *settings(kimg, self.latents),
                          f"training.optimizer.lr={rate}", f"training.options.seed={seed}",
                          f"training.options.desc={desc}", *overrides)
        path, = sorted(self.folder.glob(f"results/*-{EXPERIMENT}-{desc}/network-snapshot-*.pt"))[-1:]
        problem, drawn = trained(Snapshot.read(path, "diffusion"), range(DRAWN_FROM, DRAWN_FROM + self.samples)), {}
        for key, calls in self.calls.items():
            x = run(problem, METHODS[key], default_levels(problem, METHODS[key], calls))
            drawn[f"{key}, {calls} calls"] = self.judge(x)
        return {"cpu_s": 60 * minutes, "drawn": drawn}

    def peer(self, images: int, rate: float, seed: int) -> dict:
        """The same of MONAI's."""
        start, training = time.process_time(), PeerRun(self.judge.draws, rate, seed)
        while training.images < images:
            training.step()
        took, shape = time.process_time() - start, self.judge.draws.data.shape
        noise = ImageGenerators(list(range(DRAWN_FROM, DRAWN_FROM + self.samples)), purpose="sample").randn(shape)
        return {"cpu_s": took, "drawn": {f"DDIM, {DDIM_STEPS} calls, {name}": self.judge(training.draw(noise, clip))
                                         for name, clip in CLIPS.items()}}


def settings(kimg: float, latents: Path) -> list[str]:
    """Overrides of a training of ours of some length."""
    return [f"training.dataset.path={latents}", f"training.options.total_kimg={kimg}",
            f"training.options.kimg_per_tick={kimg}", f"training.options.lr_rampup_kimg={kimg * RAMPUP}",
            f"training.options.ema_halflife_kimg={kimg * HALFLIFE}", f"training.options.batch_size={BATCH}",
            "training.options.num_threads=1", "training.options.device=cpu", "training.options.min_psnr=null",
            "training.validation.max_items=0", "training.validation.preview_ticks=null"]


def step_seconds(bench: Trainings, ours: dict[str, list[str]], names: Sequence[str]) -> dict[str, float]:
    """CPU seconds of a step of each, in turns."""
    def stepping(overrides: Sequence[str]) -> Callable[[], object]:
        training = compose(EXPERIMENT, [*settings(1, bench.latents), *overrides])["training"]
        trainer = trainer_of(training, LatentsDataset(str(bench.latents)), bench.folder)
        data = trainer.batches()
        return lambda: trainer.step(data)

    return in_turns({name: PeerRun(bench.judge.draws, 1e-4, 0).step if name == PEER else stepping(ours[name])
                     for name in names}, TIMED)


def searched(train: Callable[[float, int], dict], rates: Sequence[float], seeds: Sequence[int]) -> dict:
    """What a recipe gives at the rate that is best for the first seed, and the distances of all rates."""
    first = {rate: train(rate, seeds[0]) for rate in rates}
    best = min(rates, key=lambda rate: least(first[rate]["drawn"]))
    return {"rate": best, "by_rate": {f"{rate:g}": round(least(found["drawn"]), 4) for rate, found in first.items()},
            **summary([first[best], *(train(best, seed) for seed in seeds[1:])])}


def least(drawn: dict[str, dict[str, float]]) -> float:
    """The least Frechet distance of any sampler."""
    return min(each["frechet"] for each in drawn.values())


def summary(runs: Sequence[dict]) -> dict:
    """Distances by sampler and seed with their means, and the CPU seconds of trainings."""
    drawn = {name: {key: [round(one["drawn"][name][key], 4) for one in runs] for key in values}
             for name, values in runs[0]["drawn"].items()}
    means = {name: {key: mean(values) for key, values in each.items()} for name, each in drawn.items()}
    best = min(means, key=lambda name: means[name]["frechet"])
    return {"cpu_s": [round(one["cpu_s"], 1) for one in runs], "sampler": best,
            **{key: round(value, 4) for key, value in means[best].items()}, "drawn": drawn}


def small_files(folder: Path) -> tuple[Path, Path]:
    """Latents of a few phantoms, and the first stage that made them."""
    command(folder, "dataset_tool.py", "phantom", "--dest", "data/echo.h5", "--num", "80", "--size", "16")
    command(folder, "train.py", "-cn=echo_vae", "training.options.total_kimg=0.4", "training.options.kimg_per_tick=0.4",
            "training.validation.preview_ticks=null")
    command(folder, "dataset_tool.py", "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
            "data/echo_latents.h5")
    return folder / "data/echo_latents.h5", next(folder.glob("results/*-echo_vae/network-snapshot-*.pt"))


def measured(bench: Trainings, asked: argparse.Namespace) -> dict:
    """All recipes that are asked for, by name."""
    ours = {name: overrides.split() for name, _, overrides in (text.partition("=") for text in asked.ours)}
    names = [*(ours if asked.only != "theirs" else ()), *([PEER] if asked.only != "ours" else ())]
    given = {name: float(text) for name, text in (text.split("=") for text in asked.step_s)}
    seconds, found = step_seconds(bench, ours, [name for name in names if name not in given]) | given, {}
    for name in names:
        images = max(1, round(60 * asked.minutes / seconds[name])) * BATCH

        def train(rate: float, seed: int, share: Fraction = WHOLE, name: str = name, images: int = images) -> dict:
            some = max(1, round(images * share / BATCH)) * BATCH
            row = bench.peer(some, rate, seed) if name == PEER else bench.ours(name, ours[name], some, rate, seed)
            print(json.dumps({"name": name, "rate": rate, "seed": seed, "share": str(share), **row}), file=sys.stderr)
            return row

        row, net = searched(train, asked.rates, asked.seeds), monai_network()
        if name != PEER:
            net = our_network(overrides=ours[name])
        found[name] = {"step_s": round(seconds[name], 4), "images": images,
                       "gflop": round(flops_of(net, bench.judge.draws.data.shape) / 1e9, 3), **row}
        if name != PEER:
            found[name]["at"] = {str(share): summary([train(row["rate"], seed, share) for seed in asked.seeds])
                                 for share in asked.at}
    return found


def ratios(found: dict) -> dict:
    """Distances of every recipe of ours over MONAI's, whole and at shares of the compute."""
    if PEER not in found:
        return {}
    peer = found[PEER]
    ours = {name: row for name, row in found.items() if name != PEER}
    return {"ratios": {name: {key: round(row[key] / peer[key], 3) for key in ("frechet", "ks")}
                       for name, row in ours.items()},
            "ratios_at": {name: {share: {key: round(each[key] / peer[key], 3) for key in ("frechet", "ks")}
                                 for share, each in row["at"].items()} for name, row in ours.items()},
            "equal_flops": {name: abs(row["gflop"] / peer["gflop"] - 1) <= FLOPS_WITHIN for name, row in ours.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path)
    parser.add_argument("--autoencoder", type=Path, help="the first stage that made them")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--at", type=Fraction, nargs="*", default=[Fraction(1, 6)])
    parser.add_argument("--only", choices=("ours", "theirs"))
    parser.add_argument("--ours", nargs="+", default=["edm3d="], metavar="NAME=OVERRIDES")
    parser.add_argument("--calls", nargs="+", default=["ipndm 4=18", "heun=35"], metavar="SAMPLER=CALLS")
    parser.add_argument("--step-s", nargs="+", default=[], metavar="NAME=SECONDS")
    parser.add_argument("--samples", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    calls = {name: int(number) for name, number in (text.split("=") for text in asked.calls)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latents, autoencoder = (asked.latents.resolve(), asked.autoencoder) if asked.latents else small_files(folder)
        judge = Judge(latents, autoencoder, asked.samples)
        found = measured(Trainings(folder, latents, judge, asked.samples, calls), asked)
    print(json_line("Frechet distance above the floor, ours over MONAI's DDPM recipe, at equal minutes", limit=LIMIT,
                    limit_at=1.0, **ratios(found), minutes=asked.minutes, seeds=len(asked.seeds), samples=asked.samples,
                    floor={key: round(value, 4) for key, value in judge.floor.items()},
                    latents="x".join(map(str, judge.draws.data.shape)), items=len(judge.draws.data), **found))


if __name__ == "__main__":
    main()
