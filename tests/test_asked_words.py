"""What samples were asked for: its table, its words, and the files and folders that carry maps and condition images."""

import csv
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from edm3d.formats import asked_words
from edm3d.formats.check import checker_of
from edm3d.formats.describe import describe
from edm3d.formats.facts import UNIT_RANGE, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import Samples, SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.batch import Sample
from edm3d.inference.compared import affines_of, sample_case, shared_spacing
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Drawer
from edm3d.inference.export import export
from edm3d.inference.sample_files import write_asked, write_niftis, write_pngs
from edm3d.networks.conditioning import Condition, Part
from edm3d.reporting.cases import Layout
from edm3d.reporting.comparison import Comparison, keys
from edm3d.training.tasks.previews import held_pictures, known_of

SEEDS = [3, 5, 12]
HOSTILE = ["../../up", "=SUM(1)\n" + "x" * 300, "心臓/\x1b"]  # seed 3 has the first, 5 the last, 12 the first
TOLD = {"class_names": ("ED", "ES"), "attribute_names": ("lv volume", "-wall"), "attribute_units": ("mL", "mm"),
        "map_classes": ("outside", "sector", "wall"), "condition_channels": ("low dose",)}


def conditional(path: Path, dims: int, ids: list[str] | None, channels: tuple[str, ...] = ("echo",), **more: np.ndarray
                ) -> SamplesFile:
    """Samples of a size of 4, 5 and 6 voxels that were asked for by all that there is."""
    rng, size = np.random.default_rng(dims), (4, 5, 6)[:dims]
    facts = Facts("x.h5", "", channels, spatial_shape=size, intensity=Intensity(0.0, 1.0, True, ""), **TOLD)
    asked_by = {"conditions": {"source": "rows.csv", "hash": "0", "ids": ids}} if ids else {}
    arrays = {"images": rng.random((3, len(channels), *size), np.float32),
              "maps": rng.integers(3, size=(3, *size), dtype=np.uint8),
              "cond_images": rng.random((3, 1, *size), np.float32), "classes": np.array([1, 0, -1]),
              "attributes": np.array([[120, 9.5], [np.nan, 10], [0.1, 11]], np.float32)} | more
    write_samples(path, SEEDS, arrays, np.eye(4), SampleMeta(facts, "n.pt", "", asked_by))
    return SamplesFile(path)


