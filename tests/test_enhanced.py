"""Scans of the user's own: read in their units, drawn slice by slice, and written back in their geometry."""

import shutil
from contextlib import chdir
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import dataset_tool
import generate
from edm3d.formats.asked import chosen_split
from edm3d.formats.asked_scans import read_scans
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import read_volume
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter
from edm3d.inference.model import Model
from edm3d.physics.pet_phantoms import pet_phantom
from edm3d.training.datasets.phantoms import PhantomDataset
from tests.commands import refused, succeed
from tests.test_scans import DRAW, SIZE, write_snapshot

AFFINE = np.array([[-4.0, 0, 0, 30], [0, 4.1, 0.3, -20], [0, 0.2, 6, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """A stack [D,H,W] of low-dose slices in kBq/ml, the first one empty."""
    stack = np.stack([pet_phantom(i, size=SIZE).activity for i in range(4)]) * np.float32(1000)
    stack[0] = 0
    return stack


@pytest.fixture(scope="module")
def here(tmp_path_factory, scan) -> Path:
    """A folder with a network and scans in files of every kind."""
    folder = tmp_path_factory.mktemp("enhanced")
    with chdir(folder):
        np.savez("phantoms.npz", phantoms=scan[1:], subjects=[0, 1, 2], unit=np.array("Bq/ml"))
        write_snapshot("pet.pt", PhantomDataset("phantoms.npz"))
        image = nibabel.Nifti1Image(np.moveaxis(scan, 0, 2).astype(np.int16), AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(AFFINE, 1)
        image.set_sform(AFFINE, 2)
        image.header["descrip"] = b"patient 1"
        nibabel.save(image, "scan.nii.gz")
        wide = np.pad(scan, ((0, 0), (3, 2), (0, 0)))[:, :, 1:-2]
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(wide, 0, 2), np.diag([5.0, 5, 5, 1])), "wide.nii")
        np.savez("scan.npz", images=scan[1:], unit=np.array("Bq/ml"))
        np.savez("other.npz", images=scan[1:], unit=np.array("SUV"))
        np.save("scan.npy", scan[1:, None])
    return folder


@pytest.fixture(autouse=True)
def work_at(at):
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def drawn(out: str, *arguments: str) -> tuple[SamplesFile, str]:
    said = succeed(generate.main, *DRAW, f"sampling.outdir={out}", *arguments)
    return SamplesFile(f"{out}/samples.h5"), said


def test_a_nifti_comes_back_in_its_units_and_geometry(scan):
    file, said = drawn("whole", "sampling.conditions=scan.nii.gz", "sampling.samples_per_condition=3")
    assert "1 empty slice is left out (slice0)" in said
    assert "Unit      Bq/ml, the training's, as the file states none" in said
    assert file.array("slice_ids").tolist() == [1] * 3 + [2] * 3 + [3] * 3 and file.seeds.tolist() == list(range(9))
    assert "phantom" not in file.names and "doses" not in file.names and file.meta.id_of(3) == "slice2"
    np.testing.assert_allclose(file.row("cond_images", 4)[0], scan[2].astype(np.int16), rtol=1e-6)
    had = nibabel.load("scan.nii.gz")
    for ending, of in (("enhanced", np.mean), ("std", lambda x, axis: np.std(x, axis, ddof=1))):
        found = nibabel.load(f"whole/scan_{ending}.nii.gz")
        np.testing.assert_array_equal(found.affine, had.affine)
        for key in ("xyzt_units", "sform_code", "qform_code", "descrip", "pixdim", "quatern_b"):
            np.testing.assert_array_equal(found.header[key], had.header[key], err_msg=key)
        volume = found.get_fdata()
        assert volume.shape == had.shape and found.get_data_dtype() == np.float32 and not volume[..., 0].any()
        for k in range(3):
            wanted = of(file.array("images")[3 * k:3 * k + 3, 0].astype(float), axis=0)
            np.testing.assert_allclose(volume[..., k + 1], wanted, rtol=1e-4, atol=1e-3)
    voxel = np.array([2, 5, 2, 1.0])
    np.testing.assert_allclose(file.affine_of(4) @ [2, 5, 0, 1], AFFINE @ voxel, rtol=1e-5)
    again = drawn("whole", "sampling.conditions=scan.nii.gz", "sampling.samples_per_condition=3")[1]
    assert "9 there already" in again and "Scale" in again


def test_one_draw_of_each_slice_is_the_enhanced_volume():
    file, _ = drawn("single", "sampling.conditions=scan.nii.gz")
    assert len(file) == 3 and not Path("single/scan_std.nii.gz").exists()
    found = nibabel.load("single/scan_enhanced.nii.gz").get_fdata()
    np.testing.assert_allclose(np.moveaxis(found, 2, 0)[1:, None], file.array("images"), rtol=1e-6)


def test_a_scan_is_the_same_one_by_any_name_but_not_in_another_place():
    draw = ["sampling.conditions=UP.NII.GZ"]
    shutil.copy("scan.nii.gz", "UP.NII.GZ")
    drawn("named", *draw)
    assert sorted(path.name for path in Path("named").glob("*.nii.gz")) == ["UP_enhanced.nii.gz"]
    shutil.copy("scan.nii.gz", "moved.nii.gz")
    assert "3 there already" in drawn("named", "sampling.conditions=moved.nii.gz")[1]
    image = nibabel.load("scan.nii.gz")
    header = image.header.copy()
    header["descrip"] = b"patient 2"
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, header), "UP.NII.GZ")
    drawn("named", *draw)
    assert nibabel.load("named/UP_enhanced.nii.gz").header["descrip"] == b"patient 2"
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag([1, 1, 2, 1]), header),
                 "UP.NII.GZ")
    assert "another sampling (sampling.conditions.hash" in refused(Path(), generate.main, *DRAW, *draw,
                                                                   "sampling.outdir=named")


