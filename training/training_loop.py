"""The training loop: steps counted in images, progress in ticks of kimg. It knows phases and files, no diffusion."""

import time
from collections.abc import Iterator, Mapping, Sized
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from edm3d.formats.training_state import Progress, TrainingState
from edm3d.inference.batch import Batch
from edm3d.samplers.noise import GENERATORS, mix_seed
from edm3d.training.buffers import Buffers
from edm3d.training.ema import copy_buffers, ema_beta, halflives, update_ema
from edm3d.training.loader import Round, Rounds
from edm3d.training.loss_scale import next_scale
from edm3d.training.machine import environment, place
from edm3d.training.pending import LossScale, Pending, Sent, is_bad, known_scale, rates_of, set_rates, too_many
from edm3d.training.phases import PhaseStep, Task
from edm3d.training.preview import Preview, make, pixels, write_preview
from edm3d.training.private.release import Release, without_sources, write_statement
from edm3d.training.private.step import PrivateStep
from edm3d.training.profiling import Profile
from edm3d.training.restoring import check_fits, measured_anew
from edm3d.training.resume import RunRecord, changes
from edm3d.training.sampling import Sampled, draw_table, in_words
from edm3d.training.schedule import lr_factor
from edm3d.training.step import PlainStep
from edm3d.training.ticks import learning_rates, tick_fields, tick_line
from edm3d.training.trainable import train_part
from edm3d.training.validation import Held, validate
from edm3d.utils import checkpoint, distributed, sharding
from edm3d.utils.log import RunLog, progress, write_status
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import has_exact_names, kimg_name, prune
from edm3d.utils.schema import Options
from edm3d.utils.stats import Collector, StatsFiles, start_wandb
from edm3d.utils.stop import Reason, Stop, reason_of


