"""A stranger's file is data: it names classes of a list, and none of them runs code, opens a path or asks a network."""

import ast
import inspect
import json
import re
import sys
import textwrap
from contextlib import chdir
from functools import cache
from importlib import import_module
from pathlib import Path

import monai.networks.nets
import numpy as np
import pytest
import torch
import yaml

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import FirstStageRecord, LatentsFile, write_latents
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.snapshot import network_hash
from edm3d.utils import checkpoint
from edm3d.utils.compose import shipped_configs
from edm3d.utils.config import build_from_file, targets
from edm3d.utils.config_hash import config_hash
from edm3d.utils.trusted import DATASETS, NETWORKS, SAMPLERS, SCALES, SIMULATIONS, is_listed
from tests.commands import call, refused, succeed
from tests.test_encode import SIZE, TINY, encoded, write_snapshot, write_volumes

PROOF = "code-has-run"
EVIL = {"_target_": "os.mkdir", "path": PROOF}
HIDDEN = {"_target_": "networks.precond.EDMPrecond", "model": f"${{oc.create:{{_target_: os.mkdir, path: {PROOF}}}}}"}
TRUST = "training.options.trust=true"
BY_LATENTS = [*TINY, "training.dataset.path=evil.h5", "training.options.min_psnr=null"]
BY_SNAPSHOT = [*TINY, "dataset=volumes", "batch_transform=encode", "training.dataset.path=vols.h5",
               "training.batch_transform.autoencoder=evil.pt", "training.options.min_psnr=null"]


@pytest.fixture(params=[EVIL, HIDDEN], ids=["named", "hidden"])
def at(request, tmp_path: Path):
    """Work in a folder with volumes, and a snapshot and latents whose first stage is code."""
    with chdir(tmp_path):
        write_volumes(Path("vols.h5"))
        write_snapshot(Path("stage.pt"), Path("vols.h5"))
        encoded("lat.h5")
        snapshot = checkpoint.load(Path("stage.pt"), "snapshot").content
        snapshot["network"] = request.param
        checkpoint.save(Path("evil.pt"), "snapshot", snapshot)
        write_evil_latents(Path("evil.h5"), LatentsFile(Path("lat.h5")), request.param)
        yield tmp_path


def write_evil_latents(path: Path, good: LatentsFile, node: dict) -> None:
    """Whole latents whose first stage has another config, and the hash of that one."""
    weights = good.first_stage().weights
    torch_weights = {name: torch.from_numpy(w) for name, w in weights.items()}
    record = FirstStageRecord(node, weights, network_hash(node, torch_weights))
    write_latents(path, {s: good.read(s) for s in good.splits}, record, good.facts, {"kind": "test"})


@pytest.mark.parametrize("arguments", [BY_LATENTS, BY_SNAPSHOT], ids=["latents", "snapshot"])
def test_training_builds_nothing_that_a_file_names_but_known_classes(at, arguments):
    line = refused(at, train.main, *arguments)  # one line, and not a file more: no proof, no run folder
    assert TRUST in line and ("evil.h5" in line or "evil.pt" in line)
    assert not Path(PROOF).exists() and not Path("results").exists()


def test_what_a_preview_would_draw_with_is_no_exception(at):
    """The first stage that sampling.autoencoder names, for latents that carry none."""
    said = succeed(train.main, *TINY, "training.dataset.path=lat.h5", "training.options.min_psnr=null",
                   "training.validation.preview_ticks=1", "sampling.autoencoder=evil.pt")
    assert "no pictures" in said and not Path(PROOF).exists()


@pytest.mark.parametrize("name", ["training.batch_transforms.EncodeImages", "training.loss.EDMLoss"])
def test_a_file_names_networks_and_data_sets_and_gives_no_trust(name):
    with pytest.raises(ValueError, match="not on the list"):
        build_from_file({"_target_": name}, "net.pt")


def test_plan_builds_nothing_that_latents_name_but_known_classes(at):
    assert TRUST in refused(at, dataset_tool.main, "plan", *BY_LATENTS)


@pytest.mark.parametrize("arguments", [BY_LATENTS, BY_SNAPSHOT], ids=["latents", "snapshot"])
def test_a_user_may_trust_a_file(at, request, arguments):
    """What it names then runs: what refused it was the list, and nothing else on the way. Its text stays text."""
    call(train.main, *arguments, TRUST)
    assert Path(PROOF).exists() == ("named" in request.node.callspec.id)


