"""A chosen part of a network: which weights that are, that no other moves by a bit, and adapters against algebra."""

import json
from contextlib import chdir
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

import dataset_tool
import edm3d
import train
from edm3d.formats.training_state import TrainingState
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.lora import LowRank, product, takes_low_rank
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.training.batch_transforms import Identity
from edm3d.training.ema import update_ema
from edm3d.training.init_from import init_from
from edm3d.training.loss import EDMLoss
from edm3d.training.phases import Task
from edm3d.training.plan import plan_step
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.trainable import adapt, asked, choose, left_random, moving, named, start_notes, trained_lines
from edm3d.training.training_loop import Trainer
from edm3d.utils import checkpoint
from edm3d.utils.compose import compose
from edm3d.utils.config import build
from edm3d.utils.config_hash import config_hash
from edm3d.utils.runs import list_files
from edm3d.utils.stop import Stop
from tests.commands import refused, succeed
from tests.planned import VOXELS, edm
from tests.ranks import on_ranks
from tests.toy import BLANK, OPTIONS, learned, make_trainer, stopped, ticks, trained, two_phases

PARTS = ("attention", "conditioning", r"re:dec\.level0", "lora:2", ["attention", "lora"])


def unet(**more: object) -> EDMPrecond:
    """A UNet of points with one level that attends, none of whose weights is 0 but one, which is -0."""
    torch.manual_seed(0)
    net = EDMPrecond(ADMUNet(1, 1, **{"spatial_dims": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1,
                                      "attention_levels": (1,), "channels_per_head": 8, "dropout": 0, **more}))
    with torch.no_grad():
        for p in net.parameters():
            p += 0.02 * torch.randn(p.shape)
        net.model.enc["level0_conv"].weight[0] = -0.0
    return net


def task_of(net: nn.Module, optimizer: type = torch.optim.AdamW, **settings: object) -> Task:
    """Denoising points by a network, under weight decay unless it is said otherwise."""
    settings = settings or {"lr": 3e-2, "eps": 0.1, "weight_decay": 0.1}
    return diffusion_task(net, EDMLoss(), optimizer(net.parameters(), **settings), Identity(), BLANK)


def bits(tensor: torch.Tensor) -> list[int]:
    """A tensor as integers: -0 is not 0, and NaN is NaN."""
    return tensor.detach().contiguous().view(torch.int32).flatten().tolist()


def steps(trainer: Trainer, count: int = 3) -> Trainer:
    """A trainer after some steps."""
    data = trainer.batches()
    for _ in range(count):
        trainer.step(data)
    trainer.settle()
    return trainer


def layers(names: set[str]) -> set[str]:
    """The layers that weights are of."""
    return {name.rpartition(".")[0] for name in names}


# ---- which weights they are ----


def test_attention_is_all_that_attends_with_its_norms():
    net = ADMUNet(1, 1, spatial_dims=2, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,),
                  channels_per_head=8, attribute_dim=2, attribute_mode="tokens", attention="slices_depth")
    blocks = ["enc.level1_block0", "dec.level1_in0", "dec.level1_block0", "dec.level1_block1"]
    own = ["norm2", "qkv", "proj", "depth.norm", "depth.qkv", "depth.proj", "cross.norm", "cross.query",
           "cross.key_value", "cross.proj"]
    assert layers(named(net, "attention")) == {f"{block}.{layer}" for block in blocks for layer in own}


def test_conditioning_is_all_by_which_a_network_sees_what_it_is_told():
    net = ADMUNet(1, 1, spatial_dims=1, label_dim=3, augment_dim=2, model_channels=8, channel_mult=(1,), num_blocks=1,
                  attention_levels=(), channels_per_head=8, attribute_dim=2, semantic_dim=2, image_dim=1)
    blocks = ["enc.level0_block0", "dec.level0_in0", "dec.level0_in1", "dec.level0_block0", "dec.level0_block1"]
    mapped = [f"{block}.spade{i}" for block in blocks[1:] for i in range(2)] + ["dec.level0_in0.spade2"]
    attributes = [f"map_attributes.{layer}" for layer in (
        "tokens.names", "tokens.directions", "tokens.out", "layer0", "layer1")]
    assert layers(named(net, "conditioning")) == {
        "map_layer0", "map_layer1", "map_label", "map_augment", "map_features.levels.0", *attributes, *mapped,
        *(f"{block}.affine" for block in blocks)}


