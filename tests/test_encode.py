"""Encoding a cohort: the same on any number of ranks, restartable, scaled as asked, and on the fly while training."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import dataset_tool
import generate
import train
from edm3d.formats import h5
from edm3d.formats.facts import Facts, LatentScaling, volume_facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import LatentsFile, Moments, round_trip_line
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter
from edm3d.inference import encode
from edm3d.inference.batch import Batch, collate
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.networks.latent_codec import shift_and_gain, whiten
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.batch_transforms import DrawLatents, EncodeImages
from edm3d.training.datasets.latents import LatentsDataset
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.utils import checkpoint
from edm3d.utils.config import build
from tests.commands import call, refused, succeed

ROOT = Path(__file__).resolve().parents[1]
SIZE = (8, 12, 4)
NODE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "num_classes": 2, "latent_channels": 2,
        "spatial_dims": 3, "channels": [4, 8], "num_blocks": 1, "num_blocks_decoder": 1}
TINY = ["-cn=echo_edm", "training.network.model.model_channels=4", "training.network.model.channel_mult=[1]",
        "training.network.model.num_blocks=1", "training.network.model.attention_levels=[]",
        "training.options.batch_size=4", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.008",
        "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
        "training.validation.max_items=0", "sampling.num_threads=1", "sampling.device=cpu", "sampling.montage=0",
        "sampling.nifti=false", "sampling.sampler.num_steps=2", "sampling.seeds=0-1",
        "training.options.min_psnr=null"]
AFFINE = np.array([[0.0, 2, 0, 5], [-3, 0, 0, 1], [0, 0, 4, -2], [0, 0, 0, 1]])


def write_snapshot(path: Path, volumes: Path, seed: int = 0, node: dict = NODE, size: int | list[int] | None = None
                   ) -> Path:
    """A snapshot of an autoencoder with drawn weights, as if trained on a volumes file, its items fitted to a size."""
    torch.manual_seed(seed)
    net = build(node)
    file = VolumesFile(volumes)
    Snapshot("autoencoder", node, volume_facts(file, file.splits[0]), (1, *SIZE), weights=net.state_dict(),
             config={"training": {"dataset": {"size": size}}}).save(path)
    return path


def write_volumes(path: Path, seed: int = 0, counts: tuple[int, int] = (5, 3)) -> Path:
    """Random volumes with label maps, classes and boxes; their affine turns and shifts."""
    random = np.random.default_rng(seed)
    meta = VolumesMeta(3, ("echo",), ("target",), ("background", "cavity"), (), (), ("ED", "ES"),
                       Intensity(0.0, 2.0, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i in range(sum(counts)):
            image = 2 * random.random((1, *SIZE), np.float32)
            writer.add("train" if i < counts[0] else "val", Item(
                image, (image[0] > 1.2).astype(np.uint8), None, i % 2, f"item-{i}", f"patient-{i}", AFFINE,
                np.array([[1, 0, 0], [8, 11, 4]])))
    with h5py.File(path, "r+") as file:  # a column that others have added
        for split, count in zip(("train", "val"), counts):
            h5.write_array(file[split], "grade", np.arange(count, dtype=np.float32)[:, None])
        h5.seal(file)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with volumes, two first stages, and the latents of one process."""
    folder = tmp_path_factory.mktemp("encode")
    with chdir(folder):
        write_volumes(Path("vols.h5"))
        write_snapshot(Path("stage.pt"), Path("vols.h5"))
        write_snapshot(Path("other.pt"), Path("vols.h5"), seed=1)
        encoded("lat.h5")
    return folder


@pytest.fixture
def at(place: Path):
    """Work in that folder."""
    with chdir(place):
        yield place


def arguments(dest: str, *options: str, stage: str = "stage.pt") -> list[str]:
    """Of the command."""
    return ["encode", "--autoencoder", stage, "--source", "vols.h5", "--dest", dest, "--num-threads", "1", *options]


