"""dataset_tool.py import-edm: from an official pickle to a snapshot that gives the same D_x, draws, or starts in 3D."""

import re
import shlex
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import generate
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.edm_import import edm_network_node
from edm3d.utils import checkpoint
from edm3d.utils.compose import compose
from edm3d.utils.config import build, fill
from tests.reference import config_of, group_of, stored, weights_of
from tests.test_edm_pickle import Asks, official_bytes, official_file, official_module

CONFIG = {"class_name": "EDMPrecond", "kwargs": {
    "img_resolution": 8, "img_channels": 3, "label_dim": 4, "use_fp16": True, "model_type": "DhariwalUNet",
    "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "label_dropout": 0.1}}


def changed(*left_out: str, **kwargs: object) -> dict:
    """The configuration above with other arguments, some of them left to their defaults."""
    return {**CONFIG, "kwargs": {k: v for k, v in {**CONFIG["kwargs"], **kwargs}.items() if k not in left_out}}


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    """A network of such a configuration with weights that all matter."""
    torch.manual_seed(0)
    net = build(edm_network_node(CONFIG)).eval().requires_grad_(False)
    for weight in net.parameters():
        weight.normal_(std=0.3)
    return net


@pytest.fixture(scope="module")
def weights(net) -> dict[str, torch.Tensor]:
    """Its weights by their official names, with the filter that official networks keep beside them."""
    named = {re.sub(r"level(\d)", lambda level: "x".join([str(8 >> int(level[1]))] * 2), key): weight
             for key, weight in net.state_dict().items()}
    return {**named, "model.enc.4x4_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25)}


@pytest.fixture
def at(tmp_path, weights) -> Path:
    """A folder to work in, with the network's official file `official.pkl`."""
    official_file(tmp_path / "official.pkl", CONFIG, weights)
    with chdir(tmp_path):
        yield tmp_path


def call(command, *arguments: str, code: int = 0) -> str:
    """What a command prints; in one line if it fails."""
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def imported(*options: str) -> tuple[torch.nn.Module, Snapshot, str]:
    """Network and snapshot of the official file, and what the command printed."""
    printed = call(dataset_tool.main, "import-edm", "official.pkl", "--dest", "out/snapshot.pt", "--overwrite",
                   *options)
    snapshot = Snapshot.read(Path("out/snapshot.pt"), "diffusion")
    return snapshot.build(), snapshot, printed


def refused(folder: Path, *arguments: str, code: int = 1) -> str:
    """What the command says when it refuses; it leaves nothing behind."""
    before = sorted(folder.iterdir())
    printed = call(dataset_tool.main, "import-edm", *arguments, code=code)
    assert sorted(folder.iterdir()) == before and "Traceback" not in printed
    assert len(printed.splitlines()) == 1 or code == 2
    return printed


# ---- the same network ----


def test_snapshot_gives_what_the_official_network_gives(at, net):
    found, snapshot, printed = imported()
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0])
    condition = Condition(class_labels=torch.eye(4)[:3])
    assert torch.equal(found(x, sigma, condition), net(x, sigma, condition))
    assert found.takes == {"class_labels": Part(4, dropout=0.1)} and not found.training
    assert "EDMPrecond of ADMUNet, 3 channels, 4 classes, 0.05 M weights" in printed
    assert f"in {len(net.state_dict())} tensors" in printed and "images of 8x8" in printed
    assert (snapshot.shape, snapshot.first_stage, snapshot.nimg) == ((3, 8, 8), None, 0)
    assert snapshot.config["imported"] == {**CONFIG, "inflate_mode": None}
    assert snapshot.facts.class_names == ("0", "1", "2", "3") and snapshot.facts.label_classes == ()


@pytest.mark.parametrize("options", [[], ["--inflate", "3"]], ids=["2D", "3D"])
def test_overrides_that_are_printed_make_the_same_network(at, root, options):
    _, snapshot, printed = imported(*options)
    assert_overrides_make_the_network(printed, snapshot, root)


def assert_overrides_make_the_network(printed: str, snapshot: Snapshot, root: Path) -> None:
    """The printed overrides, pasted behind an experiment, make a network that takes the snapshot's weights."""
    overrides = shlex.split(printed.partition("The same network in an experiment: ")[2])
    node = compose("brainweb2d_edm", overrides)["training"]["network"]
    channels, *size = snapshot.shape
    node = fill(node, in_channels=channels, out_channels=channels, spatial_dims=len(size), augment_dim=0)
    build(node).load_state_dict(snapshot.weights)
    assert {k: node[k] for k in snapshot.network if k != "model"} == \
        {k: v for k, v in snapshot.network.items() if k != "model"}
    assert {k: node["model"][k] for k in snapshot.network["model"]} == snapshot.network["model"]


@pytest.mark.parametrize("name", ["adm_edm_lab_aug", "adm_iddpm", "ddpmpp_edm", "ncsnpp_ve"])
def test_reference_numbers_after_the_whole_road(root, tmp_path, name):
    case = group_of(stored("edm_networks"), f"case/{name}")
    with chdir(tmp_path):
        official_file(Path("official.pkl"), config_of(case), weights_of(case))
        found, snapshot, printed = imported()
    assert_overrides_make_the_network(printed, snapshot, root)
    x, sigma, labels, augment = (torch.from_numpy(case[key]) if key in case else None
                                 for key in ("x", "sigma", "class_labels", "augment_labels"))
    wanted = torch.from_numpy(case["D_x_f64"])
    error = found(x, sigma, Condition(class_labels=labels), augment) - wanted
    assert error.abs().max() < 1e-5 * wanted.abs().max()


def test_imported_networks_draw(at):
    imported()
    draw = ["-cn=brainweb2d_edm", "sampling.network=out/snapshot.pt", "sampling.seeds=0-4", "sampling.outdir=drawn",
            "sampling.sampler.num_steps=2", "sampling.num_threads=1", "sampling.device=cpu", "sampling.nifti=true"]
    call(generate.main, *draw)
    samples = SamplesFile("drawn/samples.npz")
    images = samples.array("images")
    assert images.shape == (5, 3, 8, 8) and images.min() >= 0 and 100 < images.max() <= 255
    assert samples.array("classes").tolist() == [0, 1, 2, 3, 0]
    assert samples.meta.facts.channels == ("red", "green", "blue")
    assert Path("drawn/samples.png").is_file() and len(list(Path("drawn/nifti").iterdir())) == 5


# ---- three dimensions ----


def test_inflated_network_is_a_start_in_three_dimensions(at, net):
    sums = {}
    for mode in ("centre", "mean"):
        found, snapshot, printed = imported("--inflate", "3", "--inflate-mode", mode)
        assert snapshot.shape == (3, 8, 8, 8) and "3D network for 8x8x8, a start for training" in printed
        assert snapshot.config["imported"]["inflate_mode"] == mode
        assert found(torch.randn(1, 3, 8, 8, 8), torch.ones(1)).shape == (1, 3, 8, 8, 8)
        kernel = snapshot.weights["model.enc.level0_conv.weight"]
        sums[mode] = [kernel.sum(2), kernel[:, :, 1]]
    flat = net.state_dict()["model.enc.level0_conv.weight"]
    for (total, middle), share in zip(sums.values(), (1, 1 / 3)):
        torch.testing.assert_close(total, flat)
        torch.testing.assert_close(middle, flat * share)


def test_kernels_are_inflated_at_the_centre_unless_told_otherwise(at):
    assert imported("--inflate", "3")[1].config["imported"]["inflate_mode"] == "centre"


def test_the_same_again_is_there_and_others_give_way_on_request_alone(at):
    words = ["import-edm", "official.pkl", "--dest", "again.pt"]
    call(dataset_tool.main, *words)
    before = Path("again.pt").stat().st_mtime_ns
    assert "again.pt: made of this file in this way, there already" in call(dataset_tool.main, *words)
    assert Path("again.pt").stat().st_mtime_ns == before
    assert "is there already; choose another, or --overwrite it" in refused(at, *words[1:], "--inflate", "3")
    Path("own.pt").write_text("mine")
    assert "nothing of another kind is overwritten" in refused(at, "official.pkl", "--dest", "own.pt", "--overwrite")
    Path("link.pt").symlink_to("there/new.pt")  # which is not there
    call(dataset_tool.main, *words[:3], "link.pt")
    assert Path("link.pt").is_symlink() and Snapshot.read(Path("there/new.pt")).shape == (3, 8, 8)


# ---- bad input ----


def test_options_that_do_not_go_together(at):
    assert "--inflate 3" in refused(at, "official.pkl", "--dest", "out.pt", "--inflate-mode", "mean", code=2)
    assert "'4' is not '3'" in refused(at, "official.pkl", "--dest", "out.pt", "--inflate", "4", code=2)
    before = Path("official.pkl").read_bytes()
    assert "the pickle itself" in refused(at, "official.pkl", "--dest", "./official.pkl")
    assert Path("official.pkl").read_bytes() == before
    assert "--dest . is a folder; wanted the file to write" in refused(at, "official.pkl", "--dest", ".")
    assert "a folder, wanted a file" in refused(at, ".", "--dest", "out.pt")
    assert "no such file" in refused(at, "absent.pkl", "--dest", "out.pt")


BAD_CONFIGS = {
    "class": ({**CONFIG, "class_name": "StyleGAN"}, "class_name='StyleGAN': wanted one of EDMPrecond"),
    "model_type": (changed(model_type="DiT"), "model_type='DiT': wanted one of"),
    "model_type of another kind": (changed(model_type=["DhariwalUNet"]), "model_type"),
    "argument": (changed(patch_size=2), "no such arguments: patch_size"),
    "kind of argument": (changed(channel_mult="12"), "channel_mult='12': wanted"),
    "part of a size": (changed(img_resolution=8.5), "img_resolution"),
    "width": (changed(model_channels=16), "of another shape: "),
    "blocks": (changed(num_blocks=2), "missing: "),
    "endless blocks": (changed(num_blocks=60_000), "num_blocks=60000 on 2 levels do not go with"),
    "endless blocks on usual levels": (changed("channel_mult", num_blocks=4000), "num_blocks=4000 on 4 levels do not"),
    "usual blocks on endless levels": (changed("num_blocks", channel_mult=[1] * 500), "num_blocks=3 on 500 levels do"),
    "argument and blocks": (changed(num_blocks=60_000, patch_size=2), "no such arguments: patch_size"),
    "endless sizes": (changed(model_channels=2 ** 40), "model_channels is a whole number beyond 65536"),
    "classes": (changed(label_dim=0), "left over: model.map_label.weight"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_configurations_that_do_not_fit_the_weights(tmp_path, weights, what):
    config, wanted = BAD_CONFIGS[what]
    path = official_file(tmp_path / "official.pkl", config, weights)
    printed = refused(tmp_path, path, "--dest", tmp_path / "out.pt")
    assert printed.startswith(f"Error: {path}: ") and wanted in printed


def test_weights_must_be_finite(tmp_path, weights):
    diverged = {**weights, "model.out_conv.bias": torch.tensor([1, 2, np.nan])}
    path = official_file(tmp_path / "official.pkl", CONFIG, diverged)
    assert "model.out_conv.bias has values that are not fin" in refused(tmp_path, path, "--dest", tmp_path / "out.pt")


def test_networks_for_other_image_sizes_do_not_pass(tmp_path, weights):
    """A size that the levels do not divide."""
    odd = {name.replace("8x8", "9x9"): weight for name, weight in weights.items()}
    path = official_file(tmp_path / "official.pkl", changed(img_resolution=9), odd)
    assert "(9, 9) must divide by (2, 2)" in refused(tmp_path, path, "--dest", tmp_path / "out.pt")


def test_a_pickle_that_asks_for_code_runs_nothing_and_leaves_nothing(tmp_path, weights):
    network = official_module(CONFIG, weights)
    network._modules["model"].__dict__["note"] = Asks(Path(tmp_path / "marker").touch)
    path = tmp_path / "official.pkl"
    path.write_bytes(official_bytes({"ema": network}))
    assert "asks for builtins.getattr;" in refused(tmp_path, path, "--dest", tmp_path / "out.pt")


def test_a_snapshot_given_as_pickle_is_called_what_it_is(at):
    checkpoint.save(Path("other.pt"), "snapshot", {"ema": {"weight": torch.ones(1)}})
    assert "a torch file" in refused(at, "other.pt", "--dest", "out.pt")
