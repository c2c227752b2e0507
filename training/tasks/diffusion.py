"""The diffusion task: one network, one optimiser, one denoising loss."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from edm3d.formats.dose import DoseRecord
from edm3d.formats.facts import Facts
from edm3d.formats.refinement import told_facts
from edm3d.inference.batch import Batch, collate
from edm3d.inference.scans import keep_projector
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.conditioning import Condition, Part, takes_of
from edm3d.networks.label_coding import LabelCoding
from edm3d.networks.layers import per_axis
from edm3d.networks.parts import PARTS
from edm3d.networks.precond import SLACK
from edm3d.samplers.denoiser import Wrapper
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.batch_transforms import LABELS, Identity
from edm3d.training.chain import parts_of
from edm3d.training.dose_pairs import DosePairs
from edm3d.training.loss import USUAL
from edm3d.training.patches import PatchAugment
from edm3d.training.phases import ByLevel, LossOutput, Phase, Task
from edm3d.training.rand_augment import RandAugment
from edm3d.training.refining import RefineImages
from edm3d.training.tasks.base import Data, Decoding, PlannedData, TaskType, build_augment, build_parts, tell_only
from edm3d.training.tasks.previews import build_drawn
from edm3d.training.tasks.sampled import build_sampled
from edm3d.training.validation import Held
from edm3d.utils.checks import listed
from edm3d.utils.config import build, build_from_file, check_targets, fill, find_target
from edm3d.utils.log import note

SHOWN = 0.5  # share of the images in training that a network with self_condition sees its estimate of


class DiffusionTask(TaskType):
    """Training a denoiser of voxels or latents."""

    needs = (*TaskType.needs, "batch_transform")
    draws, preview, sampled = True, staticmethod(build_drawn), staticmethod(build_sampled)

    def assemble(self, training: dict, data: Data, held: Held | None = None, imagined: bool = False) -> Task:
        """The task on what the batch transform makes of the data; a plan takes data as networks see them."""
        augment = build_augment(training, data)
        check_told(augment)
        transform = imagined_transform(training, data) if imagined else build_transform(training, data, held)
        told = told_data(training, data, transform, imagined)
        shape = getattr(transform, "shape", told.shape)
        net, loss, optimizer, snapshot = build_parts(training, told, augment, shape, imagined)
        if imagined:  # batches are as networks see them
            return diffusion_task(net, loss, optimizer, Identity(), snapshot)
        self.check(training, loss, net)
        item = data[0]
        rows = transform(collate([item]).to(torch.device("meta")), ImageGenerators([0]))[1]
        condition = Condition({name: row[0] for name, row in rows.items()})
        check_conditions(net, told.facts, condition)
        coding = getattr(transform, "label_coding", None)
        snapshot = replace(snapshot, first_stage=carried_stage(training, data, transform), label_coding=coding,
                           refines=getattr(transform, "refinement", None), dose=dose_of(training, transform))
        task = diffusion_task(net, loss, optimizer, transform, snapshot, augment)
        check_forward(task, data)
        without_labels = item.label is None or coding is not None or hasattr(transform, "scaling")
        notes = [unusual_pair(type(net), type(loss)), told_what_it_draws(net, data.facts, coding),
                 left_aside(net, aside_from_drawn(condition, data.facts, coding), told.facts,
                            () if without_labels else data.facts.label_classes),
                 told_decoded_instead(data.facts, told.facts)]
        task.notes = [note for note in notes if note]
        masked = getattr(getattr(transform, "stage", None), "masked", False)
        tell_only({*takes_of(net), "semantic"} if masked else takes_of(net), data,
                  *([] if held is None else [getattr(held.dataset, "dataset", held.dataset)]))
        return task

    def check(self, training: dict, loss: Callable, net: torch.nn.Module | None = None) -> None:
        """ValueError for a loss of another batch size, or of another network."""
        strata, batch_size = getattr(loss, "strata", None), training["options"]["batch_size"]
        if strata not in (None, batch_size):
            raise ValueError(f"training.loss.strata={strata}: wanted training.options.batch_size={batch_size} "
                             "(${training.options.batch_size}), or null")
        if net is not None:
            check_pair(net, loss)

    def decoding(self, config: dict, data: PlannedData) -> Decoding | None:
        """What generate.py decodes at a time, where the first stage is known."""
        trust, source = config["training"]["options"]["trust"], config["training"]["dataset"].get("path", "the latents")
        make = partial(build_from_file, data.first_stage, source, trust)
        return Decoding(make, config["sampling"]["batch_size"]) if data.first_stage else None


def diffusion_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, batch_transform: Callable,
                   snapshot: Snapshot, augment: Callable | None = None) -> Task:
    """Train net(x, sigma, condition[, augment_labels]) by `loss` on what `batch_transform` makes of the batches.

    In training, and not when held-out data is measured, `augment` changes batches and tells the network how, and
    parts of the condition are dropped as often as net.takes says. What it does not take is left aside.
    """
    takes, shows = takes_of(net), Wrapper(net).self_condition

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        augment_labels = None
        if augment is not None and module.training:
            batch, augment_labels = augment(batch, generators)
        x, condition = batch_transform(batch, generators)
        condition = condition.only(takes)
        if module.training:
            condition = drop_parts(condition, takes, generators)
        seen = ToldItsEstimate(module, generators) if shows else module
        out = loss(seen, x, condition, generators, augment_labels)
        per_image = out.loss.flatten(1).mean(1)
        squares = {"square": x.square().flatten(1).mean(1).sum()}
        return LossOutput(per_image.sum(), len(x), {}, data=squares, levels=ByLevel(per_image, out.sigma))

    return Task([Phase("diffusion", net, optimizer, phase_loss)], net, snapshot, seen=batch_transform)


class ToldItsEstimate(Wrapper):
    """A network that first makes an estimate without gradients, and sees it then for a share of the images.

    The share SHOWN, decided by each image's own generator; the others see zeros (Chen, Zhang and Hinton 2023).
    """

    self_condition = False  # nobody else needs to tell it

    def __init__(self, net: torch.nn.Module, generators: ImageGenerators):
        super().__init__(net)
        self.generators = generators

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            estimate = self.net(x, sigma, condition, augment_labels)
        shown = (self.generators.for_purpose("self_condition").rand(()) < SHOWN).to(x.device)
        return self.net(x, sigma, condition, augment_labels, estimate * shown.reshape(-1, *[1] * (x.ndim - 1)))


def drop_parts(condition: Condition, takes: Mapping[str, Part], generators: ImageGenerators) -> Condition:
    """Hide each part of each image, and single values of it, as often as a network takes it so.

    Decided by the image's own generator.
    """
    for name, part in takes.items():
        if part.dropout:
            kind = PARTS[name]
            if name not in condition:
                raise ValueError(f"training.network.{kind.dropout_key}={part.dropout}, but the data has no {kind.many} "
                                 f"to drop; set it and the network's {kind.width_key} to 0, or choose data with "
                                 f"{kind.many}")
            dropped = generators.for_purpose(kind.dropout_key).rand(()) < part.dropout
            condition = condition.drop(name, dropped.to(condition[name].device), part.width)
        if part.gaps and name in condition:
            hidden = generators.for_purpose(f"{name}_gaps").rand((part.width,)) < part.gaps
            condition = condition.drop(name, hidden.to(condition[name].device), part.width)
    return condition


def check_told(augment: Callable | None) -> None:
    """ValueError for an augmentation of which the network would not be told: what it draws would show it."""
    for key, part in parts_of(augment):
        if isinstance(part, (PatchAugment, RandAugment)):
            what = "patches are" if isinstance(part, PatchAugment) else "changes that the network is not told of are"
            raise ValueError(f"{key}._target_={type(part).__module__.removeprefix('edm3d.')}.{type(part).__name__}: "
                             f"{what} for first stages (training.task=autoencoder) and downstream networks; choose "
                             "augment=none or augment=edm")


def usual_choice(precond: type) -> str:
    """How a preconditioner and the loss that goes with it are chosen."""
    name = getattr(precond, "usual", None)
    return f"precond={name} loss={name}" if name else "as in precond=vp loss=vp"


def unusual_pair(precond: type, loss: type) -> str:
    """A line about a loss of ours that usually goes with another preconditioner, '' where there is nothing to say."""
    usual = USUAL.get(getattr(precond, "usual", None))
    if usual in (None, loss) or loss not in USUAL.values():
        return ""
    return (f"Note: {loss.__name__} is not the loss that usually goes with {precond.__name__}, which is "
            f"{usual.__name__} ({usual_choice(precond)})")


def check_pair(net: torch.nn.Module, loss: Callable) -> None:
    """ValueError when a loss was made for another network: other noise levels, another target or scale of the data."""
    check_noise_range(net, loss)
    for key in ("objective", "sigma_data"):
        ours, theirs = getattr(loss, key, None), getattr(net, key, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(f"training.loss.{key}={ours}, training.network.{key}={theirs}: wanted the same; leave "
                             f"the loss's away or choose a pair that goes together, {usual_choice(type(net))}")
    table, levels = getattr(net, "noise_table", None), getattr(getattr(loss, "law", None), "levels", None)
    if None not in (table, levels) and not same_levels(table, levels):
        raise ValueError(f"training.loss.law: its {len(levels)} noise levels are not the {len(table)} that "
                         f"training.network knows; wanted the same schedule, {usual_choice(type(net))}")


def same_levels(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tables of noise levels [M] have the same in any order, as rounded to float32."""
    one, other = (table.double().sort().values for table in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-6, atol=0)


