"""evaluate.py enhancement on samples of simulated scans: draws made by hand, so that all numbers are known."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.inference import scans as kept
from edm3d.inference.evaluate_enhancement import (
    EnhancementOptions,
    evaluate_enhancement,
    find_again,
    levels_of,
    stopped,
)
from edm3d.inference.pet_scans import DrawnScans
from edm3d.metrics.pet import post_filter, relative_l2
from edm3d.physics import dose
from edm3d.physics.dose import DoseSimulation
from edm3d.samplers.noise import ImageGenerators
from evaluate import main
from tests.commands import refused, succeed

SIZE = 20
SIMULATION = {"size": SIZE, "pixel_mm": 4.0, "counts": 3e4, "dose": 0.25, "iterations": 12}
NODE = {"_target_": "physics.dose.DoseSimulation", **SIMULATION}
NAMES = ("images", "cond_images", "phantom", "high_images", "scales", "doses", "slice_ids", "draws")


def phantoms(count: int, depth: int | None = None) -> np.ndarray:
    """Discs of 2 with a square of 5 and a hole of 1 [N,1,(D,)S,S], each a little larger than the one before."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    found = []
    for i in range(count):
        image = 2.0 * (np.hypot(x, y) < 7 + 0.3 * i)
        image[7:12, 6:10], image[11:14, 12:15] = 5, 1
        found.append(image if depth is None else np.stack([image * (1 + (d == 1)) for d in range(depth)]))
    return np.stack(found)[:, None]


def write(path: Path, count: int = 6, draws: int = 9, first: int = 0, depth: int | None = None, spread: float = 0.5,
          without: tuple[str, ...] = (), drop: int = 0, **changes: object) -> Path:
    """Samples of scans, each of a slice of its own, whose draws and high dose are alike about a mean of their own.

    drop: rows that the file lacks at its end.
    """
    activity = phantoms(count, depth)
    seeds = list(range(first, first + count))
    pair = DoseSimulation(**SIMULATION).pair(torch.from_numpy(activity).float(), ImageGenerators(seeds))
    rng = np.random.default_rng(first)
    high, low = pair.high.numpy(), pair.low.numpy()
    mean = high + spread * rng.normal(size=high.shape)
    drawn = mean[:, None] + spread * rng.normal(size=(count, draws, *high.shape[1:]))
    arrays = {"images": drawn.reshape(-1, *high.shape[1:]), "draws": np.tile(np.arange(draws), count),
              **{name: np.repeat(values, draws, axis=0) for name, values in (
                  ("cond_images", low), ("phantom", activity), ("high_images", high), ("slice_ids", np.arange(count)),
                  ("scales", np.ones(count)), ("doses", np.full(count, 0.25)))}}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    rows = count * draws - drop
    sampling = {"samples_per_condition": draws, "scan": {"of": "phantoms", "simulation": NODE}}
    facts = Facts("phantoms.npz", "abc", ("high dose",), condition_channels=("low dose",),
                  intensity=Intensity(0, 5, False, "kBq/mL"), spatial_shape=activity.shape[2:])
    sampling |= changes.get("sampling", {})
    meta = SampleMeta(facts, "results/network.pt", changes.get("snapshot", "abc"), sampling)
    numbers = [seed * draws + k for seed in seeds for k in range(draws)][:rows]
    write_samples(path, numbers, {name: arrays[name][:rows] for name in NAMES if name not in without}, np.eye(4), meta)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[dict, Path, Path]:
    """The report of six scans, its folder and its samples."""
    folder = tmp_path_factory.mktemp("pet")
    samples = write(folder / "samples.h5")
    return evaluate_enhancement([samples], folder / "report", EnhancementOptions()), folder / "report", samples


