"""Label maps by a segmenter whose answer is known by hand: of files and folders, turned, in windows, once and whole."""

import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
import edm3d
from edm3d.formats.facts import Facts, LatentScaling, rows_of
from edm3d.formats.geometry import reorient
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import write_nifti
from edm3d.formats.prediction import Prediction
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter
from edm3d.inference import evaluate
from edm3d.inference import segment as segmenting
from edm3d.inference.evaluate import ComparisonOptions
from edm3d.inference.labelling import find_labeller
from edm3d.inference.model import Model
from edm3d.inference.predictor import Predictor
from edm3d.inference.segment_grid import Placed, Trained
from edm3d.inference.snapshot import CarriedStage, Snapshot, network_hash
from edm3d.physics.phantoms import LABEL_CLASSES
from edm3d.reporting import sections
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.scalars import Scalars
from edm3d.utils import locks
from edm3d.utils.config import build
from tests.commands import call, refused, succeed
from tests.test_evaluate import describe, phantom_arrays, write_phantoms
from tests.test_locks import DEAD

SIZE = (6, 5, 4)
WINDOW = (4, 4, 4)
RANGE = Intensity(0.0, 200.0, True, "HU")
NAMES = ("out", "rim", "in")
AFFINE = np.array([[2.0, 0, 0, -7], [0, 3, 0, 5], [0, 0, 4, 1], [0, 0, 0, 1]])  # RAS
LEVELS = 50, 150  # of RANGE: from which on a voxel is rim, and in
ALONE = ["--num-threads", "1", "--montage", "0"]


def classes_of(image: np.ndarray) -> np.ndarray:
    """What `write_network` makes of an image [*S] in units of RANGE, by hand."""
    return np.digitize(image, LEVELS).astype(np.uint8)


def write_network(path: Path, *, shape: tuple[int, ...] = (1, *SIZE), facts: Facts | None = None, ahead: bool = False,
                  predicts: Prediction | None = None) -> Path:
    """A segmenter that tells the class of a voxel by its value: lines that cross at the LEVELS.

    ahead: by the value of the next voxel on the first axis, that of RANGE's middle behind the last.
    """
    dims, predicts = len(shape) - 1, predicts or Prediction("labels", NAMES)
    kernel, count = [3 if ahead else 1, *[1] * (dims - 1)], len(predicts.names)
    node = {"_target_": f"torch.nn.Conv{dims}d", "in_channels": shape[0], "out_channels": count, "kernel_size": kernel,
            "padding": [ahead + 0, *[0] * (dims - 1)]}
    weight, bias = torch.zeros(count, shape[0], *kernel), torch.full((count,), -99.0)  # classes beyond three: never
    weight[:3, 0, -1 if ahead else 0] = torch.tensor([0.0, 8, 16]).reshape(3, *[1] * (dims - 1))
    bias[:3] = torch.tensor([0.0, 4, 0])
    facts = facts or Facts("", "", ("ct",), NAMES, intensity=RANGE, spatial_shape=shape[1:], affine=rows_of(AFFINE))
    Snapshot("segmentation", node, facts, shape, weights={"weight": weight, "bias": bias}, predicts=predicts).save(path)
    return path


