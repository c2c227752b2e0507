"""Medical Decathlon tasks, choice of channels, shrinking to fit and unclipped scaling, from files to a volumes file."""

import json
import random
from pathlib import Path

import nibabel
import numpy as np
import pytest

import dataset_tool
from edm3d.formats.decathlon import read_task
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import write_nifti
from edm3d.formats.volumes import VolumesFile
from tests.commands import call, refused, succeed

MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
LABELS = {"0": "background", "1": "edema", "2": "tumour"}
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])  # the first two axes point left and back
CASES = [f"BRATS_{n:03d}" for n in range(1, 11)]


def volume(number: int, shape=(8, 7, 6)) -> np.ndarray:
    """Four channels, no two alike."""
    return np.random.default_rng(number).normal(100 + number, 10, (4, *shape)).astype(np.float32)


def label(number: int, shape=(8, 7, 6)) -> np.ndarray:
    """Classes 0 to 2; some volumes lack the last, as some patients do."""
    return (np.indices(shape)[0] // 3).clip(0, 1 if number % 3 == 0 else 2).astype(np.uint8)


@pytest.fixture
def task(tmp_path) -> Path:
    """A task of ten labelled cases and two without labels."""
    folder = tmp_path / "Task01_BrainTumour"
    for number, case in enumerate(CASES):
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", volume(number), LPS)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", label(number), LPS)
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
    describe(folder, modality=MODALITY, labels=LABELS, training=training[::-1],
             test=["./imagesTs/BRATS_900.nii.gz", "./imagesTs/BRATS_901.nii.gz"])
    return folder


def describe(folder: Path, **keys) -> None:
    """Write dataset.json anew with other keys."""
    path = folder / "dataset.json"
    before = json.loads(path.read_text()) if path.is_file() else {"name": "BRATS"}
    path.write_text(json.dumps({k: v for k, v in {**before, **keys}.items() if v is not None}))


def prepared(task: Path, *options: str) -> tuple[VolumesFile, str]:
    """The volumes file of a task, and what was printed."""
    dest = task.parent / f"out{len(list(task.parent.iterdir()))}.h5"
    said = succeed(dataset_tool.main, "prepare", "--decathlon", str(task), "--dest", str(dest), *options)
    return VolumesFile(dest), said


def fails(task: Path, *options: str) -> str:
    return refused(task.parent, dataset_tool.main, "prepare", "--decathlon", str(task), "--dest",
                   str(task.parent / "no.h5"), *options)


# ---- what comes out ----


def test_all_that_dataset_json_says_arrives(task):
    file, said = prepared(task, "--split", "0.8", "0.2")
    assert file.meta.channels == tuple(MODALITY.values()) and file.meta.label_classes == tuple(LABELS.values())
    assert {split: file.length(split) for split in file.splits} == {"train": 8, "val": 2}
    assert "2 images of the test list have no label map and are left out" in said
    for split in file.splits:
        for row, name in enumerate(file.ids(split)):
            item, number = file.read(split, row), CASES.index(name)
            np.testing.assert_array_equal(item.image, volume(number))
            np.testing.assert_array_equal(item.label, label(number))


def test_the_split_follows_seed_and_names_only(task):
    first = [set(prepared(task, "--split", "0.8", "0.2")[0].ids("val")) for _ in range(2)]
    describe(task, training=json.loads((task / "dataset.json").read_text())["training"][::-1])
    again = set(prepared(task, "--split", "0.8", "0.2")[0].ids("val"))
    assert first[0] == first[1] == again and len(again) == 2
    assert any(set(prepared(task, "--split", "0.8", "0.2", "--seed", str(s))[0].ids("val")) != again for s in (1, 2))


def test_label_maps_may_be_left_aside(task):
    (task / "labelsTr" / f"{CASES[7]}.nii.gz").unlink()
    file, _ = prepared(task, "--images-only", "--channel", "FLAIR", "--split", "1")
    assert file.meta.label_classes == () and file.length("train") == 10 and file.read("train", 0).label is None


