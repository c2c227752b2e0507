"""What samplers cost a network, how far they end from the exact solution, and how far what they draw is from real."""

import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats.volumes import VolumesFile
from edm3d.inference.asking_scans import asker_for
from edm3d.inference.drawing import complete, draw, draw_all, make_drawer
from edm3d.inference.model import Model
from edm3d.inference.real_pictures import shown_channels
from edm3d.inference.refiner import check_draws_alone
from edm3d.inference.volume_features import VolumeFeatures
from edm3d.metrics.frechet import frechet_distance
from edm3d.metrics.kernel_distance import kernel_distance
from edm3d.metrics.same_size import at_same_size
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.utils.files import write_text
from edm3d.utils.log import progress

LEAST_REFERENCE = 72  # steps of order 4
STOCHASTIC = ("S_churn", "eta")


class Tried(NamedTuple):
    """A sampler at a number of steps: calls of the network and seconds per volume (decoding aside).

    error: root mean square distance to the exact solution, relative to that solution's; None of a stochastic sampler,
    which ends elsewhere, and where the steps are refused (why says so). distance: Frechet distance of `size` volumes
    drawn to as many real ones, where these are given, by features of a random network; floor and floor_p95: of real
    ones to other real ones. kid, kid_floor, kid_floor_p95: likewise the kernel distance.
    """

    sampler: str
    steps: int
    calls: float | None = None
    seconds: float | None = None
    error: float | None = None
    why: str = ""
    distance: float | None = None
    floor: float | None = None
    floor_p95: float | None = None
    size: int | None = None
    kid: float | None = None
    kid_floor: float | None = None
    kid_floor_p95: float | None = None


class RealVolumes(NamedTuple):
    """What drawn volumes are held against: features [M,d] of real ones, what they are, and what makes features.

    num: volumes to draw, seeds 0, 1, ..., so many at a time.
    """

    features: np.ndarray
    description: str
    extractor: VolumeFeatures
    num: int
    batch_size: int


class Counted(Wrapper):
    """A denoiser that counts its calls."""

    calls = 0

    def __call__(self, *arguments, **named) -> torch.Tensor:
        self.calls += 1
        return self.net(*arguments, **named)


def try_solvers(model: Model, samplers: Sequence[str], steps: Sequence[int], seeds: Sequence[int],
                real: RealVolumes | None = None) -> Iterator[Tried]:
    """Draw the seeds, without decoding, by each sampler at each number of steps; ValueError for unknown samplers.

    real: what volumes drawn by it, decoded, are held against.
    """
    model.check_draws()
    check_draws_alone(model.snapshot)
    wanted = {name: model.options(name, {}) for name in samplers}  # refuses misspelt names before anything is drawn
    reference, _, _ = drawn(model, "multistep", max(4 * max(steps), LEAST_REFERENCE), seeds)
    scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    for name, options in wanted.items():
        stochastic = any(options.sampler.get(key) for key in STOCHASTIC)
        for number in steps:
            try:
                x, calls, seconds = drawn(model, name, number, seeds)
            except ValueError as e:
                yield Tried(name, number, why=str(e))
                continue
            off = float(np.sqrt(np.mean(np.square(x.astype(np.float64) - reference)))) / scale
            tried = Tried(name, number, calls / len(seeds), seconds / len(seeds), None if stochastic else off)
            yield tried if real is None else tried._replace(**from_real(model, name, number, real))


def drawn(model: Model, sampler: str, steps: int, seeds: Sequence[int]) -> tuple[np.ndarray, int, float]:
    """Latents or voxels [N,C,*S] of seeds, calls of the network for all of them, one seed at a time, and seconds."""
    options = model.options(sampler, {"num_steps": steps}, decode=False, start="noise")
    counted: list[Counted] = []

    def count(net: Denoiser) -> Denoiser:
        counted.append(Counted(net))
        return counted[-1]

    conditions = asker_for(model.net, model.snapshot, options)(options)
    drawer = make_drawer(model.net, model.snapshot, options, model.device, conditions, count)
    counted.clear()  # make_drawer tries the sampler
    start = time.perf_counter()
    arrays = draw_all(drawer, list(seeds), 1)
    seconds = time.perf_counter() - start
    return arrays["latents" if "latents" in arrays else "images"], sum(each.calls for each in counted), seconds


# ---- real volumes ----


