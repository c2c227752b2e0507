"""HDF5 files from strangers: what leads out of one, goes in circles or claims too much is not followed but refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from edm3d.formats import h5
from edm3d.formats.describe import describe
from edm3d.formats.diff3 import is_latents, is_samples
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.check import check
from tests.test_corruption import write_volumes

Change = Callable[[h5py.File, Path], None]
HUGE = (10 ** 6, 10 ** 6)


def external_link(file: h5py.File, secret: Path) -> None:
    file["train/more"] = h5py.ExternalLink(str(secret), "/x")


def external_values(file: h5py.File, secret: Path) -> None:
    file.create_dataset("train/more", (10,), "u1", external=[(str(secret), 0, 10)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((10,), "u1")
    layout[:] = h5py.VirtualSource(str(secret), "x", (10,))
    file.create_virtual_dataset("train/more", layout)


def growing_virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((10, 4), "u1", maxshape=(None, 4))
    layout[h5py.h5s.UNLIMITED:, :] = h5py.VirtualSource(str(secret), "x", (10, 4), maxshape=(None, 4))[
        h5py.h5s.UNLIMITED:, :]
    file.create_virtual_dataset("train/more", layout)


def soft_link(file: h5py.File, _: Path) -> None:
    file["train/more"] = h5py.SoftLink("/val/classes")


def soft_circle(file: h5py.File, _: Path) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def hard_circle(file: h5py.File, _: Path) -> None:
    file["train/more"] = file["/"]


def second_name(file: h5py.File, _: Path) -> None:
    file["train/more"] = file["train/classes"]


def deep(file: h5py.File, _: Path) -> None:
    group = file.id
    for _ in range(10_000):
        group = h5py.h5g.create(group, b"g")


def named_type(file: h5py.File, _: Path) -> None:
    file["train/more"] = np.dtype("f4")


def references(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", (6,), h5py.ref_dtype)


def compound(file: h5py.File, _: Path) -> None:
    file["train/more"] = np.zeros(6, [("a", "f4"), ("b", "i8")])


def words(file: h5py.File, _: Path) -> None:
    file["train/more"] = ["text"] * 6


def names_of_numbers(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", (6,), h5py.enum_dtype({"a": 1, "b": 2}))


def ragged(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", (6,), h5py.vlen_dtype(np.float32))


def long_attribute(file: h5py.File, _: Path) -> None:
    file.attrs["more"] = "a" * 10_000


def referring_attribute(file: h5py.File, _: Path) -> None:
    file.attrs["more"] = file["train"].ref


def nothing(file: h5py.File, _: Path) -> None:
    file["train/more"] = h5py.Empty("f4")


def unknown_filter(file: h5py.File, _: Path) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((6,))
    layout.set_filter(32_765, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file["train"].id, b"more", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((6,)), layout)


def unwritten(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", HUGE, "f8")


def unwritten_chunks(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", HUGE, "f8", chunks=(1, 1000))[0, 0] = 1


def bomb(file: h5py.File, _: Path) -> None:
    file["train"].create_dataset("more", HUGE, "f8", chunks=(10, 1000), compression="gzip")[0, 0] = 1


def twice_compressed(file: h5py.File, _: Path) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((10 ** 7,))
    layout.set_deflate(9)
    layout.set_deflate(9)
    space = h5py.h5s.create_simple((10 ** 7,))
    made = h5py.h5d.create(file["train"].id, b"more", h5py.h5t.STD_U8LE, space, layout)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(10 ** 7, np.uint8))


FOREIGN = (external_link, external_values, virtual, growing_virtual, soft_link, soft_circle, hard_circle, second_name,
           deep, named_type, nothing, unknown_filter, unwritten, unwritten_chunks, bomb,
           twice_compressed)  # refused in every file
OURS = (references, compound, words, names_of_numbers, ragged, long_attribute, referring_attribute)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """A whole volumes file."""
    path = tmp_path_factory.mktemp("whole") / "v.h5"
    write_volumes(path)
    return path


def changed(volumes: Path, folder: Path, change: Change) -> tuple[Path, Path]:
    """A volumes file with something in it that should not be, and a pipe that hangs whoever opens it."""
    path, secret = folder / "v.h5", folder / "secret"
    path.write_bytes(volumes.read_bytes())
    os.mkfifo(secret)
    with h5py.File(path, "r+") as file:
        change(file, secret)
    return path, secret


@pytest.mark.parametrize("change", [*FOREIGN, *OURS])
def test_what_leads_out_goes_in_circles_or_is_not_plain_is_refused_by_file_and_node(volumes, tmp_path, change):
    path, _ = changed(volumes, tmp_path, change)
    signal.alarm(20)  # a pipe that is opened would never come back
    for read in (VolumesFile, h5.read_format, lambda p: list(describe(p))):
        with pytest.raises(ValueError, match=r"v\.h5: (attribute 'more' of )?/") as refusal:
            read(path)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
    assert len(check(path).problems) == 1
    signal.alarm(0)


@pytest.mark.parametrize("change", FOREIGN)
def test_files_of_others_are_looked_through_too(volumes, tmp_path, change):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["train/classes"], file["val/classes"] = np.arange(6), np.arange(6)
    path, _ = changed(tmp_path / "foreign.h5", tmp_path, change)
    signal.alarm(20)
    for read in (is_latents, is_samples, lambda p: list(describe(p))):
        with pytest.raises(ValueError, match=r"v\.h5: /"):
            read(path)
    signal.alarm(0)


def test_files_of_others_may_hold_types_that_ours_do_not(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["words"], file.attrs["made_by"] = ["a", "b"], "another"
        file["pairs"] = np.zeros(2, [("a", "f4"), ("b", "i8")])
    assert not is_latents(tmp_path / "foreign.h5")
    lines = list(describe(tmp_path / "foreign.h5"))
    assert "  @made_by: another" in lines and "  words: 2 utf-8" in lines and len(lines) == 4


def test_whole_numbers_truth_and_compressed_zeros_pass(volumes, tmp_path):
    def add(file: h5py.File, _: Path) -> None:
        zeros = file["train"].create_dataset("zeros", (6, 1000, 1000), "u1", chunks=(1, 1000, 1000), compression="gzip",
                                             shuffle=True, fletcher32=True)
        zeros[...] = 0
        file["train/is_old"] = np.array([True, False] * 3)
        h5.seal(file)

    path, _ = changed(volumes, tmp_path, add)
    assert VolumesFile(path).table("train", "is_old").tolist() == [True, False] * 3 and not check(path).problems


KILLED = """
import os, sys, h5py, numpy as np
file = h5py.File(sys.argv[1], "w", libver="latest")
file.create_dataset("x", (1,), maxshape=(None,), chunks=(1,))
file.swmr_mode = True
print("writes", flush=True)
sys.stdin.readline()
os._exit(9)
"""


def test_a_file_that_is_written_or_was_left_open_says_so(tmp_path):
    path = tmp_path / "x.h5"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"})
    try:
        assert writer.stdout.readline() == b"writes\n"
        started = time.monotonic()
        for end in (False, True):
            if end:
                writer.communicate(b"\n")
            with pytest.raises(ValueError, match=r"x\.h5: another process writes it, or was killed.*h5clear -s"):
                h5.open_h5(path)
        assert time.monotonic() - started < 20 and "killed" in check(path).problems[0]
    finally:
        writer.kill()
