"""The training loop: steps counted in images, progress in ticks of kimg. It knows phases and files, no diffusion."""

import time
from collections.abc import Iterator, Sized
from copy import deepcopy
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

import psutil
import torch
from torch.utils.data import DataLoader, Subset

from samplers.noise import ImageGenerators, mix_seed
from training.batch import Batch, Task, collate
from training.data_sampler import InfiniteSampler
from training.ema import ema_beta, update_ema
from training.precision import autocast, resolve_precision
from training.schedule import lr_factor
from utils import checkpoint, distributed
from utils.config import Options
from utils.log import RunLog, progress
from utils.runs import prune
from utils.stats import Collector, StatsFiles


@dataclass
class Held:
    """Held-out data that is measured with the averaged weights every few ticks."""

    dataset: Sized
    every_ticks: int


@dataclass
class Progress:
    """What changes from step to step besides weights; all of it is in the training state."""

    nimg: int = 0
    tick: int = 0
    bad_steps: int = 0
    seconds: float = 0


class Trainer:
    """One run: a task, its data, the average of its weights, and the files of its run folder."""

    def __init__(self, task: Task, dataset: Sized, options: Options, *, run_dir: Path, device: torch.device,
                 log: RunLog, record: dict, held: Held | None = None):
        self.task, self.dataset, self.options, self.held = task, dataset, options, held
        self.run_dir, self.device, self.log, self.record = run_dir, device, log, record
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.batch_gpu, self.rounds = split_batch(options.batch_size, options.batch_gpu, self.ranks)
        self.precision = resolve_precision(options.precision, device)
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(record["spatial_dims"])
        for phase in task.phases:
            phase.module.to(device, memory_format=layout if options.channels_last and layout else None)
            phase.module.train().requires_grad_(True)
        self.ema = deepcopy(task.net).eval().requires_grad_(False)
        self.modules = [torch.compile(p.module) if options.compile else p.module for p in task.phases]
        self.base_lr = [[g["lr"] for g in p.optimizer.param_groups] for p in task.phases]
        self.progress, self.stats = Progress(), Collector()

    # ---- state ----

    def environment(self) -> dict:
        """What changes the last bits of a result; stored in the state, a change is warned of."""
        return {"threads": torch.get_num_threads(), "ranks": self.ranks, "precision": self.precision,
                "channels_last": self.options.channels_last, "compile": self.options.compile,
                "fused": [bool(p.optimizer.defaults.get("fused")) for p in self.task.phases],
                "torch": str(torch.__version__), "device": self.device.type}

    def state(self) -> dict:
        """Everything to go on from here bit for bit."""
        return {"config": self.record["config"], "config_hash": self.record["config_hash"],
                "data_hash": self.record["data_hash"], "environment": self.environment(),
                "progress": vars(self.progress), "ema": self.ema.state_dict(),
                "modules": {p.name: p.module.state_dict() for p in self.task.phases},
                "optimizers": {p.name: p.optimizer.state_dict() for p in self.task.phases}}

    def restore(self, data: dict) -> None:
        """Go on from a training state that `read_state` gave."""
        for name, now in self.environment().items():
            if data["environment"].get(name) != now:
                self.log(f"Warning: {name} was {data['environment'].get(name)}, is {now}: "
                         "results will differ in the last digits")
        for phase in self.task.phases:
            phase.module.load_state_dict(data["modules"][phase.name])
            phase.optimizer.load_state_dict(data["optimizers"][phase.name])
        self.ema.load_state_dict(data["ema"])
        self.progress = Progress(**data["progress"])

    def save(self, kind: str, name: str, payload: dict, keep: int) -> None:
        """Write a snapshot or state on rank 0 and delete the oldest ones."""
        if self.rank == 0:
            checkpoint.save(self.run_dir / f"{name}-{self.progress.nimg // 1000:06d}.pt", kind, payload)
            prune(self.run_dir, name, keep)

    def save_snapshot(self) -> None:
        """Write the averaged weights with all that is needed to use them anywhere."""
        self.save("snapshot", "network-snapshot", {
            **self.task.snapshot, "config": self.record["config"], "nimg": self.progress.nimg,
            "ema": {k: v.cpu() for k, v in self.ema.state_dict().items()}}, self.options.keep_snapshots)

    # ---- data ----

    def batches(self) -> Iterator[Batch]:
        """This rank's batches from the present position on."""
        sampler = InfiniteSampler(self.dataset, self.rank, self.ranks, seed=self.options.seed,
                                  start_idx=self.progress.nimg)
        return iter(DataLoader(self.dataset, batch_size=self.batch_gpu, sampler=sampler, collate_fn=collate,
                               num_workers=self.options.num_workers, pin_memory=self.device.type == "cuda"))

    def generators(self, round_: int) -> ImageGenerators:
        """One generator per image of a round: a function of the run's seed and the image's place in the stream."""
        first = self.progress.nimg + round_ * self.batch_gpu * self.ranks + self.rank
        positions = range(first, first + self.batch_gpu * self.ranks, self.ranks)
        return ImageGenerators(positions, seed=self.options.seed, device=self.device)

    # ---- one step ----

    def step(self, data: Iterator[Batch]) -> None:
        """One update of every phase on batch_size images, and of the average."""
        torch.manual_seed(mix_seed(self.options.seed, "layers", self.progress.nimg, self.rank))  # dropout layers
        start = time.perf_counter()
        batches = [next(data) for _ in range(self.rounds)]
        self.stats.report("time/data_wait", time.perf_counter() - start)
        finite = all([self.update(i, batches) for i in range(len(self.task.phases))])
        self.progress.bad_steps = 0 if finite else self.progress.bad_steps + 1
        if self.progress.bad_steps > self.options.max_bad_steps:
            raise ValueError(f"gradients were not finite in {self.progress.bad_steps} steps in a row "
                             f"(up to {self.progress.nimg} images); try a lower training.optimizer.lr, "
                             "training.options.precision=fp32 or grad_clip")
        if finite:
            update_ema(self.ema, self.task.net, ema_beta(
                self.progress.nimg, self.options.batch_size, self.options.ema_halflife_kimg,
                self.options.ema_rampup_ratio))
        self.progress.nimg += self.options.batch_size

    def update(self, index: int, batches: list[Batch]) -> bool:
        """Accumulate a phase's gradients over the rounds and ranks and step its optimiser; False if not finite."""
        phase = self.task.phases[index]
        phase.optimizer.zero_grad(set_to_none=True)
        for round_, batch in enumerate(batches):
            with autocast(self.precision, self.device):
                out = phase.loss(self.modules[index], batch.to(self.device), self.generators(round_))
            (out.loss / self.options.batch_size).backward()
            self.stats.report(f"loss/{phase.name}", out.loss, out.count)
            for name, value in out.parts.items():
                self.stats.report(f"loss/{name}", value, out.count)
        parameters = [p for p in phase.module.parameters() if p.requires_grad]
        distributed.all_reduce_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip or inf, foreach=True))
        finite = isfinite(norm)
        self.stats.report("grad_norm", norm if finite else 0, int(finite))
        self.stats.report("bad_steps", float(not finite))
        if finite:
            factor = lr_factor(self.progress.nimg, self.options.total_kimg, self.options.lr_rampup_kimg,
                               self.options.lr_schedule)
            for group, lr in zip(phase.optimizer.param_groups, self.base_lr[index], strict=True):
                group["lr"] = lr * factor
            phase.optimizer.step()
        return finite

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on the held-out items, with the same noise for an item every time."""
        mine = range(self.rank, len(self.held.dataset), self.ranks)
        loader = DataLoader(Subset(self.held.dataset, mine), batch_size=self.batch_gpu, collate_fn=collate)
        stats, done = Collector(), 0
        for batch in loader:
            keys = mine[done:done + len(batch.images)]
            done += len(keys)
            generators = ImageGenerators(keys, seed=mix_seed("validation", self.options.seed), device=self.device)
            with autocast(self.precision, self.device):
                out = self.task.phases[0].loss(self.ema, batch.to(self.device), generators)
            stats.report("val/loss", out.loss, out.count)
            for name, value in out.parts.items():
                stats.report(f"val/{name}", value, out.count)
        return stats.means()

    # ---- the loop ----

    def run(self) -> None:
        """Train to total_kimg."""
        options, p = self.options, self.progress
        total = round(options.total_kimg * 1000)
        files = StatsFiles(self.run_dir) if self.rank == 0 else None
        bar = progress(total=total, desc=self.run_dir.name, unit="img", is_main=self.rank == 0)
        bar.update(p.nimg)
        data, tick_start, tick_nimg = self.batches(), time.perf_counter(), p.nimg
        while p.nimg < total:
            self.step(data)
            bar.update(options.batch_size)
            done = p.nimg >= total
            if done and p.bad_steps:
                raise ValueError(f"training ended on gradients that are not finite ({p.bad_steps} steps in a row); try "
                                 "a lower training.optimizer.lr or training.options.precision=fp32")
            if not done and p.nimg < tick_nimg + options.kimg_per_tick * 1000:
                continue
            p.tick += 1
            seconds, tick_start = time.perf_counter() - tick_start, time.perf_counter()
            p.seconds += seconds
            fields = self.tick_fields(seconds, p.nimg - tick_nimg, total)
            tick_nimg = p.nimg
            if self.held is not None and (done or p.tick % self.held.every_ticks == 0):
                fields.update(self.validate())
            self.log(tick_line(fields))
            if files:
                files.write(fields, p.nimg)
            if done or (options.snapshot_ticks and p.tick % options.snapshot_ticks == 0):
                self.save_snapshot()
            if done or (options.state_ticks and p.tick % options.state_ticks == 0):
                self.save("state", "training-state", self.state(), options.keep_states)
        bar.close()
        if files:
            files.close()

    def tick_fields(self, seconds: float, images: int, total: int) -> dict[str, float]:
        """The numbers of a tick."""
        means = self.stats.means()
        wait = means.pop("time/data_wait", 0.0) * images / self.options.batch_size
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else psutil.Process().memory_info().rss
        nimg, per_image = self.progress.nimg, seconds / images
        return {"tick": self.progress.tick, "kimg": nimg / 1000, "time/total_sec": self.progress.seconds,
                "time/sec_per_tick": seconds, "time/sec_per_kimg": per_image * 1000,
                "time/eta_sec": per_image * max(0, total - nimg), "time/data_share": wait / seconds,
                "images_per_sec": 1 / per_image, "memory_gib": memory / 2 ** 30, **means}


def read_state(path: Path, record: dict) -> dict:
    """A training state; ValueError when it is damaged or belongs to another network, data set or experiment."""
    data = checkpoint.load(path, "state")
    for key, what in (("config_hash", "configuration"), ("data_hash", "data set")):
        if data[key] != record[key]:
            raise ValueError(f"training.options.resume={path}: the state is of another {what} "
                             f"({different_keys(data['config'], record['config']) or key}); "
                             "use the same, or leave resume away to start anew")
    return data


def tick_line(fields: dict[str, float]) -> str:
    """One line of progress for people."""
    loss = "  ".join(f"{k.removeprefix('loss/')} {v:.4g}" for k, v in fields.items() if k.startswith(("loss/", "val/")))
    return (f"tick {fields['tick']:<4d} kimg {fields['kimg']:<8.1f} time {clock(fields['time/total_sec']):<9s} "
            f"sec/kimg {fields['time/sec_per_kimg']:<7.2f} ETA {clock(fields['time/eta_sec']):<9s} "
            f"data {fields['time/data_share']:.0%}  img/s {fields['images_per_sec']:<6.1f} "
            f"GiB {fields['memory_gib']:<5.2f} grad {fields['grad_norm']:.3g}  bad "
            f"{fields['bad_steps']:.0%}  {loss}")


def clock(seconds: float) -> str:
    """Seconds as 1h02m or 3m04s."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{s:02d}s"


def split_batch(batch_size: int, batch_gpu: int | None, ranks: int) -> tuple[int, int]:
    """Images per rank and round, and rounds per step; ValueError when the batch does not divide."""
    if batch_size < 1 or batch_size % ranks:
        raise ValueError(f"training.options.batch_size={batch_size} does not divide over {ranks} ranks; "
                         f"use {max(1, batch_size // ranks) * ranks}")
    per_rank = batch_size // ranks
    batch_gpu = min(batch_gpu or per_rank, per_rank)
    if batch_gpu < 1 or per_rank % batch_gpu:
        raise ValueError(f"training.options.batch_size={batch_size} does not divide over {ranks} ranks x "
                         f"batch_gpu={batch_gpu}; use a batch_gpu that divides {per_rank}")
    return batch_gpu, per_rank // batch_gpu


def different_keys(old: object, new: object, path: str = "") -> str:
    """Paths at which two configs differ, comma-separated."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [different_keys(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in sorted({*old, *new})]
        return ", ".join(filter(None, parts))
    return "" if old == new else path
