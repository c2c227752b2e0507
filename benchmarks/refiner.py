"""Claims: a refiner gives volumes the texture of real ones, at no cost to their anatomy.

demo: 64 volumes of the demo's networks against 512 fresh phantoms, refined (echo_refine) and, beside it, as the first
stage leaves them. Refined, every band of frequencies up to Nyquist has the power of real volumes within 1.5 dB, the KS
distance of the intensity's mean is at most 0.30 and of its standard deviation 0.45, the speckle contrast in wall and
tissue is within 10 %, the lag-1 correlation along every axis within 0.05, the KS distance of volume and wall thickness
at most 0.22; at most 10 calls of the refiner's network a volume. (64 fresh phantoms against 512, 16 seeds, worst case:
0.46 dB, 0.20, 0.18, 1.9 %, 0.007.)

grid64: 64 phantoms of 64^3 that no network saw, decoded from their latents (echo64_vae) and refined (echo64_refine),
against the same phantoms: bands within 1 dB, both KS at most 0.25, correlation length within 10 % along axes whose
lag-1 correlation is above 0.2; the refiner trained in at most 60 minutes of CPU time. Decoded volumes stand for drawn
ones: a refiner is told a decoded image and knows nothing of where its latents come from, so what it gives a volume
shows there, with nothing that a diffusion model of 64^3, which would take hours, did to the anatomy; the demo has that
part. As both sets are of the same hearts, what differs is the texture alone.

real: nibabel's anatomical.nii, 2 mm. A first stage and a refiner are trained on patches of 16^3 from one part of it; of
each held-out patch 16 refined draws are made. Their mean has at least the PSNR of the decoded patch, a single draw at
most 3 dB less, and bands up to Nyquist the power of the held-out patches within 1.5 dB.

Texture is what metrics/texture.py measures and evaluate.py reports. Power beyond Nyquist (corners_db) stands beside.

Run from the top of the checkout: python -m benchmarks.refiner [--only demo grid64 real] [--seed N] [--folder FOLDER]
The folder may be that of a finished demo (data/ and results/), whose networks are then taken.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.common import json_line
from benchmarks.conditions import NUM, Bench
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.solvers import Counted
from edm3d.metrics.image import psnr
from edm3d.metrics.texture import band_power, decibels
from edm3d.utils.config import build

DEMO = {"bands_db": 1.5, "ks_mean": 0.30, "ks_std": 0.45, "contrast": 0.10, "lag1": 0.05, "ks_anatomy": 0.22,
        "calls": 10}
GRID64 = {"bands_db": 1.0, "ks_mean": 0.25, "ks_std": 0.25, "length": 0.10, "cpu_minutes": 60}
REAL = {"bands_db": 1.5, "mean_of_draws_db": 0.0, "one_draw_db": -3.0}
CORRELATED = 0.2       # lag-1 correlation above which a correlation length says something
PATCH, DRAWS = 16, 16  # voxels along each axis of a patch of the real volume; draws of each
FLIPPED = ["augment=mild", *(f"training.augment.{name}=0" for name in ("translate_int", "scale", "rotate_frac"))]
HELD_FROM = 25         # slice of its axis 1, of 41, from which on all is held out


class Refining(Bench):
    """The folder of the demo, with refiners."""

    def network(self, name: str, *arguments: str) -> Path:
        """The newest finished run of an experiment, which is trained where there is none."""
        found = self.runs(name)
        return found[-1] if found else self.train(name, *(arguments or [f"-cn={name}"]))

    def relative(self, path: Path) -> str:
        """A path as commands in the folder are given it."""
        return str(path.relative_to(self.folder))

    def report(self, dest: str, *arguments: str) -> dict:
        """What evaluate.py says."""
        self.run("evaluate", "evaluate.py", "--dest", f"results/{dest}", "--overwrite", *arguments)
        return json.loads((self.folder / "results" / dest / "report.json").read_text())

    def tool(self, command: str, *arguments: str) -> None:
        """A command of dataset_tool.py."""
        self.run(command, "dataset_tool.py", command, *arguments)


# ---- what reports say of texture ----


def texture(report: dict) -> dict[str, Any]:
    """Differences to the real volumes: dB by band and beyond, lag-1 by axis, contrast (shares) by class."""
    found = report["texture"]["echo"]
    *bands, corners = rounded(found["bands"]["difference"])
    contrast = dict(zip(found["contrast"]["names"], rounded(found["contrast"]["difference"]), strict=True))
    return {"bands_db": bands, "corners_db": corners, "lag1": rounded(found["lag1"]["difference"]),
            "contrast": {"wall": contrast["myocardium"], "tissue": contrast["background"]}}


def rounded(values: list[float | None]) -> list[float | None]:
    """Numbers of a line."""
    return [None if value is None else round(value, 4) for value in values]


def worst(values: Any) -> float:
    """The largest of numbers without their sign; infinite where one is undefined."""
    listed = values.values() if isinstance(values, dict) else values
    return max((float("inf") if value is None else abs(value) for value in listed), default=0.0)


# ---- the claims ----


def demo(bench: Refining) -> dict:
    """Volumes that were drawn, as the first stage leaves them and refined."""
    bench.prepare()
    drawer, refiner = bench.network("echo_edm"), bench.network("echo_refine")
    bench.draw("draw", drawer, f"coarse{bench.seed}")
    samples = bench.draw("draw_refined", drawer, f"refined{bench.seed}", f"sampling.refiner={bench.relative(refiner)}")
    coarse, refined = (drawn_texture(bench, f"{name}{bench.seed}") for name in ("coarse", "refined"))
    calls = calls_of(samples)
    holds = {"bands_db": worst(refined["bands_db"]), "ks_mean": refined["ks_mean"], "ks_std": refined["ks_std"],
             "contrast": worst(refined["contrast"]), "lag1": worst(refined["lag1"]),
             "ks_anatomy": worst(refined["ks_anatomy"]), "calls": calls}
    return {"before": coarse, "refined": {**refined, "calls": calls}, "limits": DEMO,
            "holds": {name: value <= DEMO[name] for name, value in holds.items()}}


def drawn_texture(bench: Refining, name: str) -> dict[str, Any]:
    """Of samples against fresh phantoms: texture, KS distances of intensities and of the anatomy."""
    report = bench.report(name, "--real", "data/echo.h5", "--generated", f"results/{name}/samples.h5",
                          "--num-noise", "0")
    ks = {key: round(row["ks"], 4) for key, row in report["metrics"].items()}
    return {**texture(report), "ks_mean": ks["intensity_mean"], "ks_std": ks["intensity_std"],
            "ks_anatomy": {key: ks[key] for key in ("lv_volume", "wall_thickness")}}


def calls_of(samples: SamplesFile) -> int:
    """Network calls that refining a volume took, by running the sampler that the samples name."""
    sampler = build({**samples.meta.sampling["refiner"]["sampler"], "_partial_": True})
    net = Counted(AllZero())
    sampler(net, torch.zeros(1, 1, 2, 2, 2))
    return net.calls


class AllZero:
    """A denoiser that knows all noise levels and sees nothing but zeros."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __call__(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(x)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(sigma)


