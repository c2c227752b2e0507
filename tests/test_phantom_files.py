"""Activity phantoms and pairs of doses out of files: order, subjects, splits, stacks, and what is refused."""

import numpy as np
import pytest

from edm3d.formats.phantom_files import is_phantoms, read_phantoms
from edm3d.inference.pet_phantoms import PetPhantomOptions, draw_pet_phantoms
from edm3d.training.datasets.paired import PairedDataset
from edm3d.training.datasets.phantoms import PhantomDataset

SIZE = 8


def slices(count: int) -> np.ndarray:
    """Slice k has the activity k + 1 at pixel k, else 0."""
    found = np.zeros((count, SIZE, SIZE), np.float32)
    found.reshape(count, -1)[np.arange(count), np.arange(count)] = np.arange(count) + 1
    return found


def saved(tmp_path, name="p.npz", **arrays):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def test_rows_of_pixels_are_images(tmp_path):
    for rows in (slices(5), slices(5).reshape(5, -1)):
        found = read_phantoms(saved(tmp_path, phantoms=rows))
        np.testing.assert_array_equal(found.slices, slices(5))
        assert found.ids == [f"id0slice{k}" for k in range(5)] and found.unit == "activity"


def test_string_order_is_undone_in_each_subject(tmp_path):
    string = sorted(range(12), key=str)  # 0, 1, 10, 11, 2, ...
    both = np.concatenate([slices(12)[string], slices(12)[string] * 2])
    found = read_phantoms(saved(tmp_path, phantoms=both), order="string", subjects=2)
    np.testing.assert_array_equal(found.slices, np.concatenate([slices(12), slices(12) * 2]))
    assert found.ids[12:14] == ["id1slice0", "id1slice1"]
    np.testing.assert_allclose(found.heights()[[0, 11, 12, 23]], [0, 1, 0, 1])


def test_a_folder_is_sorted_by_the_numbers_in_its_names(tmp_path):
    for subject, k in ((1, 0), (0, 10), (0, 2)):
        saved(tmp_path, f"low_res_ph_id{subject}slice{k}.npz", arr_0=np.full((SIZE, SIZE), 100 * subject + k + 1.0))
    found = read_phantoms(tmp_path)
    assert found.slices[:, 0, 0].tolist() == [3, 11, 101] and found.subjects.tolist() == [0, 0, 1]
    assert found.ids == ["id0slice2", "id0slice10", "id1slice0"] and is_phantoms(tmp_path)


@pytest.mark.parametrize(("arrays", "more", "match"), [
    ({"other": slices(2)}, {}, "no array 'phantoms'"),
    ({"phantoms": np.zeros((2, 10))}, {}, r"\[2, 10\], wanted \[slices,S\*S\]"),
    ({"phantoms": -slices(2)}, {}, "slice 0 has activities that are negative"),
    ({"phantoms": slices(2) * np.array([1, np.nan])[:, None, None]}, {}, "slice 1 has activities that are not finite"),
    ({"phantoms": slices(5)}, {"subjects": 2}, "subjects=2: .* 5 rows"),
    ({"phantoms": slices(2), "subjects": np.array([1, 0])}, {}, "do not rise"),
    ({"phantoms": slices(2)}, {"order": "strange"}, "order='strange'"),
])
def test_what_is_no_phantom_is_refused_by_name(tmp_path, arrays, more, match):
    with pytest.raises(ValueError, match=match):
        read_phantoms(saved(tmp_path, **arrays), **more)


def test_other_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_phantoms(tmp_path / "none.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .npz called as id0slice12.npz"):
        read_phantoms(tmp_path / "empty")
    saved(tmp_path / "empty", "id0slice3.npz", arr_0=slices(1)[0])
    saved(tmp_path / "empty", "ID_id0slice03.npz", arr_0=slices(1)[0])
    with pytest.raises(ValueError, match="are the same slice"):
        read_phantoms(tmp_path / "empty")
    assert not is_phantoms(saved(tmp_path, "x.npz", images=slices(2)))


def test_one_subject_is_split_by_blocks_and_several_by_subject(tmp_path):
    one = saved(tmp_path, phantoms=np.ones((60, SIZE, SIZE)))
    train, val = (PhantomDataset(str(one), split, held_out=5, gap=2) for split in ("train", "val"))
    names = [{int(name[8:]) for name in each.ids} for each in (train, val)]
    assert val.ids[0] == "id0slice18" and min(abs(a - b) for a in names[0] for b in names[1]) == 3
    several = saved(tmp_path, "s.npz", phantoms=np.ones((6, SIZE, SIZE)), subjects=np.array([3, 3, 4, 4, 7, 7]))
    train, val = (PhantomDataset(str(several), split) for split in ("train", "val"))
    assert len(train) == 4 and len(val) == 2 and {name[:3] for name in val.ids} == {"id7"[:3]}
    with pytest.raises(ValueError, match="held_out_subjects=3: there are 3"):
        PhantomDataset(str(several), held_out_subjects=3)


