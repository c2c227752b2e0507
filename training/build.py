"""What is held against each other before there is a task: the keys of an experiment, its parts, its held-out data."""

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.latents import round_trip_line
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import CarriedStage
from edm3d.networks.parts import PARTS as CONDITIONS
from edm3d.training.tasks import TASKS
from edm3d.training.validation import Held
from edm3d.utils.checks import check_choice
from edm3d.utils.commands import command
from edm3d.utils.config import build, check_targets, fill
from edm3d.utils.files import plain_hash

DATA_ARGUMENTS = ("in_channels", "out_channels", "num_classes", "spatial_dims")
# parts of a training half that are built, with the arguments that the program fills in
PARTS = {"dataset": (), "network": DATA_ARGUMENTS, "loss": (), "optimizer": (),
         "batch_transform": ("channel_mean", "channel_std"), "augment": ("spatial_dims",),
         "discriminator": DATA_ARGUMENTS}


def check_training(training: dict) -> None:
    """Hold every key of the training half against its target before ranks start or data opens."""
    check_choice("training.task", training["task"], TASKS)
    task = TASKS[training["task"]]
    if training["discriminator"] and not task.has_adversary:
        raise ValueError("training.discriminator: only a first stage (training.task=autoencoder) has an adversary; "
                         "leave it out")
    if training["discriminator"] and training["options"]["graphs"]:
        raise ValueError("training.options.graphs=true: gradients lie in memory that the next call writes to, and an "
                         "adversary, training.discriminator, adds up those of two; turn one of them off")
    for part in PARTS:
        needed = part in task.needs or (part in ("augment", "discriminator") and training[part])
        if needed and "_target_" not in training[part]:
            raise ValueError(f"training.{part}._target_: no value; choose the {part} in the experiment's YAML")
    for part, filled in PARTS.items():
        check_targets(training[part], f"training.{part}", filled)


def check_without_data(training: dict) -> None:
    """Build loss and network without memory, for one channel, and have the task hold them against each other.

    Networks whose numbers per axis or level sizes only the data can settle are left to the run.
    """
    task, loss = TASKS[training["task"]], build(training["loss"], path="training.loss")
    task.check(training, loss)
    model = training["network"].get("model")
    model = model if isinstance(model, dict) else training["network"]
    if model.get("attention_resolutions") or any(isinstance(model.get(k), list) for k in ("strides", "kernel_size")):
        return
    with torch.device("meta"):
        node = fill(with_any_widths(training["network"]), in_channels=1, out_channels=1, spatial_dims=3)
        net = build(node, path="training.network")
    task.check(training, loss, net)


def with_any_widths(node: dict) -> dict:
    """A network node with some width for those that the data will say: as many as there are means of attributes."""
    node = {key: with_any_widths(value) if isinstance(value, dict) else value for key, value in node.items()}
    some = len(node.get("attribute_mean") or node.get("attribute_std") or [0])
    return node | {kind.width_key: some for kind in CONDITIONS.values() if node.get(kind.width_key) == "auto"}


def check_dataset(dataset: object, target: str) -> None:
    """ValueError for a data set that lacks what the program asks of one (docs/own_code.md), before it is used."""
    where = f"training.dataset._target_={target}"
    if lacking := [name for name in ("__len__", "__getitem__", "shape", "facts") if not hasattr(dataset, name)]:
        raise ValueError(f"{where}: has no {', '.join(lacking)}, which a data set must have")
    facts, item = dataset.facts, dataset[0]
    if not isinstance(facts, Facts) or not isinstance(item, Sample):
        raise ValueError(f"{where}: its facts are a {type(facts).__name__} and its items {type(item).__name__}, wanted "
                         "Facts (formats/facts.py) and Sample (inference/batch.py)")
    if facts.latents:
        return
    said = {"facts.spatial_shape": facts.spatial_shape, "the shape of item 0 without channels": item.image.shape[1:],
            "the shape of its label map": facts.spatial_shape if item.label is None else item.label.shape}
    if odd := {what: shape for what, shape in said.items() if tuple(shape) != tuple(dataset.shape[1:])}:
        what, shape = next(iter(odd.items()))
        raise ValueError(f"{where}: {what} is {list(shape)}, wanted {list(dataset.shape[1:])} as its shape says")


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


def round_trip_notes(stage: CarriedStage | None, source: str, min_psnr: float | None) -> list[str]:
    """How well the first stage of a run gives volumes back, for the log; ValueError for less than min_psnr dB."""
    if stage is None:
        return []
    found = stage.round_trip
    if found is None:
        asked = f" (training.options.min_psnr={min_psnr:g})" if min_psnr is not None else ""
        return [f"Note: {source} does not say how well its first stage gives volumes back{asked}; "
                f"{command('evaluate', '--autoencoder')} measures that"]
    psnr, measured = found["psnr_db"], f"{found['num']} volumes of split {found['split']!r}"
    if min_psnr is not None and not psnr >= min_psnr:
        raise ValueError(f"{source}: its first stage gives {measured} back at a PSNR of {psnr:.2f} dB, wanted "
                         f"training.options.min_psnr={min_psnr:g}; train the first stage longer (and encode "
                         "again), or go on with training.options.min_psnr=null")
    return [round_trip_line(found)]
