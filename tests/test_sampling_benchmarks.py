"""What the benchmarks of sampling and of reading data compare, against answers known by hand."""

import numpy as np
import pytest
import torch

from benchmarks.load_data import FilePairs, read_nifti, write_cohort
from benchmarks.quality_calls import METHODS, Components, default_levels, run
from benchmarks.sample import noise_of, scheduler
from benchmarks.solver_error import Problem
from edm3d.training.datasets.volumes import VolumesDataset
from tests.denoisers import F64, gaussian


def test_all_readers_give_the_same_volumes(tmp_path):
    write_cohort(tmp_path, 2, 16)
    ours = VolumesDataset(str(tmp_path / "volumes.h5"))
    for suffix, read in ((".nii.gz", read_nifti), (".npy", np.load)):
        for i in range(2):
            image, label = FilePairs(tmp_path, 2, suffix, read)[i]
            np.testing.assert_allclose(image, ours[i].image, atol=1e-6)
            np.testing.assert_array_equal(label, ours[i].label)


@pytest.mark.parametrize("t", [0, 500, 999])
def test_a_perfect_network_says_the_noise_of_the_variance_preserving_scale(t):
    """Of data N(0, s^2): E[eps | x] = x sqrt(1 - a) / (a s^2 + 1 - a)."""
    made = scheduler("DDIMScheduler", 100)
    a, x = float(made.alphas_cumprod[t]), torch.linspace(-2, 2, 5, dtype=F64).reshape(1, 5)
    net = noise_of(Problem("", gaussian(0.5), x), made)
    torch.testing.assert_close(net(x, torch.tensor(t)), x * (1 - a) ** 0.5 / (a * 0.25 + 1 - a), rtol=1e-5, atol=1e-9)


def test_components_see_a_shift_along_them_and_no_other():
    rng = np.random.default_rng(0)
    spread = np.diag([9.0, 3.0, 0.01])
    latents = rng.normal(size=(400, 3)) @ spread
    components = Components(latents, 2)
    assert components.distance(latents, latents) == pytest.approx(0, abs=1e-6)
    assert components.distance(latents, latents + [2.0, 0, 0]) == pytest.approx(4, rel=1e-2)
    assert components.distance(latents, latents + [0, 0, 2.0]) < 0.05


@pytest.mark.parametrize(("name", "calls", "made"), [("heun", 35, 35), ("heun", 8, 7), ("ipndm 3", 8, 8)])
def test_methods_make_as_many_calls_as_they_are_given(name, calls, made):
    net = gaussian(0.5)
    problem = Problem("", net, torch.ones(2, 1, 4, dtype=F64))
    run(problem, METHODS[name], default_levels(problem, METHODS[name], calls))
    assert len(net.sigmas) == made