def check_noise_range(net: torch.nn.Module, loss: Callable) -> None:
    """ValueError when a loss draws noise levels that its network was not made for; without ranges nothing is known."""
    if not (hasattr(net, "sigma_min") and hasattr(net, "sigma_max") and hasattr(loss, "level_range")):
        return
    low, high = loss.level_range()
    sigma_min, sigma_max = float(net.sigma_min), float(net.sigma_max)
    if low < sigma_min / SLACK or high > sigma_max * SLACK:
        raise ValueError(f"training.loss draws noise levels {low:.4g} .. {high:.4g}, training.network knows "
                         f"{sigma_min:.4g} .. {sigma_max:.4g}; choose the loss that goes with the preconditioning, "
                         f"{usual_choice(type(net))}")


class ToldData(NamedTuple):
    """Data as the network sees and is told of them: shape [C,*S] of an item, and what is known of it."""

    shape: tuple[int, ...]
    facts: Facts


def told_data(training: dict, data: Data, transform: Callable, imagined: bool) -> Data:
    """The data as a network sees and is told of them: themselves, unless it refines what a first stage gives back, or
    is told of the low dose of a pair.

    imagined: the transform is none, as for a plan.
    """
    if hasattr(transform, "told_facts"):
        return ToldData(transform.shape, transform.told_facts(data.facts))
    if not imagined:
        return data
    node = training["batch_transform"]
    if find_target(node["_target_"], "training.batch_transform") is not RefineImages:
        return data
    patch, (channels, *size) = node.get("patch"), data.shape
    size = per_axis(patch, len(size), "training.batch_transform.patch") if patch else size
    return ToldData((channels, *size), told_facts(data.facts, channels, bool(data.facts.label_classes)))