@pytest.mark.parametrize(("words", "indices"), [(["FLAIR"], [0]), (["0"], [0]), (["t1gd", "1"], [2, 1])])
def test_channels_are_chosen_by_name_or_number(task, words, indices):
    file, _ = prepared(task, "--channel", *words, "--split", "1")
    assert file.meta.channels == tuple(MODALITY[str(i)] for i in indices)
    row = file.ids("train").index(CASES[3])
    np.testing.assert_array_equal(file.read("train", row).image, volume(3)[indices])


def test_numbers_choose_channels_of_folders_too(task):
    folders = ["--images", str(task / "imagesTr"), "--labels", str(task / "labelsTr"), "--classes", *LABELS.values()]
    dest = str(task.parent / "v.h5")
    succeed(dataset_tool.main, "prepare", *folders, "--dest", dest, "--channel", "3")
    file = VolumesFile(dest)
    assert file.meta.channels == ("image",)
    np.testing.assert_array_equal(file.read("val", 0).image[0], volume(CASES.index(file.ids("val")[0]))[3])


def test_percentiles_are_those_of_the_whole_volume_and_no_clip_keeps_what_lies_above(task):
    options = ["--channel", "FLAIR", "--orientation", "RAS", "--percentiles", "0", "90", "--size", "4", "4", "4",
               "--split", "1"]
    whole = volume(4)[0]
    lo, hi = np.percentile(whole, [0, 90])
    turned = ((whole - lo) / (hi - lo))[::-1, ::-1][2:6, 1:5, 1:5]  # LPS -> RAS, centre crop
    for flags, wanted in (([], turned.clip(0, 1)), (["--no-clip"], turned)):
        file, _ = prepared(task, *options, *flags)
        item = file.read("train", file.ids("train").index(CASES[4]))
        np.testing.assert_allclose(item.image[0], wanted, atol=1e-5)
        assert file.meta.intensity == Intensity(0.0, 1.0, not flags, "percentile 0-90")
        assert (item.image.max() > 1) == bool(flags)
        assert np.diag(item.affine)[:3].tolist() == [1, 1, 2]


def test_spacing_is_the_one_asked_for(task):
    file, _ = prepared(task, "--orientation", "RAS", "--spacing", "2", "2", "2", "--channel", "0", "--split", "1")
    item = file.read("train", 0)
    assert item.image.shape == (1, 4, 4, 6)  # 8 x 7 x 6 voxels of 1 x 1 x 2 mm
    np.testing.assert_allclose(np.diag(item.affine)[:3], 2)


def test_labels_on_another_grid_are_resampled_and_counted(task):
    fine = np.diag([-0.5, -0.5, 1.0, 1.0])
    fine[:3, 3] = [0.25, 0.25, -0.5]  # eight voxels to one, their centre the same
    write_nifti(task / "labelsTr" / f"{CASES[5]}.nii.gz", np.kron(label(5), np.ones((2, 2, 2), np.uint8)), fine)
    file, said = prepared(task, "--split", "1")
    assert "1 of 10 label maps lay on another grid than their image and were resampled onto it" in said
    np.testing.assert_array_equal(file.read("train", file.ids("train").index(CASES[5])).label, label(5))


# ---- what is refused ----


def test_missing_files_are_all_named(task):
    (task / "imagesTr" / f"{CASES[2]}.nii.gz").unlink()
    (task / "labelsTr" / f"{CASES[7]}.nii.gz").unlink()
    error = fails(task)
    assert "2 of 20 listed files are not there" in error
    assert f"imagesTr/{CASES[2]}.nii.gz" in error and f"labelsTr/{CASES[7]}.nii.gz" in error


def test_another_number_of_channels_than_named_is_refused(task):
    write_nifti(task / "imagesTr" / f"{CASES[2]}.nii.gz", volume(2)[:3], LPS)
    result = call(dataset_tool.main, "prepare", "--decathlon", str(task), "--dest", str(task.parent / "no.h5"))
    assert result.exit_code == 1 and not (task.parent / "no.h5").exists()
    assert f"{CASES[2]}.nii.gz: 3 channels, 4 have names: FLAIR, T1w, t1gd, T2w" in result.output