def names_in(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels_of(path: Path) -> np.ndarray:
    """As another program reads them."""
    with Image.open(path) as image:
        return np.asarray(image)


# ---- a file for each sample ----


def test_map_pngs_are_what_was_asked_for_and_what_people_see(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, ["p1", "p2"])
    assert write_pngs(tmp_path, samples) == []
    stems = ["p2_seed000003", "p2_seed000005", "p1_seed000012"]
    kinds = ("", "_cond", "_contour", "_map", "_overlay", "_visible")
    assert names_in(tmp_path / "png") == sorted(f"{stem}{kind}.png" for stem in stems for kind in kinds)
    for i, stem in enumerate(stems):
        map_ = samples.row("maps", i)
        found = {kind: pixels_of(tmp_path / f"png/{stem}{kind}.png") for kind in kinds}
        np.testing.assert_array_equal(found["_map"], map_)
        np.testing.assert_array_equal(found["_visible"], np.array([0, 128, 255])[map_])  # 127.5 to the even one
        np.testing.assert_array_equal(found["_cond"], np.rint(255 * samples.row("cond_images", i)[0]))
        grey = np.repeat(found[""][..., None], 3, axis=-1)
        assert (found["_overlay"][map_ == 0] == grey[map_ == 0]).all() and \
            (found["_overlay"][map_ > 0] != grey[map_ > 0]).any(-1).all()
        red, grey_there = np.array([255, 93, 115]), grey[map_ == 1].astype(float)
        assert np.abs(found["_overlay"][map_ == 1] - (0.8 * grey_there + 0.2 * red)).max() <= 1


def test_contours_are_the_edges_of_the_map_in_its_colours(tmp_path):
    map_ = np.zeros((3, 7, 7), np.uint8)
    map_[:, 1:6, 1:6] = 2
    samples = conditional(tmp_path / "samples.h5", 2, None, images=np.zeros((3, 1, 7, 7), np.float32), maps=map_,
                          cond_images=np.zeros((3, 1, 7, 7), np.float32))
    write_pngs(tmp_path, samples)
    found, rim = pixels_of(tmp_path / "png/seed000003_contour.png"), map_[0] > 0
    rim[2:5, 2:5] = False
    assert (found[rim] == [255, 200, 87]).all() and not found[~rim].any()


def test_a_label_map_is_shown_where_no_map_was_asked_for_and_only_there(tmp_path):
    label = np.ones((3, 4, 5), np.uint8)
    one = conditional(tmp_path / "one.h5", 2, None, labels=label)
    write_pngs(tmp_path / "one", one)
    assert len(names_in(tmp_path / "one/png")) == 3 * 7
    assert (pixels_of(tmp_path / "one/png/seed000003_visible.png") == np.array([0, 128, 255])[one.row("maps", 0)]).all()


def test_names_of_channels_take_the_place_of_no_map_and_of_no_condition(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, None, channels=("Map", "cond", "b"))
    write_pngs(tmp_path, samples)
    names = [name for name in names_in(tmp_path / "png") if "seed000003" in name]
    assert len(names) == 3 + 5 and len({name.casefold() for name in names}) == 8 and "seed000003_b.png" in names
    np.testing.assert_array_equal(pixels_of(tmp_path / "png/seed000003_map.png"), samples.row("maps", 0))


@pytest.mark.parametrize("ids", [None, HOSTILE])
def test_niftis_of_volumes_have_maps_conditions_and_affines_of_their_own(tmp_path, ids):
    affines = np.stack([np.diag([i, i, i, 1.0]) for i in (1, 2, 3)])
    samples = conditional(tmp_path / "samples.h5", 3, ids, affines=affines)
    assert write_niftis(tmp_path, samples) == []
    assert names_in(tmp_path) == sorted([*(f"nifti/{name}" for name in names_in(tmp_path / "nifti")), "nifti.json",
                                         "samples.h5"])
    assert len(names_in(tmp_path / "nifti")) == 9
    for i, seed in enumerate(SEEDS):
        for array, end in (("images", "image"), ("maps", "map"), ("cond_images", "cond")):
            path, = (tmp_path / "nifti").glob(f"*seed{seed:06d}_{end}.nii.gz")
            back = nibabel.load(path)
            np.testing.assert_array_equal(np.asarray(back.dataobj), samples.row(array, i).reshape(4, 5, 6))
            np.testing.assert_allclose(back.affine, affines[i])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").iterdir()}
    assert write_niftis(tmp_path, samples) == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").iterdir()}


def test_two_seeds_of_one_id_and_two_rows_of_one_name_are_files_of_their_own(tmp_path):
    meta = SampleMeta(Facts("x", ""), "", "", {"conditions": {"source": "", "hash": "", "ids": ["a", "A", "a"]}})
    found = meta.file_names(range(6))
    assert len({name.casefold() for name in found}) == 6 and found[0].endswith("_seed000000")
    long = SampleMeta(Facts("x", ""), "", "", {"conditions": {"source": "", "hash": "", "ids": ["心" * 240]}})
    assert len(f"{long.file_names([10 ** 17])[0]}_contour.png".encode()) < 255
    assert SampleMeta(Facts("x", ""), "", "", {"conditions": None}).file_names([7]) == ["seed000007"]


def test_samples_in_memory_are_saved_under_the_same_names(tmp_path):
    file = conditional(tmp_path / "samples.h5", 3, ["p1", "p2"])
    samples = Samples(SEEDS, {name: file.array(name) for name in file.names}, file.meta)
    paths = samples.save_nifti(tmp_path / "saved")
    write_niftis(tmp_path, file)
    assert [path.name for path in paths] == names_in(tmp_path / "nifti")
    assert samples.classes == ["ES", "ED", None] and samples.ids == ["p2", "p2", "p1"] and samples.maps.shape[0] == 3


# ---- the table ----


def test_the_table_pairs_files_with_what_was_asked(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, HOSTILE)
    note, = write_asked(tmp_path, samples)
    assert "are no names of files" in note and "\x1b" not in note
    with open(tmp_path / "asked.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "id", "seed", "class", "lv volume [mL]", "'-wall [mm]"]
    assert [row[1:] for row in rows] == [["../../up", "3", "ES", "120.0", "9.5"], ["心臓/\x1b", "5", "ED", "", "10.0"],
                                        ["../../up", "12", "", "0.1", "11.0"]]
    write_pngs(tmp_path, samples)
    assert all((tmp_path / f"png/{row[0]}_map.png").is_file() for row in rows)
    before = (tmp_path / "asked.csv").stat().st_mtime_ns
    write_asked(tmp_path, samples)
    assert (tmp_path / "asked.csv").stat().st_mtime_ns == before


def test_a_table_of_others_is_left_and_where_nothing_was_asked_there_is_none(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, ["a"])
    (tmp_path / "asked.csv").write_text("mine")
    assert "was not written by generate" in write_asked(tmp_path, samples)[0]
    assert (tmp_path / "asked.csv").read_text() == "mine"
    meta = SampleMeta(Facts("x", ""), "", "", {})
    arrays = {"images": np.zeros((1, 1, 4, 4), np.float32), "classes": np.zeros(1, np.int64),
              "attributes": np.full((1, 2), np.nan, np.float32)}
    write_samples(tmp_path / "plain.h5", [0], arrays, np.eye(4), meta)
    assert write_asked(tmp_path / "plain", SamplesFile(tmp_path / "plain.h5")) == []
    assert not (tmp_path / "plain").exists()


def test_an_id_that_no_text_can_hold_is_escaped(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, ["\ud800"])
    write_asked(tmp_path, samples)
    assert "\\ud800" in (tmp_path / "asked.csv").read_text(encoding="utf-8")


# ---- words ----


def test_captions_have_three_digits_units_and_the_first_of_many(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 2, ["p1", "p2"])
    found = asked_words.captions(samples.meta, SEEDS, samples.array("classes"), samples.array("attributes"))
    assert found == ["class ES\np2\nseed 3\nlv volume 120 mL\n-wall 9.5 mm", "class ED\np2\nseed 5\n-wall 10 mm",
                     "p1\nseed 12\nlv volume 0.1 mL\n-wall 11 mm"]
    bare = SampleMeta(Facts("x", ""), "", "", {})
    assert asked_words.captions(bare, [4]) == ["seed 4"]
    assert asked_words.captions(bare, [4], None, np.arange(6.0)[None]) == [
        "seed 4\nattribute 1 0\nattribute 2 1\nattribute 3 2\nand 3 more"]


def test_captions_of_a_sweep_have_the_seed_and_the_value():
    facts = Facts("x", "", attribute_names=tuple("abcde"), attribute_units=("",) * 4 + ("mm",))
    sweep = {"name": "e", "unit": "mm", "values": [5.0, 6.0], "column": 4}
    rows = np.float32([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]])
    found = asked_words.captions(SampleMeta(facts, "", "", {"sweep": sweep}), [6, 7], None, rows)
    assert found == [f"seed 3\ne {value} mm\na 1\nb 2\nand 2 more" for value in (5, 6)]


def test_the_table_of_a_sweep_tells_numbers_from_seeds(tmp_path):
    facts = Facts("x", "", ("us",), attribute_names=("e",), attribute_units=("mm",))
    sweep = {"name": "e", "unit": "mm", "values": [5.0, 6.0], "column": 0}
    arrays = {"images": np.zeros((2, 1, 4, 4), np.float32), "attributes": np.float32([[5], [6]])}
    write_samples(tmp_path / "s.h5", [6, 7], arrays, np.eye(4), SampleMeta(facts, "", "", {"sweep": sweep}))
    assert asked_words.table(SamplesFile(tmp_path / "s.h5")).splitlines() == [
        "name,number,seed,e [mm]", "seed000006,6,3,5.0", "seed000007,7,3,6.0"]


@pytest.mark.parametrize("suffix", ["h5", "npz"])
def test_check_and_info_say_what_was_asked(tmp_path, suffix):
    samples = conditional(tmp_path / f"samples.{suffix}", 2, HOSTILE)
    wanted = ["asked for by rows.csv: 3 rows", "classes asked for: ES 1, ED 1, none 1",
              "attribute asked for: lv volume 0.1 to 120 mL, 1 without", "attribute asked for: -wall 9.5 to 11 mm",
              "maps asked for, of classes outside, sector, wall", "condition images asked for, of low dose"]
    assert list(asked_words.lines(samples)) == wanted
    report = checker_of(samples.path)(samples.path)
    assert not report.problems and [line.strip() for line in report.lines[-6:]] == wanted
    assert [line.strip() for line in describe(samples.path)][-6:] == wanted


# ---- further on ----


def test_exports_of_samples_and_volumes_have_a_folder_for_each_kind(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 3, ["p1", "p2"])
    list(export(samples.path, "nifti", tmp_path / "out", indices="12"))
    kinds = {"images": "images", "maps": "maps", "conditions": "cond_images"}
    for folder, array in kinds.items():
        back = nibabel.load(tmp_path / f"out/{folder}/p1_seed000012.nii.gz")
        np.testing.assert_array_equal(np.asarray(back.dataobj), samples.row(array, 2).reshape(4, 5, 6))
    meta = VolumesMeta(2, ("ct", "low"), ("target", "condition"), (), (), (), (), Intensity(0.0, 1.0, True, ""),
                       map_classes=("outside", "sector"))
    image, map_ = np.random.default_rng(0).random((2, 4, 5), np.float32), np.ones((4, 5), np.uint8)
    with VolumesWriter(tmp_path / "v.h5", meta, {}) as writer:
        writer.add("train", Item(image, None, None, None, "a", "a", np.eye(4), full_box((4, 5)), map_))
    list(export(tmp_path / "v.h5", "nifti", tmp_path / "vout"))
    assert names_in(tmp_path / "vout") == ["conditions/a.nii.gz", "export.json", "images/a.nii.gz", "maps/a.nii.gz"]
    for folder, wanted in (("images", image[0]), ("conditions", image[1]), ("maps", map_)):
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / f"vout/{folder}/a.nii.gz").dataobj)[..., 0],
                                      wanted)
    list(export(tmp_path / "v.h5", "png", tmp_path / "pictures"))
    assert pixels_of(tmp_path / "pictures/a.png").shape[0] > 3 * 168 * 4 / 5  # image, outlines and condition


