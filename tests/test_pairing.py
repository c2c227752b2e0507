"""Pairing by name: channel numbers, patterns, what has no partner, and what would fit."""

import numpy as np
import pytest

from edm3d.formats.pairing import find_cases
from edm3d.formats.patterns import proposal


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(pairing):
    return {case.id: ([p.name for p in case.images], case.label.name if case.label else None) for case in pairing.cases}


def test_pairs_are_made_by_name_with_channels(tmp_path):
    images = touch(tmp_path / "i", "b_0001.nii", "b_0000.nii", "a_0000.npy", "a_0001.nii.gz", "notes.txt", ".x.nii")
    labels = touch(tmp_path / "l", "a.nii.gz", "b.nii.gz")
    assert found(find_cases(images, labels)) == {
        "a": (["a_0000.npy", "a_0001.nii.gz"], "a.nii.gz"),
        "b": (["b_0000.nii", "b_0001.nii"], "b.nii.gz"),
    }


def test_numbered_patients_are_not_channels(tmp_path):
    names = ["p_0000.nii", "p_0001.nii"]
    images = touch(tmp_path / "i", *names)
    wanted = {"p_0000": (["p_0000.nii"], "p_0000.nii"), "p_0001": (["p_0001.nii"], "p_0001.nii")}
    assert found(find_cases(images, touch(tmp_path / "l", *names))) == wanted
    assert len(found(find_cases(images, None, table_ids=["p_0000", "p_0001"]))) == 2
    assert len(found(find_cases(images, None, channels=["t1"]))) == 2
    assert len(found(find_cases(images, None, channels=["t1", "t2"]))) == 1
    with pytest.raises(ValueError, match="channels of one case, or cases"):
        find_cases(images, None)
    assert len(found(find_cases(touch(tmp_path / "j", "p_0001.nii", "p_0002.nii"), None))) == 2


def test_everything_without_partner_is_named(tmp_path):
    images = touch(tmp_path / "i", "a.nii", "b.nii", "c.nii")
    labels = touch(tmp_path / "l", "b.nii", "d.nii", "e.nii")
    with pytest.raises(ValueError, match=r"2 image.*: a\.nii, c\.nii; 2 label.*: d\.nii, e\.nii"):
        find_cases(images, labels)


def test_what_is_paired_by_patterns_says_nothing_of_labels_that_were_not_given(tmp_path):
    images = touch(tmp_path / "i", "a_t1.nii", "b_t1.nii", "a_seg.nii")
    with pytest.raises(ValueError, match=r"^1 image\(s\) without a label map: b_t1\.nii\. They are paired by what "
                                         r"their patterns call {id}$"):
        find_cases(images, None, image_pattern="{id}_t1", label_pattern="{id}_seg")


def test_missing_channel_double_name_and_empty_folder_are_named(tmp_path):
    labels = touch(tmp_path / "l", "a.nii", "b.nii")
    images = touch(tmp_path / "i", "a_0000.nii", "a_0001.nii", "b_0001.nii")
    with pytest.raises(ValueError, match="of every id, but b lacks 0000"):
        find_cases(images, labels)
    with pytest.raises(ValueError, match=r"a\.nii, a\.nii\.gz"):
        find_cases(touch(tmp_path / "j", "a.nii", "a.nii.gz"), None)
    with pytest.raises(ValueError, match="holds no"):
        find_cases(touch(tmp_path / "k", "a.txt"), None)
    with pytest.raises(ValueError, match="no such folder"):
        find_cases(tmp_path / "absent", None)


