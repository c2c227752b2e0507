"""The adversary: criteria by hand and against MONAI's, when it sets in, whose gradients go where, exact resuming."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator

from edm3d.inference.batch import Batch
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.adversarial import Adversary, hinge, least_squares
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.phases import Task
from edm3d.training.slices import SliceDraw, take_slices
from edm3d.training.tasks.autoencoder import autoencoder_task, step_start
from edm3d.utils import checkpoint
from edm3d.utils.config import build
from edm3d.utils.runs import list_files
from tests.toy import BLANK, OPTIONS, make_trainer, ticks, trained

SGD = partial(torch.optim.SGD, lr=0.1)
SCORES = torch.tensor([[-2.0, 0.5, 3.0], [0.0, 0.0, 0.0]])


class Constant(torch.nn.Module):
    """A discriminator whose score is a weight times the image."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return [torch.zeros(1), self.weight * x]


def patch_network(dims: int = 3, norm="INSTANCE") -> torch.nn.Module:
    torch.manual_seed(0)
    return PatchDiscriminator(dims, 4, 1, num_layers_d=2, norm=norm)


# ---- criteria ----


def test_criteria_by_hand():
    assert least_squares(SCORES, True, True)[0].tolist() == [9, 0.25, 4]
    assert least_squares(SCORES, False, True)[0].tolist() == [4, 0.25, 9]
    assert torch.equal(least_squares(SCORES, True, False), least_squares(SCORES, True, True))
    assert hinge(SCORES, True, True)[0].tolist() == [3, 0.5, 0]
    assert hinge(SCORES, False, True)[0].tolist() == [0, 1.5, 4]
    assert hinge(SCORES, True, False)[0].tolist() == [2, -0.5, -3]


@pytest.mark.parametrize(("ours", "name"), [(least_squares, "least_squares"), (hinge, "hinge")])
@pytest.mark.parametrize("real", [True, False])
def test_criteria_are_monais_without_activation(ours, name, real):
    theirs = PatchAdversarialLoss(criterion=name, no_activation_leastsq=True)
    theirs.activation = None  # a tanh, of the hinge
    assert ours(SCORES, real, True).mean() == theirs(SCORES, real, True)


def test_losses_are_means_per_image():
    adversary = Adversary(Constant(), SGD, "least_squares")
    real, fake = torch.tensor([[[0.5, 0.5]], [[0.5, 1.0]]]), torch.tensor([[[0.0, 0.5]], [[0.5, 0.5]]])
    losses = adversary.discriminator_loss(adversary.network, real, fake, ImageGenerators([0, 1]))
    assert losses["real"].tolist() == [0, 0.25] and losses["fake"].tolist() == [0.25, 0.5]  # scores are twice these
    assert adversary.reconstruction_loss(fake, ImageGenerators([0, 1])).tolist() == [0.5, 0]


# ---- when ----


def test_weight_sets_in_at_the_start_and_climbs():
    adversary = Adversary(Constant(), SGD, weight=0.5, start_kimg=2, warmup_kimg=4)
    assert [adversary.weight_at(n) for n in (0, 1999, 2000, 4000, 6000, 9000)] == [0, 0, 0, 0.25, 0.5, 0.5]
    assert [adversary.is_on(n) for n in (0, 1999, 2000)] == [False, False, True]
    sudden = Adversary(Constant(), SGD, weight=0.5, start_kimg=2)
    assert [sudden.weight_at(n) for n in (1999, 2000)] == [0, 0.5]


@pytest.mark.parametrize("nimg", range(0, 300, 10))
def test_term_and_discriminator_set_in_at_the_same_step(nimg):
    start = nimg / 1000  # 0.07 * 1000 is more than 70
    assert Adversary(Constant(), SGD, start_kimg=start).is_on(nimg) == (nimg >= start * 1000)


def test_images_of_a_step_agree_on_where_it_began():
    assert [step_start([k], 4) for k in (0, 3, 4, 11)] == [0, 0, 4, 8] and step_start([6, 10], 12) == 0