def test_measured_samples_have_no_class_that_was_not_asked_and_their_ids(tmp_path):
    samples = conditional(tmp_path / "samples.h5", 3, ["p1", "p2"])
    layout = Layout(("echo",), (), (1.0, 1.0, 1.0), 0.0, 1.0, "")
    assert [sample_case(samples, i, layout).class_name for i in range(3)] == ["ES", "ED", None]
    context = Comparison(layout=layout, provenance={}, real=None, generated=None, seeds=[3], asked=("p2",))
    assert keys(context, "generated", ["seed-000003"])["asked"] == ("p2",)
    assert keys(context, "real", ["a", "b"])["asked"] == ["", ""]


def test_samples_of_several_voxel_sizes_are_not_measured_as_one(tmp_path):
    affines = np.stack([np.diag([i, i, i, 1.0]) for i in (2, 2, 3)])
    samples = conditional(tmp_path / "samples.h5", 3, None, affines=affines)
    assert samples.affine_of(2)[0, 0] == 3 and conditional(tmp_path / "o.h5", 3, None).affine_of(2)[0, 0] == 1
    with pytest.raises(ValueError, match=r"seed 3 are \[2. 2. 2.\] mm, those of 1 others .*: seed 12 \[3.*; why"):
        shared_spacing(samples.path, affines_of(samples), 3, "why")


