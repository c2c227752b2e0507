"""What was asked for in the report: maps, classes by a classifier, image pairs, utility; answers known by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.prediction import Prediction
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.evaluate import ComparisonOptions, evaluate
from edm3d.inference.judges import open_lpips, slices_of
from edm3d.inference.licences import licences_of
from edm3d.metrics.image import psnr, ssim
from edm3d.metrics.overlap import dice, joint_dice
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.reference import Cases
from edm3d.reporting.section import CRITERIA, walk
from edm3d.reporting.sections import COMPARISON
from edm3d.reporting.sections.asked_maps import AskedMaps
from edm3d.reporting.sections.cycle import at_mix, ratio
from tests.test_evaluate_downstream import means, snapshot

LABELS, VIEWS, SIZE = ("background", "wall", "blood"), ("dark", "bright"), 16
COUNT = 8
KEPT = ComparisonOptions(split="all", num_noise=0, trust=True)


def square(i: int, value: int = 1) -> np.ndarray:
    """A label map [S,S] of a square of 6 voxels whose place goes by the number, with one of 2 voxels of the other."""
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[i:i + 6, i:i + 6], label[12:14, 2:4] = value, 3 - value
    return label


def level(i: int) -> np.ndarray:
    """An image [1,S,S] of its map, dark for even numbers and bright for odd ones."""
    rng = np.random.default_rng(i)
    image = np.array([0.1, 0.3, 0.4])[square(i)] + 0.5 * (i % 2) + rng.uniform(0, 0.05, (SIZE, SIZE))
    return image[None].astype(np.float32)


def write_real(path: Path, provenance: dict | None = None) -> Path:
    meta = VolumesMeta(2, ("echo",), ("target",), LABELS, ("ef",), ("%",), VIEWS, Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter(path, meta, provenance or {"kind": "toy", "licence": "cc-by-4.0"}) as writer:
        for i in range(COUNT):
            writer.add("test" if i > 1 else "train", Item(level(i), square(i), np.array([40.0 + i], np.float32), i % 2,
                                                          f"item-{i}", f"p{i}", np.eye(4), full_box((SIZE, SIZE))))
    return path


def write_drawn(path: Path, real: Path, ids: list[str] | None = None, **arrays: np.ndarray) -> Path:
    file = VolumesFile(real)
    facts = Facts(str(real), file.content_hash, ("echo",), LABELS, VIEWS, Intensity(0.0, 1.0, True, "a.u."),
                  (SIZE, SIZE), attribute_names=("ef",), attribute_units=("%",))
    sampling = {"num_steps": 3, "sampler": {"_target_": "samplers.ddim_sampler"}} | (
        {"conditions": {"source": str(real), "hash": "0" * 64, "ids": ids}} if ids else {})
    write_samples(path, range(len(arrays["images"])), arrays, np.eye(4),
                  SampleMeta(facts, "gone.pt", "12345678", sampling))
    return path


def arrays(shift: int = 0) -> dict[str, np.ndarray]:
    """Samples asked for by the maps of items 0 to 7, of which those of a shift have labels of other items."""
    return {"images": np.stack([level(i) + 0.01 for i in range(COUNT)]).astype(np.float32),
            "labels": np.stack([square((i + shift) % COUNT) for i in range(COUNT)]),
            "maps": np.stack([square(i) for i in range(COUNT)]), "classes": np.arange(COUNT) % 2,
            "attributes": np.arange(COUNT, dtype=np.float32)[:, None] + 40}


IDS = [f"item-{i}" for i in range(COUNT)]


class Apart(torch.nn.Module):
    """The mean absolute difference of two images, as LPIPS gives it: [N,1,1,1]."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


class One(torch.nn.Module):
    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a


class Features(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, b]).flatten(1)


class Far(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3)) + 1


def script(path: Path, net: torch.nn.Module) -> Path:
    torch.jit.script(net).save(str(path))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    real = write_real(folder / "real.h5")
    write_drawn(folder / "samples.h5", real, IDS, **arrays())
    script(folder / "lpips.pt", Apart())
    # "dark" below a mean of 0 in network units, the images are 0.1 to 0.3 and 0.6 to 0.8
    snapshot(folder / "judge.pt", str(real), means([-50.0, 50.0], [0.0, 0.0]), Prediction("classes", VIEWS))
    (folder / "down").mkdir()
    (folder / "down" / "report.json").write_text(json.dumps(downstream(real)))
    return folder


