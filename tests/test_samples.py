"""Samples files: what is written comes back row by row, no damage goes unnamed, and merging them takes no memory."""

import json
import multiprocessing
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import FORMATS, SamplesFile, write_rows, write_samples
from edm3d.inference.generation import merge
from edm3d.inference.parts import Parts
from edm3d.utils.files import arrays_hash

META = SampleMeta(Facts("", "", ("echo",)), "net.pt", "ab12", {"num_steps": 18})
IMAGES = np.arange(2 * 1 * 3 * 3, dtype=np.float32).reshape(2, 1, 3, 3)


@pytest.fixture
def samples(tmp_path) -> Path:
    """Two images of seeds 3 and 8."""
    write_samples(tmp_path / "samples.npz", [3, 8], {"images": IMAGES}, np.eye(4), META)
    return tmp_path / "samples.npz"


LABELS, CLASSES = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3), np.array([1, 0])


def test_what_is_written_comes_back(samples):
    file = SamplesFile(samples)
    assert file.meta == META and file.rows == {3: 0, 8: 1} and file.row("labels", 0) is None
    np.testing.assert_array_equal(file.array("images"), IMAGES)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_and_arrays_are_read_in_any_process(tmp_path, kind):
    path = tmp_path / f"samples.{kind}"
    write_samples(path, [3, 8], {"images": IMAGES, "labels": LABELS, "classes": CLASSES}, np.eye(4), META)
    file = SamplesFile(path)
    assert file.names == ("images", "labels", "classes") and file.shape("images") == (2, 1, 3, 3)
    assert file.row("latents", 1) is file.array("latents") is file.shape("latents") is None
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply(file.row, ("images", 1))
    again = pickle.loads(pickle.dumps(file))
    for row in (file.row("images", 1), file.row("images", -1), again.row("images", 1), forked):
        np.testing.assert_array_equal(row, IMAGES[1])
        assert row.flags.writeable
    np.testing.assert_array_equal(file.row("labels", 0), LABELS[0])
    assert file.row("classes", 0) == 1 and file.array("classes").tolist() == [1, 0]
    for index in (2, -3):
        with pytest.raises(IndexError):
            file.row("images", index)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_of_other_shapes_are_refused_and_nothing_is_left(tmp_path, kind):
    with pytest.raises(ValueError, match=r"images of seed 8 are \(1, 2\), those of seed 3 \(1, 3\)"):
        write_rows(tmp_path / f"samples.{kind}", [3, 8], ["images"], lambda _, i: np.zeros((1, 3 - i)), np.eye(4), META)
    assert not list(tmp_path.iterdir())


# ---- damage ----