def image_of(seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """Values all over RANGE, none near the LEVELS, of all classes."""
    return np.random.default_rng(seed).choice(np.float32([0, 20, 40, 60, 100, 140, 160, 180, 200]), size)


def write_volumes(path: Path, num: int = 5, intensity: Intensity = RANGE, dtype: str = "float32") -> Path:
    """Volumes of two splits with labels of others, maps, attributes, classes, boxes and a channel to be shown."""
    meta = VolumesMeta(3, ("ct", "low"), ("target", "condition"), ("bg", "organ"), ("age",), ("y",), ("a", "b"),
                       intensity, ("free", "fan"))
    rng = np.random.default_rng(0)
    with VolumesWriter(path, meta, {"kind": "test"}, image_dtype=dtype) as writer:
        for i in range(num):
            image = np.stack([image_of(i), np.full(SIZE, 7, np.float32)]) * (intensity.hi / RANGE.hi)
            writer.add("train" if i < 3 else "test", Item(
                np.rint(image) if dtype == "uint8" else image, rng.integers(2, size=SIZE, dtype=np.uint8),
                np.float32([40 + i]), i % 2, f"case{i}", f"patient{i}", AFFINE + np.eye(4)[3] * 0,
                np.array([(0, 0, 0), (5, 5, 4)]), rng.integers(2, size=SIZE, dtype=np.uint8)),
                np.float32([[0, i + 1], [0, 1]]))
    return path


def write_drawn(path: Path, **more: np.ndarray) -> Path:
    """Samples of seeds 3 and 8."""
    facts = Facts("", "", ("ct",), intensity=RANGE, spatial_shape=SIZE, affine=rows_of(AFFINE))
    own = np.stack([AFFINE, AFFINE * np.array([-1, 1, 1, 1])])
    arrays = {"images": np.stack([image_of(3), image_of(8)])[:, None], "affines": own, **more}
    write_samples(path, [3, 8], arrays, AFFINE, SampleMeta(facts, "drew.pt", "ab" * 32, {"sampler": "x"}))
    return path


def write_images(folder: Path, count: int = 3) -> Path:
    """NIfTI scan0, scan1, ..."""
    for i in range(count):
        write_nifti(folder / f"scan{i}.nii.gz", image_of(i), AFFINE)
    return folder


@pytest.fixture
def at(tmp_path):
    """Work in a folder with a segmenter."""
    with chdir(tmp_path):
        write_network(Path("net.pt"))
        yield tmp_path


def segment(source: str | Path, dest: str | Path, *options: str, network: str = "net.pt") -> str:
    """Segment without a picture; what the command said."""
    return succeed(dataset_tool.main, "segment", "--network", network, "--source", str(source), "--dest", str(dest),
                   *ALONE, *options)


def refuse(at: Path, source: str | Path, dest: str | Path, *options: str, network: str = "net.pt") -> str:
    """Segment, which must fail and leave nothing behind; the line."""
    return refused(at, dataset_tool.main, "segment", "--network", network, "--source", str(source), "--dest", str(dest),
                   *ALONE, *options)


def label_at(path: str | Path) -> np.ndarray:
    """A label map as its file has it."""
    return np.asanyarray(nibabel.load(path).dataobj)


# ---- files ----


def test_volumes_keep_all_but_their_label_maps(at):
    source = VolumesFile(write_volumes(Path("vols.h5")))
    assert "seg.h5: 5 label maps" in segment("vols.h5", "seg.h5", "--batch-size", "2")
    made = VolumesFile("seg.h5")
    assert made.meta == replace(source.meta, label_classes=NAMES)
    assert made.splits == source.splits == ["train", "test"] and made.provenance["kind"] == "segment"
    assert made.provenance["network_hash"] == Snapshot.read(Path("net.pt")).hash
    assert made.provenance["source_hash"] == source.content_hash
    for split in source.splits:
        assert made.ids(split) == source.ids(split) and made.groups(split) == source.groups(split)
        for name, table in source.tables(split).items():
            np.testing.assert_array_equal(made.table(split, name), table)
        for i in range(source.length(split)):
            one, other = made.read(split, i), source.read(split, i)
            np.testing.assert_array_equal(one.label, classes_of(other.image[0]))
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.map, other.map)
    segment("vols.h5", "test.h5", "--split", "test")
    assert VolumesFile("test.h5").splits == ["test"] and VolumesFile("test.h5").ids("test") == ["case3", "case4"]
    assert not list(at.glob("*.parts")) and not list(at.glob("*.png"))


def test_volumes_of_another_contract_are_scaled_and_it_is_said(at):
    """0 to 255 in bytes for 0 to 200 HU: both are -1 to 1."""
    write_volumes(Path("bytes.h5"), intensity=Intensity(0.0, 255.0, True, "255ths"), dtype="uint8")
    said = segment("bytes.h5", "seg.h5")
    assert "both are scaled" in said and "255ths" in said
    made = VolumesFile("seg.h5")
    np.testing.assert_array_equal(made.read("train", 1).label, classes_of(image_of(1)))
    assert made.grid("train", "images", 0).dtype == np.uint8


def test_samples_get_label_maps_and_say_whose(at):
    old = np.ones((2, *SIZE), np.uint8)
    write_drawn(Path("drawn.h5"))
    write_drawn(Path("labelled.npz"), labels=old, latents=np.zeros((2, 2, 3, 3, 2), np.float32))
    assert "holds label maps" not in segment("drawn.h5", "seg.h5")
    assert "Note: labelled.npz holds label maps; in their place" in segment("labelled.npz", "more.h5")
    for dest, source in (("seg.h5", "drawn.h5"), ("more.h5", "labelled.npz")):
        made, had = SamplesFile(dest), SamplesFile(source)
        np.testing.assert_array_equal(made.array("labels"), classes_of(made.array("images")[:, 0]))
        assert made.meta.facts.label_classes == NAMES and made.seeds.tolist() == [3, 8]
        assert made.meta.labelling[:2] == ("net.pt", Snapshot.read(Path("net.pt")).hash)
        assert made.meta._replace(facts=had.meta.facts, sampling=had.meta.sampling) == had.meta
        for name in had.names:
            if name != "labels":
                np.testing.assert_array_equal(made.array(name), had.array(name))
    assert "all 2 there already" in segment("drawn.h5", "seg.h5")
    said = refuse(at, "labelled.npz", "seg.h5")
    assert "holds label maps of another source" in said and "--overwrite" in said
    assert "holds label maps of another hash" in refuse(at, "seg.h5", "drawn.h5")  # which has none
    segment("labelled.npz", "seg.h5", "--overwrite")
    assert "latents" in SamplesFile("seg.h5").names