def downstream(real: Path) -> dict:
    """What a report of downstream networks holds."""
    def cell(value: float) -> dict:
        return {"mean": value, "std": None, "by_class": {}}

    def run(name: str, row: str, value: float) -> dict:
        return {"name": name, "path": f"{name}.pt", "hash": "ab" * 16, "kimg": 4.0, "seed": 0, "row": row,
                "dice": {"value": value, "low": value - 0.1, "high": value + 0.1, "used": 2000, "by_class": {}}}

    row = {"sources": ["x"], "items": 8, "is_real": True, "real_items": 8, "beside": None, "otherwise": []}
    return {"title": "2 runs", "date": "2026-01-02", "command": "x", "versions": {}, "definitions": {}, "notes": [],
            "real": {"path": str(real), "content_hash": VolumesFile(real).content_hash, "split": "test", "num": 6},
            "downstream": {"predicts": "labels: wall", "hashes": "ab", "precision": "fp32", "seed": 0},
            "rows": [{**row, "name": "real.h5", "runs": ["a"], "dice": cell(0.9)},
                     {**row, "name": "samples.h5", "runs": ["b"], "dice": cell(0.8), "is_real": False, "real_items": 0,
                      "beside": {"row": "real.h5", "dice": -0.1}}],
            "runs": [run("a", "real.h5", 0.9), run("b", "samples.h5", 0.8)]}


@pytest.fixture(scope="module")
def result(here):
    return evaluate(here / "real.h5", here / "samples.h5", here / "report", KEPT._replace(
        classifier=str(here / "judge.pt"), lpips=here / "lpips.pt", downstream=here / "down"))


# ---- maps ----


def test_dice_of_maps_whose_values_mean_other_things():
    a = np.array([[1, 1, 2, 0]])
    assert joint_dice(a, np.array([[3, 0, 3, 0]]), [(1, 3), (2, 3), (4, 5)]).tolist() == pytest.approx(
        [0.5, 2 / 3, np.nan], nan_ok=True)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 3, (2, 8, 8))
    np.testing.assert_allclose(joint_dice(one, other, [(k, k) for k in range(3)]), dice(one, other, 3))
    with pytest.raises(ValueError, match="wanted one shape"):
        joint_dice(a, a.T, [(1, 1)])


def test_drawn_maps_that_are_those_asked_for_and_their_floor(result):
    part = result["asked_maps"]
    assert (part["num"], part["maps"], part["floor_num"]) == (COUNT, COUNT, COUNT)
    assert part["mean"]["dice"] == part["mean"]["low"] == part["by_class"]["wall"]["dice"] == 1
    assert part["by_class"]["wall"]["floor"] < 0.9 and part["by_class"]["wall"]["floor_high"] < 1
    assert part["by_class"]["blood"]["floor"] == pytest.approx(1)  # its square is in one place in all maps
    assert not part["ceiling"]["available"] and part["mean"]["ceiling"] is None


def test_maps_of_others_are_found_out_and_nothing_vanishes(here, tmp_path):
    write_drawn(tmp_path / "off.h5", here / "real.h5", IDS, **arrays(shift=1))
    part = evaluate(here / "real.h5", tmp_path / "off.h5", tmp_path / "out", KEPT)["asked_maps"]
    expected = np.mean([dice(square((i + 1) % COUNT), square(i), 3)[1] for i in range(COUNT)])
    assert part["by_class"]["wall"]["dice"] == pytest.approx(expected)
    assert part["by_class"]["wall"]["low"] < expected < part["by_class"]["wall"]["high"]
    less = {k: v for k, v in arrays().items() if k in ("images", "labels")}
    write_drawn(tmp_path / "free.h5", here / "real.h5", None, **less)
    found = evaluate(here / "real.h5", tmp_path / "free.h5", tmp_path / "free", KEPT)
    page = (tmp_path / "free" / "report.html").read_text()
    for key, why in (("asked_maps", "no maps asked"), ("cycle", "--classifier"), ("utility", "--downstream"),
                     ("pairs", "no rows of a file asked")):
        assert not found[key]["available"] and why in found[key]["reason"] and why in page


