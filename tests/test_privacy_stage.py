"""What a first stage says of privacy travels: latents, snapshots, statements, and what all have spent together."""

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("opacus")

import generate
import train
from dataset_tool import main
from edm3d.formats.describe import describe
from edm3d.formats.dose import DoseRecord
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import EncodedSplit, FirstStageRecord, LatentsFile, write_latents
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.refinement import Refinement
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.training.private.accounting import epsilon
from edm3d.training.private.budget import open_budget
from edm3d.training.private.checks import CODES_STAY
from edm3d.training.private.release import Release, needed
from edm3d.utils.runs import list_files
from tests.commands import refused, succeed
from tests.test_privacy_runs import PRIVACY
from tests.toy import OPTIONS, Points

SCALING = LatentScaling([0.0], [1.0])
STAGE_HASH = "5" * 64


def spent(steps: int, public: Snapshot | None = None, unit: str = "record") -> Release:
    """A training of so many steps."""
    budget = open_budget(PRIVACY, OPTIONS, Points())
    for _ in range(steps):
        budget.spend()
    budget.ledger = budget.ledger._replace(unit=unit)
    return Release(budget, public)


def statement(steps: int, unit: str = "record") -> PrivacyStatement:
    """That of a first stage."""
    return spent(steps, unit=unit).statement(Snapshot("autoencoder", {}, Facts("f", "h"), (1, 4)))


def diffusion(privacy: PrivacyStatement | None, path: Path | None = None, **more: object) -> Snapshot:
    """A snapshot on latents of a first stage."""
    stage = CarriedStage(SCALING, {"_target_": "x"}, {"w": torch.zeros(2)}, STAGE_HASH, privacy=privacy)
    snapshot = Snapshot("diffusion", {}, Facts("f", "h"), (1, 4), stage, {"w": torch.zeros(2)}, **more)
    if path is None:
        return snapshot
    snapshot.save(path)
    return Snapshot.read(path)


def latents(path: Path, privacy: PrivacyStatement | None) -> Path:
    """A latents file of a first stage."""
    split = EncodedSplit(np.zeros((2, 1, 4), np.float32), np.ones((2, 1, 4), np.float32), ["a", "b"], ["a", "b"],
                         np.stack([np.eye(4)] * 2))
    record = FirstStageRecord({}, {"w": np.zeros(2, np.float32)}, STAGE_HASH, privacy)
    write_latents(path, {"train": split}, record, Facts("f", "h", spatial_shape=(8,)), {"kind": "test"})
    return path


def test_latents_and_snapshots_carry_the_statement_of_their_first_stage(tmp_path):
    said = statement(3)
    file = LatentsFile(latents(tmp_path / "latents.h5", said))
    assert file.first_stage_privacy == file.first_stage().privacy == said
    assert "  Of the first stage:" in list(describe(file.path))
    stage = CarriedStage.from_record(file.first_stage(), SCALING)
    assert stage.privacy == said
    assert diffusion(stage.privacy, tmp_path / "a.pt").first_stage.privacy == said
    assert stage.with_network(replace(diffusion(None), privacy=None)).privacy is None
    plain = LatentsFile(latents(tmp_path / "plain.h5", None))
    assert plain.first_stage_privacy is None and "privacy" not in CarriedStage(SCALING).plain()


def test_a_diffusion_says_whether_its_first_stage_was_private(tmp_path):
    said = spent(2).statement(diffusion(stage := statement(3)))
    assert said.first_stage == (f"555555555555, privately trained: epsilon {stage.epsilon:.4g} at delta 0.001 per "
                                "record, of 31 records of its own")
    assert [each.what for each in said.earlier] == ["first stage 555555555555"]
    assert said.earlier[0].ledger == stage.ledger
    lines = "\n".join(said.lines())
    assert f"with what it stands on: epsilon {said.epsilon + stage.epsilon:.4g} at delta 0.002 per record" in lines
    assert PrivacyStatement.from_plain(said.plain(), "file") == said
    unknown = spent(2).statement(diffusion(None))
    assert unknown.first_stage.endswith("of which nothing is known: public, or not covered here")
    assert any("what the first stage 555555555555 has learnt" in text for text in unknown.not_covered)
    public = spent(2, diffusion(None, tmp_path / "public.pt")).statement(diffusion(None))
    assert public.first_stage.endswith("taken as public") and not public.earlier
    assert not any("has learnt" in text for text in public.not_covered)


def test_units_that_do_not_add_up_are_named():
    lines = list(spent(2).statement(diffusion(statement(3, "group"))).lines())
    assert any("does not add up, as that is counted per group and this per record" in line for line in lines)


def test_what_a_refiner_or_a_network_of_doses_takes_from_its_data_is_named():
    refines = Refinement(STAGE_HASH, "residual", [[[0.0, 1.0]]], [[[0.0, 0.0]]], [[[1.0, 1.0]]])
    snapshot = replace(diffusion(None), first_stage=None, refines=refines)
    release = spent(1)
    found = release.statement(snapshot)
    assert any("by which a refiner scales" in text for text in found.not_covered)
    assert found.first_stage.startswith("555555555555, of which nothing is known")
    doses = DoseRecord({}, {}, "kBq/mL", "pair", 3.5, 0.125)
    for public, named in ((None, True), (replace(snapshot, refines=None, dose=doses), False)):
        said = spent(1, public).statement(replace(snapshot, refines=None, dose=doses))
        assert any("mean scale of scans" in text for text in said.not_covered) == named
    release.refined = statement(3)
    assert release.statement(snapshot).first_stage.startswith("555555555555, privately trained")
    release.public = snapshot
    assert not any("by which a refiner scales" in text for text in release.statement(snapshot).not_covered)


