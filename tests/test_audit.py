"""The audit: copies are found with their original and move, others are not, and a network that memorised is seen."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edm3d.formats.privacy import Ledger, PrivacyStatement, Spent
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference import membership
from edm3d.inference.audit import find_copies, planted_case, usual_in_training
from edm3d.inference.evaluate import ComparisonOptions, evaluate
from edm3d.inference.snapshot import Snapshot
from edm3d.metrics import copies
from edm3d.metrics.copies import AxisMove, Reference, moved, moved_back, nearest_features, planted, threshold
from edm3d.networks.conditioning import Condition
from edm3d.reporting.audit import Attack, Audit, Membership, limit_of
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.reference import Cases
from edm3d.reporting.sections.copies import weak_kinds
from edm3d.reporting.sections.membership import MembershipAttack
from tests.test_evaluate import SIZE, describe, phantom_arrays, write, write_phantoms

SHAPES = {2: (1, 24, 24), 3: (1, 12, 12, 12)}


def smooth_noise(seed: int, dims: int) -> np.ndarray:
    """A random image of its own in [0,1]."""
    from scipy.ndimage import gaussian_filter
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPES[dims]), (0, *[1.0] * dims))
    return np.clip(0.5 + 0.6 * field / field.std() / 3, 0, 1).astype(np.float32)


@pytest.fixture(scope="module", params=[2, 3])
def known(request):
    """Training images and what they are searched in."""
    images = [smooth_noise(i, request.param) for i in range(30)]
    reference = Reference(images.__getitem__, 30, 1.0)
    reference.calibrate()
    return images, reference


def test_exact_copies_have_distance_0_whatever_their_gain_and_offset(known):
    images, reference = known
    for copy in (images[7], 0.6 * images[7] + 0.2):
        found = reference.nearest(copy)
        assert found.index == 7 and found.distance == pytest.approx(0, abs=1e-4)
        assert not any(found.move.flips) and not any(found.move.shifts)
    assert reference.nearest(images[7], without={7}).distance > 0.5


def test_flips_and_shifts_together_are_found_with_their_move(known):
    images, reference = known
    dims = images[0].ndim - 1
    for k, flips in enumerate(product((False, True), repeat=dims)):
        shifts = ((2, -1, 1), (-2, 2, -1))[k % 2][:dims]
        back = AxisMove(flips, tuple(-s if flip else s for flip, s in zip(flips, (-s for s in shifts))))
        found = reference.nearest(moved(images[k], AxisMove(flips, shifts)))
        assert (found.index, found.move) == (k, back)
        inner = (0, *[slice(4, -4)] * dims)
        np.testing.assert_array_equal(moved_back(images[k], found.move)[inner],
                                      moved(images[k], AxisMove(flips, shifts))[inner])


def test_planted_copies_are_nearer_than_others_and_others_seldom_are(known):
    images, reference = known
    dims, rng = images[0].ndim - 1, np.random.default_rng(0)
    others = np.array([reference.nearest(smooth_noise(1000 + i, dims)).distance for i in range(60)])
    limit = threshold(others)
    fresh = [reference.nearest(smooth_noise(5000 + i, dims)).distance < limit.value for i in range(30)]
    assert np.mean(fresh) < 0.15
    for kind in copies.PLANTED:
        found = [reference.nearest(planted(kind, images[i], rng, 0, 1)) for i in range(10)]
        assert all(each.distance < limit.value and each.index == i for i, each in enumerate(found)), kind


def test_the_threshold_says_what_it_is_worth():
    few, many = threshold(np.arange(20.0)), threshold(np.arange(999.0))
    assert (few.value, few.rank) == (0, 1) and few.expected == pytest.approx(1 / 21)
    assert (many.value, many.rank, many.expected) == (9, 10, 0.01)
    assert few.low < few.expected < few.high < 0.2 and many.high < 0.02
    with pytest.raises(ValueError, match="no volumes"):
        threshold(np.zeros(0))


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="wanted 2 or more"):
        Reference(lambda i: np.zeros((1, 8, 8)), 1, 1.0)
    with pytest.raises(ValueError, match="are the same"):
        Reference(lambda i: np.ones((1, 8, 8)), 3, 1.0)
    images = [smooth_noise(i, 2) for i in range(4)]
    found = Reference(images.__getitem__, 4, 1.0).nearest(np.zeros((1, 24, 24)))
    assert np.isfinite(found.distance) and found.correlations == (0, 0, 0)


def test_features_are_searched_in_their_own_units():
    theirs = np.array([[0.0, 0], [1, 1000], [2, 0]])
    index, distance = nearest_features(np.array([[1.0, 990]]), theirs)
    assert index[0] == 1 and distance[0] == pytest.approx(10 / theirs[:, 1].std())
    index, _ = nearest_features(theirs, theirs, without=[{0}, {1}, {2}])
    assert all(index != np.arange(3))


def cases(images: list[np.ndarray], name: str) -> Cases:
    return Cases(name, len(images), lambda i: Case(f"{name}-{i}", images[i], None))


def test_training_volumes_among_the_real_ones_are_left_out():
    images = [smooth_noise(i, 2) for i in range(40)]
    train, real = cases(images[:20], "train"), cases(images[10:], "real")
    made = cases([images[3], images[3], *(smooth_noise(900 + i, 2) for i in range(3))], "sample")
    found = find_copies(made, train, real, Layout(("x",), (), (1.0, 1.0), 0, 1, ""), "there is none", 4, 0)
    assert found.left_out == 10 and found.held == list(range(10, 30))
    assert found.equal == 2 and found.equal_twins == 1 and found.twins[0].distance < 1e-4
    assert [each.index for each in found.nearest[:2]] == [3, 3] and found.pairs[0].distance < 1e-4
    assert found.latent == "there is none" and set(found.not_planted) == {"through the first stage"}


def test_training_volumes_of_one_patient_and_equal_ones_are_not_held_against_each_other():
    images = [smooth_noise(i, 2) for i in range(20)]
    images[7] = images[3].copy()
    near = [image + np.float32(0.001) * smooth_noise(300, 2) for image in images[10:12]]
    rows = [Case(str(i), image, None, group="a" if i in (10, 20) else "b" if i in (11, 21) else None)
            for i, image in enumerate([*images, *near])]
    reference = Reference(lambda i: rows[i].image, 22, 1.0)
    reference.calibrate()
    usual = usual_in_training(reference, Cases("train", 22, rows.__getitem__))
    assert list(usual.numbers) == list(range(22)) and min(each.distance for each in usual.seen.nearest) > 0.3
    assert usual.without[3] == {3, 7} and usual.without[20] == {10, 20} and usual.without[0] == {0}


class Speckled:
    """A first stage whose latents are the means [4,4] of an image and what is left of it; it decodes the means alone.
    """

    net = SimpleNamespace(num_classes=0)
    masked, device = False, torch.device("cpu")
    facts = SimpleNamespace(intensity=SimpleNamespace(to_network=lambda x: x))

    def posterior(self, image, label=None, semantic=None):
        mean = torch.nn.functional.pixel_unshuffle(image, 6)
        coarse = mean.mean(1, keepdim=True)
        return SimpleNamespace(mean=torch.cat([coarse, mean - coarse], 1), std=torch.tensor(0.002))

    def scaled(self, z):
        return z

    def encode(self, image, label=None, semantic=None):
        return self.posterior(image).mean

    def decode(self, z, semantic=None):
        return z[:, :1].repeat_interleave(6, 2).repeat_interleave(6, 3), None


def speckled(seed: int) -> np.ndarray:
    """An image whose coarse cells vary by 0.05, below speckle of 0.2 that has no mean in any cell."""
    rng = np.random.default_rng(seed)
    speckle = rng.normal(0, 0.2, (4, 6, 4, 6))
    coarse = rng.normal(0.5, 0.05, (4, 1, 4, 1))
    return (coarse + speckle - speckle.mean((1, 3), keepdims=True)).reshape(1, 24, 24).astype(np.float32)


def test_copies_through_a_first_stage_that_keeps_no_speckle_are_found_by_latents():
    stage, made = Speckled(), []
    train, real = (cases([speckled(first + i) for i in range(60)], name)
                   for first, name in ((0, "train"), (500, "real")))
    for i in range(20):
        z = stage.encode(torch.from_numpy(speckled(900 + i))[None])
        made.append(stage.decode(z)[0][0].numpy())
    layout = Layout(("x",), (), (1.0, 1.0), 0, 1, "")
    audit = find_copies(cases(made, "sample"), train, real, layout, stage, 20, 0)
    reference, found = Reference(lambda i: train.case(i).image, 60, 1.0), audit.latent
    reference.calibrate()
    decoded = [stage.decode(stage.encode(torch.from_numpy(real.case(i).image)[None]))[0][0].numpy() for i in range(9)]
    as_samples, raw = (np.array([reference.nearest(image).distance for image in images])
                       for images in (decoded, [real.case(i).image for i in range(9)]))
    assert np.abs(audit.held_distances[:9] - as_samples).max() < 0.1 < np.abs(raw - as_samples).max()
    limit = limit_of(found.held_out, found.others)
    again = found.planted["through the first stage"]
    assert limit.num == 120 and again.right.sum() == 20
    assert (again.distances < limit.value).sum() >= 19 and (found.samples < limit.value).sum() <= 2
    assert np.median(again.distances) == pytest.approx(1, abs=0.3)  # as far as a round trip moves volumes
    assert set(found.planted) == set(audit.planted) and found.planted["exact"].distances.max() < 1e-3
    moved_ones = found.planted["flipped and shifted"]  # as they lie their latents are others: they are moved back first
    assert moved_ones.right.sum() == audit.planted["flipped and shifted"].right.sum() >= 19


def test_a_kind_of_copies_that_is_found_badly_is_named_with_what_finds_it():
    def found(count: int) -> dict:
        return {"available": True, "num": 100, "found": count}

    rows = {"exact": found(100), "exact, by latents": found(100), "gain": found(95), "gain, by latents": found(60),
            "flipped": found(72), "flipped, by latents": found(98), "noise": found(94), "noise, by latents": found(2),
            "through": {"available": False, "reason": "no stage"}}
    gain, flipped, noise = weak_kinds(rows)
    assert "gain: this audit finds only by latents 60 of 100; read what pixels say" in gain
    assert "flipped: this audit finds only by pixels 72 of 100; read what latents say" in flipped
    assert "only by pixels 94 of 100 and by latents 2 of 100; that no such copy" in noise
    assert weak_kinds({"exact": found(90)})[0].endswith("does not say that there is none.")


def test_a_planted_copy_that_is_moved_takes_its_label_map_along():
    image = smooth_noise(0, 2)
    case = Case("a", image, np.round(255 * image[0]).astype(np.uint8))
    made = planted_case("flipped and shifted", case, Layout(("x",), (), (1.0, 1.0), 0, 1, ""), np.random.default_rng(0))
    assert not np.array_equal(made.image, image)
    np.testing.assert_array_equal(made.label, np.round(255 * made.image[0]))


class Memorised(torch.nn.Module):
    """A denoiser that gives the nearest of the images it knows."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.images = images

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.images[torch.cdist(x.flatten(1), self.images.flatten(1)).argmin(1)]


