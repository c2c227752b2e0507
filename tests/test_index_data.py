"""Folders with index files: stacks with their numbers become a volumes file, and every sample that cannot is named."""

from pathlib import Path

import numpy as np
import pytest

import dataset_tool
from edm3d.formats.index_data import ATTRIBUTES, LABEL_CLASSES
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import VolumesFile
from edm3d.physics import cardiac_anatomy
from tests.commands import call, files_below, refused, succeed

SPACING = ("--spacing", "10", "1.8269", "1.8269")
NAMES = ("LVEDV", "LVESV", "LVEF", "RVEDV", "RVESV", "RVEF", "MYOESTHICK", "MYOEDTHICK", "AGE", "SEX", "BMI", "ESED",
         "ANGLE", "DEPTH")
ESED = 11


def stack(number: int, shape=(6, 5, 4)) -> np.ndarray:
    """Random values in [0,1], the first and the last slice of padding."""
    image = np.random.default_rng(number).random(shape, dtype=np.float32)
    image[0], image[-1] = 0, 0.01
    return image


def labels(number: int, phase: float) -> np.ndarray:
    """14 numbers, the age missing."""
    found = np.arange(14, dtype=np.float64) + number / 8
    found[8], found[ESED] = np.nan, phase
    return found


def write(folder: Path, name: str, number: int = 0, phase: float = 1, **arrays) -> str:
    """A sample; arrays that are None are left out."""
    arrays = {"image": stack(number), "labels": labels(number, phase), **arrays}
    np.savez(folder / name, **{key: value for key, value in arrays.items() if value is not None})
    return name


def index(folder: Path, **paths) -> None:
    """Write index files."""
    for name, found in paths.items():
        np.save(folder / f"{name}.npy", np.array(found, dtype=str))


@pytest.fixture
def folder(tmp_path) -> Path:
    """ED and ES of six patients: four to train on, named by whole paths, one to validate and one to test."""
    folder = tmp_path / "ukb"
    folder.mkdir()
    names = [write(folder, f"{100 + p}_{phase}.npz", 2 * p + i, 1 - i) for p in range(6)
             for i, phase in enumerate(("ED", "ES"))]
    index(folder, training=[str(folder / name) for name in names[:8]], validation=names[8:10], testing=names[10:])
    return folder


def prepare(folder: Path, *options: str) -> tuple[VolumesFile, str]:
    dest = folder.parent / "out.h5"
    said = succeed(dataset_tool.main, "prepare", "--index", str(folder), "--dest", str(dest), *SPACING, *options)
    return VolumesFile(dest), said


def refusal(folder: Path, *options: str, spacing=SPACING) -> str:
    """What is said, of bad samples in a line each; no file is left behind."""
    before = files_below(folder.parent)
    result = call(dataset_tool.main, "prepare", "--index", str(folder), "--dest", str(folder.parent / "no.h5"),
                  *spacing, *options)
    assert result.exit_code and "Error: " in result.stderr and "Traceback" not in result.output
    assert files_below(folder.parent) == before
    return result.stderr


# ---- what comes out ----


def test_phantoms_have_the_same_attributes_and_labels():
    assert ATTRIBUTES == cardiac_anatomy.ATTRIBUTES and LABEL_CLASSES == cardiac_anatomy.LABEL_CLASSES


def test_stacks_numbers_phases_patients_and_splits_are_those_of_the_samples(folder):
    file, said = prepare(folder)
    assert {split: file.ids(split) for split in file.splits} == {
        "train": [f"{p}_{phase}" for p in range(100, 104) for phase in ("ED", "ES")], "val": ["104_ED", "104_ES"],
        "test": ["105_ED", "105_ES"]}
    assert file.groups("test") == ["105", "105"]
    assert file.meta.attribute_names == NAMES and file.meta.class_names == ("ED", "ES")
    assert dict(zip(NAMES, file.meta.attribute_units))["LVEDV"] == "mL"
    assert file.meta.intensity == Intensity(0.0, 1.0, True, "a.u.")
    item = file.read("test", 1)
    np.testing.assert_array_equal(item.image, stack(11)[None])
    np.testing.assert_array_equal(item.attributes, labels(11, 0).astype(np.float32))
    assert item.class_index == 1 and file.read("test", 0).class_index == 0
    np.testing.assert_array_equal(item.affine, np.diag([10, 1.8269, 1.8269, 1]))
    np.testing.assert_array_equal(item.box, [[1, 0, 0], [5, 5, 4]])
    assert "training.npy 8, validation.npy 2, testing.npy 2" in said and "float32" not in said
    assert "12 of 12 stacks of 6 slices have slices of padding at their ends, up to 2, 24 in all" in said
    assert str(folder.parent) not in str(file.provenance)


