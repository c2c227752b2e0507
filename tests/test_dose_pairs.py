"""Pairs of doses that are simulated while training: what the network sees, and what its snapshots say."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from edm3d.formats.dose import DoseRecord
from edm3d.inference import scans
from edm3d.inference.batch import collate
from edm3d.inference.snapshot import Snapshot
from edm3d.physics import dose
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.dose import DoseSimulation
from edm3d.physics.pet_phantoms import pet_stack
from edm3d.physics.projector import system_matrix
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.augment import AugmentPipe
from edm3d.training.datasets.phantoms import PhantomDataset
from edm3d.training.dose_pairs import DosePairs

SIZE = 16
TINY = ["-cn=pet_phantoms", "training.dataset.path=p.npz", "training.dataset.held_out_subjects=1",
        f"training.batch_transform.simulation.size={SIZE}", "training.batch_transform.simulation.iterations=5",
        "training.batch_transform.num=4", "training.network.model.model_channels=8",
        "training.network.model.channel_mult=[1]", "training.network.model.attention_levels=[]",
        "training.network.model.channels_per_head=8", "training.options.batch_size=4",
        "training.options.total_kimg=0.016", "training.options.kimg_per_tick=0.008", "training.validation.max_items=4",
        "training.validation.preview_ticks=null"]


@pytest.fixture
def phantoms(tmp_path) -> Path:
    stacks = [pet_stack(i, size=SIZE, depth=6).activity for i in range(3)]
    np.savez(tmp_path / "p.npz", phantoms=np.concatenate(stacks), subjects=np.repeat(range(3), 6))
    return tmp_path / "p.npz"


def pairs_of(dataset: PhantomDataset, **options) -> DosePairs:
    transform = DosePairs(DoseSimulation(SIZE, iterations=5), ActivityScale("total", 8), **options)
    transform.see(dataset.facts, dataset.shape)
    return transform


def test_both_doses_are_divided_by_one_scale_of_the_low_one(phantoms):
    dataset = PhantomDataset(str(phantoms))
    batch, noise = collate([dataset[2], dataset[8]]), ImageGenerators([5, 6])
    transform = pairs_of(dataset)
    x, condition = transform(batch, noise)
    activity = torch.from_numpy(np.stack([dataset.slices[dataset.rows[i]] for i in (2, 8)]))
    torch.testing.assert_close(transform.activity(batch.images), activity)
    pair = DoseSimulation(SIZE, iterations=5).pair(transform.activity(batch.images), noise)
    scale = 8 * pair.low.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(x, 2 * pair.high / scale - 1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(condition.images, 2 * pair.low / scale - 1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(condition.attributes[:, 0], torch.tensor([dataset.heights[2, 0], dataset.heights[8, 0]]))


def test_a_pair_hangs_on_its_own_image_and_noise_alone(phantoms):
    dataset = PhantomDataset(str(phantoms))
    transform = pairs_of(dataset)
    together = transform(collate([dataset[2], dataset[8]]), ImageGenerators([5, 6]))
    alone = transform(collate([dataset[8]]), ImageGenerators([6]))
    torch.testing.assert_close(together[0][1:], alone[0], rtol=0, atol=0)
    torch.testing.assert_close(together[1].images[1:], alone[1].images, rtol=0, atol=0)
    other = transform(collate([dataset[8]]), ImageGenerators([7]))
    assert not torch.equal(other[0], alone[0])


def test_a_joint_network_draws_both_and_is_told_neither(phantoms):
    dataset = PhantomDataset(str(phantoms))
    high, told = pairs_of(dataset)(collate([dataset[2]]), ImageGenerators([5]))
    joint = pairs_of(dataset, drawn="pair")
    both, condition = joint(collate([dataset[2]]), ImageGenerators([5]))
    assert torch.equal(both, torch.cat([high, told.images], dim=1)) and "images" not in condition
    assert joint.shape == (2, SIZE, SIZE) and joint.told_facts(dataset.facts).condition_channels is None


def test_stacks_are_simulated_slice_by_slice(phantoms):
    dataset = PhantomDataset(str(phantoms), stack=3)
    x, condition = pairs_of(dataset)(collate([dataset[0]]), ImageGenerators([1]))
    assert x.shape == condition.images.shape == (1, 1, 3, SIZE, SIZE) and x.isfinite().all()


def test_interpolated_activities_below_zero_are_none(phantoms):
    dataset = PhantomDataset(str(phantoms))
    batch = collate([dataset[2]])
    lowered = batch._replace(images=batch.images - 0.01 * (batch.images == -1))
    transform = pairs_of(dataset)
    assert torch.equal(transform(lowered, ImageGenerators([1]))[0], transform(batch, ImageGenerators([1]))[0])


def test_augmentation_that_never_acts_changes_no_bit(phantoms):
    dataset = PhantomDataset(str(phantoms))
    batch, transform, noise = collate([dataset[2], dataset[8]]), pairs_of(dataset), ImageGenerators([5, 6])
    moved, _ = AugmentPipe(2, p=0)(batch, noise)
    pair, same = transform(batch, noise), transform(moved, noise)
    assert torch.equal(pair[0], same[0]) and torch.equal(pair[1].images, same[1].images)
    assert not torch.equal(transform(AugmentPipe(2, p=1)(batch, noise)[0], noise)[0], pair[0])


@pytest.mark.parametrize(("change", "match"), [
    ({"size": 12}, r"simulation.size=12: slices of .* \[16, 16\] pixels")])
def test_phantoms_of_another_size_are_refused(phantoms, change, match):
    dataset = PhantomDataset(str(phantoms))
    with pytest.raises(ValueError, match=match):
        DosePairs(DoseSimulation(**change), ActivityScale()).see(dataset.facts, dataset.shape)


@pytest.mark.parametrize(("counts", "share"), [(29, 1), (1e4, 1e-3), (1e-6, 0.5)])
def test_scans_that_may_be_empty_are_refused_at_the_start(phantoms, counts, share):
    dataset = PhantomDataset(str(phantoms))
    with pytest.raises(ValueError, match=r"^training.batch_transform.simulation.counts=.* and dose=.* leave .* counts"):
        DosePairs(DoseSimulation(SIZE, counts=counts, dose=share), ActivityScale()).see(dataset.facts, dataset.shape)
    DosePairs(DoseSimulation(SIZE, counts=31, dose=1.0), ActivityScale()).see(dataset.facts, dataset.shape)


def test_previews_and_training_share_the_projector_that_is_kept(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "LARGE", 8)
    made = []
    monkeypatch.setattr(scans, "system_matrix", lambda geometry: made.append(1) or system_matrix(geometry))
    monkeypatch.setattr(dose, "system_matrix", lambda geometry: 1 / 0)
    with chdir(tmp_path):
        result = CliRunner().invoke(train.main, [*TINY, "training.validation.preview_ticks=1",
                                                 "training.validation.preview_items=2"])
        assert result.exit_code == 0, result.output
        assert made == [1] and list(Path("results/00000-pet_phantoms/previews").glob("*.png"))


def test_a_run_says_in_its_snapshot_what_it_was_told(phantoms, tmp_path):
    with chdir(tmp_path):
        result = CliRunner().invoke(train.main, TINY)
        assert result.exit_code == 0, result.output
        snapshot = Snapshot.read(next(Path("results/00000-pet_phantoms").glob("network-snapshot-*.pt")))
    told = snapshot.dose
    assert told.drawn == "high" and told.simulation["dose"] == 0.25 and told.unit == "activity" and told.typical > 0
    assert snapshot.facts.condition_channels == ("low dose",) and snapshot.facts.channels == ("high dose",)
    with pytest.raises(ValueError, match="dose.drawn is 'all'"):
        DoseRecord.from_plain(told._replace(drawn="all")._asdict(), "x.pt")


@pytest.mark.parametrize("more", [
    ["training.batch_transform.drawn=pair", "training.network.model.image_dim=0",
     "training.network.model.image_dropout=0"],
    ["training.dataset.heights=3", "training.network.model.label_dim=auto", "training.network.label_dropout=0.1"],
    ["training.network.model.attribute_dim=auto", "augment=edm"], ["training.dataset.stack=4"]])
def test_its_variants_train(phantoms, tmp_path, more):
    with chdir(tmp_path):
        result = CliRunner().invoke(train.main, [*TINY, *more])
        assert result.exit_code == 0, result.output


def test_a_pair_of_no_dose_is_refused_with_its_key(phantoms, tmp_path):
    with chdir(tmp_path):
        for key, value in (("dose", "1.5"), ("counts", "0"), ("iterations", "0")):
            result = CliRunner().invoke(train.main, [*TINY, f"training.batch_transform.simulation.{key}={value}"])
            assert result.exit_code == 1 and f"{key}=" in result.output and "Traceback" not in result.output