def test_the_kinds_are_found_in_networks_of_a_library_and_in_first_stages():
    monai = DiffusionModelUNet(2, 1, 1, channels=(8, 8), attention_levels=(False, True), num_res_blocks=1,
                               norm_num_groups=4, num_head_channels=8, num_class_embeds=2)
    attention = layers(named(monai, "attention"))
    assert len(attention) > 9 and all(".attentions." in name or ".attention." in name for name in attention)
    told = layers(named(monai, "conditioning"))
    assert {"time_embed.0", "time_embed.2", "class_embedding"} < told
    assert all(name.endswith("time_emb_proj") for name in told - {"time_embed.0", "time_embed.2", "class_embedding"})
    stage = AutoencoderKL(1, spatial_dims=1, channels=(4, 8), num_blocks=1, num_blocks_decoder=1,
                          bottleneck_attention=True)
    assert len(named(stage, "attention")) == 2 * 6 and named(stage, "conditioning") == set()


def test_a_pattern_is_found_anywhere_in_a_name_and_a_list_is_the_union():
    net = unet()
    names = {name for name, _ in net.named_parameters()}
    assert named(net, r"re:dec\..*") == {name for name in names if name.startswith("model.dec.")}
    assert named(net, r"re:^model\.out_conv\.bias$") == {"model.out_conv.bias"}
    both = choose(net, ["attention", "re:out_norm", "lora:3"])
    assert both.names == named(net, "attention") | {"model.out_norm.weight", "model.out_norm.bias"} and both.rank == 3
    assert both.adapted and not {f"{name}.weight" for name in both.adapted} & both.names
    assert choose(net, None) is None and choose(net, "all") is None and choose(net, "lora").rank == 8


@pytest.mark.parametrize("wanted", ["attentio", "", "re:", "lora:0", "lora:x", [], ["all", "lora"], ["lora", "lora:2"],
                                    3, True, {"a": 1}])
def test_what_cannot_be_asked_for_is_refused(wanted):
    with pytest.raises(ValueError, match=r"training\.options\.trainable=.*: wanted all, attention, conditioning, lora"):
        asked(wanted)


def test_a_bad_pattern_is_refused_with_what_is_wrong():
    with pytest.raises(ValueError, match=r"trainable=re:\(a: \(a is no regular expression \(missing \)"):
        asked("re:(a")


@pytest.mark.parametrize("wanted", ["attention", "re:decoder2", ["lora", "attention"]])
def test_what_a_network_lacks_is_refused_naming_what_there_is(wanted):
    net = unet(attention_levels=(), bottleneck_attention=False, label_dim=2)
    with pytest.raises(ValueError) as error:
        choose(net, wanted)
    one = "attention" if isinstance(wanted, list) else wanted
    assert str(error.value) == (
        f"training.options.trainable={one}: the network has nothing of that; there is all, conditioning, lora, and "
        "re:PATTERN of weights in model.map_layer0, model.map_layer1, model.map_label, model.enc, model.dec, "
        "model.out_norm, model.out_conv")
    with pytest.raises(ValueError, match="=lora: .*there is all, and re:PATTERN of weights in weight, bias"):
        choose(nn.Conv1d(1, 1, 3), "lora")


# ---- adapters ----


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Linear(6, 4), (3, 6)), (nn.Linear(6, 4, bias=False), (3, 5, 6)), (nn.Conv1d(6, 4, 1), (2, 6, 5)),
    (nn.Conv2d(6, 4, 1), (2, 6, 3, 4)), (nn.Conv3d(6, 4, 1), (2, 6, 3, 2, 4))])
