"""Decoding latents made earlier or elsewhere: ours and DIFF-3's, once, and by no other first stage than their own."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
import generate
import train
from edm3d.formats.diff3 import read_samples
from edm3d.formats.facts import LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile
from edm3d.formats.sample_meta import SampleMeta, SampleStage
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import decode
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.latent_source import open_source
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.latent_codec import shift_and_gain
from edm3d.training.datasets.latents import LatentsDataset
from tests.commands import call, refused, succeed
from tests.test_encode import AFFINE, NODE, SIZE, TINY, write_snapshot, write_volumes
from tests.test_locks import DEAD, hold
from tests.test_samples import zero_row

ROOT = Path(__file__).resolve().parents[1]
SCALING = LatentScaling([1.0, -1.0], [2.0, 0.5], [-4.0, 6.0], "minmax", 0.5)
LATENT = (2, 4, 6, 2)


def write_drawn(folder: Path, named: bool = True) -> np.ndarray:
    """A snapshot that drew two samples, and the samples file, with what decoding needs if `named`; their latents z."""
    stage = Snapshot.read(folder / "stage.pt")
    Snapshot("diffusion", {}, stage.facts, LATENT, CarriedStage.from_record(stage.record, SCALING)).save(
        folder / "drew.pt")
    x = np.random.default_rng(0).standard_normal((2, *LATENT)).astype(np.float32)
    write_samples(folder / ("drawn.h5" if named else "old.h5"), [3, 8], {"latents": x, "classes": np.array([1, 0])},
                  AFFINE, SampleMeta(stage.facts, "drew.pt", "ab" * 32, {},
                                     SampleStage(stage.network_hash, SCALING) if named else None))
    shift, gain = (np.array(t, np.float32).reshape(2, 1, 1, 1) for t in shift_and_gain(*SCALING))
    return x / gain + shift


def write_diff3(folder: Path) -> dict[str, np.ndarray]:
    """latent.h5 and _samples.h5 as DIFF-3 writes them."""
    random = np.random.default_rng(1)
    arrays = {"mean": random.standard_normal((4, *LATENT)).astype(np.float32),
              "std": random.random((4, *LATENT)).astype(np.float32), "samples": random.random((3, *LATENT), np.float32)}
    lo, hi = arrays["mean"] - 3 * arrays["std"], arrays["mean"] + 3 * arrays["std"]
    with h5py.File(folder / "latent.h5", "w") as file:
        for subset, rows in (("train", slice(0, 3)), ("val", slice(3, 4))):
            for name, array in (("mean", arrays["mean"]), ("std", arrays["std"]),
                                ("min", lo.min((1, 2, 3, 4))), ("max", hi.max((1, 2, 3, 4)))):
                file.create_dataset(f"{subset}/{name}", data=array[rows], maxshape=(None, *array.shape[1:]))
    with h5py.File(folder / "_samples.h5", "w") as file:
        file.create_dataset("samples", data=arrays["samples"], compression="gzip", maxshape=(None, *LATENT))
        for name, value in (("min", np.float32(-5)), ("max", np.float32(7)), ("model_id", np.uint8(50))):
            file.create_dataset(name, data=[value], maxshape=(None,))
    return arrays


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with volumes, two first stages, latents and samples of all kinds."""
    folder = tmp_path_factory.mktemp("decode")
    with chdir(folder):
        write_volumes(Path("vols.h5"))
        write_snapshot(Path("stage.pt"), Path("vols.h5"))
        write_snapshot(Path("other.pt"), Path("vols.h5"), seed=1)
        succeed(dataset_tool.main, "encode", "--autoencoder", "stage.pt", "--source", "vols.h5", "--dest", "lat.h5",
                "--num-threads", "1", "--round-trip", "0")
        np.save("z.npy", write_drawn(Path()))
        write_drawn(Path(), named=False)
        np.savez("diff3.npz", **write_diff3(Path()))
    return folder