def test_the_same_command_again_does_nothing_and_other_labels_are_another_file(folder):
    file, _ = prepare(folder)
    before = file.path.stat().st_mtime_ns
    assert "there already" in prepare(folder)[1] and file.path.stat().st_mtime_ns == before
    write(folder, "105_ES.npz", 11, np.nan)
    assert "is there already" in refused(folder.parent, dataset_tool.main, "prepare", "--index", str(folder), "--dest",
                                         str(file.path), *SPACING)


def test_check_and_info_know_index_files_and_padding(folder):
    file, _ = prepare(folder)
    assert "training.npy: 8 paths of samples" in succeed(dataset_tool.main, "check", str(folder))
    assert "testing.npy: 2 paths of samples" in succeed(dataset_tool.main, "info", str(folder / "testing.npy"))
    for command in ("check", "info"):
        said = succeed(dataset_tool.main, command, str(file.path))
        assert "  padding: 12 of 12 stacks" in said and "attribute AGE [y]: none, missing in 12 of 12" in said


def test_a_phase_that_is_missing_is_no_class_and_validation_and_testing_may_be_missing(folder):
    write(folder, "a.npz", 1, np.nan)
    write(folder, "b.npz", 2, 0)
    for name in ("validation", "testing"):
        (folder / f"{name}.npy").unlink()
    index(folder, training=["a.npz", "b.npz"])
    file, _ = prepare(folder)
    assert file.splits == ["train"] and file.table("train", "classes").tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_become_float32_and_it_is_said(folder, dtype):
    write(folder, "105_ES.npz", image=stack(3).astype(dtype))
    file, said = prepare(folder)
    np.testing.assert_array_equal(file.read("test", 1).image[0], stack(3).astype(dtype).astype(np.float32))
    assert f"1 of 12 images are {np.dtype(dtype)} and became float32: 105_ES" in said


@pytest.mark.parametrize(("values", "names"), [(4, ("background", "lv", "myocardium", "rv")),
                                               (2, ("class_0", "class_1"))])
def test_segmentations_become_label_maps(folder, values, names):
    segmentation = (np.arange(120).reshape(6, 5, 4) % values).astype(np.uint8)
    found = [write(folder, f"{p}_ED.npz", p, segmentation=segmentation) for p in (1, 2)]
    index(folder, training=found[:1], validation=found[1:], testing=[])
    file, _ = prepare(folder)
    assert file.meta.label_classes == names and file.splits == ["train", "val"]
    np.testing.assert_array_equal(file.read("val", 0).label, segmentation)


def test_images_alone_without_labels_and_as_npy(folder):
    np.save(folder / "b.npy", stack(7))
    index(folder, training=[write(folder, "a.npz", labels=None), "b.npy"], validation=[], testing=[])
    file, said = prepare(folder)
    assert file.meta.attribute_names == () and file.meta.class_names == () and "no labels" not in said
    np.testing.assert_array_equal(file.read("train", 1).image[0], stack(7))


def test_some_samples_without_labels_lack_all_attributes(folder):
    write(folder, "105_ES.npz", labels=None)
    file, said = prepare(folder)
    assert np.isnan(file.read("test", 1).attributes).all() and "1 of 12 samples have no labels" in said


def test_numbers_may_have_other_names(folder):
    index(folder, training=[write(folder, "a.npz", labels=np.array([3, np.nan, 5]))], validation=[], testing=[])
    file, _ = prepare(folder, "--attributes", "AGE", "height [cm]", "x")
    assert file.meta.attribute_names == ("AGE", "height", "x") and file.meta.attribute_units == ("y", "cm", "")
    assert file.meta.class_names == ()


def test_samples_of_one_name_have_those_of_their_folders_in_front(folder):
    for patient in "ab":
        (folder / patient).mkdir()
        write(folder / patient, "sa_ES.npz", 1, 0)
        write(folder / patient, "sa_ED.npz", 1)
    index(folder, training=["a/sa_ES.npz", "a/sa_ED.npz"], validation=["b/sa_ES.npz", str(folder / "b/sa_ED.npz")],
          testing=[])
    file, _ = prepare(folder)
    assert file.ids("train") == ["a_sa_ES", "a_sa_ED"] and file.groups("val") == ["b_sa", "b_sa"]


def test_a_table_says_patients_and_further_attributes(folder):
    rows = [f"{100 + p}_{phase},{'one' if p < 2 else p},{p}" for p in range(6) for phase in ("ED", "ES")]
    (folder / "t.csv").write_text("\n".join(["id,group,height [cm]", *rows, "999_ED,9,9"]))
    file, said = prepare(folder, "--table", str(folder / "t.csv"))
    assert file.groups("train")[:5] == ["one"] * 4 + ["2"] and "1 of 13 rows" in said
    assert file.meta.attribute_names == (*NAMES, "height") and file.read("test", 0).attributes[-1] == 5
    assert file.read("test", 0).attributes[0] == np.float32(10 / 8)