@pytest.mark.parametrize("scaling", [f"${{oc.create:{{_target_: os.mkdir, path: {PROOF}}}}}", "${oc.env:HOME}"])
def test_how_latents_are_scaled_is_a_word_and_no_program(at, scaling):
    good = LatentsFile(Path("lat.h5"))
    write_latents(Path("scaled.h5"), {s: good.read(s) for s in good.splits}, good.first_stage(), good.facts,
                  {"kind": "test"}, scaling=scaling)
    line = refused(at, train.main, *TINY, "training.dataset.path=scaled.h5", "training.options.min_psnr=null")
    assert "scaled.h5: scaling=" in line and not Path(PROOF).exists()
    assert str(Path.home()) not in line


def test_every_word_of_a_file_stays_a_word_from_volumes_to_the_report(tmp_path, monkeypatch):
    """No value of HOME is in any output, and no file is made that was not asked for."""
    monkeypatch.setenv("HOME", "/home/of-nobody-7")
    asks, runs = "${oc.env:HOME}", HIDDEN["model"]
    meta = VolumesMeta(3, (asks,), ("target",), ("background", runs), (asks,), (runs,), ("ED", asks),
                       Intensity(0.0, 2.0, True, runs))
    rng = np.random.default_rng(0)
    with chdir(tmp_path):
        with VolumesWriter(Path("vols.h5"), meta, {"kind": runs, "note": asks}) as writer:
            for i in range(8):
                image = 2 * rng.random((1, *SIZE), np.float32)
                writer.add("train" if i < 4 else "val", Item(
                    image, (image[0] > 1).astype(np.uint8), np.ones(1, np.float32), i % 2, f"{asks}{i}", f"{runs}{i}",
                    np.eye(4), full_box(SIZE)))
        write_snapshot(Path("stage.pt"), Path("vols.h5"))
        said = succeed(dataset_tool.main, "encode", "--autoencoder", "stage.pt", "--source", "vols.h5", "--dest",
                       "lat.h5", "--num-threads", "1")
        for command in (dataset_tool.main, ("info", "lat.h5")), (dataset_tool.main, ("check", "vols.h5")), (
                train.main, (*TINY, "training.dataset.path=lat.h5", "training.network.model.label_dim=2",
                             "training.validation.preview_ticks=1")), (
                generate.main, (*(word for word in TINY if word.startswith(("-cn", "sampling"))), "sampling.montage=2",
                                "sampling.nifti=true", "sampling.outdir=out")), (
                evaluate.main, ("--real", "vols.h5", "--generated", "out/samples.h5", "--dest", "rep", "--num-noise",
                                "2")):
            said += succeed(command[0], *command[1])
        assert "of-nobody" not in said and asks in said and not [*tmp_path.rglob(PROOF)]
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path for path in written if b"of-nobody" in path.read_bytes()] == []
        assert {path.name for path in tmp_path.iterdir()} == {"vols.h5", "stage.pt", "lat.h5", "results", "out", "rep"}
        assert json.loads(Path("rep/report.json").read_text())["metrics"].keys() >= {f"{runs}_volume"}


def test_trust_is_no_part_of_what_is_computed():
    options = {"seed": 0, "trust": False}
    assert config_hash({"options": options}) == config_hash({"options": {**options, "trust": True}}) == config_hash(
        {"options": {"seed": 0}})


def test_every_way_to_trust_is_named():
    with pytest.raises(ValueError, match=r"training\.options\.trust=true, sampling\.trust=true or --trust"):
        build_from_file(EVIL, "net.pt")


# ---- the list ----

ASKS = re.compile(r"pretrain|url|path|file|download|weights|hub|repo|dir(ectory)?$|cache|progress|checkpoint_")
DOES = {"load", "load_url", "load_state_dict_from_url", "download_url", "hf_hub_download", "from_pretrained", "open",
        "eval", "exec", "compile", "locate", "optional_import", "import_module", "system", "Popen", "run", "urlopen"}
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}
ADM = {"_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, "model_channels": 8,
       "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
STAGE = {"in_channels": 1, "latent_channels": 2, "spatial_dims": 2, "channels": [4, 8], "num_blocks": 1}
CONV, LAYER = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}, {"num_groups": 2, "num_channels": 4}
DIFFUSION = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8, 8], "norm_num_groups": 4,
             "attention_levels": [False, True], "num_res_blocks": 1}
