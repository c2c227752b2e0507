"""evaluate.py on small files: phantoms as good samples, shrunken and copied ones as bad, optional parts missing."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

from edm3d.formats import h5
from edm3d.formats.facts import Facts, LatentScaling, rows_of
from edm3d.formats.feature_cache import FeatureCache
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference import evaluate
from edm3d.inference.compared import ranges, shared_layout
from edm3d.inference.decoded import find_first_stage, noise_cases, reconstruct
from edm3d.inference.evaluate import ComparisonOptions
from edm3d.inference.features import FeaturePass
from edm3d.inference.snapshot import CarriedStage, Snapshot, network_hash
from edm3d.networks.tiles import InSlabs
from edm3d.physics.phantom_kinds import EchoPhantoms
from edm3d.physics.phantoms import ATTRIBUTES, LABEL_CLASSES, echo_phantom, phantom_affine
from edm3d.reporting import reference, sections
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison, text
from edm3d.reporting.html import html_figure
from edm3d.reporting.section import Section, walk
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.scalars import Numbers, Scalars
from edm3d.utils import checkpoint
from edm3d.utils.config import build
from evaluate import main
from tests.commands import refused

SIZE = 28  # the least for three scales of MS-SSIM
SEED = 5


def write_phantoms(path: Path, dims: int = 3, labels: bool = True, kind: str = "phantom", count: int = 8,
                   without: int | None = None) -> Path:
    """A volumes file of phantoms, a quarter of them in the test split; `without` is a label that none of them has."""
    meta = VolumesMeta(dims, ("echo",), ("target",), LABEL_CLASSES if labels else (), tuple(n for n, _ in ATTRIBUTES),
                       tuple(u for _, u in ATTRIBUTES), (), Intensity(0.0, 1.0, True, "echo"))
    provenance = {"kind": kind, "size": SIZE, "seed": SEED, "spatial_dims": dims, "pairs": False, "num": count}
    with VolumesWriter(path, meta, provenance) as writer:
        for i in range(count):
            p = echo_phantom(i, seed=SEED, size=SIZE, spatial_dims=dims)
            label = np.where(p.label == without, 0, p.label).astype(np.uint8) if labels else None
            item = Item(p.image[None], label, p.attributes.astype(np.float32), None,
                        f"phantom-{i:06d}", str(i), phantom_affine(SIZE, dims), full_box((SIZE,) * dims))
            writer.add("train" if i < count * 3 // 4 else "test", item)
    return path


def write_snapshot(path: Path, facts: Facts, first_stage: bool = True, seed: int = 0) -> str:
    """A diffusion snapshot with an untrained autoencoder; returns the hash that samples record."""
    stage = None
    if first_stage:
        node = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "num_classes": 4,
                "latent_channels": 2, "spatial_dims": 3, "channels": [4, 4], "num_blocks": 1, "num_blocks_decoder": 1}
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the same network whichever tests ran before
            weights = build(node).state_dict()
        stage = CarriedStage(LatentScaling([0.0, 0.0], [1.0, 1.0]), node, weights, network_hash(node, weights))
    Snapshot("diffusion", {}, facts, (2, *[14] * len(facts.spatial_shape)), stage).save(path)
    return Snapshot.read(path).hash


def describe(dims: int = 3, labels: bool = True) -> Facts:
    """What snapshots and samples say about the phantoms."""
    return Facts("", "", ("echo",), LABEL_CLASSES if labels else (), intensity=Intensity(0.0, 1.0, True, "echo"),
                 spatial_shape=(SIZE,) * dims, affine=rows_of(phantom_affine(SIZE, dims)))


def phantom_arrays(count: int, dims: int = 3, seed: int = 77) -> dict[str, np.ndarray]:
    """Phantoms of another seed, to be passed off as samples."""
    phantoms = [echo_phantom(i, seed=seed, size=SIZE, spatial_dims=dims) for i in range(count)]
    return {"images": np.stack([p.image[None] for p in phantoms]), "labels": np.stack([p.label for p in phantoms])}


def write(path: Path, arrays: dict[str, np.ndarray], snapshot: str = "gone.pt", snapshot_hash: str = "0",
          data: dict | None = None, dims: int = 3) -> Path:
    """A samples file; rows have seeds 0, 1, ..."""
    meta = SampleMeta(data or describe(dims, "labels" in arrays), snapshot, snapshot_hash, {"num_steps": 18})
    write_samples(path, range(len(next(iter(arrays.values())))), arrays, phantom_affine(SIZE, dims), meta)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real volumes, a snapshot, and samples that are true phantoms."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_phantoms(folder / "echo.h5")
    snapshot_hash = write_snapshot(folder / "snapshot.pt", describe())
    write(folder / "samples.h5", phantom_arrays(24), str(folder / "snapshot.pt"), snapshot_hash)
    return folder


@pytest.fixture(scope="module")
def result(folder):
    """The report of good samples, against 40 fresh phantoms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "FRESH_PHANTOMS", 40)
        return evaluate.evaluate(folder / "echo.h5", folder / "samples.h5", folder / "report",
                                 ComparisonOptions(num_noise=6))


