"""One training run from its resolved config: check, build, resume, train, and say how it ended."""

import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from math import inf
from pathlib import Path

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.training_state import TrainingState
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.unet_blocks import UNetBlock
from edm3d.samplers.noise import SCHEMES
from edm3d.training.build import check_dataset, check_training, check_without_data, held_out, round_trip_notes
from edm3d.training.ema import halflives
from edm3d.training.init_from import init_from
from edm3d.training.machine import check_graphs
from edm3d.training.phases import Best, Task
from edm3d.training.preview import build_preview, check_ticks
from edm3d.training.private.public import by_public_figures, check_is_public, public_start
from edm3d.training.private.start import asked_privacy, open_private, said_of, shown_without_data
from edm3d.training.private.start_check import check_gradients
from edm3d.training.profile_plan import planned
from edm3d.training.profiling import TIMED, TRACED, WARM_UP, Planned, Profile
from edm3d.training.resume import RunRecord, Start, choose_start, is_newest, overtaken, read_state, with_noise
from edm3d.training.sampling import build_sampled, choose_best
from edm3d.training.schedule import lr_factor
from edm3d.training.selftest import bf16_of_all_ranks, check_folder, data_lines
from edm3d.training.step import split_batch
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import key_of_size_named
from edm3d.training.trainable import asked, part_line, start_notes, trained_lines, write_trained
from edm3d.training.training_loop import Trainer
from edm3d.training.tune import DEVICES, measured, taken_over
from edm3d.training.validation import Held
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice, check_least, check_positive, listed
from edm3d.utils.compiled import keep_compiled
from edm3d.utils.config import build, check_targets, to_yaml
from edm3d.utils.config_hash import config_hash
from edm3d.utils.files import plain_hash, remove_temporary, write_text
from edm3d.utils.log import RunLog, append_log, error_text, read_status, write_status
from edm3d.utils.names import file_names
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import attempt, launch, locked, new_run
from edm3d.utils.schema import Options, Privacy
from edm3d.utils.stats import wandb_package
from edm3d.utils.stop import TRY_AGAIN, Reason, Stop
from edm3d.utils.terminal import printing_is_all

MOST_WORKERS = 1024    # processes that a typing error may start
MOST_IMAGES = 10 ** 9  # in a step, and thousands of them in a run: beyond these it never ends


def check_options(options: Options, device: torch.device) -> None:
    """ValueError for run-level options that no run could follow, before there is a run folder."""
    resolve_precision(options.precision, device)
    if options.noise is not None:
        check_choice("training.options.noise", options.noise, SCHEMES)
    lr_factor(0, 1, 0, options.lr_schedule)
    if options.parallel not in ("ddp", "fsdp"):
        raise ValueError(f"training.options.parallel={options.parallel!r}: wanted ddp or fsdp")
    for name in ("channels_last", "compile", "graphs", "tune"):
        if options.parallel == "fsdp" and getattr(options, name):
            raise ValueError(f"training.options.{name}=true does not go with training.options.parallel=fsdp; "
                             "turn one of them off")
    for name, least, most in (("num_workers", 0, MOST_WORKERS), ("batch_size", 1, MOST_IMAGES),
                              ("total_kimg", 0, MOST_IMAGES), ("seed", 0, 2 ** 32 - 1)):
        if not least <= (value := getattr(options, name)) <= most:
            raise ValueError(f"training.options.{name}={value}: wanted {least} .. {most}")
    check_positive({f"training.options.{name}": getattr(options, name) for name in (
        "batch_size", "total_kimg", "kimg_per_tick", "keep_snapshots", "keep_states", "max_bad_steps")})
    given = {name: value for name in ("lr_rampup_kimg", "grad_clip", "ema_rampup_ratio", "snapshot_ticks",
                                      "state_ticks", "min_psnr") if (value := getattr(options, name)) is not None}
    check_least(0, {f"training.options.{name}": value for name, value in given.items()})
    if options.desc and file_names([options.desc]) != [options.desc]:
        raise ValueError(f"training.options.desc={options.desc}: wanted what can be part of a folder's name")
    halflives(options.ema_halflife_kimg)
    asked(options.trainable)
    if options.wandb:
        wandb_package(options.wandb)
    check_graphs(options, split_batch(options.batch_size, options.batch_gpu, distributed.world_size())[1])