def test_an_adapter_is_its_layer_with_the_product_added_to_the_weight(layer, shape):
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    made = LowRank(layer, 2).double()
    assert torch.equal(made(x), layer(x))  # nothing at the start
    nn.init.normal_(made.up.weight)
    change = torch.einsum("or,ri->oi", made.up.weight.flatten(1), made.down.weight.flatten(1))
    assert torch.linalg.matrix_rank(change) == 2
    merged = deepcopy(layer)
    merged.weight.data += change.reshape(layer.weight.shape)
    torch.testing.assert_close(made(x), merged(x))
    torch.testing.assert_close(layer.weight + product(made.up.weight, made.down.weight, layer.weight), merged.weight)
    assert LowRank(layer, 64).down.weight.shape[0] == 4  # no more than the layer has


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, stride=2), nn.Conv1d(4, 4, 1, groups=2), nn.ConvTranspose1d(4, 4, 1),
    nn.Embedding(4, 4), nn.MultiheadAttention(4, 1).out_proj])
def test_layers_that_are_no_matrix_or_whose_weights_others_use_take_none(layer):
    assert not takes_low_rank(layer)


def test_a_layer_that_stands_in_two_places_has_one_adapter_in_both():
    net, layer = nn.Module(), nn.Linear(2, 2)
    net.one, net.two, net.heads = nn.Sequential(layer), nn.ModuleDict({"a": layer}), [layer]
    adapt(net, choose(net, "lora"), 0)
    assert isinstance(net.one[0], LowRank) and net.one[0] is net.two["a"] is net.heads[0]
    assert [name for name, _ in moving(net)] == ["one.0.weight"]