def test_true_phantoms_are_within_the_floor_and_noise_is_not(result):
    for name in ("lv_volume", "la_volume", "myocardium_volume", "wall_thickness"):
        row = result["metrics"][name]
        assert row["ks"] <= row["floor_p99"] < 0.5, name
        assert row["noise"] > row["floor_p99"], name
    assert result["shares"]["cavity_enclosed"]["generated"] > 0.95
    assert result["shares"]["cavity_enclosed"]["noise"] == 0
    for channel in ("intensity", "spectrum"):
        assert result[channel]["echo"]["noise"] > result[channel]["echo"]["floor_p99"]
    row = result["ms_ssim"]["echo"]
    assert row["generated_mean"] == pytest.approx(row["real_mean"], abs=0.05)


def test_reference_is_fresh_phantoms_of_the_next_seed(result):
    assert result["real"]["num"] == 40 and f"seed {SEED + 1}" in result["real"]["reference"]
    fresh = reference.fresh_phantoms(reference.Origin(EchoPhantoms(SIZE, 3, False), SEED)).case(3)
    np.testing.assert_array_equal(fresh.label, echo_phantom(3, seed=SEED + 1, size=SIZE).label)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"size": 10 ** 9}, r"size=1000000000 and"), ({"size": "28"}, r"provenance\.size is '28', wanted int"),
    ({"size": None}, r"provenance\.size"), ({"seed": [1]}, r"provenance\.seed"), ({"pairs": 3}, r"provenance\.pairs"),
    ({"spatial_dims": 2}, "spatial_dims=2"), ({"seed": float("nan")}, "provenance.seed")])
def test_what_a_file_says_of_its_phantoms_is_checked_before_any_is_made(tmp_path, wrong, said):
    file = VolumesFile(write_phantoms(tmp_path / "echo.h5", count=2))
    file.provenance.update(wrong)
    with pytest.raises(ValueError, match=rf"echo\.h5: .*{said}"):
        reference.choose_reference(file, "auto", [0])
    assert reference.choose_reference(file, "all", [0]).length == 2
    case = reference.file_volumes(file, "all", [0]).case(0)
    with pytest.raises(ValueError, match=rf"phantom-000000: .*{said}"):
        reference.speckle_free(case, file.provenance)


def test_first_stage_and_the_ceiling_of_speckle(result):
    part = result["first_stage"]
    assert (part["split"], part["num"]) == ("test", 2)
    phantoms = [echo_phantom(i, seed=SEED, size=SIZE) for i in (6, 7)]
    ceiling = np.mean([10 * np.log10(1 / np.mean((p.image - p.clean) ** 2.0)) for p in phantoms])
    assert part["ceiling"]["psnr_db"] == pytest.approx(ceiling, abs=1e-3)
    assert part["ceiling"]["gap_db"] == pytest.approx(ceiling - part["psnr_db"], abs=1e-3)
    assert set(part["dice"]) == {"cavity", "myocardium", "atrium"}


