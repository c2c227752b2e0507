"""The report of a first stage: every number against its answer known by hand, on stages that lose a known part."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference import evaluate_first_stage
from edm3d.inference.evaluate_first_stage import FirstStageOptions
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.metrics import image
from edm3d.networks.posteriors import PointPosterior
from edm3d.networks.tiles import Tiles
from edm3d.physics.phantoms import phantom_affine
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.first_stage import FRAME, RoundTrip
from edm3d.reporting.report import cases_csv
from edm3d.reporting.section import walk
from edm3d.reporting.sections.fidelity import Fidelity
from edm3d.reporting.sections.latents import Latents
from edm3d.training.build import round_trip_notes
from edm3d.utils.config import build
from evaluate import main
from tests.commands import refused
from tests.test_evaluate import describe, write_phantoms

SIZE = 16
NODE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "num_classes": 0, "latent_channels": 2,
        "spatial_dims": 3, "channels": [4, 4], "num_blocks": 1, "num_blocks_decoder": 1}
LAYOUT = Layout(("t1", "t2"), ("background", "tumour"), (1.0, 1.0), 0.0, 2.0, "a.u.")


def snapshot(path: Path, node: dict, facts: Facts, size: int | list[int] | None = None) -> Path:
    """An untrained autoencoder, of volumes that are padded to a size."""
    torch.manual_seed(0)
    weights, config = build(node).state_dict(), {"training": {"dataset": {"size": size}}}
    shape = (node["in_channels"], *[16] * node["spatial_dims"])
    Snapshot("autoencoder", node, facts, shape, weights=weights, config=config).save(path)
    return path


def random_volumes(path: Path, channels: int, dims: int) -> Path:
    """Noise without labels in splits train and test."""
    names = tuple(f"c{i}" for i in range(channels))
    meta = VolumesMeta(dims, names, ("target",) * channels, (), (), (), (), Intensity(0.0, 1.0, False, ""))
    with VolumesWriter(path, meta, {"kind": "prepare"}) as writer:
        for i in range(4):
            values = np.random.default_rng(i).random((channels, *[SIZE] * dims), np.float32)
            item = Item(values, None, None, None, f"case{i}", str(i), phantom_affine(SIZE, dims),
                        full_box((SIZE,) * dims))
            writer.add("train" if i < 1 else "test", item)
    return path


def bare_data(channels: int, dims: int) -> Facts:
    """What a snapshot says of such volumes."""
    return Facts("", "", tuple(f"c{i}" for i in range(channels)), spatial_shape=(SIZE,) * dims,
                 intensity=Intensity(0.0, 1.0, False, ""))


def test_a_blur_of_two_dims_and_channels_has_the_numbers_known_by_hand():
    """Channel t1 comes back brighter by 0.2, t2 at half its contrast; the latents are the image, and noise."""
    rng = np.random.default_rng(0)
    items, latents = [], []
    for i in range(3):
        real = rng.random((2, 8, 8)).astype(np.float32)
        label = np.zeros((8, 8), np.uint8)
        label[:4] = 1
        other = label.copy()
        other[3] = 0
        back = np.stack([real[0] + 0.2, real[1] / 2])
        latent = np.stack([-3 * real[0].reshape(4, 2, 4, 2).mean((1, 3)) + 1, rng.random((4, 4))])
        latents.append(latent)
        items.append(DecodedCase(Case(str(i), real, label), Case(str(i), back, other), latent, np.full((2, 4, 4), 0.5)))
    context = RoundTrip(layout=LAYOUT, provenance={}, net=torch.nn.Identity(), decoded=iter, min_psnr=None)
    parts = [Fidelity(), Latents()]
    walked = walk(parts, context, {"decoded": items})
    found = {k: v for part, kept in zip(parts, walked.found) for k, v in part.compute(kept, context).items()}
    t1, t2 = found["channels"]["t1"], found["channels"]["t2"]
    assert t1["psnr_db"] == pytest.approx(20, abs=1e-4)  # 20 log10(2 / 0.2)
    assert t1["sharpness"] == pytest.approx(1, abs=1e-5) and t1["spectrum_db"] == pytest.approx(0, abs=1e-4)
    assert t1["decoded"]["mean"] == pytest.approx(t1["real"]["mean"] + 0.2, abs=1e-5)
    assert t2["sharpness"] == pytest.approx(0.25) and t2["spectrum_db"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert t2["decoded"]["std"] == pytest.approx(t2["real"]["std"] / 2, rel=1e-5) and t2["ssim"] < t1["ssim"] < 1
    assert found["dice"] == {"tumour": pytest.approx(2 * 24 / (32 + 24))} == found["dice_min"]
    first, second = found["latents"]
    assert first["correlation"]["t1"] == pytest.approx(-1, abs=1e-5) and abs(second["correlation"]["t1"]) < 0.5
    assert second["std"] == pytest.approx(np.stack(latents)[:, 1].std())
    assert first["posterior_std"] == pytest.approx(0.5) and second["mean"] == pytest.approx(0.5, abs=0.15)
    lines = list(csv.DictReader(cases_csv(parts, FRAME, walked).splitlines()))
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert float(lines[0]["psnr_db_t1"]) == pytest.approx(20, abs=1e-4) and float(lines[0]["sharpness_t2"]) == 0.25


def test_ssim_of_equal_images_and_of_one_constant_against_another():
    """Two constants a, b have SSIM (2ab + c1) / (a^2 + b^2 + c1) with c1 = (0.01 range)^2."""
    values = np.random.default_rng(0).random((12, 13, 14))
    assert image.ssim(values, values, 1.0) == pytest.approx(1, abs=1e-5)
    flat = [np.full((9, 9), v) for v in (0.4, 0.8)]
    assert image.ssim(*flat, 1.0) == pytest.approx((2 * 0.32 + 1e-4) / (0.16 + 0.64 + 1e-4), abs=1e-4)
    with pytest.raises(ValueError, match="at least 7, the window"):
        image.ssim(values[:5], values[:5], 1.0)


def test_gradient_energy_of_a_ramp_and_of_stripes():
    assert image.gradient_energy(3 * np.arange(10.0)[:, None] + np.zeros((10, 4))) == pytest.approx(9 * 0.9)
    assert image.gradient_energy(np.tile([0.0, 2.0], 5)) == pytest.approx(4 * 0.9)


def test_report_of_labelled_phantoms_has_all_its_parts(tmp_path):
    file = write_phantoms(tmp_path / "echo.h5")
    path = snapshot(tmp_path / "stage.pt", {**NODE, "num_classes": 4}, describe())
    answer = CliRunner().invoke(main, ["--autoencoder", str(path), "--real", str(file), "--dest",
                                                str(tmp_path / "out"), "--num", "2"])
    assert answer.exit_code == 0, answer.output
    assert "fails: PSNR" in answer.output and "2 volumes of split 'test'" in answer.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["real"]["num"] == 2 and set(found["dice"]) == {"cavity", "myocardium", "atrium"}
    assert found["ceiling"]["available"] and found["ceiling"]["psnr_db"] > 15
    assert found["ceiling"]["gap_db"] == pytest.approx(found["ceiling"]["psnr_db"] - found["psnr_db"])
    assert len(found["latents"]) == 2 and not found["codes"]["available"]
    assert found["worst"][0]["psnr_db"] == found["channels"]["echo"]["psnr_min"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Worst cases" in page and "min_psnr 20 dB" in page and page.count("data:image/png") == 5
    assert {p.stem for p in (tmp_path / "out" / "figures").iterdir()} == {
        "pictures_1", "worst_1", "spectrum_echo", "bands_echo", "neighbours_echo"}
    bands = found["texture"]["echo"]["bands"]
    assert bands["difference"][5] == pytest.approx(bands["decoded"][5] - bands["real"][5])


def test_two_dims_several_channels_no_labels_and_tiles(tmp_path):
    file = random_volumes(tmp_path / "r.h5", 2, 2)
    path = snapshot(tmp_path / "s.pt", {**NODE, "in_channels": 2, "spatial_dims": 2}, bare_data(2, 2))
    found = evaluate_first_stage.evaluate_first_stage(
        str(path), file, tmp_path / "out", FirstStageOptions(tiles=Tiles((16, 16)), min_psnr=0))
    whole = evaluate_first_stage.evaluate_first_stage(str(path), file, tmp_path / "whole", FirstStageOptions())
    assert found["verdict"]["passed"] and found["dice"] == {} and found["autoencoder"]["tile"] == [16, 16]
    assert found["psnr_db"] == pytest.approx(whole["psnr_db"], abs=1e-3) and set(found["channels"]) == {"c0", "c1"}
    assert found["autoencoder"]["reduction"] == pytest.approx(2 * 256 / (2 * 64))
    assert "phantoms only" in found["ceiling"]["reason"]
    assert {"pictures_1", "worst_1"} < {p.stem for p in (tmp_path / "out/figures").iterdir()}


@pytest.mark.parametrize(("size", "latents"), [([20, 16], [10, 8]), (20, [10, 10])])
def test_volumes_are_padded_as_in_training(tmp_path, size, latents):
    """Of 16x16, for a stage that halves: the number of latents, and a margin that counts."""
    file = random_volumes(tmp_path / "r.h5", 1, 2)
    path = snapshot(tmp_path / "s.pt", {**NODE, "spatial_dims": 2}, bare_data(1, 2), size)
    found = evaluate_first_stage.evaluate_first_stage(str(path), file, tmp_path / "out", FirstStageOptions())
    assert found["autoencoder"]["latent_shape"] == [2, *latents]
    assert found["channels"]["c0"]["real"]["mean"] == pytest.approx(0.5 * 64 / np.prod(latents), abs=0.03)


def test_volumes_of_another_size_are_to_be_prepared_anew(tmp_path):
    file = random_volumes(tmp_path / "r.h5", 1, 2)
    path = snapshot(tmp_path / "s.pt", {**NODE, "spatial_dims": 2}, bare_data(1, 2), [19, 16])
    with pytest.raises(ValueError, match=r"^case\d: AutoencoderKL: size \(19, 16\) .*anew with --size 20 16$"):
        evaluate_first_stage.evaluate_first_stage(str(path), file, tmp_path / "out", FirstStageOptions())


class Exact(torch.nn.Module):
    """A quantised first stage that loses nothing, with the codes 0 and 1 by halves and two that nobody uses."""

    codebook_size, posterior = 4, "point"

    def forward(self, x, label=None):
        """Codes by a chequered pattern."""
        indices = torch.arange(x[0, 0].numel()).reshape(1, *x.shape[2:]) % 2
        return SimpleNamespace(image=x, logits=None, posterior=PointPosterior(x[:, :, ::2, ::2, ::2]),
                               codes=SimpleNamespace(indices=indices))

    def codebook_usage(self, counts):
        """As of networks.vq."""
        p = counts / counts.sum()
        return (counts > 0).float().mean(), torch.special.entr(p).sum().exp()


def test_codes_are_counted_over_the_split_and_a_perfect_stage_is_said_to_be(tmp_path, monkeypatch):
    file = random_volumes(tmp_path / "r.h5", 1, 3)
    path = snapshot(tmp_path / "s.pt", NODE, bare_data(1, 3))
    monkeypatch.setattr(Snapshot, "build", lambda *_: Exact())
    found = evaluate_first_stage.evaluate_first_stage(
        str(path), file, tmp_path / "out", FirstStageOptions(split="test"))
    assert found["codes"] == {"available": True, "size": 4, "used": 0.5, "perplexity": pytest.approx(2)}
    row = found["channels"]["c0"]
    assert row["psnr_db"] > 120 and row["sharpness"] == pytest.approx(1) and row["ssim"] == pytest.approx(1, abs=1e-4)
    assert found["latents"][0]["correlation"]["c0"] > 0.2  # one voxel of each block of eight: sqrt(1/8)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--real", "r.h5"], "wanted one of --generated and --autoencoder"),
    (["--autoencoder", "s.pt", "--real", "r.h5", "--tile", "big"], "--tile big"),
    (["--autoencoder", "s.pt", "--real", "r.h5", "--split", "other"], "no volume in split 'other'"),
    (["--autoencoder", "s.pt", "--real", "two.h5"], "channels are c0, c1"),
])
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    random_volumes(tmp_path / "r.h5", 1, 3)
    random_volumes(tmp_path / "two.h5", 2, 3)
    snapshot(tmp_path / "s.pt", NODE, bare_data(1, 3))
    if message.startswith("wanted one"):
        assert message in CliRunner().invoke(main, [*arguments, "--dest", "out"]).stderr
    else:
        assert message in refused(tmp_path, main, *arguments, "--dest", "out")


# ---- what diffusion asks of its latents ----


def part(round_trip: dict | None) -> CarriedStage:
    """What a run knows of a first stage that says this of its round trip."""
    return CarriedStage(LatentScaling([0.0], [1.0]), round_trip=round_trip)


def test_latents_of_a_poor_first_stage_are_refused_unless_told_otherwise():
    poor = part({"psnr_db": 12.345, "dice": {}, "num": 16, "split": "val"})
    with pytest.raises(ValueError, match=r"l\.h5.*'val'.*12\.35 dB.*min_psnr=20; train.*min_psnr=null"):
        round_trip_notes(poor, "l.h5", 20)
    assert "12.35 dB over 16 volumes" in round_trip_notes(poor, "l.h5", None)[0]
    assert "12.35 dB" in round_trip_notes(poor, "l.h5", 12)[0]
    with pytest.raises(ValueError, match="nan"):
        round_trip_notes(part({"psnr_db": float("nan"), "num": 1, "split": "val"}), "l.h5", 0)


def test_latents_that_do_not_say_are_noted_and_voxels_have_none():
    assert "does not say" in round_trip_notes(part(None), "l.h5", 20)[0]
    assert round_trip_notes(None, "v.h5", 20) == []
