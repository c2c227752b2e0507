"""Pairing by name: channel numbers, patterns, what has no partner, and what would fit; patients by names."""

import os
import random

import numpy as np
import pytest

from edm3d.formats.folders import walk
from edm3d.formats.nifti import read_volume, suffix_of, write_nifti
from edm3d.formats.pairing import find_cases
from edm3d.formats.patients import groups_by_name
from edm3d.formats.patterns import is_of_label_maps, proposal
from edm3d.inference.check import check

COMPOSED, DECOMPOSED = "\u00e9", "e\u0301"  # one letter
NOT_UTF8 = os.fsdecode(b"bad\xff")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
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
    with pytest.raises(ValueError, match=r"label map: c\.npz\. Every npz holds one, or none does; there is one in "):
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
    ("{id}_{name}", None, "'{name}' means nothing in it; wanted {id}, {class}, {rest}, {channel}"),
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


# ---- what lies below, and what is passed over ----


def test_subfolders_are_read_by_the_names_of_their_files(tmp_path):
    images = touch(tmp_path / "i", *(f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (2, 1)), ".git/x.nii", "c.nii")
    labels = touch(tmp_path / "l", *(f"sub-0{n}_T1w.nii.gz" for n in (1, 2)), "c.nii")
    assert [case.id for case in find_cases(images, labels).cases] == ["c", "sub-01_T1w", "sub-02_T1w"]


def test_names_that_recur_begin_with_their_folders(tmp_path):
    images = touch(tmp_path / "i", *(f"p{n}/{word}.nii" for n in (1, 2) for word in ("t1", "flair", "seg")))
    pairing = find_cases(images, None, image_pattern="{id}_{channel}", label_pattern="{id}_seg")
    assert found(pairing) == {f"p{n}": (["flair.nii", "t1.nii"], "seg.nii") for n in (1, 2)}
    assert all(path.parent.name == case.id for case in pairing.cases for path in (*case.images, case.label))
    flat = touch(tmp_path / "l", "p1_t1.nii", "p1_flair.nii", "p1_seg.nii")
    with pytest.raises(ValueError, match=r"3 image\(s\) without a label map: p2_flair, p2_seg, p2_t1\. They"):
        find_cases(images, flat)
    with pytest.raises(ValueError, match=r"of the same name: a/b_c\.nii, a_b/c\.nii; keep one"):
        find_cases(touch(tmp_path / "j", "a/b_c.nii", "a_b/c.nii", "a/x.nii", "b/x.nii"), None)


@pytest.mark.parametrize(("folder", "is_one"), [
    *((name, True) for name in ("labelsTr", "Masks", "seg", "ground_truth", "truth", "annotations", "ROI", "contours")),
    *((name, False) for name in ("images", "heroic", "annotated", "roister", "segovia", "t1"))])
def test_folders_of_label_maps_are_known_by_name(folder, is_one):
    assert is_of_label_maps(folder) == is_one


def test_label_maps_below_the_images_are_none_of_them(tmp_path):
    images = touch(tmp_path / "i", "a.nii", "b.nii", "labels/a.nii", "labels/b.nii")
    assert len(find_cases(images, images / "labels").cases) == 2
    assert len(find_cases(touch(tmp_path / "j", "images/a.nii", "a.nii") / "images", tmp_path / "j").cases) == 1
    with pytest.raises(ValueError, match="its folders labels hold label maps; .*--labels"):
        find_cases(images, None)
    assert len(find_cases(touch(tmp_path / "k", "segovia/a.nii", "maskat/b.nii"), None).cases) == 2


def test_links_go_in_no_circles_and_nothing_is_read_twice(tmp_path):
    folder = touch(tmp_path / "i", "a/x.nii", "b/y.nii")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "0").symlink_to(folder / "a")
    (folder / "self.nii").symlink_to(folder / "self.nii")
    (folder / "elsewhere").symlink_to(touch(tmp_path / "far", "z.nii"))
    assert [str(path.relative_to(folder)) for path in walk(folder).files] == [
        "a/x.nii", "b/y.nii", "elsewhere/z.nii", "self.nii"]


