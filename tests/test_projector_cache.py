"""Matrices on disk: read where they are whole, made anew else, by one of the processes that start together."""

import subprocess
import sys

import numpy as np
import pytest

from edm3d.formats.projector_cache import cached_matrix
from edm3d.physics.projector import ParallelBeam, system_matrix
from edm3d.utils.files import arrays_hash

GEOMETRY = ParallelBeam(8)


class Counting:
    """Makes the matrix and counts how often."""

    def __init__(self, geometry=GEOMETRY):
        self.geometry, self.calls = geometry, 0

    def __call__(self):
        self.calls += 1
        return system_matrix(self.geometry)


def cached(folder, geometry=GEOMETRY):
    """The matrix, how often it was made, and the note."""
    compute = Counting(geometry)
    found = cached_matrix(geometry, compute, folder)
    assert abs(found.matrix - system_matrix(geometry)).max() == 0
    return compute.calls, found.note


def the_file(folder):
    """The only file of the folder: locks and what is half written are gone."""
    (path,) = folder.iterdir()
    return path


def test_second_start_reads_and_another_geometry_has_a_file_of_its_own(tmp_path):
    assert cached(tmp_path / "new" / "folder") == (1, None)
    assert cached(tmp_path / "new" / "folder") == (0, None)
    assert cached(tmp_path / "new" / "folder", ParallelBeam(8, angles=5)) == (1, None)
    assert cached(tmp_path / "new" / "folder", ParallelBeam(8, pixel_mm=7.0)) == (0, None)  # lengths are in pixels
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2


def rewrite(path, **changes):
    """The file with other arrays, under a checksum that agrees with them."""
    arrays = dict(np.load(path))
    arrays.update(changes)
    core = {name: arrays[name] for name in ("data", "indices", "indptr", "shape")}
    np.savez(path, **{**arrays, "content_hash": np.array(arrays_hash(core))})


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_byte(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.load(path)["data"].tobytes()) + 8 * 50 + 5] ^= 1
    path.write_bytes(content)


def stale_checksum(path):
    arrays = dict(np.load(path))
    arrays["data"] = arrays["data"] * 2
    np.savez(path, **arrays)


def text(path):
    path.write_text("none")


def without_data(path):
    arrays = dict(np.load(path))
    del arrays["data"]
    np.savez(path, **arrays)


def of_another(path):
    np.savez(path, **{**np.load(path), "key": np.array(ParallelBeam(9).key())})


def index_beyond(path):
    rewrite(path, indices=np.load(path)["indices"] + 60)


def rows_beyond(path):
    rewrite(path, indptr=np.load(path)["indptr"] * 2)


def rows_backwards(path):
    indptr = np.load(path)["indptr"]
    indptr[3] = indptr[-2]
    rewrite(path, indptr=indptr)


def not_finite(path):
    rewrite(path, data=np.load(path)["data"] * np.nan)


def other_shape(path):
    rewrite(path, shape=np.array([128, 65]))


@pytest.mark.parametrize("harm", [half, one_byte, stale_checksum, text, without_data, of_another, index_beyond,
                                  rows_beyond, rows_backwards, not_finite, other_shape])
def test_damaged_file_is_made_anew(tmp_path, harm):
    cached(tmp_path)
    harm(the_file(tmp_path))
    assert cached(tmp_path) == (1, None)
    assert cached(tmp_path) == (0, None)
    the_file(tmp_path)


def test_what_a_killed_process_left_goes(tmp_path):
    cached(tmp_path)
    path = the_file(tmp_path)
    path.rename(tmp_path / f".tmp-999999999-{'0' * 16}-{path.name}")
    (tmp_path / f".lock-{path.name}").write_text("process 999999999")
    assert cached(tmp_path) == (1, None)
    the_file(tmp_path)


def test_folder_that_cannot_be_computes_and_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    calls, note = cached(tmp_path / "file" / "folder")
    assert calls == 1
    assert "not kept" in note
    assert len(note.splitlines()) == 1


def test_full_disk_computes_once_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    calls, note = cached(tmp_path)
    assert calls == 1
    assert "free" in note


WORKER = """
import sys, time
from edm3d.formats.projector_cache import cached_matrix
from edm3d.physics.projector import ParallelBeam, system_matrix
def compute():
    print("made", flush=True)
    time.sleep(0.5)
    return system_matrix(ParallelBeam(8))
print("ready", flush=True)
sys.stdin.readline()
assert cached_matrix(ParallelBeam(8), compute, sys.argv[1]).matrix.shape == (128, 64)
"""


def test_of_processes_that_start_together_one_computes(tmp_path, root):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], cwd=root, text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert "".join(said).count("made") == 1
    the_file(tmp_path)