def test_errors_are_those_of_the_arrays(report):
    found, _, path = report
    file = SamplesFile(path)
    images, truth, high = (file.array(name)[:, 0].astype(float) for name in ("images", "phantom", "high_images"))
    means = images.reshape(6, 9, SIZE, SIZE).mean(1)
    wanted = {"mean": [relative_l2(mean, truth[9 * i]) for i, mean in enumerate(means)],
              "draw": [relative_l2(images[9 * i], truth[9 * i]) for i in range(6)],
              "high": [relative_l2(high[9 * i], truth[9 * i]) for i in range(6)]}
    for method, errors in wanted.items():
        cell = found["methods"][method]["phantom"]["relative_l2"]
        assert cell["mean"] == pytest.approx(np.mean(errors)) and cell["low"] < cell["mean"] < cell["high"]
    assert found["methods"]["mean"]["high"]["relative_l2"]["mean"] == pytest.approx(
        np.mean([relative_l2(mean, high[9 * i]) for i, mean in enumerate(means)]))
    assert found["methods"]["high"]["high"]["relative_l2"]["mean"] is None
    low = found["methods"]["low"]["phantom"]["relative_l2"]["mean"]
    assert found["reduction"]["phantom"]["low"]["value"] == pytest.approx(1 - np.mean(wanted["mean"]) / low)


def test_rivals_are_at_their_best(report):
    """No other width is better, in mm of the simulation's pixels; and MLEM again ends at the low dose of the file."""
    found, _, path = report
    file, rivals = SamplesFile(path), found["rivals"]
    low, truth = (file.array(name)[::9, 0].astype(float) for name in ("cond_images", "phantom"))
    errors = {width: np.mean([relative_l2(post_filter(a, width, (4.0, 4.0)), b) for a, b in zip(low, truth)])
              for width in (0.0, 2.0, rivals["filtered"]["best"], 6.0)}
    assert rivals["filtered"]["unit"] == "mm" and min(errors, key=errors.get) == rivals["filtered"]["best"]
    cell = found["methods"]["filtered"]["phantom"]["relative_l2"]["mean"]
    assert cell == pytest.approx(errors[rivals["filtered"]["best"]])
    early = rivals["early"]
    assert early["values"] == list(range(1, 13)) and early["best"] == 1 + int(np.argmin(early["errors"])) < 12
    assert early["errors"][-1] == pytest.approx(found["methods"]["low"]["phantom"]["relative_l2"]["mean"], rel=1e-4)
    cell = found["methods"]["early"]["phantom"]["relative_l2"]["mean"]
    assert cell == pytest.approx(min(early["errors"]), rel=1e-5)


def test_alike_draws_are_calibrated_inside_and_outside(report):
    """High dose and draws lie about a mean of their own by the same law, so that intervals cover what they say."""
    known = report[0]["calibration"]
    assert known["inside"]["pixels"] + known["outside"]["pixels"] == 6 * SIZE ** 2
    assert known["inside"]["pixels"] == (phantoms(6) > 0).sum()
    for region in ("inside", "outside"):
        for level, cell in known[region]["coverage"].items():
            assert cell["value"] == pytest.approx(int(level) / 100, abs=0.06)
        assert sum(known[region]["ranks"]) == pytest.approx(1) and len(known[region]["ranks"]) == 10
    assert known["spread"]["ratio"] == pytest.approx(1, abs=0.06)
    assert known["inside"]["crps"]["mean"] == pytest.approx(0.5 / np.sqrt(np.pi), rel=0.06)


def test_levels_have_bias_and_contrast(report):
    levels = report[0]["levels"]
    assert [row["activity"] for row in levels["rows"]] == [1, 2, 5] and levels["background"] == 2
    hot = levels["rows"][2]
    assert hot["filtered"]["contrast"]["value"] < hot["high"]["contrast"]["value"] < 1.1
    assert hot["filtered"]["bias"]["value"] < -0.05
    assert levels["rows"][1]["mean"]["contrast"]["value"] is None
    assert report[0]["methods"]["high"]["noise"]["mean"] < report[0]["methods"]["low"]["noise"]["mean"]


def test_files_have_a_row_for_each_scan_and_method_and_a_page_by_itself(report):
    found, folder, _ = report
    rows = list(csv.DictReader((folder / "cases.csv").open()))
    assert len(rows) == 36 and {row["method"] for row in rows} == {"low", "filtered", "early", "mean", "draw", "high"}
    mean = [float(row["relative_l2_to_phantom"]) for row in rows if row["method"] == "mean"]
    assert np.mean(mean) == pytest.approx(found["methods"]["mean"]["phantom"]["relative_l2"]["mean"], rel=1e-4)
    page = (folder / "report.html").read_text()
    assert "src=\"data:image/png" in page and "http" not in page.split("<body>")[1]
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"tried_filtered", "tried_early", "scan_best", "scan_median", "scan_worst", "coverage", "ranks",
                       "spread", "levels_bias", "levels_contrast"}
    shown = found["shown"]
    assert shown["best"]["value"] < shown["median"]["value"] < shown["worst"]["value"]
    assert json.loads((folder / "report.json").read_text()) == found


