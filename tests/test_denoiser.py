"""What stands between samplers and a network says what the network says, where it does not say else."""

import pytest
import torch

from edm3d.inference.drawing import Blank
from edm3d.networks.conditioning import Condition, Part
from edm3d.samplers import Guided, ImageGenerators, ShownItsEstimate
from edm3d.samplers.denoiser import Wrapper
from edm3d.training.tasks.diffusion import ToldItsEstimate

X = torch.ones(2, 1, 4)


class Net:
    """D = 2 x, with a table of three levels."""

    sigma_min, sigma_max, self_condition = 0.5, 2.0, True
    noise_table = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    takes = {"class_labels": Part(3, 0.1)}

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma).round()

    def __call__(self, x, sigma, condition=None, augment_labels=None, estimate=None):
        return 2 * x if estimate is None else 2 * x + 100 * estimate


WRAPPERS = {"none": Wrapper, "blank": Blank, "shown": ShownItsEstimate, "guided": lambda net: Guided(net, 2),
            "autoguided": lambda net: Guided(net, 2, guide=Net()),
            "told": lambda net: ToldItsEstimate(net, ImageGenerators([0, 1]))}


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_passes_on_what_its_network_says(name):
    net = Net()
    wrapper = WRAPPERS[name](net)
    assert wrapper.net is net and (wrapper.sigma_min, wrapper.sigma_max) == (0.5, 2)
    assert wrapper.noise_table.tolist() == [2, 1, 0.5] and wrapper.takes == net.takes
    assert wrapper.round_sigma(1.2) == 1
    assert wrapper.self_condition is (name not in ("shown", "told"))  # which tell it of themselves


@pytest.mark.parametrize("name", ["none", "blank", "shown", "told"])
def test_a_network_that_says_no_more_than_its_range_knows_every_level_and_takes_nothing(name):
    net = type("Bare", (), {"sigma_min": 0, "sigma_max": 80})()
    wrapper = WRAPPERS[name](net)
    assert wrapper.noise_table is None and wrapper.takes == {} and wrapper.self_condition is False
    assert wrapper.sigma_max == 80


def test_wrappers_go_around_one_another():
    denoiser = Guided(ShownItsEstimate(Net()), 1)
    condition = Condition(class_labels=torch.eye(3)[:2])
    assert denoiser.takes == Net.takes and denoiser(X, 1.0, condition).tolist() != X.tolist()
    assert torch.equal(Blank(denoiser)(X, 1.0), torch.zeros_like(X))


def test_a_wrapper_without_a_call_of_its_own_denoises_nothing():
    with pytest.raises(NotImplementedError):
        Wrapper(Net())(X, 1.0)