def train(experiment: str, config: dict) -> Path | None:
    """Run or resume an experiment from its plain config; its run folder, None for a dry run.

    Every rank calls this; rank 0 owns the folder.

    SystemExit with a code of its own when the run was asked to stop before its end.
    """
    training = config["training"]
    options, yaml = Options(**training["options"]), to_yaml(config)
    check_training(training)
    privacy = asked_privacy(training, options)
    check_ticks(training["validation"])
    kind = TASKS[training["task"]]
    choose_best(training["validation"], getattr(kind, "best", Best()), kind.draws)
    if config["sampling"]["sampler"]:
        check_targets(config["sampling"]["sampler"], "sampling.sampler")
    if options.dry_run:
        check_options(options, torch.device("cpu"))
        check_without_data(training)
        printing_is_all()
        print(yaml, flush=True)
        return None
    plan = planned(training, options) if options.profile else None
    device = distributed.init(options.device, options.timeout_s, tf32=options.tf32,
                              cudnn_benchmark=options.cudnn_benchmark)
    try:
        distributed.set_threads(options.num_threads)
        check_options(options, device)
        distributed.check_equal("the configuration", plain_hash(common_part(training)))
        distributed.check_equal(f"what training.options.precision={options.precision} means",
                                resolve_precision(options.precision, device))
        dataset = build(training["dataset"], path="training.dataset")
        check_dataset(dataset, training["dataset"]["_target_"])
        torch.manual_seed(options.seed)
        held, public = held_out(training), public_start(options) if privacy else None
        if public is not None:
            check_is_public(training["dataset"], dataset.facts, public)
            training, dataset, held = by_public_figures(training, dataset, held, public)

        def assemble() -> Task:
            with key_of_size_named(training, dataset):
                return TASKS[training["task"]].assemble(training, dataset, held)

        task = assemble()
        run_dir, reason = train_task(experiment, config, task, dataset, held, options, device, privacy, public, plan,
                                     assemble)
    finally:
        distributed.shutdown()
    if reason and reason.exit_code:
        sys.exit(reason.exit_code)
    return run_dir


def common_part(training: dict) -> dict:
    """What of the configuration all ranks must share: everything but how each uses its machine."""
    return {**training, "options": {k: v for k, v in training["options"].items()
                                    if k not in ("device", "num_threads", "num_workers", "debug")}}


def train_task(experiment: str, config: dict, task: Task, dataset: object, held: Held | None, options: Options,
               device: torch.device, privacy: Privacy | None, public: Snapshot | None, plan: Planned | None,
               assemble: Callable[[], Task]) -> tuple[Path, Reason | None]:
    """Find out what to go on from, take a run folder, and train in it; the folder, and why it was asked to stop.

    public: what a private run starts from. plan: for a profile. assemble: another such task, to be tried.
    """
    training, main = config["training"], distributed.rank() == 0
    record = RunRecord(config, known_facts(task, dataset))
    notes = round_trip_notes(task.snapshot.first_stage, dataset.facts.file, options.min_psnr)
    task.best = choose_best(training["validation"], task.best, TASKS[training["task"]].draws)
    if task.best.chosen and not task.best.of_samples and held is None:
        raise ValueError(f"training.validation.best={task.best.name}: nothing is held out that it could be measured "
                         "on; choose training.validation.split, and max_items of 1 or more")
    sampled, sampled_notes = build_sampled(
        training["validation"], task.best, held.fingerprint if held else "",
        lambda count: TASKS[training["task"]].sampled(config, task, held, count, device))
    preview, preview_notes = build_preview(training["validation"], lambda count: TASKS[training["task"]].preview(
        *((*shown_without_data(config, task), None) if privacy else (config, task, held)), count, device))
    notes.extend(start_notes(task.net, options.trainable, options.init_from))
    with ExitStack() as locks:
        start, run_dir = take_start(options, experiment, training, locks)
        state, go_on = read_state(start.state, record) if start.state else None, run_dir is not None
        fresh = options.init_from and not state
        start.notes.extend([*notes, *preview_notes, *sampled_notes])
        start.notes.extend(init_from(task.net, task.snapshot, options) if fresh else [])
        private = open_private(privacy, task, dataset, options, public, state.ledger if state else None,
                               measures=bool(held or sampled), forks=not go_on or overtaken(start.state)
                               ) if privacy else None
        options = with_noise(options, state, device)
        distributed.check_equal("what training.options.noise=null means", options.noise)
        if options.tune:
            options, tuning = tune(options, state, dataset, assemble, device)
            start.notes.extend(tuning)
        if options.compile:
            start.notes.append(keep_compiled())
        folder = run_dir or Path(options.run_root)
        distributed.from_rank_0(lambda: check_folder(folder, task, options, held is not None))
        if not go_on:
            run_dir = new_run(folder, experiment, options.desc, config_hash(training))
            take_folder(run_dir, start, locks)
        stop = locks.enter_context(Stop(run_dir))
        locks.enter_context(failure_noted(run_dir))
        log = RunLog(main, run_dir)
        if attempt() and distributed.from_rank_0(lambda: asked_in_this_launch(run_dir)):
            log("Restarted by torchrun after it was asked to stop: ending again")
            distributed.from_rank_0(lambda: write_status(run_dir, "requeue", read_status(run_dir)["why"],
                                                         launch=launch(), attempt=attempt()))  # for the next restart
            return run_dir, Reason("an earlier signal", "requeue", TRY_AGAIN)
        trainer = Trainer(task, dataset, options, run_dir=run_dir, device=device, log=log, record=record, held=held,
                          preview=preview, sampled=sampled, private=private)
        if state:
            trainer.restore(state)
        if private:
            private.trained = part_line(task.net, options.trainable)
            check_gradients(trainer.stepper, dataset)
            start.notes.extend(said_of(private.budget))
        if not go_on:
            trainer.progress.best = inf  # the best snapshot of another folder is not here
        start.notes.extend(of_cuda_alone(options, device))
        if options.profile and main:
            trainer.watch(Profile(run_dir / "profile", device, trainer.precision, options.batch_size // trainer.ranks,
                                  plan, log))
            start.notes.extend(too_short(trainer))
        if trainer.precision == "bf16":
            start.notes.extend(bf16_of_all_ranks(len(dataset.shape) - 1, device))
        if main:
            remove_temporary(run_dir)
            announce(log, to_yaml(config), trainer, start)
        return run_dir, run_to_end(trainer, stop, to_yaml(config))


