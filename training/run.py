"""One training run from its resolved config: check, build, resume, train, and say how it ended."""

from copy import deepcopy
from pathlib import Path

import torch

from samplers.noise import ImageGenerators
from training.autoencoder import autoencoder_task
from training.batch import Task, collate
from training.diffusion import diffusion_task
from training.precision import resolve_precision
from training.schedule import lr_factor
from training.snapshot import build_codec, first_stage_part
from training.training_loop import Held, Trainer, read_state, split_batch
from utils import distributed
from utils.config import Options, build, check_targets, config_hash, fill, to_yaml
from utils.files import plain_hash, write_text
from utils.log import RunLog, write_status
from utils.runs import find_file, list_files, new_run, newest_with_hash

TASKS = ("autoencoder", "diffusion")
DATA_ARGUMENTS = ("in_channels", "out_channels", "num_classes", "spatial_dims")


def check_training(training: dict) -> None:
    """Hold every key of the training half against its target before ranks start or data opens."""
    if training["task"] not in TASKS:
        raise ValueError(f"training.task={training['task']!r}: wanted one of {', '.join(TASKS)}")
    needed = ["dataset", "network", "loss", "optimizer"] + ["batch_transform"] * (training["task"] == "diffusion")
    for part in needed:
        if "_target_" not in training[part]:
            raise ValueError(f"training.{part}._target_: no value; choose the {part} in the experiment's YAML")
    for part in (*needed, "batch_transform"):
        filled = {"network": DATA_ARGUMENTS, "optimizer": ("params",),
                  "batch_transform": ("channel_mean", "channel_std")}.get(part, ())
        check_targets(training[part], f"training.{part}", filled)


def check_options(options: Options, device: torch.device) -> None:
    """ValueError for run-level options that no run could follow, before there is a run folder."""
    resolve_precision(options.precision, device)
    lr_factor(0, 1, 0, options.lr_schedule)
    if options.num_workers < 0:
        raise ValueError(f"training.options.num_workers={options.num_workers}: wanted 0 or more")
    for name in ("batch_size", "total_kimg", "kimg_per_tick", "keep_snapshots", "keep_states", "ema_halflife_kimg"):
        if not getattr(options, name) > 0:
            raise ValueError(f"training.options.{name}={getattr(options, name)}: wanted more than 0")
    split_batch(options.batch_size, options.batch_gpu, distributed.world_size())
    if not 0 <= options.seed < 2 ** 32:
        raise ValueError(f"training.options.seed={options.seed}: wanted 0 .. 2^32 - 1")


def fill_network(training: dict, dataset: object) -> dict:
    """The network node with what the data says where the YAML says nothing."""
    channels, dims = dataset.shape[0], len(dataset.shape) - 1
    return fill(training["network"], in_channels=channels, out_channels=channels, spatial_dims=dims,
                num_classes=len(dataset.data["label_classes"]))


def build_task(training: dict, dataset: object) -> Task:
    """The task with its network, loss and optimiser, and what its snapshots will carry."""
    node = fill_network(training, dataset)
    net = build(node)
    optimizer = build({**training["optimizer"], "_partial_": True})(net.parameters())
    loss = build(training["loss"])
    snapshot = {"task": training["task"], "network": node, "data": dataset.data, "shape": list(dataset.shape),
                "first_stage": None}
    if training["task"] == "autoencoder":
        net.latent_shape(dataset.shape[1:])
        return autoencoder_task(net, loss, optimizer, snapshot)
    figures = {k: getattr(dataset, k) for k in ("channel_mean", "channel_std") if hasattr(dataset, k)}
    transform_node = fill(training["batch_transform"], **figures)
    check_targets(transform_node, "training.batch_transform")
    if figures:
        part = first_stage_part(dataset.file.first_stage(), **figures, sigma_data=transform_node.get("sigma_data", 0.5))
        build_codec(part, dataset.data["latents"], trust=True)  # whole and buildable, before anything is trained on it
        snapshot["first_stage"] = part
    task = diffusion_task(net, loss, optimizer, build(transform_node), snapshot)
    check_forward(task, dataset)
    return task


@torch.no_grad()
def check_forward(task: Task, dataset: object) -> None:
    """Take the loss of one item on the meta device (shapes only): what does not fit is said before there is a run."""
    batch = collate([dataset[0]]).to(torch.device("meta"))
    if batch.images.shape[1] != dataset.shape[0] * (2 if task.snapshot["first_stage"] else 1):
        raise ValueError(f"training.batch_transform: the data set yields {batch.images.shape[1]} channels, "
                         f"the networks see {dataset.shape[0]}")
    task.phases[0].loss(deepcopy(task.net).to("meta"), batch, ImageGenerators([0]))