@pytest.fixture
def at(place: Path):
    """Work in that folder."""
    with chdir(place):
        yield place


def decoded(latents: str, dest: str, *options: str) -> str:
    """Decode; what the command said."""
    return succeed(dataset_tool.main, "decode", "--latents", latents, "--dest", dest, "--num-threads", "1", *options)


def by_hand(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images in stored units and label maps of latents as the first stage gives them."""
    with torch.no_grad():
        image, logits = Snapshot.read(Path("stage.pt")).build().decode(torch.from_numpy(z))
    return (image.numpy() + 1).clip(0, 2), logits.argmax(1).numpy()


# ---- ours ----


@pytest.mark.parametrize("options", [[], ["--autoencoder", "stage.pt"], ["--network", "drew.pt"]])
@pytest.mark.parametrize("source", ["drawn.h5", "old.h5"])
def test_samples_become_volumes_of_their_ids_and_geometry(at, source, options, tmp_path):
    assert "cannot be checked" not in decoded(source, str(tmp_path / "out.h5"), *options)
    file = VolumesFile(tmp_path / "out.h5")
    images, labels = by_hand(np.load("z.npy"))
    assert file.splits == ["generated"] and file.ids("generated") == ["seed000003", "seed000008"]
    for i in range(2):
        item = file.read("generated", i)
        np.testing.assert_allclose(item.image, images[i], atol=1e-4)
        assert (item.label == labels[i]).mean() > 0.99
        np.testing.assert_array_equal(item.affine, AFFINE)
        assert item.class_index == (1, 0)[i]
    assert file.meta.intensity == VolumesFile("vols.h5").meta.intensity


def test_what_samples_were_asked_for_goes_along(at, tmp_path):
    own = np.stack([AFFINE, AFFINE * np.array([2, 2, 2, 1])])
    file, rng = SamplesFile("drawn.h5"), np.random.default_rng(0)
    size = by_hand(np.load("z.npy"))[1].shape[1:]
    meta = file.meta._replace(facts=replace(file.meta.facts, map_classes=("out", "in"), condition_channels=("low",)),
                              sampling={"conditions": {"source": "", "hash": "", "ids": ["a/b", "c"]}})
    arrays = {name: file.array(name) for name in file.names} | {
        "maps": rng.integers(2, size=(2, *size), dtype=np.uint8), "affines": own,
        "cond_images": rng.random((2, 1, *size), np.float32)}
    write_samples(tmp_path / "asked.h5", [3, 8], arrays, AFFINE, meta)
    for dest in ("out.h5", "out"):
        decoded(str(tmp_path / "asked.h5"), str(tmp_path / dest), "--autoencoder", "stage.pt")
    found = VolumesFile(tmp_path / "out.h5")
    assert found.meta.map_classes == ("out", "in") and found.meta.channel_roles[-1] == "condition"
    assert found.ids("generated") == meta.file_names([3, 8])
    for i, name in enumerate(found.ids("generated")):
        item = found.read("generated", i)
        np.testing.assert_array_equal(item.map, arrays["maps"][i])
        np.testing.assert_array_equal(item.image[-1], arrays["cond_images"][i, 0])
        np.testing.assert_array_equal(item.affine, own[i])
        for folder, wanted in (("maps", arrays["maps"][i]), ("conditions", arrays["cond_images"][i, 0])):
            np.testing.assert_array_equal(nibabel.load(tmp_path / f"out/{folder}/{name}.nii.gz").dataobj, wanted)
    write_samples(tmp_path / "odd.h5", [3, 8], arrays | {"maps": np.ones((2, 3, 3, 3), np.uint8),
                                                         "cond_images": np.ones((2, 1, 3, 3, 3), np.float32)},
                  AFFINE, meta)
    assert "wanted one grid" in refused(tmp_path, dataset_tool.main, "decode", "--latents", str(tmp_path / "odd.h5"),
                                        "--dest", str(tmp_path / "no.h5"), "--autoencoder", "stage.pt")


def test_latents_become_volumes_of_the_same_items(at):
    decoded("lat.h5", "again.h5", "--batch-size", "2")
    volumes, again, latents = VolumesFile("vols.h5"), VolumesFile("again.h5"), LatentsFile("lat.h5")
    for split in volumes.splits:
        assert again.ids(split) == volumes.ids(split) and again.groups(split) == volumes.groups(split)
        np.testing.assert_array_equal(again.table(split, "classes"), volumes.table(split, "classes"))
        images, _ = by_hand(latents.read(split).mean)
        np.testing.assert_allclose(again.read(split, 1).image, images[1], atol=1e-5)
        assert again.read(split, 0).box.tolist() == volumes.read(split, 0).box.tolist()


def test_bytes_span_the_intensity_range_and_a_picture_shows_them(at):
    """The range is 0 to 2, so a unit is 1/127.5."""
    decoded("drawn.h5", "bytes.h5", "--uint8")
    images, labels = by_hand(np.load("z.npy"))
    with h5py.File("bytes.h5") as file:
        stored = file["generated/images"]
        assert stored.dtype == "uint8" and stored.compression == "gzip" and stored.shape == images.shape
        np.testing.assert_allclose(stored[:], images * 127.5, atol=0.51)
        assert file["generated/labels"].dtype == "uint8"
    file = VolumesFile("bytes.h5")
    assert file.meta.intensity == Intensity(0, 255, True, "255ths of 0 to 2 a.u.")
    assert file.read("generated", 1).image.dtype == np.float32
    with Image.open("bytes.h5.png") as picture:
        assert picture.width > 100 and np.asarray(picture).std() > 10
    assert "another settings" in refused(at, dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", "bytes.h5")
    decoded("drawn.h5", "bare", "--uint8", "--montage", "0")
    assert nibabel.load("bare/images/seed000003.nii.gz").get_data_dtype() == np.uint8
    assert not list(Path("bare").glob("*.png"))


def test_a_folder_gets_nifti_and_a_second_run_adds_nothing(at):
    decoded("drawn.h5", "nifti")
    names = sorted(str(p.relative_to("nifti")) for p in Path("nifti").rglob("*.nii.gz"))
    assert names == [f"{kind}/seed00000{seed}.nii.gz" for kind in ("images", "labels") for seed in (3, 8)]
    found = nibabel.load("nifti/images/seed000008.nii.gz")
    np.testing.assert_allclose(found.affine, AFFINE)
    np.testing.assert_allclose(found.get_fdata(), by_hand(np.load("z.npy"))[0][1, 0], atol=1e-4)
    times = {p: p.stat().st_mtime_ns for p in Path("nifti").rglob("*")}
    assert "all 2 there already" in decoded("drawn.h5", "nifti")
    assert {p: p.stat().st_mtime_ns for p in Path("nifti").rglob("*")} == times


def test_a_second_run_never_doubles_rows(at):
    decoded("drawn.h5", "twice.h5")
    assert "all 2 there already" in decoded("drawn.h5", "twice.h5")
    said = refused(at, dataset_tool.main, "decode", "--latents", "lat.h5", "--dest", "twice.h5")
    assert "another latents_hash" in said and "--overwrite" in said
    decoded("lat.h5", "twice.h5", "--overwrite")
    assert VolumesFile("twice.h5").splits == ["train", "val"]


# ---- shared and stopped ----


def volumes_at(dest: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and label maps by id, of a volumes file or a folder."""
    if dest.endswith(".h5"):
        file = VolumesFile(dest)
        items = [file.read(split, i) for split in file.splits for i in range(file.length(split))]
        return {item.id: (item.image[0], item.label) for item in items}
    return {path.name.partition(".")[0]: tuple(np.asanyarray(nibabel.load(f"{dest}/{kind}/{path.name}").dataobj)
                                               for kind in ("images", "labels"))
            for path in Path(dest, "images").glob("[!.]*.nii.gz")}


def assert_same_volumes(dest: str, wanted: str) -> None:
    """Both hold the same volumes."""
    found, others = volumes_at(dest), volumes_at(wanted)
    assert found.keys() == others.keys()
    for name, (image, label) in found.items():
        np.testing.assert_allclose(image, others[name][0], atol=1e-5)
        assert (label == others[name][1]).mean() > 0.99


def count_decoded(monkeypatch) -> list[int]:
    """A list that grows by the number of volumes whenever some are decoded."""
    real, counts = FirstStage.decode, []
    monkeypatch.setattr(FirstStage, "decode",
                        lambda self, z, *maps: (counts.append(len(z)), real(self, z, *maps))[1])
    return counts


def decode_until_killed(dest: str, batches: int) -> None:
    """Decode in a process that is killed in the work on a batch."""
    real, done = FirstStage.decode, []

    def dying(self: FirstStage, z: torch.Tensor, *maps: torch.Tensor | None):
        done.append(len(z))
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, z, *maps)

    FirstStage.decode = dying
    decoded("lat.h5", dest)


