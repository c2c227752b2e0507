"""H5 files: whole or absent, and damage does not go unnoticed."""

import hashlib
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from edm3d.formats import h5
from edm3d.formats.spool import Spool


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "folder" / "x.h5"
    with h5.atomic_h5(path) as file:
        h5.set_format(file, "latents", {"kind": "test"})
        h5.write_array(file, "chunked", np.arange(600, dtype=np.float32).reshape(3, 200))
        h5.write_array(file, "contiguous", np.arange(600, 900, dtype=np.float32), contiguous=True)
        h5.write_strings(file.create_group("part"), "names", ["é", "", "three"])
    return path


def test_what_is_written_is_read(example):
    with h5.open_h5(example, "latents") as file:
        assert h5.read_strings(file["part/names"]) == ["é", "", "three"]
        assert h5.get_json(file, "provenance") == {"kind": "test"}
        assert file["chunked"].fletcher32 and file["chunked"].chunks == (1, 200)
        assert file["contiguous"].chunks is None and file["contiguous"].id.get_offset() is not None
        np.testing.assert_array_equal(file["chunked"][2], np.arange(400, 600))
    assert h5.verify(example) == []


def test_hash_is_that_of_type_shape_and_values(example):
    values = np.arange(600, 900, dtype="<f4")
    expected = hashlib.sha256(b"<f4(300,)" + values.tobytes()).hexdigest()
    with h5.open_h5(example) as file:
        assert h5.get_text(file["contiguous"], "sha256") == expected


def test_rows_can_be_appended_and_big_rows_are_chunked_in_parts(tmp_path):
    with h5.atomic_h5(tmp_path / "x.h5") as file:
        dataset = h5.create(file, "a", (0, 2, 3), "uint8")
        h5.append_row(dataset, np.ones((2, 3)))
        assert dataset.shape == (1, 2, 3) and dataset[0].sum() == 6
    assert h5.chunk_shape((256, 256, 200), 4) == (64, 128, 100)  # 3.3 MB, axes halved in turn


def test_failure_leaves_nothing_behind_and_keeps_the_old_file(example):
    before = example.read_bytes()
    with pytest.raises(RuntimeError, match="mine"), h5.atomic_h5(example) as file:
        h5.write_array(file, "a", np.ones(3))
        raise RuntimeError("mine")
    assert example.read_bytes() == before
    assert os.listdir(example.parent) == ["x.h5"]


def test_needed_disk_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"not enough free disk: 1048576\.00 GiB needed, \d+\.\d\d [GM]iB free"):
        h5.atomic_h5(tmp_path / "x.h5", needed_bytes=2**50).__enter__()
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, sys
import numpy as np
from edm3d.formats import h5
for kib in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, resource.RLIM_INFINITY))  # writes stop half-way
    try:
        with h5.atomic_h5(sys.argv[1], 2 ** 20) as file:
            images = h5.create(file, "images", (0, 1000), "float32", hash_rows=True)
            for row in range(100):
                h5.append_row(images, np.full(1000, row))
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("refuse_after", [0, 1, 7, 10 ** 6])
def test_spool_reads_what_was_written_whatever_the_disk_refused(tmp_path, monkeypatch, refuse_after):
    calls, pwrite = [], os.pwrite

    def limited(handle: int, data: memoryview, place: int) -> int:
        calls.append(place)
        if len(calls) > refuse_after:
            raise OSError(28, "No space left on device")
        return pwrite(handle, data[:5], place)  # a part, as a system may

    monkeypatch.setattr(os, "pwrite", limited)
    random, wanted = np.random.default_rng(0), bytearray()
    spool = Spool(tmp_path / "spool", lambda error: OSError(f"mine: {error}"))
    for _ in range(200):
        place, length = random.integers(0, 60, 2)
        wanted.extend(bytes(max(0, place + length - len(wanted))))
        if random.random() < 0.5:
            data = random.bytes(length)
            spool.seek(place)
            assert spool.write(data) == length
            wanted[place:place + length] = data
        spool.seek(place)
        assert spool.read(length) == wanted[place:place + length]
    if refuse_after < len(calls):
        with pytest.raises(OSError, match="mine.*No space left"):
            spool.check()
    else:
        spool.check()
    spool.close()


def test_disk_that_fills_up_on_the_way_is_said_and_leaves_the_old_file_alone(example, root):
    before, limits = example.read_bytes(), [0, 1, 4, 64, 200, 395]
    command = [sys.executable, "-c", FULL_DISK, str(example), *map(str, limits)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    assert all(f"{example}: could not be written, is the disk full? about 1.00 MiB are needed" in s for s in lines)
    assert example.read_bytes() == before and os.listdir(example.parent) == ["x.h5"]


@pytest.mark.parametrize("name, value", [("chunked", 300.0), ("contiguous", 700.0)])
def test_flipped_byte_is_noticed(example, name, value):
    raw = bytearray(example.read_bytes())
    place = raw.index(np.float32([value, value + 1]).tobytes())
    raw[place + 2] ^= 1
    example.write_bytes(raw)
    assert [name in problem for problem in h5.verify(example)] == [True]


@pytest.mark.parametrize("text", [b"three", b'{"kind": "test"}'])
def test_changed_string_or_metadata_is_noticed(example, text):
    example.write_bytes(example.read_bytes().replace(text, text[:-3] + b"x" + text[-2:]))
    assert len(h5.verify(example)) == 1


def test_changed_attribute_is_noticed(example):
    with h5py.File(example, "a") as file:
        file.attrs["posterior"] = np.bytes_("gamma")
    assert "metadata differs" in h5.verify(example)[0]


def test_wrong_files_are_refused_by_name(example, tmp_path):
    bad = tmp_path / "bad.h5"
    with pytest.raises(ValueError, match=r"bad\.h5: no such file"):
        h5.open_h5(bad)
    bad.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"bad\.h5: not an HDF5 file"):
        h5.open_h5(bad)
    bad.write_bytes(example.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"bad\.h5: truncated"):
        h5.open_h5(bad)
    assert "truncated" in h5.verify(bad)[0]
    with pytest.raises(ValueError, match=r"x\.h5: format is 'latents', wanted a volumes file; python dataset_tool"):
        h5.open_h5(example, "volumes")
    with h5py.File(example, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(ValueError, match="version 99 is newer"):
        h5.open_h5(example, "latents")
    with h5.open_h5(example) as file, pytest.raises(ValueError, match=r"/part/absent is missing"):
        h5.need(file["part"], "absent")