def test_an_affine_in_the_samples_counts_and_needs_no_spacing(folder):
    affine = np.diag([8.0, 2, 2, 1])
    for split in ("validation", "testing"):
        index(folder, **{split: []})
    index(folder, training=[write(folder, "a.npz", affine=affine)])
    dest = str(folder.parent / "out.h5")
    succeed(dataset_tool.main, "prepare", "--index", str(folder), "--dest", dest)
    np.testing.assert_array_equal(VolumesFile(dest).read("train", 0).affine, affine)


def test_sizes_pad_and_crop_and_the_padding_is_known(folder):
    file, _ = prepare(folder, "--size", "8", "4", "4")
    np.testing.assert_array_equal(file.read("train", 0).box, [[2, 0, 0], [6, 4, 4]])


def test_other_scales_are_asked_for(folder):
    write(folder, "105_ES.npz", image=stack(3) * 200)
    file, _ = prepare(folder, "--range", "0", "200")
    assert file.meta.intensity == Intensity(0.0, 200.0, True, "a.u.")


# ---- what is refused ----


def test_spacing_must_be_known(folder):
    assert "100_ED.npz: has no affine, as npz rarely do; give --spacing" in refusal(folder, spacing=())


INDEX_FILES = [
    (np.array(["a.npz", "b.npz"], dtype=object), "training.npy: its array holds Python objects"),
    (np.array([["a.npz"]]), "training.npy: is <U5 (1, 1); wanted a 1-D array of text, as np.save"),
    (np.arange(3), "training.npy: is int64 (3,); wanted a 1-D array of text"),
    (np.array([]), "training.npy: names no samples"),
    (np.array(["100_ED.npz", "gone.npz", "/no/where.npz"]), "2 of 7 samples that its index files name are not there"),
    (np.array(["100_ED.npz", "x\0y.npz"]), "1 of 6 samples that its index files name are not there"),
    (np.array(["100_ED.npz", "a.pkl"]), "name 1 samples that are no .npz or .npy"),
    (np.array(["100_ED.npz", "./100_ED.npz"]), "name samples twice"),
    (np.array(["100_ED.npz", "105_ED.npz"]), "name samples twice"),
]


@pytest.mark.parametrize(("found", "message"), INDEX_FILES)
def test_index_files_that_cannot_be_used(folder, found, message):
    np.save(folder / "training.npy", found, allow_pickle=True)
    said = refusal(folder)
    assert message in said
    assert ("np.save(FILE, np.array(PATHS, dtype=str))" in said) == ("objects" in said or "wanted a 1-D" in said)


def test_without_a_training_index_there_is_nothing(folder):
    (folder / "training.npy").unlink()
    assert "training.npy: no such file; --index wants a folder with training.npy" in refusal(folder)


SAMPLES = [
    ({"image": None}, "100_ED.npz: holds labels, wanted an image"),
    ({"image": np.ones((5, 4), np.float32) / 2}, "100_ED.npz: shape (5, 4), wanted 3 axes"),
    ({"image": stack(0) * 2}, "100_ED.npz: values go from 0 to 1.9"),
    ({"image": stack(0) - 0.5}, "100_ED.npz: values go from -0.5 to 0.4"),
    ({"image": np.where(stack(0) > 0.5, np.nan, 0)}, "values are NaN or infinite"),
    ({"image": np.zeros((6, 5, 4))}, "100_ED.npz: constant, every voxel is 0"),
    ({"image": stack(0).astype(complex)}, "values of type complex128 are not numbers"),
    ({"image": stack(0, (7, 5, 4))}, "the cases differ in shape (100_ED 7x5x4; 100_ES 6x5x4); give --size"),
    ({"image": stack(0, (6, 9, 4))}, "the cases differ in shape (100_ED 6x9x4; 100_ES 6x5x4); give --size"),
    ({"image": stack(0).astype(object)}, "100_ED.npz: cannot be read"),
    ({"labels": np.zeros(13)}, "100_ED.npz: labels has 13 numbers, and there are 14 names (LVEDV, LVESV"),
    ({"labels": np.zeros((14, 1))}, "100_ED.npz: labels is float64 (14, 1), wanted 14 numbers, [K]"),
    ({"labels": np.array(["a"] * 14)}, "100_ED.npz: labels is <U1 (14,), wanted 14 numbers"),
    ({"labels": labels(0, 1) + np.array([np.inf] + [0] * 13)}, "not finite within float32: LVEDV inf"),
    ({"labels": labels(0, 2)}, "100_ED.npz: ESED is 2, wanted 1 (ED), 0 (ES), or NaN"),
    ({"segmentation": np.zeros((6, 5, 4), np.uint8)}, "segmentation is in some samples, and missing in"),
]


