"""Files of an earlier day: they load, and what was begun then ends as it ended then.

tests/data/frozen is the folder in which these commands ran (once; no code writes it), less logs and what is as large,
its tensors xz-packed:

    python dataset_tool.py phantom --dest data/volumes.h5 --num 8 --size 16 --spatial-dims 2 --pairs --split 0.75 0.25 0
    python train.py VAE
    python dataset_tool.py encode --autoencoder echo_vae --source data/volumes.h5 --dest data/latents.h5 --num-threads 1
    python train.py EDM                              # SIGTERM in the fifth of its ten steps
    python train.py VQ                               # in the fourth
    python generate.py DRAW sampling.outdir=results/h5
    python generate.py DRAW sampling.outdir=results/npz sampling.format=npz
    python dataset_tool.py decode --latents data/latents.h5 --dest data/decoded.h5 --autoencoder echo_vae --montage 0 \
        --num-threads 1
    python evaluate.py --real data/volumes.h5 --generated results/h5/samples.h5 --dest results/report --split all \
        --num-noise 2

with VAE, EDM, VQ and DRAW as below, and one torch thread. expected.json has what the readers gave of these files (see
contents_of), and the ticks of EDM and VQ, and the hash of what they learned, at their ends, which they reached by
resume=latest and without a stop alike; and the metrics of the report. expected.npz has the averages at those ends.
VQ's decoder adds up in another order since layers.RepeatConv, and ends within rounding of where it ended then.
"""

import hashlib
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.latents import LatentsFile
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.utils import checkpoint
from edm3d.utils.config import read_yaml
from edm3d.utils.config_hash import config_hash
from tests.commands import succeed
from tests.toy import learned, ticks

FROZEN = Path(__file__).parent / "data/frozen"
EXPECTED = json.loads((FROZEN / "expected.json").read_text(encoding="utf-8"))
OPTIONS = ["training.options.batch_size=4", "training.options.total_kimg=0.04", "training.options.kimg_per_tick=0.012",
           "training.options.lr_rampup_kimg=0.008", "training.options.state_ticks=null",
           "training.options.min_psnr=null", "training.options.num_threads=1", "training.options.device=cpu",
           "training.options.precision=fp32", "training.validation.max_items=2", "training.validation.every_ticks=1",
           "training.validation.preview_ticks=null"]
VAE = ["-cn=echo_vae", "training.dataset.path=data/volumes.h5", "training.network.channels=[4,8]", *OPTIONS]
EDM = ["-cn=echo_edm", "training.dataset.path=data/latents.h5", "training.network.model.model_channels=4",
       "training.network.model.channel_mult=[1,1]", "training.network.model.channel_mult_emb=1",
       "training.network.model.attention_levels=[]", "training.network.model.dropout=0.1",
       "training.network.model.label_dim=2", "training.network.label_dropout=0.1",
       "training.options.ema_halflife_kimg=[0.01,0.05]", "training.options.snapshot_ticks=1", *OPTIONS]
VQ = ["-cn=echo_vae", "autoencoder=vq", "discriminator=patch", "training.dataset.path=data/volumes.h5",
      "training.network.channels=[4,4]", "training.network.codebook_size=16",
      "training.discriminator.network.channels=4", "training.discriminator.network.num_layers_d=1",
      "training.options.run_root=results/vq", *OPTIONS]
DRAW = ["-cn=echo_edm", "sampling.seeds=0-2", "sampling.sampler.num_steps=4", "sampling.nifti=false",
        "sampling.montage=0", "sampling.num_threads=1", "sampling.device=cpu"]
