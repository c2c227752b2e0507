"""Where sampling starts: noise alone, or at a lower level around a regression mean, or around the condition image."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import NamedTuple

import torch

from edm3d.inference.conditions import Conditions
from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.samplers.start import first_level, latents_around, mean_level, regression_mean
from edm3d.utils.config import find_target
from edm3d.utils.schema import Sampling

NOISE, MEAN, CONDITION = STARTS = ("noise", "mean", "condition")
SAME = 0.02  # by which the level of a sampler may differ from the one that is asked for: tables round


class LateStart(NamedTuple):
    """What a sampler begins around, the regression mean or the condition image, and at which noise level."""

    around: str
    level: float

    def latents(self, net: Denoiser, noise: torch.Tensor, told: Condition) -> torch.Tensor:
        """Latents [N,C,*S] that the sampler scales to what it begins around + level noise."""
        centre = regression_mean(net, noise, told) if self.around == MEAN else told.images.to(torch.float64)
        return latents_around(centre, noise, self.level)


def started(options: Sampling) -> Sampling:
    """Options whose sampler begins at start_sigma, where that is given; ValueError for one that cannot."""
    level = options.start_sigma
    if level is None:
        return options
    given = f"sampling.start_sigma={level}"
    if not 0 < level < inf:
        raise ValueError(f"{given}: wanted a noise level above 0")
    node = options.sampler
    if "_target_" not in node:
        raise ValueError("sampling.sampler._target_: no value; choose a sampler group, e.g. sampler=edm_ode")
    if "sigma_max" not in inspect.signature(find_target(node["_target_"], "sampling.sampler")).parameters:
        raise ValueError(f"{given}: {node['_target_']} has no sigma_max; choose another sampler")
    if node.get("sigmas") is not None:
        raise ValueError(f"{given}: sampling.sampler.sigmas says all levels; leave one of them away")
    start = CONDITION if options.start == NOISE else options.start
    return replace(options, start=start, sampler={**node, "sigma_max": level})


def start_of(options: Sampling, sampler: Callable, net: Denoiser, conditions: Conditions, shape: Sequence[int]
             ) -> LateStart | None:
    """How options start an image [*shape] as the network draws it, None: from noise; ValueError where that makes no
    sense.
    """
    if options.start == NOISE:
        return None
    key = f"sampling.start={options.start}"
    if options.start_sigma is not None:
        lo, hi = (float(level) for level in (net.sigma_min, net.sigma_max))
        if not lo <= options.start_sigma <= hi:
            raise ValueError(f"sampling.start_sigma={options.start_sigma}: the network knows noise levels {lo:g} to "
                             f"{hi:g}")
    check_told(key, options.start, conditions)
    level = start_level(sampler, net, key)
    if options.start == CONDITION:
        told = (conditions.takes["images"].width, *conditions.size)
        if told != tuple(shape):
            raise ValueError(f"{key}: condition images are {list(told)}, the network draws {list(shape)}; wanted the "
                             "same channels and size, or sampling.start=noise")
    if options.start_sigma is not None and abs(level / options.start_sigma - 1) > SAME:
        raise ValueError(f"sampling.start_sigma={options.start_sigma}: the sampler starts at noise level {level:g} "
                         f"instead{of_table(net)}")
    return LateStart(options.start, level)


def check_told(key: str, start: str, conditions: Conditions) -> None:
    """ValueError where no condition image is told."""
    if "images" not in conditions.takes:
        why = ", and what it expects without one is no start" if start == MEAN else ""
        raise ValueError(f"{key}: the network takes no condition image (image_dim=0){why}; wanted "
                         "sampling.start=noise, or a network of condition channels")
    if not conditions.tells("images"):
        raise ValueError(f"{key}: no condition image is asked for; wanted some (sampling.conditions), or "
                         "sampling.start=noise")


def start_level(sampler: Callable, net: Denoiser, key: str) -> float:
    """The noise level at which a sampler starts; ValueError, begun by the key, where that says nothing of the image."""
    try:
        level, mean = first_level(sampler, net), mean_level(net)
    except ValueError as e:
        raise ValueError(f"{key}: the sampler {e}; choose another") from e
    if level >= mean:
        raise ValueError(f"{key}: the sampler starts at noise level {level:g}, in which a mean is lost; wanted less "
                         f"than {mean:g}, as by sampling.start_sigma=2{of_table(net)}")
    return level


def of_table(net: Denoiser) -> str:
    """What else to say where a network has but some noise levels."""
    return "" if Wrapper(net).noise_table is None else (
        "; a sampler on grid=table starts at the network's highest level whatever sigma_max, choose another grid")