# ---- what is refused ----


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Adversary(patch_network(norm="BATCH"), SGD), ["BatchNorm3d", "network.norm=INSTANCE or GROUP"]),
    (lambda: Adversary(Constant(), SGD, "bce"), ["criterion='bce'", "hinge, least_squares"]),
    (lambda: Adversary(Constant(), SGD, weight=0), ["weight=0"]),
    (lambda: Adversary(Constant(), SGD, start_kimg=-1), ["start_kimg=-1"]),
    (lambda: Adversary(Constant(), SGD, per_slice=True, slice_share=0), ["slice_share=0"]),
    (lambda: Adversary(Constant(), SGD, per_slice=True, slice_axes=[3]), ["slice_axes=[3]"]),
    (lambda: Adversary(patch_network(), SGD).check((1, 64, 64, 8)), ["[64, 64, 8]", "num_layers_d"]),
    (lambda: Adversary(patch_network(2), SGD, per_slice=True).check((1, 64, 64, 8)), ["[64, 8]", "num_layers_d"]),
    (lambda: Adversary(patch_network(2), SGD, per_slice=True).check((1, 64)), ["per_slice=true", "false"]),
])
def test_what_cannot_be_is_refused_by_name(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(("settings", "fits", "small"), [
    ({}, (12, 12, 12), (12, 11, 12)),  # two layers of stride 2 leave a quarter, two of kernel 4 take 1 each off it
    ({"per_slice": True, "slice_axes": [2]}, (12, 12, 2), (12, 11, 64)),
    ({"per_slice": True}, (12, 12), (64, 11)),
])
def test_group_norm_passes_and_what_is_large_enough_fits(settings, fits, small):
    network = patch_network(2 if settings else 3, norm=["GROUP", {"num_groups": 2}])
    adversary = Adversary(network, SGD, **settings)
    adversary.check((1, *fits))
    with pytest.raises(ValueError, match=r"training\.discriminator\.network.*num_layers_d"):
        adversary.check((1, *small))
    scores = adversary.scores(network, torch.zeros(1, 1, *fits), ImageGenerators([0]))
    assert [s.shape for s in scores] == [(1, 1)]


# ---- slices ----


def test_slices_by_hand():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 1, 3, 4, 5).float()
    planes = take_slices(x, {0: torch.tensor([[2], [0]]), 2: torch.tensor([[1, 4], [0, 3]])})
    assert torch.equal(planes[0][0, 0, 0], x[0, 0, 2]) and torch.equal(planes[0][1, 0, 0], x[1, 0, 0])
    assert planes[1].shape == (2, 2, 1, 3, 4) and torch.equal(planes[1][1, 1, 0], x[1, 0, :, :, 3])
    image = torch.zeros(2, 1, 4, 5)
    assert SliceDraw().draw(image.shape[2:], None) == {} and take_slices(image, {})[0].shape == (2, 1, 1, 4, 5)


def test_slices_are_drawn_by_the_images_own_generator_without_repeats():
    draw = SliceDraw(0.5)
    several = draw.draw((8, 6, 1), ImageGenerators([3, 7], seed=1))
    alone = draw.draw((8, 6, 1), ImageGenerators([7], seed=1))
    assert [i.shape[1] for i in several.values()] == [4, 3, 1]
    assert all(torch.equal(several[axis][1:], alone[axis]) for axis in range(3))
    assert all(len(set(row)) == len(row) for index in several.values() for row in index.tolist())
    assert not torch.equal(several[0][0], several[0][1])
    assert list(SliceDraw(1, [1]).draw((8, 6, 1), ImageGenerators([0]))) == [1]


# ---- in the task ----


def make_task(dims: int = 3, **settings) -> Task:
    """A toy autoencoder with an adversary of slices, or of whole images."""
    torch.manual_seed(0)
    net = AutoencoderKL(1, 0, 2, dims, [4, 8], num_blocks=1, num_blocks_decoder=1)
    adversary = Adversary(patch_network(2 if settings.get("per_slice") else dims), SGD, **settings)
    return autoencoder_task(net, AutoencoderLoss(), SGD(net.parameters()), BLANK, None, adversary, batch_size=4)


def gradients(task: Task, images: torch.Tensor, rounds: list[list[int]]) -> list[torch.Tensor]:
    """Gradients of both phases, summed over rounds that take such rows of the images."""
    handed = []
    for phase in task.phases:
        phase.optimizer.zero_grad()
        for i, rows in enumerate(rounds):
            batch = Batch(images[rows], None, Condition())
            given = [handed[i]] if phase is not task.phases[0] else []
            out = phase.loss(phase.module, batch, ImageGenerators(rows), *given)
            out.loss.backward()
            handed.append(out.handed)
    return [torch.cat([p.grad.flatten() for p in phase.module.parameters()]) for phase in task.phases]


