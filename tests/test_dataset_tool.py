"""The data commands as a user types them."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nibabel.testing import data_path

import dataset_tool
from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.nifti import write_nifti
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import write_samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import phantoms
from tests.conftest import ROOT


def call(*args, code=0) -> str:
    result = CliRunner().invoke(dataset_tool.main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    path = tmp_path_factory.mktemp("echo") / "echo.h5"
    call("phantom", "--dest", path, "--num", 20, "--size", 16, "--seed", 3, "--pairs")
    return path


# ---- phantom ----


def test_phantoms_by_patient(echo):
    file = VolumesFile(echo)
    assert {s: file.length(s) for s in file.splits} == {"train": 16, "val": 2, "test": 2}
    assert file.meta.class_names == ("ED", "ES") and file.meta.attribute_units == ("mL", "mm", "mL", "deg")
    groups = [set(file.groups(split)) for split in file.splits]
    assert sum(map(len, groups)) == 10 == len(set.union(*groups))
    item = file.read("val", 1)
    number = int(item.id.removeprefix("phantom-"))
    assert item.group == f"patient-{number // 2:06d}" and item.class_index == number % 2
    assert np.linalg.norm(item.affine[:3, 0]) == pytest.approx(8)  # 128 mm / 16
    assert file.provenance["size"] == 16 and file.provenance["kind"] == "phantom"


def test_phantoms_are_the_same_whatever_the_number(echo, tmp_path):
    call("phantom", "--dest", tmp_path / "few.h5", "--num", 10, "--size", 16, "--seed", 3, "--pairs")
    files = [VolumesFile(path) for path in (echo, tmp_path / "few.h5")]
    all_items = [{i.id: i for s in f.splits for i in (f.read(s, n) for n in range(f.length(s)))} for f in files]
    for name, item in all_items[1].items():
        np.testing.assert_array_equal(item.image, all_items[0][name].image)


def test_two_dimensional_phantoms(tmp_path):
    call("phantom", "--dest", tmp_path / "x.h5", "--num", 3, "--size", 16, "--spatial-dims", 2, "--split", 1)
    assert VolumesFile(tmp_path / "x.h5").spatial_shape("train") == (16, 16)


def test_phantoms_are_drawn_over_others_only_on_request(tmp_path, monkeypatch):
    path, options = tmp_path / "x.h5", ["--size", 8, "--split", 1]
    assert call("phantom", "--dest", path, "--num", 2, *options) == f"{path}: 2 phantoms\n"
    made = path.read_bytes()
    monkeypatch.setattr(phantoms, "_item", lambda *_: pytest.fail("it was drawn"))
    assert call("phantom", "--dest", path, "--num", 2, *options) == f"{path}: all 2 phantoms there already\n"
    for dest, words in ((path, "is there already; choose another, or --overwrite it"), (tmp_path, "is a folder"),
                        (path / "y.h5", "x.h5 is a file, wanted a folder")):
        assert words in call("phantom", "--dest", dest, "--num", 3, *options, code=1)
    assert path.read_bytes() == made
    monkeypatch.undo()
    call("phantom", "--dest", path, "--num", 3, *options, "--overwrite")
    assert VolumesFile(path).length("train") == 3


def test_bad_phantom_options(tmp_path):
    assert "size=4" in call("phantom", "--dest", tmp_path / "x.h5", "--size", 4, code=1)
    assert "empty split" in call("phantom", "--dest", tmp_path / "x.h5", "--num", 2, code=1)
    assert "not enough free disk" in call("phantom", "--dest", tmp_path / "x.h5", "--num", 2**40, "--size", 8, code=1)
    assert not list(tmp_path.iterdir())


# ---- prepare, check, export ----


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz"])
def test_nibabels_files_there_and_back(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).symlink_to(Path(data_path) / name)
    source = nibabel.load(Path(data_path) / name)
    output = call("prepare", "--images", tmp_path / "in", "--dest", tmp_path / "v.h5", "--split", 1)
    assert "train 1" in output
    shape = "x".join(str(n) for n in np.roll(source.shape, 1)) if source.ndim == 4 else "1x33x41x25"
    assert f"1 volumes of 1 groups, shape {shape}, spacing 2 2 2" in call("check", tmp_path / "v.h5")
    call("export", tmp_path / "v.h5", "--format", "nifti", "--dest", tmp_path / "out")
    back = nibabel.load(tmp_path / "out" / "images" / f"{name.split('.')[0]}.nii.gz")
    np.testing.assert_allclose(back.affine, source.affine, atol=1e-5)
    np.testing.assert_array_equal(back.get_fdata(), source.get_fdata())
    assert back.header.get_xyzt_units()[0] == "mm"


def write_cases(folder: Path, *words: str) -> None:
    """Files pat000_WORD.nii.gz and so on of four patients; a voxel says whose it is and which word's."""
    for patient in range(4):
        for number, word in enumerate(words):
            values = np.zeros((4, 4, 4), np.uint8 if word == "seg" else np.float32)
            values[0, 0, 0], values[1, 1, 1] = 1, 1 if word == "seg" else 10 * patient + number + 2
            write_nifti(folder / f"pat{patient:03d}_{word}.nii.gz", values, np.eye(4))


