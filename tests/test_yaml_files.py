"""YAML files that would take for ever, or run something, end in one line at once."""

import time
from pathlib import Path

import pytest

from edm3d.utils.compose import compose
from edm3d.utils.config import read_yaml
from edm3d.utils.yaml_files import Refused, checked_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
COSTLY = {
    "bomb": (BOMB, "its anchors written out"), "nested": ("a: " + "[" * 3000 + "]" * 3000, "levels deep"),
    "maps": ("".join(" " * i + f"k{i}:\n" for i in range(300)), "levels deep"),
    "itself": ("a: &a [*a]", "holds itself"), "long": ("a: " + "x" * 300_000, "more than any configuration has"),
    "many": ("a: [" + "1, " * 30_000 + "]", "holds more than"), "bytes": ("a: \udcff", "cannot be read"),
    "references": ("a: '" + "${" * 5000 + "'", "more \\${...} than"),
}  # fmt: skip
ODD = {"tag": ("a: !!python/object/apply:os.mkdir [PWNED]", "constructor"), "list": ("- 1", "wanted keys and values"),
       "number": ("3", "not readable as YAML"), "twice": ("a: 1\na: 2", "not readable as YAML"),
       "half": ("a: '${x:'", "not readable"), "digits": (f"a: {'9' * 5000}", "not readable as YAML")}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("name", [*COSTLY, *ODD])
def test_a_yaml_that_costs_too_much_or_is_odd_is_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, said = {**COSTLY, **ODD}[name]
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"x\.yaml: .*{said}") as error:
        read_yaml(write(tmp_path / "x.yaml", text))
    assert time.monotonic() - start < 2 and "\n" not in str(error.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", COSTLY)
def test_an_experiment_of_ones_own_that_costs_too_much_is_refused_at_once(tmp_path, name):
    write(tmp_path / "mine.yaml", f"defaults:\n  - echo_vae\n  - _self_\n{COSTLY[name][0]}\n")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        compose("mine", [], tmp_path)
    assert time.monotonic() - start < 3


def test_a_costly_file_that_an_experiment_does_not_use_stops_nothing(tmp_path):
    write(tmp_path / "mine.yaml", "defaults:\n  - echo_vae\n  - _self_\n")
    write(tmp_path / "other.yaml", BOMB)
    assert compose("mine", [], tmp_path)["training"]["task"] == "autoencoder"


def test_anchors_as_people_use_them_are_read(tmp_path):
    path = write(tmp_path / "x.yaml", "a: &a {b: 1, c: [1, 2]}\nd: *a\ne: {<<: *a, b: 2}\nf: ${a.b}\n")
    checked_text(path)
    found = read_yaml(path)
    assert found["d"] == {"b": 1, "c": [1, 2]} and found["e"]["b"] == 2 and found["f"] == "${a.b}"
    with pytest.raises(Refused, match="cannot be read"):
        checked_text(tmp_path / "absent.yaml")
