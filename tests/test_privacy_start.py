"""Private training that starts from public weights: the part that is trained, codebooks, and whose figures it uses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("opacus")

from edm3d.formats.facts import LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.training_state import TrainingState
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.networks.vq import AutoencoderVQ
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.phases import Task
from edm3d.training.private.budget import open_budget
from edm3d.training.private.checks import CODES_STAY, check_task
from edm3d.training.private.public import OnPublicRange, by_public_figures, check_is_public
from edm3d.training.private.release import Release
from edm3d.training.private.start_check import check_gradients
from edm3d.training.tasks.autoencoder import autoencoder_task
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.trainable import named, part_line
from edm3d.training.validation import Held
from edm3d.utils.runs import list_files
from edm3d.utils.stats import Collector
from edm3d.utils.stop import Stop
from tests.test_privacy_runs import FACTS, PRIVACY, make_private
from tests.test_privacy_step import clipped_alone, layers, make_step
from tests.toy import BLANK, OPTIONS, Points, Toy

PARTS = (r"re:layers\.3", "lora:2")
CODES = CODES_STAY.partition("=")[2]


def toy_task() -> Task:
    """Denoising points by a toy."""
    net = Toy()
    return diffusion_task(net, EDMLoss(), torch.optim.SGD(net.parameters(), lr=0.1), Identity(), BLANK)


def plain(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by their names in a network without adapters, as they are stored."""
    return {name.replace(".base.", "."): w.clone() for name, w in net.state_dict().items()
            if ".up." not in name and ".down." not in name}


# ---- the part that is trained ----


def test_the_norm_that_is_clipped_is_that_of_the_trained_part():
    values, norm = np.linspace(-3, 3, 8), 0.3
    net, alone = layers(), layers()
    for each in (net, alone):
        each[0].requires_grad_(False)
    step = make_step(values, net, norm=norm)
    rounds = step.take(step.batches(0))
    while not (items := [i for indices, _ in rounds for i in indices]):
        rounds = step.take(step.batches(0))
    step.gradients(0, [batch for _, batch in rounds], 0, Collector(), [None] * len(rounds))
    found = [p.grad * step.options.batch_size for p in net[2].parameters()]
    wanted = clipped_alone(values, [[i] for i in items], norm, Head(alone))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in net[0].parameters())