def test_adapters_are_drawn_by_the_seed_and_leave_the_generator_alone():
    drawn = []
    for seed in (1, 1, 2):
        net = unet()
        torch.manual_seed(seed + len(drawn))
        before = torch.get_rng_state()
        adapt(net, choose(net, "lora"), seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(torch.cat([p.flatten() for name, p in net.named_parameters() if ".down." in name]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_an_average_is_of_the_merged_weights():
    net, plain = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    plain.load_state_dict(net.state_dict())
    adapt(net, choose(net, "lora"), 0)
    net[0].base.requires_grad_(False)
    start, wanted = plain[0].weight.detach().clone(), plain[0].weight.detach().clone()
    for value in (1.0, 2.0):
        nn.init.constant_(net[0].up.weight, value)
        update_ema(plain, net, 0.75)
        wanted = 0.75 * wanted + 0.25 * (start + value * net[0].down.weight.detach().sum(0))
    torch.testing.assert_close(plain[0].weight, nn.Parameter(wanted))
    assert bits(plain[0].bias) == bits(net[0].base.bias)


# ---- the training ----


@pytest.mark.parametrize("wanted", PARTS, ids=str)
@pytest.mark.parametrize("more", [{}, {"checkpointing": True}, {"ema_halflife_kimg": [0.05, 1.0], "grad_clip": 0.5}])
def test_no_other_weight_moves_by_a_bit_and_the_part_does(tmp_path, wanted, more):
    net = unet()
    before = deepcopy(net)
    part = choose(net, wanted)
    trainer = steps(make_trainer(tmp_path, replace(OPTIONS, trainable=wanted, **more), task=task_of(net)))
    merged = {**dict(net.named_parameters()), **dict(moving(net))}
    moves = part.names | {f"{name}.weight" for name in part.adapted}
    for name, weight in before.named_parameters():
        now = merged.get(name, merged.get(f"{name.rpartition('.')[0]}.base.{name.rpartition('.')[2]}"))
        averages = [dict(ema.named_parameters())[name] for ema in trainer.emas]
        for each in (now, *averages):
            assert (bits(each) != bits(weight)) == (name in moves), name
    held = [p for group in trainer.task.phases[0].optimizer.param_groups for p in group["params"]]
    assert set(map(id, held)) == {id(p) for p in net.parameters() if p.requires_grad}
    state = trainer.task.phases[0].optimizer.state
    assert set(map(id, state)) == set(map(id, held)) and len(held) < len(list(net.parameters()))


@pytest.mark.parametrize("wanted", [None, "all"])
def test_all_is_the_training_of_before(tmp_path, wanted):
    plain = steps(make_trainer(tmp_path / "a", task=task_of(unet())))
    other = steps(make_trainer(tmp_path / "b", replace(OPTIONS, trainable=wanted), task=task_of(unet())))
    for a, b in ((plain.task.net, other.task.net), (plain.ema, other.ema)):
        assert checkpoint.checksum(a.state_dict()) == checkpoint.checksum(b.state_dict())
    assert trained_lines(other.task.net, wanted) == []


def test_a_step_on_a_part_is_the_step_on_all_as_far_as_the_part_goes(tmp_path):
    """SGD moves each weight by its own gradient alone, which does not depend on what else is trained."""
    nets = [unet(), unet()]
    for net, wanted in zip(nets, (None, "attention"), strict=True):
        task = task_of(net, torch.optim.SGD, lr=0.1)
        steps(make_trainer(tmp_path / str(wanted), replace(OPTIONS, trainable=wanted), task=task), 1)
    whole, part = (dict(net.named_parameters()) for net in nets)
    for name in named(nets[0], "attention"):
        torch.testing.assert_close(part[name], whole[name], rtol=1e-6, atol=1e-7)


def test_running_statistics_and_what_the_task_absorbs_stay(tmp_path):
    task, absorbed = two_phases(), []
    task.net.norm = nn.BatchNorm1d(1)
    task.net.register_forward_hook(lambda net, args, out: net.norm(out))
    task.phases[0].absorb = lambda totals, nimg: absorbed.append(nimg)
    steps(make_trainer(tmp_path, replace(OPTIONS, trainable=r"re:layers\.3"), task=task))
    assert not absorbed and task.net.norm.num_batches_tracked == 0 and not task.net.norm.running_mean.any()
    critic = task.phases[1]
    assert critic.module.norm.num_batches_tracked > 0 and all(p.requires_grad for p in critic.module.parameters())
    assert len(critic.optimizer.state) == len(list(critic.module.parameters()))  # an adversary learns as a whole


@pytest.mark.parametrize("wanted", [r"re:layers\.3", "lora:2"])
def test_resuming_in_the_middle_is_bit_identical(tmp_path, wanted):
    options = replace(OPTIONS, trainable=wanted)
    whole = trained(tmp_path / "whole", options)
    state = stopped(tmp_path / "first", 7, options)
    assert learned(trained(tmp_path / "second", options, resume=state)) == learned(whole)
    assert ticks(tmp_path / "second") == ticks(tmp_path / "whole")[1:]
    assert len(whole.optimizers["diffusion"]["state"]) == {"re:layers\\.3": 2, "lora:2": 4}[wanted]


def test_snapshots_of_adapters_are_of_the_plain_network_and_draw_as_it_does(tmp_path):
    net = unet()
    names = list(net.state_dict())
    options = replace(OPTIONS, trainable="lora:4", ema_halflife_kimg=1e-9)  # an average that forgets all before
    make_trainer(tmp_path, options, task=task_of(net, torch.optim.Adam, lr=1e-2)).run(Stop(tmp_path))
    weights = Snapshot.read(list_files(tmp_path, "network-snapshot")[-1]).weights
    assert list(weights) == names
    plain = unet()
    plain.load_state_dict(weights)
    x, sigma = torch.randn(3, 1, 4), torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(plain.eval()(x, sigma), net.eval()(x, sigma), rtol=1e-4, atol=1e-5)
    assert (plain(x, sigma) - unet().eval()(x, sigma)).abs().max() > 1e-2


def on_rank(folder: Path) -> None:
    """One of two processes: a run under ddp, and one that goes on in shares."""
    options = replace(OPTIONS, total_kimg=0.06, trainable=["lora:3", "re:out_conv"])
    trained(folder / "ddp", options, task=task_of(unet()))
    state = list_files(folder / "ddp", "training-state")[-1]
    trained(folder / "fsdp", replace(options, total_kimg=0.12, parallel="fsdp"), resume=state, task=task_of(unet()))


def test_two_ranks_whole_or_in_shares_learn_what_one_process_learns(tmp_path):
    on_ranks(on_rank, tmp_path)
    options = replace(OPTIONS, trainable=["lora:3", "re:out_conv"])
    wanted = {kimg: trained(tmp_path / f"one{kimg}", replace(options, total_kimg=kimg), task=task_of(unet()))
              for kimg in (0.06, 0.12)}
    start = unet().state_dict()
    for run, kimg in (("ddp", 0.06), ("fsdp", 0.12)):
        state = TrainingState.read(list_files(tmp_path / run, "training-state")[-1])
        for found, one in ((state.ema, wanted[kimg].ema),
                           (state.modules["diffusion"], wanted[kimg].modules["diffusion"])):
            assert list(found) == list(one)
            for name, weight in found.items():
                torch.testing.assert_close(weight, one[name], rtol=1e-4, atol=1e-5)
                plain = name.replace(".base.", ".")
                if name.endswith("norm0.weight") or (".base." in name and plain in start):
                    assert bits(weight) == bits(start[plain]), name


# ---- plans, the configuration and the words ----


def test_a_plan_has_optimiser_and_gradients_of_what_is_trained_alone():
    whole, part, lora = (plan_step(edm(*more)["training"], VOXELS) for more in (
        (), ("training.options.trainable=attention",), ("training.options.trainable=lora:1",)))
    net = build({**edm()["training"]["network"]["model"], "in_channels": 1, "out_channels": 1, "spatial_dims": 3})
    own = [p for name, p in net.named_parameters() if name in named(net, "attention")]
    count, tensors = sum(p.numel() for p in own), len(own)
    assert whole.trained == whole.parameters == part.parameters and part.trained == count
    assert part.gradients == 4 * count and part.optimizer == 2 * 4 * count + 4 * tensors
    assert part.averages == whole.averages == lora.averages and part.peak < whole.peak
    shapes = [net.get_submodule(name).weight.shape for name in choose(net, "lora").adapted]
    added = sum(shape[0] + shape[1] for shape in shapes)  # of rank 1
    assert lora.trained == added and lora.parameters == whole.parameters + added
    assert lora.optimizer == 2 * 4 * added + 4 * 2 * len(shapes)


def test_the_hash_knows_the_part_but_not_its_absence():
    hashes = [config_hash(compose("voxels_edm", more)["training"]) for more in (
        [], ["training.options.trainable=null"], ["training.options.trainable=lora"],
        ["training.options.trainable=lora:4"], ["training.options.trainable=[attention,conditioning]"])]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_what_is_trained_is_said_block_by_block():
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), "b": nn.Linear(3, 1)})
    adapt(net, choose(net, "lora:1"), 0)
    net.requires_grad_(False)
    for name, p in net.named_parameters():
        p.requires_grad_(".up." in name or ".down." in name)
    assert trained_lines(net, "lora:1") == ["Trained     15 of 40 weights (training.options.trainable=lora:1)",
                                            "  a           11 in 0, 1", "               4 in b"]


