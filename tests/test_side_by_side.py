"""evaluate.py --compare: figures of two reports, and where they do not compare."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from click.testing import CliRunner

from edm3d.inference.compare_reports import compare_reports
from edm3d.reporting.side_by_side import read_report
from evaluate import main
from tests.commands import refused

FIGURE = {"name": "Dice", "value": 0.8, "unit": "", "low": 0.7, "high": 0.9, "floor": 0.1, "ceiling": None,
          "real": None, "said": ""}
REPORT = {"title": "a.h5", "date": "2026-01-01", "command": "x", "scheme": 1, "definitions": {},
          "versions": {"torch": "2.13"},
          "real": {"path": "r.h5", "content_hash": "a" * 64, "reference": "split 'test'", "num": 40},
          "generated": {"path": "a.h5", "sha256": "1" * 64, "num": 24, "seeds": "0-23", "snapshot_hash": "5"},
          "options": {"seed": 0, "ignore_spacing": False, "size": [8, 8]},
          "metrics": {"lv": {"unit": "mL", "ks": 0.2, "floor_p99": 0.3, "undefined": None}},
          "spectrum": {"echo": {"distance": 1.0, "bins": [1, 2]}},
          "features": {"own": {"kid": 0.1, "kid_low": 0.0, "kid_high": 0.15}, "random": {"kid": 3.0}},
          "provenance": {"extractors": {
              "own": {"hash": "e" * 64, "preprocessing": "as stored", "relative": False, "name": "own"},
              "random": {"hash": "f" * 64, "preprocessing": "as stored", "relative": True}}},
          "scorecard": {"consistency": {"available": True, "figures": [FIGURE]},
                        "coverage": {"available": False, "reason": "none"}}}


def write(path: Path, changes: dict | None = None) -> Path:
    """A report in a folder; changes: by dotted key."""
    report = deepcopy(REPORT)
    for key, value in (changes or {}).items():
        *parts, last = key.split(".")
        entry = report
        for part in parts:
            entry = entry[part]
        entry[last] = value
    path.mkdir(parents=True, exist_ok=True)
    (path / "report.json").write_text(json.dumps(report))
    return path


def rows(found: dict, key: str = "numbers") -> dict:
    return {row["name"]: row for row in found[key]}


def test_figures_their_differences_intervals_and_floors(tmp_path):
    better = {"metrics.lv.ks": 0.05, "features.own": {"kid": 0.4, "kid_low": 0.3, "kid_high": 0.5},
              "scorecard.consistency.figures": [FIGURE | {"value": 0.85, "low": 0.75, "high": 0.95}]}
    found = compare_reports([write(tmp_path / "a"), write(tmp_path / "b", better) / "report.json"], None)
    lv, kid = rows(found)["metrics.lv.ks"], rows(found)["features.own.kid"]
    assert lv["differences"] == [pytest.approx(-0.15)] and lv["values"][1]["floor"] == 0.3
    assert kid["intervals"] == "apart" and kid["differences"] == [pytest.approx(0.3)]
    assert set(rows(found)) == {"metrics.lv.ks", "spectrum.echo.distance", "features.own.kid", "features.random.kid"}
    card = rows(found, "scorecard")["consistency: Dice"]
    assert card["intervals"] == "overlap" and card["differences"] == [pytest.approx(0.05)]


def test_relative_extractors_give_no_difference_across_reports(tmp_path):
    found = compare_reports([write(tmp_path / "a"), write(tmp_path / "b")], None)
    assert rows(found)["features.random.kid"]["differences"] == [None]
    assert [part["what"] for part in found["not_comparable"]] == ["extractor random"]


@pytest.mark.parametrize(("key", "value", "said"), [
    ("real.content_hash", "b" * 64, "real data"), ("real.reference", "split 'val'", "what is held against"),
    ("real.num", 4, "number of real"), ("generated.num", 5, "number of generated"), ("scheme", 2, "scheme"),
    ("provenance.extractors.own.hash", "0", "extractor own"), ("options.size", [9, 9], "option size"),
    ("provenance.extractors.own.preprocessing", "cut", "images as own"),
    ("options.ignore_spacing", True, "option ign")])
def test_what_does_not_compare_is_loud(tmp_path, capsys, key, value, said):
    dest = tmp_path / "out"
    found = compare_reports([write(tmp_path / "a"), write(tmp_path / "b", {key: value})], dest)
    assert any(part["what"].startswith(said) for part in found["not_comparable"])
    out = capsys.readouterr().out
    assert f"NOT COMPARABLE  {said}" in out and "Not comparable" in (dest / "compare.html").read_text()
    assert json.loads((dest / "compare.json").read_text()) == found


def test_versions_seeds_and_the_same_samples_are_noted(tmp_path):
    found = compare_reports([write(tmp_path / "a"), write(tmp_path / "b", {
        "versions": {"torch": "2.14"}, "generated.seeds": "1-24"})], None)
    assert found["notes"] == ["Note: all reports are of the same samples", "Note: the samples are of other seeds",
                              "Note: version of torch: 2.13, 2.14"]


@pytest.mark.parametrize(("content", "said"), [
    ("[]", "holds a list, wanted"), ("{}", "is no report of ours"), ("{", "not readable as JSON"),
    ('{"autoencoder": {}}', "report of a first stage"), ('{"downstream": {}}', "report of downstream networks"),
    ('{"samples": {}}', "report of drawn PET scans"), ('{"generated": 3}', "generated is 3"),
    (json.dumps(REPORT | {"real": {"num": "many"}}), "real.num is 'many'"),
    (json.dumps(REPORT | {"provenance": {"extractors": 3}}), "extractors"),
    (json.dumps(REPORT | {"provenance": {"extractors": {"a": 3}}}), "extractors.a is 3"),
    (json.dumps(REPORT | {"scorecard": 3}), "scorecard is 3"),
    (json.dumps(REPORT | {"scorecard": {"coverage": {"figures": 3}}}), "figures is 3"),
    (json.dumps(REPORT | {"scorecard": {"coverage": {"figures": [{"name": 1}]}}}), r"figures\[0\]"),
    (json.dumps(REPORT | {"metrics": {str(i): i for i in range(20_001)}}), "more than 20,000 numbers")])
def test_what_is_no_report_of_generated_volumes_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json.*{said}"):
        read_report(path)


def test_command(tmp_path):
    a, b = str(write(tmp_path / "a")), str(write(tmp_path / "b", {"real.num": 3}))
    answer = CliRunner().invoke(main, ["--compare", a, b, "--dest", str(tmp_path / "out")])
    assert answer.exit_code == 0 and "consistency: Dice" in answer.output and "compare.html" in answer.output
    assert CliRunner().invoke(main, ["--compare", a, b, "--dest", str(tmp_path / "out")]).exit_code == 0
    c = str(write(tmp_path / "c"))
    assert "--overwrite" in refused(tmp_path, main, "--compare", a, c, "--dest", str(tmp_path / "out"))
    assert "1 report, wanted 2" in refused(tmp_path, main, "--compare", a)
    assert "named twice" in refused(tmp_path, main, "--compare", a, a)
    assert "--real: an option of volumes" in refused(tmp_path, main, "--compare", a, b, "--real", "r.h5")


def test_names_out_of_files_move_no_cursor(tmp_path, capsys):
    found = compare_reports([write(tmp_path / "a"), write(tmp_path / "b", {
        "title": "\x1b[2Jx", "metrics": {"<b>\x1b[31m": {"ks": 1}}, "versions": {"\x1bv": "\x1b"},
        "scorecard.consistency.figures": [FIGURE | {"name": "\x1b[1m<i>"}]})], tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "\x1b" not in capsys.readouterr().out + page and "<i>" not in page and found["reports"][1]["letter"] == "B"
