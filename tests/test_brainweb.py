"""Slices of the BrainWeb phantoms: their order, scale and split, and the road in voxel space in 2D."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edm3d.training.datasets.brainweb import BrainwebSlices, split_slices

ROWS = 13


@pytest.fixture
def archive(tmp_path) -> Path:
    """13 slices, slice k with maximum 100 + k at pixel k, in string order of the slice number, as the real file."""
    volume = np.zeros((ROWS, 4096), np.uint8)
    for k in range(ROWS):
        volume[k, k] = 100 + k
    path = tmp_path / "phantoms.npz"
    np.savez(path, phantoms=volume[[0, 1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9]])
    return path


def test_slices_run_from_neck_to_vertex_each_by_its_own_maximum(archive):
    slices = BrainwebSlices(str(archive), split="all")
    assert slices.shape == (1, 64, 64) and len(slices) == ROWS
    for k in range(ROWS):
        image = slices[k].image
        assert image.min() == -1 and image[0, 0, k] == 1 and (image == 1).sum() == 1


def test_train_and_val_keep_their_distance():
    train_index, val_index = split_slices(281, "train", 35, 4), split_slices(281, "val", 35, 4)
    assert len(val_index) == 70
    assert np.abs(train_index[:, None] - val_index[None]).min() == 5  # four slices between them belong to neither


@pytest.mark.parametrize(("content", "match"), [
    ({"other": np.zeros((2, 4096))}, "no array 'phantoms'"), ({"phantoms": np.zeros((2, 100))}, r"\(2, 100\)")])
def test_other_archives_are_refused(tmp_path, content, match):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(ValueError, match=match):
        BrainwebSlices(str(tmp_path / "x.npz"))


def test_missing_file_names_the_key_to_change(tmp_path):
    with pytest.raises(ValueError, match="training.dataset.path"):
        BrainwebSlices(str(tmp_path / "none.npz"))


def test_damaged_file_is_named(archive, tmp_path):
    whole = archive.read_bytes()
    for content in (b"not an archive", whole[:40], whole[: len(whole) // 2]):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: not an npz file, or damaged"):
            BrainwebSlices(str(tmp_path / "x.npz"))


def test_other_content_has_another_hash(archive):
    first = BrainwebSlices(str(archive), split="all").facts.content_hash
    assert first == hashlib.sha256(archive.read_bytes()).hexdigest()
    np.savez(archive, phantoms=np.ones((ROWS, 4096), np.uint8))
    assert BrainwebSlices(str(archive), split="all").facts.content_hash != first
    with pytest.raises(ValueError, match="split 'train' has no slice"):
        BrainwebSlices(str(archive))


def test_real_neighbours_overlap(shared):
    """In anatomical order neighbouring masks have Dice 0.90; in the file's order 0.85."""
    masks = [s.image > -1 for s in map(BrainwebSlices(str(shared / "data/brainweb_phantoms.npz"), split="all").
                                       __getitem__, range(281))]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairwise(masks)]
    assert np.mean(dice) == pytest.approx(0.90, abs=0.01)