def test_weights_that_nothing_gave_and_nothing_trains_are_warned_of(tmp_path):
    net = unet()
    assert start_notes(net, None, None) == start_notes(net, "lora", "strong.pt") == []
    assert "keeps the random weights" in start_notes(net, "lora", None)[0]
    fresh = {"model.out_conv.bias", "model.out_conv.weight", "model.map_layer0.bias"}
    assert left_random(net, None, fresh) == left_random(net, "re:out_conv|map_layer0", fresh) == []
    assert left_random(net, "conditioning", fresh) == [
        "  Warning: 2 of those that start afresh are not trained (training.options.trainable=conditioning): "
        "model.out_conv.weight, model.out_conv.bias"]
    path = tmp_path / "network-snapshot-000001.pt"
    weights = {name: w for name, w in net.state_dict().items() if "out_conv" not in name}
    replace(BLANK, network={"_target_": "networks.precond.EDMPrecond"}, weights=weights).save(path)
    lines = init_from(net, BLANK, replace(OPTIONS, init_from=str(path), trainable="attention"))
    assert any("2 of those that start afresh are not trained" in line for line in lines)


# ---- by the command line ----

COMMON = ["training.options.batch_size=2", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.004",
          "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
          "training.validation.max_items=2", "training.validation.preview_ticks=null",
          "training.options.state_ticks=1", "training.optimizer.lr=1e-2"]
NET = ["training.dataset.path=echo.h5", "training.network.model.model_channels=8",
       "training.network.model.channel_mult=[1]", "training.network.model.num_blocks=1",
       "training.network.model.attention_levels=[0]", "training.network.model.channels_per_head=8"]
VOXELS_EDM = ["-cn=voxels_edm", *NET, *COMMON]
STAGE = ["-cn=echo_vae", "autoencoder=vq", "training.dataset.path=echo.h5", "training.network.channels=[4,4]",
         "training.network.codebook_size=8", *COMMON]


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    """A folder with data, and a network to start from."""
    folder = tmp_path_factory.mktemp("finetune")
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "echo.h5", "--num", "16", "--size", "8")
        succeed(train.main, *VOXELS_EDM, "training.options.run_root=first")
    return folder


