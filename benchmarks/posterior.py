"""Claim: posterior samplers lose less than azula's at the same number of network calls, in no more time per call.

The prior is known, so that all that is lost is lost by the samplers: a mixture of 12 Gaussians fitted to 32x32 echo
phantoms without speckle, whose denoiser is exact; both sides call the same one. Truths are phantoms that it was not
fitted to. Measured: means over 4x4 pixels, 15 % of the pixels, a blur of 2 pixels, and 12 projections (of PET, as a
matrix), each with Gaussian noise.

Methods: azula's DPS, DiffPIR and MMPS as published (its DDPM sampler, evenly spaced times of its VP schedule), and our
DPS and MMPS by the ddim sampler with eta=1, S_noise=0, clip=1 (no image leaves -1 to 1) and sigma_min=0.05. A call is
one evaluation of the denoiser or one product with its Jacobian: DPS makes 2 per step, azula's MMPS 2 + iterations, ours
1 + iterations, DiffPIR 1. Steps are as many as fit into 32 or 100 calls. Every method has six settings to choose from
(STEPS), is given the best of them on 32 images, and judged on 32 others: |x - truth| / |truth| per image, in the unit
of the images, mean over images.

Wanted, in the mean over operators of each number of calls: our DPS at most azula's DPS, our MMPS at most 0.9 of the
best of azula's, and no more processor time per call than azula's of the same name, on a small UNet (the mixture costs
next to nothing, so that it would show what stands around the calls alone). S_noise=0 makes an estimate of the
image, and not a draw: what the same methods lose with S_noise=1 (drawn_*, in the same settings) stands beside. An
estimate is nearer to the truth than a draw, by a factor of up to sqrt(2), whatever the method. exact_mean is what the
expected image of the prior, in closed form, loses: no method that knows nothing but the prior can lose less, but for
what clipping takes off.

azula goes into a folder of its own: python -m pip install --no-deps --target FOLDER azula==0.11.1 tqdm einops
Run from the top of the checkout: OMP_NUM_THREADS=1 python -m benchmarks.posterior --azula FOLDER [--seed N]
(about 3 minutes). Another seed is other phantoms, to fit the prior, to choose and to judge, and other noise.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from math import inf, nan
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import json_line
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.physics.noise_models import GaussianNoise
from edm3d.physics.operators import Downsample, GaussianBlur, Inpaint
from edm3d.physics.phantoms import echo_phantom
from edm3d.physics.projector import ParallelBeam, Projector
from edm3d.samplers import ddim_sampler
from edm3d.samplers.posterior import DPS, MMPS

SIZE, JUDGED, SELECTED, FITTED = 32, 32, 32, 1500
MEAN, GAIN = 0.1825, 0.1825  # of phantoms, which are 0 to 0.365: networks see (image - MEAN) / GAIN, -1 to 1
CLUSTERS, RANK = 12, 40
CALLS = (32, 100)
OPERATORS = {"downsample": lambda: Downsample(4, sigma=0.05), "inpaint": lambda: Inpaint(keep=0.15, sigma=0.05),
             "blur": lambda: GaussianBlur(2, sigma=0.05),
             "projector": lambda: Dense(Projector(ParallelBeam(SIZE, 12, SIZE), noise_model=GaussianNoise(0.05)))}
STEPS = {"azula_dps": (3, 10, 20, 30, 60, 100), "azula_diffpir": (0.1, 0.3, 1, 3, 10, 30),
         "azula_mmps": ((1, 0.3), (1, 1), (2, 1), (2, 3), (4, 1), (4, 3)),  # iterations, scale of the noise's variance
         "dps": (1, 2, 3, 5, 7, 10),
         "mmps": ((1, 80), (1, 10), (3, 80), (3, 10), (7, 80), (7, 10))}  # iterations, sigma_max
TIMED = {"azula_dps": 10, "azula_diffpir": 1, "azula_mmps": (2, 1), "dps": 3, "mmps": (3, 80)}  # settings, 12 calls


class Dense:
    """An operator by its matrix: azula differentiates operators forwards, which the projector's products do not."""

    def __init__(self, operator):
        columns = operator.A(torch.eye(SIZE ** 2).reshape(-1, 1, SIZE, SIZE)).flatten(1)
        self.matrix, self.noise_model = columns.T.contiguous(), operator.noise_model

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (y @ self.matrix).reshape(-1, 1, SIZE, SIZE)


