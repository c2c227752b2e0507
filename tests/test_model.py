"""From Python: a model draws, denoises, encodes and decodes as the commands do, also out of a published folder."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

import dataset_tool
import edm3d
import generate
import train
from edm3d.formats.facts import AttributeStatistics, Facts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.privacy import Ledger, PrivacyStatement
from edm3d.formats.samples import Samples, SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.card import about_conditions
from edm3d.inference.decoded import find_first_stage
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.conditioning import Part
from edm3d.utils.compose import compose
from edm3d.utils.config import build
from tests.commands import call, refused, succeed
from tests.conftest import ROOT

AFFINE = ((2.0, 0.0, 0.0, -7.0), (0.0, 0.0, -3.0, 5.0), (0.0, 1.5, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))  # axes change
CLASSES = ("background", "cavity", "wall")
STAGE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "num_classes": 3, "latent_channels": 2,
         "channels": [4, 8], "strides": [2]}
MODEL = {"_target_": "networks.unet.ADMUNet", "in_channels": 2, "out_channels": 2, "label_dim": 2, "model_channels": 8,
         "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
NODE = {"_target_": "networks.precond.EDMPrecond", "label_dropout": 0.1, "model": MODEL}
SCALING = LatentScaling([0.5, -1.0], [2.0, 0.5])
MULTISTEP = {"_target_": "samplers.multistep_sampler", "num_steps": 3, "order": 2, "grid": "focused"}
DRAW = ["-cn=echo_edm", "sampling.network=net.pt", "sampling.seeds=2,5-8", "sampling.num_threads=1",
        "sampling.device=cpu", "sampling.batch_size=2", "sampling.montage=0"]


def scattered(node: dict, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a network of such a config, so that no layer gives zeros."""
    generator, weights = torch.Generator().manual_seed(seed), build(node).state_dict()
    return {name: 0.3 * torch.randn(w.shape, generator=generator) if w.is_floating_point() else w
            for name, w in weights.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with the snapshots of a first stage and of a diffusion network of its latents, untrained."""
    folder = tmp_path_factory.mktemp("model")
    with chdir(folder):
        succeed(dataset_tool.main, "phantom", "--dest", "vols.h5", "--num", "10", "--size", "8")
        source = VolumesFile("vols.h5")
        facts = Facts(str(folder / "vols.h5"), source.content_hash, ("echo",), CLASSES, ("ED", "ES"),
                      Intensity(-10.0, 30.0, True, "dB"), (8, 8, 8), AFFINE)
        stage = Snapshot("autoencoder", STAGE, facts, (1, 8, 8, 8), weights=scattered(STAGE, 0))
        stage.save(Path("stage.pt"))
        config = {"training": {"dataset": {"path": str(folder / "latents.h5")}, "options": {"batch_size": 4}},
                  "sampling": {"sampler": MULTISTEP, "outdir": "results/mine", "guidance": {"strength": 1.5}}}
        carried = CarriedStage.from_record(stage.record, SCALING)
        drawing = Snapshot("diffusion", NODE, facts, (2, 4, 4, 4), carried, scattered(NODE, 1), config, 12_034)
        drawing.save(Path("net.pt"))
    return folder


def noise() -> torch.Tensor:
    """Two latents."""
    return torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def same_as_file(samples: Samples, path: str) -> None:
    """Hold samples in memory against those of a file, to the last bit."""
    file = SamplesFile(path)
    assert set(file.names) == {*samples.arrays} and file.seeds.tolist() == samples.seeds
    for name in file.names:
        assert np.array_equal(file.array(name), samples.arrays[name]), name
    assert (file.meta.sampling, file.meta.snapshot_hash) == (samples.meta.sampling, samples.meta.snapshot_hash)
    assert np.array_equal(file.affine, samples.affine)


@pytest.mark.parametrize(("words", "asked"), [
    (["sampler=multistep", "sampling.sampler.num_steps=3", "sampling.sampler.order=2"],
     {"sampler": "multistep", "num_steps": 3, "order": 2, "guidance": 1}),
    (["sampler=edm_sde", "sampling.sampler.num_steps=4", "sampling.classes=[ES]"],
     {"sampler": "edm_sde", "num_steps": 4, "classes": ["ES"], "guidance": 1}),
    (["sampler=edm_ode", "sampling.sampler.num_steps=2", "sampling.guidance.strength=2",
      "sampling.guidance.interval=[0.1,40]", "sampling.trajectory=true"],
     {"sampler": "edm_ode", "num_steps": 2, "guidance": {"strength": 2, "interval": [0.1, 40]}, "trajectory": True}),
    (["sampler=multistep", "sampling.sampler.num_steps=2", "sampling.decode=false"],
     {"sampler": "multistep", "num_steps": 2, "decode": False, "guidance": 1}),
])
def test_the_same_numbers_as_the_command(at, words, asked, tmp_path):
    succeed(generate.main, *DRAW, *words, f"sampling.outdir={tmp_path}")
    same_as_file(edm3d.load("net.pt", device="cpu").sample([5, 2, 6, 7, 8], batch_size=2, **asked),
                 str(tmp_path / "samples.h5"))


def test_the_sampler_of_the_experiment_is_drawn_by_unless_another_is_asked_for(at):
    model = edm3d.load("net.pt", device="cpu")
    own, more = model.sample("0-1"), model.sample("0-1", num_steps=4)
    assert own.meta.sampling["sampler"] == MULTISTEP and more.meta.sampling["sampler"] == {**MULTISTEP, "num_steps": 4}
    with pytest.raises(ValueError, match="sampling.sampler.num_step: no such parameter .*did you mean 'num_steps'"):
        model.sample([0], num_step=4)
    with pytest.raises(ValueError, match="sampler='multistp': no such sampler; did you mean 'multistep'"):
        model.sample([0], sampler="multistp")
    with pytest.raises(ValueError, match="sampler='heun': no such sampler; here that is sampler=edm_ode"):
        model.sample([0], sampler="heun")
    with pytest.raises(ValueError, match="seed 1 is there twice"):
        model.sample([1, 1])
    with pytest.raises(ValueError, match="guidance: no such part; did you mean 'strength'"):
        model.sample([1], guidance={"strengh": 2})
    for message, asked in {
            "attributes is a list, wanted": {"attributes": [1]}, "sweep is a list, wanted": {"sweep": [1]},
            "classes is 3, wanted a list": {"classes": 3}, "tile is 3, wanted": {"tile": 3},
            "guidance.strength is None, wanted": {"guidance": {"strength": None}}, "maps: cannot be taken": {"maps": 3},
            "guidance.interval is 3, wanted": {"guidance": {"strength": 2, "interval": 3}},
            r"images: cannot be taken as arrays of numbers \(setting": {"images": [[[1, 2], [3]]]},
            "a name in guidance.parts is 3": {"guidance": {"parts": {3: 1}}}}.items():
        with pytest.raises(ValueError, match=message):
            model.sample([1], **asked)
    assert model.sample(3).seeds == [3]


def test_the_guidance_of_the_experiment_is_drawn_by_unless_another_is_asked_for(at):
    model = edm3d.load("net.pt", device="cpu")
    own, same, plain = (model.sample("0-1", guidance=asked) for asked in (None, {"strength": 1.5}, 1))
    assert np.array_equal(own.latents, same.latents) and not np.array_equal(own.latents, plain.latents)
    assert own.meta.sampling["guidance"]["strength"] == 1.5 and "guidance" not in plain.meta.sampling


def test_samples_say_what_they_are_and_go_to_files(at, tmp_path):
    samples = edm3d.load("net.pt", device="cpu").sample(range(3))
    assert samples.images.shape == (3, 1, 8, 8, 8) and samples.labels.shape == (3, 8, 8, 8)
    assert samples.latents.shape == (3, 2, 4, 4, 4) and samples.labels.dtype == np.uint8
    assert (samples.units, samples.channels, samples.label_classes) == ("dB", ("echo",), CLASSES)
    assert samples.classes == ["ED", "ES", "ED"] and samples.spacing.tolist() == [2, 1.5, 3] and len(samples) == 3
    assert samples.images.min() >= -10 and samples.images.max() <= 30 and np.ptp(samples.images) > 1
    paths = samples.save_nifti(tmp_path / "nifti")
    assert [path.name for path in paths[:2]] == ["seed000000_image.nii.gz", "seed000000_label.nii.gz"]
    assert len(paths) == 6
    image, label = nibabel.load(paths[0]), nibabel.load(paths[1])
    assert np.array_equal(image.affine, AFFINE) and np.array_equal(image.get_fdata(), samples.images[0, 0])
    assert np.array_equal(label.get_fdata(), samples.labels[0])
    samples.save(tmp_path / "samples.npz")
    with pytest.raises(ValueError, match="wanted a name that ends in .h5 or .npz"):
        samples.save(tmp_path / "samples.txt")
    same_as_file(samples, str(tmp_path / "samples.npz"))


def test_what_is_printed_is_a_line(at):
    model = edm3d.load("net.pt", device="cpu")
    assert repr(model).startswith("Model(EDMPrecond, 0.03 M weights, [2, 4, 4, 4] latents of first stage ")
    assert repr(model.snapshot) == "Snapshot(diffusion, networks.precond.EDMPrecond, 12.034 kimg from net.pt)"
    assert repr(model.first_stage) == "FirstStage(AutoencoderKL of echo, fp32)"
    assert repr(model.sample([0])) == ("Samples(1 seeds, classes [1], latents [1, 2, 4, 4, 4], images [1, 1, 8, 8, 8], "
                                       "labels [1, 8, 8, 8], dB)")


def test_latents_alone_are_no_nifti(at, tmp_path):
    samples = edm3d.load("net.pt", device="cpu").sample([0], decode=False)
    assert samples.images is None
    with pytest.raises(ValueError, match="nothing decoded"):
        samples.save_nifti(tmp_path)


def test_denoise_is_the_network_itself(at):
    model, x = edm3d.load("net.pt", device="cpu"), noise()
    net = Snapshot.read(Path("net.pt")).build()
    assert torch.equal(model.denoise(x, 0.7), net(x, 0.7))
    assert torch.equal(model.denoise(x, torch.tensor([0.7, 3])), net(x, torch.tensor([0.7, 3])))
    x.requires_grad_(True)
    gradient, = torch.autograd.grad(model.denoise(x, 0.7).sum(), x)
    assert gradient.abs().max() > 0
    with pytest.raises(ValueError, match=r"x is \[2, 2, 4, 4\], wanted \[N, 2, 4, 4, 4\]"):
        model.denoise(x[..., 0], 0.7)


def test_the_first_stage_works_in_stored_units_and_scaled_latents(at):
    model = edm3d.load("net.pt", device="cpu")
    images, labels = model.first_stage.decode(noise())
    assert np.array_equal(model.sample([4]).images,
                          model.first_stage.decode(torch.from_numpy(model.sample([4]).latents))[0].numpy())
    bare = edm3d.load("stage.pt", device="cpu").first_stage
    raw = bare.posterior(bare.facts.intensity.to_network(images), labels).mean
    gain = torch.tensor([0.5 / 2.0, 0.5 / 0.5]).reshape(1, 2, 1, 1, 1)  # sigma_data / std
    shift = torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(model.first_stage.encode(images, labels), (raw - shift) * gain)
    torch.testing.assert_close(bare.encode(images, labels), raw)


def test_what_a_model_cannot_do_is_said(at):
    stage = edm3d.load("stage.pt", device="cpu")
    for action in (lambda: stage.sample([0]), lambda: stage.denoise(torch.zeros(1, 1, 8, 8, 8), 1.0)):
        with pytest.raises(ValueError, match="snapshot of task autoencoder draws nothing"):
            action()
    with pytest.raises(ValueError, match="name=nothing: no such file or folder"):
        edm3d.load("nothing")


# ---- publishing ----


def publish(dest: str, *words: str, name: str = "net.pt") -> str:
    return succeed(dataset_tool.main, "publish", name, "--dest", dest, "--licence", "cc-by-4.0", *words)


def test_a_published_folder_draws_the_same_bits_without_the_run(at, tmp_path):
    folder = tmp_path / "hub/echo"
    publish(str(folder))
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "first_stage.safetensors", "model.safetensors",
                                          "preprocessing.json"]
    wanted = edm3d.load("net.pt", device="cpu").sample(range(3), batch_size=2, guidance=1)
    with chdir(tmp_path):
        found = edm3d.load("hub/echo", device="cpu").sample(range(3), batch_size=2, guidance=1)
        found.save("samples.h5")
        succeed(generate.main, *DRAW, "sampling.network=hub/echo", "sampling.seeds=0-2", "sampler=multistep",
                "sampling.outdir=out", *(f"sampling.sampler.{k}={v}" for k, v in MULTISTEP.items() if k[0] != "_"))
        drawn = SamplesFile("out/samples.h5")
    for name, array in wanted.arrays.items():
        assert np.array_equal(array, found.arrays[name]) and np.array_equal(array, drawn.array(name)), name
    assert found.meta.snapshot_hash == wanted.meta.snapshot_hash


def test_a_published_first_stage_is_one(at, tmp_path):
    publish(str(tmp_path / "stage"), name="stage.pt")
    x, labels = torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    wanted, found = (edm3d.load(name, device="cpu").first_stage for name in ("stage.pt", tmp_path / "stage"))
    assert torch.equal(wanted.encode(x, labels), found.encode(x, labels))
    assert not (tmp_path / "stage/first_stage.safetensors").exists()
    assert "pipeline_tag" not in (tmp_path / "stage/README.md").read_text()  # it generates nothing


def test_no_pickle_and_no_folder_of_this_machine_is_in_what_is_published(at, tmp_path):
    publish(str(tmp_path / "echo"))
    for path in (tmp_path / "echo").iterdir():
        content = path.read_bytes()
        assert str(at).encode() not in content, path
        assert not content.startswith((b"PK", b"\x80")), path
    for name in ("model", "first_stage"):  # safetensors: the length of a JSON header, the header, the data
        content = (tmp_path / f"echo/{name}.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        ends = [entry["data_offsets"][1] for key, entry in json.loads(content[8:8 + size]).items() if key[0] != "_"]
        assert max(ends) == len(content) - 8 - size


EVIL = [{"_target_": "mymodule.run"}, {"_target_": "os.mkdir", "path": "proof"},
        {"_target_": "torch.nn.Identity", "x": {"_target_": "torch.load", "f": "evil.pt"}},
        {"_target_": "samplers.multistep.check_choice"}, {"_target_": "samplers.noise.ImageGenerators"},
        {"_target_": "samplers.multistep_sampler", "grid": "${oc.create:{_target_: os.mkdir, path: proof}}"},
        {"_target_": "samplers.multistep_sampler", "grid": {"_target_": "os.mkdir", "path": "proof"}}]


@pytest.mark.parametrize("node", EVIL, ids=lambda node: node["_target_"])
def test_the_sampler_that_a_file_names_runs_no_code(at, tmp_path, node):
    (tmp_path / "mymodule.py").write_text("from pathlib import Path\nPath('proof').touch()\nrun = print\n")
    snapshot = Snapshot.read(Path("net.pt"))
    with chdir(tmp_path):
        replace(snapshot, config={"sampling": {"sampler": node}}).save(Path("evil.pt"))
        publish("hub", name="evil.pt")
        for name in ("evil.pt", "hub"):
            model = edm3d.load(name, device="cpu")
            with pytest.raises(ValueError, match="sampling.trust=true or --trust"):
                model.sample([0])
            assert len(model.sample([0], sampler="multistep", num_steps=2)) == 1  # one that the user names
        assert not Path("proof").exists()


def test_what_is_drawn_from_a_published_folder_is_decoded_and_evaluated(at, tmp_path):
    publish(str(tmp_path / "hub"))
    samples = edm3d.load(tmp_path / "hub", device="cpu").sample(range(3), batch_size=1)
    latents = edm3d.load(tmp_path / "hub", device="cpu").sample(range(3), batch_size=1, decode=False)
    latents.save(tmp_path / "latents.h5")
    succeed(dataset_tool.main, "decode", "--latents", str(tmp_path / "latents.h5"), "--dest", str(tmp_path / "d.h5"),
            "--montage", "0", "--num-threads", "1")
    file = VolumesFile(tmp_path / "d.h5")
    found = np.stack([file.read(file.splits[0], i).image for i in range(3)])
    assert np.array_equal(found, samples.images)
    stage, reason = find_first_stage(SamplesFile(tmp_path / "latents.h5"), None, False, torch.device("cpu"))
    assert reason == "" and stage.net.latent_channels == 2


def test_an_experiment_that_needs_tiles_is_drawn_in_them(at, tmp_path):
    snapshot = Snapshot.read(Path("net.pt"))
    half = {**snapshot.config["sampling"], "batch_size": 1, "tile": [4, 8, 8], "tile_overlap": 0, "precision": "bf16"}
    replace(snapshot, config={"sampling": half}).save(tmp_path / "tiled.pt")
    settings = edm3d.load(tmp_path / "tiled.pt", device="cpu").sample([0]).meta.sampling
    assert (settings["tile"], settings["tile_overlap"], settings["precision"]) == ([4, 8, 8], 0, "bf16")
    for name, value in (("batch_size", "many"), ("sampler", ["a"]), ("tile", 8)):
        replace(snapshot, config={"sampling": {**half, name: value}}).save(tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=f"odd.pt: config.sampling.{name} is "):
            edm3d.load(tmp_path / "odd.pt", device="cpu").sample([0])


@pytest.mark.parametrize(("name", "change", "said"), [
    ("config.json", lambda text: re.sub(rb'"first_stage": {', b'"first_stage": "abc", "x": {', text),
     "content.first_stage is 'abc', wanted"),
    ("config.json", lambda text: text.replace(b'"hi": 30.0', b'"hi": 40.0'), "the checksum does not match"),
    ("config.json", lambda text: text.replace(b'"version": 1', b'"version": 2'), "version is 2; this program reads"),
    ("config.json", lambda text: text[:-9], "config.json: not readable as JSON"),
    ("model.safetensors", lambda text: text[:-1] + bytes([text[-1] ^ 1]), "the checksum does not match"),
    ("first_stage.safetensors", lambda text: text[:-5], "not readable as safetensors"),
    ("first_stage.safetensors", lambda text: b"", "not readable as safetensors"),
])
def test_damage_is_found(at, tmp_path, name, change, said):
    publish(str(tmp_path / "echo"))
    path = tmp_path / "echo" / name
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=said):
        edm3d.load(tmp_path / "echo", device="cpu")


def test_the_card_of_a_private_network_has_its_statement_and_names_no_data(at, tmp_path):
    plain, ledger = Snapshot.read(Path("net.pt")), Ledger("group", 320, 1.0, "prv", "1.6.0").after(0.75, 0.25, 40)
    said = PrivacyStatement(9.98, 1e-5, ledger, 1, "none", "random", ["the form of the data"])
    replace(plain, facts=replace(plain.facts, source="private data", content_hash=""), privacy=said).save(
        tmp_path / "net.pt")
    replace(plain, first_stage=replace(plain.first_stage, privacy=said)).save(tmp_path / "staged.pt")
    (tmp_path / "report.json").write_text(json.dumps({
        "generated": {"snapshot_hash": Snapshot.read(tmp_path / "net.pt").hash}, "private": {"marked": True}}))
    for name in ("net.pt", "staged.pt"):
        publish(str(tmp_path / f"of {name}"), name=str(tmp_path / name))
    text = (tmp_path / "of net.pt/README.md").read_text()
    part, _, rest = text.partition("## Differential privacy")[2].partition("\n## ")
    for line in ("| epsilon | 9.98 |", "| steps | 40 |", "| noise multiplier | 0.75, in 40 steps |",
                 "group, of 320 groups (patients)", "Not covered:\n\n- the form of the data"):
        assert line in part
    assert "not differentially private" not in rest and "Their file is not named." in text
    text = (tmp_path / "of staged.pt/README.md").read_text()
    assert "not differentially private, that of the first stage alone was." in text and "## Differential" not in text
    for words, wanted in ((("--report", str(tmp_path / "report.json")), "reads private data, not for release"),
                          (("--volumes", "vols.h5"), "does not say which volumes it was trained on")):
        assert wanted in refused(tmp_path, dataset_tool.main, "publish", str(tmp_path / "net.pt"), "--dest",
                                 str(tmp_path / "x"), "--licence", "other", *words)


def test_the_card_says_what_is_known_and_what_is_not(at, tmp_path):
    report = {"generated": {"snapshot_hash": Snapshot.read(Path("net.pt")).hash, "num": 8, "seeds": "0-7"},
              "real": {"num": 10, "reference": "split 'test'"},
              "metrics": {"lv_volume": {"ks": 0.25, "floor_p99": 0.5}, "shape": {"ks": None}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    publish(str(tmp_path / "echo"), "--report", str(tmp_path / "report.json"), "--title", "Echo", "--data",
            "Hearts of 5 pigs")
    front, text = (tmp_path / "echo/README.md").read_text().removeprefix("---\n").split("---\n", 1)
    front = yaml.safe_load(front)
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "edm3d"
    assert front["pipeline_tag"] == "other" and {"3d", "class-label-conditional"} <= {*front["tags"]}
    (result,) = front["model-index"][0]["results"]
    assert [(each["type"], each["value"]) for each in result["metrics"]] == [("ks", 0.25)]
    assert "| Kolmogorov-Smirnov distance, lv_volume | 0.25 | 0.5 |" in text and "Hearts of 5 pigs" in text
    assert "field of view of 16 x 12 x 24 mm" in text and "in dB, clipped to -10 to 30" in text
    unknown = text.split("## What is not known")[1]
    assert "Under which terms the data may be used." in unknown and "What the data are" not in unknown
    assert "no report was given" not in unknown and "How the volumes were prepared" not in unknown
    contract = json.loads((tmp_path / "echo/preprocessing.json").read_text())
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "echo").iterdir()} == {
        0o666 & ~(os.umask(0o22) or os.umask(0o22))}
    assert contract["preparation"]["kind"] == "phantom" and contract["spacing_mm"] == [2, 1.5, 3]
    publish(str(tmp_path / "bare"))
    assert "no report was given" in (tmp_path / "bare/README.md").read_text()


def test_the_card_says_what_a_network_can_be_asked_for_and_in_which_range():
    facts = Facts("v.h5", "", label_classes=("out", "heart"), attribute_names=("volume",), attribute_units=("mL",),
                  attribute_statistics=AttributeStatistics([80], [9], [40.5], [120], [0]))
    net = torch.nn.Identity()
    assert about_conditions(facts, net) == ""
    net.takes = {"attributes": Part(1, 0.1), "semantic": Part(2)}
    assert about_conditions(facts, net).splitlines()[2:] == [
        "- `attributes`: volume [mL] 40.5 to 120; may be left out",
        "- `semantic`: out, heart; is needed, as it was never trained without"]


def test_what_cannot_be_published_is_refused_and_leaves_nothing(at, tmp_path):
    publish("out/echo")
    words = ["publish", "net.pt", "--licence", "x", "--dest"]
    assert "holds files already" in refused(at, dataset_tool.main, *words, "out/echo")
    succeed(dataset_tool.main, *words, "out/echo", "--overwrite")
    assert "holds files already" in refused(at, dataset_tool.main, *words, "out", "--overwrite")
    report, other = str(tmp_path / "report.json"), str(tmp_path / "else.h5")
    Path(report).write_text('{"generated": {"snapshot_hash": "abc"}}')
    assert "of samples of another network (abc" in refused(at, dataset_tool.main, *words, "o2", "--report", report)
    succeed(dataset_tool.main, "phantom", "--dest", other, "--num", "4", "--size", "8", "--seed", "9")
    said = refused(at, dataset_tool.main, *words, "o2", "--volumes", other)
    assert "not the volumes that the network was trained on" in said
    shutil.rmtree("out")


def test_a_publishing_that_was_killed_goes_on(at, tmp_path, monkeypatch):
    publish("cut0")
    for number in range(1, 5):  # files that are there; the next one never comes
        written, folder = iter(range(number)), f"cut{number}"

        def cut(move=os.replace, written=written) -> Callable[[Path, Path], None]:
            def replaced(old: Path, new: Path) -> None:
                next(written)
                move(old, new)
            return replaced

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut())
            assert call(dataset_tool.main, "publish", "net.pt", "--dest", folder, "--licence", "cc-by-4.0").exit_code
        assert len(list(Path(folder).iterdir())) == number
        if number < 3:  # config.json, the network; its first stage comes then
            with pytest.raises(ValueError, match="safetensors: no such file; publish the network again"):
                edm3d.load(folder)
            assert "1 bad" in call(dataset_tool.main, "check", folder).output
        assert "holds files already" in refused(at, dataset_tool.main, "publish", "stage.pt", "--licence", "cc-by-4.0",
                                                "--dest", folder)
        publish(folder)
        for file in Path("cut0").iterdir():
            same = file.read_bytes().replace(b"cut0", folder.encode()) == (Path(folder) / file.name).read_bytes()
            assert same or file.suffix == ".safetensors", file
        publish(folder)
    for folder in Path().glob("cut?"):
        shutil.rmtree(folder)


# ---- training, and the page ----

ONE_STEP = ["dataset=arrays", "training.dataset.path=x.npy", "training.network.model.model_channels=8",
            "training.network.model.channel_mult=[1]", "training.network.model.attention_levels=[]",
            "training.options.batch_size=4", "training.options.total_kimg=0.004",
            "training.options.kimg_per_tick=0.004", "training.options.num_threads=1", "training.options.device=cpu",
            "training.validation.max_items=0",
            "training.validation.preview_ticks=null", "training.options.lr_schedule=constant"]


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the only snapshot in a run folder."""
    path, = run.glob("network-snapshot-*.pt")
    return Snapshot.read(path).weights


def test_training_is_that_of_the_command(tmp_path, capsys):
    with chdir(tmp_path):
        np.save("x.npy", np.random.default_rng(0).random((4, 1, 8, 8), np.float32))
        succeed(train.main, "-cn=voxels_edm", *ONE_STEP)
        runs = [edm3d.train("voxels_edm", *ONE_STEP), edm3d.train("results/00000-voxels_edm/config.yaml", name="again")]
        keys = {"training": {"options": {"total_kimg": 0.008, "lr_schedule": "constant"}}}
        runs.append(edm3d.train({"defaults": ["voxels_edm", "_self_"], **keys}, *ONE_STEP, name="more"))
        Path("own.yaml").write_text("defaults: [voxels_edm, _self_]\n")
        runs.append(edm3d.train("own.yaml", *ONE_STEP))
        assert [str(run) for run in runs] == ["results/00001-voxels_edm", "results/00002-again", "results/00003-more",
                                              "results/00004-own"]
        wanted = trained_weights(Path("results/00000-voxels_edm"))
        for run in runs:
            found = trained_weights(run)
            assert all(torch.equal(found[name], w) for name, w in wanted.items()), run
        assert edm3d.train("voxels_edm", *ONE_STEP, "training.options.dry_run=true") is None
        for config, said in (("voxel_edm", "did you mean 'voxels_edm'"), ("none.yaml", "none.yaml"),
                             ({"training": {"optoins": {}}}, "did you mean 'options'")):
            with pytest.raises(ValueError, match=said):
                edm3d.train(config, name="x" if isinstance(config, dict) else None)
        Path("list.yaml").write_text("- a\n")
        for config, name, said in (("list.yaml", None, "list.yaml: wanted keys and values"),
                                   ("voxels_edm", "a/b", "name='a/b': wanted letters")):
            with pytest.raises(ValueError, match=said):
                edm3d.train(config, name=name)


def test_a_file_with_groups_beside_it_is_trained_under_any_name(tmp_path, capsys):
    with chdir(tmp_path):
        np.save("x.npy", np.random.default_rng(0).random((4, 1, 8, 8), np.float32))
        Path("exp/dataset").mkdir(parents=True)
        Path("exp/dataset/mine.yaml").write_text("# @package training.dataset\n"
                                                 "_target_: training.datasets.arrays.ArraysDataset\npath: x.npy\n")
        Path("exp/own.yaml").write_text("defaults: [voxels_edm, {override dataset: mine}, _self_]\n"
                                        "training: {dataset: {path: x.npy}}\n")
        step = [each for each in ONE_STEP if "dataset" not in each]
        assert edm3d.train("exp/own.yaml", *step, name="called") == Path("results/00000-called")
        given = {"defaults": ["voxels_edm", "_self_"]}
        assert edm3d.train(given, *ONE_STEP, name="voxels_edm") == Path("results/00001-voxels_edm")


def test_the_page_works_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python")[1]
    blocks = [re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in (page, readme)]
    tiny = ["training.network.channels=[4,8,8]", "training.network.model.model_channels=8",
            "training.network.model.attention_levels=[]", "training.options.batch_size=4",
            "training.options.num_threads=1", "training.options.device=cpu", "training.options.kimg_per_tick=0.008",
            "training.options.min_psnr=null",
            "training.validation.max_items=2", "training.validation.preview_ticks=null",
            "training.options.total_kimg=0.008"]
    with chdir(tmp_path):
        succeed(dataset_tool.main, "phantom", "--dest", "data/echo.h5", "--num", "10", "--size", "16")
        succeed(train.main, "-cn=echo_vae", *tiny[:1], *tiny[3:])
        succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
                "data/echo_latents.h5")
        run = edm3d.train("echo_edm", *tiny[1:])
        assert run == Path("results/00001-echo_edm")
        monkeypatch.setattr("edm3d.training.from_python.compose", lambda name, overrides, folder: compose(
            name, [*overrides, *tiny[1:]], folder))
        namespace: dict = {}
        capsys.readouterr()
        for block in blocks[0]:
            exec(block, namespace)
        said = capsys.readouterr().out
        assert "(8, 1, 16, 16, 16) a.u." in said and "('background', 'cavity', 'myocardium', 'atrium')" in said
        assert namespace["z"].shape == (2, *namespace["model"].shape) and namespace["x"].isfinite().all()
        assert namespace["latents"].shape == (4, *namespace["model"].shape)
        assert len(list(Path("results/mine/nifti").iterdir())) == 16 and Path("results/mine/samples.h5").is_file()
        assert namespace["run"].name == "00003-mine"
        for block in blocks[1]:
            exec(block, {})
        assert len(list(Path("nifti").iterdir())) == 16