def snapshot(root: str) -> dict[str, torch.Tensor]:
    """The weights that a run has left."""
    return Snapshot.read(list_files(next(Path(root).iterdir()), "network-snapshot")[-1]).weights


def test_a_network_is_fine_tuned_and_goes_on_in_the_same_words(at):
    with chdir(at):
        words = [*VOXELS_EDM[1:], "training.options.init_from=first/00000-voxels_edm",
                 "training.options.trainable=[lora:2,conditioning]", "training.options.run_root=second"]
        said = succeed(train.main, VOXELS_EDM[0], *words)
        assert "Trained     " in said and "Warning: training.options.trainable" not in said
        run = next(Path("second").iterdir())
        found = json.loads((run / "trained.json").read_text())
        assert found["trainable"] == ["lora:2", "conditioning"] and found["trained"] == sum(found["layers"].values())
        assert f"Trained     {found['trained']:,} of {found['weights']:,} weights" in said
        before, after = snapshot("first"), snapshot("second")
        assert list(before) == list(after)
        kept = [name for name in before if bits(before[name]) == bits(after[name])]
        assert all(name.endswith((".bias", "norm0.weight", "norm1.weight", "norm2.weight", "out_norm.weight"))
                   or "conv" in name for name in kept) and len(kept) > 10
        assert not [name for name in before if name not in kept and "conv" in name]
        again = edm3d.train("voxels_edm", *words, "training.options.resume=latest", "training.options.total_kimg=0.012")
        assert again.name == run.name and len(list(Path("second").iterdir())) == 1
        assert f"Resumed from {run}/training-state" in (run / "log.txt").read_text()
        succeed(dataset_tool.main, "check", str(run))


def test_without_weights_to_start_from_there_is_a_warning_and_a_lack_is_refused_before_there_is_a_folder(at):
    with chdir(at):
        said = succeed(train.main, *VOXELS_EDM, "training.options.trainable=attention",
                       "training.options.run_root=third", "training.options.total_kimg=0.004")
        assert "Warning: training.options.trainable=attention without training.options.init_from" in said
        said = refused(at, train.main, *STAGE, "training.options.trainable=conditioning",
                       "training.options.run_root=none")
        assert "training.options.trainable=conditioning: the network has nothing of that; there is all" in said
        assert not Path("none").exists()
        assert "training.options.trainable=lorra" in refused(
            at, train.main, *VOXELS_EDM, "training.options.trainable=lorra", "training.options.run_root=none")


def test_a_decoder_is_fine_tuned_and_encoder_and_codebook_stay(at):
    with chdir(at):
        succeed(train.main, *STAGE, "training.options.run_root=stage")
        run = next(Path("stage").iterdir())
        succeed(train.main, *STAGE, f"training.options.init_from={run}", r"training.options.trainable=re:decoder\.",
                "training.options.run_root=tuned")
        before, after = snapshot("stage"), snapshot("tuned")
        moved = {name.split(".")[0] for name in before if bits(before[name]) != bits(after[name])}
        assert moved == {"decoder"} and "codebook" in before


@pytest.mark.parametrize(("name", "wanted"), [
    (["-cn=echo2d_segmentation", "training.network.strides=[1,2,2]", "training.network.kernel_size=[3,3,3]",
      "training.network.upsample_kernel_size=[2,2]", "training.network.filters=[4,8,8]"], "re:output_block"),
    (["-cn=echo2d_classification"], "[lora:2,re:_fc]")], ids=["segmentation", "classification"])
def test_downstream_networks_are_fine_tuned(at, name, wanted):
    with chdir(at):
        if not Path("flat.h5").is_file():
            succeed(dataset_tool.main, "phantom", "--dest", "flat.h5", "--num", "24", "--size", "64",
                    "--spatial-dims", "2", "--pairs")
        said = succeed(train.main, *name, "training.dataset.path=flat.h5", *COMMON,
                       f"training.options.trainable={wanted}", f"training.options.run_root=down{name[0]}")
        assert "Trained     " in said and "Done: " in said