def test_label_values_without_a_name_are_refused(task):
    write_nifti(task / "labelsTr" / f"{CASES[2]}.nii.gz", np.full((8, 7, 6), 3, np.uint8), LPS)
    result = call(dataset_tool.main, "prepare", "--decathlon", str(task), "--dest", str(task.parent / "no.h5"))
    assert result.exit_code == 1 and f"{CASES[2]}.nii.gz: label values 3 are outside 0..2" in result.output


def test_label_sets_that_change_are_named_unless_the_classes_are_given(task):
    folders = ["--images", str(task / "imagesTr"), "--labels", str(task / "labelsTr")]
    error = refused(task.parent, dataset_tool.main, "prepare", *folders, "--dest", str(task.parent / "no.h5"))
    assert f"{CASES[0]}.nii.gz 0 1; {CASES[1]}.nii.gz 0 1 2" in error and "--classes" in error
    succeed(dataset_tool.main, "prepare", *folders, "--dest", str(task.parent / "v.h5"), "--classes", *LABELS.values())


@pytest.mark.parametrize(("options", "wanted"), [
    (["--channel", "T9"], ["--channel T9: no such channel", "FLAIR, T1w, t1gd, T2w"]),
    (["--channel", "4"], ["--channel 4: no such channel"]),
    (["--channel", "FLAIR", "0"], ["names a channel twice"]),
    (["--channels", "a", "b"], ["4 channels, 2 have names: a, b"]),
    (["--images", "x"], ["--images", "or --decathlon"]),
    (["--no-clip"], ["--no-clip: there is nothing to clip"]),
    (["--percentiles", "0", "99", "--range", "0", "1"], ["both scale the values"]),
    (["--range", "1", "0"], ["--range 1 0"]),
    (["--fit", "8", "8", "8", "--size", "8", "8", "8"], ["--fit 8 8 8 sets size and spacing"]),
    (["--fit", "8", "8"], ["--fit 8 8: 2 numbers, but --spatial-dims is 3"]),
])
def test_options_that_do_not_fit_are_refused(task, options, wanted):
    result = call(dataset_tool.main, "prepare", "--decathlon", str(task), "--dest", str(task.parent / "no.h5"),
                  "--spatial-dims", "3", *options)
    assert result.exit_code == 1 and not (task.parent / "no.h5").exists()
    for part in wanted:
        assert part in result.output


@pytest.mark.parametrize(("keys", "wanted"), [
    ({"modality": None}, "has no modality"),
    ({"modality": {"0": "FLAIR", "2": "T1w"}}, "wanted a name for each number"),
    ({"training": []}, "training list is empty"),
    ({"training": ["a.nii.gz"]}, "wanted image and label of each"),
    ({"training": [{"image": "../a.nii.gz", "label": "b.nii.gz"}]}, "../a.nii.gz lies outside its folder"),
    ({"training": [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in CASES[:1] * 2]},
     f"listed twice: {CASES[0]}"),
    ({"training": 3}, "training is 3, wanted a list"),
    ({"training": None}, "has no training"),
    ({"training": [None]}, "training entry None; wanted image and label of each"),
    ({"training": [{"image": 1, "label": "b.nii.gz"}]}, "training: image is 1, wanted str"),
    ({"training": [{"image": "/a.nii.gz", "label": "b.nii.gz"}]}, "/a.nii.gz lies outside its folder"),
    ({"training": [{"image": "imagesTr\\a.nii.gz", "label": "b.nii.gz"}]}, "is no name of a volume; wanted one like"),
    ({"training": [{"image": "a\n.nii.gz", "label": "b.nii.gz"}]}, "is no name of a volume"),
    ({"training": [{"image": "\ud800.nii.gz", "label": "b.nii.gz"}]}, "is no name of a volume"),
    ({"training": [{"image": ".", "label": "b.nii.gz"}]}, "'.' is no name of a volume"),
    ({"training": [{"image": "x" * 300 + ".nii.gz", "label": "b.nii.gz"}]}, "2 of 2 listed files are not there"),
    ({"test": 3}, "test is 3, wanted a list"),
    ({"labels": ["background"]}, "labels is a list, wanted a name for each number"),
    ({"labels": {"background": 0}}, "labels is of background, wanted a name for each number"),
    ({"modality": {"0": 1}}, "modality.0 is 1, wanted str"),
])
def test_a_dataset_json_that_does_not_fit_is_refused(task, keys, wanted):
    describe(task, **keys)
    with pytest.raises(ValueError, match=wanted.replace(".", r"\.")):
        read_task(task)