def held(name: str, label: np.ndarray, semantic: np.ndarray) -> DecodedCase:
    """A held-out volume that comes back with a label map."""
    return DecodedCase(Case(name, level(0), semantic, semantic=semantic), Case(name, level(0), label))


def test_the_ceiling_is_what_a_first_stage_gives_back_of_maps():
    layout = Layout(("echo",), LABELS, (1.0, 1.0), 0.0, 1.0, "")
    drawn = [Case(f"seed-{i}", level(i), square(i), semantic=square(i)) for i in range(2)]
    cases = Cases("", 2, drawn.__getitem__)
    context = Comparison(layout=layout, provenance={}, real=cases, generated=cases,
                         told={"generated": ("background", "blood", "wall"), "real": LABELS})
    section, back = AskedMaps(), [held("a", square(0), square(0)), held("b", square(3), square(0))]
    found = section.compute(walk([section], context, {"generated": drawn, "decoded": back}).found[0], context)
    part = found["asked_maps"]
    overlap = dice(square(3), square(0), 3)[1:]
    assert part["ceiling"] == {"available": True, "num": 2}
    assert part["by_class"]["wall"]["ceiling"] == pytest.approx((1 + overlap[0]) / 2)
    assert part["mean"]["ceiling"] == pytest.approx((1 + overlap.mean()) / 2)
    swapped = joint_dice(square(0), square(0), [(1, 2), (2, 1)])  # the names of maps stand in another order
    assert part["mean"]["dice"] == pytest.approx(swapped.mean()) == 0


# ---- classes ----


def test_classes_that_a_classifier_finds_beside_real_ones(here, result, tmp_path):
    part = result["cycle"]
    assert part["accuracy"] == part["real"]["accuracy"] == part["ratio"] == 1 and part["floor"] == 0.5
    assert part["confusion"]["generated"] == [[4, 0], [0, 4]] and part["low"] == pytest.approx(0.676, abs=1e-3)
    wrong = arrays() | {"classes": np.array([0, 0, 0, 1, 0, 1, 0, 1])}  # the second is bright, asked for as dark
    write_drawn(tmp_path / "wrong.h5", here / "real.h5", IDS, **wrong)
    part = evaluate(here / "real.h5", tmp_path / "wrong.h5", tmp_path / "out",
                    KEPT._replace(classifier=str(here / "judge.pt")))["cycle"]
    assert part["accuracy"] == 7 / 8 and part["confusion"]["generated"] == [[4, 1], [0, 3]]
    assert part["by_class"]["dark"] == {"num": 5, "generated": 0.8, "real": 1}
    assert part["ratio"] == 7 / 8 and part["ratio_low"] < 7 / 8 < part["ratio_high"] + 1e-9
    assert part["floor"] == pytest.approx((5 * 4 + 3 * 4) / 64)


def test_real_accuracy_is_of_the_mix_that_was_asked_for():
    """Real: 9 of 10 of the first class are found, 5 of 10 of the second; asked for three to one."""
    asked, real = np.array([[3, 0], [1, 0]]), np.array([[9, 1], [5, 5]])
    assert at_mix(asked[None], real[None])[0] == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)
    assert ratio(asked, real, 0)["ratio"] == pytest.approx(0.75 / 0.8)
    assert ratio(asked, np.array([[9, 1], [0, 0]]), 0)["ratio"] is None


def test_an_attribute_from_a_threshold_on(here, tmp_path):
    by_ef = Prediction("attribute", ("low", "high"), "ef", "%", 44.0)
    snapshot(tmp_path / "ef.pt", str(here / "real.h5"), means([-50.0, 50.0], [0.0, 0.0]), by_ef)
    part = evaluate(here / "real.h5", here / "samples.h5", tmp_path / "out",
                    KEPT._replace(classifier=str(tmp_path / "ef.pt")))["cycle"]
    assert part["confusion"] == {"generated": [[2, 2], [2, 2]], "real": [[2, 2], [2, 2]]}