def test_several_images_of_an_id_become_channels_by_pattern(tmp_path):
    write_cases(tmp_path / "in", "t1", "flair", "seg", "report")
    table = tmp_path / "t.csv"
    table.write_text("id,split\n" + "\n".join(f"pat{n:03d},{split}" for n, split in enumerate("ab"))
                     + "\npat002,test\npat003,train\n")
    patterns = ["--images", tmp_path / "in", "--image-pattern", "{id}_{channel}", "--label-pattern", "{id}_seg"]
    said = call("prepare", *patterns, "--channels", "t1", "flair", "--table", table, "--dest", tmp_path / "v.h5")
    assert said.splitlines() == [
        f"4 of 16 files in {tmp_path / 'in'} fit neither --image-pattern '{{id}}_{{channel}}' nor --label-pattern "
        "'{id}_seg' and are left out: pat000_report.nii.gz, pat001_report.nii.gz, pat002_report.nii.gz, "
        "pat003_report.nii.gz",
        f"Note: {table} has splits of other names, a, b: training.dataset.split and evaluate.py's --split take them by "
        "name, else only train, val, test are used", f"{tmp_path / 'v.h5'}: train 1, test 1, a 1, b 1"]
    file = VolumesFile(tmp_path / "v.h5")
    assert file.meta.channels == ("t1", "flair") and file.ids("train") == ["pat003"]
    assert file.read("train", 0).image[:, 1, 1, 1].tolist() == [32, 33] and file.read("b", 0).label.sum() == 2
    shown = call("info", tmp_path / "v.h5")
    assert sorted(("train/", "test/", "a/", "b/"), key=shown.index) == ["train/", "test/", "a/", "b/"]
    call("prepare", *patterns, "--channels", "t1", "flair", "--channel", "t1", "--dest", tmp_path / "one.h5", "--split",
         1)
    one = VolumesFile(tmp_path / "one.h5")
    assert one.meta.channels == ("t1",) and one.read("train", 3).image[:, 1, 1, 1].tolist() == [32]
    assert one.provenance["options"]["image_pattern"] == "{id}_{channel}"
    call("prepare", *patterns, "--channel", "t1", "flair", "--dest", tmp_path / "two.h5", "--split", 1)
    assert VolumesFile(tmp_path / "two.h5").meta.channels == ("t1", "flair")
    call("prepare", *patterns, "--dest", tmp_path / "all.h5", "--split", 1)
    assert VolumesFile(tmp_path / "all.h5").meta.channels == ("flair", "report", "t1")


def test_patterns_are_proposed_and_left_out_of_the_provenance_where_there_are_none(tmp_path):
    write_cases(tmp_path / "images", "t1")
    write_cases(tmp_path / "labels", "seg")
    folders = ["--images", tmp_path / "images", "--labels", tmp_path / "labels", "--dest", tmp_path / "v.h5"]
    said = call("prepare", *folders, code=1)
    assert said.strip().endswith("give --image-pattern '{id}_t1' --label-pattern '{id}_seg'")
    call("prepare", *folders, "--image-pattern", "{id}_t1", "--label-pattern", "{id}_seg")
    (tmp_path / "t.csv").write_text("id\n" + "\n".join(f"pat{n:03d}" for n in range(4)))
    said = call("prepare", *folders[:2], *folders[4:], "--table", tmp_path / "t.csv", "--overwrite", code=1)
    assert said.strip().endswith("pat003_t1; images end in _t1: give --image-pattern '{id}_t1'")
    call("prepare", *folders[:2], *folders[4:], "--overwrite", "--split", 1)
    assert "image_pattern" not in VolumesFile(tmp_path / "v.h5").provenance["options"]
    assert "a Decathlon task lists its files" in call("prepare", "--decathlon", tmp_path, "--image-pattern", "{id}",
                                                      "--dest", tmp_path / "d.h5", code=1)