def encoded(dest: str, *options: str, stage: str = "stage.pt") -> str:
    """Encode; what the command said."""
    return succeed(dataset_tool.main, *arguments(dest, *options, stage=stage))


def rows(path: str) -> dict[str, np.ndarray]:
    """All means and stds of a latents file."""
    file = LatentsFile(Path(path))
    return {f"{split}/{name}": getattr(file.read(split), name) for split in file.splits for name in ("mean", "std")}


# ---- what is written ----


def test_rows_are_what_the_network_says_of_each_volume(at):
    net, volumes = Snapshot.read(Path("stage.pt")).build(), VolumesFile("vols.h5")
    latents = LatentsFile("lat.h5")
    for split in volumes.splits:
        found = latents.read(split)
        assert found.ids == volumes.ids(split) and found.groups == volumes.groups(split)
        np.testing.assert_array_equal(found.affines, volumes.affines(split))
        assert found.tables.keys() == {"classes", "grade"}
        for name, table in found.tables.items():
            np.testing.assert_array_equal(table, volumes.table(split, name))
        assert (found.boxes == [[1, 0, 0], [8, 11, 4]]).all()
        for i in range(volumes.length(split)):
            item = volumes.read(split, i)
            with torch.no_grad():
                wanted = net.encode(torch.from_numpy(item.image)[None] - 1, torch.from_numpy(item.label)[None])
            np.testing.assert_allclose(found.mean[i], wanted.mean[0].numpy(), atol=1e-5)
            np.testing.assert_allclose(found.std[i], wanted.std[0].numpy(), atol=1e-5)
    assert latents.facts.latents.posterior == "gaussian" and latents.facts.latents.scaling == "standardize"
    assert not Path("lat.h5.parts").exists()


def test_statistics_are_those_of_draws_from_the_training_split(at):
    latents, train = LatentsFile("lat.h5"), LatentsFile("lat.h5").read("train")
    draws = train.mean + train.std * np.random.default_rng(0).standard_normal((4000, *train.mean.shape), np.float32)
    axes = (0, 1, 3, 4, 5)
    np.testing.assert_allclose(latents.facts.latents.channel_mean, draws.mean(axes), atol=0.01)
    np.testing.assert_allclose(latents.facts.latents.channel_std, draws.std(axes), rtol=0.01)
    limits = [(train.mean - 3 * train.std).min(), (train.mean + 3 * train.std).max()]
    assert latents.facts.latents.limits == pytest.approx(limits)


