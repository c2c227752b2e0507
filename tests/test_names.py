"""Names out of files, fit for folders, terminals and spreadsheets."""

import os
import random
import unicodedata

import pytest

from edm3d.utils.names import MOST_BYTES, cell, file_names, printable, renamed

HOSTILE = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:x", "a\0b", "a\nb", "\x1b[31mred",
           ".hidden", ".tmp-1-x", "x" * 240, "ß" * 150, "a\u202eb", " a ", "a.", "\ud800", "日" * 100]


def test_fit_ids_stay_as_they_are():
    ids = ["patient-001", "sub.01_ses-2", "Ä 1", "患者", "-1", "seed000001"]
    assert file_names(ids) == ids
    assert renamed(ids, ids) == []


@pytest.mark.parametrize("id_", HOSTILE)
def test_a_hostile_id_is_one_safe_component(id_, tmp_path):
    name, = file_names([id_])
    assert name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name) and not name.startswith(".")
    assert len(name.encode()) <= MOST_BYTES
    assert not any(unicodedata.category(c).startswith("C") for c in name)
    (tmp_path / f"{name}_label.nii.gz").touch()
    assert os.listdir(tmp_path) == [f"{name}_label.nii.gz"]


def test_no_two_ids_share_a_name():
    rng = random.Random(0)
    ids = [*dict.fromkeys([*HOSTILE, "a_b", "A_B", "e\u0301", "\u00e9",
                           *("".join(rng.choices("ab/._ \n", k=3)) for _ in range(300))])]
    names = file_names(ids)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(ids)
    planted = file_names(["a/b"])[0]
    assert len(set(file_names(["a/b", planted, "b"]))) == 3
    assert names == [*reversed(file_names([*reversed(ids)]))]


def test_what_was_renamed_is_said():
    assert renamed(["a/b", "c"], file_names(["a/b", "c"])) == [f"'a/b' as {file_names(['a/b'])[0]}"]
    assert file_names(["a/b"])[0].startswith("a_b-")


def test_a_terminal_gets_no_escapes():
    assert printable("a\x1b[2Jb\r\x07\x9b\u202e\u2028") == "a\\x1b[2Jb\\r\\x07\\x9b\\u202e\\u2028"
    assert printable("één\n\tß 患者") == "één\n\tß 患者"
    printable("\udcff").encode()


def test_a_spreadsheet_gets_no_formulas():
    odd = ("=1+1", "+x", "-x", "@x", "\t=1", "＝1")
    assert [cell(v) for v in odd] == [f"'{v}" for v in odd]
    assert [cell(v) for v in ("-1.5", "x=1", "", 3, -2.0, None)] == ["-1.5", "x=1", "", 3, -2.0, None]