class PhantomMixture(torch.nn.Module):
    """The exact denoiser of a mixture of Gaussians fitted to images [N,1,S,S]: k-means, then the principal axes of each
    cluster and a rest that is alike in all other directions.
    """

    sigma_min, sigma_max, noise_table = 0, inf, None

    def __init__(self, images: torch.Tensor):
        super().__init__()
        x = images.flatten(1).double()
        centres = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:CLUSTERS]]
        for _ in range(30):
            nearest = torch.cdist(x, centres).argmin(1)
            centres = torch.stack([x[nearest == k].mean(0) for k in range(CLUSTERS)])
        bases, extra, rest = zip(*(axes(x[nearest == k] - centres[k]) for k in range(CLUSTERS)), strict=True)
        shares = torch.stack([(nearest == k).double().mean() for k in range(CLUSTERS)])
        for name, value in (("centres", centres), ("bases", torch.stack(bases)), ("extra", torch.stack(extra)),
                            ("rest", torch.stack(rest)), ("shares", shares)):
            self.register_buffer(name, value.float())

    def round_sigma(self, sigma: torch.Tensor | float) -> torch.Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: None = None,
                augment_labels: None = None) -> torch.Tensor:
        square = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, 1) ** 2
        off = x.flatten(1).float()[:, None] - self.centres  # [N,K,D]
        along = torch.einsum("nkd,krd->nkr", off, self.bases)
        rest = self.rest + square
        total = self.extra + rest[..., None]
        distance = (off.square().sum(2) - along.square().sum(2)) / rest + (along.square() / total).sum(2)
        volume = (off.shape[2] - RANK) * rest.log() + total.log().sum(2)
        share = (self.shares.log() - (distance + volume) / 2).softmax(1)
        kept = self.rest / rest
        more = (self.extra + self.rest[:, None]) / total - kept[..., None]
        mean = (share[..., None] * (self.centres + kept[..., None] * off)).sum(1)
        return (mean + torch.einsum("nkr,krd->nd", share[..., None] * more * along, self.bases)).to(x).reshape(x.shape)


def exact_mean(prior: PhantomMixture, problem: "InverseProblem") -> torch.Tensor:
    """The expected image [N,1,S,S] of a mixture, given what was measured."""
    size = SIZE ** 2
    forward = problem.operator.A(torch.eye(size).reshape(-1, 1, SIZE, SIZE)).flatten(1).T.double()
    y, noise = problem.y.flatten(1).double(), problem.sigma ** 2 * torch.eye(len(forward), dtype=torch.float64)
    logs, means = [], []
    for k in range(CLUSTERS):
        centre, base, extra = (getattr(prior, name)[k].double() for name in ("centres", "bases", "extra"))
        cross = (prior.rest[k].double() * torch.eye(size) + (base.T * extra) @ base) @ forward.T
        factor, off = torch.linalg.cholesky(forward @ cross + noise), (y - forward @ centre).T
        white = torch.linalg.solve_triangular(factor, off, upper=False)
        logs.append(prior.shares[k].double().log() - white.square().sum(0) / 2 - factor.diag().log().sum())
        means.append(centre + (cross @ torch.cholesky_solve(off, factor)).T)
    shares = torch.stack(logs).softmax(0)
    return (shares[..., None] * torch.stack(means)).sum(0).reshape(-1, 1, SIZE, SIZE).float()


