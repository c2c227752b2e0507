"""privacy=eps1 and eps10 on every recipe of hearts: it starts, at toy size, or says what to choose instead."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("opacus")

from edm3d.inference.batch import Sample
from edm3d.networks.conditioning import Condition
from edm3d.training.build import check_training
from edm3d.training.private.checks import CODES_STAY
from edm3d.training.private.start import asked_privacy, open_private
from edm3d.training.private.start_check import check_gradients
from edm3d.training.resume import RunRecord
from edm3d.training.tasks import TASKS
from edm3d.training.training_loop import Trainer
from edm3d.utils.compose import compose, shipped_configs
from edm3d.utils.log import RunLog
from edm3d.utils.schema import Options
from tests.test_config import dataset_like

RECIPES = sorted(path.stem for kind in ("cardiac_*", "echo*") for path in shipped_configs().glob(f"{kind}.yaml"))
QUICK = ("cardiac_classifier", "cardiac_demo_kl4x", "echo_edm")  # the others are run by make test-slow
COMMON = ["training.options.batch_size=2", "training.options.total_kimg=0.002", "training.options.device=cpu",
          "training.options.precision=fp32", "training.privacy.noise_multiplier=1", "training.options.num_threads=1"]
UNET = [f"training.network.model.{key}" for key in ("model_channels=8", "channels_per_head=8", "num_blocks=1")]
STAGE = ["training.network.num_blocks=1", "training.network.num_blocks_decoder=1"]
CHOICES = {"training.discriminator": "discriminator=none", "its codebook moves": CODES_STAY}  # refusal: what it names
CHOSEN = {"cardiac_kl2x": 1, "cardiac_kl4x": 1, "cardiac_vq2x": 2, "cardiac_vq4x": 2}  # how many it needs


class Hearts:
    """Four items of noise with all that a recipe's data have, small."""

    def __init__(self, name: str):
        like = dataset_like(name)
        size = (16, 16) if len(like.shape) == 3 else (3, 8, 8) if name.startswith("cardiac") else (8, 8, 8)
        self.shape, self.facts = (like.shape[0], *size), replace(like.facts, latents=None, spatial_shape=size)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        random, facts, size = np.random.default_rng(index), self.facts, self.shape[1:]
        label = random.integers(len(facts.label_classes), size=size).astype(np.uint8) if facts.label_classes else None
        told = {}
        if facts.attribute_names:
            told["attributes"] = random.random(len(facts.attribute_names), np.float32)
            told["attributes"][index % 2] = np.nan
        if facts.semantic_classes:
            told["semantic"] = random.integers(len(facts.semantic_classes), size=size).astype(np.int16)
        if facts.condition_channels:
            told["images"] = random.random((len(facts.condition_channels), *size), np.float32)
        return Sample(random.random(self.shape, np.float32) * 2 - 1, label, Condition(told))


def small(name: str) -> list[str]:
    """Overrides that make a recipe small."""
    training = compose(name, [])["training"]
    if training["task"] == "diffusion":
        return [*COMMON, *UNET]
    if training["task"] != "autoencoder":
        return COMMON
    widths = [4, 8, 8][:len(training["network"]["channels"])]
    patches = ["training.augment.size=8"] if "size" in training["augment"] else []
    return [*COMMON, *STAGE, f"training.network.channels={widths}".replace(" ", ""), *patches]


def start(name: str, folder: Path, *choices: str) -> Trainer:
    """A recipe, as far as its first private step."""
    training = compose(name, ["privacy=eps10", *small(name), *choices])["training"]
    check_training(training)
    options, data = Options(**training["options"]), Hearts(name)
    privacy = asked_privacy(training, options)
    if training["task"] == "diffusion":  # data are as networks see them
        training["batch_transform"] = {"_target_": "training.batch_transforms.Identity"}
    task = TASKS[training["task"]].assemble(training, data)
    release = open_private(privacy, task, data, options, None, None, measures=False, forks=False)
    trainer = Trainer(task, data, options, run_dir=folder, device=torch.device("cpu"), log=RunLog(False),
                      record=RunRecord({"training": training}, data.facts), private=release)
    check_gradients(trainer.stepper, data)
    return trainer


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
                                  for name in RECIPES])
def test_a_recipe_starts_privately_or_names_what_to_choose(tmp_path, name):
    for epsilon in ("eps1", "eps10"):
        assert compose(name, [f"privacy={epsilon}"])["training"]["privacy"]["target_epsilon"] == int(epsilon[3:])
    if compose(name, [])["training"]["task"] in ("segmentation", "classification"):
        with pytest.raises(ValueError, match=r"training\.task=.*only first stages and diffusion are trained privately"):
            start(name, tmp_path)
        return
    choices = []
    for refusal, choice in list(CHOICES.items())[:CHOSEN.get(name, 0)]:
        with pytest.raises(ValueError, match=refusal) as error:
            start(name, tmp_path, *choices)
        assert choice in str(error.value)
        choices.append(choice)
    trainer = start(name, tmp_path, *choices)
    data = trainer.batches()
    trainer.step(data)
    assert trainer.private.budget.ledger.steps == 1
    assert all((p.grad is not None) == p.requires_grad for p in trainer.task.net.parameters())
