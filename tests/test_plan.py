"""The planner: live bytes counted by hand, plans against a real trainer, checkpointing, and what it proposes."""

import gc
import json
from copy import deepcopy
from itertools import accumulate

import pytest
import torch

import dataset_tool
from benchmarks.plan_memory import allocations, most_allocated, real_trainer
from edm3d.networks.conditioning import Condition
from edm3d.training.live_memory import LiveMemory, fake_tensors, tensor_bytes
from edm3d.training.plan import find_source, plan_decode, plan_step
from edm3d.training.plan_fit import FREE, GIB, decode_levers, plan, propose
from edm3d.utils.compose import compose, shipped_configs
from edm3d.utils.config import build
from edm3d.utils.config_hash import config_hash
from edm3d.utils.sharding import checkpoint_blocks
from tests.commands import call, refused, succeed
from tests.planned import LABELLED, VAE, VOXELS, WIDE, edm, planned, vae

CONFIGS = shipped_configs()


def test_live_bytes_of_a_chain_are_those_counted_by_hand():
    """sin keeps its input for the backward pass, an addition keeps nothing; views cost nothing."""
    n = 4 * 1000
    with fake_tensors(), LiveMemory() as memory:
        x = torch.empty(1000, requires_grad=True)
        assert memory.now == n
        y = x.sin()
        z = y.sin()
        del y
        assert memory.now == 3 * n  # the first sine lives on for the second's gradient
        v = z.reshape(10, 100)[2:]
        del z
        assert memory.now == 3 * n
        del v
        assert memory.now == n
        with torch.no_grad():
            memory.restart()
            for _ in range(5):
                x = x + 1
            assert memory.peak == 2 * n and memory.now == n  # the sum before and the new one
        assert float(x.sum()) == 1  # somebody's guess at what nobody has computed


def test_storages_are_counted_once():
    x = torch.zeros(10)
    assert tensor_bytes([x, {"view": x[2:]}, [torch.zeros(3, dtype=torch.float64)]]) == 40 + 24


def test_static_parts_follow_from_the_number_of_parameters():
    found = plan_step(vae("training.options.ema_halflife_kimg=[1,2]")["training"], LABELLED)
    net = build({**vae()["training"]["network"], "in_channels": 1, "num_classes": 3})
    count = sum(p.numel() for p in net.parameters())
    assert found.parameters == count and found.weights == found.gradients == 4 * count
    assert found.averages == 2 * 4 * count
    assert found.optimizer == 2 * 4 * count + 4 * len(list(net.parameters()))  # Adam: two moments, and a step count
    parts = found.weights + found.averages + found.optimizer + found.activations + found.temporary
    assert found.peak == parts and found.temporary > 0


def test_flops_count_images_and_not_rounds():
    """A convolution takes 2 * k^d * C_in * C_out per voxel forward and twice that backward, but for the first.

    RepeatConv's sums of weights are made once a round: of 4 to 4 channels, forward, and backward for the weights alone.
    """
    sums = 2 * 2 * 3**3 * 4**3 * 4 * 4
    whole, rounds = (plan_step(vae(f"training.options.batch_gpu={b}")["training"], LABELLED) for b in (4, 1))
    assert whole.flops - sums == rounds.flops - 4 * sums and whole.activations > 3.5 * rounds.activations
    half = plan_step(vae("training.options.batch_size=2")["training"], LABELLED)
    assert whole.flops - sums == 2 * (half.flops - sums)
    wide = planned((1, 32, 16, 16), "abc")
    assert plan_step(vae("training.options.batch_size=2")["training"], wide).flops == whole.flops
    decode = plan_decode(vae(), LABELLED)
    layers = build({**vae()["training"]["network"], "in_channels": 1, "num_classes": 3}).decoder
    convs = [m for m in layers.modules() if isinstance(m, torch.nn.Conv3d)]
    last = 2 * convs[-1].weight.numel() * 16 ** 3
    assert last < decode.flops < 2 * sum(m.weight.numel() for m in convs) * 16 ** 3