def test_what_is_passed_over_is_said(tmp_path):
    folder = touch(tmp_path / "i", "a.nii", "B.NII.GZ", "c.mgz", "d.img", "d.hdr", "._a.nii.gz", "e.Nii", "n.json",
                   "README", ".DS_Store", ".hidden/x.nii", "IM0001")
    os.mkfifo(folder / "pipe.nii")
    pairing = find_cases(folder, None)
    assert [case.id for case in pairing.cases] == ["B", "a"]
    assert pairing.notes == [
        f"{folder}: passed over: 7 file(s) that are not read (._a.nii.gz, IM0001, c.mgz, d.hdr, d.img, e.Nii, pipe.nii)"
        "; convert to .nii.gz what holds volumes, and rename what is hidden, no plain file, or in mixed case, as "
        ".Nii.gz; 3 file(s) that hold no volumes (.DS_Store, .json, README); folders that are hidden, or there twice "
        "by links (.hidden)"]
    assert check(folder).lines == [pairing.notes[0].replace("3 file(s) that hold no volumes (.DS_Store, .json, README)",
                                                            "2 file(s) that hold no volumes (.DS_Store, README)"),
                                   "3 files, 3 bad"]  # it reads JSON, too
    with pytest.raises(ValueError, match=r"holds no \.nii.*; .*k: passed over: 1 file\(s\) .* \(c\.mha\); convert"):
        find_cases(touch(tmp_path / "k", "c.mha"), None)
    assert find_cases(touch(tmp_path / "j", "a.nii"), None).notes == []


def test_a_folder_called_like_a_volume_is_entered_and_named(tmp_path):
    folder = touch(tmp_path / "i", "a.nii", "b.nii.gz/b.nii", "c.nii.gz/readme.txt")
    pairing = find_cases(folder, None)
    assert [case.id for case in pairing.cases] == ["a", "b"]
    assert "name of a volume, of which what lies in them is read (b.nii.gz, c.nii.gz)" in pairing.notes[0]


@pytest.mark.parametrize("suffix", [".NII", ".NII.GZ", ".nii.GZ", ".NPY"])
def test_suffixes_in_capitals_are_read(tmp_path, suffix):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / f"a{suffix.lower()}"
    np.save(path, image) if suffix == ".NPY" else write_nifti(path, image, np.eye(4))
    path = path.rename(tmp_path / f"A{suffix}")
    assert suffix_of(path) == suffix.lower() and suffix_of(tmp_path / "a.Nii.gz") is None
    np.testing.assert_array_equal(read_volume(path).data[0], image)
    assert found(find_cases(tmp_path, None)) == {"A": ([f"A{suffix}"], None)}


# ---- letters ----


def test_names_are_compared_in_one_unicode_form(tmp_path):
    images, labels = touch(tmp_path / "i", f"{DECOMPOSED}_t1.nii"), touch(tmp_path / "l", f"{COMPOSED}.nii")
    pairing = find_cases(images, labels, image_pattern="{id}_t1")
    assert [case.id for case in pairing.cases] == [COMPOSED]
    assert len(find_cases(images, None, image_pattern=f"{COMPOSED}_{{id}}").cases) == 1
    with pytest.raises(ValueError, match=f"same name, in two Unicode forms: {DECOMPOSED}_t1.nii, {COMPOSED}_t1.nii"):
        find_cases(touch(images, f"{COMPOSED}_t1.nii"), None)


def test_names_that_differ_in_capitals_or_are_no_text_are_named(tmp_path):
    images, labels = touch(tmp_path / "i", "P1.nii", "b.nii"), touch(tmp_path / "l", "p1.nii", "b.nii")
    with pytest.raises(ValueError, match="capital and small letters differ: P1 and p1$"):
        find_cases(images, labels)
    with pytest.raises(ValueError, match=r"i: names that are not UTF-8: bad\\udcff\.nii; rename them"):
        find_cases(touch(images, f"{NOT_UTF8}.nii"), None)
    odd = touch(tmp_path / "j", "a\nb\x1b[31m.nii", "x" * 240 + ".nii")
    assert [case.id for case in find_cases(odd, None).cases] == ["a\nb\x1b[31m", "x" * 240]
    with pytest.raises(ValueError, match=r"without a label map: a\\nb\\x1b\[31m\.nii, x+\.nii; 1 label"):
        find_cases(odd, touch(tmp_path / "k", "c.nii"))


# ---- patients ----