def test_prepare_writes_over_a_file_only_on_request(tmp_path):
    call("phantom", "--dest", tmp_path / "v.h5", "--num", 2, "--size", 8, "--split", 1)
    assert "v.h5: is there already; choose another, or --overwrite it" in call(
        "prepare", "--images", "not_even_looked_at", "--dest", tmp_path / "v.h5", code=1)
    write_cases(tmp_path / "in", "t1")
    call("prepare", "--images", tmp_path / "in", "--dest", tmp_path / "v.h5", "--overwrite", "--split", 1)
    assert VolumesFile(tmp_path / "v.h5").length("train") == 4


def test_prepare_says_that_the_same_is_there_and_refuses_what_is_not_its_own(tmp_path, monkeypatch):
    write_cases(tmp_path / "in", "t1")
    table, dest = tmp_path / "t.csv", tmp_path / "v.h5"
    names = sorted(path.name.partition(".")[0] for path in (tmp_path / "in").iterdir())
    rows = [f"{name},{i}\n" for i, name in enumerate(names)]
    words = ["prepare", "--images", tmp_path / "in", "--dest", dest, "--split", 1, "--table", table]
    table.write_text("id,age\n" + "".join(rows))
    call(*words)
    made = dest.stat().st_mtime_ns
    assert "there already" in call(*words) and dest.stat().st_mtime_ns == made
    table.write_text("id,age\n" + "".join(rows).replace(",0\n", ",70\n"))
    assert "is there already; choose another, or --overwrite it" in call(*words, code=1)
    call(*words, "--overwrite")
    assert VolumesFile(dest).read("train", 0).attributes.tolist() == [70]
    image = next((tmp_path / "in").iterdir())
    before = image.read_bytes()
    for where, said in ((image, "wanted a file whose name ends in .h5"), (tmp_path / "in", "is --images"),
                        (table, "is --table")):
        assert said in call(*words[:3], "--dest", where, *words[5:], "--overwrite", code=1)
    (tmp_path / "own.h5").write_bytes(before)
    assert "nothing of another kind is overwritten" in call(*words[:3], "--dest", tmp_path / "own.h5", "--overwrite",
                                                            code=1)
    assert image.read_bytes() == (tmp_path / "own.h5").read_bytes() == before


def test_exported_volumes_can_be_prepared_again(echo, tmp_path):
    call("export", echo, "--format", "nifti", "--dest", tmp_path, "--split", "train", "--indices", "0-2,5")
    folders = ["--images", tmp_path / "images", "--labels", tmp_path / "labels"]
    names = ["--classes", "outside", "cavity", "muscle", "left atrium", "--split", "0.5", "0.5"]
    call("prepare", *folders, "--dest", tmp_path / "v.h5", *names, "--size", 16, 18, 16, "--seed", 1)
    file, original = VolumesFile(tmp_path / "v.h5"), VolumesFile(echo)
    assert file.meta.label_classes == ("outside", "cavity", "muscle", "left atrium")
    assert (file.length("train"), file.length("val"), file.spatial_shape("val")) == (2, 2, (16, 18, 16))
    item = file.read("val", 0)
    source = original.read("train", original.ids("train").index(item.id))
    np.testing.assert_array_equal(item.image[:, :, 1:17], source.image)
    np.testing.assert_array_equal(item.label[:, 1:17], source.label)
    np.testing.assert_allclose(item.affine @ [0, 1, 0, 1], source.affine @ [0, 0, 0, 1], atol=1e-5)