BUILT = {  # the arguments by which a test builds the small ones
    **{f"edm3d.networks.precond.{name}": {"model": ADM} for name in (
        "DDPMPrecond", "EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond")},
    "edm3d.networks.unet.ADMUNet": ADM, "edm3d.networks.unet.SongUNet": ADM,
    "edm3d.networks.autoencoder.AutoencoderKL": STAGE, "edm3d.networks.gamma.AutoencoderGamma": STAGE,
    "edm3d.networks.vq.AutoencoderVQ": STAGE,
    "edm3d.networks.monai_unet.MonaiUNet": {
        "unet": {"_target_": "monai.networks.nets.DiffusionModelUNet", **DIFFUSION}},
    "monai.networks.blocks.ADN": {"in_channels": 4}, "monai.networks.blocks.Convolution": {"spatial_dims": 2, **CONV},
    "monai.networks.blocks.ResidualUnit": {"spatial_dims": 2, **CONV},
    **{f"monai.networks.blocks.{name}": {"spatial_dims": 2, **CONV, "stride": 1, "norm_name": "instance"}
       for name in ("UnetBasicBlock", "UnetResBlock")},
    "monai.networks.blocks.UnetUpBlock": {"spatial_dims": 2, **CONV, "stride": 1, "upsample_kernel_size": 2,
                                          "norm_name": "instance"},
    "monai.networks.nets.AttentionUnet": UNET, "monai.networks.nets.AutoEncoder": {**UNET, "strides": [2, 2]},
    "monai.networks.nets.AutoencoderKL": {**DIFFUSION, "latent_channels": 2},
    "monai.networks.nets.BasicUNet": {"features": [4] * 6},
    "monai.networks.nets.DenseNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [1, 1]},
    "monai.networks.nets.DiffusionModelUNet": DIFFUSION,
    "monai.networks.nets.DynUNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "kernel_size": [3, 3, 3],
                                    "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "monai.networks.nets.EfficientNet": {"blocks_args_str": ["r1_k3_s11_e1_i32_o16_se0.25"]},
    "monai.networks.nets.MultiScalePatchDiscriminator": {
        "num_d": 1, "num_layers_d": 1, "spatial_dims": 2, "channels": 4, "in_channels": 1, "minimum_size_im": 64},
    "monai.networks.nets.PatchDiscriminator": {"spatial_dims": 2, "channels": 4, "in_channels": 1},
    "monai.networks.nets.SegResNet": {}, "monai.networks.nets.UNet": UNET,
    "monai.networks.nets.VNet": {"spatial_dims": 2},
    **{f"torch.nn.{name}": CONV for name in ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d",
                                             "ConvTranspose3d")},
    **{f"torch.nn.{name}": {} for name in ("Dropout", "GELU", "LeakyReLU", "ReLU", "SiLU")},
    "torch.nn.GroupNorm": LAYER, "torch.nn.LayerNorm": {"normalized_shape": 4},
    "torch.nn.Linear": {"in_features": 2, "out_features": 2},
}


