"""Plans of private steps: gradients of images are held beside those of the step, and checkpointing is no way out."""

import gc
from functools import cache

import pytest
import torch

pytest.importorskip("opacus")

from benchmarks.plan_memory import most_allocated, real_trainer
from edm3d.training.plan import StepPlan, plan_step
from edm3d.training.plan_fit import plan, step_levers
from tests.planned import VOXELS, edm
from tests.test_plan import most_in_tensors

PRIVATE = ("privacy=eps10", "training.options.batch_gpu=2", "training.network.model.model_channels=16")


@cache
def planned(*overrides: str) -> StepPlan:
    """The plan of a step on volumes of voxels."""
    return plan_step(edm(*overrides)["training"], VOXELS)


@pytest.mark.parametrize("more", [(), ("training.options.trainable=attention",),
                                  pytest.param(("training.privacy.noise_multiplicity=2",), marks=pytest.mark.slow)],
                         ids=str)
def test_peak_is_that_of_a_real_private_trainer(tmp_path, more):
    training = edm(*PRIVATE, *more)["training"]
    found = planned(*PRIVATE, *more)
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer = real_trainer(training, VOXELS, tmp_path)
        data = trainer.batches()
        trainer.step(data)
        trainer.step(data)
    assert found.peak == pytest.approx(most_in_tensors(profile), rel=0.02) and found.peak <= 1.02 * most_allocated(
        profile)


def test_gradients_of_images_are_planned_for_the_part_that_is_trained():
    """Two rows of gradients, and their sum, of every weight that is trained, beside what is there without privacy."""
    private, part, plain = (planned(*more) for more in (
        PRIVATE, (*PRIVATE, "training.options.trainable=attention"), PRIVATE[1:]))
    assert private.peak - plain.peak > 2 * private.gradients
    assert part.peak - plain.peak < private.peak - plain.peak - 2 * (private.gradients - part.gradients)
    assert private.flops > 1.5 * plain.flops


@pytest.mark.slow
def test_fewer_images_at_a_time_are_proposed_and_no_checkpointing():
    levers = {key: [lever.value for lever in step_levers(edm(*more), VOXELS) if lever.key.endswith(key)]
              for key, more in (("batch_gpu", PRIVATE), ("checkpointing", PRIVATE))}
    assert levers == {"batch_gpu": [1], "checkpointing": []}
    assert any(lever.key.endswith("checkpointing") for lever in step_levers(edm(*PRIVATE[1:]), VOXELS))
    peak = plan_step(edm(*PRIVATE)["training"], VOXELS).peak
    made = plan(edm(*PRIVATE), VOXELS, card=0.95 * peak / 2 ** 30 / 0.9)
    assert "training.options.batch_gpu=1" in made.step_proposals[0].overrides
    assert made.step_proposals[0].peak < 0.95 * peak