def test_an_export_is_done_once_and_mended_and_others_are_not_touched(echo, tmp_path):
    words = ["export", echo, "--format", "nifti", "--dest", tmp_path / "out", "--indices", "0"]
    call(*words, "--split", "train")
    files = sorted((tmp_path / "out").glob("*/*"))
    whole = [path.read_bytes() for path in files]
    assert len(files) == 2 and "all 1 there already" in call(*words, "--split", "train")
    files[0].write_bytes(whole[0][:-5])
    files[1].unlink()
    assert "2 files are not as they were written" in call(*words, "--split", "train")
    assert [path.read_bytes() for path in files] == whole
    assert "another settings" in call(*words, "--split", "val", code=1)
    (tmp_path / "out/images/mine.nii.gz").write_text("mine")
    call(*words, "--split", "val", "--overwrite")
    left = {path.name for path in (tmp_path / "out").glob("*/*")}
    assert len(left) == 2 and "mine.nii.gz" in left and not left & {path.name for path in files}
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert {entry["id"] for entry in record["files"].values()} == {VolumesFile(echo).ids("val")[0]}
    (tmp_path / "out/export.json").unlink()
    assert "nothing says that export made image" in call(*words, "--split", "val", code=1)
    assert "what others made is not overwritten" in call(*words, "--split", "val", "--overwrite", code=1)
    assert "is or holds FILE" in call(*words[:4], "--dest", echo.parent, code=1)


def test_png_export(echo, tmp_path):
    call("export", echo, "--format", "png", "--dest", tmp_path, "--split", "test", "--indices", "0")
    assert [p.read_bytes()[:4] for p in tmp_path.glob("*.png")] == [b"\x89PNG"]


@pytest.mark.parametrize("suffix", ["h5", "npz"])
def test_samples_are_exported_by_seed(tmp_path, suffix):
    images = np.random.default_rng(0).random((2, 1, 4, 4, 4), dtype=np.float32)
    labels = np.ones((2, 4, 4, 4), np.uint8)
    affine, path = np.diag([2.0, 2, 2, 1]), tmp_path / f"s.{suffix}"
    meta = SampleMeta(Facts("", ""), "x.pt", "0", {})
    write_samples(path, [3, 7], {"images": images, "labels": labels}, affine, meta)
    assert "images: 2x1x4x4x4 float32" in call("check", path)
    call("export", path, "--format", "nifti", "--dest", tmp_path / "out", "--indices", "7")
    assert [p.name for p in (tmp_path / "out").glob("*/*")] == ["seed000007.nii.gz"] * 2
    back = nibabel.load(tmp_path / "out" / "images" / "seed000007.nii.gz")
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), images[1, 0])
    np.testing.assert_allclose(back.affine, affine)
    assert "no seeds 4" in call("export", path, "--format", "nifti", "--dest", tmp_path, "--indices", "3-4", code=1)
    assert "no splits" in call("export", path, "--format", "nifti", "--dest", tmp_path, "--split", "a", code=1)


def test_indices_count_in_each_split(echo, tmp_path):
    assert "4 volumes" in call("export", echo, "--format", "nifti", "--dest", tmp_path, "--indices", "1,5")


def test_export_refusals(echo, tmp_path):
    tail = ("--format", "nifti", "--dest", tmp_path / "out")
    assert "--indices 99" in call("export", echo, *tail, "--indices", "99", code=1)
    assert "--indices 5-2" in call("export", echo, *tail, "--indices", "5-2", code=1)
    assert "--indices a" in call("export", echo, *tail, "--indices", "a", code=1)
    assert "no split 'x'" in call("export", echo, *tail, "--split", "x", code=1)
    assert "no such file" in call("export", tmp_path / "x.h5", *tail, code=1)
    assert not (tmp_path / "out").exists()


# ---- check ----


def test_check_counts_and_finds_nothing(echo):
    output = call("check", echo)
    assert "train: 16 volumes of 8 groups, shape 1x16x16x16, spacing 8 8 8 mm" in output
    assert "hashes agree" in output and "BAD" not in output


