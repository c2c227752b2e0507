"""Claim: latents that are as exact as MONAI's DDIM makes them in 100 steps take us a fifth of its time or less.

Run from the top of the checkout: python -m benchmarks.sample [--latents 64] [--device cuda] [--compile]
One JSON line: seconds and CPU seconds of drawing latents [4,8,8,8], and to decoded volumes, by the network of echo_edm
and iPNDM, and by MONAI's DiffusionModelUNet of as many FLOPs (within 5 %) and its DDIMScheduler in 100 steps; medians
of runs that take turns. Ours makes as many calls as it needs to end as near to its exact solution as DDIM ends to its
own, on three mixtures of Gaussians whose perfect denoiser is known (time does not depend on weights, so these are
random). MONAI's DDPMScheduler, which has no exact solution, is timed for some of its 1000 steps. Both are decoded by
one decoder.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.common import flops_as_written, json_line
from benchmarks.solver_error import F64, Problem, median_error, mixtures, multistep
from edm3d.samplers import make_grid, multistep_sampler
from edm3d.utils.compose import compose
from edm3d.utils.config import build, fill

SHAPE, VOLUME = (4, 8, 8, 8), (1, 32, 32, 32)
TRAINED_STEPS, DDIM_STEPS = 1000, 100
MOST_CALLS, CONVERGED_CALLS = 40, 1025
LIMIT, FLOPS_WITHIN = 5.0, 0.05
MONAI_CHANNELS = (40, 64, 64)


def scheduler(name: str, steps: int, **more: object) -> object:
    """One of MONAI's, with its own noise schedule unless another is given."""
    from monai.networks import schedulers  # seconds, and the rest of this file does without
    made = getattr(schedulers, name)(num_train_timesteps=TRAINED_STEPS, **{"clip_sample": False, **more})
    made.set_timesteps(steps)
    return made


@torch.no_grad()
def monai_run(net: Callable, made: object, x: torch.Tensor, steps: int | None = None) -> torch.Tensor:
    """x by a scheduler; net(x, t) says the noise. steps: the first ones alone."""
    for t in made.timesteps[:steps]:
        x, _ = made.step(net(x, t.to(x.device)), int(t), x)
    return x


# ---- calls for the same error ----


def noise_of(problem: Problem, made: object) -> Callable:
    """What a perfect network says of x in the variance-preserving scale, and the levels of its steps."""
    kept = made.alphas_cumprod.to(F64)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = ((1 - kept[t]) / kept[t]).sqrt()
        scaled = x * (1 + sigma ** 2).sqrt()
        return (scaled - problem.net(scaled, sigma)) / sigma

    return net


def ddim_error(problem: Problem) -> float:
    """How far DDIM in 100 steps ends from the solution of the same noise."""
    made = scheduler("DDIMScheduler", DDIM_STEPS)
    kept = made.alphas_cumprod[int(made.timesteps[0])].to(F64)
    sigma = float(((1 - kept) / kept).sqrt())
    start = problem.latents.to(F64) * sigma / (1 + sigma ** 2) ** 0.5  # so that latents sigma is the state at sigma
    x = monai_run(noise_of(problem, made), made, start)
    end = multistep_sampler(problem.net, problem.latents, order=4, num_steps=CONVERGED_CALLS, sigma_max=sigma)
    return median_error(x, end)


def our_error(problem: Problem, calls: int) -> float:
    """How far iPNDM ends from it."""
    x = multistep_sampler(problem.net, problem.latents, order=3, num_steps=calls, coefficients="fixed", grid="focused")
    return median_error(x, multistep(4, "exponential", problem, CONVERGED_CALLS))


def calls_needed() -> tuple[int, list[float], list[float]]:
    """The least calls by which ours is as exact on every mixture, our errors and DDIM's."""
    problems = mixtures()
    peer = [ddim_error(problem) for problem in problems]
    for calls in range(4, MOST_CALLS):
        ours = [our_error(problem, calls) for problem in problems]
        if all(a <= b for a, b in zip(ours, peer, strict=True)):
            return calls, ours, peer
    raise ValueError(f"no number of calls below {MOST_CALLS} is as exact as DDIM: {ours} and {peer}")


# ---- time ----


def our_network(channels: int = SHAPE[0], overrides: Sequence[str] = ()) -> torch.nn.Module:
    """The denoiser of echo_edm, not trained."""
    node = compose("echo_edm", overrides)["training"]["network"]
    return build(fill(node, in_channels=channels, out_channels=channels, spatial_dims=3, image_size=8)).eval()


def monai_network() -> torch.nn.Module:
    """Theirs of as many FLOPs."""
    from monai.networks.nets import DiffusionModelUNet
    return DiffusionModelUNet(3, 4, 4, channels=MONAI_CHANNELS, num_res_blocks=1, attention_levels=(False, True, True),
                              norm_num_groups=8, num_head_channels=(0, 32, 32)).eval()


def our_decoder() -> torch.nn.Module:
    """The first stage of echo_vae, not trained."""
    node = compose("echo_vae", [])["training"]["network"]
    return build(fill(node, in_channels=1, spatial_dims=3, num_classes=4)).eval()


def flops_of(net: Callable, shape: Sequence[int] = SHAPE) -> int:
    """Of a call for an item [C,*s]; of two, as one alone takes a way that is not counted: networks/single_volume.py."""
    with flops_as_written() as counter, torch.no_grad():
        net(torch.zeros(2, *shape), torch.ones(2))
    return counter.get_total_flops() // 2


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (time.perf_counter() - start,
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def batches(draw: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, batch: int) -> torch.Tensor:
    """All latents, so many at a time."""
    return torch.cat([draw(some) for some in latents.split(batch)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ddpm-steps", type=int, default=20, help="of its 1000, to time them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="both networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    calls, errors, peer_errors = calls_needed()
    ours, peer, decoder = our_network(), monai_network(), our_decoder()
    shares = flops_of(ours), flops_of(peer)
    assert abs(shares[1] / shares[0] - 1) <= FLOPS_WITHIN, shares
    ours, peer, decoder = (net.to(device) for net in (ours, peer, decoder))
    if options.compile:
        ours.compile()
        peer.compile()
    latents = torch.randn(options.latents, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = make_grid(ours, grid="focused", num_steps=calls)
    ddim, ddpm = scheduler("DDIMScheduler", DDIM_STEPS), scheduler("DDPMScheduler", TRAINED_STEPS)

    def noise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return peer(x, t.expand(len(x)))

    work = {
        "ours": lambda x: multistep_sampler(ours, x, order=3, coefficients="fixed", sigmas=sigmas).float(),
        "ddim": lambda x: monai_run(noise, ddim, x),
        "ddpm": lambda x: monai_run(noise, ddpm, x, options.ddpm_steps),
        "decoding": torch.no_grad()(lambda x: decoder.decode(x)[0]),
    }
    for name in ("ours", "ddpm", "decoding"):  # what is made at a first call is no part of the time
        batches(work[name], latents[:options.batch], options.batch)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(options.repeats):
        for name, draw in work.items():
            times[name].append(timed(lambda draw=draw: batches(draw, latents, options.batch), device))
    found = {name: tuple(statistics.median(column) for column in zip(*each, strict=True))
             for name, each in times.items()}
    found["ddpm"] = tuple(value * TRAINED_STEPS / options.ddpm_steps for value in found["ddpm"])
    for name in ("ours", "ddim", "ddpm"):
        found[f"{name}, to volumes"] = tuple(a + b for a, b in zip(found[name], found["decoding"], strict=True))
    which = 0 if device.type == "cuda" else 1  # on a machine with other work, CPU seconds are what tells
    print(json_line("latents as exact as MONAI's DDIM-100: its time over ours", ours=round(found["ours"][which], 2),
                    peer=round(found["ddim"][which], 2), ratio=round(found["ddim"][which] / found["ours"][which], 2),
                    ratio_ddpm=round(found["ddpm"][which] / found["ours"][which], 1),
                    ratio_to_volumes=round(found["ddim, to volumes"][which] / found["ours, to volumes"][which], 2),
                    limit=LIMIT, calls=calls, errors=[float(f"{e:.1e}") for e in errors],
                    peer_errors=[float(f"{e:.1e}") for e in peer_errors], gflop=round(shares[0] / 1e9, 3),
                    peer_gflop=round(shares[1] / 1e9, 3), latents=options.latents, device=str(device),
                    compile=options.compile, repeats=options.repeats, ddpm_steps_timed=options.ddpm_steps,
                    seconds={name: round(value[0], 2) for name, value in found.items()},
                    cpu_seconds={name: round(value[1], 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