def of_cuda_alone(options: Options, device: torch.device) -> list[str]:
    """A note of switches that are on and do nothing on this device."""
    on = [f"training.options.{name}" for name in ("tf32", "cudnn_benchmark", "graphs") if getattr(options, name)]
    return [f"Note: {listed(on)}: of CUDA alone, nothing changes on the CPU"] if on and device.type == "cpu" else []


def tune(options: Options, state: TrainingState | None, dataset: Sized, assemble: Callable[[], Task],
         device: torch.device) -> tuple[Options, list[str]]:
    """Options as the state has them, or else as is fastest on this device, and what to say of it."""
    if state:
        taken = taken_over(options, state.environment)
        return taken, [f"Tune        as at the start of the run: training.options.channels_last={taken.channels_last}, "
                       f"compile={taken.compile}, batch_gpu={taken.batch_gpu}"]
    if device.type not in DEVICES:
        return options, [f"Note: training.options.tune: nothing is measured on {device.type}, the options stand"]
    return measured(options, dataset, assemble, device)


def too_short(trainer: Trainer) -> list[str]:
    """A note where the steps that are left are too few for a profile."""
    left, wanted = -(-(trainer.total - trainer.progress.nimg) // trainer.options.batch_size), WARM_UP + TIMED + TRACED
    return [f"Note: training.options.profile takes {wanted} steps, {max(0, left)} are left: there will be none"] \
        if left < wanted else []


def known_facts(task: Task, dataset: object) -> Facts:
    """What a state must agree with: the data, and the first stage that they go through, whose newest snapshot changes.
    """
    stage, refines = task.snapshot.first_stage, task.snapshot.refines
    if dataset.facts.latents or (stage is None and refines is None):
        return dataset.facts
    return replace(dataset.facts, first_stage=refines.first_stage if refines else stage.hash)


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
    source = dataset.facts.file
    log(f"Data        {source}: {len(dataset)} items of {list(dataset.shape)}")
    log(f"Network     {weights / 1e6:.2f} M weights{attention_blocks(trainer.task.net)} on {trainer.device.type} x "
        f"{trainer.ranks}, {trainer.precision}, {torch.get_num_threads()} threads per rank")
    for line in trained_lines(trainer.task.net, options.trainable):
        log(line)
    training = trainer.record.config["training"]
    notes = [*getattr(dataset, "notes", ()), *trainer.task.notes]
    looks = [] if trainer.private else data_lines(trainer.task, dataset, training, trainer.device)
    for line in (*notes, *looks):
        log(line)
    if start.state:
        log(f"Resumed from {start.state} at {trainer.progress.nimg / 1000:g} kimg")
    if trainer.progress.nimg >= options.total_kimg * 1000:
        log(f"Nothing left to do: training.options.total_kimg={options.total_kimg} is reached; set more to go on")
    elif trainer.progress.nimg >= trainer.total:
        log("Nothing left to do: the privacy budget is spent")
    elif trainer.total < round(options.total_kimg * 1000):
        log(f"Warning: the privacy budget ends the run at {trainer.total / 1000:g} kimg, before "
            f"training.options.total_kimg={options.total_kimg:g}")


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
        write_trained(run_dir, trainer.task.net, trainer.options.trainable)
        write_status(run_dir, "running", launch=launch(), attempt=attempt())
    reason = trainer.run(stop)
    if main:
        status, why = (reason.status, f"stopped by {reason.why}") if reason else ("done", "")
        write_status(run_dir, status, why, nimg=trainer.progress.nimg)
        if status == "done":
            stop.file.unlink(missing_ok=True)  # it has been obeyed, or came too late
    distributed.barrier()  # torchrun would end the others where one leaves early with an exit code of its own
    if trainer.private and reason is None:
        for line in trainer.private.statement(trainer.task.snapshot).lines():
            trainer.log(line)
    trainer.log(ending(trainer, reason))
    return reason


def ending(trainer: Trainer, reason: Reason | None) -> str:
    """The last line of a run."""
    if reason is None:
        return f"Done: {trainer.run_dir}"
    return (f"Stopped by {reason.why} at {trainer.progress.nimg / 1000:g} of {trainer.options.total_kimg:g} kimg: "
            f"{trainer.run_dir}; the same command with training.options.resume=latest goes on")