def axes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Principal axes [RANK,D] of centred rows, the variance along each beyond that of the rest, and that."""
    _, spread, base = torch.linalg.svd(x, full_matrices=False)
    variance = spread ** 2 / len(x)
    rest = variance[RANK:].sum() / (x.shape[1] - RANK)
    return base[:RANK], variance[:RANK] - rest, rest


class InverseProblem:
    """Images, what was measured of them, and the noise that samplers start from."""

    def __init__(self, operator, images: torch.Tensor, seed: int):
        generator = torch.Generator().manual_seed(seed)
        clean = operator.A(images)
        self.operator, self.images = operator, images
        self.sigma = operator.noise_model.sigma
        self.y = clean + self.sigma * torch.randn(clean.shape, generator=generator)
        self.start = torch.randn(images.shape, generator=generator)

    def error(self, x: torch.Tensor) -> float:
        """Mean over images of |x - truth| / |truth|, nan where any is not finite."""
        off = (x - self.images).flatten(1).norm(dim=1) * GAIN
        error = (off / (self.images * GAIN + MEAN).flatten(1).norm(dim=1)).mean()
        return float(error) if error.isfinite() else nan


def ours(net: torch.nn.Module, problem: InverseProblem, calls: int, setting, method: str, s_noise: float = 0) -> tuple:
    """What our method draws, and the calls it made."""
    torch.manual_seed(0)
    if method == "dps":
        steps, each, sigma_max = calls // 2, 2, 80
        denoiser = DPS(net, problem.operator, problem.y, step=setting)
    else:
        iterations, sigma_max = setting
        steps, each = calls // (1 + iterations), 1 + iterations
        denoiser = MMPS(net, problem.operator, problem.y, iterations=iterations)
    x = ddim_sampler(denoiser, problem.start, num_steps=steps, eta=1, S_noise=s_noise, sigma_min=0.05,
                     sigma_max=sigma_max, clip=1, grid="polynomial" if method == "dps" else "exponential")
    return x.float(), steps * each


def azulas(net: torch.nn.Module, problem: InverseProblem, calls: int, setting, method: str) -> tuple:
    """What azula's method draws, and the calls it made."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    class Same(Denoiser):
        """The same prior under a schedule of azula's."""

        def __init__(self):
            super().__init__()
            self.net, self.levels = net, VPSchedule(alpha_min=1 / 80, sigma_min=0.002)

        @property
        def schedule(self) -> VPSchedule:
            return self.levels

        def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> DiracPosterior:
            alpha, sigma = self.levels(t)
            return DiracPosterior(mean=self.net(x_t / alpha, sigma / alpha))

    def flat(x: torch.Tensor) -> torch.Tensor:
        return problem.operator.A(x).flatten(1)

    torch.manual_seed(0)
    denoiser, y = Same(), problem.y.flatten(1)
    alpha, sigma = denoiser.schedule(torch.tensor(1.0))
    if method == "azula_dps":
        each = 2
        sampler = DPSSampler(denoiser, problem.y, problem.operator.A, zeta=setting, steps=calls // each, silent=True)
    elif method == "azula_diffpir":
        each = 1
        given = DiffPIRDenoiser(denoiser, y, flat, problem.sigma ** 2, lmbda=setting, iterations=5)
        sampler = DDPMSampler(given, steps=calls, silent=True)
    else:
        iterations, scale = setting
        each = 2 + iterations
        noise = IsotropicCovariance(torch.tensor(scale * problem.sigma ** 2))
        given = MMPSDenoiser(denoiser, y, flat, noise, iterations=iterations)
        sampler = DDPMSampler(given, steps=calls // each, silent=True)
    return sampler(problem.start * (sigma ** 2 + alpha ** 2 / 4).sqrt()), calls // each * each


def best(run: Callable, method: str, chosen: InverseProblem, judged: InverseProblem, calls: int
         ) -> tuple[float, object]:
    """Error on the judged images by the setting that is best on others, and the setting."""
    errors = {setting: chosen.error(run(chosen, calls, setting, method)[0]) for setting in STEPS[method]}
    setting = min(errors, key=lambda key: inf if np.isnan(errors[key]) else errors[key])
    return judged.error(run(judged, calls, setting, method)[0]), setting


def milliseconds(images: torch.Tensor) -> dict[str, float]:
    """Processor time per call of each method, on a small untrained UNet and 4 images, mean over operators."""
    model = ADMUNet(in_channels=1, out_channels=1, spatial_dims=2, model_channels=32, channel_mult=[1, 2, 2],
                    num_blocks=1, attention_levels=[])
    net, found = EDMPrecond(model).eval().requires_grad_(False), {method: [] for method in TIMED}
    for make in OPERATORS.values():
        problem, times = InverseProblem(make(), images[:4], 0), {method: [] for method in TIMED}
        for _ in range(3):
            for method, setting in TIMED.items():
                start = time.process_time()
                _, made = (azulas if method.startswith("azula") else ours)(net, problem, 12, setting, method)
                times[method].append((time.process_time() - start) / made)
        for method, each in times.items():
            found[method].append(1000 * min(each))
    return {method: float(np.mean(each)) for method, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Claim: posterior samplers lose less than azula's.")
    parser.add_argument("--azula", type=Path, required=True, help="folder that azula was installed into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.append(str(given.azula))
    torch.set_num_threads(1)
    phantoms = [echo_phantom(i, seed=given.seed, size=SIZE, spatial_dims=2).clean
                for i in range(JUDGED + SELECTED + FITTED)]
    images = (torch.from_numpy(np.stack(phantoms))[:, None] - MEAN) / GAIN
    net = PhantomMixture(images[JUDGED + SELECTED:]).eval()
    numbers: dict[str, float | str | bool] = {}
    for calls in CALLS:
        errors = {method: [] for method in STEPS}
        drawn, exact = {method: [] for method in ("dps", "mmps")}, []
        for name, make in OPERATORS.items():
            chosen, judged = (InverseProblem(make(), part, seed) for part, seed in (
                (images[JUDGED:JUDGED + SELECTED], 2 * given.seed + 1), (images[:JUDGED], 2 * given.seed + 2)))
            exact.append(judged.error(exact_mean(net, judged)))
            for method in STEPS:
                run = partial(azulas if method.startswith("azula") else ours, net)
                error, setting = best(run, method, chosen, judged, calls)
                errors[method].append(error)
                numbers[f"{calls}_{name}_{method}"] = round(error, 4)
                numbers[f"{calls}_{name}_{method}_setting"] = str(setting)
                if method in drawn:
                    drawn[method].append(judged.error(run(judged, calls, setting, method, 1)[0]))
        numbers |= summed_up(calls, errors, drawn) | {"exact_mean": round(float(np.mean(exact)), 4)}
    ms = milliseconds(images)
    numbers |= {f"ms_per_call_{method}": round(value, 2) for method, value in ms.items()}
    numbers |= {f"{method}_time_ratio": round(ms[method] / ms[f"azula_{method}"], 3) for method in ("dps", "mmps")}
    passed = all(numbers[key] <= limit for calls in CALLS for key, limit in (
        (f"{calls}_dps_ratio", 1), (f"{calls}_mmps_ratio", 0.9), ("dps_time_ratio", 1), ("mmps_time_ratio", 1)))
    print(json_line("posterior samplers against azula's, same prior, operators and calls", seed=given.seed, **numbers,
                    passed=passed))


def summed_up(calls: int, errors: dict[str, list[float]], drawn: dict[str, list[float]]) -> dict[str, float]:
    """Means over operators, and how ours compare."""
    mean = {method: float(np.mean(values)) for method, values in errors.items()}
    peer = min(value for method, value in mean.items() if method.startswith("azula"))
    found = {f"error_{method}": value for method, value in mean.items()}
    found |= {f"drawn_{method}": float(np.mean(values)) for method, values in drawn.items()}
    found |= {"dps_ratio": mean["dps"] / mean["azula_dps"], "mmps_ratio": mean["mmps"] / peer}
    return {f"{calls}_{name}": round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    main()