def zero_row(path: Path, name: str, index: int) -> None:
    """What a disk leaves that lost a write: a row of zeros, of which HDF5's own checksum says that it is whole."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info_by_coord((index, *(0 for _ in file[name].shape[1:])))
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))


def test_a_damaged_row_is_refused_when_it_is_read_and_the_others_are_read(tmp_path):
    path = tmp_path / "samples.h5"
    write_samples(path, [3, 8], {"images": IMAGES, "labels": LABELS}, np.eye(4), META)
    zero_row(path, "images", 1)
    file = SamplesFile(path)
    np.testing.assert_array_equal(file.row("images", 0), IMAGES[0])
    np.testing.assert_array_equal(file.row("labels", 1), LABELS[1])
    for read in (lambda: file.row("images", 1), lambda: file.array("images")):
        with pytest.raises(ValueError, match=r"samples\.h5: .*images.* damaged|samples\.h5: damaged, /images"):
            read()


def test_rows_without_hashes_of_their_own_are_held_against_that_of_the_array(tmp_path):
    """As files of before are: one hash over all rows."""
    path = tmp_path / "samples.h5"
    write_samples(path, [3, 8], {"images": IMAGES, "labels": LABELS}, np.eye(4), META)
    with h5py.File(path, "r+") as file:
        for name in ("images", "labels"):
            del file[name].attrs["row_sha256"]
        h5.seal(file)
    np.testing.assert_array_equal(SamplesFile(path).row("images", 1), IMAGES[1])
    zero_row(path, "images", 1)
    file = SamplesFile(path)
    np.testing.assert_array_equal(file.row("labels", 1), LABELS[1])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"samples\.h5: damaged, /images differs from its stored hash"):
            file.row("images", 0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_of_numpy_are_read_too(tmp_path, save):
    everything = {"seeds": np.array([3, 8]), "affine": np.eye(4), "meta": np.array(json.dumps(META.plain())),
                  "images": IMAGES, "labels": LABELS}
    save(tmp_path / "old.npz", content_hash=arrays_hash(everything), **everything)
    file = SamplesFile(tmp_path / "old.npz")
    assert file.meta == META and file.seeds.tolist() == [3, 8]
    for i in range(2):
        np.testing.assert_array_equal(file.row("images", i), IMAGES[i])
        np.testing.assert_array_equal(file.row("labels", i), LABELS[i])
    save(tmp_path / "bad.npz", content_hash=arrays_hash(everything), **everything | {"images": IMAGES + 1})
    with pytest.raises(ValueError, match=r"bad\.npz: damaged, its arrays differ"):
        SamplesFile(tmp_path / "bad.npz")


def test_npz_is_what_numpy_reads_and_its_hash_is_that_of_its_arrays(samples):
    with np.load(samples) as archive:
        arrays = dict(archive)
    assert str(arrays.pop("content_hash")) == arrays_hash(arrays)
    np.testing.assert_array_equal(arrays["images"], IMAGES)
    with zipfile.ZipFile(samples) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_file_that_is_cut_off_after_it_was_opened_is_named(samples):
    file = SamplesFile(samples)
    samples.write_bytes(samples.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"samples\.npz"):
        file.row("images", 1)


def test_every_truncated_file_is_named(samples):
    whole = samples.read_bytes()
    for length in range(len(whole)):
        samples.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"samples\.npz"):
            SamplesFile(samples)


def test_any_flipped_byte_is_noticed_or_harmless(samples):
    whole, noticed = samples.read_bytes(), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        samples.write_bytes(damaged)
        try:
            file = SamplesFile(samples)
        except ValueError as error:
            assert "samples.npz" in str(error)
            noticed += 1
        else:
            assert file.meta == META and list(file.rows) == [3, 8], f"byte {position} changed what was read"
    assert noticed > len(whole) / 2


@pytest.mark.parametrize("arrays", [
    {"images": IMAGES}, {"seeds": np.arange(2), "affine": np.eye(4)},
    {"seeds": np.arange(2), "affine": np.eye(4), "meta": "no JSON"},
    {"seeds": np.arange(2), "affine": np.eye(4), "meta": '{"other": 1}'},
    {"seeds": np.arange(2), "affine": np.eye(4), "meta": "[1]"},
])  # fmt: skip
def test_other_archives_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: not a samples file"):
        SamplesFile(tmp_path / "other.npz")


def test_single_array_under_the_wrong_name_is_refused(tmp_path):
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"array\.npz"):
        SamplesFile(tmp_path / "array.npz")


# ---- merging ----


def rows_of(seed: int) -> dict[str, np.ndarray]:
    """Image and latents of a seed, 128 KiB each, and its class."""
    return {"latents": np.full((1, 64, 512), seed, np.float32), "images": np.full((1, 64, 512), -seed, np.float32),
            "classes": np.array(seed % 2)}


@pytest.mark.parametrize("kind", FORMATS)
def test_merging_takes_the_memory_of_rows_whatever_their_number(tmp_path, kind):
    path, count = tmp_path / f"samples.{kind}", 200
    seeds, parts = list(range(0, count, 2)), Parts(tmp_path / "parts", "these", lambda *_: None)
    write_rows(path, seeds, ["latents", "images", "classes"], lambda name, i: rows_of(seeds[i])[name], np.eye(4), META)
    new = list(range(1, count, 2))
    for seed in new:
        parts.write(seed, rows_of(seed))
    tracemalloc.start()
    try:
        merged = merge(path, SamplesFile(path), parts, new, META)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2 ** 20  # each of two arrays has 25 MiB
    assert merged.seeds.tolist() == list(range(count)) and merged.array("classes").tolist() == [0, 1] * (count // 2)
    for i in range(count):
        assert (merged.row("latents", i) == i).all() and (merged.row("images", i) == -i).all()
    assert not (tmp_path / "parts").exists()


def test_a_damaged_row_of_the_old_file_stops_the_merge_and_nothing_is_lost(tmp_path):
    path, parts = tmp_path / "samples.h5", Parts(tmp_path / "parts", "these", lambda *_: None)
    write_samples(path, [3, 8], {"images": IMAGES}, np.eye(4), META)
    zero_row(path, "images", 1)
    before = path.read_bytes()
    parts.write(5, {"images": IMAGES[0]})
    with pytest.raises(ValueError, match=r"samples\.h5: /images, row 1, is damaged"):
        merge(path, SamplesFile(path), parts, [5], META)
    assert path.read_bytes() == before and parts.is_whole(5)