def test_files_of_the_report(folder, result):
    dest = folder / "report"
    assert {p.name for p in dest.iterdir()} == {"report.json", "report.html", "cases.csv", "figures"}
    assert json.loads((dest / "report.json").read_text()) == result
    rows = list(csv.DictReader((dest / "cases.csv").open()))
    assert [sum(r["set"] == name for r in rows) for name in ("real", "generated", "noise")] == [40, 24, 6]
    assert [r["seed"] for r in rows if r["set"] == "generated"][:3] == ["0", "1", "2"]
    first = echo_phantom(0, seed=77, size=SIZE).label
    volume = next(float(r["lv_volume"]) for r in rows if r["set"] == "generated")
    assert volume == pytest.approx((first == 1).sum() * (128 / SIZE) ** 3 / 1000, rel=1e-5)
    assert result["generated"]["seeds"] == "0-23"


def test_shrunken_and_copied_samples_are_found_out(folder, tmp_path, capsys):
    good = phantom_arrays(12)
    labels = np.zeros_like(good["labels"])
    labels[:, ::2, ::2, ::2] = 0
    half = SIZE // 2
    labels[:, :half, :half, :half] = good["labels"][:, ::2, ::2, ::2]  # an eighth of the volume
    write(tmp_path / "bad.npz", {"images": np.repeat(good["images"][:1], 12, axis=0), "labels": labels})
    found = evaluate.evaluate(folder / "echo.h5", tmp_path / "bad.npz", tmp_path / "out",
                              ComparisonOptions(split="all"))
    assert found["metrics"]["lv_volume"]["ks"] == 1 and found["metrics"]["wall_thickness"]["ks"] > 0.9
    assert found["ms_ssim"]["echo"]["generated_mean"] == pytest.approx(1, abs=1e-4)
    assert "includes volumes the networks were trained on" in found["real"]["reference"]
    assert found["real"]["num"] == 8
    for part in ("noise", "first_stage"):
        assert not found[part]["available"] and "gone.pt" in found[part]["reason"]
    out = capsys.readouterr().out
    assert "First stage: not available" in out and "lv_volume [mL]" in out
    assert str(tmp_path / "out" / "report.html") in out.splitlines()[-1]


def test_images_without_labels_in_2d(tmp_path):
    write_phantoms(tmp_path / "slices.h5", dims=2, labels=False, kind="prepare", count=12)
    snapshot_hash = write_snapshot(tmp_path / "voxels.pt", describe(2, False), first_stage=False)
    images = phantom_arrays(6, dims=2)["images"]
    write(tmp_path / "samples.h5", {"images": images}, str(tmp_path / "voxels.pt"), snapshot_hash, dims=2)
    found = evaluate.evaluate(tmp_path / "slices.h5", tmp_path / "samples.h5", tmp_path / "out")
    assert set(found["metrics"]) == {"intensity_mean", "intensity_std"} and found["shares"] == {}
    assert found["ms_ssim"]["echo"]["available"] and found["spectrum"]["echo"]["distance"] > 0
    assert "draws voxels" in found["noise"]["reason"]
    assert found["real"]["num"] == 12  # 3 held-out slices are too few
    assert found["generated"]["labels"]["reason"].startswith("neither the samples nor the real volumes have label maps")


def test_samples_without_label_maps_of_labelled_data_are_said_to_be(folder, tmp_path):
    images = phantom_arrays(4)["images"]
    write(tmp_path / "samples.h5", {"images": images}, data=describe())
    found = evaluate.evaluate(folder / "echo.h5", tmp_path / "samples.h5", tmp_path / "out",
                              ComparisonOptions(split="test"))
    assert "no label maps" in found["generated"]["labels"]["reason"]
    assert "Label maps: not available" in (tmp_path / "out" / "report.html").read_text()