def read_real(model: Model, path: Path, num: int, batch_size: int) -> RealVolumes:
    """Features of up to 2 num volumes of a file, of those that evaluate takes; ValueError for others than are drawn."""
    from edm3d.reporting.reference import choose_reference  # here, as it takes seconds
    model.check_draws()
    check_draws_alone(model.snapshot)
    if model.snapshot.dose is not None:
        raise ValueError(f"--real {path}: {model.snapshot.path} draws PET images, each on the scale of its scan; "
                         "leave --real away")
    facts, file = model.facts, VolumesFile(path)
    channels = shown_channels(file, model.snapshot, f"--real {path}")
    if (span := (file.meta.intensity.lo, file.meta.intensity.hi)) != (facts.intensity.lo, facts.intensity.hi):
        raise ValueError(f"--real {path}: its intensities are of the range {span}, those drawn "
                         f"{(facts.intensity.lo, facts.intensity.hi)}")
    size = model.snapshot.volume_shape
    cases = choose_reference(file, "auto", channels).fitted(size, facts.intensity.lo)
    if len(cases) < 4:
        raise ValueError(f"--real {path}: {len(cases)} volumes ({cases.description}); wanted 4 or more, for two sets "
                         "that share none")
    places = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), 2 * num)).astype(int))
    extractor = VolumeFeatures(len(channels), len(size), facts.intensity, model.device)
    found = extractor.of(cases.case(int(i)).image for i in progress(places, desc="real", unit="volume"))
    return RealVolumes(found, f"{len(places)} of {cases.description}", extractor, num, batch_size)


def from_real(model: Model, sampler: str, steps: int, real: RealVolumes) -> dict[str, float]:
    """The distance of volumes that a sampler draws to real ones, with its floor, by the names of `Tried`."""
    options = replace(model.options(sampler, {"num_steps": steps}, decode=True, start="noise"),
                      batch_size=real.batch_size)
    whole = complete(model.snapshot, options, str(model.run_root))
    conditions = asker_for(model.net, whole, options)(options)
    drawer = make_drawer(model.net, whole, options, model.device, conditions, run_root=str(model.run_root))
    seeds, found = list(range(real.num)), []
    for start in progress(range(0, real.num, real.batch_size), desc=f"{sampler} {steps}", unit="batch"):
        found.append(real.extractor(draw(drawer, seeds[start:start + real.batch_size])["images"]))
    drawn_features = np.concatenate(found)
    if not np.isfinite(drawn_features).all():
        raise ValueError(f"{model.snapshot.path}: what {sampler} draws in {steps} steps is not finite: its network has "
                         "diverged or is damaged")
    kid = at_same_size(kernel_distance, real.features, drawn_features)
    return {**at_same_size(frechet_distance, real.features, drawn_features)._asdict(), "kid": kid.distance,
            "kid_floor": kid.floor, "kid_floor_p95": kid.floor_p95}


# ---- showing ----


def table(rows: Sequence[Tried], real: RealVolumes | None = None) -> Iterator[str]:
    """The rows as lines of a terminal."""
    yield (f"{'sampler':<12}{'steps':>6}{'calls':>7}{'s/volume':>10}" + f"{'distance':>10}{'KID':>10}" * bool(real)
           + "  off the exact solution (rms, relative)")
    for row in rows:
        if row.why:
            yield f"{row.sampler:<12}{row.steps:>6}  {row.why}"
            continue
        off = "stochastic: ends elsewhere" if row.error is None else f"{row.error:.2g}"
        far = f"{row.distance:>10.4g}{row.kid:>10.3g}" if real else ""
        yield f"{row.sampler:<12}{row.steps:>6}{row.calls:>7g}{row.seconds:>10.3g}{far}  {off}"
    if real and (known := [row for row in rows if row.size]):
        yield (f"distance: Frechet, {known[0].size} drawn to {known[0].size} real, features of a random network "
               f"(compare within this table alone); as many real to other real ones: {known[0].floor:.4g} on average, "
               f"to {known[0].floor_p95:.4g} in 95 of 100 cases; KID: kernel distance of the same, real to real "
               f"{known[0].kid_floor:.3g} on average, to {known[0].kid_floor_p95:.3g}; real: {real.description}")


def write_table(dest: Path, rows: Sequence[Tried], real: RealVolumes | None = None) -> list[Path]:
    """Write solvers.json, solvers.csv, and solvers.png (distance to real ones, else error, against calls); the files.
    """
    from edm3d.reporting.montages import save_png
    from edm3d.reporting.solver_chart import solver_chart
    dest.mkdir(parents=True, exist_ok=True)
    paths = [dest / f"solvers.{suffix}" for suffix in ("json", "csv", "png")]
    plain = [row._asdict() for row in rows]
    write_text(paths[0], json.dumps({"real": real and real.description, "rows": plain}, indent=1) + "\n")
    out = io.StringIO()
    writer = csv.DictWriter(out, Tried._fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in plain)
    write_text(paths[1], out.getvalue())
    save_png(solver_chart(plain), paths[2])
    return paths