RUNS = {"edm": (EDM, Path("results/00001-echo_edm")), "vq": (VQ, Path("results/vq/00000-echo_vae"))}
VAE_SNAPSHOT = Path("results/00000-echo_vae/network-snapshot-000000.040.pt")
EDM_SNAPSHOT = Path("results/00001-echo_edm/network-snapshot-000000.012.pt")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Work in a copy of the frozen folder, with its files unpacked."""
    shutil.copytree(FROZEN, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def digest(array: np.ndarray | None) -> str | None:
    """Type, shape and hash of an array's values."""
    if array is None:
        return None
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def of_volumes(path: Path) -> dict:
    """What the reader gives of a volumes file."""
    volumes, splits = VolumesFile(path), {}
    for split in volumes.splits:
        items = [volumes.read(split, i) for i in range(volumes.length(split))]
        splits[split] = {
            "ids": volumes.ids(split), "groups": volumes.groups(split), "classes": [i.class_index for i in items],
            "affines": digest(volumes.affines(split)), "attributes": digest(volumes.table(split, "attributes")),
            "images": digest(np.stack([i.image for i in items])), "labels": digest(np.stack([i.label for i in items]))}
    meta = volumes.meta
    return {"channels": list(meta.channels), "label_classes": list(meta.label_classes),
            "class_names": list(meta.class_names), "splits": splits}


def of_latents(path: Path) -> dict:
    """What the reader gives of a latents file."""
    latents, splits = LatentsFile(path), {}
    for split in ("train", "val"):
        encoded = latents.read(split)
        splits[split] = {"ids": list(encoded.ids), "groups": list(encoded.groups),
                         **{k: digest(getattr(encoded, k)) for k in ("mean", "std", "affines", "boxes")},
                         **{k: digest(encoded.tables.get(k)) for k in ("classes", "attributes")}}
    return {"splits": splits}


def of_samples(path: Path) -> dict:
    """What the reader gives of a samples file."""
    samples = SamplesFile(path)
    return {"seeds": samples.seeds.tolist(), "affine": samples.affine.tolist(), "meta": samples.meta.plain(),
            "arrays": {name: digest(samples.array(name)) for name in sorted(samples.names)}}


def of_snapshot(path: Path, task: str) -> dict:
    """What the reader gives of a snapshot, its configuration aside."""
    snapshot, held = Snapshot.read(path, task), checkpoint.load(path, "snapshot").content
    net, stage = snapshot.build(), snapshot.first_stage and snapshot.first_stage.plain()
    return {"weights": {name: digest(w.numpy()) for name, w in sorted(net.state_dict().items())},
            "classes": [type(m).__name__ for m in (net, getattr(net, "model", None))], "nimg": snapshot.nimg,
            "data": snapshot.facts.plain(), "ema_halflife_kimg": held["ema_halflife_kimg"],
            "first_stage": {k: v for k, v in stage.items() if k not in ("weights", "network")} if stage else None}


def contents_of() -> dict:
    """What the readers give of every frozen file, in plain data, arrays by their hashes."""
    return {"volumes": of_volumes(Path("data/volumes.h5")), "decoded": of_volumes(Path("data/decoded.h5")),
            "latents": of_latents(Path("data/latents.h5")), "samples.h5": of_samples(Path("results/h5/samples.h5")),
            "samples.npz": of_samples(Path("results/npz/samples.npz")),
            "vae": of_snapshot(VAE_SNAPSHOT, "autoencoder"), "edm": of_snapshot(EDM_SNAPSHOT, "diffusion")}


def average(state: TrainingState) -> np.ndarray:
    """All weights of a state's main average in one vector, in the order of their names."""
    return np.concatenate([state.ema[name].numpy().reshape(-1) for name in sorted(state.ema)])


def assert_close(now: object, frozen: object, path: str = "") -> None:
    """Two trees of plain data are the same, numbers up to rounding."""
    if isinstance(frozen, dict):
        assert isinstance(now, dict) and sorted(now) == sorted(frozen), path
        for key in frozen:
            assert_close(now[key], frozen[key], f"{path}.{key}")
    elif isinstance(frozen, list):
        assert isinstance(now, list) and len(now) == len(frozen), path
        for i, (a, b) in enumerate(zip(now, frozen)):
            assert_close(a, b, f"{path}[{i}]")
    elif isinstance(frozen, float):
        assert now == pytest.approx(frozen, rel=1e-3, abs=1e-6), path
    else:
        assert now == frozen, path