@pytest.mark.parametrize(("arrays", "message"), SAMPLES)
def test_samples_that_cannot_be_used_are_named(folder, arrays, message):
    write(folder, "100_ED.npz", **arrays)
    assert message in refusal(folder)


def test_all_bad_samples_are_named_at_once(folder):
    for name in ("100_ED.npz", "105_ES.npz"):
        write(folder, name, labels=np.zeros(3))
    (folder / "104_ED.npz").write_bytes(b"PK no zip")
    said = refusal(folder)
    assert all(name in said for name in ("3 of 12", "100_ED.npz", "105_ES.npz", "104_ED.npz: cannot be read"))


def test_pickled_dicts_are_refused_with_what_to_write(folder):
    np.save(folder / "a.npy", {"image": stack(0)}, allow_pickle=True)
    index(folder, training=["a.npy"])
    said = refusal(folder)
    assert "a.npy: its array holds Python objects" in said and "np.savez(FILE, image=IMAGE, labels=LABELS)" in said


def test_a_patient_in_two_splits_is_refused_unless_a_table_says_otherwise(folder):
    index(folder, training=[f"{p}_{phase}.npz" for p in (100, 101) for phase in ("ED", "ES")] + ["105_ED.npz"],
          testing=["105_ES.npz"], validation=[])
    assert "105 in test and train; correct the index files" in refusal(folder)
    rows = [f"{p}_{phase},{{}}" for p in (100, 101, 105) for phase in ("ED", "ES")]
    (folder / "t.csv").write_text("\n".join(["id,group", *(row.format(row[:3]) for row in rows)]))
    assert "group '105' would be in splits 'train' and 'test'" in refusal(folder, "--table", str(folder / "t.csv"))
    (folder / "t.csv").write_text("\n".join(["id,group", *(row.format(row[:6]) for row in rows)]))
    assert prepare(folder, "--table", str(folder / "t.csv"))[0].groups("test") == ["105_ES"]


TABLES = [("id,split\n{},train", "a column split, and the index files say the splits"),
          ("id,class\n{},x", "a column class, and ESED of the samples says the classes"),
          ("id,LVEF\n{},1", "columns LVEF, which the samples' labels have too"),
          ("id,a\nother,1", "no row for 1 image(s): a")]


@pytest.mark.parametrize(("text", "message"), TABLES)
def test_tables_that_say_again_what_the_samples_say(folder, text, message):
    index(folder, training=[write(folder, "a.npz")], validation=[], testing=[])
    (folder / "t.csv").write_text(text.format("a"))
    assert message in refusal(folder, "--table", str(folder / "t.csv"))


OPTIONS = [(("--images", "."), "or --decathlon, or --index"), (("--labels", "."), "or --decathlon, or --index"),
           (("--spatial-dims", "2"), "--spatial-dims 2: samples of --index are stacks of slices"),
           (("--fit", "6", "5", "4"), "--fit 6 5 4: --index takes --size"),
           (("--image-pattern", "{id}"), "index files name theirs"),
           (("--attributes", "a", "a"), "--attributes: columns of one name"),
           (("--attributes", "a"), "labels has 14 numbers, and there are 1 names (a)"),
           (("--spacing", "10", "2"), "--spacing 10 2: 2 numbers, but --spatial-dims is 3"),
           (("--size", "6", "5"), "--size 6 5: 2 numbers, but --spatial-dims is 3")]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_do_not_go_with_index_files(folder, options, message):
    index(folder, training=["100_ED.npz"], validation=[], testing=[])
    assert message in refusal(folder, *options, spacing=() if "--spacing" in options else SPACING)


def test_names_of_numbers_need_numbers_and_an_index(folder):
    index(folder, training=[write(folder, "a.npz", labels=None)], validation=[], testing=[])
    assert "--attributes a: no sample has labels" in refusal(folder, "--attributes", "a")
    assert "--attributes a: they name the numbers in samples of --index" in refused(
        folder.parent, dataset_tool.main, "prepare", "--images", str(folder), "--dest", str(folder.parent / "no.h5"),
        "--attributes", "a")


# ---- padding of other sources ----


def test_padding_is_looked_for_where_it_is_asked_for(folder, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        np.savez(tmp_path / "images" / f"{name}.npz", image=stack(1), affine=np.eye(4))
    boxes = []
    for i, options in enumerate(((), ("--find-padding",))):
        succeed(dataset_tool.main, "prepare", "--images", str(tmp_path / "images"), "--dest", str(tmp_path / f"{i}.h5"),
                "--split", "1", *options)
        boxes.append(VolumesFile(tmp_path / f"{i}.h5").read("train", 0).box.tolist())
    assert boxes == [[[0, 0, 0], [6, 5, 4]], [[1, 0, 0], [5, 5, 4]]]