def test_maps_that_samples_were_asked_for_by_keep_the_names_of_their_classes(at):
    facts = Facts("", "", ("ct",), ("a", "b", "c", "d"), intensity=RANGE, spatial_shape=SIZE, affine=rows_of(AFFINE))
    asked = np.full((1, *SIZE), 3, np.uint8)  # more classes than the segmenter has
    write_samples("asked.h5", [3], {"images": image_of(3)[None, None], "maps": asked}, AFFINE,
                  SampleMeta(facts, "drew.pt", "ab" * 32, {"sampler": "x"}))
    segment("asked.h5", "seg.h5")
    made = SamplesFile("seg.h5")
    assert made.meta.facts.semantic_classes == ("a", "b", "c", "d") and made.meta.facts.label_classes == NAMES
    np.testing.assert_array_equal(made.array("maps"), asked)


def test_labels_that_say_nothing_plain_of_their_network_are_refused(at):
    write_drawn(Path("drawn.h5"), labels=np.ones((2, *SIZE), np.uint8))
    file = SamplesFile("drawn.h5")
    meta = file.meta._replace(sampling={"labels": {"network": 3, "hash": "", "source": "", "settings": {}}})
    write_samples("odd.h5", [3, 8], {"images": file.array("images")}, AFFINE, meta)
    with pytest.raises(ValueError, match=r"odd\.h5: sampling\.labels\.network is 3"):
        SamplesFile("odd.h5")


def test_files_become_nifti_of_their_affines(at):
    write_drawn(Path("drawn.h5"))
    segment("drawn.h5", "out")
    segment(write_volumes(Path("vols.h5")), "vout", "--split", "test")
    samples = SamplesFile("drawn.h5")
    for i, seed in enumerate((3, 8)):
        found = nibabel.load(f"out/labels/seed00000{seed}.nii.gz")
        np.testing.assert_array_equal(found.affine, samples.affine_of(i))
        np.testing.assert_array_equal(found.dataobj, classes_of(image_of(seed)))
        assert found.get_data_dtype() == np.uint8
    assert sorted(os.listdir("vout/labels")) == ["case3.nii.gz", "case4.nii.gz"]
    np.testing.assert_array_equal(label_at("vout/labels/case4.nii.gz"), classes_of(image_of(4)))


