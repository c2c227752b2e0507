"""Samplers: given a denoiser D(x, sigma), find x. They know nothing of networks' insides, ranks or files."""

from edm3d.samplers.ablation import ablation_sampler
from edm3d.samplers.calls import Calls
from edm3d.samplers.ddim import ddim_sampler
from edm3d.samplers.edm import edm_sampler
from edm3d.samplers.estimate import ShownItsEstimate
from edm3d.samplers.grids import edm_grid, make_grid
from edm3d.samplers.guidance import Guided, Strength
from edm3d.samplers.multistep import multistep_sampler
from edm3d.samplers.noise import ImageGenerators
from edm3d.samplers.tiled import Tiled

__all__ = ["Calls", "Guided", "ImageGenerators", "ShownItsEstimate", "Strength", "Tiled", "ablation_sampler",
           "ddim_sampler", "edm_grid", "edm_sampler", "make_grid", "multistep_sampler"]