@pytest.mark.parametrize("ends", [
    ["flair", "t1", "t1ce"], ["ED", "ES"], ["frame01", "frame12"], ["visit_1", "visit_2"], ["left", "right"],
    ["baseline", "month12"], ["foo", "bar"], ["foo1", "foo2"]])
@pytest.mark.parametrize("between", ["_", "-", "."])
def test_what_is_seen_of_a_patient_is_no_patient(ends, between):
    ids = [f"p{n}{between}{end}" for n in range(5) for end in ends]
    groups = groups_by_name(ids)
    assert groups.of == {id_: id_.split(between)[0] for id_ in ids}
    assert f"{len(ids)} of {len(ids)} volumes are several of one patient, 5 in all" in groups.notes[0]


@pytest.mark.parametrize(("ids", "wanted"), [
    (["sub-1_ses-a_T1w", "sub-1_ses-b_T1w", "sub-2_T1w"], ["sub-1", "sub-1", "sub-2_T1w"]),
    (["patient001_x", "patient001_y", "patient002_x"], ["patient001", "patient001", "patient002_x"]),
    (["t1_a", "flair_a", "t1_b", "flair_b"], ["a", "a", "b", "b"]),
    (["a_t1_bet", "a_flair_bet", "b_t1_bet"], ["a", "a", "b_t1_bet"]),
    (["x_a", "x_b", "x_c", "y_a", "y_b", "y_c"], ["a", "b", "c"] * 2),
    (["a", "a_x", "b", "b_x"], ["a", "a", "b", "b"]),
    (["x_p1", "x_p2", "y_p1", "y_p2"], ["p1", "p2", "p1", "p2"]),
    (["A_t1", "a_t2"], ["a", "a"]),
    (["t1", "flair"], ["flair", "flair"]),
])
def test_patients_by_their_names(ids, wanted):
    assert [groups_by_name(ids).of[id_] for id_ in ids] == wanted


@pytest.mark.parametrize(("ids", "is_said"), [
    ([f"scan_{n:03d}" for n in range(20)], False), ([f"BraTS20_{n:03d}_t1" for n in range(9)], False),
    (["ann_lee", "bob_lee", "ann_ray"], False), (["a", "b"], False), ([], False),
    (["a_x", "a_y", "b_x", "b_y", "c_k", "d_l", "e_m"], False),
    ([f"{letter}_{n}" for letter in "abc" for n in (1, 2)], True), ([f"frame{n:02d}" for n in range(9)], True),
    ([f"x_frame{n:02d}" for n in range(9)], True)])
def test_volumes_that_nothing_says_are_of_one_patient_stay_apart(ids, is_said):
    groups = groups_by_name(ids)
    assert groups.of == {id_: id_ for id_ in ids}
    assert ["told apart by numbers" in note for note in groups.notes] == [True] * is_said


# ---- whatever lies there ----


def test_any_tree_of_files_is_read_or_refused_in_a_line(tmp_path):
    chance, read = random.Random(0), 0
    names = ["p1", "p2", "P1", COMPOSED, DECOMPOSED, "a\nb", "\x1b[1m", "p1_t1", "p1_seg", "x" * 230, NOT_UTF8, " ",
             "p_0000", "p_0001", "{id}", "t1"]
    suffixes = [".nii"] * 9 + [".NII.GZ", ".Nii", ".npz", ".mgz", ".txt", "_"]
    folders = ["", "", "", "p1", "labels", "a/b"]
    for number in range(100):
        root = tmp_path / str(number)
        for _ in range(chance.randint(1, 6)):
            name = chance.choice(names if chance.random() < 0.4 else names[:2]) + chance.choice(suffixes)
            touch(root, f"i/{chance.choice(folders)}/{name}", f"l/{name}")
        try:
            pairing = find_cases(root / "i", chance.choice([None, root / "i", root / "l", root / "l"]),
                                 image_pattern=chance.choice([None, None, "{id}_t1", "{id}_{channel}"]),
                                 label_pattern=chance.choice([None, None, "{id}_seg"]))
        except ValueError as error:
            lines = [str(error)]
        else:
            lines = pairing.notes + groups_by_name(case.id for case in pairing.cases).notes
            read += 1
        assert all(line.isprintable() and line.encode() for line in lines)
    assert 10 < read < 90
