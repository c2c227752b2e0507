"""Samplers: given a denoiser D(x, sigma), find x. They know nothing of networks' insides, ranks or files."""

from samplers.ablation import ablation_sampler
from samplers.ddim import ddim_sampler
from samplers.edm import edm_sampler
from samplers.estimate import ShownItsEstimate
from samplers.grids import edm_grid, make_grid
from samplers.guidance import Guided
from samplers.multistep import multistep_sampler
from samplers.noise import ImageGenerators

__all__ = ["Guided", "ImageGenerators", "ShownItsEstimate", "ablation_sampler", "ddim_sampler", "edm_grid",
           "edm_sampler", "make_grid", "multistep_sampler"]