@pytest.mark.parametrize("dest", ["killed.h5", "killed"])
def test_a_run_that_was_killed_goes_on_and_does_nothing_twice(at, monkeypatch, dest):
    process = multiprocessing.get_context("fork").Process(target=decode_until_killed, args=(dest, 5))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not Path(dest).is_file()
    start = f".tmp-{DEAD}-0123456789abcdef-"
    left = [Path("killed.h5.parts/other", f"{start}x.npz"), Path(f"{start}killed.h5.png")] if dest == "killed.h5" else \
        [Path("killed/images", f"{start}x.nii.gz")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if dest.endswith(".h5"):
        done = len(list(Path(f"{dest}.parts").glob("*/[0-9]*.npz")))
    else:
        images, labels = ({p.name for p in Path(dest, kind).glob("item*")} for kind in ("images", "labels"))
        done = len(images & labels)
    assert 3 <= done <= 4  # the last one may have been on its way to the disk
    counts = count_decoded(monkeypatch)
    assert f"{dest}: 8 volumes ({done} there already)" in decoded("lat.h5", dest)
    assert sum(counts) == 8 - done and not any(path.exists() for path in left)
    monkeypatch.undo()
    decoded("lat.h5", f"whole-{dest}")
    assert_same_volumes(dest, f"whole-{dest}")
    assert Path(f"{dest}.png" if dest.endswith(".h5") else f"{dest}/volumes.png").is_file()


@pytest.mark.parametrize("dest", ["ranks.h5", pytest.param("ranks", marks=pytest.mark.slow)])
def test_two_ranks_decode_what_one_does(at, dest):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "dataset_tool.py"), "decode", "--latents", "lat.h5", "--dest", dest, "--num-threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{dest}: 8 volumes") == done.stdout.count("Montage") == 1
    decoded("lat.h5", f"one-{dest}")
    assert_same_volumes(dest, f"one-{dest}")