def test_files_outside_the_task_are_not_followed(task):
    image = task / "imagesTr" / f"{CASES[2]}.nii.gz"
    image.rename(task.parent / "away.nii.gz")
    image.symlink_to(task.parent / "away.nii.gz")
    error = fails(task)
    assert f"1 of 20 listed files are links that lie outside its folder: imagesTr/{CASES[2]}.nii.gz" in error
    image.unlink()
    (task / "kept.nii.gz").symlink_to(image)
    (task.parent / "away.nii.gz").rename(image)
    assert len(read_task(task).cases) == 10


def test_volumes_that_no_list_names_are_said(task):
    describe(task, training=json.loads((task / "dataset.json").read_text())["training"][2:])
    _, said = prepared(task, "--channel", "0", "--split", "1")
    assert f"2 volumes that dataset.json does not list are left out: imagesTr/{CASES[8]}.nii.gz, " in said


def test_any_dataset_json_is_read_or_refused_in_a_line(task):
    chance, read = random.Random(0), 0
    good = json.loads((task / "dataset.json").read_text())
    values = [None, 3, 2.5, True, "a", "", "../x.nii.gz", "./imagesTr/BRATS_001.nii.gz", "\0", "\ud800", [], {}, [None],
              {"0": "a"}, {"0": None}, {"0": "a", "1": []}, [{"image": None}], ["a"], 10**400, float("nan")]
    for _ in range(100):
        found = json.loads(json.dumps(good))
        for key in chance.sample(list(found), chance.randint(1, 2)):
            found[key] = chance.choice(values)
        for entry in good["training"][:1] if chance.random() < 0.5 else []:
            found["training"] = [entry | {chance.choice(["image", "label"]): chance.choice(values)}]
        text = json.dumps(found if chance.random() < 0.95 else chance.choice(values))
        (task / "dataset.json").write_text(text[:chance.randrange(len(text))] if chance.random() < 0.1 else text)
        try:
            read_task(task)
            read += 1
        except ValueError as error:
            assert str(error).startswith(f"{task / 'dataset.json'}: ") and str(error).isprintable(), text
    assert 5 < read < 80


def test_a_folder_without_dataset_json_is_refused(task):
    (task / "dataset.json").write_text("{")
    assert "dataset.json: not readable as JSON" in fails(task)
    (task / "dataset.json").unlink()
    assert "dataset.json: no such file" in fails(task)


def test_cases_of_one_patient_in_two_splits_are_refused(task):
    table = task.parent / "t.csv"
    rows = [f"{case},p{n // 2},{('train', 'val')[n % 2]}" for n, case in enumerate(CASES)]
    table.write_text("id,group,split\n" + "\n".join(rows))
    assert "group 'p0' would be in splits 'train' and 'val'" in fails(task, "--table", str(table))
    table.write_text("id,group\n" + "\n".join(f"{case},p{n // 2}" for n, case in enumerate(CASES)))
    file, _ = prepared(task, "--table", str(table), "--split", "0.8", "0.2")
    assert len({*file.groups("train")} & {*file.groups("val")}) == 0 and file.length("train") == 8


