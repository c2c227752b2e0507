"""Samplers: given a denoiser D(x, sigma), find x. They know nothing of networks' insides, ranks or files."""

from samplers.edm import edm_sampler
from samplers.grids import edm_grid
from samplers.noise import ImageGenerators

__all__ = ["ImageGenerators", "edm_grid", "edm_sampler"]
