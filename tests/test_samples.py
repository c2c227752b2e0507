"""Samples files as npz: what is written comes back, and no damage goes unnamed."""

from pathlib import Path

import numpy as np
import pytest

from formats.facts import Facts
from formats.samples import SampleMeta, SamplesFile, write_samples

META = SampleMeta(Facts("", "", ("echo",)), "net.pt", "ab12", {"num_steps": 18})
IMAGES = np.arange(2 * 1 * 3 * 3, dtype=np.float32).reshape(2, 1, 3, 3)


@pytest.fixture
def samples(tmp_path) -> Path:
    """Two images of seeds 3 and 8."""
    write_samples(tmp_path / "samples.npz", [3, 8], {"images": IMAGES}, np.eye(4), META)
    return tmp_path / "samples.npz"


def test_what_is_written_comes_back(samples):
    file = SamplesFile(samples)
    assert file.meta == META and file.rows == {3: 0, 8: 1} and file.labels(0) is None
    np.testing.assert_array_equal(file.array("images"), IMAGES)


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