def build_transform(training: dict, dataset: Data, held: Held | None) -> Callable:
    """The batch transform, told what is known of latents; ValueError when the data are not what it is for."""
    node, path = training["batch_transform"], "training.batch_transform"
    latents, source = dataset.facts.latents, dataset.facts.file
    filled = fill(node, trust=training["options"]["trust"], **(latents.statistics if latents else {}))
    try:
        check_targets(filled, path)
    except ValueError as e:
        raise ValueError(f"{e}; {source} holds images: choose batch_transform=voxels") from e
    transform = build(filled, path=path)
    if isinstance(transform, DosePairs) and (why := keep_projector(transform.simulation,
                                                                    training["options"]["run_root"])):
        note(f"Note: {why}")
    opens, scales = hasattr(transform, "open"), hasattr(transform, "scaling")
    if latents and (opens or not scales):
        raise ValueError(f"{path}._target_={node['_target_']}: {source} holds latents and this "
                         + ("encodes images" if opens else "has no scaling that decoding could undo")
                         + "; choose batch_transform=latents")
    if hasattr(transform, "see"):
        transform.see(dataset.facts, dataset.shape)
    if opens:
        on_cpu = training["options"]["device"] == "cpu" or not torch.cuda.is_available()
        split, measured = ("train", dataset) if held is None else (training["validation"]["split"], held.dataset)
        transform.open(dataset, measured, split, torch.device("cpu" if on_cpu else "cuda"))
    return transform


def imagined_transform(training: dict, data: Data) -> Callable:
    """The batch transform of a plan, of which it needs the shape that networks see, where that is not the data's."""
    node, path = training["batch_transform"], "training.batch_transform"
    if not hasattr(find_target(node["_target_"], path), "see"):
        return Identity()
    transform = build(node, path=path)
    transform.see(data.facts, data.shape)
    return transform