def test_parts_of_a_file_are_as_the_whole(report, tmp_path):
    """DrawnScans 0 to 2 and 3 to 5 in two files, as several ranks or calls make them, by option and by words."""
    write(tmp_path / "whole.npz", 6)
    whole = SamplesFile(tmp_path / "whole.npz")
    for name, rows in (("one.h5", range(27)), ("two.h5", range(27, 54))):
        write_samples(tmp_path / name, [int(whole.seeds[row]) for row in rows],
                      {key: np.stack([whole.row(key, row) for row in rows]) for key in NAMES}, np.eye(4), whole.meta)
    text = succeed(main, "enhancement", "--samples", str(tmp_path / "one.h5"), "--samples", str(tmp_path / "two.h5"),
                   "--dest", str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["methods"] == report[0]["methods"] and found["calibration"] == report[0]["calibration"]
    assert "posterior mean of 9 draws" in text and "90 %" in text
    line = refused(tmp_path, main, "enhancement", "--samples", str(tmp_path / "one.h5"), str(tmp_path / "whole.npz"),
                   "--dest", str(tmp_path / "other"))
    assert "is in" in line and "other seeds" in line


def test_stacks_of_few_draws(tmp_path):
    """3D, and 2 draws, of which no calibration is told."""
    found = evaluate_enhancement([write(tmp_path / "s.h5", 2, 2, depth=3)], tmp_path / "out", EnhancementOptions())
    assert found["calibration"] == {"available": False, "reason": "2 draws of each scan, wanted 8 or more "
                                                                  "(sampling.samples_per_condition=32)"}
    assert found["methods"]["early"]["available"] and found["rivals"]["filtered"]["unit"] == "pixels"
    assert [row["activity"] for row in found["levels"]["rows"]] == [1, 2, 4, 5, 10]


def test_one_draw_of_each_scan(tmp_path):
    """As generate draws without more being said: no spread, and the page says why."""
    path = write(tmp_path / "s.h5", 2, 1)
    succeed(main, "enhancement", "--samples", str(path), "--dest", str(tmp_path / "out"))
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert found["calibration"]["reason"].startswith("1 draw of each scan, wanted 8 or more")
    draw, mean = (found["methods"][name] for name in ("draw", "mean"))
    assert draw["phantom"] == mean["phantom"] and mean["title"] == "posterior mean of 1 draw"
    assert (tmp_path / "out/figures/scan_best.png").exists()


def test_names_are_those_of_the_rows_that_were_asked_for(tmp_path):
    asked = {"source": "phantoms.npz", "hash": "abc", "ids": ["a", "b\n"]}
    scans = DrawnScans([write(tmp_path / "s.h5", 3, 2, sampling={"conditions": asked})])
    assert scans.names == ["a seed000000", "b\\n seed000001", "a seed000002"]


def test_a_sweep_is_refused_by_name(tmp_path):
    file = SamplesFile(write(tmp_path / "s.h5", 2, 1))
    sweep = {"name": "slice_height", "unit": "share", "values": [0.0, 1.0], "column": 0}
    facts = replace(file.meta.facts, attribute_names=("slice_height",), attribute_units=("share",))
    write_samples(tmp_path / "t.h5", [0, 1], {**{name: file.array(name) for name in NAMES},
                                              "attributes": np.float32([[0], [1]])}, np.eye(4),
                  file.meta._replace(facts=facts, sampling={"sweep": sweep}))
    with pytest.raises(ValueError, match="t.h5: samples of a sweep of slice_height"):
        DrawnScans([tmp_path / "t.h5"])


def test_phantoms_of_many_activities_have_ranges(tmp_path):
    activity = np.repeat(phantoms(2), 2, axis=0) * np.linspace(0.5, 1, SIZE)
    path = write(tmp_path / "s.h5", 2, 2, phantom=activity)
    levels = levels_of(DrawnScans([path]))
    assert levels.lower == pytest.approx(np.arange(8) * activity.max() / 8, rel=1e-6)
    assert (levels.number(activity) >= 0).sum() == (activity > 0).sum()


def test_one_scan_has_no_intervals(tmp_path):
    found = evaluate_enhancement([write(tmp_path / "s.h5", 1)], tmp_path / "out", EnhancementOptions())
    cell = found["methods"]["mean"]["phantom"]["relative_l2"]
    assert cell["mean"] > 0 and cell["low"] is None and found["calibration"]["inside"]["coverage"]["90"]["low"] is None
    assert any("one slice" in note for note in found["notes"])


def test_what_is_missing_is_said(tmp_path):
    """Without phantoms, as of measured pairs: no MLEM again, no levels, and all pixels are one region."""
    path = write(tmp_path / "s.h5", 3, without=("phantom",))
    found = evaluate_enhancement([path], tmp_path / "out", EnhancementOptions())
    reason = found["methods"]["early"]["reason"]
    assert "no phantoms" in reason and any(reason in note for note in found["notes"])
    assert not found["levels"]["available"]
    assert list(found["reduction"]) == ["high"] and found["calibration"]["all"]["pixels"] == 3 * SIZE ** 2


@pytest.mark.parametrize(("changes", "said"), [
    ({"sampling": {"scan": {"of": "phantoms", "simulation": {**NODE, "dose": 0.5}}}}, "another one than in the file"),
    ({"sampling": {"scan": {}}}, "do not say how"),
    ({"sampling": {"scan": {"simulation": {"_target_": "os.system"}}}}, "not on the list"),
    ({"sampling": {"scan": {"simulation": {**NODE, "dose": 2}}}}, "dose"),
    ({"sampling": {"scan": {"simulation": {**NODE, "size": 10 ** 6}}}}, "simulated of 1000000x1000000"),
    ({"sampling": {"scan": {"simulation": {**NODE, "iterations": 10 ** 9}}}}, "not tried"),
])
def test_a_simulation_that_is_another_one_gives_no_row(tmp_path, changes, said):
    scans = DrawnScans([write(tmp_path / "s.h5", 2, 2, **changes)])
    again, iteration, reason = stopped(*find_again(scans, trust=False, run_root=tmp_path))
    assert again is None and iteration is None and said in reason


def test_the_projector_of_large_scans_is_that_which_is_kept(tmp_path, monkeypatch):
    drawn = DrawnScans([write(tmp_path / "s.h5", 2, 2)])
    monkeypatch.setattr(kept, "LARGE", SIZE - 1)
    find_again(drawn, trust=False, run_root=tmp_path)
    for module in (kept, dose):
        monkeypatch.setattr(module, "system_matrix", lambda geometry: 1 / 0)
    again, iteration, _ = stopped(*find_again(drawn, trust=False, run_root=tmp_path))
    assert again and iteration


def test_wrong_files_are_refused_in_a_line(report, tmp_path):
    def line(*paths: Path) -> str:
        return refused(tmp_path, main, "enhancement", "--samples", *map(str, paths), "--dest", str(tmp_path / "out"))

    good = write(tmp_path / "good.h5", 2, 2)
    assert "cond_images" in line(write(tmp_path / "a.h5", 2, 2, without=("cond_images",)))
    assert "scan of your own" in line(write(tmp_path / "b.h5", 2, 2, without=("phantom", "high_images")))
    assert "unlike numbers of draws" in line(write(tmp_path / "c.h5", 2, 2, drop=1))
    assert "snapshot" in line(good, write(tmp_path / "d.h5", 2, 2, first=2, snapshot="def"))
    assert "settings" in line(good, write(tmp_path / "e.h5", 2, 2, first=2, sampling={"conditions": None}))
    assert "one slice" in line(write(tmp_path / "f.h5", 2, 2, slice_ids=np.arange(4)))
    broken = np.full((4, 1, SIZE, SIZE), np.nan)
    assert "not finite" in line(write(tmp_path / "g.npz", 2, 2, cond_images=broken))
    assert "none.h5" in line(tmp_path / "none.h5")
    shutil.copytree(report[1], tmp_path / "out")
    assert "another" in line(good)