class Trainer:
    """One run: a task, its data, the averages of its weights, and the files of its run folder."""

    private_step = PrivateStep

    def __init__(self, task: Task, dataset: Sized, options: Options, *, run_dir: Path, device: torch.device,
                 log: RunLog, record: RunRecord, held: Held | None = None, preview: Preview | None = None,
                 sampled: Sampled | None = None, private: Release | None = None):
        self.task, self.dataset, self.options, self.held, self.preview = task, dataset, options, held, preview
        self.run_dir, self.device, self.log, self.record, self.sampled = run_dir, device, log, record, sampled
        self.private = private
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.total = round(options.total_kimg * 1000)
        if private:
            self.total = min(self.total, private.budget.steps * options.batch_size)
        self.precision = resolve_precision(options.precision, device)
        sharding.check_same_weights({p.name: p.module for p in task.phases},
                                    "all ranks need the same program and files")
        for phase in task.phases:
            phase.module.train().requires_grad_(True)
        self.halflives = halflives(options.ema_halflife_kimg)
        self.emas = [deepcopy(task.net).eval().requires_grad_(False) for _ in self.halflives]
        self.ema = self.emas[0]
        train_part(task, options.trainable, options.seed)  # of the averages there are plain copies by now
        for module, optimizer in [*((p.module, p.optimizer) for p in task.phases), *((ema, None) for ema in self.emas)]:
            self.place(module, optimizer)
        if options.checkpointing:
            sharding.checkpoint_blocks(task.net)
        step = partial(self.private_step, budget=private.budget) if private else PlainStep
        self.stepper = step(task, dataset, options, precision=self.precision, device=device)
        self.batch_gpu = self.stepper.batch_gpu
        self.part, self.watched = nullcontext, nullcontext  # around parts of a step, and around a step
        self.optimizers = [p.optimizer for p in task.phases]
        self.base_lr = rates_of(self.optimizers)
        self.buffers = Buffers([p.module for p in task.phases])
        self.progress, self.stats, self.tick_start = Progress(), Collector(), 0.0
        self.measure_anew()
        self.pending: Pending | None = None  # the step of which the host does not know yet whether it was skipped
        self.good = replace(self.progress), self.stats.copy()  # before the steps in a row that were skipped
        self.saved_nimg, self.files = -1, None  # of the last state; where the numbers of ticks go
        self.losses = {task.best.key: task.best.words}  # numbers of a tick that its line shows, and as what; of steps,
        # those of the stepper

    def place(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Bring a module to the device, whole or this rank's share of it."""
        place(module, optimizer, self.options, self.device)

    def watch(self, profile: Profile) -> None:
        """Have a profile made of the next steps."""
        self.part = self.stepper.part = profile.part
        self.watched = profile.step

    # ---- state ----

    def environment(self) -> dict:
        """What changes the last bits of a result; stored in the state, a change is warned of."""
        return environment(self.options, self.batch_gpu, self.precision, self.task.phases, self.device)

    def state(self) -> TrainingState:
        """Everything to go on from here bit for bit, or, among steps that are skipped, from before the first of them.

        All ranks must call this together.
        """
        self.settle()
        now, stats = self.good if self.progress.bad_steps else (self.progress, self.stats)
        return TrainingState(
            self.record.config, self.record.facts, self.options.total_kimg, self.environment(), vars(replace(now)),
            stats.state(), sharding.full_state(self.ema), [sharding.full_state(ema) for ema in self.emas[1:]],
            {p.name: sharding.full_state(p.module) for p in self.task.phases},
            {p.name: sharding.full_state(p.optimizer) for p in self.task.phases},
            self.private.budget.ledger if self.private else None)

    def restore(self, state: TrainingState) -> None:
        """Go on from a training state that `read_state` gave; ValueError, and nothing changed, where it does not fit.
        """
        for line in changes(state.environment, self.environment()):
            self.log(line)
        length = state.total_kimg
        if self.options.lr_schedule == "cosine" and length != self.options.total_kimg:
            self.log(f"Warning: training.options.total_kimg was {length:g}, is {self.options.total_kimg:g}: the cosine "
                     "schedule is another one from here on, and the result not that of one long run")
        check_fits(state, self.task.phases, self.emas, self.options.batch_size)
        if self.private:
            self.private.budget.go_on(state.ledger, state.nimg)
        for phase in self.task.phases:
            sharding.load_full_state(phase.module, state.modules[phase.name])
            sharding.load_full_optimizer_state(phase.optimizer, state.optimizers[phase.name])
        for ema, weights in zip(self.emas, [state.ema, *state.more_emas], strict=True):
            sharding.load_full_state(ema, weights)
        self.progress = Progress(**state.progress)
        self.measure_anew()
        self.stats.load_state(state.stats)

    def measure_anew(self) -> None:
        """Forget the best validation where it was measured on something else than is held out now."""
        best = self.task.best
        if (source := self.sampled if best.of_samples else self.held) is not None:
            for line in measured_anew(self.progress, best, source.fingerprint):
                self.log(line)

    def kimg_name(self, nimg: int) -> str:
        """Images seen as file names give them, exactly where ticks are, or have been, shorter than a kimg."""
        return kimg_name(nimg, exact=self.options.kimg_per_tick < 1 or has_exact_names(self.run_dir))

    def save_state(self) -> None:
        """Write a training state, and into status.json that it is there."""
        state = self.state()
        path = self.run_dir / f"training-state-{self.kimg_name(state.nimg)}.pt"
        distributed.from_rank_0(lambda: checkpoint.save(path, "state", state.plain()))
        distributed.from_rank_0(lambda: write_status(self.run_dir, "running", nimg=state.nimg, state=path.name))
        distributed.from_rank_0(lambda: prune(self.run_dir, "training-state", self.options.keep_states))
        if self.private:
            self.save_statement()
        self.saved_nimg = self.progress.nimg

    def save_statement(self) -> None:
        """Write what a private run has spent by now, so that its folder never says less than what lies in it."""
        distributed.from_rank_0(lambda: write_statement(self.run_dir, self.private.statement(self.task.snapshot)))

    def save_snapshot(self) -> None:
        """Write the averaged weights with all that is needed to use them anywhere; the main average last."""
        averages = {f"ema {halflife:g}": ema for halflife, ema in zip(self.halflives, self.emas, strict=True)}
        sharding.check_same_weights({**{p.name: p.module for p in self.task.phases}, **averages},
                                    "start again from the last training state")
        name = f"network-snapshot-{self.kimg_name(self.progress.nimg)}"
        for halflife, ema in zip(self.halflives[1:], self.emas[1:], strict=True):
            self.save_average(f"{name}-ema{halflife:g}", halflife, ema)
        self.save_average(name, self.halflives[0], self.ema)
        distributed.from_rank_0(lambda: prune(self.run_dir, "network-snapshot", self.options.keep_snapshots))

    def save_average(self, name: str, halflife: float, ema: torch.nn.Module, **more: float) -> None:
        """Write the snapshot of one average on rank 0; an error there is one on every rank."""
        snapshot = replace(self.task.snapshot, config=self.record.config, nimg=self.progress.nimg,
                           noise=self.options.noise or GENERATORS, weights=sharding.full_state(ema))
        release = self.private.snapshot if self.private else lambda unchanged: unchanged
        distributed.from_rank_0(lambda: release(snapshot).save(self.run_dir / f"{name}.pt", ema_halflife_kimg=halflife,
                                                               **more))

    # ---- one step ----

    def batches(self) -> Rounds:
        """This rank's batches from the present position on, to be closed."""
        return self.stepper.batches(self.progress.nimg)

    def step(self, data: Iterator[Round], stop: Stop | None = None) -> Reason | None:
        """One update of every phase on batch_size images; of none when one is not finite.

        That is decided on the device. The host takes in the step before meanwhile (`settle`), and this one in the next.
        Gives the reason to end that any rank has.
        """
        p = self.progress
        stats, waits = Collector(), Collector()
        torch.manual_seed(mix_seed(self.options.seed, "layers", p.nimg, self.rank))  # dropout layers
        start = time.perf_counter()
        with self.part("data"):
            rounds = self.stepper.take(data)
        waits.report("time/data_wait", time.perf_counter() - start)
        self.buffers.remember()
        scale = self.pending.scale if self.pending else known_scale(p, self.device)
        if self.precision == "fp16":
            self.stepper.loss_scale = scale.value
        steps = self.all_gradients([batch for _, batch in rounds], stats)
        bad, wish, moved = self.agreed(is_bad(steps.values(), self.device), stop)
        with self.part("averages"):
            self.settle()
        rates = rates_of(self.optimizers)
        self.buffers.average(moved)
        self.apply(steps, bad, stats)
        self.buffers.put_back(bad)
        for ema in self.emas:
            copy_buffers(ema, self.task.net)
        scale = LossScale(*next_scale(*scale, bad)) if self.precision == "fp16" else scale
        sent = Sent(torch.stack([bad.float(), *scale]))
        items = [index for indices, _ in rounds for index in indices]
        self.pending = Pending(sent, scale, p.nimg, p.tick_seconds, rates, items, stats, waits)
        p.nimg += self.options.batch_size
        p.tick_seconds = time.perf_counter() - self.tick_start
        return reason_of(wish)

    def all_gradients(self, batches: list[Batch], stats: Collector) -> dict[int, PhaseStep]:
        """What the phases that have begun make of the rounds of a step, by their places."""
        steps, handed = {}, [None] * len(batches)
        for i, phase in enumerate(self.task.phases):
            if self.progress.nimg >= phase.start_kimg * 1000:
                steps[i] = self.stepper.gradients(i, batches, self.progress.nimg, stats, handed)
                handed = steps[i].handed
        return steps

    def agreed(self, bad: torch.Tensor, stop: Stop | None) -> tuple[torch.Tensor, float, list[float]]:
        """Whether any rank has something that is not finite, what any has been asked, and buffers that any has moved.

        Several ranks agree on all of it in one go, on the host, which waits for the device. One has nothing to ask.
        """
        wish = stop.wish() if stop else 0
        if self.ranks == 1:
            return bad, wish, []
        found, wish, *moved = distributed.max_over_ranks([bool(bad), wish, *self.buffers.moved()])
        return torch.full_like(bad, bool(found)), wish, moved

    def apply(self, steps: Mapping[int, PhaseStep], bad: torch.Tensor, stats: Collector) -> None:
        """Step the optimisers of the phases that made a step by their gradients, unless the flag `bad` [] is set."""
        nimg = self.progress.nimg
        factor = self.lr_factor(nimg)
        for i, step in steps.items():
            phase = self.task.phases[i]
            set_rates([phase.optimizer], [[lr * factor for lr in self.base_lr[i]]])
            with self.part("optimiser"):
                sharding.step_unless(phase.optimizer, bad)
            totals = {name: torch.where(bad, 0, value) for name, value in step.totals.items()}
            if phase.absorb and (found := phase.absorb(totals, nimg)):
                for name, value in found.values.items():
                    stats.report(f"{found.group}/{name}", value)
        self.stepper.applied()

    def average(self, nimg: int) -> None:
        """Have the averages follow the weights, which a step at nimg images has moved."""
        size, rampup = self.options.batch_size, self.options.ema_rampup_ratio
        for halflife, ema in zip(self.halflives, self.emas, strict=True):
            update_ema(ema, self.task.net, ema_beta(nimg, size, halflife, rampup))

    def lr_factor(self, nimg: int) -> float:
        """What learning rates are multiplied by in the step at a number of images."""
        options = self.options
        return lr_factor(nimg, options.total_kimg, options.lr_rampup_kimg, options.lr_schedule)

    def settle(self) -> None:
        """Take in the last step: its numbers and the averages or, where it was skipped, their count and a word of it.

        Called when that is asked for, or in the next step before any weight moves. ValueError as `check_bad`.
        """
        if self.pending is None:
            return
        p, step, self.pending = self.progress, self.pending, None
        bad, scale, scale_steps = step.sent.read()
        if bad and not p.bad_steps:
            self.good = replace(p, nimg=step.nimg, tick_seconds=step.tick_seconds), self.stats.copy()
        before = p.loss_scale
        if self.precision == "fp16":
            p.loss_scale, p.scale_steps = scale, int(scale_steps)
        self.stats.add_all(step.waits)
        self.stats.report("bad_steps", bad)
        if bad:
            p.bad_steps += 1
            set_rates(self.optimizers, step.rates)
            self.report_bad(step, f"; loss scale {before:g} -> {p.loss_scale:g}" if p.loss_scale != before else "")
            self.check_bad()
        else:
            p.bad_steps = 0
            self.stats.add_all(step.stats)
            self.average(step.nimg)

    def report_bad(self, step: Pending, and_then: str) -> None:
        """Say which images made a step that was skipped, and what comes of it."""
        first, p = step.nimg, self.progress
        assert not self.private, "a private step is finite whatever it sees, and says of no item that it was in it"
        items = [i for group in zip(*distributed.gather_objects(step.items), strict=True) for i in group]
        self.log(f"Warning: loss or gradient not finite, step skipped ({p.bad_steps} in a row): images {first} to "
                 f"{first + len(items) - 1} of the stream, data set items {', '.join(map(str, items))}{and_then}")

    def check_bad(self) -> None:
        """Save a state from before them and raise ValueError when too many steps in a row, or all, were skipped."""
        p = self.progress
        all_bad = p.nimg >= self.total and p.bad_steps * self.options.batch_size >= p.nimg
        if p.bad_steps >= self.options.max_bad_steps or all_bad:
            self.buffers.put_back(torch.ones((), dtype=torch.bool, device=self.device))  # the next step has begun
            self.save_state()
            raise too_many(p, self.kimg_name(self.good[0].nimg), self.options, self.precision)

    # ---- the loop ----

    def run(self, stop: Stop) -> Reason | None:
        """Train to total_kimg, or until asked to stop: then the reason is given, and a training state is there."""
        p, options = self.progress, self.options
        if self.rank == 0:
            told = without_sources(self.record.config) if self.private else self.record.config
            wandb_run = start_wandb(options.wandb, self.run_dir, told) if options.wandb else None
            self.files = StatsFiles(self.run_dir, p.nimg, wandb_run, self.log)
        bar = progress(total=self.total, desc=self.run_dir.name, unit="img", is_main=self.rank == 0)
        bar.update(p.nimg)
        with closing(self.batches()) as data:
            reason = self.steps(data, stop, bar)
        if reason and self.saved_nimg != p.nimg:
            self.save_state()
        if self.private and p.nimg >= self.total:
            self.release_last()
        if reason and reason.status == "done":
            self.save_snapshot()
            self.show()
        bar.close()
        if self.files:
            self.files.close()
        return reason

    def release_last(self) -> None:
        """Write the last snapshot, where a kill between a private run's state and it has left none, and the statement.
        """
        if not (self.run_dir / f"network-snapshot-{self.kimg_name(self.progress.nimg)}.pt").is_file():
            self.save_snapshot()
        self.save_statement()

    def steps(self, data: Iterator[Round], stop: Stop, bar: tqdm) -> Reason | None:
        """Step, and tick, until all images are seen, or a rank is asked to end: then the reason is given."""
        p, reason = self.progress, None
        self.tick_start = time.perf_counter() - p.tick_seconds
        while p.nimg < self.total and reason is None:
            with distributed.meeting(f"the step at {p.nimg} images"), self.watched():
                reason = self.step(data, stop)
            bar.update(self.options.batch_size)
            if p.nimg >= min(self.total, p.tick_nimg + self.options.kimg_per_tick * 1000):
                self.tick()
        self.settle()
        return reason if p.nimg < self.total else None

    def tick(self) -> None:
        """End a tick: its line and numbers, validation, and the files that are due."""
        p, options, done = self.progress, self.options, self.progress.nimg >= self.total
        self.settle()
        p.tick_seconds = time.perf_counter() - self.tick_start
        p.tick += 1
        p.seconds += p.tick_seconds
        fields = tick_fields(self.stats.means(), p, total=self.total, batch_size=options.batch_size,
                             device=self.device)
        last = p.nimg - options.batch_size
        fields |= learning_rates(self.task.phases, self.base_lr, last, self.lr_factor(last))
        p.tick_nimg, p.tick_seconds, self.tick_start = p.nimg, 0, time.perf_counter()
        measures, draws, shows = (part is not None and (done or p.tick % part.every_ticks == 0)
                                  for part in (self.held, self.sampled, self.preview))
        keeps, states = (done or (every and p.tick % every == 0) for every in (options.snapshot_ticks,
                                                                                options.state_ticks))
        if self.private:
            states = states or measures or draws or keeps or shows
            fields |= self.private.fields(states)
            if states:
                self.save_state()  # before anything that is made of the weights
        if measures:
            fields.update(self.validate())
        if draws:
            fields.update(self.draw_samples())
        best = p.best
        self.keep_best(fields)
        self.log(tick_line(fields, {**self.losses, **self.stepper.losses}))
        for line in self.task.warn(p.tick) if self.task.warn else ():
            self.log(line)
        if self.files and (states or not self.private):
            self.files.write(fields, p.nimg)
        if keeps:
            self.save_snapshot()
        if states and (self.saved_nimg != p.nimg or p.best != best):
            self.save_state()
        if shows:
            self.show()

    def validate(self) -> dict[str, float]:
        """What the task measures of the main average on the held-out items."""
        return validate(self.held, self.task, self.ema, seed=self.options.seed, batch_size=self.batch_gpu,
                        precision=self.precision, device=self.device)

    def draw_samples(self) -> dict[str, float]:
        """What is measured of samples of the main average; when memory runs out, say so and draw no more.

        All ranks call the network equally often, and agree on whether it went well.
        """
        start = time.perf_counter()
        table, lack = draw_table(self.sampled, self.ema)
        if self.lacks_memory(lack, "samples", "sampling.batch_size=1 takes less, training.validation.sample_ticks=null "
                                              "none"):
            self.sampled = None
            return {}
        seconds = time.perf_counter() - start
        self.log(in_words(table, self.sampled.count, seconds))
        if self.files and table.png:
            self.files.write_picture("samples", pixels(table.png), self.progress.nimg)
        return {"time/sample_sec": seconds, **{f"sample/{name}": value for name, value in table.numbers.items()}}

    def show(self) -> None:
        """Keep a preview of the main average, where there is one; when memory runs out, say so and make no more.

        All ranks call the network equally often, as shared weights ask, and agree on whether it went well.
        """
        if self.preview is None:
            return
        made, lack = make(self.preview, self.ema, is_main=self.rank == 0)
        if self.lacks_memory(lack, "a preview", "sampling.batch_size=1 or sampling.tile takes less, "
                                                "training.validation.preview_ticks=null none"):
            self.preview = None
            return

        def keep() -> None:
            shown = made._replace(samples=None) if self.private else made  # they would lack the statement
            write_preview(self.run_dir, self.kimg_name(self.progress.nimg), shown)
            self.files.write_picture("preview", pixels(made.png), self.progress.nimg)

        distributed.from_rank_0(keep)

    def lacks_memory(self, lack: str, what: str, advice: str) -> bool:
        """Whether memory ran out on any rank, for what it says: then some is given back, and a line tells of it."""
        lacks = [text for text in distributed.gather_objects(lack) if text]
        if lacks:
            sharding.reshard(self.ema)
            torch.cuda.empty_cache()
            self.log(f"Warning: no memory for {what} ({lacks[0]}), none any more until the next start; {advice}")
        return bool(lacks)

    def keep_best(self, fields: dict[str, float]) -> None:
        """Write network-best.pt when what it goes by, where it could be measured, is the best so far."""
        best = self.task.best
        value = fields.get(best.key)
        if value is not None and best.score(value) < self.progress.best:
            self.progress.best = best.score(value)
            self.save_average("network-best", self.halflives[0], self.ema, **{f"val_{best.name}": value})
