"""evaluate.py downstream on small files: networks that do what is known by hand, and some that were trained."""

import base64
import csv
import json
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import train
from edm3d.formats.facts import mixture_hash, volume_facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.prediction import Prediction
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.evaluate_downstream import DownstreamOptions, evaluate_downstream
from edm3d.inference.predictor import Predictor
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.trained_on import Opened, opened, sources_of
from edm3d.reporting import report
from edm3d.reporting.montages import DPI, GAP, montage
from edm3d.reporting.scores import ImageScores, VoxelScores, chosen
from edm3d.reporting.slices import TILE
from edm3d.training.datasets.mixed import MixedDataset
from edm3d.utils.checkpoint import load, save
from edm3d.utils.runs import list_files
from evaluate import main
from tests.commands import refused, succeed

DOT = base64.b64decode(  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
LABELS = ("background", "wall", "blood")
VIEWS = ("A2C", "A4C", "PLAX")
BLANK = Prediction("labels", LABELS)
SIZE, SPACING = 12, (1.0, 2.5)
TRUSTED = DownstreamOptions(trust=True)


class Means(torch.nn.Module):
    """Logits [N,K] of images [N,1,*S]: K numbers times the mean of the image, plus K numbers."""

    def __init__(self, slopes: list[float], offsets: list[float]):
        super().__init__()
        self.linear = torch.nn.Linear(1, len(slopes))
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(slopes)[:, None])
            self.linear.bias.copy_(torch.tensor(offsets))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(dim=(2, 3))[:, :1])


def by_level(low: float, high: float) -> torch.nn.Conv2d:
    """Class 0 below `low`, 1 up to `high`, 2 above, in network units."""
    net = torch.nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([0.0, 50, 100]).reshape(3, 1, 1, 1))
        net.bias.copy_(torch.tensor([0.0, -50 * low, -50 * (low + high)]))
    return net


def square(at: tuple[int, int], size: int = 4) -> np.ndarray:
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[at[0]:at[0] + size, at[1]:at[1] + size] = 1
    return label


def drawn(label: np.ndarray) -> np.ndarray:
    """The image [1,*S] of which `by_level` finds the label map."""
    return np.array([0.1, 0.5, 0.9], np.float32)[label][None]


def write(path: Path, items: dict[str, list[tuple]], labels: bool = True, views: tuple[str, ...] = VIEWS,
          channel: str = "echo") -> Path:
    """A volumes file: by split (id, image, label, class or None, attribute)."""
    first = next(iter(items.values()))[0][1]
    meta = VolumesMeta(first.ndim - 1, (channel,), ("target",), LABELS if labels else (), ("ef",), ("%",), views,
                       Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "toy"}) as writer:
        for split, rows in items.items():
            for name, image, label, of_class, value in rows:
                affine = np.diag([*SPACING, 1, 1]).astype(np.float64)
                writer.add(split, Item(image, label if labels else None, np.array([value], np.float32), of_class, name,
                                       f"p-{name}", affine, full_box(image.shape[1:])))
    return path


def toy_items(tag: str, count: int) -> list[tuple]:
    return [(f"{tag}{i}", drawn(square((2, 2 + i % 4))), square((2, 2 + i % 4)), i % 2, 40.0 + i) for i in range(count)]


def cases_csv(folder: str) -> list[dict[str, str]]:
    return [*csv.DictReader((Path(folder) / "cases.csv").read_text().splitlines())]


