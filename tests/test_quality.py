"""Samples that leave the ranges of training are drawn again: by streams of their own, whatever they are drawn with."""

from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dataset_tool
import edm3d
import generate
from edm3d.formats.facts import AttributeStatistics, Facts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleStage
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference import drawing
from edm3d.inference.asking_scans import asker_for
from edm3d.inference.compared import describe_samples, ranges
from edm3d.inference.conditions import Conditions
from edm3d.inference.latent_source import open_source
from edm3d.inference.quality import check_quality, check_reference, known_spans, outside
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.cases import Layout
from edm3d.reporting.comparison import by_quality
from edm3d.samplers import ImageGenerators
from edm3d.utils.config import build
from edm3d.utils.schema import Quality
from tests.commands import call, refused, succeed
from tests.test_volumes import make_item

SEEDS = 16
DRAW = ["-cn=brainweb2d_edm", "sampling.network=net.pt", "sampling.num_threads=1", "sampling.device=cpu",
        "sampling.sampler.num_steps=2", "sampling.nifti=false", "sampling.montage=0", "sampling.format=h5"]
CHECKED = ["sampling.quality.attempts=3", "sampling.quality.reference=usual.h5", "sampling.quality.margin=0",
           "sampling.quality.quantile=0"]
NODE = {"_target_": "networks.precond.EDMPrecond", "model": {
    "_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, "spatial_dims": 2, "model_channels": 8,
    "channel_mult": [1], "num_blocks": 1, "attention_levels": []}}


def write_reference(path: str, lo: float, hi: float, channel: str = "t1", split: str = "train") -> None:
    """Images of all means from lo to hi, which 0.5 is between, and of all standard deviations that there are."""
    meta = VolumesMeta(2, (channel,), ("target",), (), (), (), (), Intensity(0.0, 1.0, True, ""))
    with VolumesWriter(path, meta, {}) as writer:
        for i, (mean, spread) in enumerate([(lo, 0), (hi, 0), (0.5, 0.5)]):
            image = mean + spread * np.where(np.indices((8, 8)).sum(0) % 2, 1, -1)
            writer.add(split, make_item(i, image=image[None].astype(np.float32), label=None,
                                        attributes=None, class_index=None, box=full_box((8, 8))))


def drawn(outdir: str, *words: str, seeds: str = f"0-{SEEDS - 1}") -> SamplesFile:
    """Samples as generate draws them."""
    succeed(generate.main, *DRAW, f"sampling.seeds={seeds}", f"sampling.outdir={outdir}", *words)
    return SamplesFile(f"{outdir}/samples.h5")