def same_drawn(now: SamplesFile, then: SamplesFile) -> None:
    """Two samples files hold the same samples, up to rounding."""
    assert now.seeds.tolist() == then.seeds.tolist() == [0, 1, 2]
    assert now.array("classes").tolist() == then.array("classes").tolist() == [0, 1, 0]
    np.testing.assert_allclose(now.array("latents"), then.array("latents"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(now.array("images"), then.array("images"), rtol=0, atol=1e-5)
    assert (now.array("labels") == then.array("labels")).mean() > 0.998
    assert now.names == then.names


def same_volumes(now: VolumesFile, then: VolumesFile) -> None:
    """Two volumes files hold the same items, up to rounding."""
    assert list(now.splits) == list(then.splits)
    for split in then.splits:
        assert now.ids(split) == then.ids(split)
        for i in range(then.length(split)):
            a, b = now.read(split, i), then.read(split, i)
            np.testing.assert_allclose(a.image, b.image, rtol=0, atol=1e-5)
            assert (a.label == b.label).mean() > 0.99 and a.class_index == b.class_index
            np.testing.assert_array_equal(a.affine, b.affine)
            assert (a.attributes is None) == (b.attributes is None)
            if b.attributes is not None:
                np.testing.assert_allclose(a.attributes, b.attributes, rtol=1e-5)


# ---- reading ----


@pytest.mark.parametrize("name", sorted(EXPECTED["contents"]))
def test_readers_give_what_they_gave(folder, name):
    assert json.loads(json.dumps(contents_of()[name])) == EXPECTED["contents"][name]


def test_values_of_the_files_are_those_seen_then(folder):
    """A few numbers in plain sight, by which a fault in the hashes themselves would show."""
    volumes, latents = VolumesFile("data/volumes.h5"), LatentsFile(Path("data/latents.h5"))
    assert [volumes.length(s) for s in ("train", "val")] == [6, 2]
    assert list(volumes.meta.class_names) == ["ED", "ES"]
    assert latents.read("train").mean.shape == (6, 4, 8, 8)
    for name in ("h5", "npz"):
        samples = SamplesFile(f"results/{name}/samples.{name}")
        assert samples.row("images", 2).shape == (1, 16, 16) and samples.row("labels", 2).shape == (16, 16)
        assert samples.array("images").dtype == np.float32 and samples.array("labels").dtype == np.uint8


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_and_state_are_of_the_configuration_of_their_command(folder, name):
    run = RUNS[name][1]
    status = json.loads((run / "status.json").read_text())
    state = TrainingState.read(run / status["state"])
    assert status["status"] == "requeue" and status["nimg"] == state.nimg in (16, 20)
    assert status["config_hash"] == config_hash(read_yaml(run / "config.yaml")["training"])
    assert status["config_hash"] == config_hash(state.config["training"])


# ---- going on ----


@pytest.mark.parametrize("name", RUNS)
def test_training_goes_on_and_ends_where_it_ended(folder, name):
    """EDM in the same bits on the processor, torch and threads of the state; else within rounding.

    That is 1e-4 of a weight or 1e-5: by other instruction sets of one processor it was 2e-7.
    """
    command, run = RUNS[name]
    begun = TrainingState.read(max(run.glob("training-state-*.pt")))
    before = sorted(p.name for p in run.parent.iterdir())
    said = succeed(train.main, *command, "training.options.resume=latest")
    assert "Resumed from" in said and "passed over" not in said
    assert sorted(p.name for p in run.parent.iterdir()) == before
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    end = TrainingState.read(run / "training-state-000000.040.pt")
    with np.load(FROZEN / "expected.npz") as archive:
        wanted = archive[name]
    assert np.abs(wanted - average(begun)).max() > 1e-3  # so much was learned since
    np.testing.assert_allclose(average(end), wanted, rtol=1e-4, atol=1e-5)
    later = {"lr", "lr/net", "lr/discriminator"}  # is written since
    assert_close([{k: v for k, v in tick.items() if k not in later} for tick in ticks(run)], EXPECTED["ticks"][name])
    if name == "edm" and all(begun.environment[k] == end.environment[k] for k in ("processor", "torch", "threads")):
        assert learned(end) == EXPECTED["learned"][name]
        np.testing.assert_array_equal(average(end), wanted)


# ---- drawing, encoding, decoding, measuring ----


@pytest.mark.parametrize("form", ["h5", "npz"])
def test_seeds_give_their_samples_again(folder, form):
    said = succeed(generate.main, *DRAW, "sampling.outdir=results/new", f"sampling.format={form}")
    assert "3 asked for, 0 there already" in said and str(EDM_SNAPSHOT) in said
    same_drawn(SamplesFile(f"results/new/samples.{form}"), SamplesFile(f"results/{form}/samples.{form}"))


@pytest.mark.parametrize("form", ["h5", "npz"])
def test_samples_of_then_are_there_already(folder, form):
    path = Path(f"results/{form}/samples.{form}")
    before = path.read_bytes()
    draw = [*DRAW, f"sampling.outdir=results/{form}", f"sampling.format={form}"]
    assert "3 asked for, 3 there already" in succeed(generate.main, *draw)
    assert path.read_bytes() == before
    more = [*draw, "sampling.seeds=1-3"]
    assert "3 asked for, 2 there already" in succeed(generate.main, *more)
    assert SamplesFile(path).seeds.tolist() == [0, 1, 2, 3]


def test_first_stage_in_the_snapshot_decodes_the_samples_to_their_images(folder):
    samples = SamplesFile("results/h5/samples.h5")
    image, label = Snapshot.read(EDM_SNAPSHOT).open_first_stage().decode(torch.from_numpy(samples.array("latents")))
    np.testing.assert_allclose(image.numpy(), samples.array("images"), rtol=0, atol=1e-5)
    assert (label.numpy() == samples.array("labels")).mean() > 0.998


def test_samples_decode_to_their_images(folder):
    succeed(dataset_tool.main, "decode", "--latents", "results/npz/samples.npz", "--dest", "drawn.h5", "--montage", "0",
            "--num-threads", "1")
    drawn, samples = VolumesFile("drawn.h5"), SamplesFile("results/npz/samples.npz")
    split, = drawn.splits
    items = [drawn.read(split, i) for i in range(3)]
    np.testing.assert_allclose(np.stack([i.image for i in items]), samples.array("images"), rtol=0, atol=1e-5)
    assert (np.stack([i.label for i in items]) == samples.array("labels")).mean() > 0.998
    assert [i.class_index for i in items] == [0, 1, 0]


def test_latents_decode_to_the_volumes_of_then(folder):
    decode = ["decode", "--latents", "data/latents.h5", "--autoencoder", "echo_vae", "--montage", "0",
              "--num-threads", "1", "--dest"]
    succeed(dataset_tool.main, *decode, "new.h5")
    same_volumes(VolumesFile("new.h5"), VolumesFile("data/decoded.h5"))
    assert "all 8 there already" in succeed(dataset_tool.main, *decode, "data/decoded.h5")


def test_volumes_encode_to_the_latents_of_then(folder):
    succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/volumes.h5", "--dest", "new.h5",
            "--num-threads", "1")
    now, then = LatentsFile(Path("new.h5")), LatentsFile(Path("data/latents.h5"))
    for split in ("train", "val"):
        a, b = now.read(split), then.read(split)
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a.std, b.std, rtol=1e-5, atol=1e-5)
        assert a.ids == b.ids and a.tables["classes"].tolist() == b.tables["classes"].tolist()


def test_phantoms_are_those_of_then(folder):
    succeed(dataset_tool.main, "phantom", "--dest", "new.h5", "--num", "8", "--size", "16", "--spatial-dims", "2",
            "--pairs", "--split", "0.75", "0.25", "0")
    same_volumes(VolumesFile("new.h5"), VolumesFile("data/volumes.h5"))


def test_report_measures_what_it_measured(folder):
    succeed(evaluate.main, "--real", "data/volumes.h5", "--generated", "results/h5/samples.h5", "--dest", "report",
            "--split", "all", "--num-noise", "2")
    metrics = json.loads(Path("report/report.json").read_text())["metrics"]
    assert_close({name: metrics[name] for name in EXPECTED["metrics"]}, EXPECTED["metrics"])  # more may stand beside
