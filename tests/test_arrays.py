"""Plain arrays as data: their range, split and errors, and the road from signals in a .npy to drawn ones."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import generate
import train
from edm3d.formats.intensity import Intensity
from edm3d.formats.samples import SamplesFile
from edm3d.reporting.montages import curves
from edm3d.training.datasets.arrays import ArraysDataset, survey
from tests.commands import refused, succeed

TRAIN = ["-cn=voxels_edm", "dataset=arrays", "training.network.model.model_channels=8",
         "training.network.model.channel_mult=[1,1]", "training.network.model.attention_levels=[]",
         "training.options.batch_size=4", "training.options.total_kimg=0.008", "training.options.device=cpu",
         "training.options.num_threads=1", "training.options.precision=fp32"]
DRAW = ["-cn=voxels_edm", "sampling.seeds=0-1", "sampling.sampler.num_steps=3", "sampling.device=cpu",
        "sampling.num_threads=1"]


@pytest.fixture(autouse=True)
def here(tmp_path):
    """Work in a folder of one's own."""
    threads = torch.get_num_threads()
    with chdir(tmp_path):
        yield tmp_path
    torch.set_num_threads(threads)


def count_up(items: int = 10, shape: tuple[int, ...] = (1, 4), dtype: type = np.int16) -> np.ndarray:
    """Item i is i everywhere."""
    return np.broadcast_to(np.arange(items, dtype=dtype).reshape(-1, *[1] * len(shape)), (items, *shape)).copy()


def nan_in(item: int) -> np.ndarray:
    """Ten items, one of them with a hole."""
    array = count_up(dtype=np.float32)
    array[item, 0, 2] = np.nan
    return array


# ---- values ----


@pytest.mark.parametrize("shape", [(1, 4), (2, 4, 8), (3, 2, 4, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64])
def test_items_go_from_the_range_of_the_train_part_to_minus_one_and_one(shape, dtype):
    np.save("x.npy", count_up(10, shape, dtype))
    data, val = ArraysDataset("x.npy"), ArraysDataset("x.npy", split="val")
    assert (len(data), len(val), len(ArraysDataset("x.npy", "all"))) == (9, 1, 10) and data.shape == shape
    for i in range(9):  # 0 is -1, 8 is 1
        image = data[i].image
        assert image.shape == shape and image.dtype == np.float32 and (image == i / 4 - 1).all()
    assert (val[0].image == 1).all()  # 9, beyond the range
    assert data.facts.intensity == val.facts.intensity == Intensity(0, 8, True, "")
    assert data.facts.spatial_shape == shape[1:] and len(data.facts.channels) == shape[0]
    np.testing.assert_array_equal(data.intensity.from_network(data[3].image), np.full(shape, 3))


def test_a_range_that_is_given_is_the_range():
    np.save("x.npy", count_up())
    data = ArraysDataset("x.npy", lo=-4, hi=4)
    assert [float(data[i].image[0, 0]) for i in (0, 2, 4, 8)] == [0, 0.5, 1, 1]
    assert ArraysDataset("x.npy", hi=16).facts.intensity.lo == 0


def test_the_last_items_are_held_out():
    np.save("x.npy", count_up(20))
    train_part, val = (ArraysDataset("x.npy", split, held_out=0.25, lo=0, hi=20) for split in ("train", "val"))
    values = [[round(float(part[i].image[0, 0]) * 10 + 10) for i in range(len(part))] for part in (train_part, val)]
    assert values == [list(range(15)), list(range(15, 20))]


def test_a_npy_is_mapped_and_looked_at_in_blocks(monkeypatch):
    np.save("x.npy", count_up(40))
    assert isinstance(ArraysDataset("x.npy").items, np.memmap)
    whole = survey(np.load("x.npy"), 36, "x.npy")
    monkeypatch.setattr("edm3d.training.datasets.arrays.BLOCK", 30)  # three items
    assert survey(np.load("x.npy"), 36, "x.npy") == whole and whole[1:] == (0, 35)
    with pytest.raises(ValueError, match="item 7 has"):
        survey(nan_in(7), 9, "x.npy")


def test_wide_ranges_of_narrow_types_do_not_overflow():
    np.save("x.npy", np.array([-60000, 0, 60000, 0], np.float16)[:, None, None])
    assert [float(ArraysDataset("x.npy")[i].image[0, 0]) for i in range(3)] == [-1, 0, 1]


def test_other_values_types_and_shapes_have_another_hash():
    hashes = set()
    for array in (count_up(), count_up(dtype=np.int32), count_up().reshape(10, 4, 1), count_up() + np.int16(1)):
        np.save("x.npy", array)
        hashes.add(ArraysDataset("x.npy").facts.content_hash)
    np.savez("y.npz", a=count_up(), b=count_up(3))
    np.savez("z.npz", count_up() + np.int16(1))
    assert ArraysDataset("z.npz").facts.content_hash in hashes
    assert ArraysDataset("y.npz", key="a").facts.content_hash in hashes and len(hashes) == 4


# ---- errors ----


@pytest.mark.parametrize(("array", "arguments", "match"), [
    (count_up()[:, 0], {}, r"\[10, 4\], wanted \[N,C,\*S\] with 1 to 3 spatial axes.*\[:, None\]"),
    (np.zeros((4, 1, 2, 2, 2, 2)), {}, r"\[4, 1, 2, 2, 2, 2\], wanted"),
    (np.zeros((0, 1, 4)), {}, r"\[0, 1, 4\], wanted"),
    (nan_in(7), {}, "x.npy: item 7 has values that are not finite"),
    (nan_in(9), {}, "item 9 has"),  # held out
    (np.zeros((4, 1, 4), complex), {}, "array of complex128, wanted floats"),
    (np.full((4, 1, 4), "a"), {}, "array of <U1, wanted floats"),
    (count_up(1), {}, "x.npy: 1 item, and training.dataset.held_out=0.1 leaves none"),
    (count_up(2), {"held_out": 0.9}, "2 items, and training.dataset.held_out=0.9 leaves none"),
    (count_up(), {"held_out": 0}, "training.dataset.held_out=0: wanted a share"),
    (count_up(), {"split": "test"}, "training.dataset.split='test': wanted train, val, all"),
    (np.ones((4, 1, 4)), {}, r"range \[1.0, 1.0\].*training.dataset.lo"),
    (count_up(), {"lo": 5, "hi": 2}, r"range \[5.0, 2.0\].*training.dataset.lo"),
    (count_up(), {"key": "a"}, "training.dataset.key=a: x.npy is a .npy"),
])
def test_arrays_that_cannot_be_data_are_refused(array, arguments, match):
    np.save("x.npy", array)
    with pytest.raises(ValueError, match=match):
        ArraysDataset("x.npy", **arguments)


def test_files_that_are_not_there_or_something_else_are_refused():
    np.savez("two.npz", a=count_up(), b=count_up())
    np.save("whole.npy", count_up())
    Path("half.npy").write_bytes(Path("whole.npy").read_bytes()[:-9])
    Path("x.csv").write_text("1,2")
    Path("zip.npy").write_bytes(Path("two.npz").read_bytes())
    with open("huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1000,) * 4})
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    for path, arguments, match in (
            ("none.npy", {}, "none.npy: no such file; set training.dataset.path"),
            ("x.csv", {}, "training.dataset.path=x.csv: wanted a .npy or .npz"),
            ("two.npz", {}, "several arrays, it has a, b; set training.dataset.key"),
            ("two.npz", {"key": "c"}, "no array 'c', it has a, b"),
            ("half.npy", {}, "half.npy: not a .npy file, or damaged"),
            ("zip.npy", {}, r"zip.npy: .*\(it looks like a zip archive: is it a .npz"),
            ("huge.npy", {}, r"huge.npy: .* 8,000,000,000,000 bytes, as float64 \(1000, .*, and has 0"),
            ("objects.npy", {}, "objects.npy: not a .npy file")):
        with pytest.raises(ValueError, match=match):
            ArraysDataset(path, **arguments)


# ---- the road ----


def waves(items: int) -> np.ndarray:
    """Sines of any phase between 100 and 300, float32 [items,1,16]."""
    phase = np.random.default_rng(0).uniform(0, 6, (items, 1, 1))
    return (200 + 100 * np.sin(np.arange(16) / 3 + phase)).astype(np.float32)


@pytest.mark.parametrize("kind", ["h5", "npz"])
def test_signals_are_trained_on_and_drawn(here, kind):
    np.save("signals.npy", waves(12))
    assert "11 items of [1, 16]" in succeed(train.main, *TRAIN, "training.dataset.path=signals.npy")
    said = succeed(generate.main, *DRAW, f"sampling.format={kind}", "sampling.outdir=out")
    assert "NIfTI     none" in said and "Montage   out/samples.png" in said
    assert {p.name for p in Path("out").iterdir()} == {"samples.png", f"samples.{kind}"}
    assert Path("out/samples.png").stat().st_size > 1000
    images = SamplesFile(f"out/samples.{kind}").array("images")
    assert images.shape == (2, 1, 16) and images.dtype == np.float32 and not np.array_equal(images[0], images[1])
    low, high = waves(12)[:11].min(), waves(12)[:11].max()
    assert images.min() >= low - 1e-3 and images.max() <= high + 1e-3 and images.std() > 1


@pytest.mark.parametrize(("shape", "pictures"), [((2, 8, 8), 2), ((1, 4, 8, 8), 2)])
def test_images_and_volumes_too(here, shape, pictures):
    np.savez("x.npz", some=np.random.default_rng(0).integers(0, 200, (6, *shape), dtype=np.uint8))
    succeed(train.main, *TRAIN, "training.dataset.path=x.npz", "training.dataset.key=some")
    succeed(generate.main, *DRAW, "sampling.outdir=out")
    assert SamplesFile("out/samples.h5").array("images").shape == (2, *shape)
    assert len(list(Path("out/nifti").iterdir())) == pictures and Path("out/samples.png").is_file()


def test_a_size_that_does_not_divide_stops_before_there_is_a_run(here):
    np.save("x.npy", count_up(10, (1, 9)))
    said = refused(here, train.main, *TRAIN, "training.dataset.path=x.npy")
    assert said.endswith("size (9,) must divide by (2,); nearest that do: (8,) and (10,); pad the images")


def test_curves_have_a_row_per_block_and_a_line_per_channel():
    signals = [np.arange(8).reshape(2, 4) + i for i in range(3)]
    figure = curves([("Real", signals[:2]), ("None", []), ("Generated", signals)], ["a", "b", "c"])
    rows = [[axis for axis in figure.axes[i:i + 3] if axis.get_visible()] for i in (0, 3)]
    assert [len(row) for row in rows] == [2, 3] and [axis.get_xlabel() for axis in rows[1]] == ["a", "b", "c"]
    for row in rows:
        for axis, signal in zip(row, signals):
            assert [line.get_ydata().tolist() for line in axis.lines] == signal.tolist()
