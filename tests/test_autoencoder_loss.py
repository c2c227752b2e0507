"""What a first stage is trained by: every term by hand, weights over time, capacity, use of codes."""

import json
from collections import namedtuple
from contextlib import chdir
from math import inf, log
from pathlib import Path

import pytest
import torch

import dataset_tool
import train
from edm3d.inference.batch import Batch
from edm3d.networks.autoencoder import Posterior, Reconstruction
from edm3d.networks.conditioning import Condition
from edm3d.networks.posteriors import GammaPosterior
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.perceptual import PerceptualDistance
from edm3d.training.schedule import check_schedule, highest, scheduled
from edm3d.training.tasks.autoencoder import autoencoder_task, weighed
from edm3d.training.tasks.codes import CodeWatch, code_totals
from tests.commands import succeed
from tests.toy import BLANK

Codes = namedtuple("Codes", "indices vectors commitment codebook")
OFF = {f"{name}_weight": 0 for name in ("l1", "ce", "kl")}


def reconstruction(logits: torch.Tensor | None = None, codes: Codes | None = None) -> Reconstruction:
    """Two images [2,1,4] that are off by 0.5 and 0, with posteriors of mean 1 and 0, latents [2,1,2]."""
    image = torch.tensor([[[0.5, 0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
    mean = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    return Reconstruction(image, logits, Posterior(mean, torch.zeros(2, 1, 2)), mean, codes)


ZEROS = torch.zeros(2, 1, 4)


# ---- terms ----


def test_terms_by_hand():
    logits = torch.zeros(2, 3, 4)
    logits[1, 0] = 100  # sure of class 0
    label = torch.zeros(2, 4, dtype=torch.uint8)
    loss = AutoencoderLoss(l1_weight=2, ce_weight=3, kl_weight=0.5)
    terms = loss(reconstruction(logits), ZEROS, label)
    assert terms["l1"].tolist() == [1, 0]
    assert terms["ce"].tolist() == pytest.approx([3 * log(3), 0])
    assert terms["kl"].tolist() == [0.5, 0]  # 2 latents of 1/2 nat each, weight 0.5
    assert list(AutoencoderLoss()(reconstruction(), ZEROS, None)) == ["l1", "kl"]


def test_squared_error_and_kl_per_voxel():
    terms = AutoencoderLoss(**{**OFF, "kl_weight": 1}, l2_weight=2, kl_reduction="voxel")(reconstruction(), ZEROS, None)
    assert set(terms) == {"l2", "kl"}
    assert terms["l2"].tolist() == [0.5, 0] and terms["kl"].tolist() == [0.25, 0]  # 1 nat over 4 voxels


def test_dice_by_hand():
    label = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 2]], dtype=torch.uint8)
    logits = 100 * torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float()
    logits[0] = 0  # each class a third everywhere
    dice = AutoencoderLoss(**OFF, dice_weight=1)(reconstruction(logits), ZEROS, label)["dice"]
    first = 1 - 2 * (2 / 3) / (2 + 4 / 3)  # class 1: overlap 2/3, sizes 2 and 4/3; class 2 is not there: 1
    assert dice.tolist() == pytest.approx([(first + 1) / 2, 0], abs=1e-4)


def test_terms_of_a_codebook_stand_in_for_kl():
    codes = Codes(None, None, torch.tensor([4.0, 0.0]), torch.tensor([0.0, 3.0]))
    terms = AutoencoderLoss(**OFF | {"kl_weight": 1}, commitment_weight=0.25, codebook_weight=2)(
        reconstruction(codes=codes), ZEROS, None)
    assert {k: v.tolist() for k, v in terms.items()} == {"commitment": [1, 0], "codebook": [0, 6]}
    ema = codes._replace(codebook=None)
    assert set(AutoencoderLoss(**OFF)(reconstruction(codes=ema), ZEROS, None)) == {"commitment"}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_latents_are_held_against_the_mean_of_their_block_and_of_the_channels(dims):
    image = torch.cat([torch.full((1, 1, *[4] * dims), -1.0), torch.full((1, 1, *[4] * dims), 0.5)], dim=1)
    image[..., :2] = 1  # the first half along the last axis, in both channels
    z = torch.zeros(1, 3, *[2] * dims)
    out = reconstruction()._replace(image=image, z=z)
    terms = AutoencoderLoss(**OFF, latent_mse_weight=2)(out, image, None)
    assert terms["latent_mse"].item() == pytest.approx(2 * (1 + 0.25 ** 2) / 2)  # blocks of 1 and -0.25


def test_positive_latents_are_held_against_the_image_from_0_to_1():
    image, z = torch.tensor([[[-1.0, -1, 1, 0]]]), torch.tensor([[[0.0, 0.5]]])
    posterior = GammaPosterior(torch.ones_like(z), torch.ones_like(z), torch.tensor(True))
    out = reconstruction()._replace(image=image, z=z, posterior=posterior)
    terms = AutoencoderLoss(**OFF, latent_mse_weight=1)(out, image, None)
    assert terms["latent_mse"].item() == pytest.approx(0.25 ** 2 / 2)  # blocks of 0 and 0.75


def test_latent_mse_perceptual_and_kl_each_begin_when_they_are_to():
    loss = AutoencoderLoss(**OFF | {"kl_weight": [[3, 0], [3, 2]], "latent_mse_weight": [[5, 0], [5, 1]]})
    out = reconstruction()._replace(z=torch.ones(2, 1, 2))
    found = {kimg: loss(out, ZEROS, None, kimg) for kimg in (0, 2.9, 3, 4.9, 5, inf)}
    assert [bool(terms["kl"].any()) for terms in found.values()] == [False, False, True, True, True, True]
    assert [bool(terms["latent_mse"].any()) for terms in found.values()] == [False] * 4 + [True] * 2


def test_capacity_is_the_distance_from_so_many_nats_per_element():
    loss = AutoencoderLoss(**OFF | {"kl_weight": 2}, kl_capacity=[[0, 0], [10, 3]])
    assert loss(reconstruction(), ZEROS, None, 0)["kl"].tolist() == [2, 0]  # KL is 1 and 0
    assert loss(reconstruction(), ZEROS, None, 5)["kl"].tolist() == [4, 6]  # 1.5 nats x 2 elements
    per_voxel = AutoencoderLoss(**OFF | {"kl_weight": 2}, kl_capacity=3, kl_reduction="voxel")
    assert per_voxel(reconstruction(), ZEROS, None)["kl"].tolist() == [2 * 5 / 4, 2 * 6 / 4]


def test_capacity_counts_no_elements_outside_a_mask():
    out = reconstruction()
    Masked = namedtuple("Masked", "mean std kl")
    std = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    out = out._replace(posterior=Masked(out.posterior.mean, std, lambda: torch.zeros(2)))
    assert AutoencoderLoss(**OFF | {"kl_weight": 1}, kl_capacity=3)(out, ZEROS, None)["kl"].tolist() == [3, 6]


# ---- weights over time ----


@pytest.mark.parametrize(("points", "kimg", "wanted"), [
    (0.3, 7, 0.3), ([[2, 1], [4, 2]], 0, 1), ([[2, 1], [4, 2]], 3, 1.5), ([[2, 1], [4, 2]], 4, 2),
    ([[2, 1], [4, 2]], inf, 2), ([[2, 1], [2, 5]], 1.999, 1), ([[2, 1], [2, 5]], 2, 5), ([[2, 1], [2, 5]], inf, 5),
    ([[0, 1], [2, 1], [2, 5], [4, 0]], 3, 2.5), ([[3, 7]], 0, 7)])
def test_schedule_by_hand(points, kimg, wanted):
    assert scheduled(points, kimg) == wanted
    check_schedule("key", points)


def test_highest():
    assert (highest(2), highest([[0, 3], [1, 1]])) == (2, 3)


@pytest.mark.parametrize("points", [-1, [], [[1]], [1, 2], [[2, 0], [1, 1]], [[0, -1]], [[0, inf]], float("nan")])
def test_wrong_schedule_is_refused_by_name(points):
    with pytest.raises(ValueError, match="l1_weight=.*wanted a number of 0 or more, or points"):
        AutoencoderLoss(l1_weight=points)


def test_a_term_that_waits_is_zero_and_not_computed():
    class Never(PerceptualDistance):
        def __call__(self, image, target, noise):
            raise AssertionError("computed")

    loss = AutoencoderLoss(**OFF, perceptual_weight=[[5, 0], [5, 1]], perceptual=Never())
    assert loss(reconstruction(), ZEROS, None, 4.9)["perceptual"].tolist() == [0, 0]
    with pytest.raises(AssertionError, match="computed"):
        loss(reconstruction(), ZEROS, None, 5)
    off = AutoencoderLoss(**OFF, perceptual_weight=0, perceptual=Never())
    off.open((8, 8, 8))  # reads nothing
    assert off(reconstruction(), ZEROS, None) == {}


def test_perceptual_without_a_network_is_refused():
    with pytest.raises(ValueError, match=r"perceptual_weight: there is no training\.loss\.perceptual"):
        AutoencoderLoss(perceptual_weight=1)


def test_a_first_stage_without_terms_is_refused():
    with pytest.raises(ValueError, match=r"training\.loss: every term .* weight 0"):
        weighed({}, 2, True)


# ---- in the task ----


class Coder(torch.nn.Module):
    """An autoencoder that halves the image, with 4 codes of which each voxel uses the one that it is told."""

    codebook_size = 4

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.absorbed = None

    def forward(self, image, label, noise):
        vectors = torch.cat([image, 10 * image], dim=1)
        codes = Codes(image[:, 0].long(), vectors, image.flatten(1).mean(1), None)
        return Reconstruction(self.gain * image, None, Posterior(image, image * 0), image, codes)

    def absorb(self, counts, sums, candidates, key):
        self.absorbed = counts, sums, candidates, key

    def codebook_usage(self, counts):
        p = counts[counts > 0] / counts.sum()
        return (counts > 0).float().mean(), (-(p * p.log()).sum()).exp()


def batch_of(rows: list[list[float]]) -> Batch:
    return Batch(torch.tensor(rows)[:, None], None, Condition())


def task_of(loss, batch_size: int = 4):
    net = Coder()
    return autoencoder_task(net, loss, torch.optim.SGD(net.parameters()), BLANK, batch_size=batch_size), net


def test_weights_follow_the_step_in_training_and_are_the_last_ones_in_validation():
    task, net = task_of(AutoencoderLoss(**OFF | {"l1_weight": [[0, 0], [0.008, 2]]}, commitment_weight=0))
    batch = batch_of([[2.0, 2.0]])

    def l1(*keys: int) -> float:
        return task.phases[0].loss(net, batch, ImageGenerators(keys)).loss.item()

    assert [l1(0), l1(3), l1(4), l1(7), l1(8), l1(99)] == [0, 0, 1, 1, 2, 2]  # |2 - 1| times 0, 1, 2
    net.eval()
    assert l1(0) == 2


def test_each_term_is_told_with_its_share_in_training_only():
    task, net = task_of(AutoencoderLoss(**OFF | {"l1_weight": 1}, commitment_weight=0.5))
    out = task.phases[0].loss(net, batch_of([[2.0, 2.0], [0.0, 0.0]]), ImageGenerators([0, 1]))
    assert out.loss.item() == 2 and out.count == 2  # 1 + 0 of the image, 1 + 0 of the codes
    assert {k: v.item() for k, v in out.parts.items()} == {"l1": 1, "commitment": 1}
    assert {k: v.item() for k, v in out.shares.items()} == {"l1": 1, "commitment": 1}  # sums over 2 images: a half each
    net.eval()
    held = task.phases[0].loss(net, batch_of([[2.0, 2.0]]), ImageGenerators([0]))
    assert set(held.parts) == {"l1", "commitment"} and held.totals is None


def test_totals_of_codes_by_hand():
    net, batch = Coder(), batch_of([[0.0, 3.0], [3.0, 3.0]])
    totals = code_totals(net, net(batch.images, None, None).codes, ImageGenerators([10, 13]), batch_size=4)
    assert totals["counts"].tolist() == [1, 0, 0, 3]
    assert totals["sums"].tolist() == [[0, 0], [0, 0], [0, 0], [9, 90]]
    assert totals["candidates"].shape == (4, 2)  # one for each image: 4 codes over a batch of 4
    assert totals["candidates"][[0, 3]].tolist() == [[0, 0], [0, 0]]  # places 10 % 4 and 13 % 4 are 2 and 1
    assert totals["candidates"][1].tolist() == [3, 30] and totals["candidates"][2].tolist() in ([0, 0], [3, 30])


def test_totals_are_those_of_the_step_however_it_is_split():
    torch.manual_seed(0)
    net, images = Coder(), torch.randint(0, 4, (4, 1, 9)).float()

    def totals(*rows: int) -> dict[str, torch.Tensor]:
        codes = net(images[list(rows)], None, None).codes
        return code_totals(net, codes, ImageGenerators([8 + r for r in rows], seed=3), batch_size=4)

    whole, even, odd = totals(0, 1, 2, 3), totals(0, 2), totals(1, 3)
    for name in ("counts", "sums", "candidates"):
        assert torch.equal(whole[name], even[name] + odd[name]) and whole[name].any()
    assert totals(0, 1)["candidates"][:1].any() and not totals(0, 1)["candidates"][2:].any()


def test_the_network_absorbs_and_the_log_is_told():
    task, net = task_of(AutoencoderLoss())
    totals = {"counts": torch.tensor([4.0, 4, 0, 0]), "sums": torch.ones(4, 2), "candidates": torch.ones(4, 2)}
    statistics = task.phases[0].absorb(totals, 400)
    assert net.absorbed == (*totals.values(), 400)
    assert statistics.group == "codes"
    assert {k: float(v) for k, v in statistics.values.items()} == {"used": 0.5, "perplexity": pytest.approx(2)}


@pytest.mark.parametrize(("counts", "warned"), [
    ([[8.0, 0, 0, 0]], "perplexity 1;"), ([[4.0, 4, 0, 0]], ""), ([[8.0, 0, 0, 0], [0, 8, 0, 0]], "")])
def test_collapse_is_warned_of_over_a_tick_but_the_first(counts, warned):
    watch = CodeWatch(Coder())
    for tick in (1, 2, 3):
        for row in counts:
            watch.absorb({"counts": torch.tensor(row), "sums": None, "candidates": None}, 0)
        lines = watch.warn(tick)
        assert bool(lines) == (bool(warned) and tick > 1)
        if lines:
            assert warned in lines[0] and "25.0% of 4 codes" in lines[0] and "training.optimizer.lr" in lines[0]
    assert watch.warn(4) == []


def test_few_codes_in_use_are_warned_of():
    net = Coder()
    net.codebook_size = 100
    watch = CodeWatch(net)
    watch.absorb({"counts": torch.tensor([1.0] * 4 + [0] * 96), "sums": None, "candidates": None}, 0)
    assert "4.0% of 100 codes in use, perplexity 4" in watch.warn(2)[0]


# ---- by command ----


VAE = ["-cn=echo_vae", "training.dataset.path=echo.h5", "training.network.channels=[4,8]",
       "training.options.batch_size=4", "training.options.batch_gpu=2", "training.options.total_kimg=0.012",
       "training.options.kimg_per_tick=0.004", "training.options.num_threads=1", "training.options.device=cpu",
       "training.options.precision=fp32", "training.validation.max_items=1"]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Work in a folder with phantoms."""
    folder, threads = tmp_path_factory.mktemp("losses"), torch.get_num_threads()
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "echo.h5", "--num", "6", "--size", "8")
        yield folder
    torch.set_num_threads(threads)


def trained(root: str, *overrides: str) -> tuple[list[dict], str]:
    """The numbers of the ticks of a run, and its log."""
    log = succeed(train.main, *VAE, *overrides, f"training.options.run_root={root}")
    return [json.loads(line) for line in next(Path(root).glob("*/stats.jsonl")).read_text().splitlines()], log


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_a_codebook_trains_and_tells_of_its_use(at, codebook):
    lines, log = trained(f"vq_{codebook}", "autoencoder=vq", "training.network.codebook_size=16",
                         f"training.network.codebook={codebook}")
    assert all(0.1 < line["codes/used"] <= 1 and 2 < line["codes/perplexity"] <= 16 for line in lines)
    assert lines[-1]["loss/commitment"] > 0 and lines[-1]["val/commitment"] > 0 and "loss/kl" not in lines[-1]
    assert ("loss/codebook" in lines[-1]) == (codebook == "loss") and "collapsed" not in log


def test_a_collapsed_codebook_is_warned_of_in_the_log(at):
    _, log = trained("collapsed", "autoencoder=vq", "training.network.codebook_size=1")
    assert log.count("Warning: the codebook has collapsed: 100.0% of 1 codes in use, perplexity 1;") == 2  # not tick 1


def test_a_gamma_prior_and_a_capacity_train(at):
    lines, _ = trained("gamma", "autoencoder=gamma", "training.network.attention_levels=[]",
                       "training.loss.kl_weight=0.01",
                       "training.loss.kl_capacity=[[0,0],[0.008,1]]", "training.loss.latent_mse_weight=0.1")
    assert lines[-1]["loss/kl"] > 0 and lines[-1]["loss/latent_mse"] > 0 and lines[-1]["bad_steps"] == 0