def test_check_names_every_bad_file(echo, tmp_path):
    good = echo.read_bytes()
    (tmp_path / "good.h5").write_bytes(good)
    (tmp_path / "short.h5").write_bytes(good[:-1000])
    image = VolumesFile(echo).read("train", 0).image
    place = good.index(image[0, 8].tobytes())
    (tmp_path / "flipped.h5").write_bytes(good[: place + 200] + bytes([good[place + 200] ^ 4]) + good[place + 201 :])
    (tmp_path / "renamed.h5").write_bytes(good.replace(b"phantom-000000", b"phantom-000099"))
    np.save(tmp_path / "constant.npy", np.ones((3, 3, 3)))
    np.save(tmp_path / "nan.npy", np.full((3, 3, 3), np.nan))
    np.save(tmp_path / "label.npy", np.ones((3, 3, 3), np.uint8))
    (tmp_path / "broken.nii.gz").write_bytes(b"no")
    output = call("check", tmp_path, code=1)
    bad = sorted(re.findall(rf"BAD {re.escape(str(tmp_path))}/(\w+)\.", output))
    assert bad == ["broken", "constant", "flipped", "nan", "renamed", "short"]
    assert "8 files, 6 bad" in output and "labels [1]" in output


def test_check_names_bad_volumes_of_a_sound_file(echo, tmp_path):
    path = tmp_path / "v.h5"
    path.write_bytes(echo.read_bytes())
    with h5py.File(path, "a") as file:
        shared = file["train/groups"][0]
        file["val/groups"][0] = shared
        file["test/images"][1] = 0.5
        file["train/images"][2, 0, 0] = 1.5
        file["train/labels"][3, 0] = 9
        name = {split: file[split]["ids"].asstr()[()] for split in ("train", "test")}
        h5.seal(file)
    problems = [line for line in call("check", path, code=1).splitlines() if line.startswith("BAD")]
    assert [line.removeprefix(f"BAD {path}: ") for line in problems] == [
        f"group '{shared.decode()}' is in splits 'train' and 'val'",
        f"/train {name['train'][2]}: values 0..1.5 outside 0..1",
        f"/train {name['train'][3]}: label value 9 outside the 4 classes",
        f"/test {name['test'][1]}: channel echo is constant",
    ]


def test_check_of_nothing(tmp_path):
    assert "no such file or folder" in call("check", tmp_path / "x", code=1)
    assert "holds no" in call("check", tmp_path, code=1)


# ---- info and the frame ----


def test_info(echo, tmp_path):
    output = call("info", echo)
    assert "images: 16x1x16x16x16 float32" in output and "@format: volumes" in output and "ids: 16 utf-8" in output
    torch.save({"ema": {"w": torch.zeros(2, 3)}, "nimg": 1000}, tmp_path / "n.pt")
    output = call("info", tmp_path / "n.pt")
    assert "w: 2x3 float32" in output and "nimg: 1000" in output and "6 values" in output
    np.savez(tmp_path / "a.npz", seeds=np.arange(3))
    assert "seeds: 3 int64" in call("info", tmp_path / "a.npz")
    assert "33x41x25 int16" in call("info", Path(data_path) / "anatomical.nii").replace(">i2", "int16")


def test_info_of_bad_files(tmp_path):
    for name in ("x.pt", "x.h5", "x.npz", "x.nii", "x.txt"):
        (tmp_path / name).write_bytes(b"hello")
        assert f"{name}: " in call("info", tmp_path / name, code=1)
    assert "no such file" in call("info", tmp_path / "y.pt", code=1)


def test_option_words():
    assert "whole numbers" in call("prepare", "--images", "a", "--dest", "b.h5", "--size", "3", "x", code=2)
    assert "no such folder" in call("prepare", "--images", "absent", "--dest", "b.h5", "--size=8,8,8", code=1)


@pytest.mark.parametrize(("started", "heavy"), [
    ("edm3d.__main__", {"torch", "numpy", "h5py", "hydra", "tqdm"}),
    ("edm3d.training.run, edm3d.inference.generation",
     {"matplotlib", "sympy", "torch.distributed.tensor", "torch._dynamo"})])
def test_commands_start_without_what_few_of_them_need(started, heavy):
    look = f"import sys, {started}; print({heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_help_is_quick_and_debug_shows_the_traceback(tmp_path):
    script = Path(dataset_tool.__file__)
    start = time.perf_counter()
    assert "phantom" in subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True).stdout
    assert time.perf_counter() - start < 5  # 0.1 s unless something heavy is imported on a busy machine
    args = [sys.executable, script, "--debug", "check", tmp_path / "x"]
    result = subprocess.run(args, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr
