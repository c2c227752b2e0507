"""Running means of what a step reports, summed over ranks once a tick."""

import json
from pathlib import Path

import torch

from utils import distributed


class Collector:
    """Adds up (sum, count) per name on this rank; `means()` is the mean over all ranks since the last call."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}

    def report(self, name: str, total: torch.Tensor | float, count: float = 1) -> None:
        """Add a sum over `count` values; stays on the device, so that no step waits for it."""
        total = torch.as_tensor(total).detach()
        pair = torch.stack([total.double(), torch.tensor(float(count), dtype=torch.float64, device=total.device)])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def means(self) -> dict[str, float]:
        """Means of all names (every rank must have reported the same names), and a fresh start."""
        names = sorted(self.sums)
        if not names:
            return {}
        device = next((s.device for s in self.sums.values() if s.device.type != "cpu"), torch.device("cpu"))
        table = distributed.all_reduce_sum(torch.stack([self.sums[n].to(device) for n in names])).tolist()
        self.sums = {}
        return {n: s / c if c else float("nan") for n, (s, c) in zip(names, table, strict=True)}


class StatsFiles:
    """stats.jsonl (one JSON object per tick) and TensorBoard events of a run folder."""

    def __init__(self, run_dir: Path):
        from torch.utils.tensorboard import SummaryWriter
        self.jsonl = open(run_dir / "stats.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self.writer = SummaryWriter(str(run_dir))

    def write(self, fields: dict[str, float], nimg: int) -> None:
        """Append one tick."""
        print(json.dumps(fields), file=self.jsonl, flush=True)
        for name, value in fields.items():
            self.writer.add_scalar(name, value, global_step=nimg)
        self.writer.flush()

    def close(self) -> None:
        """Close both files."""
        self.jsonl.close()
        self.writer.close()
