"""From the training half of an experiment to its task: each part held against its target, the data and the others."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch

from formats.facts import Facts
from inference.batch import collate
from inference.snapshot import CarriedStage, Snapshot
from networks.conditioning import takes_of
from networks.parts import PARTS
from samplers.noise import ImageGenerators
from training.adversarial import Adversary
from training.autoencoder_loss import AutoencoderLoss
from training.patches import PatchAugment
from training.phases import Task
from training.tasks.autoencoder import autoencoder_task
from training.tasks.diffusion import check_pair, diffusion_task
from training.validation import Held
from utils.checks import listed
from utils.config import build, check_targets, fill
from utils.files import plain_hash

TASKS = ("autoencoder", "diffusion")
DATA_ARGUMENTS = ("in_channels", "out_channels", "num_classes", "spatial_dims")


def check_training(training: dict) -> None:
    """Hold every key of the training half against its target before ranks start or data opens."""
    if training["task"] not in TASKS:
        raise ValueError(f"training.task={training['task']!r}: wanted one of {', '.join(TASKS)}")
    needed = ["dataset", "network", "loss", "optimizer"] + ["batch_transform"] * (training["task"] == "diffusion")
    needed += [part for part in ("augment", "discriminator") if training[part]]
    if training["discriminator"] and training["task"] != "autoencoder":
        raise ValueError("training.discriminator: only a first stage (training.task=autoencoder) has an adversary; "
                         "leave it out")
    for part in needed:
        if "_target_" not in training[part]:
            raise ValueError(f"training.{part}._target_: no value; choose the {part} in the experiment's YAML")
    for part in (*needed, "batch_transform", "augment", "discriminator"):
        filled = {"network": DATA_ARGUMENTS, "augment": ("spatial_dims",), "discriminator": DATA_ARGUMENTS,
                  "batch_transform": ("channel_mean", "channel_std")}.get(part, ())
        check_targets(training[part], f"training.{part}", filled)


def check_without_data(training: dict) -> None:
    """Build loss and network without memory, for one channel, and hold them against each other.

    Networks whose numbers per axis or level sizes only the data can settle are left to the run.
    """
    loss = build(training["loss"], path="training.loss")
    check_strata(loss, training["options"]["batch_size"])
    model = training["network"].get("model")
    model = model if isinstance(model, dict) else training["network"]
    if model.get("attention_resolutions") or any(isinstance(model.get(k), list) for k in ("strides", "kernel_size")):
        return
    with torch.device("meta"):
        node = fill(training["network"], in_channels=1, out_channels=1, spatial_dims=3)
        net = build(node, path="training.network")
    check_pair(net, loss)


def held_out(training: dict) -> Held | None:
    """The held-out split for validation, where the dataset takes a split and validation is on."""
    validation, node = training["validation"], training["dataset"]
    if not validation["max_items"] or node.get("split") in (None, "all", validation["split"]):
        return None
    try:
        dataset = build({**node, "split": validation["split"]})
    except ValueError as e:
        raise ValueError(f"training.validation.split={validation['split']}: {e}; choose another split, or turn "
                         "validation off by training.validation.max_items=0") from e
    count = min(len(dataset), validation["max_items"])
    fingerprint = plain_hash({"split": validation["split"], "items": count, "data": dataset.facts.identity()})[:16]
    return Held(torch.utils.data.Subset(dataset, range(count)), validation["every_ticks"], fingerprint)


def build_task(training: dict, dataset: object, held: Held | None = None) -> Task:
    """The task with its network, loss and optimiser, and what its snapshots will carry."""
    augment = build_augment(training, dataset)
    transform = build_transform(training, dataset, held) if training["task"] == "diffusion" else None
    shape = getattr(transform, "shape", dataset.shape)
    node = fill_network(training, dataset, getattr(augment, "label_dim", 0), shape)
    net = build(node, path="training.network")
    optimizer = build(training["optimizer"], net.parameters(), path="training.optimizer")
    loss = build(training["loss"], path="training.loss")
    snapshot = Snapshot(training["task"], node, dataset.facts, tuple(shape))
    if training["task"] == "autoencoder":
        net.latent_shape(dataset.shape[1:])
        shape = trained_shape(net, augment, dataset)
        adversary = build_adversary(training["discriminator"], shape)
        if isinstance(loss, AutoencoderLoss):
            for size in {shape[1:], *([tuple(dataset.shape[1:])] if held else [])}:  # patches, and whole volumes
                loss.open(size)
        return autoencoder_task(net, loss, optimizer, snapshot, augment, adversary,
                                batch_size=training["options"]["batch_size"])
    check_pair(net, loss)
    check_conditions(net, dataset.facts)
    check_strata(loss, training["options"]["batch_size"])
    if hasattr(transform, "scaling"):
        holder = dataset if dataset.facts.latents else transform
        stage = CarriedStage.from_record(holder.first_stage(), transform.scaling, holder.round_trip)
        if stage.network:  # whole and buildable, before anything is trained on it
            stage.build(dataset.facts.file, training["options"]["trust"])
        snapshot = replace(snapshot, first_stage=stage)
    task = diffusion_task(net, loss, optimizer, transform, snapshot, augment)
    check_forward(task, dataset)
    return task


def fill_network(training: dict, dataset: object, augment_dim: int = 0, shape: Sequence[int] | None = None) -> dict:
    """The network node with what the data and the augmentation say where the YAML says nothing.

    shape: of what the network sees, where that is not what the dataset holds.
    """
    channels, *size = shape or dataset.shape
    return fill(training["network"], in_channels=channels, out_channels=channels, spatial_dims=len(size),
                image_size=list(size), num_classes=len(dataset.facts.label_classes), augment_dim=augment_dim)


def build_augment(training: dict, dataset: object) -> Callable | None:
    """The augmentation, where there is one; ValueError for latents."""
    node = training["augment"]
    if node and dataset.facts.latents:
        raise ValueError(f"training.augment._target_={node['_target_']}: an augmentation moves images, and latents do "
                         "not turn with their image; choose augment=none")
    augment = build(fill(node, spatial_dims=len(dataset.shape) - 1), path="training.augment") if node else None
    if isinstance(augment, PatchAugment):
        if training["task"] != "autoencoder":
            raise ValueError(f"training.augment._target_={node['_target_']}: patches are for first stages "
                             "(training.task=autoencoder); choose augment=none or augment=edm")
        augment.check(dataset.shape[1:])
    return augment


def build_transform(training: dict, dataset: object, held: Held | None) -> Callable:
    """The batch transform, told what is known of latents; ValueError when the data are not what it is for."""
    node, path = training["batch_transform"], "training.batch_transform"
    latents, source = dataset.facts.latents, dataset.facts.file
    filled = fill(node, trust=training["options"]["trust"], **(latents.statistics if latents else {}))
    try:
        check_targets(filled, path)
    except ValueError as e:
        raise ValueError(f"{e}; {source} holds images: choose batch_transform=voxels") from e
    transform = build(filled, path=path)
    opens, scales = hasattr(transform, "open"), hasattr(transform, "scaling")
    if latents and (opens or not scales):
        raise ValueError(f"{path}._target_={node['_target_']}: {source} holds latents and this "
                         + ("encodes images" if opens else "has no scaling that decoding could undo")
                         + "; choose batch_transform=latents")
    if opens:
        on_cpu = training["options"]["device"] == "cpu" or not torch.cuda.is_available()
        split, measured = ("train", dataset) if held is None else (training["validation"]["split"], held.dataset)
        transform.open(dataset, measured, split, torch.device("cpu" if on_cpu else "cuda"))
    return transform


def trained_shape(net: torch.nn.Module, augment: Callable | None, dataset: object) -> tuple[int, ...]:
    """Shape [C,*S] of what a first stage sees in training; ValueError for a patch that it cannot divide."""
    if not isinstance(augment, PatchAugment):
        return tuple(dataset.shape)
    try:
        net.latent_shape(augment.size)
    except ValueError as e:
        raise ValueError(f"training.augment.size={list(augment.size)}: {e}") from e
    return (dataset.shape[0], *augment.size)


def build_adversary(node: dict, shape: Sequence[int]) -> Adversary | None:
    """The adversary of a first stage that sees images [C,*S], where there is one."""
    if not node:
        return None
    dims = 2 if node.get("per_slice") else len(shape) - 1
    adversary = build(fill(node, in_channels=shape[0], spatial_dims=dims), path="training.discriminator")
    adversary.check(shape)
    return adversary


def check_conditions(net: torch.nn.Module, facts: Facts) -> None:
    """ValueError when a network is made for another number of classes, or the like, than the data have."""
    for name, part in takes_of(net).items():
        kind = PARTS[name]
        names = getattr(facts, kind.names) if kind.names else None
        if names is not None and part.width != len(names):
            there = f"{len(names)} {kind.many} ({listed(names)}), or 0 to leave them aside"
            raise ValueError(f"training.network.model.{kind.width_key}={part.width}: wanted {len(names)}, as "
                             f"{facts.source} has {there if names else f'no {kind.many}'}")


def check_strata(loss: Callable, batch_size: int) -> None:
    """ValueError when a loss spreads noise levels over another number of images than a batch has."""
    strata = getattr(loss, "strata", None)
    if strata not in (None, batch_size):
        raise ValueError(f"training.loss.strata={strata}: wanted training.options.batch_size={batch_size} "
                         "(${training.options.batch_size}), or null")


@torch.no_grad()
def check_forward(task: Task, dataset: object) -> None:
    """Take the loss of one item on the meta device (shapes only): what does not fit is said before there is a run."""
    batch = collate([dataset[0]]).to(torch.device("meta"))
    if batch.images.shape[1] != dataset.shape[0] * (2 if dataset.facts.latents else 1):
        raise ValueError(f"training.batch_transform: the data set yields {batch.images.shape[1]} channels, "
                         f"the networks see {dataset.shape[0]}")
    task.phases[0].loss(deepcopy(task.net).to("meta"), batch, ImageGenerators([0]))


def round_trip_notes(stage: CarriedStage | None, source: str, min_psnr: float | None) -> list[str]:
    """How well the first stage of a run gives volumes back, for the log; ValueError for less than min_psnr dB."""
    if stage is None:
        return []
    found = stage.round_trip
    if found is None:
        asked = f" (training.options.min_psnr={min_psnr:g})" if min_psnr is not None else ""
        return [f"Note: {source} does not say how well its first stage gives volumes back{asked}; evaluate.py "
                "--autoencoder measures that"]
    psnr, measured = found["psnr_db"], f"{found['num']} volumes of split {found['split']!r}"
    if min_psnr is not None and not psnr >= min_psnr:
        raise ValueError(f"{source}: its first stage gives {measured} back at a PSNR of {psnr:.2f} dB, wanted "
                         f"training.options.min_psnr={min_psnr:g}; train the first stage longer (and encode "
                         "again), or go on with training.options.min_psnr=null")
    return [f"Round trip  PSNR {psnr:.2f} dB over {measured}"]