def test_all_that_a_training_stands_on_is_counted_once(tmp_path):
    """A first stage of 3 steps; a diffusion of 2 on it; one of 4 that goes on from that one, on the same latents."""
    stage = statement(3)
    file = latents(tmp_path / "latents.h5", stage)
    first = replace(diffusion(stage), privacy=spent(2).statement(diffusion(stage)))
    first.save(tmp_path / "first.pt")
    second = replace(first, privacy=spent(4, Snapshot.read(tmp_path / "first.pt")).statement(diffusion(stage)))
    second.save(tmp_path / "second.pt")
    whole = epsilon([spent(9).budget.ledger.history[0]], 1e-3)
    for paths in (["second.pt"], ["second.pt", "first.pt"], ["latents.h5", "second.pt"]):
        lines = succeed(main, "privacy-ledger", *(str(tmp_path / name) for name in paths)).splitlines()
        assert lines[-1].startswith(f"Together: epsilon {whole:.4g} at delta 0.001 per record") and len(lines) == 4
    assert "3 steps on 31 records" in succeed(main, "privacy-ledger", str(file))
    replace(second, privacy=second.privacy._replace(earlier=statement(3, "group").as_earlier("first stage"))).save(
        tmp_path / "other.pt")
    assert "different units (group, record)" in refused(tmp_path, main, "privacy-ledger", str(tmp_path / "other.pt"))


def test_a_damaged_statement_of_what_it_stands_on_is_refused():
    found = spent(2).statement(diffusion(statement(3))).plain()
    for key, value in (("delta", 2.0), ("epsilon", -1.0), ("ledger", {**found["ledger"], "unit": "x"})):
        bad = {**found, "earlier": [{**found["earlier"][0], key: value}]}
        with pytest.raises(ValueError, match=r"file: privacy"):
            PrivacyStatement.from_plain(bad, "file")


# ---- by the command line ----

COMMON = ["training.options.batch_size=4", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.008",
          "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
          "training.validation.max_items=0", "training.validation.preview_ticks=null", "training.optimizer.lr=1e-3"]
STAGE = ["-cn=echo_vae", "autoencoder=vq", "training.network.channels=[4,4]", "training.network.codebook_size=8",
         *COMMON]
EDM = ["-cn=echo_edm", "training.options.min_psnr=null", *COMMON, *(f"training.network.model.{key}" for key in (
    "model_channels=8", "channel_mult=[1]", "attention_levels=[0]", "channels_per_head=8", "attribute_dim=auto"))]
PRIVATE = ["privacy=eps10", "training.privacy.target_delta=1e-3", "training.privacy.noise_multiplier=1"]


@pytest.mark.slow
def test_from_public_networks_to_private_samples(tmp_path):
    """A VQ stage and a diffusion of public phantoms, both tuned privately on others, and samples of the end."""
    with chdir(tmp_path):
        for name, count, seed in (("public", 16, 0), ("mine", 24, 1)):
            succeed(main, "phantom", "--dest", f"{name}.h5", "--num", str(count), "--size", "8", "--seed", str(seed))

        def encode(stage: str, data: str) -> None:
            succeed(main, "encode", "--autoencoder", f"{stage}/00000-echo_vae", "--source", f"{data}.h5", "--dest",
                    f"{data}_latents.h5", "--num-threads", "1")

        succeed(train.main, *STAGE, "training.dataset.path=public.h5", "training.options.run_root=stage")
        encode("stage", "public")
        succeed(train.main, *EDM, "training.dataset.path=public_latents.h5", "training.options.run_root=edm")
        succeed(train.main, *STAGE, *PRIVATE, "training.dataset.path=mine.h5", "training.options.run_root=mine_stage",
                "training.options.init_from=stage/00000-echo_vae", CODES_STAY)
        encode("mine_stage", "mine")
        stage = LatentsFile(Path("mine_latents.h5")).first_stage_privacy
        assert stage.trained.endswith(f"({CODES_STAY})") and not any("intensity" in text for text in stage.not_covered)
        said = succeed(train.main, *EDM, *PRIVATE, "training.dataset.path=mine_latents.h5",
                       "training.options.run_root=mine_edm", "training.options.init_from=edm/00000-echo_edm",
                       "training.options.trainable=attention")
        assert "In CPU autocast" not in said and "first stage: " in said
        before, after = (Snapshot.read(list_files(Path(f"{root}/00000-echo_edm"), "network-snapshot")[-1])
                         for root in ("edm", "mine_edm"))
        moved = {name for name, w in after.weights.items() if not torch.equal(w, before.weights[name])}
        assert moved and all(any(part in name for part in ("norm2", "qkv", "proj")) for name in moved)
        assert after.first_stage.scaling == needed(before.first_stage.scaling)
        for key in ("attribute_mean", "attribute_std"):
            assert after.network["model"][key] == before.network["model"][key] is not None
        assert not any(what in text for text in after.privacy.not_covered for what in ("mean and", "intensity"))
        assert [each.ledger for each in after.privacy.earlier] == [stage.ledger]
        assert "privately trained" in after.privacy.first_stage and "taken as public" in after.privacy.start
        succeed(generate.main, "-cn=echo_edm", "sampling.network=mine_edm/00000-echo_edm", "sampling.seeds=0",
                "sampling.outdir=out", "sampling.sampler.num_steps=2", "sampling.num_threads=1",
                *(f"sampling.attributes.{told}" for told in ("lv_volume=40", "wall_thickness=9", "la_volume=20",
                                                             "tilt=0")))
        lines = succeed(main, "privacy-ledger", "out/samples.h5", "mine_stage/00000-echo_vae").splitlines()
        assert len(lines) == 3 and lines[-1].startswith("Together: epsilon")