def carried_stage(training: dict, data: Data, transform: Callable) -> CarriedStage | None:
    """The first stage for the snapshots, whole and buildable before anything is trained on it; None for voxels."""
    if not hasattr(transform, "scaling"):
        return None
    holder = data if data.facts.latents else transform
    stage = CarriedStage.from_record(holder.first_stage(), transform.scaling, holder.round_trip)
    if stage.network:
        stage.build(data.facts.file, training["options"]["trust"])
    return stage


def dose_of(training: dict, transform: Callable) -> DoseRecord | None:
    """What snapshots say of doses, None where none are simulated."""
    return transform.record(training["batch_transform"]) if isinstance(transform, DosePairs) else None


def check_conditions(net: torch.nn.Module, facts: Facts, condition: Condition | None = None) -> None:
    """ValueError when a network is made for another number of classes, or the like, than the data have.

    condition: that of an item, of which a part that the network takes must not be missing.
    """
    for name, part in takes_of(net).items():
        kind = PARTS[name]
        names = getattr(facts, kind.names) if kind.names else None
        if names is not None and part.width != len(names):
            there = f"{len(names)} {kind.many} ({listed(names)}), or 0 to leave them aside"
            raise ValueError(f"training.network.model.{kind.width_key}={part.width}: wanted {len(names)}, as "
                             f"{facts.source} has {there if names else f'no {kind.many}'}")
        if condition is not None and name not in condition:
            raise ValueError(f"training.network.model.{kind.width_key}={part.width}: {facts.file} holds no "
                             f"{kind.many}; wanted 0, or data with {kind.many}")


def aside_from_drawn(condition: Condition, facts: Facts, coding: LabelCoding | None) -> Condition:
    """The condition of an item without its semantic map, where that is the label map that is drawn."""
    return condition if coding is None or facts.map_classes else condition.replace(semantic=None)


def told_what_it_draws(net: torch.nn.Module, facts: Facts, coding: LabelCoding | None) -> str:
    """A note where a network is told just the label map that it is to draw, '' elsewhere."""
    if coding is None or facts.map_classes or "semantic" not in takes_of(net):
        return ""
    return (f"Note: {LABELS}={coding.kind} draws the label map that the network is told "
            f"(training.network.model.{PARTS['semantic'].width_key}), so that it only repeats it; leave one of them "
            "out, or give the data maps of their own to draw from (prepare --maps)")


def told_decoded_instead(facts: Facts, told: Facts) -> str:
    """A note where a refiner is told what its first stage gives back in place of what the data have, '' elsewhere."""
    kinds = {"condition_channels": "condition channels", "map_classes": "maps of classes"}
    found = [f"{words} ({listed(had)})" for key, words in kinds.items()
             if (had := getattr(facts, key)) and getattr(told, key) != had]
    return (f"Note: {facts.file} holds {' and '.join(found)} that a refiner is not told: it is told what its first "
            "stage gives back") if found else ""


def left_aside(net: torch.nn.Module, condition: Condition, facts: Facts, maps: Sequence[str] = ()) -> str:
    """A note on parts of an item's condition that a network does not take, '' where there is none.

    maps: classes of label maps that nothing is made of.
    """
    takes, found = takes_of(net), []
    for name in condition:
        if name not in takes:
            kind, row = PARTS[name], condition[name]
            names = (getattr(facts, kind.names) if kind.names else None) or ()
            if kind.grid == "map":
                found.append(f"{kind.one}s" + f" of {len(names)} classes ({listed(names)})" * bool(names))
                continue
            found.append(f"{len(row)} {kind.one if len(row) == 1 else kind.many}" + f" ({listed(names)})" * bool(names))
    if maps and (facts.map_classes or "semantic" not in condition):
        found.append(f"label maps of {len(maps)} classes ({listed(maps)})")
    return f"Note: {facts.file} holds {' and '.join(found)} that this network is not told" if found else ""


@torch.no_grad()
def check_forward(task: Task, dataset: object) -> None:
    """Take the loss of one item on the meta device (shapes only): what does not fit is said before there is a run."""
    batch = collate([dataset[0]]).to(torch.device("meta"))
    if batch.images.shape[1] != dataset.shape[0] * (2 if dataset.facts.latents else 1):
        raise ValueError(f"training.batch_transform: the data set yields {batch.images.shape[1]} channels, "
                         f"the networks see {dataset.shape[0]}")
    try:
        task.phases[0].loss(deepcopy(task.net).to("meta"), batch, ImageGenerators([0]))
    except ValueError as e:
        raise ValueError(str(e) if str(e).startswith("training.") else f"training.network: {e}") from e