def test_a_part_that_is_damaged_is_decoded_anew(at, monkeypatch):
    decode_some = count_decoded(monkeypatch)
    monkeypatch.setattr(decode, "write_volumes", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
    assert call(dataset_tool.main, "decode", "--latents", "lat.h5", "--dest", "parts.h5", "--num-threads",
                "1").exit_code == 1
    monkeypatch.undo()
    assert sum(decode_some) == 8
    parts = sorted(Path("parts.h5.parts").rglob("*.npz"))
    content = bytearray(parts[3].read_bytes())
    content[len(content) // 2] ^= 1
    parts[3].write_bytes(content)
    parts[5].write_bytes(parts[5].read_bytes()[:-1])
    counts = count_decoded(monkeypatch)
    assert "8 volumes (6 there already)" in decoded("lat.h5", "parts.h5") and sum(counts) == 2
    monkeypatch.undo()
    decoded("lat.h5", "undamaged.h5")
    assert_same_volumes("parts.h5", "undamaged.h5")


def test_files_of_a_folder_that_are_damaged_lost_or_foreign_are_decoded_anew(at, monkeypatch):
    decoded("lat.h5", "mended")
    first, second, *_ = sorted(Path("mended/images").iterdir())
    first.write_bytes(first.read_bytes()[:-10])
    Path("mended/labels", second.name).unlink()
    counts = count_decoded(monkeypatch)
    assert "8 volumes (6 there already)" in decoded("lat.h5", "mended") and sum(counts) == 2
    assert "all 8 there already" in decoded("lat.h5", "mended")
    first.write_bytes(b"of something else")
    said = decoded("lat.h5", "mended", "--precision", "auto", "--overwrite")  # the same names, other settings
    assert "there already" not in said and sum(counts) == 10
    decoded("lat.h5", "whole-mended")
    assert_same_volumes("mended", "whole-mended")


@pytest.mark.parametrize(("text", "words"), [
    ("{}", "kind is None, wanted 'decode'"), ("[]", "its content is a list"), ('{"kind": "decode"}', "missing"),
    ('{"files": {"../../x": {}}}', "sha256 missing"), ('{"settings": 3}', "settings is 3, wanted dict"),
    ('{"files": {"../../x": {"sha256": "%s"}}}' % ("0" * 64), "wanted a path below this folder"),
    ('{"files": {"x": {"sha256": "0"}}}', "no hash of 64 digits"), ('{"files": 1}', "files is 1"),
    ("[" * 100_000, "not readable as JSON")])
def test_a_record_that_is_damaged_or_was_edited_is_named(at, text, words):
    if not Path("edited").exists():
        decoded("drawn.h5", "edited", "--montage", "0")
        Path("whole.json").write_text(Path("edited/decode.json").read_text())
    if text.startswith('{"'):
        given = json.loads(text)
        text = json.dumps(given if "kind" in given else json.loads(Path("whole.json").read_text()) | given)
    Path("edited/decode.json").write_text(text)
    said = refused(at, dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", "edited")
    assert words in said and "--dest edited: edited/decode.json: " in said


def content_of(folder: str) -> dict[str, bytes]:
    """Every file below a folder but its record, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and path.name != "decode.json"}


@pytest.mark.parametrize("stop", [2, 7, 10, 12])
def test_wherever_a_folder_is_interrupted_a_second_run_ends_as_one_that_was_not(at, monkeypatch, stop):
    """Stopped before files appear: images and label maps, the picture, the record at the end."""
    if not Path("sound").exists():
        decoded("drawn.h5", "sound")
    real, count = os.replace, []

    def replace(old, new):
        count.append(new)
        if len(count) == stop:
            raise OSError("pulled the plug")
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    dest = f"stop-{stop}"
    assert call(dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", dest, "--num-threads",
                "1").exit_code == 1
    monkeypatch.undo()
    decoded("drawn.h5", dest)
    assert content_of(dest) == content_of("sound") and "all 2 there already" in decoded("drawn.h5", dest)


def test_what_was_decoded_before_goes_and_comes_back_under_no_other_settings(at, monkeypatch):
    """Eight volumes give way to two; stopped on the way, none of the eight passes for one of the two."""
    decoded("lat.h5", "less")
    changed = sorted(Path("less/images").iterdir())[0]
    changed.write_bytes(b"mine by now")
    Path("less/images/mine.nii.gz").write_bytes(b"mine")
    monkeypatch.setattr(decode, "decode_missing", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
    said = call(dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", "less", "--overwrite").output
    assert "16 files made of something else before are gone" in said and "changed since" in said and "pulled" in said
    monkeypatch.undo()
    assert content_of("less").keys() == {f"images/{changed.name}", "images/mine.nii.gz"}
    assert "8" not in decoded("drawn.h5", "less").split("volumes")[0][-4:]
    assert len(list(Path("less/labels").iterdir())) == 2 and changed.read_bytes() == b"mine by now"
    assert "another latents_hash" in refused(at, dataset_tool.main, "decode", "--latents", "lat.h5", "--dest", "less")


def test_the_same_latents_by_another_name_are_the_same(at):
    decoded("drawn.h5", "renamed")
    Path("link.h5").symlink_to("drawn.h5")
    assert "all 2 there already" in decoded("link.h5", "renamed")


def test_ids_that_are_no_names_get_others_and_the_record_has_both(at, monkeypatch):
    rows = open_source(Path("drawn.h5"))
    ids = ["../../up", "../../UP"]
    monkeypatch.setattr(decode, "open_source", lambda _: rows._replace(
        rows=[row._replace(id=id_) for row, id_ in zip(rows.rows, ids)]))
    said = decoded("drawn.h5", "named")
    assert "2 ids are no names of files" in said and "'../../up' as " in said
    entries = json.loads(Path("named/decode.json").read_text())["files"]
    assert {entry["id"] for name, entry in entries.items() if name.startswith("images/")} == set(ids)
    assert len({name.casefold() for name in entries}) == 5 and all(Path("named", name).is_file() for name in entries)


def test_a_folder_of_yesterday_whose_record_lists_nothing_is_decoded_anew(at, monkeypatch):
    decoded("drawn.h5", "yesterday")
    path = Path("yesterday/decode.json")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "files"}))
    sound, first = content_of("yesterday"), Path("yesterday/images/seed000003.nii.gz")
    first.write_bytes(b"cut")
    counts = count_decoded(monkeypatch)
    decoded("drawn.h5", "yesterday")
    assert sum(counts) == 2 and content_of("yesterday") == sound


def test_two_at_once_are_kept_apart_and_links_are_one_output(at):
    decoded("drawn.h5", "shared")
    Path("shared-link").symlink_to("shared")
    for dest, is_folder in (("shared", True), ("one.h5", False)):
        process = hold(Path(dest).resolve(), is_folder)
        for name in (dest, f"./{dest}", str(Path(dest).resolve()), *(["shared-link", "shared/"] if is_folder else [])):
            said = refused(at, dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", name)
            assert "another command is at work on it" in said and f"process {process.pid} on" in said
        process.kill()
        process.wait()
        decoded("drawn.h5", dest)
        assert not list(at.rglob(".lock-*"))


def test_a_folder_that_holds_an_input_is_refused(at):
    assert "is or holds --latents" in refused(at, dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", ".",
                                              "--overwrite")


def test_a_folder_that_nothing_is_known_of_is_not_touched(at):
    Path("mine/images").mkdir(parents=True)
    Path("mine/images/seed000003.nii.gz").write_bytes(b"mine")
    words = ["decode", "--latents", "drawn.h5", "--dest", "mine"]
    for more in ([], ["--overwrite"]):  # which would not help, and is not advised
        said = refused(at, dataset_tool.main, *words, *more)
        assert "made images/seed000003.nii.gz in it, and what others made is not overwritten" in said
        assert "--overwrite" not in said
    Path("mine/images/seed000003.nii.gz").rename("mine/images/mine.nii.gz")
    said = refused(at, dataset_tool.main, *words)
    assert "not empty" in said and "--overwrite" in said
    decoded("drawn.h5", "mine", "--overwrite")
    assert len(list(Path("mine/images").iterdir())) == 3 and len(list(Path("mine/labels").iterdir())) == 2


@pytest.mark.parametrize(("dest", "words"), [
    ("other.h5", "--dest other.h5: not an HDF5 file; nothing of another kind is overwritten, choose another name"),
    ("other.h5/v.h5", "other.h5 is a file, wanted a folder"),
    ("strange", "choose another, or --overwrite it"),
    ("full", "choose another, or delete it"),  # nothing says whose its volume is
])
def test_what_cannot_be_gone_on_with_is_refused_before_anything_is_decoded(at, monkeypatch, dest, words):
    Path("other.h5").write_text("mine")
    Path("strange").mkdir(exist_ok=True)
    Path("full/images").mkdir(parents=True, exist_ok=True)
    Path("full/images/seed000003.nii.gz").write_bytes(b"mine")
    for folder in ("strange", "full"):
        Path(folder, "decode.json").write_text("[")
    counts = count_decoded(monkeypatch)
    assert words in refused(at, dataset_tool.main, "decode", "--latents", "drawn.h5", "--dest", dest)
    assert not counts


def test_latents_that_are_damaged_are_named(at, tmp_path):
    path = tmp_path / "drawn.h5"
    path.write_bytes(Path("drawn.h5").read_bytes())
    zero_row(path, "latents", 1)
    said = refused(at, dataset_tool.main, "decode", "--latents", str(path), "--dest", "x.h5")
    assert "/latents, row 1, is damaged" in said and str(path) in said


# ---- tiles ----


def test_tiles_say_by_how_much_they_differ_and_slabs_do_not_differ(at):
    said = decoded("drawn.h5", "tiles.h5", "--tile", "4", "4", "4")
    assert "Tiles differ from whole: image 0." in said and "% agree" in said
    assert "differ" not in decoded("drawn.h5", "silent.h5", "--tile", "4", "4", "4", "--no-compare")
    assert "differ" not in decoded("drawn.h5", "slabs.h5", "--tile", "4", "4", "4", "--tile-mode", "exact")
    wanted, _ = by_hand(np.load("z.npy"))
    off = {name: np.abs(VolumesFile(f"{name}.h5").read("generated", 0).image - wanted[0]).max()
           for name in ("tiles", "slabs")}
    assert off["slabs"] < 1e-4 < off["tiles"]


# ---- DIFF-3's ----


def test_files_of_diff3_train_scaled_by_their_limits(at):
    arrays, data = np.load("diff3.npz"), LatentsDataset("latent.h5")
    lo, hi = (arrays["mean"] - 3 * arrays["std"])[:3].min(), (arrays["mean"] + 3 * arrays["std"])[:3].max()
    assert (len(data), data.shape, data.first_stage()) == (3, LATENT, None)
    np.testing.assert_array_equal(data[1].image, np.concatenate([arrays["mean"][1], arrays["std"][1]]))
    assert data.facts.latents.scaling == "minmax" and data.facts.latents.limits == pytest.approx([lo, hi])
    assert len(LatentsDataset("latent.h5", "val")) == 1


def test_diffusion_on_files_of_diff3_decodes_by_an_autoencoder_that_is_named(at):
    where = [*TINY, "training.dataset.path=latent.h5", "training.options.run_root=diff3"]
    succeed(train.main, *where)
    said = refused(at, generate.main, *where, "sampling.outdir=diff3/x")
    assert "first stage" in said and "sampling.autoencoder" in said and "sampling.decode=false" in said
    succeed(generate.main, *where, "sampling.outdir=diff3/latents", "sampling.decode=false")
    succeed(generate.main, *where, "sampling.outdir=diff3/whole", "sampling.autoencoder=stage.pt")
    whole = SamplesFile("diff3/whole/samples.h5")
    decoded("diff3/latents/samples.h5", "diff3/later.h5", "--autoencoder", "stage.pt")
    later = VolumesFile("diff3/later.h5")
    np.testing.assert_allclose(later.read("generated", 1).image, whole.row("images", 1), atol=1e-4)
    np.testing.assert_array_equal(whole.affine, AFFINE)


def test_samples_of_diff3_are_decoded_from_their_own_range(at):
    arrays = np.load("diff3.npz")
    assert "cannot be checked" in decoded("_samples.h5", "diff3.h5", "--autoencoder", "stage.pt")
    file = VolumesFile("diff3.h5")
    images, _ = by_hand(arrays["samples"] * 12 - 5)
    assert file.length("generated") == 3
    np.testing.assert_allclose(file.read("generated", 2).image, images[2], atol=1e-4)
    np.testing.assert_array_equal(file.read("generated", 2).affine, AFFINE)  # of the first stage's volumes
    decoded("latent.h5", "diff3_latents.h5", "--autoencoder", "stage.pt")
    np.testing.assert_allclose(VolumesFile("diff3_latents.h5").read("val", 0).image, by_hand(arrays["mean"])[0][3],
                               atol=1e-4)


def test_a_second_export_appended_to_latents_of_diff3_is_named(at, tmp_path):
    with h5py.File("latent.h5") as source, h5py.File(tmp_path / "twice.h5", "w") as file:
        for name in ("mean", "std", "min", "max"):
            file.create_dataset(f"train/{name}", data=np.concatenate([source[f"train/{name}"][:]] * 2))
    with pytest.raises(ValueError, match=r"rows of train from 3 on .* second export was appended"):
        LatentsDataset(str(tmp_path / "twice.h5"))


def test_a_second_run_appended_to_samples_of_diff3_is_named(at, tmp_path):
    path = tmp_path / "_samples2.h5"
    path.write_bytes(Path("_samples.h5").read_bytes())
    with h5py.File(path, "a") as file:
        for name, value in (("min", -9), ("max", 9)):
            file[name].resize(2, axis=0)
            file[name][1] = value
    with pytest.raises(ValueError, match="min has 2 values, wanted 1: a second run was appended"):
        read_samples(path)


@pytest.mark.parametrize(("arguments", "words"), [
    (["drawn.h5", "x.h5", "--autoencoder", "other.pt"], ["--autoencoder other.pt", "the latents in drawn.h5 are of"]),
    (["lat.h5", "x.h5", "--autoencoder", "other.pt"], ["--autoencoder other.pt", "the latents in lat.h5 are of"]),
    (["latent.h5", "x.h5"], ["latent.h5", "not in the file", "--autoencoder"]),
    (["_samples.h5", "x.h5"], ["_samples.h5", "not in the file", "--autoencoder"]),
    (["drawn.h5", "x.h5", "--network", "stage.pt"], ["stage.pt", "carries no first stage"]),
    (["drawn.h5", "x.npz"], ["--dest x.npz", ".h5", "folder"]),
    (["drawn.h5", "drawn.h5"], ["is --latents"]),
    (["vols.h5", "x.h5"], ["vols.h5", "format is 'volumes'"]),
    (["drawn.h5", "x.h5", "--tile", "3", "4", "4"], ["tile=[3, 4, 4]"]),
])
def test_what_cannot_be_decoded_is_refused(at, arguments, words):
    latents, dest, *options = arguments
    said = refused(at, dataset_tool.main, "decode", "--latents", latents, "--dest", dest, *options)
    assert all(word in said for word in words), said


def test_a_first_stage_for_latents_of_other_channels_is_refused(at, tmp_path):
    node = {**NODE, "latent_channels": 3}
    write_snapshot(tmp_path / "three.pt", Path("vols.h5"), node=node)
    said = refused(at, dataset_tool.main, "decode", "--latents", "_samples.h5", "--dest", "x.h5", "--autoencoder",
                   str(tmp_path / "three.pt"))
    assert "latents of 3 channels" in said and str(list(LATENT)) in said


def test_the_record_of_a_folder_says_what_filled_it(at):
    decoded("drawn.h5", "record")
    found = json.loads(Path("record/decode.json").read_text())
    assert found["kind"] == "decode" and found["latents"] == "drawn.h5" and len(found["first_stage"]) == 64
    assert tuple(nibabel.load("record/images/seed000003.nii.gz").shape) == SIZE