@pytest.mark.parametrize("settings", [{}, {"per_slice": True, "slice_share": 0.3, "criterion": "hinge"}], ids=str)
def test_rounds_of_any_size_give_the_gradients_of_the_whole_batch(settings):
    images = torch.rand(4, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    task = make_task(weight=1, **settings)
    whole = gradients(task, images, [[0, 1, 2, 3]])
    for rounds in ([[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]]):
        for ours, wanted in zip(gradients(task, images, rounds), whole, strict=True):
            assert wanted.abs().max() > 1e-3 and (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_each_phase_moves_its_own_weights_and_reconstructs_once():
    task, images = make_task(weight=1, start_kimg=0.004), torch.rand(4, 1, 12, 12, 12)
    net, network, calls = task.net, task.phases[1].module, []
    net.register_forward_hook(lambda *_: calls.append(0))
    batch, first, second = Batch(images, None, Condition()), ImageGenerators(range(4)), ImageGenerators(range(4, 8))
    before = task.phases[0].loss(net, batch, first)
    assert before.parts["adversarial"].item() == 0 and before.shares["adversarial"].item() == 0
    assert before.handed is None
    after = task.phases[0].loss(net, batch, second)
    assert after.parts["adversarial"].item() > 0
    after.loss.backward()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    grads = [p.grad.clone() for p in net.parameters()]
    out = task.phases[1].loss(network, batch, second, after.handed)
    out.loss.backward()
    assert len(calls) == 2 and set(out.parts) == {"real", "fake"} and all(p.grad.any() for p in network.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert task.phases[1].start_kimg == 0.004 and not task.phases[0].start_kimg


def test_the_term_is_the_gradient_that_the_discriminator_gives():
    """With the score as weight times image, the hinge's term is -weight times its mean."""
    adversary = Adversary(Constant(), SGD, "hinge")
    fake = torch.zeros(2, 1, 3, 4, requires_grad=True)
    adversary.reconstruction_loss(fake, ImageGenerators([0, 1])).sum().backward()
    assert torch.allclose(fake.grad, torch.full_like(fake, -2 / 12))


def test_validation_leaves_the_adversary_out():
    task = make_task(weight=1)
    out = task.phases[0].loss(task.net.eval(), Batch(torch.rand(1, 1, 12, 12, 12), None, Condition()),
                              ImageGenerators([0]))
    assert set(out.parts) == {"l1", "kl"}


# ---- in the loop ----


def toy_task() -> Task:
    """An autoencoder of lines [1,4] with an adversary that sets in after two of four steps' worth of images."""
    torch.manual_seed(0)
    net = AutoencoderKL(1, 0, 1, 1, [4, 4], num_blocks=1, num_blocks_decoder=1)
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.LeakyReLU(0.2), torch.nn.Conv1d(4, 1, 1))
    adam = partial(torch.optim.Adam, lr=3e-3)
    adversary = Adversary(network, adam, weight=0.1, start_kimg=0.096, warmup_kimg=0.072)
    return autoencoder_task(net, AutoencoderLoss(), adam(net.parameters()), BLANK, None, adversary,
                            batch_size=12)


@pytest.mark.parametrize("step", [4, 11])
def test_resume_of_both_phases_is_bit_identical(tmp_path, step):
    options = replace(OPTIONS, batch_gpu=4, lr_rampup_kimg=0.05)
    whole = trained(tmp_path / "whole", options, task=toy_task())
    first = make_trainer(tmp_path / "first", options, task=toy_task())
    data = first.batches()
    for _ in range(step):
        first.step(data)
    first.save_state()
    torch.manual_seed(1234)
    state = list_files(tmp_path / "first", "training-state")[0]
    second = trained(tmp_path / "second", options, task=toy_task(), resume=state)
    for part in ("modules", "ema", "optimizers"):
        assert checkpoint.checksum(getattr(second, part)) == checkpoint.checksum(getattr(whole, part))
    assert set(whole.modules) == set(whole.optimizers) == {"autoencoder", "discriminator"}
    lines = ticks(tmp_path / "whole")
    assert "loss/discriminator" not in lines[0] and lines[0]["loss/adversarial"] == 0
    assert lines[-1]["loss/adversarial"] > 0 and lines[-1]["loss/real"] > 0 and lines[-1]["share/l1"] < 1
    shares = sum(value for name, value in lines[-1].items() if name.startswith("share/"))
    assert shares == pytest.approx(1) and "loss/share/l1" not in lines[-1]


def test_discriminator_rests_until_its_start(tmp_path):
    trainer = make_trainer(tmp_path, replace(OPTIONS, batch_gpu=6), task=toy_task())
    start = {k: v.clone() for k, v in trainer.task.phases[1].module.state_dict().items()}
    data = trainer.batches()

    def moved() -> bool:
        trainer.step(data)
        return any(not torch.equal(v, start[k]) for k, v in trainer.task.phases[1].module.state_dict().items())

    assert [moved() for _ in range(9)] == [False] * 8 + [True]  # 8 steps of 12 images are 0.096 kimg


def test_config_builds_it():
    node = {"_target_": "training.adversarial.Adversary", "weight": 0.5,
            "network": {"_target_": "monai.networks.nets.PatchDiscriminator", "channels": 4, "norm": "INSTANCE",
                        "in_channels": 1, "spatial_dims": 2},
            "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}}
    adversary = build(node)
    assert adversary.optimizer.param_groups[0]["lr"] == 1e-3
    assert len(adversary.optimizer.param_groups[0]["params"]) == len(list(adversary.network.parameters()))
