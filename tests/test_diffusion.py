"""The diffusion task: what is augmented, what is dropped, and when; losses and networks that do not go together."""

from math import inf, sqrt

import pytest
import torch
import yaml

from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.precond import DDPMPrecond, EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import USUAL, DenoisingLoss, EDMLoss, VELoss, VPLoss
from edm3d.training.noise_laws import IDDPMTable, Table
from edm3d.training.tasks.diffusion import check_noise_range, check_pair, diffusion_task, unusual_pair


class Watcher(torch.nn.Module):
    """A network that keeps what it is told and denoises nothing."""

    def __init__(self, label_dim: int = 3, label_dropout: float = 0):
        super().__init__()
        self.takes, self.told = {"class_labels": Part(label_dim, label_dropout)} if label_dim else {}, []

    def forward(self, x, sigma, *rest):
        self.told.append(rest)
        return x


def augment(batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
    """Ten times the image, and a label of 1."""
    return batch._replace(images=batch.images * 10), torch.ones(len(batch.images), 1)


def batch_of(n: int, class_labels: bool = True) -> Batch:
    """n images [1,4] of ones, of class 1 of 3."""
    labels = torch.eye(3)[torch.ones(n, dtype=torch.long)] if class_labels else None
    return Batch(torch.ones(n, 1, 4), None, Condition(class_labels=labels))


def take_loss(net: Watcher, batch: Batch, keys=None, *, augment=None):
    """The task's loss of a batch, and what the network was told besides image and noise level."""
    task = diffusion_task(net, EDMLoss(), torch.optim.SGD([torch.zeros(1)]), Identity(), {}, augment)
    out = task.phases[0].loss(net, batch, ImageGenerators(range(len(batch.images)) if keys is None else keys, seed=7))
    return out, net.told[-1]


def test_loss_is_a_sum_over_images():
    net = Watcher()
    out, told = take_loss(net, batch_of(2))
    wanted = EDMLoss()(net, torch.ones(2, 1, 4), None, ImageGenerators([0, 1], seed=7)).loss.mean((1, 2)).sum()
    assert out.count == 2 and out.loss.item() == pytest.approx(wanted.item())
    assert out.data["square"].item() == 2
    assert told == (Condition(class_labels=told[0].class_labels),)  # no augmentation, none spoken of


def test_classes_that_the_network_does_not_take_are_not_given_to_it():
    assert take_loss(Watcher(label_dim=0), batch_of(2))[1][0].class_labels is None


def test_parts_that_the_network_does_not_take_are_left_aside_and_change_nothing():
    batch = batch_of(3)
    more = batch._replace(condition=batch.condition.replace(attributes=torch.ones(3, 2), images=torch.ones(3, 1, 4)))
    plain, (told,) = take_loss(Watcher(label_dropout=0.5), batch)
    richer, (told_too,) = take_loss(Watcher(label_dropout=0.5), more)
    assert list(told_too) == ["class_labels"] and torch.equal(told.class_labels, told_too.class_labels)
    assert plain.loss.item() == richer.loss.item()


# ---- augmentation ----


def test_images_are_augmented_in_training_and_the_network_told_so():
    out, (_, labels) = take_loss(Watcher(), batch_of(2), augment=augment)
    assert out.data["square"].item() == 200 and labels.tolist() == [[1], [1]]


def test_held_out_images_are_not_augmented():
    out, told = take_loss(Watcher().eval(), batch_of(2), augment=augment)
    assert out.data["square"].item() == 2 and len(told) == 1


def test_augmentation_comes_before_the_batch_transform():
    seen = []

    def transform(batch, generators):
        seen.append(batch.images.max().item())
        return batch.images, batch.condition

    task = diffusion_task(Watcher(), EDMLoss(), torch.optim.SGD([torch.zeros(1)]), transform, {}, augment)
    task.phases[0].loss(task.net, batch_of(1), ImageGenerators([0]))
    assert seen == [10]


# ---- label dropout ----


def dropped(net: Watcher, keys) -> torch.Tensor:
    """Which of the images lost their class; the others have theirs unchanged."""
    batch = batch_of(len(keys))
    labels = take_loss(net, batch, keys)[1][0].class_labels
    gone = (labels == 0).all(1)
    assert torch.equal(labels[~gone], batch.condition.class_labels[~gone])
    return gone


def test_classes_are_dropped_as_often_as_the_network_says():
    n, p = 4000, 0.2
    assert dropped(Watcher(label_dropout=p), range(n)).float().mean().item() == pytest.approx(
        p, abs=4 * sqrt(p * (1 - p) / n))
    assert not dropped(Watcher(label_dropout=0), range(100)).any()
    assert dropped(Watcher(label_dropout=1), range(100)).all()


def test_whether_a_class_is_dropped_does_not_depend_on_the_batch():
    net = Watcher(label_dropout=0.5)
    together = dropped(net, range(64))
    assert torch.equal(torch.cat([dropped(net, range(0, 64, 2)), dropped(net, range(1, 64, 2))]),
                       torch.cat([together[::2], together[1::2]]))
    stream = ImageGenerators(range(64), seed=7).for_purpose("label_dropout")  # its own: shared with no other use
    assert torch.equal(together, stream.rand(()) < 0.5) and 0 < together.sum() < 64


def test_dropping_classes_leaves_levels_and_noise_alone():
    plain, _ = take_loss(Watcher(), batch_of(8))
    dropping, _ = take_loss(Watcher(label_dropout=0.5), batch_of(8))
    assert plain.loss.item() == dropping.loss.item()


def test_classes_of_held_out_images_are_not_dropped():
    assert not dropped(Watcher(label_dropout=1).eval(), range(10)).any()


def test_dropping_classes_that_the_data_lacks_is_refused():
    with pytest.raises(ValueError, match=r"training\.network\.label_dropout=0\.1, but the data has no classes"):
        take_loss(Watcher(label_dropout=0.1), batch_of(2, class_labels=False))


def test_each_part_is_dropped_by_a_stream_of_its_own():
    net, n = Watcher(label_dropout=0.5), 64
    net.takes = {"class_labels": Part(3, 0.5), "attributes": Part(2, 0.25), "semantic": Part(4, 0.5), "images": Part(1)}
    batch = batch_of(n)
    batch = batch._replace(condition=batch.condition.replace(
        attributes=torch.ones(n, 2), semantic=torch.ones(n, 4, dtype=torch.long), images=torch.ones(n, 1, 4)))
    told = take_loss(net, batch)[1][0]
    noise = ImageGenerators(range(n), seed=7)
    for name, gone, share in (("label_dropout", (told.class_labels == 0).all(1), 0.5),
                              ("attribute_dropout", told.attributes.isnan().all(1), 0.25),
                              ("semantic_dropout", (told.semantic == 4).all(1), 0.5)):
        assert torch.equal(gone, noise.for_purpose(name).rand(()) < share) and 0 < gone.sum() < n
    assert torch.equal(told.images, batch.condition.images)  # trained with it always


def test_dropping_what_the_data_lacks_is_refused_by_its_own_key():
    net = Watcher()
    net.takes = {"attributes": Part(2, 0.1)}
    with pytest.raises(ValueError, match=r"network\.attribute_dropout=0\.1, but the data has no attributes to drop"):
        take_loss(net, batch_of(2))


# ---- losses and networks that go together ----


class Range:
    """A network's range of noise levels."""

    def __init__(self, sigma_min: float, sigma_max: float):
        self.sigma_min, self.sigma_max = sigma_min, sigma_max


@pytest.mark.parametrize(("net", "loss"), [
    (Range(0, inf), EDMLoss()), (Range(0.02, 100), VELoss()), (Range(0.0032, 152.2), VPLoss()),
    (Range(0.01, 157.4), DenoisingLoss(Table())), (torch.nn.Identity(), VELoss()), (Range(1, 2), lambda: None),
    (Range(0.0205, 99), VELoss(0.02, 100)),  # ends that differ by rounding or so
])
def test_loss_that_stays_in_the_range_of_its_network_passes(net, loss):
    check_noise_range(net, loss)


@pytest.mark.parametrize(("net", "loss", "words"), [
    (Range(0.02, 100), EDMLoss(), ["0.007385 .. 12.28", "0.02 .. 100"]),  # low end exp(-1.2 - 1.2 * 3.0902)
    (Range(0.002, 80), VPLoss(), ["0.01054 .. 150.7", "0.002 .. 80"]),  # t = 0.00101 and 0.999
])
def test_loss_that_leaves_the_range_of_its_network_is_refused_with_the_remedy(net, loss, words):
    with pytest.raises(ValueError) as error:
        check_noise_range(net, loss)
    for word in (*words, "training.loss", "training.network", "precond=vp loss=vp"):
        assert word in str(error.value)


def test_the_remedy_is_the_pair_of_the_preconditioner_in_use():
    with pytest.raises(ValueError, match="precond=ddpm loss=ddpm"):
        check_pair(DDPMPrecond(torch.nn.Identity()), EDMLoss(P_mean=-4))
    with pytest.raises(ValueError, match="precond=ve loss=ve"):
        check_pair(VEPrecond(torch.nn.Identity()), EDMLoss(P_mean=-4))


@pytest.mark.parametrize(("net", "loss", "words"), [
    (DDPMPrecond(torch.nn.Identity(), objective="v"), DenoisingLoss(Table(), "epsilon"),
     ["training.loss.objective=epsilon, training.network.objective=v", "precond=ddpm loss=ddpm"]),
    (DDPMPrecond(torch.nn.Identity()), DenoisingLoss(Table("cosine")),
     ["training.loss", "noise levels", "precond=ddpm loss=ddpm"]),
    (DDPMPrecond(torch.nn.Identity(), beta_end=0.0201), DenoisingLoss(Table()),
     ["training.loss.law: its 1000 noise levels are not the 1000 that training.network knows"]),
    (EDMPrecond(torch.nn.Identity(), sigma_data=1), EDMLoss(),
     ["training.loss.sigma_data=0.5, training.network.sigma_data=1", "precond=edm loss=edm"]),
])
def test_loss_of_another_target_or_scale_is_refused_by_both_keys(net, loss, words):
    with pytest.raises(ValueError) as error:
        check_pair(net, loss)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("net", "loss"), [
    (DDPMPrecond(torch.nn.Identity(), objective="v"), DenoisingLoss(Table(), "v")),
    (DDPMPrecond(torch.nn.Identity(), objective="v"), DenoisingLoss(Table())),
    (iDDPMPrecond(torch.nn.Identity()), DenoisingLoss(IDDPMTable())),
    (EDMPrecond(torch.nn.Identity(), sigma_data=1), EDMLoss(sigma_data=1)),
    (VPPrecond(torch.nn.Identity()), EDMLoss()), (EDMPrecond(torch.nn.Identity()), DenoisingLoss(Table(), "v")),
    (torch.nn.Identity(), EDMLoss()),
])
def test_losses_that_agree_with_their_network_pass(net, loss):
    check_pair(net, loss)