def most_in_tensors(profile: torch.profiler.profile) -> int:
    """The most bytes that lived, without those that an operation took for itself and gave back before its end.

    These differ from one processor to the next, and are large beside networks as small as these.
    """
    found, given, own = allocations(profile), {}, set()
    for i, a in enumerate(found):
        if a.size > 0:
            given[a.address] = i
        elif (start := given.pop(a.address, None)) is not None and a.operation == found[start].operation is not None:
            own |= {start, i}
    return max(accumulate(a.size for i, a in enumerate(found) if i not in own))


@pytest.mark.parametrize(("config", "source"), [
    (vae("autoencoder=kl", WIDE), LABELLED),
    (edm("training.options.batch_gpu=2"), VOXELS),
    (vae("training.options.checkpointing=true", "discriminator=slices", WIDE,
         "training.discriminator.network.channels=16", "training.discriminator.network.num_layers_d=1"), LABELLED),
])
def test_peak_is_that_of_a_real_trainer(tmp_path, config, source):
    planned = plan_step(config["training"], source).peak
    gc.collect()  # of earlier trainers nothing is to be given back meanwhile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer = real_trainer(config["training"], source, tmp_path)
        data = trainer.batches()
        trainer.step(data)
        trainer.step(data)
    found = most_in_tensors(profile)
    assert planned == pytest.approx(found, rel=0.02) and found <= most_allocated(profile)


def test_every_kind_of_first_stage_can_be_planned():
    assert plan_step(vae("autoencoder=vq", "training.network.codebook_size=16")["training"], LABELLED).peak > 0
    flat = planned((1, 16, 16), "ab")
    small = compose("echo_vae", ["autoencoder=gamma", "training.network.channels=[8,8,8]"])
    assert plan_step(small["training"], flat).peak > plan_decode(small, flat).peak > 0


# ---- checkpointing ----


@pytest.mark.parametrize("kind", ["unet", "autoencoder"])
def test_checkpointing_gives_the_same_gradients_to_the_last_bit(kind):
    torch.manual_seed(0)
    if kind == "unet":
        net = build({**edm()["training"]["network"], "model": {**edm()["training"]["network"]["model"],
                     "in_channels": 1, "out_channels": 1, "spatial_dims": 3}})
        inputs = (torch.randn(2, 1, 8, 8, 8), torch.tensor([0.3, 2.0]), Condition())
    else:
        net = build({**vae()["training"]["network"], "in_channels": 1, "num_classes": 3})
        inputs = (torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8)))
    for p in net.parameters():  # last layers start at zero
        torch.nn.init.normal_(p, std=0.1)
    other = deepcopy(net)
    checkpoint_blocks(other)
    runs = []
    for module in (net.train(), other.train()):
        torch.manual_seed(1)  # dropout
        out = module(*inputs)
        out = out if kind == "unet" else out.image
        out.square().sum().backward()
        runs.append([out, *(p.grad for p in module.parameters() if p.grad is not None)])
    assert len(runs[0]) == len(runs[1]) > 10
    for a, b in zip(*runs):
        assert torch.equal(a, b)
    assert net.state_dict().keys() == other.state_dict().keys()


def test_checkpointing_saves_memory_and_is_no_other_experiment():
    plain, thrifty = edm(), edm("training.options.checkpointing=true")
    a, b = plan_step(plain["training"], VOXELS), plan_step(thrifty["training"], VOXELS)
    assert b.activations < a.activations / 2 and b.peak < a.peak and b.flops > a.flops
    assert config_hash(plain["training"]) == config_hash(thrifty["training"])
    assert config_hash(edm("training.options.min_psnr=null")["training"]) == config_hash(plain["training"])


# ---- what fits ----


def test_proposals_go_on_until_the_step_fits():
    config, base = vae(), plan_step(vae()["training"], LABELLED).peak
    assert plan(config, LABELLED, 2 * base / GIB).step_proposals == []
    found = plan(config, LABELLED, 0.6 * base / GIB / (1 - FREE)).step_proposals
    assert found[-1].overrides == ["training.options.batch_gpu=2"] and found[-1].peak <= 0.6 * base
    found = plan(config, LABELLED, 0.15 * base / GIB / (1 - FREE)).step_proposals
    assert [p.peak <= 0.15 * base for p in found] == [False] * (len(found) - 1) + [True]
    again = compose("echo_vae", [*VAE, *(o for text in found[-1].overrides for o in text.split())])
    assert plan_step(again["training"], LABELLED).peak == found[-1].peak