# ---- DIFF-3: one factor for all axes, centred zeros, values 0..255 ----


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Two pairs named as nnU-Net does, of other sizes, 8 bit."""
    for name, shape in (("MITEA_001", (20, 10, 12)), ("MITEA_002", (7, 7, 6))):
        for folder, suffix, values in (("images", "_0000", np.indices(shape)[0] * 10 + 5),
                                       ("labels", "", np.indices(shape)[0] // 3 % 3)):
            image = nibabel.Nifti1Image(values.astype(np.uint8), np.diag([0.5, 1.0, 1.0, 1.0]))
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(image, tmp_path / folder / f"{name}{suffix}.nii.gz")
    return tmp_path


def fitted(pairs: Path, *options: str) -> tuple[VolumesFile, str]:
    dest = str(pairs / f"v{len(options)}.h5")
    said = succeed(dataset_tool.main, "prepare", "--images", str(pairs / "images"), "--labels", str(pairs / "labels"),
                   "--dest", dest, "--split", "1", *options)
    return VolumesFile(dest), said


def test_fit_shrinks_by_one_factor_and_pads_with_zeros_around_the_centre(pairs):
    file, _ = fitted(pairs, "--fit", "10", "8", "8", "--range", "0", "255")
    large, small = (file.read("train", row) for row in (0, 1))
    assert file.ids("train") == ["MITEA_001", "MITEA_002"]
    # 20 x 10 x 12 by min(10/20, 8/10, 8/12) = 1/2: 10 x 5 x 6, of voxels twice as wide; odd rests lie behind
    np.testing.assert_array_equal(large.box, [[0, 1, 1], [10, 6, 7]])
    np.testing.assert_allclose(np.diag(large.affine)[:3], [1, 2, 2])
    centre = large.affine @ [4.5, 3, 3.5, 1]
    np.testing.assert_allclose(centre[:3], [0.5 * 9.5, 4.5, 5.5])
    assert large.image[:, :, 0].max() == large.image[:, :, 6:].max() == 0 and large.image[0, :, 1:6, 1:7].min() > 0
    assert set(np.unique(large.label)) == {0, 1, 2}
    # 7 x 7 x 6 is not enlarged
    np.testing.assert_array_equal(small.box, [[1, 0, 1], [8, 7, 7]])
    np.testing.assert_allclose(np.diag(small.affine)[:3], [0.5, 1, 1])
    np.testing.assert_array_equal(small.image[0, 1:8, :7, 1:7], np.indices((7, 7, 6))[0] * 10 + 5)
    assert small.image[:, 0].max() == 0
    for item in (large, small):
        assert item.image.shape == (1, 10, 8, 8) and item.label.shape == (10, 8, 8)


def test_range_is_the_contract_and_says_what_lies_outside(pairs):
    file, said = fitted(pairs, "--fit", "8", "8", "8", "--range", "0", "255")
    assert file.meta.intensity == Intensity(0.0, 255.0, True, "a.u.") and "outside" not in said
    np.testing.assert_allclose(file.meta.intensity.to_network(np.array([0, 255])), [-1, 1])
    file, said = fitted(pairs, "--fit", "8", "8", "8", "--range", "0", "60", "--clip")
    assert "2 of 2 images have values outside --range 0 60, which were clipped" in said
    assert file.read("train", 0).image.max() == 60


def test_prepared_npy_folders_are_read(pairs):
    for role in ("images", "labels"):
        (pairs / "train" / role).mkdir(parents=True)
        for number in range(4):
            values = np.indices((4, 6, 4))[1] * (40 if role == "images" else 1) // (1 if role == "images" else 2)
            np.save(pairs / "train" / role / f"MITEA_{number:03d}.npy", values.astype(np.uint8))
    dest = str(pairs / "npy.h5")
    succeed(dataset_tool.main, "prepare", "--images", str(pairs / "train" / "images"), "--labels",
            str(pairs / "train" / "labels"), "--dest", dest, "--range", "0", "255", "--split", "0.75", "0.25")
    file = VolumesFile(dest)
    assert {split: file.length(split) for split in file.splits} == {"train": 3, "val": 1}
    np.testing.assert_array_equal(file.read("val", 0).image[0], np.indices((4, 6, 4))[1] * 40)
    np.testing.assert_array_equal(file.read("val", 0).label, np.indices((4, 6, 4))[1] // 2)
