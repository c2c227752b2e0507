"""check and info: every kind of file is reported, what is wrong is named, and the next file is looked at."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
from edm3d.formats import h5
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.npz import is_odd
from edm3d.inference.check import check
from edm3d.inference.network_files import network_hash
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.utils.config import build
from edm3d.utils.config_hash import config_hash
from tests.commands import call, succeed
from tests.test_corruption import write_latents_file
from tests.test_hostile_networks import NODE, STAGE
from tests.toy import trained

TRAINING = {"options": {"seed": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder with a snapshot that carries a first stage and a state; what was published of it; other files."""
    folder = tmp_path_factory.mktemp("all")
    run, facts = folder / "00000-exp", Facts("x.h5", "ab", ("echo",), spatial_shape=(8, 8))
    trained(run)
    for path in run.glob("network-*"):
        path.unlink()
    stage = Snapshot("autoencoder", STAGE, facts, (1, 8, 8), weights=build(STAGE).state_dict())
    carried = CarriedStage.from_record(stage.record, LatentScaling([0.0, 1.0], [1.0, 2.0]))
    Snapshot("diffusion", NODE, facts, (2, 4, 4), carried, build(NODE).state_dict()).save(
        run / "network-snapshot-000000.pt")
    (run / "config.yaml").write_text(json.dumps({"training": TRAINING}))
    status = {"experiment": "exp", "config_hash": config_hash(TRAINING), "status": "done"}
    (run / "status.json").write_text(json.dumps(status))
    succeed(dataset_tool.main, "publish", str(run), "--dest", str(folder / "hub"), "--licence", "x")
    (folder / "parts/ab").mkdir(parents=True)
    np.savez(folder / "parts/ab/0000000001.npz", mean=np.zeros(2), dice=np.array([np.nan]))
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / "picture.png")
    np.save(folder / "label.npy", np.ones((3, 3, 3), np.uint8))
    return folder


def test_every_kind_of_file_is_reported_with_what_was_verified(folder):
    said = succeed(dataset_tool.main, "check", str(folder))
    run = folder / "00000-exp"
    for path, words in {
        run / "network-snapshot-000000.pt": "just those of the network networks.precond.EDMPrecond and of the first",
        run / "training-state-000000.240.pt": "training state at 0.24 kimg, weights of diffusion",
        run / "status.json": "status of a run, done", run / "stats.jsonl": "4 ticks",
        run / "config.yaml": "YAML, 1 keys",
        folder / "hub": "snapshot of task diffusion", folder / "parts/ab/0000000001.npz": "a finished item, 2 arrays",
        folder / "picture.png": "5x4 L", folder / "label.npy": "labels [1]",
    }.items():  # fmt: skip
        assert any(line.startswith(f"{path}: ") and words in line for line in said.splitlines()), path
    assert "10 files, 0 bad" in said and "verified: the checksum over all" in said


def test_info_prints_what_any_of_them_holds(folder):
    for path in (folder, *folder.rglob("*")):
        result = call(dataset_tool.main, "info", str(path))
        assert isinstance(result.exception, SystemExit | None), path
        known = path.suffix not in (".txt", ".md", ".lock", "") and "tfevents" not in path.name
        assert result.exit_code == 0 or not known, result.output
    assert "1 of training-state-*.pt, the last: training-state-000000.240.pt" in succeed(
        dataset_tool.main, "info", str(folder / "00000-exp"))


def test_what_is_wrong_is_named_and_the_next_file_is_looked_at(folder, tmp_path):
    whole = (folder / "00000-exp/network-snapshot-000000.pt").read_bytes()
    texts = {"a.json": b"[" * 100_000, "b.yaml": b"- 1", "c.pt": whole[:-9], "d.pkl": b"\x80\x04N.",
             "e.png": b"\x89PNG", "f.npy": b"\x93NUMPY", "g.h5": b"x", "h.nii": b"x", "i.npz": b"PK",
             "status.json": b"{}",
             "stats.jsonl": b'[1]\n{"kimg": 1}\n', "j\x1b[31m.npy": b"x"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    np.save(tmp_path / "empty.npy", np.zeros((0, 3, 3), int))
    (tmp_path / "folder.h5").mkdir()
    result = call(dataset_tool.main, "check", str(tmp_path))
    assert result.exit_code == 1 and "Traceback" not in result.output and "\x1b" not in result.output
    assert f"{len(texts) + 1} files, {len(texts) + 1} bad" in result.output
    for name in [*texts, "empty.npy"]:
        assert f"BAD {tmp_path / name}".replace("\x1b", "\\x1b") in result.output, name
    for name in texts:
        assert call(dataset_tool.main, "info", str(tmp_path / name)).exit_code in (0, 1)


def test_a_status_is_held_against_the_configuration_beside_it(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"training": TRAINING}))
    (tmp_path / "status.json").write_text(json.dumps({"experiment": "a", "config_hash": "0", "status": "done"}))
    assert check(tmp_path / "status.json").problems == [
        f"{tmp_path}/status.json: config_hash is 0, that of config.yaml beside it is {config_hash(TRAINING)}"]


def test_the_first_stage_in_a_file_of_latents_is_looked_at(tmp_path):
    write_latents_file(tmp_path / "latents.h5")  # of a class that no file may name, under a hash that is not its own
    for change, said in ((None, "first stage does not match its own hash"), (network_hash, "is not on the list")):
        with h5py.File(tmp_path / "latents.h5", "r+") as file:
            stage = file["first_stage"]
            weights = {name: torch.from_numpy(stage[name][()]) for name in stage}
            if change:
                h5.put_text(stage, "hash", change(h5.get_json(stage, "network"), weights))
            h5.seal(file)
        assert [said in problem for problem in check(tmp_path / "latents.h5").problems] == [True]


def test_one_rule_says_in_which_arrays_a_value_may_be_missing():
    nan, inf = np.array([1.0, np.nan]), np.array([np.inf])
    assert not is_odd("dice", nan) and is_odd("dice", inf) and is_odd("mean", nan)
    assert not is_odd("psnr", inf) and is_odd("psnr", -inf) and is_odd("psnr", nan)
    assert not is_odd("mean", np.array([1.0])) and not is_odd("classes", np.array([1]))


def test_a_class_of_ones_own_is_looked_at_where_the_file_is_trusted(folder, tmp_path, monkeypatch):
    (tmp_path / "mynet_check.py").write_text("import torch\n\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "mynet_check.Net", "in_features": 2, "out_features": 3}
    weights = torch.nn.Linear(2, 3).state_dict()
    Snapshot("diffusion", node, Facts("", ""), (1, 2), weights=weights).save(tmp_path / "own.pt")
    assert "--trust" in check(tmp_path / "own.pt").problems[0]
    assert "just those of the network mynet_check.Net" in check(tmp_path / "own.pt", trust=True).lines[0]