@pytest.mark.slow
def test_proposals_end_before_patches_that_are_too_small_for_the_discriminator():
    config, source = vae("discriminator=patch"), planned((1, 32, 32, 32), "abc")
    found = plan(config, source, 0.001).step_proposals
    assert found[-1].overrides[-1] == "training.options.checkpointing=true"
    whole = plan(vae(), source, 0.001).step_proposals
    assert whole[len(found)].overrides[-1] == "augment=patches training.augment.size=[16,32,32]"
    with pytest.raises(ValueError, match=r"training.discriminator.network: images of size \[8, 8, 8\]"):
        plan_step(config["training"], planned((1, 8, 8, 8), "abc"))


def test_tiles_are_proposed_where_a_whole_volume_is_too_much():
    stage = {**vae()["training"]["network"], "in_channels": 1, "num_classes": 3, "spatial_dims": 3}
    source = planned((4, 16, 8, 8), first_stage=stage)
    config = compose("echo_edm", ["training.network.model.model_channels=8", "sampling.batch_size=2",
                                           "training.network.model.channels_per_head=8"])
    whole = plan_decode(config, source)
    assert whole.size == (32, 16, 16) and whole.batch == 2
    found = list(propose(config, decode_levers(config, source, whole), 0.4 * whole.peak,
                         lambda c: plan_decode(c, source)))
    assert found[0].overrides == ["sampling.batch_size=1"] and found[0].peak < 0.6 * whole.peak
    assert found[1].overrides == ["sampling.batch_size=1", "sampling.tile=[16,16,16]"]
    assert found[-1].peak <= 0.4 * whole.peak < found[0].peak


def test_auto_is_bf16_on_a_card_in_training_and_in_decoding(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    auto, bf16, fp32 = (vae(f"training.options.precision={each}", f"sampling.precision={each}")
                        for each in ("auto", "bf16", "fp32"))
    peaks = [(made.step.peak, made.decode.peak) for made in (plan(auto, LABELLED, 80), plan(bf16, LABELLED, 80),
                                                             plan(auto, LABELLED), plan(fp32, LABELLED))]
    assert peaks[0] == peaks[1] and peaks[2] == peaks[3]
    assert peaks[0][0] != peaks[2][0] and peaks[0][1] != peaks[2][1]


# ---- the command ----


def test_command_prints_a_table_or_json(tmp_path):
    given = ["plan", "-cn", "echo_vae", *VAE, "--shape", "1", "16", "16", "16", "--classes", "3", "--card", "0.002"]
    said = succeed(dataset_tool.main, *given)
    assert "Parameters" in said and "does not fit 0.002 GiB" in said and "training.options.batch_gpu=2" in said
    found = json.loads(succeed(dataset_tool.main, *given, "--json"))
    assert found["step"]["peak"] == plan_step(vae()["training"], LABELLED).peak and found["fits"] is False
    assert found["decode"]["size"] == [16, 16, 16]


def test_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(tmp_path, dataset_tool.main, "plan", "-cn", "echo_vae")
    assert "--shape, channels and voxels per axis as in 1 160 160 128" in said
    assert "does not divide over --ranks 3" in refused(
        tmp_path, dataset_tool.main, "plan", "-cn", "echo_vae", *VAE, "--ranks", "3", "--shape", "1", "16", "16", "16")
    said = refused(tmp_path, dataset_tool.main, "plan", "-cn", "echo_vae", *VAE, "--shape", "12", "14", "19")
    assert said.endswith("the first number of --shape is the channels; write --shape 12 14 20")
    assert call(dataset_tool.main, "plan").exit_code == 2


def test_source_comes_from_the_file_where_it_is_there(tmp_path):
    from tests.test_evaluate import write_phantoms
    path = write_phantoms(tmp_path / "echo.h5")
    source = find_source(vae(f"training.dataset.path={path}")["training"], None, 0)
    assert source.shape == (1, 28, 28, 28) and len(source.facts.label_classes) == 4