def test_labels_inside_npz_are_found(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", image=np.zeros(3), label=np.zeros(3))
    assert found(find_cases(tmp_path, None))["b"] == (["b.npz"], "b.npz")
    np.savez(tmp_path / "c.npz", image=np.zeros(3))
    with pytest.raises(ValueError, match=r"without a label map: c\.npz\. Every npz holds one, or none does$"):
        find_cases(tmp_path, None)


# ---- patterns ----


MIXED = [f"pat{n:03d}_{word}.nii.gz" for n in range(3) for word in ("t1", "flair", "seg")]


def test_patterns_name_the_ids_and_the_folder_may_hold_label_maps_too(tmp_path):
    folder = touch(tmp_path / "i", *MIXED)
    pairing = find_cases(folder, None, image_pattern="{id}_t1", label_pattern="{id}_seg")
    assert found(pairing) == {f"pat{n:03d}": ([f"pat{n:03d}_t1.nii.gz"], f"pat{n:03d}_seg.nii.gz") for n in range(3)}
    assert pairing.channels == () and pairing.notes == [
        f"3 of 9 files in {folder} fit neither --image-pattern '{{id}}_t1' nor --label-pattern '{{id}}_seg' and are "
        "left out: pat000_flair.nii.gz, pat001_flair.nii.gz, pat002_flair.nii.gz"]
    assert find_cases(folder, folder, image_pattern="{id}_t1", label_pattern="{id}_seg") == pairing
    labels = touch(tmp_path / "l", *(f"seg-pat{n:03d}.npy" for n in range(3)))
    assert found(find_cases(folder, labels, image_pattern="{id}_flair", label_pattern="seg-{id}"))["pat001"] == (
        ["pat001_flair.nii.gz"], "seg-pat001.npy")


def test_images_of_one_id_become_channels_in_one_order(tmp_path):
    folder = touch(tmp_path / "i", *MIXED)
    pairing = find_cases(folder, None, image_pattern="{id}_{channel}", label_pattern="{id}_seg")
    assert pairing.channels == ("flair", "t1") and pairing.notes == []
    assert found(pairing)["pat002"] == (["pat002_flair.nii.gz", "pat002_t1.nii.gz"], "pat002_seg.nii.gz")
    pairing = find_cases(folder, None, image_pattern="{id}_{channel}", channels=["t1", "flair"])
    assert pairing.channels == ("t1", "flair") and "3 of 9 files" in pairing.notes[0]
    assert found(pairing)["pat000"] == (["pat000_t1.nii.gz", "pat000_flair.nii.gz"], None)
    odd = touch(tmp_path / "j", "a_b_t1_ce.npy", "a_b_t1.npy")
    pairing = find_cases(odd, None, image_pattern="{id}_{channel}", channels=["t1_ce", "t1"])
    assert found(pairing) == {"a_b": (["a_b_t1_ce.npy", "a_b_t1.npy"], None)}
    assert found(find_cases(touch(tmp_path / "l", "a_b_t1.npy"), None, image_pattern="{id}_{channel}")) == {
        "a_b": (["a_b_t1.npy"], None)}
    front = touch(tmp_path / "k", "t1-a-1.npy", "t2-a-1.npy")
    assert found(find_cases(front, None, image_pattern="{channel}-{id}")) == {
        "a-1": (["t1-a-1.npy", "t2-a-1.npy"], None)}


def test_channels_that_an_id_lacks_are_named(tmp_path):
    folder = touch(tmp_path / "i", "a_t1.npy", "a_t2.npy", "b_t2.npy", "c_t1.npy")
    with pytest.raises(ValueError, match="channels t1, t2 are wanted of every id, but b lacks t1; c lacks t2"):
        find_cases(folder, None, image_pattern="{id}_{channel}")
    with pytest.raises(ValueError, match="channels t1, t2, t3 are wanted of every id, but a lacks t3; b lacks t1, t3"):
        find_cases(folder, None, image_pattern="{id}_{channel}", channels=["t1", "t2", "t3"])


@pytest.mark.parametrize(("image", "label", "message"), [
    ("t1", None, r"--image-pattern t1: \{id\} stands in it 0 times, wanted once, as in"),
    ("{id}_{id}", None, "stands in it 2 times"),
    ("{id}_{channel}_{channel}", None, "channel} stands in it more than once"),
    ("{id}_{name}", None, "'{name}' means nothing in it; wanted {id} and {channel}"),
    ("{id_t1", None, "'{id_t1' means nothing"),
    ("{id}_t1", "{id}_{channel}", "--label-pattern {id}_{channel}: '{channel}' means nothing in it; wanted {id}"),
    ("{id}_t1.nii.gz", None, "names go without their suffix; wanted '{id}_t1'"),
    ("{id}_T1", None, "no name fits --image-pattern '{id}_T1'; there are pat000_flair, pat000_seg, pat000_t1, .* more"),
    ("{id}_t1", "{id}_xy", "no name fits --label-pattern '{id}_xy'"),
    ("{id}_t1", "{id}0_t1", "without a label map"),
    ("pat{id}", "{id}seg", "pat000_seg.nii.gz: fits --image-pattern 'pat{id}' and --label-pattern '{id}seg' alike"),
])
def test_patterns_that_say_nothing_are_refused(tmp_path, image, label, message):
    folder = touch(tmp_path / "i", *MIXED, "x_flair.npy", "y_flair.npy")
    with pytest.raises(ValueError, match=message):
        find_cases(folder, None, image_pattern=image, label_pattern=label)


def test_an_error_proposes_the_patterns_that_would_fit(tmp_path):
    images = touch(tmp_path / "i", *(f"pat{n:03d}_t1.nii" for n in range(80)))
    labels = touch(tmp_path / "l", *(f"pat{n:03d}_seg.nii" for n in range(80)))
    names = ", ".join(f"pat{n:03d}_{{}}.nii" for n in range(10))
    with pytest.raises(ValueError) as caught:
        find_cases(images, labels)
    assert str(caught.value) == (
        f"80 image(s) without a label map: {names.replace('{}', 't1')}, ... and 70 more; 80 label map(s) without an "
        f"image: {names.replace('{}', 'seg')}, ... and 70 more. They are paired by name, --images with --labels; "
        "images end in _t1, label maps end in _seg: give --image-pattern '{id}_t1' --label-pattern '{id}_seg'")


@pytest.mark.parametrize(("images", "labels", "wanted"), [
    (["pat_1_t1"], ["pat_1_seg"], "--image-pattern '{id}_t1' --label-pattern '{id}_seg'"),
    (["a", "b"], ["a-mask", "b-mask"], "label maps end in -mask: give --label-pattern '{id}-mask'"),
    (["t1_a", "t1_b"], ["a", "b"], "images begin with t1_: give --image-pattern 't1_{id}'"),
    (["a_t1", "a_t2", "b_t1", "b_t2"], ["a_gt", "b_gt"],
     "images end in _t1, _t2, label maps end in _gt: give --image-pattern '{id}_{channel}' --label-pattern '{id}_gt'"),
    (["a", "b", "c"], ["b", "d"], ""),
    (["x", "y"], ["p_seg", "q_seg"], ""),
])
def test_what_is_proposed(images, labels, wanted):
    said = proposal(images, labels, len(set(images) ^ set(labels)))
    assert said.endswith(wanted) and bool(said) == bool(wanted)


def test_a_mixed_folder_is_seen(tmp_path):
    folder = touch(tmp_path / "i", *MIXED)
    with pytest.raises(ValueError, match="are one folder, .* '{id}_{channel}' --label-pattern '{id}_seg'"):
        find_cases(folder, folder)
    assert find_cases(folder, None).notes[0].startswith(
        f"Note: every file in {folder} is taken for an image of its own, though some look like label maps; images end")
    plain = touch(tmp_path / "j", "a_t1.npy", "a_t2w.npy", "b_t1.npy", "b_t2w.npy")
    assert find_cases(plain, None).notes == [
        f"Note: names in {plain} end in _t1, _t2w, and every file is taken for a volume of its own; to make channels "
        "of them give --image-pattern '{id}_{channel}'"]
    assert find_cases(touch(tmp_path / "k", "a_1.npy", "a_2.npy", "b_1.npy", "b_2.npy"), None).notes == []
