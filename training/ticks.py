"""The numbers of a tick and the line that people read."""

from math import nan

import psutil
import torch

from training.phases import LossOutput
from utils.stats import Collector

SIGMA_EDGES = (0.03, 0.1, 0.3, 1, 3, 10, 30)  # half decades of noise level that the loss is logged by


def report_loss(stats: Collector, group: str, name: str, out: LossOutput) -> None:
    """Add a loss, its parts, and its values by noise level where there are such, as GROUP/..., or by a part's path."""
    stats.report(f"{group}/{name}", out.loss, out.count)
    for part, value in out.parts.items():
        stats.report(part if "/" in part else f"{group}/{part}", value, out.count)
    if out.sigma is not None:
        stats.report_bins(f"{group}/sigma", out.losses, out.sigma, SIGMA_EDGES)


def tick_fields(means: dict[str, float], *, tick: int, nimg: int, total: int, images: int, steps: float,
                seconds: float, total_seconds: float, device: torch.device) -> dict[str, float]:
    """The numbers of a tick of `steps` steps and `images` images, from the means of what its steps reported."""
    means = dict(means)
    wait, bad = (means.pop(name, 0.0) * steps for name in ("time/data_wait", "bad_steps"))
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    per_image = seconds / images
    return {"tick": tick, "kimg": nimg / 1000, "time/total_sec": total_seconds, "time/sec_per_tick": seconds,
            "time/sec_per_kimg": per_image * 1000, "time/eta_sec": per_image * max(0, total - nimg),
            "time/data_share": wait / seconds, "images_per_sec": 1 / per_image, "memory_gib": memory / 2 ** 30,
            "bad_steps": round(bad), **means}


def tick_line(fields: dict[str, float]) -> str:
    """One line of progress for people; losses by noise level, the parts of a validation and more are in the files."""
    losses = {name.removeprefix("loss/"): value for name, value in fields.items()
              if name.startswith("loss/") and not name.startswith(("loss/sigma_", "loss/data_"))}
    if "val/loss" in fields:
        losses["validation"] = fields["val/loss"]
    loss = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return (f"tick {fields['tick']:<4d} kimg {fields['kimg']:<8.3f} time {clock(fields['time/total_sec']):<6s} "
            f"sec/tick {fields['time/sec_per_tick']:<6.1f} sec/kimg {fields['time/sec_per_kimg']:<7.2f} "
            f"ETA {clock(fields['time/eta_sec']):<6s} data wait {fields['time/data_share']:<4.0%} "
            f"img/s {fields['images_per_sec']:<6.1f} GiB {fields['memory_gib']:<5.2f} "
            f"grad norm {fields.get('grad_norm', nan):<8.3g} bad steps {fields['bad_steps']:<3d} "
            f"loss: {loss or 'none'}")


def clock(seconds: float) -> str:
    """Seconds as 1h02m or 3m04s."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{s:02d}s"