def test_nothing_is_said_to_be_written_where_nothing_is():
    Path("taken").mkdir()
    Path("taken/scan_enhanced.nii.gz").write_bytes(b"mine")
    said = drawn("taken", "sampling.conditions=scan.nii.gz")[1]
    assert "was not written by generate, and is left as it is" in said and "Enhanced" not in said


def test_splits_without_items_are_passed_over():
    assert chosen_split(Path("a.h5"), {"train": 2, "test": 0, "val": 3}, None) == "val"
    for split, words in ((None, "a.h5: its splits test are empty"), ("test", "_split=test: a.h5 has no items")):
        with pytest.raises(ValueError, match=words):
            chosen_split(Path("a.h5"), {"test": 0}, split)


def test_some_slices_alone_make_no_volume():
    _, said = drawn("some", "sampling.conditions=scan.nii.gz", "sampling.seeds=1")
    assert "2 slices are not drawn" in said and not Path("some/scan_enhanced.nii.gz").exists()
    with np.load("some/enhanced.npz") as found:
        assert found["slice_ids"].tolist() == [2] and "std" not in found and found["mean"].shape == (1, 1, SIZE, SIZE)


def test_other_sizes_are_padded_and_cropped_where_told_and_put_back():
    line = refused(Path(), generate.main, *DRAW, "sampling.conditions=wide.nii")
    assert "wide.nii: scans are 21x13, the network is told 16x16; resample them first, or pad and crop them" in line
    file, said = drawn("fitted", "sampling.conditions=wide.nii", "sampling.scan.fit=true")
    assert "voxels are 5 x 5 mm within a slice, those of training 4 mm" in said
    found = nibabel.load("fitted/wide_enhanced.nii.gz")
    volume = found.get_fdata()
    assert volume.shape == (21, 13, 4) and (found.affine == np.diag([5.0, 5, 5, 1])).all()
    np.testing.assert_allclose(volume[2:18, :, 1], file.row("images", 0)[0][:, 1:14], rtol=1e-6)
    assert not volume[:2].any() and not volume[18:].any()
    np.testing.assert_allclose(file.affine_of(0)[:3, 3], [10, -5, 5])


@pytest.mark.parametrize("name", ["scan.npz", "scan.npy", "samples", "volumes.h5"])
def test_every_kind_of_file_holds_the_same_scans(name, scan):
    if name == "samples":
        name = str(drawn("single", "sampling.conditions=scan.nii.gz")[0].path)
    if name == "volumes.h5":
        meta = VolumesMeta(2, ("low dose", "ct"), ("target", "condition"), (), (), (), (),
                           Intensity(0, 1, False, "Bq/ml"))
        with VolumesWriter(name, meta, {"kind": "test"}) as writer:
            for i, image in enumerate(scan[1:]):
                writer.add("test", Item(np.stack([image, image * 0]), None, None, None, f"item-{i}", f"item-{i}",
                                        np.eye(4), np.array([[0, 0, 0], [SIZE, SIZE, 1]])))
    file = read_scans(name, 2)
    np.testing.assert_allclose(file.images, scan[1:, None].astype(np.int16) if "single" in name else scan[1:, None],
                               rtol=1e-6)
    assert file.unit == (None if name == "scan.npy" else "Bq/ml") and len(set(file.ids)) == 3


def test_stacks_are_told_whole(scan):
    np.savez("stack.npz", images=scan[None], unit=np.array("Bq/ml"))
    for name in ("stack.npz", "scan.nii.gz"):
        file = read_scans(name, 3)
        np.testing.assert_allclose(file.images, scan[None, None], atol=1)
    assert np.array_equal(file.affine, read_volume(Path("scan.nii.gz")).affine)


def test_units_that_differ_are_named_and_may_be_said_otherwise():
    line = refused(Path(), generate.main, *DRAW, "sampling.conditions=other.npz")
    assert "other.npz: is in 'SUV', the network was trained on 'Bq/ml'" in line
    file, said = drawn("suv", "sampling.conditions=other.npz", "sampling.scan.unit=SUV", "sampling.scan.dose=0.2")
    assert file.meta.facts.intensity.unit == "SUV" and file.array("doses") == pytest.approx([0.2] * 3)
    with np.load("suv/enhanced.npz") as found:
        assert str(found["unit"]) == "SUV" and found["slice_ids"].tolist() == [0, 1, 2]