def test_the_round_trip_of_held_out_volumes_is_in_the_file(at):
    found, net, volumes = LatentsFile("lat.h5").round_trip, Snapshot.read(Path("stage.pt")).build(), \
        VolumesFile("vols.h5")
    psnr, overlap = [], []
    for i in range(3):
        item = volumes.read("val", i)
        with torch.no_grad():
            image, logits = net.decode(net.encode(torch.from_numpy(item.image)[None] - 1,
                                                  torch.from_numpy(item.label)[None]).mean)
        image, label = (image[0].numpy() + 1).clip(0, 2), logits[0].argmax(0).numpy()
        psnr.append(10 * np.log10(4 / np.square(image - item.image).mean()))
        overlap.append(2 * ((label == 1) & (item.label == 1)).sum() / ((label == 1).sum() + (item.label == 1).sum()))
    assert (found["split"], found["num"]) == ("val", 3)
    assert found["psnr_db"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert found["dice"]["cavity"] == pytest.approx(np.mean(overlap), abs=1e-3)


def test_the_round_trip_is_said_at_the_end_also_when_all_is_there(at):
    found = LatentsFile("lat.h5").round_trip
    wanted = (f"Round trip  PSNR {found['psnr_db']:.2f} dB, mean Dice {found['dice']['cavity']:.3f} without "
              "background, over 3 volumes of split 'val'")
    assert encoded("lat.h5").splitlines()[-2:] == ["lat.h5: all 8 there already", wanted]
    assert encoded("said.h5").splitlines()[-2:] == ["said.h5: train 5, val 3", wanted]


@pytest.mark.parametrize(("found", "wanted"), [
    (None, "not measured: no held-out volume was decoded again"),
    ({"psnr_db": 30.126, "num": 2, "split": "train"}, "PSNR 30.13 dB over 2 volumes of split 'train'"),
    ({"psnr_db": 30.126, "dice": {}, "num": 2, "split": "val"}, "PSNR 30.13 dB over 2 volumes of split 'val'"),
    ({"psnr_db": 9.5, "dice": {"air": 1.0, "a": 0.5, "b": None, "c": 0.75}, "num": 4, "split": "val"},
     "PSNR 9.50 dB, mean Dice 0.625 without background, over 4 volumes of split 'val'"),
])
def test_the_line_of_a_round_trip(found, wanted):
    assert round_trip_line(found) == f"Round trip  {wanted}"


def test_what_cannot_be_written_to_is_refused_before_anything_is_encoded(at, monkeypatch):
    monkeypatch.setattr(encode, "encode_batch", lambda *_: pytest.fail("it was encoded"))
    Path("folder.h5").mkdir()
    Path("other.txt").write_text("mine")
    write_volumes(Path("more.h5"))
    for dest, words in (("folder.h5", "--dest folder.h5: is a folder"), ("other.txt/l.h5", "other.txt is a file"),
                        ("other.txt", "other.txt: wanted a file whose name ends in .h5"),
                        ("stage.pt", "--dest stage.pt is --autoencoder"), ("vols.h5", "--dest vols.h5 is --source"),
                        ("more.h5", "more.h5: format is 'volumes', not 'latents'; nothing of another kind is overwr")):
        assert words in refused(at, dataset_tool.main, *arguments(dest))
        assert words in refused(at, dataset_tool.main, *arguments(dest, "--overwrite"))
    assert "is a folder" in refused(at, dataset_tool.main, *arguments("folder.h5", "--overwrite"))


def test_a_size_crops_and_pads_about_the_centre_and_geometry_follows(at):
    encoded("cut.h5", "--size", "4", "16", "4", "--round-trip", "0")
    found, latents = LatentsFile("cut.h5").read("train"), LatentsFile("cut.h5")
    assert found.mean.shape == (5, 2, 2, 8, 2) and latents.facts.spatial_shape == (4, 16, 4)
    first = AFFINE @ [2, -2, 0, 1]  # where the first new voxel lay before
    np.testing.assert_allclose(found.affines[0][:, 3], first)
    np.testing.assert_array_equal(found.affines[0][:3, :3], AFFINE[:3, :3])
    assert found.boxes[0].tolist() == [[0, 2, 0], [4, 13, 4]] and latents.round_trip is None
    item = encode.fitted(VolumesFile("vols.h5"), "train", 0, (4, 16, 4))
    whole = VolumesFile("vols.h5").read("train", 0)
    np.testing.assert_array_equal(item.image[:, :, 2:14], whole.image[:, 2:6])
    assert (item.image[:, :, :2] == 0).all() and (item.label[:, 14:] == 0).all()


@pytest.mark.parametrize("size", [4, [4, 4, 4]])
def test_volumes_are_fitted_as_the_first_stage_was_trained(at, size):
    write_snapshot(Path("fits.pt"), Path("vols.h5"), size=size)
    encoded("fits.h5", "--overwrite", stage="fits.pt")
    assert LatentsFile("fits.h5").facts.spatial_shape == (4, 4, 4)
    encoded("whole.h5", "--overwrite", "--size", *map(str, SIZE), stage="fits.pt")
    assert LatentsFile("whole.h5").facts.spatial_shape == SIZE


def test_exact_slabs_give_the_latents_of_the_whole_and_tiles_others(at):
    encoded("exact.h5", "--tile", "4", "4", "4", "--tile-mode", "exact")
    encoded("tiles.h5", "--tile", "4", "4", "4")
    whole, exact, tiles = rows("lat.h5"), rows("exact.h5"), rows("tiles.h5")
    for name, wanted in whole.items():
        np.testing.assert_allclose(exact[name], wanted, atol=1e-5)
    assert np.abs(tiles["train/mean"] - whole["train/mean"]).max() > 1e-3


@pytest.mark.parametrize(("target", "posterior"), [("vq.AutoencoderVQ", "point"), ("gamma.AutoencoderGamma", "gamma")])
def test_other_posteriors_are_kept_by_kind_and_drawn_from_their_moments(at, target, posterior):
    write_snapshot(Path(f"{posterior}.pt"), Path("vols.h5"), node={**NODE, "_target_": f"networks.{target}"})
    encoded(f"{posterior}.h5", stage=f"{posterior}.pt")
    latents, net = LatentsFile(f"{posterior}.h5"), Snapshot.read(Path(f"{posterior}.pt")).build()
    item, data = VolumesFile("vols.h5").read("train", 2), LatentsDataset(f"{posterior}.h5")
    with torch.no_grad():
        wanted = net.encode(torch.from_numpy(item.image)[None] - 1, torch.from_numpy(item.label)[None])
        draws = wanted.sample(ImageGenerators([5]).for_purpose("posterior"))
    assert latents.facts.latents.posterior == posterior == data.facts.latents.posterior
    np.testing.assert_allclose(latents.read("train").mean[2], wanted.mean[0].numpy(), atol=1e-5)
    unscaled = {"channel_mean": [0.0, 0.0], "channel_std": [1.0, 1.0]}
    transform = DrawLatents(**data.facts.latents.statistics | unscaled, sigma_data=1)
    x, _ = transform(collate([data[2]]), ImageGenerators([5]))
    torch.testing.assert_close(x, draws, atol=1e-3, rtol=1e-3)


# ---- once ----


def test_a_second_run_encodes_nothing_and_says_so(at, monkeypatch):
    monkeypatch.setattr(encode, "encode_batch", lambda *_: pytest.fail("encoded"))
    before = Path("lat.h5").stat().st_mtime_ns
    assert "all 8 there already" in encoded("lat.h5") and Path("lat.h5").stat().st_mtime_ns == before


def test_a_run_that_was_stopped_goes_on_and_makes_a_damaged_part_anew(at, monkeypatch):
    done, real = [], encode.encode_batch

    def stop_after_two(job, batch, inputs):
        if len(done) == 2:
            raise OSError("pulled the plug")
        done.append([place.number for place in batch])
        return real(job, batch, inputs)

    monkeypatch.setattr(encode, "encode_batch", stop_after_two)
    assert call(dataset_tool.main, *arguments("stopped.h5", "--batch-size", "2")).exit_code == 1
    assert not Path("stopped.h5").exists() and len(list(Path("stopped.h5.parts").rglob("*.npz"))) == 4
    monkeypatch.setattr(encode, "encode_batch", lambda job, batch, inputs: (
        done.append([place.number for place in batch]), real(job, batch, inputs))[1])
    damaged = sorted(Path("stopped.h5.parts").rglob("*.npz"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "(3 there already)" in encoded("stopped.h5", "--batch-size", "2")
    assert done == [[0, 1], [2, 3], [1, 4], [5, 6], [7]] and not Path("stopped.h5.parts").exists()
    for name, wanted in rows("lat.h5").items():
        np.testing.assert_allclose(rows("stopped.h5")[name], wanted, atol=1e-6)


def replaced(**arrays: np.ndarray) -> Callable[[dict], dict]:
    """Put other arrays into a part."""
    return lambda part: part | arrays


CHANGES = [lambda part: part | {"mean": np.where(part["mean"] > 0, np.nan, part["mean"])}, replaced(std=np.array("x")),
           lambda part: part | {"std": -part["std"]}, lambda part: {n: a for n, a in part.items() if n != "std"},
           lambda part: part | {"mean": part["mean"][:, 1:]}, replaced(affine=np.zeros((4, 4))),
           lambda part: part | {"box": part["box"].astype(float)}, replaced(psnr=np.array(np.nan))]


def test_whole_parts_of_what_cannot_be_are_made_anew(at, monkeypatch):
    monkeypatch.setattr(encode, "write_latents", lambda *_, **__: (_ for _ in ()).throw(OSError("pulled the plug")))
    assert call(dataset_tool.main, *arguments("wrong.h5")).exit_code == 1
    monkeypatch.undo()
    for path, change in zip(sorted(Path("wrong.h5.parts").rglob("*.npz")), CHANGES, strict=True):
        np.savez(path, **change(dict(np.load(path))))
    assert "there already" not in encoded("wrong.h5")
    for name, wanted in rows("lat.h5").items():
        np.testing.assert_array_equal(rows("wrong.h5")[name], wanted)
    assert LatentsFile(Path("wrong.h5")).round_trip == LatentsFile(Path("lat.h5")).round_trip


@pytest.mark.parametrize(("options", "stage", "words"), [
    ([], "other.pt", ["another first stage", "--overwrite"]),
    (["--size", "8", "8", "4"], "stage.pt", ["another settings", "[8, 8, 4]"]),
    (["--scaling", "minmax"], "stage.pt", ["another scaling", "minmax"]),
    (["--scaling", "none"], "stage.pt", ["--scaling='none'", "standardize, minmax, scale_factor"]),
    (["--size", "8", "9", "4"], "stage.pt", ["vols.h5: AutoencoderKL: size (8, 9, 4) must divide by",
                                         "; --size 8 10 4 pads the volumes"]),
    (["--size", "8", "9"], "stage.pt", ["[8, 12, 4]", "--size with 3 numbers"]),
    (["--tile", "3", "4", "4"], "stage.pt", ["tile=[3, 4, 4]", "multiples of [2, 2, 2]"]),
])
def test_latents_of_anything_else_are_refused(at, options, stage, words):
    said = refused(at, dataset_tool.main, *arguments("lat.h5", *options, stage=stage))
    assert all(word in said for word in words), said


def test_a_size_that_a_network_cannot_divide_is_mended_by_the_key_in_reach(at):
    levels = "training.network.model.channel_mult=[1,1,1]"  # divides by 4: of volumes 8 x 12 x 4 in latents 4 x 6 x 2
    said = refused(at, train.main, *TINY, levels, "training.dataset.path=lat.h5")
    assert said.endswith("size (4, 6, 2) must divide by (4, 4, 4); nearest that do: (4, 4, 4) and (4, 8, 4); encode "
                         "the volumes anew with --size 8 16 8")
    deep = ["-cn=echo_vae", "training.network.channels=[4,4,4,4]", "training.dataset.path=vols.h5",
            "training.options.device=cpu"]
    assert refused(at, train.main, *deep).endswith("; training.dataset.size=[8,16,8] pads the volumes")
    on_the_fly = [*TINY, levels, "dataset=volumes", "training.dataset.path=vols.h5", "batch_transform=encode",
                  "training.batch_transform.autoencoder=stage.pt"]
    assert refused(at, train.main, *on_the_fly).endswith("; training.dataset.size=[8,16,8] pads the volumes")
    patches = [*deep, "training.network.channels=[4,4]", "augment=patches", "training.augment.size=[4,5,4]"]
    assert refused(at, train.main, *patches).endswith(
        "training.augment.size=[4, 5, 4]: AutoencoderKL: size (4, 5, 4) must divide by (2, 2, 2); nearest that do: "
        "(4, 4, 4) and (4, 6, 4)")
    stage = Snapshot.read(Path("stage.pt"))
    with pytest.raises(ValueError, match=r"nearest that do: \(8, 12, 4\) and \(8, 14, 4\); pad the images$"):
        FirstStage(stage.build(), stage.facts).encode(torch.zeros(1, 1, 8, 13, 4), torch.zeros(1, 8, 13, 4).byte())


def test_two_ranks_write_what_one_writes(at):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "dataset_tool.py"), *arguments("ranks.h5", "--batch-size", "1")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train 5, val 3") == 1
    for name, wanted in rows("lat.h5").items():
        np.testing.assert_allclose(rows("ranks.h5")[name], wanted, atol=1e-5)
    one, two = LatentsFile("lat.h5").round_trip, LatentsFile("ranks.h5").round_trip
    assert two["psnr_db"] == pytest.approx(one["psnr_db"], abs=1e-3) and two["num"] == one["num"]
    assert two["dice"] == pytest.approx(one["dice"], abs=1e-4)


def test_latents_that_are_not_finite_are_refused(at, tmp_path):
    snapshot = checkpoint.load(Path("stage.pt"), "snapshot").content
    snapshot["ema"]["encoder.0.bias"][0] = torch.inf
    checkpoint.save(tmp_path / "bad.pt", "snapshot", snapshot)
    assert "not finite" in refused(at, dataset_tool.main, *arguments("bad.h5", stage=str(tmp_path / "bad.pt")))


# ---- scaling ----


@pytest.mark.parametrize("scaling", ["standardize", "minmax", "scale_factor"])
def test_scaling_is_kept_in_the_file_used_in_training_and_undone_by_decoding(at, scaling):
    encoded(f"{scaling}.h5", "--scaling", scaling)
    data = LatentsDataset(f"{scaling}.h5")
    transform = DrawLatents(**data.facts.latents.statistics, sigma_data=0.5)
    batch = collate([data[i] for i in range(len(data))])
    draws = [transform(batch, ImageGenerators(range(5), seed=seed))[0] for seed in range(50)]
    x, axes = torch.stack(draws), (0, 1, 3, 4, 5)
    if scaling == "standardize":
        torch.testing.assert_close(x.mean(axes), torch.zeros(2), atol=0.03, rtol=0)
        torch.testing.assert_close(x.std(axes), torch.full((2,), 0.5), atol=0.01, rtol=0)
    elif scaling == "scale_factor":
        assert float(x.std()) == pytest.approx(1, abs=0.01) and shift_and_gain(*transform.scaling)[0] == [0, 0]
    else:
        mean, std = batch.images.chunk(2, 1)
        lo, hi = float((mean - 3 * std).min()), float((mean + 3 * std).max())
        shift, gain = shift_and_gain(*transform.scaling)
        assert (np.array([lo, hi]) - shift[0]) * gain[0] == pytest.approx([-1, 1], abs=1e-5)
    snapshot = Snapshot.read(Path("stage.pt"))
    scaled, plain = (FirstStage(snapshot.build(), snapshot.facts, scaling) for scaling in (transform.scaling, None))
    z = torch.randn(2, 2, 4, 6, 2)
    shift, gain = (torch.tensor(t).reshape(2, 1, 1, 1) for t in shift_and_gain(*transform.scaling))
    for ours, wanted in zip(scaled.decode((z - shift) * gain), plain.decode(z), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_scalings_by_hand():
    assert shift_and_gain([1.0, -1], [2.0, 4], None, "standardize", 0.5) == ([1.0, -1], [0.25, 0.125])
    assert shift_and_gain([1.0, -1], [2.0, 4], [-3.0, 5], "minmax") == ([1.0, 1.0], [0.25, 0.25])
    shift, gain = shift_and_gain([1.0, -1], [2.0, 4], None, "scale_factor")
    assert shift == [0, 0] and gain == pytest.approx([11 ** -0.5] * 2)  # (4 + 16) / 2 within, 1 between channels
    for words, limits, scaling in ((["limits=None"], None, "minmax"), (["standardize, minmax"], None, "std")):
        with pytest.raises(ValueError) as error:
            shift_and_gain([1.0], [2.0], limits, scaling)
        assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("std", "scaling", "words"), [
    ([2.0, 0], "standardize", "latents of channel 1 are the same everywhere"),
    ([0.0, 0], "scale_factor", "channel 0, 1")])
def test_latents_that_do_not_vary_are_refused(std, scaling, words):
    with pytest.raises(ValueError, match=words):
        shift_and_gain([0.0, 0], std, None, scaling)
    assert shift_and_gain([0.0, 0], [2.0, 0], None, "scale_factor")[1] == pytest.approx([2 ** -0.5] * 2)


def test_noise_has_the_moments_of_latents():
    stage = FirstStage(torch.nn.Identity(), Facts("", ""), LatentScaling([1.0, -3], [2.0, 4], [-8.0, 8], "minmax"))
    x = stage.noise(torch.randn(4000, 2, 8))
    torch.testing.assert_close(x.mean((0, 2)), torch.tensor([1.0, -3]) / 8, atol=0.01, rtol=0)
    torch.testing.assert_close(x.std((0, 2)), torch.tensor([2.0, 4]) / 8, atol=0.01, rtol=0)


def test_moments_item_by_item_are_those_of_all(tmp_path):
    mean, std = np.random.default_rng(0).random((2, 9, 3, 4, 5), np.float32) * 3
    moments = Moments()
    for row in zip(mean, std):
        moments.add(*row)
    found = moments.statistics()
    np.testing.assert_allclose(found.channel_mean, mean.mean((0, 2, 3)), rtol=1e-6)
    variance = mean.var((0, 2, 3)) + np.square(std).mean((0, 2, 3))
    np.testing.assert_allclose(found.channel_std, np.sqrt(variance), rtol=1e-6)
    assert found.limits == pytest.approx([(mean - 3 * std).min(), (mean + 3 * std).max()])


@pytest.mark.parametrize("posterior", ["gaussian", "gamma", "point"])
def test_draws_have_the_moments_that_the_file_holds(posterior):
    mean, std = torch.full((2000, 1, 2), 3.0), torch.full((2000, 1, 2), 0.0 if posterior == "point" else 1.5)
    std[:, :, 1] = 0 if posterior == "point" else 0.5
    x, _ = DrawLatents([0.0], [1.0], posterior=posterior, sigma_data=1)(
        Batch(torch.cat([mean, std], 1), None, Condition()), ImageGenerators(range(2000)))
    torch.testing.assert_close(x.mean((0, 1)), torch.tensor([3.0, 3]), atol=0.1, rtol=0)
    torch.testing.assert_close(x.std((0, 1)), std[0, 0], atol=0.1, rtol=0)
    if posterior == "gamma":
        assert (x > 0).all()


# ---- on the fly ----


def test_encoding_while_training_draws_what_latents_from_the_file_give(at):
    images, latents = VolumesDataset("vols.h5"), LatentsDataset("lat.h5")
    on_the_fly = EncodeImages("stage.pt", num=5)
    on_the_fly.open(images, VolumesDataset("vols.h5", split="val"), "val", torch.device("cpu"))
    known = LatentsFile("lat.h5").round_trip
    assert on_the_fly.round_trip == {"psnr_db": pytest.approx(known["psnr_db"], abs=1e-3), "num": known["num"],
                                     "split": "val"}
    assert on_the_fly.shape == latents.shape
    from_file = DrawLatents(**latents.facts.latents.statistics)
    for name in ("channel_mean", "channel_std", "limits"):
        assert getattr(on_the_fly.scaling, name) == pytest.approx(getattr(from_file.scaling, name), rel=1e-4)
    generators = [ImageGenerators([7, 8], seed=3) for _ in range(2)]
    x, _ = on_the_fly(collate([images[0], images[3]]), generators[0])
    wanted, _ = from_file(collate([latents[0], latents[3]]), generators[1])
    torch.testing.assert_close(x, wanted, atol=1e-3, rtol=0)
    assert not any(p.requires_grad for p in on_the_fly.stage.net.parameters()) and not on_the_fly.stage.net.training


def test_means_instead_of_draws(at):
    latents = LatentsDataset("lat.h5")
    known, batch = latents.facts.latents, collate([latents[0], latents[3]])
    drawn, other, *means = (DrawLatents(**known.statistics, draw=draw)(batch, ImageGenerators([7, 8], seed=seed))[0]
                            for draw, seed in ((True, 1), (True, 2), (False, 1), (False, 2)))
    shift, gain = map(torch.tensor, shift_and_gain(known.channel_mean, known.channel_std))
    torch.testing.assert_close(means[0], whiten(batch.images.chunk(2, 1)[0], shift, gain))
    assert torch.equal(*means) and not torch.equal(drawn, other)


def test_encoding_while_training_by_a_poor_first_stage_is_refused(at):
    where = ["dataset=volumes", "training.dataset.path=vols.h5", "batch_transform=encode",
             "training.batch_transform.autoencoder=stage.pt", "training.options.run_root=poor"]
    said = refused(at, train.main, *TINY, *where, "training.options.min_psnr=99")
    assert "vols.h5: its first stage gives" in said and "min_psnr=99" in said and not Path("poor").exists()


def test_diffusion_learns_from_volumes_and_its_snapshot_decodes_in_tiles(at):
    where = ["dataset=volumes", "training.dataset.path=vols.h5", "batch_transform=encode", "augment=edm",
             "training.batch_transform.autoencoder=stage.pt", "training.options.run_root=fly"]
    succeed(train.main, *TINY, *where)
    part = checkpoint.load(next(Path("fly").rglob("network-snapshot-*.pt")), "snapshot").content["first_stage"]
    assert part["hash"] == LatentsFile("lat.h5").first_stage_hash and part["scaling"] == "standardize"
    said = succeed(generate.main, *TINY, *where, "sampling.outdir=fly/tiles", "sampling.tile=[4,4,4]")
    assert said.count("Tiles differ from whole: image 0.") == 1
    assert "differ" not in succeed(generate.main, *TINY, *where, "sampling.outdir=fly/silent", "sampling.tile=[4,4,4]",
                                   "sampling.tile_compare=false")
    drawn = SamplesFile("fly/tiles/samples.h5")
    assert drawn.array("latents").shape == (2, 2, 4, 6, 2) and drawn.array("images").shape == (2, 1, *SIZE)
    said = succeed(generate.main, *TINY, *where, "sampling.outdir=fly/slabs", "sampling.tile=[4,4,4]",
                   "sampling.tile_mode=exact")
    assert "differ" not in said
    succeed(generate.main, *TINY, *where, "sampling.outdir=fly/whole")
    whole, slabs = SamplesFile("fly/whole/samples.h5"), SamplesFile("fly/slabs/samples.h5")
    np.testing.assert_allclose(slabs.array("images"), whole.array("images"), atol=1e-4)
    said = refused(at, generate.main, *TINY, *where, "sampling.outdir=fly/bad", "sampling.tile=[3,4,4]")
    assert "sampling.tile=[3, 4, 4]" in said and "multiples of [2, 2, 2]" in said


def test_a_resumed_run_goes_on_with_the_first_stage_that_it_began_with(at):
    where = ["dataset=volumes", "training.dataset.path=vols.h5", "batch_transform=encode",
             "training.batch_transform.autoencoder=newest.pt", "training.options.run_root=resumed"]
    more = ["training.options.resume=latest", "training.options.total_kimg=0.016"]
    Path("newest.pt").write_bytes(Path("stage.pt").read_bytes())
    succeed(train.main, *TINY, *where)
    Path("newest.pt").write_bytes(Path("other.pt").read_bytes())
    said = refused(at, train.main, *TINY, *where, *more)
    assert "the state is of another data set (first_stage: " in said
    Path("newest.pt").write_bytes(Path("stage.pt").read_bytes())
    assert "Resumed from" in succeed(train.main, *TINY, *where, *more)


def test_encoding_while_training_wants_images_of_the_first_stage(at):
    said = refused(at, train.main, *TINY, "training.dataset.path=lat.h5", "batch_transform=encode",
                   "training.batch_transform.autoencoder=stage.pt", "training.options.run_root=no")
    assert "lat.h5 holds latents and this encodes images" in said and "batch_transform=latents" in said