class Head(torch.nn.Module):
    """A network whose parameters are those that learn alone."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.head = net[2]
        self.body = [net[0], net[1]]  # in a list, so that its weights are not among the parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body[1](self.body[0](x)))


@pytest.mark.parametrize("wanted", PARTS)
def test_only_the_trained_part_moves_and_gets_noise(tmp_path, wanted):
    options, task = replace(OPTIONS, trainable=wanted), toy_task()
    before = plain(task.net)
    privacy = replace(PRIVACY, max_grad_norm=1e-6, noise_multiplier=5.0, target_epsilon=50)
    trainer = make_private(tmp_path, options, privacy, task=task)
    check_gradients(trainer.stepper, Points())
    data, drawn = trainer.batches(), []
    for _ in range(30):
        trainer.step(data)
        drawn += [p.grad.reshape(-1) for p in task.net.parameters() if p.requires_grad]
    assert float(torch.cat(drawn).std()) == pytest.approx(5e-6 / 12, rel=0.1)
    assert all(p.grad is None for p in task.net.parameters() if not p.requires_grad)
    now = plain(task.net)
    moved = {name for name in before if not torch.equal(before[name], now[name])}
    assert moved == ({"layers.3.weight", "layers.3.bias"} if wanted.startswith("re:") else set())


@pytest.mark.parametrize("wanted", PARTS)
def test_fine_tuning_goes_on_with_the_ledger_of_its_weights(tmp_path, wanted):
    options = replace(OPTIONS, trainable=wanted, total_kimg=0.12)
    make_private(tmp_path, options, task=toy_task()).run(Stop(tmp_path))
    state = list_files(tmp_path, "training-state")[-1]
    first = TrainingState.read(state).ledger
    trainer = make_private(tmp_path, replace(options, total_kimg=0.24), state=state, task=toy_task())
    trainer.private.trained = part_line(trainer.task.net, wanted)
    trainer.run(Stop(tmp_path))
    found = TrainingState.read(list_files(tmp_path, "training-state")[-1])
    assert (first.steps, found.ledger.steps, found.nimg) == (10, 20, 240) and first.key == found.ledger.key
    statement = PrivacyStatement.read(tmp_path / "privacy.json")
    assert statement.ledger == found.ledger
    assert statement.trained == {PARTS[0]: "68 of 164 weights (training.options.trainable=re:layers\\.3)",
                                 "lora:2": "82 of 246 weights (training.options.trainable=lora:2)"}[wanted]
    assert f"  trained: {statement.trained}" in list(statement.lines())


def test_a_run_goes_on_from_the_weights_that_it_says_it_started_from():
    spent = open_budget(PRIVACY, OPTIONS, Points(), start="a" * 64).ledger
    assert open_budget(PRIVACY, OPTIONS, Points(), spent, start="a" * 64).ledger.key == spent.key
    assert open_budget(PRIVACY, OPTIONS, Points(), spent, start="a" * 64, forks=True).ledger.key != spent.key
    for other in ("", "b" * 64):
        with pytest.raises(ValueError, match=r"at the start \(training\.options\.init_from\).*aaaaaaaaaaaa -> "):
            open_budget(PRIVACY, OPTIONS, Points(), spent, start=other)
    old = spent._replace(key="", start="")  # of a file from before
    assert open_budget(PRIVACY, OPTIONS, Points(), old, start="b" * 64).ledger.key


def test_weights_of_the_very_data_are_no_public_start():
    """Neither those that learnt from the split without privacy, nor any other than those are refused."""
    trained = replace(PUBLIC, facts=replace(PUBLIC.facts, content_hash=FACTS.content_hash),
                      config={"training": {"dataset": {"split": "train"}}})
    with pytest.raises(ValueError, match=r"init_from: public\.pt was trained on split 'train' .* without privacy"):
        check_is_public({"split": "train"}, FACTS, trained)
    said = make_statement()
    for node, public in (({"split": "other"}, trained), ({"split": "train"}, replace(trained, privacy=said)),
                         ({"split": "train"}, replace(trained, facts=replace(trained.facts, content_hash="other")))):
        check_is_public(node, FACTS, public)
    blank = replace(FACTS, content_hash="")  # of nothing two are known to be the same
    check_is_public({"split": "train"}, blank, replace(trained, facts=blank))


def make_statement() -> PrivacyStatement:
    """Of one step."""
    budget = open_budget(PRIVACY, OPTIONS, Points())
    budget.spend()
    return Release(budget).statement(BLANK)


# ---- codebooks ----


def vq(codebook: str, code_dim: int | None = 2) -> AutoencoderVQ:
    """A small one of points, whose latents have one number."""
    torch.manual_seed(0)
    return AutoencoderVQ(1, spatial_dims=1, channels=(4, 8), num_blocks=1, num_blocks_decoder=1, latent_channels=1,
                         code_dim=code_dim, codebook_size=6, codebook=codebook)


def vq_task(net: AutoencoderVQ) -> Task:
    """Giving points back by it."""
    return autoencoder_task(net, AutoencoderLoss(l1_weight=1), torch.optim.SGD(net.parameters(), lr=0.1), BLANK,
                            batch_size=12)


@pytest.mark.parametrize(("codebook", "code_dim"), [("ema", 2), ("ema", None), ("loss", 2)])
def test_a_codebook_stays_where_all_else_is_trained_privately(tmp_path, codebook, code_dim):
    net = vq(codebook, code_dim)
    task, before = vq_task(net), {name: w.clone() for name, w in net.state_dict().items()}
    learns = {name for name, _ in net.named_parameters() if not name.startswith("codebook")}
    assert named(net, CODES) == learns
    check_task(task, CODES)
    trainer = make_private(tmp_path, replace(OPTIONS, trainable=CODES), replace(PRIVACY, target_epsilon=50), task=task)
    check_gradients(trainer.stepper, Points())
    data = trainer.batches()
    for _ in range(3):
        trainer.step(data)
    trainer.settle()
    assert {name for name, w in net.state_dict().items() if not torch.equal(w, before[name])} == learns
    assert {name for name, w in trainer.ema.state_dict().items() if not torch.equal(w, before[name])} == learns


def test_a_codebook_that_would_move_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"init_from= and .* 'training\.options\.trainable=re:coder\|_code'"):
        check_task(vq_task(vq("ema")))


# ---- whose figures ----

PUBLIC = replace(
    Snapshot("diffusion", {"_target_": "x", "model": {"attribute_mean": [40.0], "attribute_std": [3.0]}},
             replace(FACTS, latents=None, intensity=Intensity(0.0, 1000.0, True, "HU")), (1, 4, 4, 4),
             CarriedStage(LatentScaling([0.5], [2.0], [-3.0, 3.0], "minmax"))), path=Path("public.pt"))
DRAW = {"_target_": "training.batch_transforms.DrawLatents", "sigma_data": 0.5, "scaling": None}


class Scans:
    """Two items [1,4,4,4] on the range -3 .. 812.5 HU, one at its lower end, one at its upper."""

    shape, facts, groups = (1, 4, 4, 4), replace(FACTS, latents=None), ["a", "b"]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        image = np.full(self.shape, 2 * index - 1, np.float32)
        return Sample(image, condition=Condition(images=image))


def test_images_are_seen_on_the_public_range():
    seen = OnPublicRange(Scans(), Intensity(0.0, 1000.0, True, "HU"))
    assert len(seen) == 2 and seen.groups == ["a", "b"] and seen.facts.intensity.hi == 1000
    for index, wanted in enumerate((-1.0, 2 * 812.5 / 1000 - 1)):  # -3 HU is clipped
        for image in (seen[index].image, seen[index].condition["images"]):
            np.testing.assert_allclose(image, wanted, rtol=1e-6)
            assert image.dtype == np.float32
    assert OnPublicRange(Scans(), Intensity(0.0, 1000.0, False, "HU"))[0].image.min() == pytest.approx(-1.006)


def half(**network: object) -> dict:
    """A training half."""
    return {"network": {"_target_": "x", "model": {"attribute_dim": "auto", **network}}, "batch_transform": DRAW}


def test_figures_are_those_of_the_public_snapshot():
    held = Held(torch.utils.data.Subset(Scans(), range(1)), 1)
    training, data, held = by_public_figures(half(), Scans(), held, PUBLIC)
    assert training["network"]["model"] == {"attribute_dim": "auto", "attribute_mean": [40.0], "attribute_std": [3.0]}
    assert training["batch_transform"] == {**DRAW, "channel_mean": [0.5], "channel_std": [2.0], "limits": [-3.0, 3.0],
                                           "scaling": "minmax"}
    other = {**half(), "batch_transform": {**DRAW, "scaling": "standardize"}}
    assert by_public_figures(other, Scans(), None, PUBLIC)[0]["batch_transform"] == other["batch_transform"]
    assert data.facts.intensity == held.dataset.dataset.facts.intensity == PUBLIC.facts.intensity
    assert len(held.dataset) == 1


@pytest.mark.parametrize("facts", [
    {"attribute_names": ("weight",)}, {"intensity": Intensity(0.0, 1.0, True, "a.u.")},
    {"intensity": Intensity.of_percentiles((1, 99), True)}])
def test_figures_of_something_else_stay_those_of_the_data(facts):
    public = replace(PUBLIC, facts=replace(PUBLIC.facts, **facts), first_stage=None)
    training, data, _ = by_public_figures(half(), Scans(), None, public)
    assert ("attribute_mean" in training["network"]["model"]) == ("intensity" in facts)
    assert (data.facts == Scans.facts) == ("intensity" in facts) and training["batch_transform"] == DRAW


def test_what_the_configuration_gives_stands():
    given = half(attribute_mean=[1.0], attribute_std=[1.0])
    given["batch_transform"] = {**DRAW, "channel_mean": [0.0], "channel_std": [1.0]}
    training, *_ = by_public_figures(given, Scans(), None, PUBLIC)
    assert training["network"] == given["network"] and training["batch_transform"] == given["batch_transform"]