PRECONDS = [EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond, DDPMPrecond]


@pytest.mark.parametrize("precond", PRECONDS)
def test_preconditioners_name_themselves_and_their_loss_as_the_groups_do(precond, root):
    for group, kind in (("precond", precond), ("loss", USUAL[precond.usual])):
        node = yaml.safe_load((root / "configs" / group / f"{precond.usual}.yaml").read_text(encoding="utf-8"))
        assert node["_target_"] == f"{kind.__module__.removeprefix('edm3d.')}.{kind.__name__}"


def test_a_network_of_ones_own_made_of_a_preconditioner_goes_with_its_loss():
    own = type("Own", (VPPrecond,), {})
    assert unusual_pair(own, VPLoss) == "" and "precond=vp loss=vp" in unusual_pair(own, EDMLoss)


def test_only_unusual_pairs_are_spoken_of():
    for pair in ((EDMPrecond, EDMLoss), (VPPrecond, VPLoss), (iDDPMPrecond, DenoisingLoss),
                 (torch.nn.Identity, EDMLoss), (EDMPrecond, torch.nn.L1Loss)):
        assert unusual_pair(*pair) == ""
    assert unusual_pair(VPPrecond, EDMLoss) == (
        "Note: EDMLoss is not the loss that usually goes with VPPrecond, which is VPLoss (precond=vp loss=vp)")
    assert "precond=ddpm loss=ddpm" in unusual_pair(DDPMPrecond, VPLoss)