def test_real_volumes_are_cropped_and_padded_as_encode_did(folder, tmp_path):
    """Samples that are the test volumes, 4 voxels less along one axis and 4 more of air along another."""
    images, labels = phantom_arrays(2).values()
    moved = [np.pad(a[..., 2:-2, :, :], [(0, 0)] * (a.ndim - 2) + [(2, 2), (0, 0)]) for a in (images, labels)]
    write(tmp_path / "samples.h5", dict(zip(("images", "labels"), moved)))
    file = VolumesFile(folder / "echo.h5")
    cases = reference.file_volumes(file, "test", [0]).fitted(moved[0].shape[2:], 0.0)
    assert cases.case(0).image.shape == (1, SIZE - 4, SIZE + 4, SIZE) and "cropped or padded" in cases.description
    whole = file.read("test", 0)
    np.testing.assert_array_equal(cases.case(0).image[:, :, 2:-2], whole.image[:, 2:-2])
    np.testing.assert_array_equal(cases.case(0).label[:, 2:-2], whole.label[2:-2])
    assert cases.case(0).image[:, :, :2].max() == 0 and cases.case(0).label[:, -2:].max() == 0
    found = evaluate.evaluate(folder / "echo.h5", tmp_path / "samples.h5", tmp_path / "out",
                              ComparisonOptions(split="test"))
    assert f"centrally to {SIZE - 4} x {SIZE + 4} x {SIZE}" in found["real"]["reference"]


def test_another_snapshot_is_not_taken_for_the_one_that_drew(folder, tmp_path):
    write_snapshot(tmp_path / "other.pt", describe(), seed=1)
    found = evaluate.evaluate(folder / "echo.h5", folder / "samples.h5", tmp_path / "out",
                              ComparisonOptions(split="test", snapshot=tmp_path / "other.pt"))
    assert "hash differs" in found["first_stage"]["reason"]