def test_a_preview_asks_for_what_is_known_of_held_out_items():
    row = {"class_labels": np.eye(2, dtype=np.float32)[1], "attributes": np.float32([5, np.nan]),
           "semantic": np.array([[0, 2]], np.int16), "images": np.ones((1, 1, 2), np.float32)}
    null = row | {"semantic": np.full((1, 2), 3, np.int16)}
    takes = {"class_labels": Part(2), "attributes": Part(2), "semantic": Part(3)}
    samples = [Sample(np.zeros((1, 1, 2), np.float32), None, Condition(each)) for each in (row, row)]
    found = known_of(samples, takes)
    assert found["class_labels"] == [1, 1] and found["semantic"][0].tolist() == [[0, 2]] and "images" not in found
    assert "semantic" not in known_of([*samples, samples[0]._replace(condition=Condition(null))], takes)
    assert known_of([], takes) == {}


def test_held_out_latents_are_decoded_within_their_maps():
    """As a masked first stage decodes what is drawn: by the map of each."""
    def decode(latents, semantic):
        return semantic[:, None] * latents, None

    samples = [Sample(np.zeros((1, 2, 2)), None, Condition(semantic=np.int16([[0, k], [k, k]]))) for k in (1, 3)]
    drawer = Drawer(lambda seeds: None, Conditions({}, {}, (2, 2)), True, SimpleNamespace(decode=decode), lambda: None,
                    (1, 2, 2), UNIT_RANGE, torch.device("cpu"), "fp32")
    shown = held_pictures(drawer, samples, np.full((2, 1, 2, 2), 2, np.float32))
    assert [image.tolist() for image, _ in shown] == [[[[0, 2], [2, 2]]], [[[0, 6], [6, 6]]]]