def held_out(training: dict) -> Held | None:
    """The held-out split for validation, where the dataset takes a split and validation is on."""
    validation, node = training["validation"], training["dataset"]
    if not validation["max_items"] or "split" not in node or node["split"] == validation["split"]:
        return None
    try:
        dataset = build({**node, "split": validation["split"]})
    except ValueError as e:
        raise ValueError(f"training.validation.split={validation['split']}: {e}; choose another split, or turn "
                         "validation off by training.validation.max_items=0") from e
    count = min(len(dataset), validation["max_items"])
    if count < distributed.world_size():
        raise ValueError(f"training.validation: {count} items of split {validation['split']} do not go round "
                         f"{distributed.world_size()} ranks; turn it off by training.validation.max_items=0")
    return Held(torch.utils.data.Subset(dataset, range(count)), validation["every_ticks"])


def resume_from(options: Options, experiment: str, hash_: str) -> Path | None:
    """The training state that `resume` means; None for a fresh start."""
    root = Path(options.run_root)
    if options.resume is None:
        return None
    if options.resume == "latest":
        run = newest_with_hash(root, experiment, hash_)
        return find_file(str(run), "training-state", root, "training.options.resume") if run else None
    return find_file(options.resume, "training-state", root, "training.options.resume")


def is_newest(state: Path) -> bool:
    """Whether a training state is the last of a run folder: an older or loose one is continued in a new folder."""
    return (state.parent / "status.json").is_file() and list_files(state.parent, "training-state")[-1] == state


def train(experiment: str, config: dict) -> None:
    """Run or resume an experiment from its plain config. Every rank calls this; rank 0 owns the folder."""
    training = config["training"]
    options, yaml = Options(**training["options"]), to_yaml(config)
    check_training(training)
    if training["validation"]["every_ticks"] < 1:
        raise ValueError(f"training.validation.every_ticks={training['validation']['every_ticks']}: wanted 1 or more")
    if config["sampling"]["sampler"]:
        check_targets(config["sampling"]["sampler"], "sampling.sampler", filled=("net", "latents"))
    if options.dry_run:
        print(yaml)
        return
    device = distributed.init(options.device)
    try:
        distributed.set_threads(options.num_threads)
        check_options(options, device)
        hash_ = config_hash(training)
        distributed.check_equal("the configuration", hash_)
        dataset = build(training["dataset"])
        torch.manual_seed(options.seed)
        task = build_task(training, dataset)
        record = {"config": config, "config_hash": hash_, "data_hash": plain_hash(dataset.data),
                  "spatial_dims": len(dataset.shape) - 1}
        held = held_out(training)
        state = distributed.broadcast_object(resume_from(options, experiment, hash_))
        data = read_state(state, record) if state else None
        go_on = state is not None and is_newest(state)
        run_dir = state.parent if go_on else new_run(Path(options.run_root), experiment, options.desc, hash_)
        log = RunLog(distributed.rank() == 0, run_dir)
        trainer = Trainer(task, dataset, options, run_dir=run_dir, device=device, log=log, record=record, held=held)
        if data:
            trainer.restore(data)
        announce(log, yaml, trainer, state)
        run_to_end(trainer, run_dir, yaml)
    finally:
        distributed.shutdown()


def announce(log: RunLog, yaml: str, trainer: Trainer, state: Path | None) -> None:
    """Say what will run, on what data, with how many weights."""
    options, dataset = trainer.options, trainer.dataset
    log(yaml)
    if options.resume and not state:
        log(f"resume={options.resume}: no run of this configuration with a training state, starting fresh")
    weights = sum(p.numel() for phase in trainer.task.phases for p in phase.module.parameters())
    log(f"Run folder  {trainer.run_dir}")
    source = dataset.data.get("latents", dataset.data["source"])
    log(f"Data        {source}: {len(dataset)} items of {list(dataset.shape)}")
    log(f"Network     {weights / 1e6:.2f} M weights on {trainer.device.type} x {trainer.ranks}, {trainer.precision}, "
        f"{torch.get_num_threads()} threads per rank")
    if state:
        log(f"Resumed from {state} at {trainer.progress.nimg / 1000:.1f} kimg")
    if trainer.progress.nimg >= options.total_kimg * 1000:
        log(f"Nothing left to do: training.options.total_kimg={options.total_kimg} is reached; set more to go on")


def run_to_end(trainer: Trainer, run_dir: Path, yaml: str) -> None:
    """Train and keep status.json true, whatever happens."""
    main = distributed.rank() == 0
    if main:
        write_text(run_dir / "config.yaml", yaml)
        write_status(run_dir, "running")
    try:
        trainer.run()
    except BaseException as e:
        if main:
            write_status(run_dir, "failed", why=f"{type(e).__name__}: {e}", nimg=trainer.progress.nimg)
        raise
    if main:
        write_status(run_dir, "done", nimg=trainer.progress.nimg)
    trainer.log(f"Done: {run_dir}")