@pytest.mark.parametrize(("changes", "arguments", "message"), [
    ({}, ["--real", "gone.h5"], "gone.h5"),
    ({}, ["--generated", "gone.h5"], "gone.h5"),
    ({}, ["--split", "validation"], "no volume in split 'validation'"),
    ({"channels": ("t1",)}, [], "channels t1 are not in"),
    ({"label_classes": ("background", "liver")}, [], "label classes"),
    ({"intensity": Intensity(-1.0, 1.0, True, "")}, [], "intensity range"),
])
def test_what_does_not_fit_is_one_line(folder, tmp_path, changes, arguments, message):
    write(tmp_path / "samples.h5", phantom_arrays(2), data=replace(describe(), **changes))
    given = {"--real": str(folder / "echo.h5"), "--generated": str(tmp_path / "samples.h5"),
             "--dest": str(tmp_path / "out"), **dict([arguments] if arguments else [])}
    answer = CliRunner().invoke(main, [part for pair in given.items() for part in pair])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("Error: ") and message in answer.stderr and answer.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_real_volumes_of_several_voxel_sizes_are_refused(tmp_path):
    path = write_phantoms(tmp_path / "mixed.h5")
    with h5py.File(path, "r+") as file:
        file["test/affines"][1] = phantom_affine(SIZE // 2)
        h5.seal(file)
    write(tmp_path / "samples.h5", phantom_arrays(2))
    with pytest.raises(ValueError, match=r"mixed\.h5.*phantom-000007.*--spacing"):
        evaluate.evaluate(path, tmp_path / "samples.h5", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = evaluate.evaluate(path, tmp_path / "samples.h5", tmp_path / "out",
                              ComparisonOptions(num_noise=0, ignore_spacing=True, planes=("none",)))
    assert "in voxels of the samples' size" in found["real"]["reference"]


def test_samples_of_another_voxel_size_are_refused_with_what_helps(folder, tmp_path):
    write_samples(tmp_path / "s.npz", range(2), phantom_arrays(2), np.diag([3.0, 3, 3, 1]),
                  SampleMeta(describe(), "gone.pt", "0", {}))
    with pytest.raises(ValueError, match=r"voxels of \[3\. 3\. 3\.\] mm .* with --spacing, or --ignore-spacing"):
        shared_layout(SamplesFile(tmp_path / "s.npz"), VolumesFile(folder / "echo.h5"), False)


class Brighter:
    """A first stage that gives back what it got, the image brighter by 0.1."""

    device = torch.device("cpu")

    def encode(self, images, labels, semantic=None):
        return images, labels

    def decode(self, latents, semantic=None):
        return latents[0] + 0.1, latents[1]


def test_class_that_no_held_out_volume_has_is_left_out(tmp_path):
    file = VolumesFile(write_phantoms(tmp_path / "echo.h5", kind="prepare", without=3))
    held = reference.file_volumes(file, "test", [0])
    layout = Layout(("echo",), LABEL_CLASSES, (4.0, 4.0, 4.0), 0.0, 1.0, "")
    context = Comparison(layout=layout, provenance=file.provenance, real=held, generated=held, held_out="test")
    decoded = reconstruct(Brighter(), held, 2, layout)
    section = HeldOut()
    found = section.compute(walk([section], context, {"decoded": decoded}).found[0], context)
    part = found["first_stage"]
    assert part["dice"] == part["dice_min"] == {"cavity": 1.0, "myocardium": 1.0, "atrium": None}
    assert part["psnr_db"] == pytest.approx(20, abs=1e-3) and part["num"] == 2
    assert "Dice cavity 1.000, myocardium 1.000, atrium -; PSNR 20.00 dB" in text(
        [section], {"real": {"reference": "x"}, **found})


def test_latents_alone_cannot_be_evaluated(folder, tmp_path):
    write(tmp_path / "samples.h5", {"latents": np.zeros((2, 2, 14, 14, 14), np.float32)})
    with pytest.raises(ValueError, match=r"sampling\.decode=true"):
        evaluate.evaluate(folder / "echo.h5", tmp_path / "samples.h5", tmp_path / "out")


# ---- the first stage that decoded the samples ----


GREY = Layout(("echo",), (), (1.0, 1.0), 0.0, 1.0, "")


class Bare:
    """A first stage that shows its latents, and remembers where they lay."""

    net, facts = SimpleNamespace(latent_shape=lambda size: (1, *size)), Facts("", "", spatial_shape=(20, 20))

    def __init__(self, device="cpu"):
        self.device, self.devices = torch.device(device), set()

    def noise(self, eps):
        return eps * 0.5

    def decode(self, latents, semantic=None):
        self.devices.add(latents.device.type)
        return torch.empty_like(latents, device="cpu") if latents.is_meta else latents, None


def test_noise_has_the_spread_of_latents_and_depends_on_the_seed_alone():
    images = [np.stack([case.image for case in noise_cases(Bare(), 11, 3, GREY)])
              for _ in range(2)]
    assert images[0].shape == (11, 1, 20, 20)
    assert images[0].std() == pytest.approx(0.5, rel=0.05) and abs(images[0].mean()) < 0.05
    np.testing.assert_array_equal(*images)


def test_noise_is_decoded_on_the_device_that_was_chosen():
    stage = Bare("meta")
    assert len(list(noise_cases(stage, 3, 0, GREY))) == 3
    assert stage.devices == {"meta"}


@pytest.mark.parametrize("tiles", [{}, {"tile": [16, 16, 16], "tile_overlap": 0.5, "tile_mode": "exact"}])
def test_noise_is_decoded_in_the_tiles_of_the_samples(folder, tmp_path, monkeypatch, tiles):
    """The parts that decode, and the weights' device, as the search for the first stage leaves them."""
    monkeypatch.setattr(evaluate, "best_device", lambda: torch.device("meta"))
    snapshot_hash = SamplesFile(folder / "samples.h5").meta.snapshot_hash
    meta = SampleMeta(describe(), str(folder / "snapshot.pt"), snapshot_hash, {"num_steps": 18, **tiles})
    write_samples(tmp_path / "samples.h5", range(2), phantom_arrays(2), phantom_affine(SIZE), meta)
    stages = []
    monkeypatch.setattr(evaluate, "feature_pass", lambda *_: FeaturePass([], None, {}, {}, None, FeatureCache(None)))
    monkeypatch.setattr(evaluate, "noise_cases", lambda stage, *_: stages.append(stage) or iter([]))
    with pytest.raises(ValueError, match="set of noise ones is empty"):
        evaluate.evaluate(folder / "echo.h5", tmp_path / "samples.h5", tmp_path / "out",
                          ComparisonOptions(split="test"))
    decoder = stages[0].net.decoder
    assert isinstance(decoder, InSlabs) is bool(tiles)
    assert {p.device.type for p in stages[0].net.parameters()} == {"meta"}
    assert not tiles or decoder.voxels == 16 ** 3


def test_snapshot_that_does_not_carry_its_first_stage_is_a_reason(folder, tmp_path):
    whole = Snapshot.read(folder / "snapshot.pt")
    replace(whole, first_stage=CarriedStage(whole.first_stage.scaling)).save(tmp_path / "bare.pt")
    snapshot_hash = Snapshot.read(tmp_path / "bare.pt").hash
    samples = SamplesFile(write(tmp_path / "s.h5", phantom_arrays(2), str(tmp_path / "bare.pt"), snapshot_hash))
    stage, reason = find_first_stage(samples, None, False, torch.device("cpu"))
    assert stage is None and "does not carry" in reason


def test_snapshot_is_read_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "load", lambda *args, whole=checkpoint.load: read.append(args) or whole(*args))
    samples = SamplesFile(folder / "samples.h5")
    stage, reason = find_first_stage(samples, None, False, torch.device("cpu"))
    assert stage is not None and not reason and len(read) == 1


# ---- the command line ----


@pytest.mark.parametrize(("kind", "option"), [
    *(("--generated", option) for option in (
        "--num=64", "--tile=8,8,8", "--tile-overlap=0.25", "--tile-mode=blend", "--min-psnr=20")),
    *(("--autoencoder", option) for option in ("--seed=0", "--snapshot=s.pt", "--num-noise=64", "--ignore-spacing",
                                                "--classifier=c", "--lpips=l.pt", "--downstream=d",
                                                "--planes=axial", "--min-samples=256")),
])
def test_option_of_the_other_report_is_refused_by_name(tmp_path, kind, option):
    line = refused(tmp_path, main, "--real", "r.h5", kind, "x", "--dest", str(tmp_path / "out"), option)
    other = {"--generated": "--autoencoder", "--autoencoder": "--generated"}[kind]
    assert line.startswith(f"Error: {option.partition('=')[0]}: an option of {other}")


@pytest.mark.parametrize("option", ["--planted=100", "--members=0", "--train-split=all"])
def test_what_says_how_training_volumes_are_looked_at_is_refused_without_any(tmp_path, option):
    line = refused(tmp_path, main, "--real", "r.h5", "--generated", "x", "--dest", str(tmp_path / "out"), option)
    assert line.startswith(f"Error: {option.partition('=')[0]}: ") and "give --train, or leave it away" in line


@pytest.mark.parametrize("missing", ["--real", "--dest"])
def test_what_is_required_is_asked_for(missing):
    given = {"--real": "r.h5", "--generated": "s.h5", "--dest": "out"}
    answer = CliRunner().invoke(main, [part for pair in given.items() if pair[0] != missing for part in pair])
    assert answer.exit_code == 2 and f"Missing option '{missing}'" in answer.stderr


def test_another_report_is_a_subcommand_beside_them(monkeypatch):
    monkeypatch.setattr(main, "commands", {})

    @main.command()
    @click.option("--real", required=True)
    def downstream(real):
        click.echo(f"downstream of {real}")

    assert CliRunner().invoke(main, ["downstream", "--real", "r.h5"]).output == "downstream of r.h5\n"
    assert "--generated" in CliRunner().invoke(main, ["--help"]).output


# ---- sections of one's own ----


class Brightest(Numbers):
    """The largest intensity of a volume."""

    words = {"brightest": "The largest intensity."}

    def units(self, layout):
        return {"brightest": layout.unit, "is_bright": None}

    def measure(self, case, layout):
        return {"brightest": float(case.image.max()), "is_bright": bool(case.image.max() > 0.5)}


class Corners(Section):
    """The intensity of the first voxel of every volume."""

    words = {"corner": "The first voxel."}

    def measure(self, item, context):
        return float(item.image.flat[0])

    def compute(self, found, context):
        return {"corners": {name: sum(values) for name, values in found.items()}}

    def figures(self, found, context, report):
        figure = Figure()
        figure.subplots().plot(found["real"])
        return {"corners": figure}

    def columns(self, found, context, name):
        return {"corner": [f"{value:g}" for value in found[name]]}

    def facts(self, report):
        return [("many", "corners")]

    def rows(self, report):
        return [("corners", *(f"{report['corners'][name]:g}" for name in ("real", "generated")), "", "", "")]

    def lines(self, report):
        return ["Corners were counted"]

    def page(self, report, figures):
        return f"<h2>Corners</h2>{html_figure('corners', figures)}"


def test_new_number_and_new_section_are_seen_everywhere(tmp_path, monkeypatch, capsys):
    changed = [Scalars((*each.numbers, Brightest())) if isinstance(each, Scalars) else each
               for each in sections.COMPARISON]
    monkeypatch.setattr(sections, "COMPARISON", (*changed, Corners()))
    path = write_phantoms(tmp_path / "echo.h5")
    arrays = phantom_arrays(3)
    arrays["images"][:, 0, 0, 0, 0] = [0.25, 0.5, 0.75]
    write(tmp_path / "samples.h5", arrays)
    found = evaluate.evaluate(path, tmp_path / "samples.h5", tmp_path / "out", ComparisonOptions(split="test"))
    peaks = [image.max() for image in arrays["images"]]
    assert found["metrics"]["brightest"]["generated_mean"] == pytest.approx(np.mean(peaks), rel=1e-6)
    assert found["shares"]["is_bright"]["generated"] == np.mean([peak > 0.5 for peak in peaks])
    assert found["corners"]["generated"] == 1.5 and set(found["corners"]) == {"real", "generated"}
    assert found["definitions"]["brightest"] == "The largest intensity." and "corner" in found["definitions"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    page = (tmp_path / "out" / "report.html").read_text()
    for said in (">Corners</h2><figure>", "<b>many</b><span>corners</span>", "<td>brightest [echo]</td>",
                 "<td>is bright</td>", "<td>The first voxel.</td>"):
        assert said in page, said
    assert {"corners.png", "distribution_brightest.png"} <= {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    out = capsys.readouterr().out
    for line in (r"^brightest \[echo\] .*±", r"^is_bright .* 50\.0 % .* 66\.7 %", r"^corners .* 1\.5",
                 r"^Corners were counted$"):
        assert re.search(line, out, re.MULTILINE), line
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert [row["corner"] for row in rows if row["set"] == "generated"] == ["0.25", "0.5", "0.75"]
    assert [float(row["brightest"]) for row in rows if row["set"] == "generated"] == pytest.approx(peaks, rel=1e-5)


def test_every_volume_is_read_once_by_all_sections_together():
    seen = []

    def volumes():
        for i in range(12):
            seen.append(i)
            yield Case(str(i), np.full((1, 8, 8), i / 16, np.float32), None)

    context = Comparison(layout=GREY, provenance={}, real=None, generated=None)
    walked = walk([Corners(), Corners()], context, {"real": volumes()})
    assert seen == list(range(12)) and walked.ids["real"] == [str(i) for i in range(12)]
    assert [found["real"] for found in walked.found] == [[i / 16 for i in range(12)]] * 2
    assert len(walked.context.first["real"]) == 8


def test_ranges():
    assert ranges(np.array([0, 1, 2, 7, 9, 10])) == "0-2,7,9-10"
    assert ranges(np.array([4])) == "4"
