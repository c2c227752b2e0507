"""Volumes files: round trip, contract and refusals."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest

from edm3d.formats import h5
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box, in_order
from edm3d.training.datasets.volumes import VolumesDataset

META = VolumesMeta(
    3,
    ("echo",),
    ("target",),
    ("background", "cavity"),
    ("volume",),
    ("mL",),
    ("ED", "ES"),
    Intensity(0, 1, True, "a.u."),
)


def make_item(number: int, **changes) -> Item:
    rng = np.random.default_rng(number)
    item = Item(
        image=rng.random((1, 6, 5, 4), dtype=np.float32),
        label=rng.integers(0, 2, (6, 5, 4), dtype=np.uint8),
        attributes=np.array([number], np.float32),
        class_index=number % 2,
        id=f"é-{number}",
        group=f"patient-{number // 2}",
        affine=np.diag([2.0, 2.0, 3.0, 1.0]),
        box=np.array([[0, 1, 0], [6, 4, 4]]),
    )
    return item._replace(**changes)


def write(path, items, meta=META, **kwargs):
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for split, item in items:
            writer.add(split, item, **kwargs)
    return path


@pytest.fixture
def path(tmp_path):
    items = [(("train", "val")[n // 4], make_item(n)) for n in range(6)]
    items[1] = ("train", make_item(1, class_index=None, attributes=np.array([np.nan], np.float32)))
    return write(tmp_path / "v.h5", items)


def assert_same(a: Item, b: Item):
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def test_round_trip(path):
    file = VolumesFile(path)
    assert file.meta == META and file.provenance == {"kind": "test"} and len(file.content_hash) == 64
    assert file.splits == ["train", "val"] and (file.length("train"), file.length("val")) == (4, 2)
    assert file.ids("val") == ["é-4", "é-5"] and file.groups("train")[2] == "patient-1"
    assert file.spatial_shape("val") == (6, 5, 4) and file.table("val", "intensity_ranges") is None
    np.testing.assert_array_equal(file.table("train", "attributes")[:, 0], [0, np.nan, 2, 3])
    np.testing.assert_array_equal(file.table("train", "classes"), [0, -1, 0, 1])
    assert_same(file.read("train", 3), make_item(3))
    assert file.read("train", 1).class_index is None
    assert file.read("val", 0).image.dtype == np.float32 and file.read("val", 0).label.dtype == np.uint8


def test_file_pickles_and_forks(path):
    file = VolumesFile(path)
    assert_same(pickle.loads(pickle.dumps(file)).read("val", 1), make_item(5))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for number, item in enumerate(pool.starmap(file.read, [("val", 0), ("val", 1)])):
            assert_same(item, make_item(4 + number))


def test_two_dimensions_without_extras(tmp_path):
    meta = VolumesMeta(2, ("a", "b"), ("target", "condition"), (), (), (), (), Intensity(-5, 5, False, "HU"))
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    item = Item(image, None, None, None, "s", "s", np.eye(4), full_box((3, 4)))
    ranges = np.array([[0, 11], [12, 23]], np.float32)
    file = VolumesFile(write(tmp_path / "v.h5", [("train", item)], meta, intensity_range=ranges))
    assert file.read("train", 0).label is None and file.table("train", "attributes") is None
    np.testing.assert_array_equal(file.read("train", 0).box, [[0, 0, 0], [3, 4, 1]])
    np.testing.assert_array_equal(file.table("train", "intensity_ranges"), ranges[None])


def test_only_images_and_ids_are_required(tmp_path, path):
    with h5py.File(path, "a") as file:
        for name in ("groups", "affines", "boxes"):
            del file["train"][name]
        h5.seal(file)
    file = VolumesFile(path)
    assert file.groups("train") == file.ids("train")
    np.testing.assert_array_equal(file.read("train", 0).affine, np.eye(4))
    np.testing.assert_array_equal(file.read("train", 0).box, full_box((6, 5, 4)))
    file.close()
    with h5py.File(path, "a") as file:
        del file["val/labels"]
        h5.seal(file)
    with pytest.raises(ValueError, match="/val/labels is missing"):
        VolumesFile(path)


def test_intensity_maps_the_range_to_minus_one_and_one():
    intensity = Intensity(-1000, 3000, True, "HU")
    np.testing.assert_allclose(intensity.to_network(np.array([-1000.0, 1000, 3000])), [-1, 0, 1])
    np.testing.assert_allclose(intensity.from_network(np.array([-1.5, 0, 0.5])), [-1000, 1000, 2000])
    assert Intensity(0, 1, False, "").from_network(np.array([3.0]))[0] == 2
    with pytest.raises(ValueError, match="lo must be less than hi"):
        Intensity(1, 1, True, "")


@pytest.mark.parametrize(
    "split, changes, message",
    [
        ("val", {"group": "patient-0"}, "group 'patient-0' would be in splits 'train' and 'val'"),
        ("train", {"id": "é-0"}, "id 'é-0': ids must be unique"),
        ("train", {"id": ""}, "id ''"),
        ("a/b", {}, "'a/b' is not a name for a split"),
        ("train", {"image": np.zeros((1, 6, 5, 3), np.float32)}, r"shape \(1, 6, 5, 3\) differs"),
        ("train", {"image": np.zeros((2, 6, 5, 4), np.float32)}, r"wanted 1 channel\(s\) and 3 axes"),
        ("train", {"image": np.full((1, 6, 5, 4), np.nan, np.float32)}, "not finite"),
        ("train", {"image": np.full((1, 6, 5, 4), 2, np.float32)}, "leave the intensity contract"),
        ("train", {"label": np.full((6, 5, 4), 2, np.uint8)}, "label value 2 is outside the 2 classes"),
        ("train", {"label": np.zeros((6, 5, 3), np.uint8)}, r"label uint8 \(6, 5, 3\)"),
        ("train", {"label": None}, "no label"),
        ("train", {"attributes": None}, "0 attributes, wanted 1"),
        ("train", {"class_index": 2}, "class index 2 is outside"),
    ],
)
def test_bad_items_are_refused_and_nothing_is_left(tmp_path, split, changes, message):
    items = [("train", make_item(0)), (split, make_item(2, **changes))]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "v.h5", items)
    assert not list(tmp_path.iterdir())


def test_empty_file_and_unknown_split_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match=r"w\.h5: no volumes to write"):
        write(tmp_path / "w.h5", [])
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        VolumesFile(path).read("test", 0)


def test_splits_are_shown_in_one_order():
    assert in_order(["zoo", "test", "fold_1", "val", "train"]) == ["train", "val", "test", "fold_1", "zoo"]


def test_data_set_pads_and_crops_to_a_size(path):
    """6x5x4 to 8x5x2: one row of the lowest value on either side, the two middle planes; voxels keep their places."""
    whole, sized = VolumesDataset(str(path)), VolumesDataset(str(path), size=[8, 5, 2])
    assert whole.shape == (1, 6, 5, 4) and sized.shape == (1, 8, 5, 2) == (1, *sized.facts.spatial_shape)
    (image, label, _), (padded, padded_label, _) = whole[0], sized[0]
    np.testing.assert_array_equal(padded[:, 1:7], image[..., 1:3])
    assert (padded[:, [0, 7]] == -1).all() and (padded_label[[0, 7]] == 0).all()
    np.testing.assert_array_equal(padded_label[1:7], label[..., 1:3])
    assert np.array(sized.facts.affine)[:3, 3].tolist() == [-2, 0, 3]  # by voxels of 2 x 2 x 3 mm
    with pytest.raises(ValueError, match=r"size=\[8, 5\]: wanted a positive number or 3"):
        VolumesDataset(str(path), size=[8, 5])
