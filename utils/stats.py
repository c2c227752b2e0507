"""Running means of what a step reports, summed over ranks once a tick, and the files and services they go to."""

import importlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from edm3d.utils import distributed
from edm3d.utils.checks import listed
from edm3d.utils.files import atomic_path, first_line
from edm3d.utils.log import read_status
from edm3d.utils.plain import parse_json, taken
from edm3d.utils.tensors import tensor_on


class Collector:
    """Adds up (sum, count) per name on this rank; `means()` is the mean over all ranks since the last call."""

    def __init__(self):
        self.sums: dict[tuple[str, ...], torch.Tensor] = {}  # tables [names, 2], float64

    def report(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float = 1) -> None:
        """Add a sum over `count` values; stays on the device, so that no step waits for it."""
        total = torch.as_tensor(total).detach().double()
        count = count.to(total) if isinstance(count, torch.Tensor) else torch.full_like(total, count)
        self.add((name,), torch.stack([total, count])[None])

    def report_bins(self, name: str, values: torch.Tensor, places: torch.Tensor, edges: Sequence[float]) -> None:
        """Add values [N] as NAME_LOW-HIGH, by the pair of `edges` that places [N] lie between."""
        bounds = (0, *edges, inf)
        index = torch.bucketize(places.detach(), tensor_on(places.device, edges, places.dtype))
        pairs = torch.stack([values.detach().double(), torch.ones_like(values, dtype=torch.float64)], dim=1)
        table = torch.zeros(len(edges) + 1, 2, dtype=torch.float64, device=values.device).index_add_(0, index, pairs)
        self.add(tuple(f"{name}_{low:g}-{high:g}" for low, high in pairwise(bounds)), table)

    def add(self, names: tuple[str, ...], table: torch.Tensor) -> None:
        """Add (sum, count) of several names at once."""
        self.sums[names] = self.sums[names].to(table.device) + table if names in self.sums else table

    def add_all(self, other: "Collector", names_only: bool = False) -> None:
        """Add what another one has collected; names_only: its names, and nothing to their sums and counts."""
        for names, table in other.sums.items():
            self.add(names, torch.zeros_like(table) if names_only else table)

    def copy(self) -> "Collector":
        """What has been collected so far, unmoved by what is reported later."""
        copied = Collector()
        copied.sums = dict(self.sums)
        return copied

    def table(self) -> tuple[list[tuple[str, ...]], torch.Tensor]:
        """Groups of names, and their sums and counts [names of all groups, 2] on one device."""
        groups = sorted(self.sums)
        device = next((s.device for s in self.sums.values() if s.device.type != "cpu"), torch.device("cpu"))
        return groups, torch.cat([self.sums[names].to(device) for names in groups])

    def means(self) -> dict[str, float]:
        """Means of all names that were counted, and a fresh start. Every rank must have reported the same names."""
        if not self.sums:
            return {}
        groups, table = self.table()
        sums = distributed.all_reduce_sum(table).tolist()
        self.sums = {}
        names = [name for group in groups for name in group]
        return {name: total / count for name, (total, count) in sorted(zip(names, sums, strict=True)) if count}

    def state(self) -> dict:
        """What all ranks have collected, as plain data and one tensor. All ranks must call this together."""
        if not self.sums:
            return {"groups": [], "ranks": torch.zeros(distributed.world_size(), 0, 2, dtype=torch.float64)}
        groups, table = self.table()
        return {"groups": [list(names) for names in groups], "ranks": distributed.gather(table).cpu()}

    def load_state(self, collected: dict) -> None:
        """Go on from what `state` gave: each rank takes its own part, or, at another number of them, its share of all.
        """
        mine = collected["ranks"][distributed.rank()::distributed.world_size()].sum(0)
        parts = mine.split([len(names) for names in collected["groups"]])
        self.sums = {tuple(names): part for names, part in zip(collected["groups"], parts, strict=True)}