@pytest.mark.parametrize(("predicts", "net", "said"), [
    (Prediction("classes", ("dark", "grey")), None, "classes dark, grey, .* has dark, bright"),
    (Prediction("attribute", ("low", "high"), "age", "a", 3.0), None, "predicts age, the attributes of"),
    (Prediction("attribute", ("low", "high"), "ef", "mL", 3.0), None, "ef is in mL .* and in % in"),
    (Prediction("labels", LABELS), torch.nn.Conv2d(1, 3, 1), "is a segmenter"),
])
def test_classifiers_of_other_things_are_refused_before_anything_is_measured(here, tmp_path, predicts, net, said):
    snapshot(tmp_path / "x.pt", str(here / "real.h5"), net or means([1.0, 2.0], [0.0, 0.0]), predicts)
    with pytest.raises(ValueError, match=f"--classifier.*{said}"):
        evaluate(here / "real.h5", here / "samples.h5", tmp_path / "out",
                 KEPT._replace(classifier=str(tmp_path / "x.pt")))
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").glob("*.json")]


# ---- pairs ----


def test_pairs_are_a_sample_and_the_volume_that_asked(result):
    part, real = result["pairs"], [level(i)[0] for i in range(COUNT)]
    drawn = arrays()["images"][:, 0]
    assert (part["num"], part["of"], part["real"]) == (COUNT, COUNT, COUNT)
    assert part["psnr_db"]["value"] == pytest.approx(np.mean([psnr(d, r, 1.0) for d, r in zip(drawn, real)]))
    assert part["psnr_db"]["value"] == pytest.approx(40, abs=1e-3) and part["psnr_db"]["floor"] < 20
    assert part["ssim"]["value"] == pytest.approx(np.mean([ssim(d, r, 1.0) for d, r in zip(drawn, real)]))
    assert part["lpips"]["floor"] > part["lpips"]["value"] == pytest.approx(0.02 * SIZE**2 / 32**2, rel=1e-3)
    assert "middle half" in part["lpips"]["slices"]


def test_an_id_alone_makes_no_pair(here, tmp_path):
    """The same ids, but the maps of others asked: rows of another file."""
    other = arrays() | {"maps": np.roll(arrays()["maps"], 1, axis=0)}
    write_drawn(tmp_path / "other.h5", here / "real.h5", IDS, **other)
    part = evaluate(here / "real.h5", tmp_path / "other.h5", tmp_path / "out", KEPT)["pairs"]
    assert not part["available"] and "not the maps of these" in part["reason"]
    write_drawn(tmp_path / "told.h5", here / "real.h5", IDS, **{k: v for k, v in arrays().items() if k != "maps"})
    part = evaluate(here / "real.h5", tmp_path / "told.h5", tmp_path / "told", KEPT)["pairs"]
    assert not part["available"] and "no maps and no images" in part["reason"]


def write_shown(path: Path, shown: Callable[[int], np.ndarray]) -> Path:
    """Real volumes of two channels, of which the second is a condition image."""
    meta = VolumesMeta(2, ("t2", "t1"), ("target", "condition"), (), (), (), (), Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "toy"}) as writer:
        for i in range(COUNT):
            writer.add("test", Item(np.concatenate([level(i), shown(i)]), None, None, None, f"item-{i}", f"p{i}",
                                    np.eye(4), full_box((SIZE, SIZE))))
    return path


def test_pairs_of_condition_images_are_those_of_the_images_that_asked(tmp_path):
    """Item i is shown 1 - its image; what is drawn of it is its image and 0.01. A file of other images asks nobody."""
    real = write_shown(tmp_path / "real.h5", lambda i: 1 - level(i))
    file = VolumesFile(real)
    facts = Facts(str(real), file.content_hash, ("t2",), intensity=Intensity(0.0, 1.0, True, "a.u."),
                  spatial_shape=(SIZE, SIZE), condition_channels=("t1",))
    order = [3, 0, 5, 1]
    drawn = {"images": np.stack([level(i) + 0.01 for i in order]), "cond_images": np.stack([1 - level(i)
                                                                                          for i in order])}
    ids = [f"item-{i}" for i in order]
    write_samples(tmp_path / "samples.h5", range(4), drawn, np.eye(4), SampleMeta(
        facts, "gone.pt", "12345678", {"conditions": {"source": str(real), "hash": "0" * 64, "ids": ids}}))
    part = evaluate(real, tmp_path / "samples.h5", tmp_path / "out", KEPT)["pairs"]
    assert (part["num"], part["of"], part["real"]) == (4, 4, 4)
    assert part["psnr_db"]["value"] == pytest.approx(40, abs=1e-3) and part["psnr_db"]["floor"] < 20
    other = write_shown(tmp_path / "other.h5", lambda i: level(i))
    part = evaluate(other, tmp_path / "samples.h5", tmp_path / "others", KEPT)["pairs"]
    assert not part["available"] and "what asked is not the images of these" in part["reason"]


