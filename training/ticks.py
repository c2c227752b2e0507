"""How far a run is, the numbers of a tick, and the line that people read."""

from collections.abc import Sequence
from math import nan

import psutil
import torch

from edm3d.formats.training_state import Progress
from edm3d.training.phases import ByLevel, LossOutput, Numbers, Phase, Sum
from edm3d.utils.stats import Collector

SIGMA_EDGES = (0.03, 0.1, 0.3, 1, 3, 10, 30)  # half decades of noise level that losses are logged by


def report(stats: Collector, group: str, numbers: Numbers) -> None:
    """Add numbers as GROUP/NAME."""
    for name, value in numbers.items():
        if isinstance(value, ByLevel):
            stats.report_bins(f"{group}/{name}", *value, SIGMA_EDGES)
        else:
            stats.report(f"{group}/{name}", *value)


def report_loss(stats: Collector, phase: str, out: LossOutput) -> dict[str, str]:
    """Add what a phase's loss gave; the names of losses among it, each with what people call it."""
    report(stats, "loss", out.numbers(phase))
    report(stats, "share", {part: Sum(value, out.count) for part, value in out.shares.items()})
    return {f"loss/{part}": part for part in (phase, *out.parts)}


def tick_fields(means: dict[str, float], p: Progress, *, total: int, batch_size: int, device: torch.device
                ) -> dict[str, float]:
    """The numbers of a tick that ends, from the means of what its steps reported; total: images of the whole run."""
    images = p.nimg - p.tick_nimg
    wait, bad = (means.pop(name, 0.0) * images / batch_size for name in ("time/data_wait", "bad_steps"))
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    per_image = p.tick_seconds / images
    return {"tick": p.tick, "kimg": p.nimg / 1000, "time/total_sec": p.seconds, "time/sec_per_tick": p.tick_seconds,
            "time/sec_per_kimg": per_image * 1000, "time/eta_sec": per_image * max(0, total - p.nimg),
            "time/data_share": wait / p.tick_seconds, "images_per_sec": 1 / per_image, "memory_gib": memory / 2 ** 30,
            "bad_steps": round(bad), **means}


def learning_rates(phases: Sequence[Phase], base: Sequence[Sequence[float]], nimg: int, factor: float
                   ) -> dict[str, float]:
    """Rates of the step at nimg of the phases that had begun: lr of the first, lr/NAME of others.

    base: by phase, of each of the optimiser's groups of parameters; several are numbered, as in lr/0.
    """
    rates = {}
    for i, (phase, groups) in enumerate(zip(phases, base, strict=True)):
        if nimg >= phase.start_kimg * 1000:
            name = f"lr/{phase.name}" if i else "lr"
            rates |= {f"{name}/{k}" if len(groups) > 1 else name: lr * factor for k, lr in enumerate(groups)}
    return rates


def tick_line(fields: dict[str, float], losses: dict[str, str]) -> str:
    """One line of progress for people; more than the `losses`, by name with what people call them, is in the files."""
    spent = f"epsilon {fields['privacy/epsilon']:.4g} " if "privacy/epsilon" in fields else ""
    norm = "" if spent and "grad_norm" not in fields else f"grad norm {fields.get('grad_norm', nan):<8.3g} "
    loss = ", ".join(f"{losses[name]} {value:.4g}" for name, value in fields.items() if name in losses)
    return (f"tick {fields['tick']:<4d} kimg {fields['kimg']:<8.3f} time {clock(fields['time/total_sec']):<6s} "
            f"sec/tick {fields['time/sec_per_tick']:<6.1f} sec/kimg {fields['time/sec_per_kimg']:<7.2f} "
            f"ETA {clock(fields['time/eta_sec']):<6s} data wait {fields['time/data_share']:<4.0%} "
            f"img/s {fields['images_per_sec']:<6.1f} GiB {fields['memory_gib']:<5.2f} "
            f"{norm}bad steps {fields['bad_steps']:<3d} {spent}"
            f"loss: {loss or 'none'}")


def clock(seconds: float) -> str:
    """Seconds as 1h02m or 3m04s."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{s:02d}s"
