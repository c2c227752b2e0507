"""A stranger's latents or autoencoder cannot run code in training, unless one says that the file is trusted."""

from contextlib import chdir
from pathlib import Path

import pytest
import torch

import dataset_tool
import train
from edm3d.formats.latents import FirstStageRecord, LatentsFile, write_latents
from edm3d.inference.snapshot import network_hash
from edm3d.utils import checkpoint
from edm3d.utils.config import build_from_file
from edm3d.utils.config_hash import config_hash
from tests.commands import call, refused, succeed
from tests.test_encode import TINY, encoded, write_snapshot, write_volumes

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
def test_a_user_may_trust_a_file(at, arguments):
    """The code then runs: what refused it was the list, and nothing else on the way."""
    call(train.main, *arguments, TRUST)
    assert Path(PROOF).exists()


@pytest.mark.parametrize("scaling", [f"${{oc.create:{{_target_: os.mkdir, path: {PROOF}}}}}", "${oc.env:HOME}"])
def test_how_latents_are_scaled_is_a_word_and_no_program(at, scaling):
    good = LatentsFile(Path("lat.h5"))
    write_latents(Path("scaled.h5"), {s: good.read(s) for s in good.splits}, good.first_stage(), good.facts,
                  {"kind": "test"}, scaling=scaling)
    line = refused(at, train.main, *TINY, "training.dataset.path=scaled.h5", "training.options.min_psnr=null")
    assert "training.batch_transform: holds ${...}" in line and not Path(PROOF).exists()
    assert str(Path.home()) not in line


def test_trust_is_no_part_of_what_is_computed():
    options = {"seed": 0, "trust": False}
    assert config_hash({"options": options}) == config_hash({"options": {**options, "trust": True}}) == config_hash(
        {"options": {"seed": 0}})


def test_every_way_to_trust_is_named():
    with pytest.raises(ValueError, match=r"training\.options\.trust=true, sampling\.trust=true or --trust"):
        build_from_file(EVIL, "net.pt")