def grid64(bench: Refining) -> dict:
    """Volumes of 64^3 that were decoded from their latents, before and after refining."""
    bench.tool("phantom", "--dest", "data/echo64.h5", "--num", "320", "--size", "64", "--seed", str(bench.seed))
    bench.tool("phantom", "--dest", f"data/held64_{bench.seed}.h5", "--num", str(NUM), "--size", "64",
               "--seed", str(bench.seed + 1005), "--split", "1", "0", "0")
    stage, refiner = bench.network("echo64_vae"), bench.network("echo64_refine")
    asked = ["--autoencoder", bench.relative(stage), "--real", f"data/held64_{bench.seed}.h5", "--split", "train"]
    coarse = decoded_texture(bench.report(f"coarse64_{bench.seed}", *asked))
    refined = decoded_texture(bench.report(f"refined64_{bench.seed}", *asked, "--refiner", bench.relative(refiner)))
    minutes = bench.minutes.get("echo64_refine")  # None: it was there
    holds = {"bands_db": worst(refined["bands_db"]), "ks_mean": refined["ks_mean"], "ks_std": refined["ks_std"],
             "length": worst(refined["length"]), "cpu_minutes": minutes or 0}
    return {"before": coarse, "refined": refined, "cpu_minutes": minutes and round(minutes, 1), "limits": GRID64,
            "holds": {name: value <= GRID64[name] for name, value in holds.items()}}


def decoded_texture(report: dict) -> dict[str, Any]:
    """Of decoded volumes against what they are of; correlation length (shares) by axis that is correlated at all."""
    found = report["texture"]["echo"]
    lengths = zip(found["lag1"]["names"], found["lag1"]["real"], rounded(found["length_mm"]["difference"]), strict=True)
    return {**texture(report), "length": {axis: off for axis, lag1, off in lengths if (lag1 or 0) > CORRELATED},
            "ks_mean": round(found["intensity_mean_ks"], 4), "ks_std": round(found["intensity_std_ks"], 4),
            "psnr_db": round(report["psnr_db"], 2)}