def means(samples: SamplesFile) -> np.ndarray:
    return samples.array("images").mean((1, 2, 3), dtype=np.float64)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with an untrained network, whose samples are scaled noise, and a file that a part of them is unlike."""
    folder = tmp_path_factory.mktemp("quality")
    with chdir(folder):
        facts = Facts("nowhere.h5", "", ("t1",), intensity=Intensity(0.0, 1.0, True, ""), spatial_shape=(8, 8))
        Snapshot("diffusion", NODE, facts, (1, 8, 8), weights=build(NODE).state_dict()).save(Path("net.pt"))
        lo, hi = np.quantile(means(drawn("plain")), (0.35, 0.65))
        write_reference("usual.h5", lo, hi)
        drawn("checked", *CHECKED, "sampling.batch_size=1")
    return folder


def test_nothing_is_checked_unless_it_is_asked_for(at):
    plain = SamplesFile("plain/samples.h5")
    assert "quality" not in plain.meta.sampling and not {"attempts", "flagged"} & set(plain.names)


def test_a_sample_is_of_the_first_attempt_that_is_usual_and_attempts_have_streams_of_their_own(at):
    """Against draws of every attempt on its own; those without any that is usual keep the least far out, flagged."""
    samples = SamplesFile("checked/samples.h5")
    ranges = samples.meta.quality.ranges
    model = edm3d.load("net.pt", device="cpu")
    options = model.options("edm_ode", {"num_steps": 2})
    conditions = asker_for(model.net, model.snapshot, options)(options)
    drawer = drawing.make_drawer(model.net, model.snapshot, options, model.device, conditions)
    every = np.stack([[drawing.draw(drawer, [seed], attempt)["images"][0] for attempt in range(3)]
                      for seed in range(SEEDS)])
    np.testing.assert_array_equal(every[:, 0], SamplesFile("plain/samples.h5").array("images"))
    lo, hi = ranges["intensity_mean"]
    out = np.maximum(np.maximum(lo - (m := every.mean((2, 3, 4), dtype=np.float64)), m - hi), 0)
    wanted = np.where((out == 0).any(1), (out == 0).argmax(1), out.argmin(1))
    assert samples.array("attempts").tolist() == wanted.tolist() and len(set(wanted)) == 3
    assert samples.array("flagged").tolist() == (out > 0).all(1).astype(int).tolist()
    np.testing.assert_array_equal(samples.array("images"), every[np.arange(SEEDS), wanted])
    assert 0 < samples.array("flagged").sum() < SEEDS / 2
    key = samples.meta.key_of(5, 2)
    assert key == "5.attempt2" and samples.meta.key_of(5) == 5
    assert (ImageGenerators([key]).randn((4,)) != ImageGenerators([5]).randn((4,))).all()


def test_a_volume_depends_on_its_seed_alone(at):
    """Whatever the batch, the company, and a stop in the middle."""
    one = SamplesFile("checked/samples.h5")
    some = drawn("four", *CHECKED, "sampling.batch_size=4", seeds="3-14")
    for name in ("attempts", "flagged"):
        np.testing.assert_array_equal(some.array(name), one.array(name)[3:15])
    np.testing.assert_allclose(some.array("images"), one.array("images")[3:15], atol=1e-5)


def test_a_run_that_was_killed_goes_on_to_the_same(at, monkeypatch):
    one, draw, calls = SamplesFile("checked/samples.h5"), drawing.draw, []

    def killed(*arguments):
        calls.append(0)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return draw(*arguments)

    words = [*DRAW, *CHECKED, f"sampling.seeds=0-{SEEDS - 1}", "sampling.outdir=killed", "sampling.batch_size=1"]
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", killed)
        assert call(generate.main, *words).exit_code
    left = len(list(Path("killed/parts").rglob("*.npz")))
    said = succeed(generate.main, *words)
    assert left and f"{left} there already" in said
    again = SamplesFile("killed/samples.h5")
    for name in one.names:
        np.testing.assert_array_equal(again.array(name), one.array(name))


def test_what_was_drawn_again_is_said_wherever_samples_are_described(at):
    samples = SamplesFile("checked/samples.h5")
    said = succeed(generate.main, *DRAW, *CHECKED, f"sampling.seeds=0-{SEEDS - 1}", "sampling.outdir=checked",
                   "sampling.batch_size=1")
    flagged = samples.seeds[samples.array("flagged") > 0]
    again = int(((samples.array("attempts") > 0) | (samples.array("flagged") > 0)).sum())
    line = f"{again} of {SEEDS} seeds drawn again, {len(flagged)} flagged: seed {flagged[0]}"
    assert f"Quality   {line}" in said
    for command in ("check", "info"):
        assert f"quality check, 3 attempts at most: {line}" in succeed(dataset_tool.main, command, "checked/samples.h5")
    python = edm3d.load("net.pt", device="cpu").sample(
        "0-3", sampler="edm_ode", num_steps=2, batch_size=1,
        quality={"attempts": 3, "reference": "usual.h5", "margin": 0.0, "quantile": 0.0})
    np.testing.assert_array_equal(python.arrays["attempts"], samples.array("attempts")[:4])


def test_samples_of_another_check_are_not_mixed(at):
    said = refused(at, generate.main, *DRAW, "sampling.outdir=checked", f"sampling.seeds=0-{SEEDS - 1}")
    assert "another sampling" in said and "quality" in said
    Path("moved.h5").write_bytes(Path("usual.h5").read_bytes())
    words = [word.replace("usual", "moved") for word in CHECKED]
    assert f"{SEEDS} there already" in succeed(generate.main, *DRAW, *words, "sampling.outdir=checked",
                                               f"sampling.seeds=0-{SEEDS - 1}", "sampling.batch_size=1")


def test_files_whose_attempts_cannot_be_are_refused(at):
    samples = SamplesFile("checked/samples.h5")
    arrays = {name: samples.array(name) for name in samples.names}
    for changes, wanted in (({"attempts": arrays["attempts"] + 3}, "attempts are 3 to"),
                            ({"flagged": arrays["flagged"] + 2}, "flagged are 2 to 3, wanted 0 to 1"),
                            ({"flagged": None}, "holds attempts, and sampling.quality is there")):
        changed = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        write_samples("odd.h5", samples.seeds.tolist(), changed, samples.affine, samples.meta)
        with pytest.raises(ValueError, match=wanted):
            SamplesFile("odd.h5")


def test_a_report_says_what_was_drawn_again(at):
    samples = SamplesFile("checked/samples.h5")
    said = describe_samples(samples, None, False)["quality"]
    assert said["num_of_attempt"] == np.bincount(samples.array("attempts"), minlength=3).tolist()
    assert said["flagged"] == samples.array("flagged").sum() > 0
    assert said["flagged_seeds"] == ranges(samples.seeds[samples.array("flagged") > 0])
    line = by_quality(said)
    assert f"of {SEEDS} seeds drawn again" in line and "3 attempts at most" in line and "intensity_mean 0." in line
    plain = describe_samples(SamplesFile("plain/samples.h5"), None, False)["quality"]
    assert by_quality(plain).startswith("none: the samples were drawn without sampling.quality")


def test_refining_latents_later_takes_the_noise_of_the_attempt(at):
    """As decode --refiner does: the key of a sample is that of the attempt which was kept."""
    samples = SamplesFile("checked/samples.h5")
    row = int(np.flatnonzero(samples.array("attempts"))[0])
    arrays = {name: samples.array(name) for name in samples.names if name != "images"}
    arrays["latents"] = samples.array("images")
    stage = SampleStage("abc", LatentScaling([0.0], [1.0]))
    write_samples("latents.h5", samples.seeds.tolist(), arrays, samples.affine, samples.meta._replace(stage=stage))
    assert open_source(Path("latents.h5")).rows[row].key == f"{samples.seeds[row]}.attempt{arrays['attempts'][row]}"


def test_what_a_snapshot_knows_is_the_range_of_attributes_that_are_measured():
    layout = Layout(("echo",), ("background", "cavity"), (1.0, 1.0, 1.0), 0.0, 10.0, "")
    known = AttributeStatistics([5.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [10.0, 2.0, 5.0], [0, 0, 0])
    facts = Facts("", "", attribute_names=("age", "cavity_volume", "lv_volume"), attribute_units=("y", "mL", "mL"),
                  attribute_statistics=known, intensity=Intensity(0.0, 10.0, False, ""))
    assert known_spans(facts, layout, 0.25) == {"intensity_mean": [-2.5, 12.5], "lv_volume": [0.0, 6.0]}
    litres = Facts("", "", attribute_names=facts.attribute_names, attribute_units=("y", "L", "L"),
                   attribute_statistics=known, intensity=Intensity(0.0, 10.0, True, ""))
    assert known_spans(litres, layout, 0) == {}
    assert outside(7, 1, 5) == 0.5 and outside(0, 1, 5) == 0.25 and outside(1, 1, 5) == 0
    assert outside(float("nan"), 1, 5) == float("inf") and outside(3, 2, 2) == 1


@pytest.mark.parametrize(("words", "wanted"), [
    ({"attempts": 0}, "sampling.quality.attempts=0: wanted 1 to 1000"),
    ({"reference": "usual.h5"}, "nothing is drawn again without sampling.quality.attempts"),
    ({"attempts": 2, "quantile": 0.5}, "sampling.quality.quantile=0.5: wanted 0 or more and less than 0.5"),
    ({"attempts": 2, "margin": -1.0}, "sampling.quality.margin=-1.0: wanted 0 or more"),
    ({"attempts": 2}, "net.pt knows no range that a sample could leave"),
    ({"attempts": 2, "reference": "gone.h5"}, "sampling.quality.reference=gone.h5: "),
    ({"attempts": 2, "reference": "other.h5"}, "its channels are flair, samples have t1"),
    ({"attempts": 2, "reference": "val.h5"}, "wanted a split 'train' of 2 volumes or more; it has val \\(3\\)"),
    ({"attempts": 2, "reference": "solid.h5"}, "its volumes are in 3D, samples in 2D"),
])
def test_checks_that_cannot_be_made_are_refused_before_anything_is_drawn(at, words, wanted):
    if not Path("solid.h5").exists():
        write_reference("other.h5", 0.2, 0.8, "flair")
        write_reference("val.h5", 0.2, 0.8, split="val")
        succeed(dataset_tool.main, "phantom", "--dest", "solid.h5", "--num", "4", "--size", "8")
    with pytest.raises(ValueError, match=wanted):
        check_quality(Quality(**words))
        drawing.make_ranges(Quality(**words), Snapshot.read(Path("net.pt")), None, Conditions({}, {}, (8, 8)))


def test_classes_and_intensities_of_the_reference_must_be_those_of_the_samples(at):
    file = VolumesFile("usual.h5")
    for layout, wanted in ((Layout(("t1",), ("background", "lesion"), (1, 1), 0, 1, ""), "its label classes are none"),
                           (Layout(("t1",), (), (1, 1), 0, 2, ""), "its intensities are of the range")):
        with pytest.raises(ValueError, match=wanted):
            check_reference(file, layout, (8, 8))


def test_what_has_no_usual_range_is_refused():
    snapshot = Snapshot("diffusion", NODE, Facts("", ""), (1, 8, 8))
    for scans, sweep, wanted in ((object(), None, "images of scans"), (None, object(), "sampling.sweep draws all")):
        with pytest.raises(ValueError, match=wanted):
            drawing.make_ranges(Quality(attempts=2), snapshot, None, SimpleNamespace(scans=scans, sweep=sweep))