# ---- folders ----


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL", "ASR"])
def test_images_that_lie_otherwise_are_turned_and_their_label_maps_lie_on_them(at, codes):
    """The network looks at the next voxel to the right, wherever the file has it."""
    write_network(Path("ahead.pt"), ahead=True)
    image = image_of(1, (7, 9, 5))
    ahead = classes_of(np.concatenate([image[1:], np.full((1, 9, 5), 100)]))
    write_network(Path("ahead.pt"), ahead=True, shape=(1, 7, 9, 5))
    turned, affine = reorient(image[None], AFFINE, codes)
    wanted, _ = reorient(ahead[None], AFFINE, codes)
    Path("in/deep").mkdir(parents=True)
    write_nifti(Path("in/deep/scan.nii"), turned[0], affine)
    said = segment("in", "out", network="ahead.pt")
    found = nibabel.load("out/labels/scan.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(found.dataobj, wanted[0])
    assert (f"have axes {codes}, those of training RAS" in said) == (codes != "RAS")
    assert "voxels" not in said.replace("label maps", "")  # turned spacing is no other spacing


def test_oblique_images_are_turned_to_the_nearest_axes_and_back(at):
    c, s = np.cos(0.4), np.sin(0.4)
    oblique = np.array([[0, -3 * c, 4 * s, 3], [-2.0, 0, 0, 2], [0, 3 * s, 4 * c, 1], [0, 0, 0, 1]])
    image = image_of(2, (6, 7, 8))
    placed = Placed(image[None], oblique, Trained.of(AFFINE))
    assert placed.image.shape == (1, 7, 6, 8) and placed.difference.turned == "PLS"
    np.testing.assert_array_equal(placed.image[0], image.transpose(1, 0, 2)[::-1, ::-1])
    np.testing.assert_array_equal(placed.back(placed.image[0]), image)


def test_other_sizes_are_seen_in_windows(at):
    write_network(Path("net.pt"), shape=(1, *WINDOW))
    Path("in").mkdir()
    sizes = [(3, 4, 2), (9, 5, 4), (4, 4, 4), (2, 11, 7)]
    for i, size in enumerate(sizes):
        write_nifti(Path(f"in/scan{i}.nii.gz"), image_of(i, size), AFFINE)
    segment("in", "out", "--batch-size", "4")
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(label_at(f"out/labels/scan{i}.nii.gz"), classes_of(image_of(i, size)))


def test_other_voxels_are_warned_of_and_resampled_when_asked(at):
    """Blocks of 2 mm in an image of 1 mm along one axis: seen at 2 mm they are what they are, but at their edges."""
    Path("in").mkdir()
    blocks = np.repeat(np.float32([0, 200])[np.random.default_rng(0).integers(2, size=(3, 5, 4))], 8, axis=0)
    fine = AFFINE @ np.diag([0.5, 1, 1, 1])
    write_nifti(Path("in/scan.nii.gz"), blocks, fine)
    said = segment("in", "out")
    assert "Warning: 1 of 1 images have other voxels than those of training (2x3x4 mm): scan 1x3x4" in said
    assert "--resample" in said
    assert "Note: 1 of 1 images have other voxels" in segment("in", "again", "--resample")
    found = nibabel.load("again/labels/scan.nii.gz")
    assert found.shape == blocks.shape
    np.testing.assert_allclose(found.affine, fine)
    inner = np.arange(24) % 8 // 2 % 3 != 0  # of each block of 8 the middle 4
    np.testing.assert_array_equal(label_at("again/labels/scan.nii.gz")[inner], classes_of(blocks)[inner])
    placed = Placed(blocks[None], fine, Trained.of(AFFINE), resample=True)
    assert placed.image.shape == (1, 12, 5, 4)


def test_pictures_and_arrays_are_read_as_prepare_does(at):
    facts = Facts("", "", ("ct",), NAMES, intensity=RANGE, spatial_shape=(6, 5))
    write_network(Path("flat.pt"), shape=(1, 6, 5), facts=facts)
    Path("in").mkdir()
    Image.fromarray(image_of(0, (6, 5)).astype(np.uint8)).save("in/a.png")
    Path("arrays").mkdir()
    np.save("arrays/b.npy", image_of(1, (6, 5)))
    np.savez("arrays/c.npz", image=image_of(2, (6, 5)), label=np.ones((6, 5), np.uint8))
    segment("in", "out", network="flat.pt")
    np.testing.assert_array_equal(label_at("out/labels/a.nii.gz")[..., 0], classes_of(image_of(0, (6, 5))))
    said = refuse(at, "arrays", "out2", network="flat.pt")
    assert "Every npz holds one" in said or "without a label map" in said
    os.remove("arrays/b.npy")
    segment("arrays", "out2", network="flat.pt")
    np.testing.assert_array_equal(label_at("out2/labels/c.nii.gz")[..., 0], classes_of(image_of(2, (6, 5))))


def test_slices_across_the_plane_of_training_are_seen_as_they_are_and_warned_of(at):
    facts = Facts("", "", ("ct",), NAMES, intensity=RANGE, spatial_shape=(6, 5), affine=rows_of(AFFINE))
    write_network(Path("flat.pt"), shape=(1, 6, 5), facts=facts)
    Path("in").mkdir()
    _, sagittal = reorient(np.zeros((1, 6, 5, 1)), AFFINE, "ASR")
    write_nifti(Path("in/a.nii.gz"), image_of(0, (6, 5)), sagittal, spatial_dims=2)
    _, turned = reorient(np.zeros((1, 5, 6, 1)), AFFINE, "PRI")
    write_nifti(Path("in/b.nii.gz"), image_of(1, (6, 5)), turned, spatial_dims=2)
    said = segment("in", "out", network="flat.pt")
    assert "1 of 2 images lie in another plane than those of training (RAS), and are seen as they are: a ASR" in said
    assert "1 of 2 images have axes PRI" in said
    for name, seed in (("a", 0), ("b", 1)):
        np.testing.assert_array_equal(label_at(f"out/labels/{name}.nii.gz")[..., 0], classes_of(image_of(seed, (6, 5))))


def test_values_are_scaled_as_in_training(at):
    """By its range, clipped; or by the percentiles of each image, in whatever unit."""
    Path("in").mkdir()
    image = image_of(0)
    write_nifti(Path("in/a.nii.gz"), image * 10 - 500, AFFINE)
    said = segment("in", "out")
    assert "Intensities 0 to 200 HU as -1 to 1, clipped" in said
    assert "Warning: 1 of 1 images have values that hardly fit the range of training, 0 to 200 HU" in said
    np.testing.assert_array_equal(label_at("out/labels/a.nii.gz"), classes_of((image * 10 - 500).clip(0, 200)))
    facts = replace(Snapshot.read(Path("net.pt")).facts, intensity=Intensity.of_percentiles((0, 100), True))
    write_network(Path("own.pt"), facts=facts)
    said = segment("in", "own", network="own.pt")
    assert "percentiles 0 to 100 of each image" in said and "Warning" not in said
    np.testing.assert_array_equal(label_at("own/labels/a.nii.gz"), classes_of(image))
    write_nifti(Path("in/a.nii.gz"), image / 1000, AFFINE)
    assert "a (all within 0.1 % of it)" in segment("in", "small")
    np.testing.assert_array_equal(label_at("small/labels/a.nii.gz"), 0)


@pytest.mark.parametrize(("percentiles", "found"), [((0, 99.5), (0, 99.5)), ((0.00001, 100), (1e-5, 100)),
                                                   ((2.5, 97), (2.5, 97))])
def test_percentiles_are_known_again_by_their_unit(percentiles, found):
    assert Intensity.of_percentiles(percentiles, True).percentiles == found
    assert Intensity(0, 1, True, "percentile 99-1").percentiles is None and RANGE.percentiles is None


def test_channels_are_paired_by_number_or_pattern(at):
    facts = Facts("", "", ("ct", "pet"), NAMES, intensity=RANGE, spatial_shape=SIZE, affine=rows_of(AFFINE))
    write_network(Path("two.pt"), shape=(2, *SIZE), facts=facts)
    Path("in").mkdir()
    for name, seed in (("a_0000", 0), ("a_0001", 1)):
        write_nifti(Path(f"in/{name}.nii.gz"), image_of(seed), AFFINE)
    segment("in", "out", network="two.pt")
    np.testing.assert_array_equal(label_at("out/labels/a.nii.gz"), classes_of(image_of(0)))
    for old, new in (("a_0000", "a_pet"), ("a_0001", "a_ct")):
        os.rename(f"in/{old}.nii.gz", f"in/{new}.nii.gz")
    segment("in", "named", "--image-pattern", "{id}_{channel}", network="two.pt")
    np.testing.assert_array_equal(label_at("named/labels/a.nii.gz"), classes_of(image_of(1)))
    os.remove("in/a_ct.nii.gz")
    assert "1 channels, two.pt was trained on 2: ct, pet" in refuse(at, "in", "no", network="two.pt")


# ---- once, stopped, shared, damaged ----


def count_seen(monkeypatch) -> list[int]:
    """A list that grows by the number of images whenever some are segmented."""
    real, counts = Predictor.classes, []
    monkeypatch.setattr(Predictor, "classes", lambda self, x, names: (counts.append(len(x)), real(self, x, names))[1])
    return counts


def content_of(folder: str) -> dict[str, bytes]:
    """The label maps of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder, "labels").iterdir())}


def test_a_second_run_does_nothing_and_new_images_are_added(at, monkeypatch):
    write_images(Path("in"))
    segment("in", "out", "--montage", "2")
    with Image.open("out/labels.png") as picture:
        assert np.asarray(picture).std() > 10
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert "out: all 3 there already" in segment("in", "out", "--montage", "2")
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == times
    counts = count_seen(monkeypatch)
    write_images(Path("in"), 5)
    assert "5 label maps (3 there already)" in segment("in", "out") and sum(counts) == 2
    write_nifti(Path("in/scan1.nii.gz"), image_of(9), AFFINE)
    assert "label maps of other images of the same names: scan1" in refuse(at, "in", "out")
    segment("in", "out", "--overwrite")
    assert sum(counts) == 3
    np.testing.assert_array_equal(label_at("out/labels/scan1.nii.gz"), classes_of(image_of(9)))
    write_network(Path("other.pt"), ahead=True)
    assert "another network_hash" in refuse(at, "in", "out", network="other.pt")


def test_corrected_label_maps_stay_and_damaged_ones_are_made_anew(at, monkeypatch):
    write_images(Path("in"))
    segment("in", "out")
    sound = content_of("out")
    corrected = np.zeros(SIZE, np.uint8)
    write_nifti(Path("out/labels/scan0.nii.gz"), corrected, AFFINE)
    Path("out/labels/scan1.nii.gz").write_bytes(sound["scan1.nii.gz"][:-6])
    os.remove("out/labels/scan2.nii.gz")
    counts = count_seen(monkeypatch)
    said = segment("in", "out", "--montage", "3")
    assert "1 label maps were changed since they were written, and stay as they are: labels/scan0.nii.gz" in said
    assert "2 files are not as they were written" in said and sum(counts) == 2
    np.testing.assert_array_equal(label_at("out/labels/scan0.nii.gz"), corrected)
    assert content_of("out")["scan1.nii.gz"] == sound["scan1.nii.gz"]
    segment("in", "out", "--overwrite")
    assert content_of("out") == sound


def test_files_of_others_are_never_overwritten(at):
    write_images(Path("in"), 1)
    Path("out/labels").mkdir(parents=True)
    Path("out/labels/scan0.nii.gz").write_bytes(b"mine")
    for more in ([], ["--overwrite"]):
        assert "nothing says that segment made labels/scan0.nii.gz" in refuse(at, "in", "out", *more)
    segment("in", "ours")
    Path("ours/labels/scan1.nii.gz").write_bytes(b"mine")
    write_images(Path("in"), 2)
    for more in ([], ["--overwrite"]):
        assert "segment did not make labels/scan1.nii.gz" in refuse(at, "in", "ours", *more)
    record = json.loads(Path("ours/segment.json").read_text())
    assert record["kind"] == "segment" and list(record["files"]) == ["labels/scan0.nii.gz"]


def segment_until_killed(source: str, dest: str, batches: int) -> None:
    """Segment in a process that is killed in the work on a batch."""
    real, done = Predictor.classes, []

    def dying(self: Predictor, images: torch.Tensor, names: list[str]) -> torch.Tensor:
        done.append(len(images))
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, images, names)

    Predictor.classes = dying
    segment(source, dest)


@pytest.mark.parametrize(("source", "dest"), [("vols.h5", "killed.h5"), ("vols.h5", "killed"), ("in", "killed")])
def test_a_run_that_was_killed_goes_on_and_does_nothing_twice(at, monkeypatch, source, dest):
    write_volumes(Path("vols.h5"))
    write_images(Path("in"), 5)
    process = multiprocessing.get_context("fork").Process(target=segment_until_killed, args=(source, dest, 4))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not Path(dest).is_file()
    left = Path("killed.h5.parts/other" if dest.endswith(".h5") else "killed/labels",
                f".tmp-{DEAD}-0123456789abcdef-x.npz")
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    places = Path(f"{dest}.parts").glob("*/[0-9]*") if dest.endswith(".h5") else Path(dest, "labels").glob("[!.]*")
    done = len(list(places))
    assert 2 <= done <= 3  # the last one may have been on its way to the disk
    counts = count_seen(monkeypatch)
    assert f"{dest}: 5 label maps ({done} there already)" in segment(source, dest)
    assert sum(counts) == 5 - done and not left.exists()
    segment(source, f"whole-{dest}")
    if dest.endswith(".h5"):
        assert VolumesFile(dest).content_hash == VolumesFile(f"whole-{dest}").content_hash
    else:
        assert content_of(dest) == content_of(f"whole-{dest}") and len(content_of(dest)) == 5


def on_rank(rank: int, port: int) -> None:
    """One of two processes that segment together; what it said goes into a file."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    Path(f"said{rank}.txt").write_text(segment("in", "ranks"))


def test_two_ranks_segment_what_one_does(at):
    write_images(Path("in"), 5)
    turned, affine = reorient(image_of(1)[None], AFFINE, "LAS")
    write_nifti(Path("in/scan1.nii.gz"), turned[0], affine)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [multiprocessing.get_context("fork").Process(target=on_rank, args=(rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    said, other = (Path(f"said{rank}.txt").read_text() for rank in (0, 1))
    assert said.count("ranks: 5 label maps") == said.count("1 of 5 images have axes LAS") == 1 and not other
    assert len(list(Path("ranks").glob(".*.journal"))) == 0
    segment("in", "one")
    assert content_of("ranks") == content_of("one") and len(content_of("one")) == 5


def test_a_part_that_is_damaged_is_made_anew(at, monkeypatch):
    write_volumes(Path("vols.h5"))
    monkeypatch.setattr(segmenting, "write_volumes", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
    assert call(dataset_tool.main, "segment", "--network", "net.pt", "--source", "vols.h5", "--dest", "seg.h5",
                *ALONE).exit_code == 1
    monkeypatch.undo()
    first, second, third, *_ = sorted(Path("seg.h5.parts").rglob("*.npz"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    np.savez(third, label=np.full(SIZE, 3, np.uint8), affine=AFFINE)  # a class that there is not
    counts = count_seen(monkeypatch)
    assert "5 label maps (2 there already)" in segment("vols.h5", "seg.h5") and sum(counts) == 3
    np.testing.assert_array_equal(VolumesFile("seg.h5").read("train", 2).label, classes_of(image_of(2)))
    assert "all 5 there already" in segment("vols.h5", "seg.h5") and sum(counts) == 3
    write_volumes(Path("other.h5"), 4)
    assert "another source_hash" in refuse(at, "other.h5", "seg.h5")


def test_two_at_once_are_kept_apart(at):
    write_images(Path("in"), 1)
    ready, fork = multiprocessing.Event(), multiprocessing.get_context("fork")

    def hold() -> None:
        with locks.output(Path("out"), is_folder=True):
            ready.set()
            time.sleep(60)

    other = fork.Process(target=hold)
    other.start()
    try:
        assert ready.wait(60) and "another command is at work on it" in refuse(at, "in", "out")
    finally:
        other.kill()
        other.join()


# ---- what is refused ----


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder of what can and cannot be segmented."""
    folder = tmp_path_factory.mktemp("odd")
    with chdir(folder):
        write_network(Path("net.pt"))
        write_images(Path("in"), 1)
        write_volumes(Path("vols.h5"))
        meta = SamplesFile(write_drawn(Path("drawn.h5"))).meta
        write_samples("lat.h5", [1], {"latents": np.zeros((1, 2, 3, 3, 2), np.float32)}, AFFINE, meta)
        for name in ("empty", "flat", "pictures"):
            Path(name).mkdir()
        write_nifti(Path("flat/a.nii.gz"), image_of(0, (6, 5)), AFFINE, spatial_dims=2)
        Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5)).save("pictures/a.png")
        write_nifti(Path("mixed/imagesTr/a.nii.gz"), image_of(0), AFFINE)
        write_nifti(Path("mixed/labelsTr/b.nii.gz"), image_of(0), AFFINE)
        write_nifti(Path("three/a.nii.gz"), np.stack([image_of(i) for i in range(3)]), AFFINE)
    return folder


@pytest.fixture
def odd(world):
    """Work in that folder."""
    with chdir(world):
        yield world


@pytest.mark.parametrize(("source", "dest", "more", "words"), [
    ("in", "seg.h5", [], "become a folder of NIfTI"), ("in", "in/out", [], "lies in --source in"),
    ("in", "in", [], "is or holds --source"), ("in", ".", [], "is or holds --source"),
    ("vols.h5", "vols.h5", [], "is --source"), ("vols.h5", "seg.nii", [], "wanted a file like the source (.h5)"),
    ("vols.h5", "net.pt", [], "wanted a file like the source"), ("none", "out", [], "no such file or folder"),
    ("empty", "out", [], "holds no .nii"), ("net.pt", "out", [], "net.pt"), ("vols.h5", "lat.h5", [], "lat.h5"),
    ("vols.h5", "seg.h5", ["--split", "dev"], "no split 'dev'"), ("in", "out", ["--split", "train"], "--split train"),
    ("drawn.h5", "seg.h5", ["--split", "train"], "samples have no splits"),
    ("vols.h5", "seg.h5", ["--image-pattern", "{id}"], "for a folder of images"),
    ("lat.h5", "seg.h5", [], "holds latents and no images; decode them first"),
    ("vols.h5", "drawn.h5", [], "nothing of another kind is overwritten"),
    ("mixed", "out", [], "its folders labelsTr hold label maps"), ("flat", "out", [], "single slice"),
    ("pictures", "out", [], "a picture has two axes; net.pt was trained on images of 3 dimensions"),
    ("three", "out", [], "three/a.nii.gz: 3 channels, net.pt was trained on 1: ct")])
def test_what_cannot_be_segmented_is_refused_by_name(odd, source, dest, more, words):
    assert words in refuse(odd, source, dest, *more)


def test_all_images_that_cannot_be_read_are_named_before_any_is_segmented(at, monkeypatch):
    write_images(Path("in"), 3)
    Path("in/scan0.nii.gz").write_bytes(b"no")
    write_nifti(Path("in/scan2.nii.gz"), np.full(SIZE, np.nan, np.float32), AFFINE)
    counts = count_seen(monkeypatch)
    done = call(dataset_tool.main, "segment", "--network", "net.pt", "--source", "in", "--dest", "out", *ALONE)
    assert done.exit_code == 1 and not counts and "Traceback" not in done.output
    assert "2 of 3 volumes cannot be used" in done.output and "scan0.nii.gz: cannot be read" in done.output
    assert "scan2.nii.gz: 120 values are NaN" in done.output and not list(Path("out").rglob("*.nii.gz"))


def test_other_networks_are_refused_by_name(at):
    write_images(Path("in"), 1)
    facts = Snapshot.read(Path("net.pt")).facts
    linear = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}
    weights = {"weight": torch.zeros(1, 1, 1, 1, 1), "bias": torch.zeros(1)}
    Snapshot("diffusion", linear, facts, (1, *SIZE), weights=weights).save(Path("draws.pt"))
    dense = {"_target_": "monai.networks.nets.DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
             "init_features": 4, "growth_rate": 2, "block_config": [1]}
    Snapshot("classification", dense, facts, (1, 16, 16, 16), weights=build(dense).state_dict(),
             predicts=Prediction("classes", ("sick", "well"))).save(Path("tells.pt"))
    assert "draws.pt is of task diffusion" in refuse(at, "in", "out", network="draws.pt")
    assert "tells.pt tells the class of an image (classes: sick, well)" in refuse(at, "in", "out", network="tells.pt")
    write_network(Path("pet.pt"), facts=replace(facts, channels=("pet",)))
    assert "was trained on channels pet" in refuse(at, write_volumes(Path("vols.h5")), "seg.h5", network="pet.pt")
    write_network(Path("bad.pt"), facts=facts)
    snapshot = Snapshot.read(Path("bad.pt"))
    replace(snapshot, weights=snapshot.weights | {"bias": torch.full((3,), 3e38)}).save(Path("bad.pt"))
    replace(snapshot, weights={"weight": torch.full((3, 1, 1, 1, 1), 3e38), "bias": torch.full((3,), 3e38)}).save(
        Path("bad.pt"))
    done = call(dataset_tool.main, "segment", "--network", "bad.pt", "--source", "in", "--dest", "out", *ALONE)
    assert done.exit_code == 1 and "bad.pt: gives values that are not finite of scan0; it has diverged" in done.output


# ---- from Python ----


def test_a_predictor_takes_arrays(at):
    predictor = edm3d.load("net.pt", device="cpu")
    assert isinstance(predictor, Predictor) and predictor.predicts.names == NAMES
    with pytest.raises(ValueError, match=r"net\.pt: a snapshot of task segmentation draws nothing, it gives the class"):
        Model.load("net.pt")
    images = np.stack([image_of(0), image_of(1)])[:, None]
    labels = predictor.predict(images)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, classes_of(images[:, 0]))
    assert predictor(torch.zeros(1, 1, *SIZE)).sum(1).allclose(torch.ones(1, *SIZE))
    for odd, words in ((images[0], "wanted \\[N, 1, X, Y, Z\\]"), (np.repeat(images, 2, 1), "wanted"),
                       (images * np.nan, "not finite")):
        with pytest.raises(ValueError, match=words):
            predictor.predict(odd)


# ---- evaluation ----


def test_samples_that_a_segmenter_labelled_are_measured_and_the_report_says_whose_labels_they_are(
        at, capsys, monkeypatch):
    """Decoded noise gets label maps of it, too; the first stage has none, so it is not measured by any."""
    monkeypatch.setattr(sections, "COMPARISON", [s for s in sections.COMPARISON
                                                 if isinstance(s, Scalars | HeldOut)])
    write_phantoms(Path("echo.h5"), count=4)
    facts = describe()
    write_network(Path("net.pt"), shape=(1, *facts.spatial_shape), facts=facts,
                  predicts=Prediction("labels", LABEL_CLASSES))
    node = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "latent_channels": 2, "spatial_dims": 3,
            "channels": [4, 4], "num_blocks": 1, "num_blocks_decoder": 1}
    weights = build(node).state_dict()
    stage = CarriedStage(LatentScaling([0.0, 0.0], [1.0, 1.0]), node, weights, network_hash(node, weights))
    plain = replace(facts, label_classes=())
    Snapshot("diffusion", {}, plain, (2, 14, 14, 14), stage).save(Path("drew.pt"))
    meta = SampleMeta(plain, "drew.pt", Snapshot.read(Path("drew.pt")).hash, {})
    write_samples("drawn.h5", range(3), {"images": phantom_arrays(3)["images"]}, np.array(facts.affine), meta)
    segment("drawn.h5", "seg.h5")
    samples = SamplesFile("seg.h5")
    found = evaluate.evaluate(Path("echo.h5"), Path("seg.h5"), Path("report"),
                              ComparisonOptions(split="all", num_noise=2))
    assert found["generated"]["labels"] == {"available": True, **samples.meta.labelling._asdict()}
    volume = (samples.array("labels") == 1).sum((1, 2, 3)) * (128 / 28) ** 3 / 1000
    assert found["metrics"]["lv_volume"]["generated_mean"] == pytest.approx(volume.mean())
    assert found["noise"]["available"] and "their first stage gives none" in found["first_stage"]["reason"]
    name = f"by the segmenter net.pt ({Snapshot.read(Path('net.pt')).hash[:16]})"
    assert name in capsys.readouterr().out and name in Path("report/report.html").read_text()
    labeller, _ = find_labeller(samples, False, torch.device("cpu"))
    np.testing.assert_array_equal(labeller(samples.row("images", 1)), samples.row("labels", 1))
    os.rename("net.pt", "elsewhere.pt")
    assert "net.pt, is not there" in find_labeller(samples, False, torch.device("cpu"))[1]
    write_network(Path("net.pt"), ahead=True)
    assert "its hash differs" in find_labeller(samples, False, torch.device("cpu"))[1]