def real(bench: Refining) -> dict:
    """Held-out patches of a real volume: decoded, refined, and the mean of refined draws."""
    write_patches(bench.folder / "data/real")
    patches, draws, latents, decoded, refined = (f"data/real_{name}{bench.seed}.h5" for name in (
        "patches", "draws", "latents", "decoded", "refined"))
    for source, dest in (("patches", patches), ("draws", draws)):
        bench.tool("prepare", "--images", f"data/real/{source}", "--dest", dest, "--range", "0", "1", "--overwrite",
                   "--split", "1", "0", "0")
    own = [f"training.dataset.path={patches}", "training.options.desc=real", "training.validation.max_items=0",
           *FLIPPED]
    stage = bench.train("echo_vae-real", "-cn=echo_vae", *own, "training.options.total_kimg=4")
    refiner = bench.train("echo_refine-real", "-cn=echo_refine", *own, "training.options.total_kimg=4",
                          "training.network.model.semantic_dim=0",
                          f"training.batch_transform.autoencoder={bench.relative(stage)}")
    bench.tool("encode", "--autoencoder", bench.relative(stage), "--source", draws, "--dest", latents, "--overwrite")
    bench.tool("decode", "--latents", latents, "--dest", decoded, "--overwrite")
    bench.tool("decode", "--latents", latents, "--dest", refined, "--refiner", bench.relative(refiner), "--overwrite")
    return of_draws(*(images_of(bench.folder / path) for path in (draws, decoded, refined)))


def of_draws(true: np.ndarray, decoded: np.ndarray, refined: np.ndarray) -> dict:
    """What DRAWS draws of each patch say, one after another in arrays [N,*S]; decoded are as many times the same."""
    scores = {"decoded": [psnr(a, b, 1.0) for a, b in zip(decoded, true, strict=True)],
              "one_draw": [psnr(a, b, 1.0) for a, b in zip(refined, true, strict=True)]}
    means = refined.reshape(-1, DRAWS, *refined.shape[1:]).mean(axis=1)
    scores["mean_of_draws"] = [psnr(a, b, 1.0) for a, b in zip(means, true[::DRAWS], strict=True)]
    db = {name: float(np.mean(values)) for name, values in scores.items()}
    off = {f"{name}_db": round(db[name] - db["decoded"], 2) for name in ("mean_of_draws", "one_draw")}
    powers = [np.stack([band_power(image) for image in images]) for images in (true, decoded, refined)]
    before, after = (rounded(decibels(power, powers[0]).tolist()) for power in powers[1:])
    holds = {"bands_db": worst(after[:-1]) <= REAL["bands_db"], **{key: off[key] >= REAL[key] for key in off}}
    return {"psnr_db": {name: round(value, 2) for name, value in db.items()}, "above_decoded": off,
            "before": {"bands_db": before[:-1], "corners_db": before[-1]},
            "refined": {"bands_db": after[:-1], "corners_db": after[-1]},
            "spread_of_draws": round(float(refined.reshape(-1, DRAWS, *refined.shape[1:]).std(axis=1).mean()), 4),
            "patches": len(means), "draws": DRAWS, "limits": REAL, "holds": holds}


def write_patches(folder: Path) -> None:
    """Patches of the real volume as .npy in 0..1: patches/, overlapping, to train on; draws/, DRAWS copies of each that
    is held out, since a refiner draws other noise for every row.
    """
    path = Path(nibabel.__file__).parent / "tests/data/anatomical.nii"
    volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    low, high = np.quantile(volume[:, :HELD_FROM], [0, 0.999])
    volume = np.clip((volume - low) / (high - low), 0, 1)
    parts = (("patches", volume[:, :HELD_FROM], 4, 1), ("draws", volume[:, HELD_FROM:], 9, DRAWS))
    for name, part, step, copies in parts:
        (folder / name).mkdir(parents=True, exist_ok=True)
        corners = product(*(range(0, side - PATCH + 1, step) for side in part.shape))
        for i, corner in enumerate(corners):
            patch = part[tuple(slice(at, at + PATCH) for at in corner)]
            for copy in range(copies):
                np.save(folder / name / f"patch{i:03d}_{copy:02d}.npy", patch)


def images_of(path: Path) -> np.ndarray:
    """Images [N,*S] of the one channel of a volumes file, in the order of their ids."""
    file = VolumesFile(path)
    items = [file.read(split, i) for split in file.splits for i in range(file.length(split))]
    return np.stack([item.image[0] for item in sorted(items, key=lambda item: item.id)])


CLAIMS = {"demo": demo, "grid64": grid64, "real": real}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for claim in given.only:
            bench = Refining((given.folder or Path(name)).resolve(), given.seed)
            found = CLAIMS[claim](bench)
            print(json_line(f"refiner: {claim}", seed=given.seed, **found,
                            minutes={name: round(value, 2) for name, value in bench.minutes.items()}), flush=True)


if __name__ == "__main__":
    main()
