"""From folders of files to a volumes file: values, places, names, and every refusal."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path
from scipy.spatial.transform import Rotation

from edm3d.formats import geometry
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import write_nifti
from edm3d.formats.prepare import PrepareOptions, prepare
from edm3d.formats.volumes import VolumesFile

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [15, -10, 30], degrees=True).as_matrix() @ np.diag([2.0, 2.0, 3.0])
OBLIQUE[:3, 3] = [-30.0, 20.0, 11.0]
ALL = PrepareOptions(split=(1.0,))


def random_image(number, shape=(8, 7, 6)):
    return np.random.default_rng(number).random(shape, dtype=np.float32) * 10 + number


@pytest.fixture
def folders(tmp_path):
    """Ten NIfTI cases; the label is 1 where the image is above its middle."""
    for n in range(10):
        image = random_image(n)
        write_nifti(tmp_path / "images" / f"case{n}.nii.gz", image, OBLIQUE)
        write_nifti(tmp_path / "labels" / f"case{n}.nii.gz", (image > n + 5).astype(np.uint8), OBLIQUE)
    return tmp_path


def run(folder, options=ALL, labels=True, **kwargs) -> VolumesFile:
    prepare(folder / "images", folder / "labels" if labels else None, folder / "out" / "v.h5", options, overwrite=True,
            **kwargs)
    return VolumesFile(folder / "out" / "v.h5")


def refused(folder, message, options=ALL, **kwargs):
    with pytest.raises(ValueError, match=message):
        run(folder, options, **kwargs)
    assert not (folder / "out").is_dir() or not list((folder / "out").iterdir())


# ---- what comes out ----


def test_values_places_and_contract_are_kept(folders):
    file = run(folders, PrepareOptions())
    assert {s: file.length(s) for s in file.splits} == {"train": 8, "val": 1, "test": 1}
    assert file.meta.label_classes == ("class_0", "class_1") and file.meta.channels == ("image",)
    values = []
    for split in file.splits:
        for index, name in enumerate(file.ids(split)):
            item, image = file.read(split, index), random_image(int(name[4:]))
            np.testing.assert_array_equal(item.image[0], image)
            np.testing.assert_array_equal(item.label, image > int(name[4:]) + 5)
            np.testing.assert_allclose(item.affine, OBLIQUE, atol=1e-5)
            values += [image.min(), image.max()] if split == "train" else []
    assert file.meta.intensity == Intensity(float(min(values)), float(max(values)), False, "a.u.")
    assert file.provenance["kind"] == "prepare" and file.provenance["options"]["seed"] == 0
    assert str(folders) not in str(file.provenance)


def test_landmark_of_an_oblique_scan_keeps_its_place(tmp_path):
    landmark = OBLIQUE[:3] @ [17, 12, 10, 1]
    world = np.moveaxis(np.indices((32, 30, 22)), 0, -1) @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    distance = np.linalg.norm(world - landmark, axis=-1)
    write_nifti(tmp_path / "images" / "a_0000.nii", np.exp(-(distance**2) / 128), OBLIQUE)
    write_nifti(tmp_path / "labels" / "a.nii.gz", (distance < 10).astype(np.uint8), OBLIQUE)
    file = run(tmp_path, PrepareOptions((24, 40, 24), (2.5, 2.0, 2.0), "LPS", split=(1.0,)))
    item = file.read("train", 0)
    assert item.image.shape == (1, 24, 40, 24)
    np.testing.assert_allclose(np.linalg.norm(item.affine[:3, :3], axis=0), [2.5, 2, 2])
    assert abs(np.linalg.det(item.affine)) == pytest.approx(10)
    # 32 x 30 x 22 voxels of 2, 2, 3 mm are 64 x 60 x 66 mm: 26 x 30 x 33 new voxels, the first and last axis cropped
    np.testing.assert_array_equal(item.box, [[0, 5, 0], [24, 35, 24]])
    for weights in (item.image[0], item.label):
        index = [(weights * i).sum() / weights.sum() for i in np.indices(weights.shape)]
        np.testing.assert_allclose(item.affine[:3, :3] @ index + item.affine[:3, 3], landmark, atol=0.4)
    assert item.label.sum() * 10 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.05)


def test_percentiles_scale_each_volume_before_cropping(folders):
    file = run(folders, PrepareOptions(size=(4, 10, 6), percentiles=(5, 95), split=(1.0,)))
    assert file.meta.intensity == Intensity(0, 1, True, "percentile 5-95")
    original = random_image(3)
    lo, hi = np.percentile(original, [5, 95])
    row = file.ids("train").index("case3")
    np.testing.assert_allclose(file.table("train", "intensity_ranges")[row], [[lo, hi]], rtol=1e-6)
    item = file.read("train", row)
    expected = np.clip((original - lo) / (hi - lo), 0, 1)
    np.testing.assert_allclose(item.image[0, :, 1:8], expected[2:6], atol=1e-5)
    assert item.image[0, :, 0].max() == 0 and item.label[:, 8:].max() == 0
    np.testing.assert_array_equal(item.box, [[0, 1, 0], [4, 8, 6]])


CLIPPED = [
    ({"percentiles": (0, 90)}, ["clipped: 10 % of the training voxels"]),
    ({"percentiles": (0, 1)}, [  # meant as fractions
        "clipped: 99 % of the training voxels",
        "Note: --percentiles 0 1 clips much; percentiles go from 0 to 100, as in 0 99.5"]),
    ({"value_range": (0, 99)}, ["clipped: 0 % of the training voxels"]),
    ({"value_range": (0, 49)}, [  # the test image, which has other values, does not count
        "2 of 2 images have values outside --range 0 49, which were clipped", "clipped: 50 % of the training voxels",
        "Note: --range 0 49 clips much; wanted the lowest and the highest value in the units of the files"]),
    ({"percentiles": (0, 1), "clip": False}, []), ({}, []),
]


@pytest.mark.parametrize("options, lines", CLIPPED)
def test_says_how_many_training_voxels_are_clipped(tmp_path, options, lines):
    ramp = np.arange(100, dtype=np.float32).reshape(5, 5, 4)  # its values 0 to 99, each once
    for name, image in {"a": ramp, "b": np.where(ramp == 0, 99, 60)}.items():
        write_nifti(tmp_path / "images" / f"{name}.nii", image.astype(np.float32), np.eye(4))
    (tmp_path / "t.csv").write_text("id,split\na,train\nb,test\n")
    if "percentiles" in options:  # those of the other one coincide
        write_nifti(tmp_path / "images" / "b.nii", ramp, np.eye(4))
    made = prepare(tmp_path / "images", None, tmp_path / "v.h5", PrepareOptions(**options), table=tmp_path / "t.csv")
    assert made.notes == lines


def test_padding_without_percentiles_is_the_minimum(folders):
    item = run(folders, PrepareOptions(size=(8, 9, 6), split=(1.0,))).read("train", 4)
    assert (item.image[0, :, 0] == random_image(4).min()).all()


def test_label_on_another_grid_is_brought_onto_the_image(folders):
    coarse = OBLIQUE.copy()
    coarse[:3, :3] *= 2
    coarse[:3, 3] = OBLIQUE[:3] @ [0.5, 0.5, 0.5, 1]
    label = np.zeros((4, 4, 3), np.uint8)
    label[1, 2, 0] = 1
    write_nifti(folders / "labels" / "case0.nii.gz", label, coarse)
    moved = run(folders).read("train", 0).label
    expected = np.zeros((8, 7, 6), np.uint8)
    expected[2:4, 4:6, 0:2] = 1
    np.testing.assert_array_equal(moved, expected)


def test_label_in_another_order_of_axes_is_turned_and_counted(folders):
    label = np.random.default_rng(0).integers(0, 2, (8, 7, 6)).astype(np.uint8)
    turned, affine = geometry.reorient(label[None], OBLIQUE, "SLP")
    write_nifti(folders / "labels" / "case3.nii.gz", turned[0], affine)
    notes = prepare(folders / "images", folders / "labels", folders / "v.h5", ALL).notes
    assert notes == ["1 of 10 label maps have their axes in another order or direction than their image and were "
                     "turned onto it, no voxel changed"]
    file = VolumesFile(folders / "v.h5")
    np.testing.assert_array_equal(file.read("train", file.ids("train").index("case3")).label, label)


def part_of_a_label_outside(folders) -> str:
    """Cut the image of case 0 off behind its fourth slice, under a label map of 10 voxels in slices 0 to 4."""
    label = np.zeros((8, 7, 6), np.uint8)
    label[:5, 2, 2:4] = 1
    write_nifti(folders / "labels" / "case0.nii.gz", label, OBLIQUE)
    write_nifti(folders / "images" / "case0.nii.gz", random_image(0)[:4], OBLIQUE)
    return "2 of 10 labelled voxels (20 %) were lost, 120 mm3 became 96"


def test_label_that_loses_too_much_is_refused_with_both_grids(folders):
    lost = part_of_a_label_outside(folders)
    options = PrepareOptions(size=(8, 7, 6), split=(1.0,))
    with pytest.raises(ValueError) as caught:
        run(folders, options)
    line = str(caught.value).splitlines()[1]
    assert len(str(caught.value).splitlines()) == 2
    for part in ("labels/case0.nii.gz", lost, "--max-label-loss 0.01", "label map 8x7x6 voxels", "image 4x7x6 voxels",
                 str(OBLIQUE.astype(np.float32).round(4)[0, 0])):
        assert part in line
    made = prepare(folders / "images", folders / "labels", folders / "v.h5", replace(options, max_label_loss=0.2))
    assert made.notes == [f"1 of 10 label maps lay on another grid than their image and were resampled onto it "
                          f"(nearest); case0: {lost}"]
    assert VolumesFile(folders / "v.h5").read("train", 0).label.sum() == 8
    with pytest.raises(ValueError, match="case0.*were lost.*--max-label-loss 0.19"):
        run(folders, replace(options, max_label_loss=0.19))


def test_class_that_vanishes_between_the_voxels_is_lost(folders):
    fine, label = OBLIQUE @ np.diag([1, 1, 0.2, 1]), np.zeros((8, 7, 30), np.uint8)
    fine[:3, 3] = OBLIQUE[:3] @ [0, 0, -0.4, 1]  # five slices to one
    label[2:6, 2:6, 5:15] = 1
    label[2, 2, 5] = 2  # its one voxel is not the middle one of the five
    write_nifti(folders / "labels" / "case0.nii.gz", label, fine)
    refused(folders, r"case0\.nii\.gz: 1 of 160 labelled voxels \(0\.625 %, all of class 2\) were lost",
            PrepareOptions(max_label_loss=0.005, split=(1.0,)))
    options = PrepareOptions(classes=("a", "b", "c"), split=(1.0,))
    made = prepare(folders / "images", folders / "labels", folders / "v.h5", options)
    assert "case0: 1 of 160" in made.notes[0]
    assert "384 mm3 became 384" in made.notes[0]
    assert VolumesFile(folders / "v.h5").read("train", 0).label.sum() == 32  # 4 x 4 x 2 voxels of class 1
    for path in (folders / "labels").glob("case[1-9].*"):
        write_nifti(path, np.arange(336).reshape(8, 7, 6).astype(np.uint8) % 3, OBLIQUE)  # class 2, which others keep
    assert run(folders, replace(options, classes=())).meta.label_classes == ("class_0", "class_1", "class_2")


def test_label_that_becomes_another_volume_is_said(folders):
    tiny = OBLIQUE.copy()
    tiny[:3, :3] *= 0.01  # as where centimetres were taken for mm, all within the first voxel of the image
    write_nifti(folders / "labels" / "case0.nii.gz", np.ones((8, 7, 6), np.uint8), tiny)
    made = prepare(folders / "images", folders / "labels", folders / "v.h5", PrepareOptions(classes=("a", "b")))
    assert made.notes[0].endswith("case0: 0 of 336 labelled voxels (0 %) were lost, 0.004032 mm3 became 12")


def test_classes_that_larger_voxels_lose_are_said(folders):
    label = np.ones((8, 7, 6), np.uint8)
    label[1, 3, 3] = 2  # between the new centres
    write_nifti(folders / "labels" / "case4.nii.gz", label, OBLIQUE)
    options = PrepareOptions(spacing=(6, 6, 9), classes=("a", "b", "c"), split=(1.0,))
    made = prepare(folders / "images", folders / "labels", folders / "v.h5", options)
    assert [note for note in made.notes if note.startswith("Note")] == [
        "Note: 1 of 10 label maps lost whole classes on the new voxels, which are too large for them (case4: 2)"]


@pytest.mark.parametrize("given", [{"spacing": (3, 3, 3)}, {"fit": (8, 8, 8)}])
def test_images_are_blurred_before_they_shrink(tmp_path, given):
    board = (np.indices((24, 24, 24)).sum(0) % 2 * 100).astype(np.float32)
    write_nifti(tmp_path / "images" / "a.nii", board, np.eye(4))
    file = run(tmp_path, PrepareOptions(split=(1.0,), **given), labels=False)
    image = file.read("train", 0).image
    assert image.shape == (1, 8, 8, 8) and abs(image.mean() - 50) < 0.01 and image.std() < 0.05
    assert file.provenance["options"]["antialias"] is True
    file = run(tmp_path, PrepareOptions(split=(1.0,), antialias=False, **given), labels=False)
    np.testing.assert_allclose(file.read("train", 0).image[0], board[1::3, 1::3, 1::3], atol=1e-6)
    assert file.provenance["options"]["antialias"] is False


def test_table_gives_groups_classes_splits_and_attributes(folders):
    rows = [f"case{n},p{n // 2},{'AB'[n % 2]},{('train', 'test')[n // 8]},{n}.5" for n in range(10)]
    (folders / "t.csv").write_text("id,group,class,split,age [y]\n" + "\n".join(rows) + "\nother,x,A,train,1\n")
    file = run(folders, PrepareOptions(), table=folders / "t.csv")
    assert file.ids("test") == ["case8", "case9"] and file.groups("test") == ["p4", "p4"]
    assert file.meta.class_names == ("A", "B") and file.meta.attribute_units == ("y",)
    assert file.meta.intensity.hi == random_image(7).max()  # of the training split
    item = file.read("train", 3)
    assert item.class_index == 1 and item.attributes == np.float32(3.5)


def several_of_each(folder, words=("flair", "t1")) -> None:
    """Five patients, an image of each word of each."""
    for n in range(10):
        write_nifti(folder / "images" / f"p{n // 2}_{words[n % 2]}.nii", random_image(n), OBLIQUE)


def splits_of(file: VolumesFile) -> dict[str, str]:
    return {id_: split for split in file.splits for id_ in file.ids(split)}


@pytest.mark.parametrize("words", [("flair", "t1"), ("ED", "ES"), ("foo", "bar")])
def test_images_of_one_patient_stay_in_one_split(tmp_path, words):
    several_of_each(tmp_path, words)
    for seed in range(3):
        file = run(tmp_path, PrepareOptions(seed=seed), labels=False)
        split_of = splits_of(file)
        assert all(split_of[f"p{n}_{words[0]}"] == split_of[f"p{n}_{words[1]}"] for n in range(5))
        assert {*file.groups("train"), *file.groups("val"), *file.groups("test")} == {f"p{n}" for n in range(5)}
        (tmp_path / "out" / "v.h5").unlink()


def test_a_table_says_which_are_of_one_patient_and_what_it_says_too_much(tmp_path):
    several_of_each(tmp_path)
    table, ids = tmp_path / "t.csv", [f"p{n // 2}_{('flair', 't1')[n % 2]}" for n in range(10)]

    def made(text: str) -> list[str]:
        table.write_text(text)
        return prepare(tmp_path / "images", None, tmp_path / "v.h5", ALL, table=table, overwrite=True).notes

    notes = made("id,age\n" + "\n".join(f"{id_},1" for id_ in [*ids, "x", "P0_t1"]))
    assert f"2 of 12 rows of {table} have no image and are left out: x, P0_t1; capital and small letters differ: " \
           "P0_t1 and p0_t1" in notes
    assert "by their names 10 of 10 volumes are several of one patient, 5 in all" in notes[-1]
    notes = made("id,group\n" + "\n".join(f"{id_},{id_}" for id_ in ids))
    assert not any("of one patient" in note for note in notes)
    assert VolumesFile(tmp_path / "v.h5").groups("train") == sorted(ids)
    notes = made("id,split\n" + "\n".join(f"{id_},{('train', 'val')[id_ == 'p1_t1']}" for id_ in ids))
    assert "several splits that by their names are of one patient: p1 in train and val" in notes[-1]


def test_two_dimensional_npz_with_channels_and_labels_inside(tmp_path):
    (tmp_path / "images").mkdir()
    for n in range(3):
        image = random_image(n, (2, 6, 5))
        np.savez(tmp_path / "images" / f"s{n}.npz", image=image, label=np.full((6, 5), n))
    options = PrepareOptions(size=(4, 8), split=(1.0,), channels=("t1", "t2"), classes=("a", "b", "c"))
    file = run(tmp_path, options, labels=False)
    assert file.meta.spatial_dims == 2 and file.spatial_shape("train") == (4, 8)
    item = file.read("train", 2)
    np.testing.assert_array_equal(item.image[:, :, 1:6], random_image(2, (2, 6, 5))[:, 1:5])
    np.testing.assert_array_equal(item.box, [[0, 1, 0], [4, 6, 1]])
    assert (item.label[:, 1:6] == 2).all() and item.label.sum() == 40


def test_nibabels_own_files(tmp_path):
    for name in ("anatomical.nii", "example4d.nii.gz"):
        source = nibabel.load(Path(data_path) / name)
        folder = tmp_path / name.split(".")[0]
        (folder / "images").mkdir(parents=True)
        (folder / "images" / name).symlink_to(Path(data_path) / name)
        item = run(folder, labels=False).read("train", 0)
        values = source.get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(item.image, values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0))
        np.testing.assert_allclose(item.affine, source.affine, atol=1e-5)
        item = run(folder, PrepareOptions((30, 50, 30), orientation="RAS", split=(1.0,)), labels=False).read("train", 0)
        voxel = item.box[0] + [2, 3, 4]
        place = np.linalg.inv(source.affine) @ item.affine @ [*voxel, 1]
        index = np.rint(place[:3]).astype(int)
        np.testing.assert_allclose(place[:3], index, atol=1e-4)
        np.testing.assert_array_equal(item.image[(slice(None), *voxel)], np.ravel(values[tuple(index)]))


# ---- what is refused ----


def test_all_bad_files_are_named_at_once(folders):
    images = folders / "images"
    write_nifti(images / "case0.nii.gz", np.full((8, 7, 6), np.nan, np.float32), OBLIQUE)
    write_nifti(images / "case1.nii.gz", np.full((8, 7, 6), 3.0, np.float32), OBLIQUE)
    content = (images / "case2.nii.gz").read_bytes()
    (images / "case2.nii.gz").write_bytes(content[: len(content) // 2])
    (images / "case3.nii.gz").write_bytes(b"hello")
    write_nifti(folders / "labels" / "case4.nii.gz", np.full((8, 7, 6), 300, np.int16), OBLIQUE)
    write_nifti(folders / "labels" / "case5.nii.gz", np.full((8, 7, 6), 0.5, np.float32), OBLIQUE)
    write_nifti(images / "case6.nii.gz", np.zeros((8, 7), np.float32), OBLIQUE, spatial_dims=2)
    with pytest.raises(ValueError) as caught:
        run(folders)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 10 volumes cannot be used:" and len(lines) == 8
    wanted = ["NaN", "constant", "cannot be read", "cannot be read", "values 300 are outside", "whole numbers", "slice"]
    for number, (line, text) in enumerate(zip(lines[1:], wanted)):
        assert f"case{number}.nii.gz" in line and text in line


@pytest.mark.parametrize(
    "options, message",
    [
        (PrepareOptions(size=(8, 8)), r"case0\.nii\.gz: shape"),
        (PrepareOptions(size=(8, 0, 8)), "--size 8 0 8"),
        (PrepareOptions(spacing=(1.0, 1.0)), "--spacing 1 1: 2 numbers, but the volumes have three axes"),
        (PrepareOptions(percentiles=(99.0, 1.0)), "--percentiles 99 1"),
        (PrepareOptions(antialias=False), "--no-antialias: nothing is resampled"),
        (PrepareOptions(max_label_loss=1.5), "--max-label-loss 1.5: wanted a share"),
        (PrepareOptions(max_label_loss=float("nan")), "--max-label-loss nan"),
        (PrepareOptions(spacing=(1, 1, float("inf"))), "--spacing 1 1 inf"),
        (PrepareOptions(spacing=(1, 1, 1e-300)), r"case0\.nii\.gz: --spacing: voxels of 1x1x1e-300 mm are too small"),
        (PrepareOptions(spacing=(1e-4, 1e-4, 1e-4)), r"case0\.nii\.gz: --spacing .* makes 160000x140000x180000 voxels"),
        (PrepareOptions(orientation="RRS"), "--orientation RRS"),
        (PrepareOptions(classes=("only",)), r"case0\.nii\.gz: label values 1 are outside 0\.\.0.*--classes"),
        (PrepareOptions(channels=("a", "b")), r"case0\.nii\.gz: 1 channels, 2 have names: a, b.*--channels"),
        (PrepareOptions(split=(0.5, 0.4)), "--split 0.5 0.4"),
        (PrepareOptions(spatial_dims=4), "--spatial-dims 4"),
        (PrepareOptions(size=(32,)), "^--size 32: one number, but the volumes have three axes; wanted one number for"),
        (PrepareOptions(size=(32,), spatial_dims=3), "^--size 32: one number, but --spatial-dims is 3"),
        (PrepareOptions(size=(8, 8, 8), spacing=(1, 1)), "^--spacing 1 1: 2 numbers, but --size has 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(folders, options, message):
    refused(folders, message, options)


def test_too_few_groups_for_the_splits(folders):
    (folders / "t.csv").write_text("id,group\n" + "\n".join(f"case{n},p{n // 5}" for n in range(10)))
    refused(folders, "empty split: 2 group.*Volumes of one patient stay together, as case0, case1, .*--table",
            PrepareOptions(), table=folders / "t.csv")


def test_table_that_does_not_fit(folders):
    table = folders / "t.csv"
    rows = [f"case{n},g,{('train', 'val')[n % 2]}" for n in range(10)]
    table.write_text("id,group,split\n" + "\n".join(rows))
    refused(folders, "group 'g' would be in splits 'train' and 'val'", table=table)
    table.write_text("id\n" + "\n".join(f"case{n}" for n in range(8)))
    refused(folders, r"no row for 2 image\(s\): case8, case9", table=table)
    table.write_text("id\n" + "\n".join(f"{'Case' if n > 8 else 'case'}{n}" for n in range(10)))
    refused(folders, r"case9; capital and small letters differ: case9 and Case9$", table=table)
    table.write_text("id\n" + "\n".join(f"case{n}.nii.gz" for n in range(10)))
    refused(folders, r"ids go without the suffix of the file, as case0 for case0\.nii\.gz$", table=table)
    table.write_text("id,split\n" + "\n".join(f"case{n},{'train' if n else ''}" for n in range(10)))
    refused(folders, "'split' is empty for case0", table=table)


def test_cases_that_differ_are_refused(folders):
    write_nifti(folders / "images" / "case9.nii.gz", random_image(9, (8, 7, 5)), OBLIQUE)
    write_nifti(folders / "labels" / "case9.nii.gz", np.ones((8, 7, 5), np.uint8), OBLIQUE)
    refused(folders, "case9 8x7x5.*--size")
    flipped = OBLIQUE @ np.diag([-1, 1, 1, 1])
    write_nifti(folders / "images" / "case9.nii.gz", random_image(9), flipped)
    write_nifti(folders / "labels" / "case9.nii.gz", np.ones((8, 7, 6), np.uint8), flipped)
    refused(folders, "case9 LAS.*--orientation")
    for name, array in (("images", random_image(9)), ("labels", np.ones((8, 7, 6), np.uint8))):
        (folders / name / "case9.nii.gz").unlink()
        np.save(folders / name / "case9.npy", array)
    refused(folders, "case9 none.*; those without one have no affine")  # --orientation would not help
    for name in ("images", "labels"):
        (folders / name / "case9.npy").unlink()
    write_nifti(folders / "images" / "case9.nii.gz", random_image(9, (2, 8, 7, 6)), OBLIQUE)
    write_nifti(folders / "labels" / "case9.nii.gz", np.ones((8, 7, 6), np.uint8), OBLIQUE)
    refused(folders, r"case9\.nii\.gz: 2 channels, case0 has 1")


def rewrite_case9(folder, affine):
    """Give the last case another affine, its voxels unchanged."""
    write_nifti(folder / "images" / "case9.nii.gz", random_image(9), affine)
    write_nifti(folder / "labels" / "case9.nii.gz", np.indices((8, 7, 6)).sum(0).clip(0, 1).astype(np.uint8), affine)


def test_voxel_sizes_that_differ_are_refused(folders):
    rewrite_case9(folders, OBLIQUE @ np.diag([2, 2, 1, 1]))
    for options in (ALL, PrepareOptions(size=(8, 8, 8), split=(1.0,))):
        refused(folders, r"voxel size, in mm \(case0\.nii\.gz 2x2x3; case9\.nii\.gz 4x4x3\); give --spacing", options)
    file = run(folders, PrepareOptions((8, 8, 8), (2, 2, 3), split=(1.0,)))
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in file.affines("train")]
    np.testing.assert_allclose(sizes, np.tile([2.0, 2.0, 3.0], (10, 1)))


def test_rounding_in_headers_is_no_other_voxel_size(folders):
    rewrite_case9(folders, OBLIQUE @ np.diag([1.0005, 1, 1, 1]))
    assert run(folders).length("train") == 10


def test_without_geometry_nothing_is_resampled(folders):
    np.save(folders / "labels" / "case9.npy", np.ones((8, 7, 5), np.uint8))
    (folders / "labels" / "case9.nii.gz").unlink()
    refused(folders, r"case9\.npy: is on another grid than its image \(\(8, 7, 5\), .*label map has no affine")
    for folder in ("images", "labels"):
        for n in range(10):
            (folders / folder / f"case{n}.nii.gz").unlink(missing_ok=True)
        np.save(folders / folder / "case9.npy", np.indices((8, 7, 6))[0] % 2)
    refused(folders, r"case9\.npy: has no affine, which --spacing", PrepareOptions(spacing=(1, 1, 1), split=(1.0,)))
    assert run(folders).length("train") == 1


@pytest.mark.parametrize(("values", "wanted"), [
    ([-1, 1003], "label values -1, 1003 are outside 0..255; a label map has 256 classes at most, and none below 0: re"),
    ([0, 200], "outside 0..1; name all classes with --classes"), ([0, 1e300], r"label values 1e\+300 are outside"),
])
def test_advice_on_label_values_is_one_that_can_help(folders, values, wanted):
    label = np.resize(np.array(values, np.float64), (8, 7, 6))
    np.savez(folders / "labels" / "case0.npz", label=label, affine=OBLIQUE)
    (folders / "labels" / "case0.nii.gz").unlink()
    classes = () if values[0] < 0 else ("a", "b")
    refused(folders, wanted, PrepareOptions(classes=classes, split=(1.0,)))


@pytest.mark.parametrize(("value", "options", "wanted"), [
    (1e300, {}, r"1 values lie beyond 3\.4e\+38, the most that single precision holds: they go from 0 to 1e\+300"),
    (np.inf, {}, "1 values are NaN or infinite"),
    (3e38, {"percentiles": (0, 99), "clip": False}, "too near or too far apart for single precision"),
])
def test_values_beyond_single_precision_are_named(tmp_path, value, options, wanted):
    (tmp_path / "images").mkdir()
    image = np.linspace(0, 1e-30, 8000).reshape(20, 20, 20)
    image[3, 3, 3] = value
    np.save(tmp_path / "images" / "a.npy", image)
    refused(tmp_path, rf"a\.npy: .*{wanted}", PrepareOptions(split=(1.0,), **options), labels=False)


def test_coinciding_percentiles_and_far_labels_are_refused(folders):
    image = np.zeros((8, 7, 6), np.float32)
    image[0, 0, 0] = 1
    write_nifti(folders / "images" / "case0.nii.gz", image, OBLIQUE)
    far = OBLIQUE.copy()
    far[:3, 3] += 1000
    write_nifti(folders / "labels" / "case1.nii.gz", np.ones((8, 7, 6), np.uint8), far)
    refused(folders, "(?s)percentiles 0 90 coincide.*case1.*outside its image", PrepareOptions(percentiles=(0, 90)))
