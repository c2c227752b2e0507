"""One training run from its resolved config: check, build, resume, train, and say how it ended."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from math import inf
from pathlib import Path

import torch

from networks.unet_blocks import UNetBlock
from samplers.noise import ImageGenerators
from training.adversarial import Adversary
from training.autoencoder import autoencoder_task
from training.autoencoder_loss import AutoencoderLoss
from training.batch import Task, collate
from training.diffusion import check_pair, diffusion_task, unusual_pair
from training.ema import halflives
from training.init_from import init_from
from training.patches import PatchAugment
from training.precision import resolve_precision
from training.preview import build_preview, check_preview
from training.resume import Start, choose_start, is_newest, read_state, restarted
from training.schedule import lr_factor
from training.selftest import bf16_of_all_ranks, check_folder, spread_lines
from training.snapshot import build_codec, first_stage_part
from training.training_loop import Trainer, split_batch
from training.validation import Held
from utils import distributed
from utils.checks import listed
from utils.config import Options, build, check_targets, config_hash, fill, find_target, to_yaml
from utils.files import plain_hash, remove_temporary, write_text
from utils.log import RunLog, append_log, error_text, read_status, write_status
from utils.runs import attempt, launch, locked, new_run
from utils.stats import wandb_package
from utils.stop import TRY_AGAIN, Reason, Stop

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


def check_options(options: Options, device: torch.device) -> None:
    """ValueError for run-level options that no run could follow, before there is a run folder."""
    resolve_precision(options.precision, device)
    lr_factor(0, 1, 0, options.lr_schedule)
    if options.parallel not in ("ddp", "fsdp"):
        raise ValueError(f"training.options.parallel={options.parallel!r}: wanted ddp or fsdp")
    for name in ("channels_last", "compile"):
        if options.parallel == "fsdp" and getattr(options, name):
            raise ValueError(f"training.options.{name}=true does not go with training.options.parallel=fsdp; "
                             "turn one of them off")
    if options.num_workers < 0:
        raise ValueError(f"training.options.num_workers={options.num_workers}: wanted 0 or more")
    for name in ("batch_size", "total_kimg", "kimg_per_tick", "keep_snapshots", "keep_states", "max_bad_steps"):
        if not getattr(options, name) > 0:
            raise ValueError(f"training.options.{name}={getattr(options, name)}: wanted more than 0")
    halflives(options.ema_halflife_kimg)
    if options.wandb:
        wandb_package(options.wandb)
    split_batch(options.batch_size, options.batch_gpu, distributed.world_size())
    if not 0 <= options.seed < 2 ** 32:
        raise ValueError(f"training.options.seed={options.seed}: wanted 0 .. 2^32 - 1")


def fill_network(training: dict, dataset: object, augment_dim: int = 0, shape: Sequence[int] | None = None) -> dict:
    """The network node with what the data and the augmentation say where the YAML says nothing.

    shape: of what the network sees, where that is not what the dataset holds.
    """
    channels, *size = shape or dataset.shape
    return fill(training["network"], in_channels=channels, out_channels=channels, spatial_dims=len(size),
                image_size=list(size), num_classes=len(dataset.data["label_classes"]), augment_dim=augment_dim)


def latent_figures(dataset: object) -> dict:
    """What the batch transform must know of a dataset of latents, {} for images."""
    return getattr(dataset, "figures", {})


def data_source(dataset: object) -> str:
    """The file that a dataset reads."""
    return dataset.data.get("latents", dataset.data["source"])


def build_augment(training: dict, dataset: object) -> Callable | None:
    """The augmentation, where there is one; ValueError for latents."""
    node = training["augment"]
    if node and latent_figures(dataset):
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
    """The batch transform, told the figures of latents; ValueError when the data are not what it is for."""
    node, path = training["batch_transform"], "training.batch_transform"
    figures, source = latent_figures(dataset), data_source(dataset)
    filled = fill(node, trust=training["options"]["trust"], **figures)
    try:
        check_targets(filled, path)
    except ValueError as e:
        raise ValueError(f"{e}; {source} holds images: choose batch_transform=voxels") from e
    transform = build(filled, path=path)
    opens, scales = hasattr(transform, "open"), hasattr(transform, "figures")
    if figures and (opens or not scales):
        raise ValueError(f"{path}._target_={node['_target_']}: {source} holds latents and this "
                         + ("encodes images" if opens else "has no figures, by which decoding undoes its scaling")
                         + "; choose batch_transform=latents")
    if opens:
        on_cpu = training["options"]["device"] == "cpu" or not torch.cuda.is_available()
        split, measured = ("train", dataset) if held is None else (training["validation"]["split"], held.dataset)
        transform.open(dataset, measured, split, torch.device("cpu" if on_cpu else "cuda"))
    return transform


def round_trip_notes(part: dict | None, source: str, min_psnr: float | None) -> list[str]:
    """How well the first stage of a run gives volumes back, for the log; ValueError for less than min_psnr dB."""
    if part is None:
        return []
    found = part["round_trip"]
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


def check_classes(net: torch.nn.Module, data: dict) -> None:
    """ValueError when a network is made for another number of classes than the data have."""
    label_dim, names = getattr(net, "label_dim", 0), data["class_names"]
    if label_dim and label_dim != len(names):
        there = f"{len(names)} classes ({listed(names)}), or 0 to leave them aside" if names else "no classes"
        raise ValueError(f"training.network.model.label_dim={label_dim}: wanted {len(names)}, as {data['source']} has "
                         f"{there}")


def check_strata(loss: Callable, batch_size: int) -> None:
    """ValueError when a loss spreads noise levels over another number of images than a batch has."""
    strata = getattr(loss, "strata", None)
    if strata not in (None, batch_size):
        raise ValueError(f"training.loss.strata={strata}: wanted training.options.batch_size={batch_size} "
                         "(${training.options.batch_size}), or null")


def build_task(training: dict, dataset: object, held: Held | None = None) -> Task:
    """The task with its network, loss and optimiser, and what its snapshots will carry."""
    augment = build_augment(training, dataset)
    transform = build_transform(training, dataset, held) if training["task"] == "diffusion" else None
    shape = getattr(transform, "shape", dataset.shape)
    node = fill_network(training, dataset, getattr(augment, "label_dim", 0), shape)
    net = build(node, path="training.network")
    optimizer = build(training["optimizer"], net.parameters(), path="training.optimizer")
    loss = build(training["loss"], path="training.loss")
    snapshot = {"task": training["task"], "network": node, "data": dataset.data, "shape": list(shape),
                "first_stage": None}
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
    check_classes(net, dataset.data)
    check_strata(loss, training["options"]["batch_size"])
    if hasattr(transform, "figures"):
        holder = dataset if latent_figures(dataset) else transform
        part = snapshot["first_stage"] = first_stage_part(holder.first_stage(), transform.figures)
        part["round_trip"] = holder.round_trip
        if part["network"]:  # whole and buildable, before anything is trained on it
            build_codec(part, data_source(dataset), training["options"]["trust"])
    task = diffusion_task(net, loss, optimizer, transform, snapshot, augment)
    check_forward(task, dataset)
    return task


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


@torch.no_grad()
def check_forward(task: Task, dataset: object) -> None:
    """Take the loss of one item on the meta device (shapes only): what does not fit is said before there is a run."""
    batch = collate([dataset[0]]).to(torch.device("meta"))
    if batch.images.shape[1] != dataset.shape[0] * (2 if latent_figures(dataset) else 1):
        raise ValueError(f"training.batch_transform: the data set yields {batch.images.shape[1]} channels, "
                         f"the networks see {dataset.shape[0]}")
    task.phases[0].loss(deepcopy(task.net).to("meta"), batch, ImageGenerators([0]))


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
    fingerprint = plain_hash({"split": validation["split"], "items": count, "data": dataset.data})[:16]
    return Held(torch.utils.data.Subset(dataset, range(count)), validation["every_ticks"], fingerprint)


def train(experiment: str, config: dict) -> None:
    """Run or resume an experiment from its plain config. Every rank calls this; rank 0 owns the folder.

    SystemExit with a code of its own when the run was asked to stop before its end.
    """
    training = config["training"]
    options, yaml = Options(**training["options"]), to_yaml(config)
    check_training(training)
    if training["validation"]["every_ticks"] < 1:
        raise ValueError(f"training.validation.every_ticks={training['validation']['every_ticks']}: wanted 1 or more")
    check_preview(training["validation"])
    if config["sampling"]["sampler"]:
        check_targets(config["sampling"]["sampler"], "sampling.sampler")
    if options.dry_run:
        check_options(options, torch.device("cpu"))
        check_without_data(training)
        print(yaml)
        return
    device = distributed.init(options.device, options.timeout_s)
    try:
        distributed.set_threads(options.num_threads)
        check_options(options, device)
        distributed.check_equal("the configuration", plain_hash(common_part(training)))
        distributed.check_equal(f"what training.options.precision={options.precision} means",
                                resolve_precision(options.precision, device))
        dataset = build(training["dataset"], path="training.dataset")
        torch.manual_seed(options.seed)
        held = held_out(training)
        task = build_task(training, dataset, held)
        reason = train_task(experiment, config, task, dataset, held, options, device)
    finally:
        distributed.shutdown()
    if reason and reason.exit_code:
        sys.exit(reason.exit_code)


def common_part(training: dict) -> dict:
    """What of the configuration all ranks must share: everything but how each uses its machine."""
    return {**training, "options": {k: v for k, v in training["options"].items()
                                    if k not in ("device", "num_threads", "num_workers", "debug")}}


def train_task(experiment: str, config: dict, task: Task, dataset: object, held: Held | None, options: Options,
               device: torch.device) -> Reason | None:
    """Find out what to go on from, take a run folder, and train in it; the reason when asked to stop."""
    training, main = config["training"], distributed.rank() == 0
    record = {"config": config, "data": known_data(task, dataset), "spatial_dims": len(dataset.shape) - 1}
    notes = round_trip_notes(task.snapshot["first_stage"], data_source(dataset), options.min_psnr)
    preview, preview_notes = build_preview(config, task, held, device)
    with ExitStack() as locks:
        start, run_dir = take_start(options, experiment, training, locks)
        state, go_on = read_state(start.state, record) if start.state else None, run_dir is not None
        fresh = options.init_from and not state
        start.notes.extend([*notes, *preview_notes])
        start.notes.extend(init_from(task.net, task.snapshot["network"], options) if fresh else [])
        folder = run_dir or Path(options.run_root)
        distributed.from_rank_0(lambda: check_folder(folder, task, options, held is not None))
        if not go_on:
            run_dir = new_run(folder, experiment, options.desc, config_hash(training))
            take_folder(run_dir, start, locks)
        stop = locks.enter_context(Stop(run_dir))
        locks.enter_context(failure_noted(run_dir))
        log = RunLog(main, run_dir)
        if restarted() and distributed.from_rank_0(lambda: asked_in_this_launch(run_dir)):
            log("Restarted by torchrun after it was asked to stop: ending again")
            distributed.from_rank_0(lambda: write_status(run_dir, "requeue", read_status(run_dir)["why"],
                                                         launch=launch(), attempt=attempt()))  # for the next restart
            return Reason("an earlier signal", "requeue", TRY_AGAIN)
        trainer = Trainer(task, dataset, options, run_dir=run_dir, device=device, log=log, record=record, held=held,
                          preview=preview)
        if state:
            trainer.restore(state)
        if not go_on:
            trainer.progress.best = inf  # the best snapshot of another folder is not here
        if trainer.precision == "bf16":
            start.notes.extend(bf16_of_all_ranks(record["spatial_dims"], device))
        if main:
            remove_temporary(run_dir)
            announce(log, to_yaml(config), trainer, start)
        return run_to_end(trainer, stop, to_yaml(config))


def known_data(task: Task, dataset: object) -> dict:
    """What a state must agree with: the data, and the first stage that encodes them, whose newest snapshot changes."""
    stage = task.snapshot["first_stage"]
    return dataset.data if stage is None or latent_figures(dataset) else {**dataset.data, "first_stage": stage["hash"]}


def take_start(options: Options, experiment: str, training: dict, locks: ExitStack) -> tuple[Start, Path | None]:
    """What to go on from, and its run folder, locked, where it is the newest state there.

    Chosen again where another run wrote to the folder until the lock was taken.
    """
    def choose() -> tuple[Start, Path | None]:
        start = choose_start(options, experiment, training)
        return start, start.state.parent if start.state and is_newest(start.state) else None

    start, folder = distributed.from_rank_0(choose)
    while folder:
        take_folder(folder, start, locks)
        again, its_folder = distributed.from_rank_0(choose)
        if (again.state, its_folder) == (start.state, folder):
            break
        locks.close()
        start, folder = again, its_folder
    return start, folder


def take_folder(run_dir: Path, start: Start, locks: ExitStack) -> None:
    """Keep other process groups off a run folder until `locks` is closed, or note that nothing does."""
    if not locks.enter_context(locked(run_dir)):
        start.notes.append(f"Warning: {run_dir}: the file system knows no locks; nothing keeps a second run off this "
                           "folder")


def asked_in_this_launch(run_dir: Path) -> bool:
    """Whether the attempt before this one, of the same launch of torchrun, was asked to stop."""
    status = read_status(run_dir)
    return status["status"] == "requeue" and status.get("launch") == launch() \
        and status.get("attempt") == attempt() - 1


def announce(log: RunLog, yaml: str, trainer: Trainer, start: Start) -> None:
    """Say what will run, on what data, with how many weights, and what looks wrong."""
    options, dataset = trainer.options, trainer.dataset
    log(yaml)
    for line in start.notes:
        log(line)
    weights = sum(p.numel() for phase in trainer.task.phases for p in phase.module.parameters())
    log(f"Run folder  {trainer.run_dir}")
    source = data_source(dataset)
    log(f"Data        {source}: {len(dataset)} items of {list(dataset.shape)}")
    log(f"Network     {weights / 1e6:.2f} M weights{attention_blocks(trainer.task.net)} on {trainer.device.type} x "
        f"{trainer.ranks}, {trainer.precision}, {torch.get_num_threads()} threads per rank")
    loss = find_target(trainer.record["config"]["training"]["loss"]["_target_"], "training.loss")
    note = unusual_pair(type(trainer.task.net), loss)
    if note:
        log(note)
    for line in spread_lines(trainer.task, dataset, options.seed, trainer.device):
        log(line)
    if start.state:
        log(f"Resumed from {start.state} at {trainer.progress.nimg / 1000:g} kimg")
    if trainer.progress.nimg >= options.total_kimg * 1000:
        log(f"Nothing left to do: training.options.total_kimg={options.total_kimg} is reached; set more to go on")


def attention_blocks(net: torch.nn.Module) -> str:
    """How many blocks of a UNet attend, '' for other networks."""
    blocks = [module for module in net.modules() if isinstance(module, UNetBlock)]
    return f", {sum(block.heads > 0 for block in blocks)} of {len(blocks)} blocks with attention," if blocks else ""


@contextmanager
def failure_noted(run_dir: Path) -> Iterator[None]:
    """Write into status.json and log.txt what went wrong: torchrun buries the line on the terminal under its own."""
    try:
        yield
    except BaseException as e:
        if distributed.rank() == 0:
            why = f"{type(e).__name__}: {error_text(e)}"
            for write in (lambda: append_log(run_dir, f"Failed: {why}"),
                          lambda: write_status(run_dir, "failed", why=why)):
                with suppress(OSError):  # on a full disk the first error is the one to show
                    write()
        raise


def run_to_end(trainer: Trainer, stop: Stop, yaml: str) -> Reason | None:
    """Train, with status.json true before and after; the reason when asked to stop."""
    main, run_dir = distributed.rank() == 0, trainer.run_dir
    if main:
        write_text(run_dir / "config.yaml", yaml)
        write_status(run_dir, "running", launch=launch(), attempt=attempt())
    reason = trainer.run(stop)
    if main:
        status, why = (reason.status, f"stopped by {reason.why}") if reason else ("done", "")
        write_status(run_dir, status, why, nimg=trainer.progress.nimg)
        if status == "done":
            stop.file.unlink(missing_ok=True)  # it has been obeyed, or came too late
    distributed.barrier()  # torchrun would end the others where one leaves early with an exit code of its own
    trainer.log(ending(trainer, reason))
    return reason


def ending(trainer: Trainer, reason: Reason | None) -> str:
    """The last line of a run."""
    if reason is None:
        return f"Done: {trainer.run_dir}"
    return (f"Stopped by {reason.why} at {trainer.progress.nimg / 1000:g} of {trainer.options.total_kimg:g} kimg: "
            f"{trainer.run_dir}; the same command with training.options.resume=latest goes on")