@pytest.mark.parametrize(("net", "said"), [(One(), "takes 1 inputs"), (Features(), "wanted a distance of each"),
                                           (Far(), "from themselves"), (None, "cannot be read as TorchScript")])
def test_what_is_no_distance_of_two_images_is_refused(tmp_path, net, said):
    path = tmp_path / "x.pt"
    path.write_bytes(b"no") if net is None else script(path, net)
    with pytest.raises(ValueError, match=rf"--lpips .*x\.pt.*{said}"):
        open_lpips(path)


def test_slices_are_of_three_planes_and_grey():
    volume = np.random.default_rng(0).uniform(size=(2, 12, 20, 40)).astype(np.float32)
    found = slices_of(volume)
    assert found.shape == (2 * 3 * 4, 3, 40, 40) and (found[:, 0] == found[:, 2]).all()
    np.testing.assert_allclose(found[0, 0, 10:30], volume[0, 3] * 2 - 1, rtol=1e-6)


# ---- utility, provenance, scorecard ----


def test_the_table_of_downstream_networks_is_taken_over(here, result):
    page = (here / "report" / "report.html").read_text()
    assert [row["dice"]["mean"] for row in result["utility"]["rows"]] == [0.9, 0.8]
    assert "0.800 [0.700, 0.900]" in page and result["utility"]["sha256"][:16] in page and "2026-01-02" in page
    figures = result["scorecard"]["consistency"]["figures"]
    assert any(row["value"] == 0.8 and row["real"] == 0.9 for row in figures)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("rows", [], "rows is empty"), ("downstream", None, "downstream is None"), ("real", {"path": "x"}, "missing"),
    ("runs", [], "runs that are not among"), ("rows", [{"name": 3}], "name is 3"), ("date", 5, "date is 5")])
def test_other_files_are_no_report_of_downstream_networks(here, tmp_path, key, value, said):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(downstream(here / "real.h5") | {key: value}))
    with pytest.raises(ValueError, match=rf"report\.json.*{said}"):
        evaluate(here / "real.h5", here / "samples.h5", tmp_path / "out", KEPT._replace(downstream=path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"--downstream .*is no report of downstream networks"):
        evaluate(here / "real.h5", here / "samples.h5", tmp_path / "out", KEPT._replace(downstream=tmp_path))


def test_terms_are_as_files_state_them_and_nothing_is_made_up(tmp_path, here, result):
    assert result["licences"] == {"real data": "cc-by-4.0", "weights": "not stated", "training data": "not stated"}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nLicence of the data: cc-by-nc-4.0. File `a`")
    assert licences_of({"license": 3}, tmp_path) == {"real data": "not stated", "weights": "apache-2.0",
                                                     "training data": "cc-by-nc-4.0"}
    for front in ("---\nlicense: [a]\n---\n", "---\n{{{\n---\n", "---\n", "\x00"):
        (tmp_path / "README.md").write_text(front)
        assert set(licences_of({}, tmp_path).values()) == {"not stated"}


def test_what_is_used_is_cited_and_no_more(result):
    assert set(result["citations"]) == {"EDM", "DDIM", "MONAI", "SSIM", "MS-SSIM", "LPIPS", "utility", "cycle accuracy",
                                        "scorecard"}
    assert "latent diffusion" not in result["citations"]


def test_the_scorecard_has_all_criteria_each_with_figures_or_a_reason(here, result):
    card = result["scorecard"]
    assert list(card) == list(CRITERIA)
    assert all(part.get("figures") or part["reason"] for part in card.values())
    figures = {row["name"]: row for part in card.values() if part["available"] for row in part["figures"]}
    assert figures["copies of training volumes"]["said"] == "not measured in this report"
    assert figures["Dice to the map asked for"]["value"] == 1 and figures["cycle accuracy"]["floor"] == 0.5
    assert figures["licence of the weights"]["said"] == "not stated"
    assert "7 of 7" not in (here / "report" / "report.html").read_text()  # nothing is added up


def test_every_section_gives_its_figures_to_criteria_that_there_are(result):
    for section in COMPARISON:
        assert set(section.scores(result)) <= set(CRITERIA)
    json.dumps(result, allow_nan=False)