class StatsFiles:
    """stats.jsonl (one JSON object per tick) and TensorBoard events of a run folder, and W&B on request."""

    def __init__(self, run_dir: Path, nimg: int = 0, wandb_run: Any = None, log: Callable[[str], None] = print):
        """nimg: images seen so far; what an earlier process wrote of later ticks is dropped, they come again."""
        from torch.utils.tensorboard import SummaryWriter
        path = run_dir / "stats.jsonl"
        if odd := drop_later_ticks(path, nimg):
            log(f"Warning: {path}: {listed(odd)} of it say nothing of a tick and are left out; the other lines stay")
        self.jsonl = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.writer = SummaryWriter(str(run_dir), purge_step=nimg + 1)
        self.wandb_run, self.log = wandb_run, log

    def write(self, fields: dict[str, float], nimg: int) -> None:
        """Append one tick; numbers that are not finite become null."""
        plain = {name: value if isfinite(value) else None for name, value in fields.items()}
        print(json.dumps(plain), file=self.jsonl, flush=True)
        for name, value in fields.items():
            self.writer.add_scalar(name, value, global_step=nimg)
        self.writer.flush()
        self.tell_wandb(lambda run: run.log(fields, step=nimg))

    def write_picture(self, name: str, pixels: np.ndarray, nimg: int) -> None:
        """Add a picture, colours [H,W,3] uint8, to the TensorBoard events and W&B."""
        self.writer.add_image(name, pixels, global_step=nimg, dataformats="HWC")
        self.writer.flush()
        self.tell_wandb(lambda run: run.log({name: importlib.import_module("wandb").Image(pixels)}, step=nimg))

    def close(self) -> None:
        """Close everything."""
        self.jsonl.close()
        self.writer.close()
        self.tell_wandb(lambda run: run.finish())

    def tell_wandb(self, act: Callable[[Any], None]) -> None:
        """Do something with the W&B run, where there is one. A service that fails ends no run: it is left, with a word.
        """
        if not self.wandb_run:
            return
        try:
            act(self.wandb_run)
        except Exception as e:  # whatever its package raises
            self.wandb_run = None
            self.log(f"Warning: W&B failed ({type(e).__name__}: {first_line(e)}) and gets nothing more until the next "
                     "start; stats.jsonl and TensorBoard go on")


def drop_later_ticks(path: Path, nimg: int) -> list[str]:
    """Keep the lines of a stats.jsonl up to a number of images, as they are; a last one that was cut off goes too.

    Other lines that are no ticks go as well, and are named.
    """
    if not path.is_file():
        return []
    whole, (_, odd) = path.read_bytes(), odd_ticks(path)
    kept = [line for line in whole.split(b"\n") if (images := images_of(line)) is not None and images <= nimg]
    text = b"".join(line + b"\n" for line in kept)
    if text != whole:
        with atomic_path(path) as temporary:
            temporary.write_bytes(text)
    return odd


def odd_ticks(path: Path) -> tuple[int, list[str]]:
    """How many lines of a stats.jsonl are ticks, and which are not, `line 3 ('[1]')`; the last may be cut off."""
    lines = path.read_bytes().split(b"\n")
    ticks = [images_of(line) is not None for line in lines]
    return sum(ticks), [f"line {number} ({line[:40].decode(errors='replace')!r})"
                        for number, (line, is_tick) in enumerate(zip(lines[:-1], ticks, strict=False), 1)
                        if not is_tick and line.strip()]


def images_of(line: bytes) -> float | None:
    """Images seen at a line of stats.jsonl; None for a line that is none."""
    try:
        tick = parse_json(line.decode(), "a line")
        return round(taken(tick["kimg"], float, "a line", "kimg") * 1000)
    except (ValueError, KeyError, TypeError):
        return None


def wandb_package(project: str) -> ModuleType:
    """The package wandb; ValueError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as e:
        raise ValueError(f"training.options.wandb={project}: the package wandb is not installed; pip install wandb, "
                         "or leave the key away") from e


def start_wandb(project: str, run_dir: Path, config: dict) -> Any:
    """The W&B run of a run folder: a new one, or the one that an earlier process began; ValueError where it fails."""
    try:
        return wandb_package(project).init(project=project, name=run_dir.name, id=read_status(run_dir).get("run_id"),
                                           dir=str(run_dir), config=config, resume="allow")
    except Exception as e:  # whatever its package raises
        raise ValueError(f"training.options.wandb={project}: W&B does not start ({type(e).__name__}: {first_line(e)}); "
                         "see to its login and network, set WANDB_MODE=offline, or leave the key away") from e