def snapshot(path: Path, data: str, net: torch.nn.Module | dict, predicts: Prediction = BLANK, seed: int = 0,
             more: dict | None = None, **dataset: object) -> str:
    """A run's snapshot as if trained on a file, or several; its name."""
    file = VolumesFile(data if isinstance(data, str) else data[0])
    facts = volume_facts(file, file.splits[0])
    node, weights = ({"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
                     net.state_dict()) if isinstance(net, torch.nn.Module) else (net, Means(**{
                         k: v for k, v in net.items() if k != "_target_"}).state_dict())
    config = {"training": {"dataset": {"path": data, "split": "train", **dataset}, "options": {"seed": seed},
                           **(more or {})}}
    paths = [data] if isinstance(data, str) else data
    nums, shares = dataset.get("num"), dataset.get("shares") or [None] * len(paths)
    mixed = mixture_hash([opened(Path(each), "train").hash for each in paths], shares,
                         nums if isinstance(nums, list) else [nums] * len(paths), dataset.get("seed", 0))
    facts = replace(facts, source=str(data), content_hash=mixed)
    Snapshot("classification" if isinstance(net, dict) else "segmentation", node, facts, (1, SIZE, SIZE),
             weights=weights, config=config, nimg=4000, predicts=predicts).save(path)
    return str(path)


def means(slopes: list[float], offsets: list[float]) -> dict:
    return {"_target_": "tests.test_evaluate_downstream.Means", "slopes": slopes, "offsets": offsets}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Files with two test cases of label maps, and six of views, of which one has none."""
    folder = tmp_path_factory.mktemp("downstream")
    moved, true = drawn(square((3, 4))), square((3, 3))
    both, blood = square((3, 3)), square((3, 3))
    both[8:10, 8:10], blood[8:10, 8:10] = 2, 2
    with chdir(folder):
        write(Path("real.h5"), {"train": toy_items("t", 6), "test": [
            ("moved", moved, true, 0, 50.0), ("missed", drawn(square((3, 3))), both, 1, 60.0),
            ("invented", drawn(both), square((3, 3)), 1, 60.0)]})
        write(Path("other.h5"), {"train": toy_items("o", 9)})
        levels = [0.2, 0.3, 0.4, 0.6, 0.7, 0.9]
        write(Path("views.h5"), {"train": toy_items("t", 4), "val": [
            (f"v{i}", np.full((1, SIZE, SIZE), level, np.float32), square((2, 2)), k, value)
            for i, (level, k, value) in enumerate(zip(levels, [0, 0, 1, 0, 1, None], [30, 60, 40, 55, 70, np.nan]))]})
        snapshot(Path("good.pt"), "real.h5", by_level(-0.4, 0.4))
        snapshot(Path("again.pt"), "real.h5", by_level(-0.4, 0.41), seed=1)
        snapshot(Path("blind.pt"), "other.h5", by_level(-0.4, 3.0), num=6, _target_="training.datasets.mixed")
        snapshot(Path("both.pt"), ["real.h5", "other.h5"], by_level(-0.4, 3.0), shares=[1.0, 1.0], num=[6, 9])
        snapshot(Path("view.pt"), "views.h5", means([0, 8, 0], [0, 0, -99]), Prediction("classes", VIEWS))
        snapshot(Path("ef.pt"), "views.h5", means([0, 8], [0, 0]),
                 Prediction("attribute", ("ef < 50", "ef >= 50"), "ef", "%", 50.0))
    return folder


def report_of(dest: str, *runs: str, real: str = "real.h5", draw: bool = False, **options: object) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr(report, "png_bytes", lambda figure: DOT)
        return written(dest, runs, real, options)


def written(dest: str, runs: tuple[str, ...], real: str, options: dict) -> dict:
    found = evaluate_downstream(runs, Path(real), Path(dest), TRUSTED._replace(**options))
    assert found == json.loads((Path(dest) / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def segmented(here):
    """The report of four segmenters."""
    with chdir(here):
        return report_of("segmented", "good.pt", "again.pt", "blind.pt", "both.pt", batch_size=2, draw=True)


# ---- numbers ----


def test_dice_and_distances_are_those_known_by_hand(at, segmented):
    good, blind = (next(run for run in segmented["runs"] if run["name"] == name) for name in ("good.pt", "blind.pt"))
    # moved by a voxel of 2.5 mm: 12 of 16 voxels are shared; the wall of the other cases is found
    assert good["dice"]["by_class"]["wall"]["value"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert good["hd"]["by_class"]["wall"]["value"] == pytest.approx(2.5 / 3)
    assert good["dice"]["by_class"]["blood"]["value"] == 0 and good["hd"]["by_class"]["blood"]["value"] is None
    assert good["dice"]["value"] == pytest.approx((0.75 + 1 + 1) / 6)
    assert good["hd95"]["value"] is good["hd"]["value"] is good["hd95"]["low"] is None  # blood, in one, is never found
    assert blind["dice"]["by_class"]["wall"]["value"] == pytest.approx((0.75 + 1 + 2 * 16 / (16 + 20)) / 3)
    rows = {(row["run"], row["id"]): row for row in cases_csv("segmented")}
    row = rows["good.pt", "moved"]
    assert [row[f"{key}_wall"] for key in ("dice", "hd95_mm", "hd_mm")] == ["0.75", "2.5", "2.5"]
    assert row["dice_blood"] == "nan"
    assert row["group"] == "p-moved" and row["trained_on"] == "real.h5" and len(rows) == 12


def ahead() -> torch.nn.Conv2d:
    """`by_level` of the voxel before, on the first axis."""
    net = torch.nn.Conv2d(1, 3, (3, 1), padding=(1, 0))
    with torch.no_grad():
        net.weight.zero_()[:, :, :1] = by_level(-0.4, 0.4).weight
        net.bias.copy_(by_level(-0.4, 0.4).bias)
    return net


def turned_file(path: str) -> str:
    """real.h5 with its cases the other way round: the first flipped, the others with their axes swapped."""
    file = VolumesFile("real.h5")
    with VolumesWriter(path, file.meta, {"kind": "toy"}) as writer:
        for i in range(3):
            item, (x, y) = file.read("test", i), SPACING
            flip, swap = np.diag([-x, y, 1, 1.0]), np.array([[0, x, 0, 0], [y, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
            image, label = ((item.image[:, ::-1], item.label[::-1]) if i == 0 else
                            (item.image.swapaxes(1, 2), item.label.T))
            writer.add("test", item._replace(image=np.ascontiguousarray(image), label=np.ascontiguousarray(label),
                                             affine=flip if i == 0 else swap))
    return path


def test_cases_are_seen_on_the_axes_of_training_as_segment_sees_them(at):
    node = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": [3, 1],
            "padding": [1, 0]}
    replace(Snapshot.read(Path("good.pt")), network=node, weights=ahead().state_dict()).save(Path("ahead.pt"))
    turned_file("turned.h5")
    straight, turned = (report_of(f"of_{name}", "ahead.pt", real=f"{name}.h5") for name in ("real", "turned"))
    assert straight["runs"][0]["dice"] == turned["runs"][0]["dice"]
    assert straight["runs"][0]["hd"]["by_class"]["wall"] == turned["runs"][0]["hd"]["by_class"]["wall"]
    assert 0 < straight["runs"][0]["dice"]["by_class"]["wall"]["value"] < 0.9
    assert [line for line in turned["notes"] if "axes" in line] == [
        "Note: 3 of 3 images have axes ARS, LAS, those of training RAS: they are turned for the network"]
    assert not [line for line in straight["notes"] if "axes" in line]
    succeed(dataset_tool.main, "segment", "--network", "ahead.pt", "--source", "turned.h5", "--dest", "seg.h5",
            "--num-threads", "1", "--montage", "0")
    for row, i in zip(cases_csv("of_turned"), range(3), strict=True):
        truth, made = (VolumesFile(name).read("test", i).label for name in ("turned.h5", "seg.h5"))
        shared = ((truth == 1) & (made == 1)).sum() * 2 / ((truth == 1).sum() + (made == 1).sum())
        assert float(row["dice_wall"]) == pytest.approx(shared, rel=1e-5)


def test_what_lies_otherwise_is_said_by_run(at):
    good = Snapshot.read(Path("good.pt"))
    facts = replace(good.facts, affine=((2.0, 0, 0, 0), *good.facts.affine[1:]))
    replace(good, facts=facts, config=good.config | {"other": 1}).save(Path("wide.pt"))
    notes = report_of("wide", "good.pt", "wide.pt")["notes"]
    assert notes == ["Warning: 3 of 3 images have other voxels than those of training (2x2.5 mm): moved 1x2.5, missed "
                     "1x2.5, invented 1x2.5; they are seen as they are (by wide.pt)"]


def test_empty_masks_are_counted_apart(segmented):
    good, blind = (segmented["classes"]["blood"][name] for name in ("real.h5", "other.h5"))
    assert good == {"missed": 2, "invented": 2, "absent": 2}  # of two runs
    assert blind == {"missed": 1, "invented": 0, "absent": 2}
    assert segmented["classes"]["wall"]["other.h5"] == {"missed": 0, "invented": 0, "absent": 0}


def test_rows_are_runs_that_differ_by_their_seed_beside_as_many_real_items(at, segmented):
    rows = {row["name"]: row for row in segmented["rows"]}
    assert [*rows] == ["real.h5", "other.h5", "real.h5 + other.h5"]
    real, other, both = rows.values()
    assert real["runs"] == ["good.pt", "again.pt"] and real["is_real"] and real["items"] == 6 and real["beside"] is None
    assert real["dice"]["std"] == pytest.approx(0, abs=1e-12) and other["dice"]["std"] is None
    assert not other["is_real"] and other["items"] == 6 and both["items"] == 15 and both["real_items"] == 6
    for row in (other, both):
        assert row["beside"]["row"] == "real.h5"
        assert row["beside"]["dice"] == pytest.approx(row["dice"]["mean"] - real["dice"]["mean"])
    assert [run["seed"] for run in segmented["runs"]] == [0, 1, 0, 0] and segmented["runs"][0]["kimg"] == 4


def test_a_class_that_is_missed_leaves_no_mean_distance(at, segmented, capsys):
    assert segmented["never_found"] == {f"{name}.pt": ["blood"] for name in ("good", "again", "blind", "both")}
    said = "good.pt: no mean Hausdorff distance, as it finds nothing of blood in any of the test cases that have it"
    assert said in Path("segmented/report.html").read_text()
    there, one = np.ones((2, 2), bool), np.array([[1, 1], [1, 0]], bool)
    far = np.array([[2.0, 6], [4, np.nan]])
    some = VoxelScores(np.ones((2, 2)), far, far, there, one)  # missed in one of two cases alone
    assert some.measured()["hd95"].tolist() == [[4.5, 3, 6]] and not some.never_found().any()
    neither = VoxelScores(np.ones((2, 2)), far * [1, np.nan], far, np.array([[1, 0], [1, 0]], bool), one)
    assert neither.measured()["hd95"][0, 0] == 3  # of a class that truth has not there is none to be left out


def test_intervals_hold_the_value_and_go_by_the_seed(at, segmented):
    wall = segmented["runs"][0]["dice"]["by_class"]["wall"]
    assert wall["low"] == pytest.approx(0.75) and wall["high"] == 1 and wall["used"] == 2000
    blood = segmented["runs"][0]["dice"]["by_class"]["blood"]  # in one of three cases
    assert blood["used"] / 2000 == pytest.approx(1 - (2 / 3) ** 3, abs=0.04)
    again = report_of("again", "good.pt", batch_size=1)
    assert again["runs"][0] == segmented["runs"][0]


def test_every_case_is_inferred_once_by_every_run(at, monkeypatch):
    seen, call = [], Predictor.logits
    monkeypatch.setattr(Predictor, "logits", lambda self, images, names: seen.append(len(images)) or call(
        self, images, names))
    report_of("once", "good.pt", "blind.pt", batch_size=2)
    assert seen == [2, 2, 1, 1]
    assert report_of("two", "good.pt", num=2)["real"]["num"] == 2


def test_the_page_has_tables_charts_and_cases(at, segmented):
    names = {path.stem for path in Path("segmented/figures").iterdir()}
    assert names == {"worst_1", "median_1", "best_1", *(f"{key}_{name}" for key in ("dice", "hd95")
                                                       for name in ("wall", "blood"))}
    page = Path("segmented/report.html").read_text()
    assert page.count("<img") == len(names) and "Worst cases" in page and "other.h5" in page
    shown = {name: [case["id"] for case in cases] for name, cases in segmented["shown"].items()}
    assert shown == {"worst": ["missed"], "median": ["moved"], "best": ["invented"]}


def test_cases_are_chosen_once_and_from_both_ends():
    assert chosen([0.5, np.nan, 0.1, 0.9, 0.4]) == {"worst": [2], "median": [4], "best": [3]}
    assert chosen([0.3]) == {"worst": [0]} and chosen([np.nan]) == {}
    assert chosen(np.arange(20)) == {"worst": [0, 1, 2], "median": [8, 9, 10], "best": [19, 18, 17]}


def test_blocks_below_the_first_need_not_show_the_plain_plane_again():
    pictures = [(np.random.default_rng(0).random((8, 8, 8)), np.ones((8, 8, 8), np.uint8))]
    tall, low = (montage([("a", pictures), ("b", pictures)], (1, 1, 1), plain_once=once).get_figheight()
                 for once in (False, True))
    assert tall - low == pytest.approx((TILE + GAP) / DPI)


# ---- classes of images ----


def test_views_by_scores_and_what_has_none_is_left_out(at, capsys):
    found = report_of("views", "view.pt", real="views.h5", batch_size=4, draw=True)
    # means -0.6 -0.4 -0.2 0.2 0.4 of views 0 0 1 0 1: class 1 above 0, so two of three and one of two are right
    assert [found["real"][key] for key in ("split", "num", "left_out")] == ["val", 5, 1]
    run = found["runs"][0]
    assert run["accuracy"]["value"] == 0.6 and run["accuracy"]["by_class"]["A4C"]["value"] == 0.5
    assert run["auroc"]["by_class"]["A4C"]["value"] == pytest.approx(5 / 6)
    assert run["auroc"]["value"] == pytest.approx(5 / 6) and run["auroc"]["by_class"]["PLAX"]["value"] is None
    assert found["auroc"] == {"available": True, "left_out": ["PLAX"]}
    assert found["confusion"] == {"views.h5": [[2, 1, 0], [1, 1, 0], [0, 0, 0]]}
    said = capsys.readouterr().out
    assert "none is of PLAX" in said and "1 cases of split 'val' are left out, as their class is not known" in said
    row = cases_csv("views")[0]
    assert (row["truth"], row["predicted"]) == ("A2C", "A2C") and float(row["score_A2C"]) == pytest.approx(
        1 / (1 + np.exp(-4.8)), rel=1e-4)
    assert {path.stem for path in Path("views/figures").iterdir()} >= {"confusion_A", "roc_A2C", "roc_A4C", "worst_1"}


def test_an_attribute_with_a_threshold(at):
    found = report_of("ef", "ef.pt", real="views.h5")
    # ef 30 60 40 55 70, found as 50 and more from the fourth on
    assert found["confusion"] == {"views.h5": [[2, 0], [1, 2]]} and found["real"]["left_out"] == 1
    assert found["runs"][0]["auroc"]["value"] == pytest.approx(5 / 6) and "roc" in {
        path.stem for path in Path("ef/figures").iterdir()}


def test_sure_networks_rank_cases_by_log_odds_and_both_classes_alike(at):
    levels = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]  # margins of 24 to 64, of which softmax in single precision is 0 and 1
    write(Path("sure.h5"), {"test": [(f"s{i}", np.full((1, SIZE, SIZE), level, np.float32), square((2, 2)), None, ef)
                                     for i, (level, ef) in enumerate(zip(levels, [60, 40, 60, 40, 60, 60]))]})
    for name, sign in (("up.pt", 1), ("down.pt", -1)):
        snapshot(Path(name), "views.h5", means([0, 80 * sign], [0, 96 * sign]),
                 Prediction("attribute", ("ef < 50", "ef >= 50"), "ef", "%", 50.0))
    up, down = report_of("sure", "up.pt", "down.pt", real="sure.h5")["runs"]
    # 4 x 2 pairs; of the positive first, third, fifth and sixth 0, 1, 2 and 2 negative ones lie below
    for run, value in ((up, 5 / 8), (down, 3 / 8)):
        assert [run["auroc"]["value"], *(cell["value"] for cell in run["auroc"]["by_class"].values())] == [value] * 3
    assert up["accuracy"]["value"] == 4 / 6


def test_log_odds_are_of_a_class_against_all_others_together():
    predictor = Predictor.__new__(Predictor)
    predictor._logits = lambda images: images
    logits = torch.tensor([[1.0, 2, 4], [90, 0, 50]])
    shares = logits[:1].double().softmax(1)
    torch.testing.assert_close(predictor.log_odds(logits)[:1], (shares / (1 - shares)).log())
    torch.testing.assert_close(predictor.log_odds(logits)[1], torch.tensor([40.0, -90, -40]).double())


def test_auroc_of_one_class_is_said_to_be_undefined(at, capsys):
    found = report_of("one", "view.pt", real="views.h5", num=2)
    assert found["auroc"] == {"available": False, "reason": "all 2 test cases are of one class, A2C"}
    assert found["runs"][0]["auroc"]["value"] is None and found["runs"][0]["accuracy"]["value"] == 1
    assert "AUROC: not available: all 2 test cases" in capsys.readouterr().out
    assert "AUROC: not available" in Path("one/report.html").read_text()


def test_scores_of_one_class_or_no_class_stay_defined():
    nothing = np.zeros((2, 1), bool)
    scores = VoxelScores(np.zeros((2, 1)), *np.full((2, 2, 1), np.nan), nothing, nothing)
    assert np.isnan(scores.measured()["dice"]).all() and np.isnan(scores.of_cases()).all()
    assert np.isnan(ImageScores(np.zeros(3, int), np.eye(3)).measured()["auroc"]).all()


# ---- what is to be known ----


def test_runs_that_saw_the_test_cases_or_unknown_files_are_named(at):
    snapshot(Path("seen.pt"), "real.h5", by_level(-0.4, 0.4), seed=3, split="all")
    snapshot(Path("gone.pt"), ["other.h5", "gone.h5"], by_level(-0.4, 0.4), seed=4)
    notes = report_of("notes", "seen.pt", "gone.pt")["notes"]
    assert len(notes) == 2
    assert notes[0].startswith("Warning: seen.pt was trained on test cases: on split 'all' of real.h5")
    assert notes[1].startswith("Note: gone.pt was trained on other.h5, gone.h5, which are not here as they were")
    rows = json.loads(Path("notes/report.json").read_text())["rows"]
    assert [(row["name"], row["items"]) for row in rows] == [("real.h5 (all)", 9), ("other.h5 + gone.h5", None)]


def test_contents_and_not_paths_say_what_was_trained_on(at):
    write(Path("kin.h5"), {"train": toy_items("k", 4)})
    Path("kin2.h5").write_bytes(Path("kin.h5").read_bytes())
    snapshot(Path("near.pt"), "kin.h5", by_level(-0.4, 0.4), seed=5)
    snapshot(Path("far.pt"), "./kin2.h5", by_level(-0.4, 0.41), seed=6)
    snapshot(Path("mixed1.pt"), ["real.h5", "kin.h5"], by_level(-0.4, 0.42), num=[6, 3])
    snapshot(Path("mixed2.pt"), ["./real.h5", "kin2.h5"], by_level(-0.4, 0.43), num=[6, 3], seed=1)
    runs = "near.pt", "far.pt", "mixed1.pt", "mixed2.pt"
    found = report_of("kin", *runs)
    assert [(row["runs"], row["items"], row["real_items"]) for row in found["rows"]] == [
        ([*runs[:2]], 4, 0), ([*runs[2:]], 9, 6)] and not found["notes"]
    write(Path("kin.h5"), {"train": toy_items("n", 4)})  # others, where those lay
    snapshot(Path("new.pt"), "kin.h5", by_level(-0.4, 0.44), seed=7)
    found = report_of("kin2", *runs, "new.pt", "blind.pt")
    # of mixed1 nothing is to be had but that it was trained on something else than mixed2, whose files are as they were
    assert [row["runs"] for row in found["rows"]] == [[*runs[:2]], ["mixed1.pt"], ["mixed2.pt"], ["new.pt"],
                                                      ["blind.pt"]]
    assert [row["real_items"] for row in found["rows"]] == [0, 0, 6, 0, 0]
    near, mixed = found["notes"]
    assert near.startswith("Note: near.pt was trained on kin.h5, which is not here as it was; it is not the real file")
    assert mixed.startswith("Note: mixed1.pt was trained on real.h5, kin.h5, which are not here as they were; whether")


def test_what_training_says_of_a_mixture_is_what_is_known_again(at):
    write(Path("drop.h5"), {"train": toy_items("d", 5)})
    good = Snapshot.read(Path("good.pt"))
    for more in ({"path": "other.h5"}, {"path": "other.h5", "num": 3, "seed": 4}, {"path": ["real.h5", "other.h5"]},
                 {"path": ["real.h5", "other.h5", "drop.h5"], "shares": [1, 2, 0], "num": [2, None, None]}):
        facts = MixedDataset(**more).facts
        found = sources_of(replace(good, facts=facts, config={"training": {"dataset": {**more, "split": "train"}}}))
        hashes = [VolumesFile(source.path).content_hash for source in found]
        assert [source.hash for source in found] == hashes and all(source.is_here for source in found)
    other = {**more, "seed": 1}
    assert [source.hash for source in sources_of(replace(
        good, facts=facts, config={"training": {"dataset": other}}))] == [None, None]


def test_samples_asked_for_by_tested_cases_and_snapshots_chosen_on_them_are_warned_of(at):
    ids = ["t0", "moved", "invented"]
    meta = SampleMeta(volume_facts(VolumesFile("real.h5"), "train"), "gone.pt", "0",
                      {"conditions": {"source": "real.h5", "hash": "0", "ids": ids}})
    for name, count in (("asked.h5", 12), ("few.h5", 2)):  # of two the first alone, t0, is trained on
        write_samples(Path(name), range(count), {"images": np.zeros((count, 1, SIZE, SIZE), np.float32)}, np.eye(4),
                      meta)
        facts = replace(meta.facts, content_hash=SamplesFile(Path(name)).content_hash)
        replace(Snapshot.read(Path("good.pt")), facts=facts, config={"training": {"dataset": {"path": name}}}).save(
            Path(name).with_suffix(".pt"))
    write(Path("held.h5"), {"train": toy_items("t", 3), "val": toy_items("v", 2), "test": toy_items("u", 2)})
    Path("run").mkdir()
    for name in ("network-best.pt", "network-snapshot-000004.pt"):
        snapshot(Path("run") / name, "held.h5", by_level(-0.4, 0.4), seed=len(name),
                 more={"validation": {"split": "val", "max_items": 9}})
    assert report_of("asked", "asked.pt", "few.pt")["notes"] == [
        "Warning: asked.pt was trained on samples that were asked for by test cases: those of asked.h5 by rows of "
        "real.h5, which is the file of --real, with the ids of 2 of 3 tested cases: moved, invented"]
    runs = "run/network-best.pt", "run/network-snapshot-000004.pt"
    assert report_of("val", *runs, real="held.h5", split="val")["notes"] == [
        "Warning: run/network-best.pt was chosen on test cases: network-best.pt is the best on split 'val', which is "
        "tested; test on another"]
    assert not report_of("test", *runs, real="held.h5")["notes"]


def test_rows_of_another_recipe_are_not_held_against_each_other(at, capsys):
    snapshot(Path("deep.pt"), "other.h5", by_level(-0.4, 0.4), more={"network": {"depth": 9}}, num=6)
    row = report_of("deep", "good.pt", "deep.pt")["rows"][1]
    assert row["beside"] is None and row["otherwise"] == ["real.h5"]
    assert "other.h5: not held against real.h5, of as many real items, as its network or options are others" in (
        capsys.readouterr().out)


def test_items_of_samples_are_counted_as_training_takes_them(at):
    meta = SampleMeta(volume_facts(VolumesFile("real.h5"), "train"), "gone.pt", "0", {})
    write_samples(Path("samples.h5"), range(11), {"images": np.zeros((11, 1, SIZE, SIZE), np.float32)}, np.eye(4), meta)
    assert [opened(Path("samples.h5"), split)[0] for split in ("train", "val", "all", "test")] == [10, 1, 11, None]
    assert opened(Path("real.h5"), "all")[:2] == (9, VolumesFile("real.h5").content_hash)
    assert all(opened(Path(path), "all") == Opened() for path in ("gone.h5", "good.pt", "/dev/zero"))


def test_what_a_configuration_holds_is_taken_for_what_it_is(at):
    content = load(Path("good.pt"), "snapshot").content
    content["config"]["training"] |= {"network": {1: 2, "a": [float("nan")]}, "dataset": {
        "path": [3], "shares": "x", "num": -1, "split": 7, "seed": "\x1b[31m"}}
    save(Path("odd.pt"), "snapshot", content)
    row, = report_of("odd", "odd.pt")["rows"]
    assert row["name"] == "real.h5" and row["items"] == 6


def test_other_sizes_are_seen_in_windows_or_cut_to_that_of_training(at):
    big = np.zeros((SIZE + 4, SIZE + 2), np.uint8)
    big[4:9, 5:9] = 1
    meta = VolumesMeta(2, ("echo",), ("target",), LABELS, (), (), VIEWS, Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter("big.h5", meta, {}) as writer:
        for i in range(2):
            writer.add("test", Item(drawn(big), big, None, i, f"b{i}", f"b{i}", np.eye(4), full_box(big.shape)))
    assert report_of("big", "good.pt", real="big.h5")["runs"][0]["dice"]["value"] == 1
    bright = np.ones((1, *big.shape), np.float32)  # in the mean A4C, and A2C where its rim is cut off
    bright[:, 2:-2, 1:-1] = 0.4
    with VolumesWriter("rim.h5", meta, {}) as writer:
        writer.add("test", Item(bright, big, None, 0, "r", "r", np.eye(4), full_box(big.shape)))
    assert report_of("rim", "view.pt", real="rim.h5")["runs"][0]["accuracy"]["value"] == 1


# ---- what is refused ----


def test_a_report_of_others_is_kept(at):
    report_of("kept", "good.pt")
    report_of("kept", "good.pt")
    with pytest.raises(ValueError, match=r"--dest kept: holds a report of other volumes or another network \(1 run on"):
        report_of("kept", "blind.pt")
    assert report_of("kept", "blind.pt", overwrite=True)["runs"][0]["name"] == "blind.pt"
    Path("mine").mkdir()
    Path("mine/cases.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"--dest mine: holds cases\.csv"):
        report_of("mine", "good.pt")


@pytest.mark.parametrize(("runs", "options", "said"), [
    (["good.pt", "view.pt"], {}, r"these do not: good\.pt: labels: background, wall, blood; view\.pt: classes: A2C"),
    (["good.pt", "good.pt"], {}, r"good\.pt and good\.pt are one snapshot"),
    (["good.pt"], {"split": "tst"}, r"--split: real\.h5 has no split 'tst'; it has train, test \(or all\)"),
    (["good.pt"], {"real": "other.h5"}, r"--split: other\.h5 has no split test or val; it has train"),
    (["good.pt"], {"real": "plain.h5"}, r"--real: plain\.h5 has no label maps, which the runs predict"),
    (["view.pt"], {"real": "plain.h5"}, r"--real: classes of plain\.h5 are ED, ES, the runs predict A2C, A4C, PLAX"),
    (["ef.pt"], {"real": "plain.h5"}, r"has no case in split 'test' whose ef is known"),
    (["good.pt"], {"real": "colour.h5"}, r"--runs: good\.pt was trained on channels echo, colour\.h5 has colour"),
    (["good.pt"], {"real": "deep.h5"}, r"good\.pt was trained on images of 2 dimensions, those of deep\.h5 have 3"),
    (["gone"], {}, r"--runs=gone: no such file or folder"),
    (["plain.h5"], {}, r"--runs=plain\.h5: wanted a network-snapshot"),
    (["task.pt"], {}, r"--runs=task\.pt: task\.pt is of task diffusion; wanted a network trained with"),
    ([], {}, r"--runs: names no run"),
])
def test_what_cannot_be_tested_is_refused(at, runs, options, said):
    if not Path("plain.h5").exists():
        cube = np.stack([square((2, 2))] * 4)
        nothing = [("n", drawn(square((2, 2))), None, None, np.nan)]
        write(Path("plain.h5"), {"test": nothing}, labels=False, views=("ED", "ES"))
        write(Path("colour.h5"), {"test": toy_items("c", 2)}, channel="colour")
        write(Path("deep.h5"), {"test": [("d", drawn(cube), cube, 0, 1.0)]})
        good = Snapshot.read(Path("good.pt"))
        replace(good, task="diffusion", predicts=None).save(Path("task.pt"))
    with pytest.raises(ValueError, match=said):
        report_of("refused", *runs, **options)
    assert not Path("refused").exists() or not [*Path("refused").iterdir()]


def test_a_diverged_network_is_named(at):
    content = load(Path("good.pt"), "snapshot").content
    content["ema"] = {name: torch.full_like(weight, 3e38) for name, weight in content["ema"].items()}
    save(Path("wild.pt"), "snapshot", content)
    with pytest.raises(ValueError, match=r"wild\.pt: gives values that are not finite of invented"):
        report_of("wild", "wild.pt")


# ---- trained ----

TINY = ["network=dynunet", "training.network.filters=[4,4,4]", "training.network.strides=[1,2,2]",
        "training.network.kernel_size=[3,3,3]", "training.network.upsample_kernel_size=[2,2]", "augment=none",
        "training.network.res_block=false", "training.options.batch_size=2", "training.options.total_kimg=0.002",
        "training.options.kimg_per_tick=0.002", "training.options.num_threads=1", "training.options.device=cpu",
        "training.options.precision=fp32", "training.validation.max_items=0"]


def test_the_command_tests_what_was_trained(at):
    for seed in (0, 1):
        succeed(train.main, "-cn=echo3d_segmentation", "training.dataset.path=real.h5", *TINY,
                f"training.options.seed={seed}", f"training.options.desc=s{seed}")
    folders = sorted(Path("results").iterdir())
    said = succeed(main, "downstream", "--real", "real.h5", "--dest", "trained", "--runs", *map(str, folders))
    assert "Test      3 real cases of split 'test' of real.h5" in said
    row, = json.loads(Path("trained/report.json").read_text())["rows"]
    assert row["items"] == 6 and row["is_real"] and len(row["runs"]) == 2 and row["dice"]["std"] > 0
    assert "real.h5, real      6     2  0." in said
    newest = list_files(folders[1], "network-snapshot")[-1]
    said = refused(Path("trained"), main, "downstream", "--real", "real.h5", "--dest", "trained", "--runs",
                   "echo3d_segmentation", str(newest))
    assert said.endswith(f"echo3d_segmentation and {newest} are one snapshot ({newest}); name each once")