def test_stacks_are_neighbours_of_one_subject_and_know_their_height(tmp_path):
    rows = np.arange(1, 11, dtype=np.float32)[:, None, None] * np.ones((1, SIZE, SIZE), np.float32)
    path = saved(tmp_path, phantoms=rows, subjects=np.repeat([0, 1], 5))
    stacks = PhantomDataset(str(path), "all", stack=2, heights=2)
    assert stacks.shape == (1, 2, SIZE, SIZE)
    found = [(stacks[i].image[0, :, 0, 0] + 1) * 5 for i in range(len(stacks))]
    np.testing.assert_allclose(found, [[1, 2], [3, 4], [6, 7], [8, 9]], rtol=1e-5)  # none of two subjects
    np.testing.assert_allclose([stacks[i].condition.attributes[0] for i in range(4)], [.125, .625, .125, .625])
    assert [stacks[i].condition.class_labels.argmax() for i in range(4)] == [0, 1, 0, 1]


def test_empty_slices_are_left_out(tmp_path):
    rows = np.ones((4, SIZE, SIZE))
    rows[1] = 0
    found = PhantomDataset(str(saved(tmp_path, phantoms=rows)), "all")
    assert found.ids == ["id0slice0", "id0slice2", "id0slice3"]
    with pytest.raises(ValueError, match="has no slice with anything in it"):
        PhantomDataset(str(saved(tmp_path, "z.npz", phantoms=0 * rows)), "all")


def test_pairs_of_an_archive_are_split_in_their_height(tmp_path):
    data = np.zeros((4, 1, 2 * SIZE, SIZE))
    data[:, :, :SIZE], data[:, :, SIZE:] = 0.5, -0.5
    path = saved(tmp_path, data=data)
    pairs, joint = PairedDataset(str(path)), PairedDataset(str(path), joint=True)
    assert len(pairs) == 3 and pairs.shape == (1, SIZE, SIZE) and joint.shape == (2, SIZE, SIZE)
    assert (pairs[0].image == 0.5).all() and (pairs[0].condition.images == -0.5).all()
    assert (joint[0].image[0] == 0.5).all() and (joint[0].image[1] == -0.5).all()
    assert pairs.facts.condition_channels == ("low dose",) and joint.facts.channels == ("high dose", "low dose")
    assert len(PairedDataset(str(path), "val", held_out_share=0.5)) == 2
    with pytest.raises(ValueError, match="held_out_share=2: wanted a share"):
        PairedDataset(str(path), held_out_share=2)
    for bad, match in ((data[:, :, 1:], r"wanted numbers \[N,1,2H,W\]"), (data * 3, r"leave \[-1,1\]")):
        with pytest.raises(ValueError, match=match):
            PairedDataset(str(saved(tmp_path, "bad.npz", data=bad)))


def test_pairs_of_two_folders_are_scaled_together(tmp_path):
    for name, value in (("recon-noisy", 4.0), ("recon-noisy-restricted", 2.0)):
        (tmp_path / name).mkdir()
        for k in range(3):
            saved(tmp_path / name, f"id0slice{k}.npz", arr_0=np.full((SIZE, SIZE), value))
    found = PairedDataset(str(tmp_path), "all")
    assert len(found) == 3 and (found[0].image == 1).all() and (found[0].condition.images == 0).all()
    assert found.facts.intensity.hi == 4
    (tmp_path / "recon-noisy" / "id0slice2.npz").unlink()
    with pytest.raises(ValueError, match="id0slice2 lies in one of"):
        PairedDataset(str(tmp_path))


def test_phantoms_are_drawn_once_and_other_files_stay(tmp_path):
    options, path = PetPhantomOptions(2, 3, 16, 0, "brain"), tmp_path / "p.npz"
    assert draw_pet_phantoms(path, options) and not draw_pet_phantoms(path, options)
    found = read_phantoms(path)
    assert found.slices.shape == (6, 16, 16) and found.subjects.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="already"):
        draw_pet_phantoms(path, options._replace(seed=1))
    assert draw_pet_phantoms(path, options._replace(seed=1), overwrite=True)
    saved(tmp_path, "other.npz", images=slices(2))
    with pytest.raises(ValueError, match="no array 'phantoms'"):
        draw_pet_phantoms(tmp_path / "other.npz", options, overwrite=True)