def test_a_network_that_memorised_is_told_and_one_that_did_not_is_not():
    images = torch.stack([torch.from_numpy(smooth_noise(i, 2)) for i in range(40)])
    is_member = np.arange(40) < 20
    cpu = torch.device("cpu")
    losses = membership.denoising_losses(Memorised(images[:20]), images, Condition(), [0.1, 0.2], 0, cpu)
    assert losses.shape == (40, 2) and losses[:20].max() < 1e-9 < losses[20:].min()
    found = membership.judged(losses, images, is_member, [0.1, 0.2], (), 0, 0.0)
    assert found.mean.auc == found.relative.auc == 1 and found.mean.low == 1
    blind = membership.denoising_losses(lambda x, sigma, condition: 0.9 * x, images, Condition(), [0.2], 0, cpu)
    found = membership.judged(blind, images, is_member, [0.2], (), 0, 0.0)
    assert found.mean.low < 0.5 < found.mean.high


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of four samples of which one is a training volume, against a file of 2D phantoms."""
    folder = tmp_path_factory.mktemp("audit")
    file = write_phantoms(folder / "echo.h5", dims=2, kind="other", count=24)
    arrays = phantom_arrays(4, dims=2)
    copy = VolumesFile(file).read("train", 5)
    arrays["images"][2], arrays["labels"][2] = copy.image, copy.label
    write(folder / "samples.npz", arrays, dims=2, data=describe(2))
    options = ComparisonOptions(num_noise=0, train=file, planted=5, private=True)
    return folder, file, options, evaluate(file, folder / "samples.npz", folder / "report", options)


def set_names(page: str) -> set[str]:
    """Of the volumes in the viewer of a page."""
    return set(re.findall(r'"set": ?"(\w+)"', page))


def test_a_report_names_the_copy_and_marks_private_data(report):
    folder, _, _, found = report
    part = found["copies"]
    nearest = {"sample": "seed 2", "training": "phantom-000005", "distance": pytest.approx(0, abs=1e-4)}
    assert part["closest"][0] == nearest
    assert part["equal"] == 1 and part["left_out"] == 18 and part["held_out"] == 6
    assert part["pixels"]["closer"] >= 1 and part["pixels"]["rank"] == 1
    assert part["pixels"]["of"] == 6 + 18 and part["pixels"]["expected"] == pytest.approx(1 / 25)
    assert part["planted"]["exact"]["found"] == 5 and part["planted"]["through the first stage"]["available"] is False
    assert "not there" in found["membership"]["reason"] and SIZE
    page, rows = (folder / "report/report.html").read_text(), (folder / "report/cases.csv").read_text()
    assert "reads private data, not for release" in page and "--show-private shows them" in page
    assert not list((folder / "report/figures").glob("copies_[0-9]*")) and ",phantom-000005," in rows
    assert json.loads((folder / "report/report.json").read_text())["private"]["marked"] is True
    assert "Pictures of real volumes: not available" in page
    assert set_names(page) == {"generated"}


def test_private_pictures_are_shown_when_told_to(report):
    folder, file, options, _ = report
    told = options._replace(show_private=True, planted=0, members=0)
    found = evaluate(file, folder / "samples.npz", folder / "shown", told)
    assert list((folder / "shown/figures").glob("copies_[0-9]*"))
    assert set_names((folder / "shown/report.html").read_text()) == {"real", "generated"}
    assert found["copies"]["planted"]["exact"]["available"] is False
    with pytest.raises(ValueError, match="--private: says something of the training"):
        evaluate(file, folder / "samples.npz", folder / "bad", options._replace(train=None))


def private_snapshot(path: Path, said: str = "", split: str = "train", unit: str = "record", count: int = 18) -> str:
    """A snapshot that was trained privately on so many units, and says which file that was, if any; its hash."""
    ledger = Ledger(unit, count, 1.0, "prv", "1", [Spent(1.0, 0.1, 10)])
    privacy = PrivacyStatement(2.0, 1e-5, ledger, 1, "none", "random", [])
    facts = replace(describe(2), source="private data", content_hash=said)
    Snapshot("diffusion", {"_target_": "x"}, facts, (1, SIZE, SIZE), None, {"w": torch.zeros(1)}, privacy=privacy,
             config={"training": {"dataset": {"split": split}}}).save(path)
    return Snapshot.read(path).hash


@pytest.mark.parametrize("made,word,wanted", [
    ({}, True, None), ({}, False, "--private says that it was on --train"),
    ({"said": "another"}, True, "not trained on the content of --train"), ({"said": "of train"}, False, None),
    ({"count": 17}, True, "on 17 records, --train has 18"), ({"count": 40}, True, None),
    ({"unit": "group", "count": 3}, True, None),
    ({"unit": "group", "count": 2}, True, r"on 2 groups \(patients\), --train has 3"),
    ({"split": "val"}, True, "on split 'val'"),
])
def test_what_a_private_snapshot_learnt_from_is_the_users_word(tmp_path, made, word, wanted):
    hash_ = private_snapshot(tmp_path / "net.pt", **made)
    write(tmp_path / "samples.npz", phantom_arrays(2, dims=2), str(tmp_path / "net.pt"), hash_, describe(2), 2)
    train = Cases("train", 18, lambda i: Case(str(i), np.zeros(1), None, group=f"patient {i % 2}" if i else None),
                  "of train")
    found = membership.find_snapshot(SamplesFile(tmp_path / "samples.npz"), None, train, "train", word)
    assert (isinstance(found, Snapshot) if wanted is None else re.search(wanted, found)), found


def test_a_report_says_that_it_takes_the_users_word():
    attack = Attack(0.5, 0.4, 0.6)
    section, found = MembershipAttack(), Membership(attack, attack, {0.1: attack}, 8, 8, 4, (), 1.0)
    for by_word in (True, False):
        context = SimpleNamespace(audit=Audit("none", found._replace(by_word=by_word)))
        report = section.compute(None, context)
        assert report["membership"]["by_word"] is by_word
        said = "It rests on your word (--private) that --train is"
        assert (said in section.page(report, {})) is by_word and (said in section.lines(report)[0]) is by_word


def test_the_attack_wants_the_snapshot_that_drew_the_samples(report):
    folder = report[0]
    samples = SamplesFile(folder / "samples.npz")
    assert "not there" in membership.find_snapshot(samples, None, cases([], "x"), "train", True)