@cache
def doubts(kind: type) -> set[str]:
    """What in a class, or a base of it, could ask for more than numbers: parameters, and calls in its source."""
    found = set()
    for each in kind.__mro__:
        if each.__module__.startswith(("edm3d.", "monai.")):
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
            calls = {getattr(node.func, "attr", getattr(node.func, "id", "")) for node in ast.walk(tree)
                     if isinstance(node, ast.Call)}
            found |= calls & DOES
    parameters = inspect.signature(kind).parameters.values()
    found |= {p.name for p in parameters if ASKS.search(p.name) and not p.name.startswith("use_checkpoint")}
    return found | {p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def named(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


EVENTS: list[str] | None = None  # of the interpreter, while somebody listens; such a hook cannot be taken away


def listen(event: str, arguments: tuple) -> None:
    if EVENTS is not None and event.startswith(("open", "socket", "subprocess", "os.", "urllib", "shutil")):
        EVENTS.append(f"{event} {arguments}")


sys.addaudithook(listen)


def test_the_lists_name_classes_by_which_nothing_but_numbers_is_asked_for():
    assert BUILT.keys() == NETWORKS
    for name in NETWORKS | DATASETS | SCALES | SIMULATIONS:
        assert inspect.isclass(named(name)) and named(name).__name__ == name.rpartition(".")[2], name
    assert {name: doubts(named(name)) for name in NETWORKS | SCALES | SIMULATIONS if doubts(named(name))} == {}
    assert all(inspect.isfunction(named(name)) for name in SAMPLERS)
    assert {p for name in DATASETS for p in doubts(named(name))} == {"path", "cache"}  # the latter of memory


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_what_is_listed_is_built_without_a_file_or_a_network(name, monkeypatch):
    net = build_from_file({**BUILT[name], "_target_": name}, "net.pt")  # imports are done
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", [])
    build_from_file({**BUILT[name], "_target_": name}, "net.pt")
    assert EVENTS == []
    assert {type(part) for part in net.modules() if "load" in doubts(type(part)) or doubts(type(part)) & DOES} == set()


@pytest.mark.parametrize("name", ["HoVerNet", "DenseNet121", "EfficientNetBN", "AHNet", "FlexibleUNet", "MILModel",
                                  "SENet154", "SEResNet50", "TorchVisionFCModel", "ResNetEncoder"])
def test_a_class_that_asks_a_network_could_not_stand_on_the_list(name):
    assert doubts(getattr(monai.networks.nets, name))
    with pytest.raises(ValueError, match="is not on the list"):
        build_from_file({"_target_": f"monai.networks.nets.{name}", "pretrained_url": "https://localhost"}, "net.pt")


def test_the_audit_of_events_hears_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", [])
    (tmp_path / "file").write_text("")
    assert any(event.startswith("open") for event in EVENTS)


def test_networks_data_sets_and_samplers_of_every_shipped_configuration_are_listed():
    places = {"network": NETWORKS, "autoencoder": NETWORKS, "precond": NETWORKS, "dataset": DATASETS,
              "sampler": SAMPLERS}
    found = [(node["_target_"], allowed) for group, allowed in places.items()
             for path in shipped_configs().glob(f"{group}/*.yaml")
             for _, node in targets(yaml.safe_load(path.read_text(encoding="utf-8")), group)]
    for path in shipped_configs().glob("*.yaml"):
        training = yaml.safe_load(path.read_text(encoding="utf-8")).get("training", {})
        found += [(node["_target_"], places[part]) for part in ("network", "dataset")
                  for _, node in targets(training.get(part), part)]
    assert [name for name, allowed in found if not is_listed(name, allowed)] == []
    assert len({name for name, _ in found}) == 27


GOOD = {"_target_": "networks.precond.EDMPrecond", "model": ADM}
LOOP: dict = {**GOOD}
LOOP["model"] = LOOP
BOMB: list = []
for _ in range(40):
    BOMB = [BOMB, BOMB]


@pytest.mark.parametrize("node", [
    *({"_target_": name} for name in (
        "torch.nn.modules.linear.Linear", "torch.nn.Module", "torch.nn.Sequential", "torch.nn.Identity",
        "torch.nn.parallel.DataParallel", "torch.nn.utils.parametrizations.weight_norm", "torch.nn.ParameterList",
        "monai.networks.nets.DenseNet.__init__", "monai.networks.nets.densenet.DenseNet",
        "edm3d.networks.unet.os.system", "networks.unet.ADMUNet.__class__", "networks.unet.ADMUNet ",
        "networks.unet.\u0410DMUNet", "NETWORKS.unet.ADMUNet", "edm3d.edm3d.networks.unet.ADMUNet",
        "edm3d.networks.layers.Conv3d", "networks.tiles.InTiles", "training.datasets.arrays.ArraysDataset",
        "samplers.edm_sampler", "networks.unet.UNet", "networks.autoencoder.Autoencoder", "__main__.x", "", ".",
        ["networks.unet.ADMUNet"], None, 3, b"networks.unet.ADMUNet", {"_target_": "os.getcwd"})),
    *({**GOOD, key: value} for key, value in (
        ("_partial_", True), ("_args_", [1]), ("_recursive_", False), ("_convert_", "all"), ("__class__", "x"),
        (3, 4), (("a",), 1), ("sigma_data", "${oc.env:HOME}"), ("${oc.env:HOME}", 1), ("sigma_data", torch.zeros(1)),
        ("model", {"x": [{"_target_": "os.getcwd"}]}), ("model", "os.getcwd"), ("model", None), ("model", BOMB),
        ("model", {**ADM, "channel_mult": [0]}), ("model", {**ADM, "model_channels": -8}),
        ("model", {"_target_": "training.datasets.arrays.ArraysDataset", "path": "/etc/passwd"}))),
    LOOP, {"model": ADM}, {}, [], None, "os.getcwd",
], ids=lambda node: type(node).__name__)
def test_odd_nodes_out_of_files_end_in_one_line_that_names_the_file(node):
    with pytest.raises(ValueError, match=r"^net\.pt: ") as caught:
        build_from_file(node, "net.pt")
    assert len(str(caught.value)) < 1000 and str(Path.home()) not in str(caught.value)


def test_each_place_in_a_file_has_a_list_of_its_own():
    for allowed, name in ((NETWORKS, "samplers.edm_sampler"), (DATASETS, "networks.unet.ADMUNet"),
                          (SAMPLERS, "networks.unet.ADMUNet"), (NETWORKS, "training.datasets.arrays.ArraysDataset"),
                          (SCALES, "physics.dose.DoseSimulation"),
                          (SIMULATIONS, "physics.activity_scale.ActivityScale")):
        with pytest.raises(ValueError, match="is not on the list"):
            build_from_file({"_target_": name}, "net.pt", allowed=allowed)