def test_draws_of_simulated_scans_are_averaged_seed_by_seed():
    file, _ = drawn("simulated", "sampling.conditions=phantoms.npz", "sampling.seeds=0,3", "sampling.montage=2",
                    "sampling.samples_per_condition=2")
    with np.load("simulated/enhanced.npz") as found:
        assert found["seeds"].tolist() == [0, 3] and found["slice_ids"].tolist() == [0, 0]
        np.testing.assert_allclose(found["mean"][1], file.array("images")[2:].mean(axis=0), rtol=1e-5, atol=1e-3)
    assert Path("simulated/samples.png").stat().st_size > 10_000
    assert "enhanced scans" in succeed(dataset_tool.main, "check", "simulated")
    assert "activity phantoms" in succeed(dataset_tool.main, "check", "phantoms.npz")


def test_arrays_are_enhanced_from_python(scan):
    model = Model.load("pet.pt")
    found = model.sample(images=scan[1:, None], num_steps=2, samples_per_condition=2)
    assert found.images.shape == (6, 1, SIZE, SIZE) and found.units == "Bq/ml"
    np.testing.assert_array_equal(found.arrays["cond_images"][2], scan[2][None])
    by_file = model.sample([1], conditions="scan.npz", num_steps=2)
    np.testing.assert_allclose(by_file.images[0], found.images[2], rtol=1e-3, atol=1)
    for images, words in ((scan[1:, None, :8], r"images: scans are 8x16"), (-scan[1:], "images: 0 has negative values"),
                          ([scan[1], scan[1][:8]], "images: .* wanted one size")):
        with pytest.raises(ValueError, match=words):
            model.sample(images=images)
    with pytest.raises(ValueError, match="maps: the network is told low-dose images"):
        model.sample(maps=scan[1:].astype(int))


def bad(images: np.ndarray, place: tuple, value: float) -> np.ndarray:
    changed = images.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(("arrays", "wanted"), [
    (lambda s: {"images": bad(s, (1,), 0)}, "bad.npz: slice1 is 0 everywhere, and has no scale"),
    (lambda s: {"images": bad(s, (2, 3, 3), -1)}, "bad.npz: slice2 has negative values (down to -1)"),
    (lambda s: {"images": bad(s, (0, 3, 3), np.nan)}, "bad.npz: slice0 has values that are not finite"),
    (lambda s: {"images": bad(s.astype(float), (0, 3, 3), 1e300)}, "bad.npz: slice0 has values that are not finite"),
    (lambda s: {"image": s, "x": s}, "bad.npz: no array 'images', it has image, x; wanted a low-dose scan"),
    (lambda s: {"sinogram": s, "x": s}, "'sinogram' looks like measured counts, which have to be reconstructed first"),
    (lambda s: {"images": np.ones((3, 32, 16))}, "32 angles x 16 shifts are those of a sinogram"),
    (lambda s: {"images": np.ones(7)}, "bad.npz: images are float64 [7], wanted numbers [H,W], [N,H,W] or [N,1,H,W]"),
    (lambda s: {"images": s, "unit": np.array([1, 2])}, "bad.npz: unit is int64 [2], wanted one text"),
    (lambda s: {"images": s, "affine": np.zeros((4, 4))}, "bad.npz: affine is float64 [4, 4], wanted one of voxels"),
])
def test_scans_that_cannot_be_are_refused(arrays, wanted, scan):
    np.savez("bad.npz", **arrays(scan[1:]))
    assert wanted in refused(Path(), generate.main, *DRAW, "sampling.conditions=bad.npz", "sampling.seeds=0")


@pytest.mark.parametrize(("arguments", "wanted"), [
    (["sampling.conditions=scan.npz", "sampling.scan.counts=1e5"], "scan.npz holds scans, of which nothing is"),
    (["sampling.conditions=scan.npz", "sampling.conditions_split=val"], "scan.npz has no splits"),
    (["sampling.conditions=pet.pt"], "pet.pt: wanted a low-dose scan"),
    (["sampling.conditions=."], "sampling.conditions=.: a folder without slices; wanted a low-dose scan"),
    (["sampling.conditions=zero.nii"], "zero.nii: slice0 is 0 everywhere"),
    (["sampling.conditions=frames.nii"], "frames.nii: has 2 channels or frames"),
])
def test_files_that_are_no_scans_are_refused(arguments, wanted):
    nibabel.save(nibabel.Nifti1Image(np.zeros((SIZE, SIZE, 3), np.float32), np.eye(4)), "zero.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((SIZE, SIZE, 3, 2), np.float32), np.eye(4)), "frames.nii")
    assert wanted in refused(Path(), generate.main, *DRAW, *arguments)
