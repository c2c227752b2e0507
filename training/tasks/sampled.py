"""What is measured of samples while training: a small version of the table of a report, against held-out items."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.intensity import Intensity
from edm3d.inference.batch import collate
from edm3d.inference.drawing import Drawer, around, arrays_of, draw
from edm3d.inference.quality import layout_of, numbers_of
from edm3d.inference.volume_features import VolumeFeatures
from edm3d.metrics.frechet import frechet_distance
from edm3d.metrics.kernel_distance import kernel_distance
from edm3d.metrics.same_size import at_same_size
from edm3d.reporting.cases import Case, Layout
from edm3d.samplers.noise import GENERATORS, ImageGenerators
from edm3d.training.phases import Task
from edm3d.training.sampling import SampleMeasures, SampleTable
from edm3d.training.tasks.previews import drawing_of
from edm3d.training.validation import Held
from edm3d.utils import distributed

KEPT = 8   # volumes of each set that are kept, for pictures and pairs
SHOWN = 4  # of them in the montage
LEAST_HELD = 4
LEAST_SIDE = 7  # voxels, of the window of MS-SSIM
AS_IS = Intensity(-1.0, 1.0, False, "")


class MeasuredSample(NamedTuple):
    """What is kept of one volume: features of the image and of the latents, its numbers, and itself where it is shown.
    """

    features: np.ndarray | None
    latents: np.ndarray | None
    numbers: dict[str, float]
    shown: tuple[np.ndarray, np.ndarray | None] | None


class Measuring(NamedTuple):
    """What makes rows of a batch of volumes."""

    images: VolumeFeatures | None
    latents: VolumeFeatures | None
    layout: Layout

    def __call__(self, arrays: dict[str, np.ndarray], keys: Sequence[int]) -> list[MeasuredSample]:
        """Rows of arrays as `draw` gives them; keys: numbers of the volumes."""
        images, latents, labels = (arrays.get(name) for name in ("images", "latents", "labels"))
        labels = labels if self.layout.label_classes and labels is not None else [None] * len(keys)
        seen = [None] * len(keys) if images is None else self.images(images)
        of_latents = [None] * len(keys) if latents is None else self.latents(latents)
        rows = []
        for i, key in enumerate(keys):
            numbers = {} if images is None else numbers_of(Case("", images[i], labels[i]), self.layout)
            shown = None if images is None or key >= KEPT else (images[i], labels[i])
            rows.append(MeasuredSample(seen[i], of_latents[i], numbers, shown))
        return rows


def build_sampled(config: dict, task: Task, held: Held | None, count: int, device: torch.device) -> SampleMeasures:
    """What draws seeds 0, 1, ... of a diffusion network and holds them against held-out items, as the network is to
    draw them: those of latents decoded again. Held-out items are not shown where they are private. ValueError where
    there are too few, or nothing is drawn alone.
    """
    if task.snapshot.refines is not None or task.snapshot.dose is not None:
        raise ValueError("a network that refines, or is of PET, draws by what it is told of single images; "
                         "leave training.validation.sample_ticks away")
    if held is None or len(held.dataset) < LEAST_HELD:
        raise ValueError(f"{0 if held is None else len(held.dataset)} items are held out, wanted {LEAST_HELD} or more; "
                         "choose training.validation.split and .max_items")
    samples = [held.dataset[i] for i in range(len(held.dataset))]
    drawing = drawing_of(config, task, samples, device)
    drawer, batch = drawing.drawer, drawing.options.batch_size
    layout, dims = layout_of(drawing.snapshot, drawer.first_stage), len(drawer.shape) - 1
    decoded = not drawer.latent or drawer.first_stage is not None
    measuring = Measuring(
        VolumeFeatures(len(layout.channels), dims, drawer.intensity, device) if decoded else None,
        VolumeFeatures(drawer.shape[0], dims, AS_IS, device) if drawer.latent else None, layout)
    real: list[MeasuredSample] = []
    private = config["training"]["privacy"]["target_epsilon"] is not None

    def measure(net: torch.nn.Module) -> SampleTable:
        if not real:
            real.extend(held_rows(task, samples, drawer, measuring, batch, device))
        alone = drawer._replace(denoiser=partial(around, net, None))
        rows = drawn_rows(alone, measuring, count, batch)
        return distributed.from_rank_0(lambda: SampleTable(numbers_of_rows(real, rows, layout),
                                                     montage_of([] if private else real, rows, layout)))

    return SampleMeasures(measure, names_of(measuring, drawing.snapshot.volume_shape),
                    {"sampler": drawing.options.sampler, "decode": drawing.options.decode,
                     **({"noise": drawer.noise} if drawer.noise != GENERATORS else {})})


def held_rows(task: Task, samples: Sequence, drawer: Drawer, measuring: Measuring, batch: int, device: torch.device
              ) -> list[MeasuredSample]:
    """Rows of held-out items."""
    rows: list[MeasuredSample] = []
    for start in range(0, len(samples), batch):
        keys = list(range(start, min(start + batch, len(samples))))
        some = collate([samples[i] for i in keys]).to(device)
        with torch.no_grad():
            x, _ = task.seen(some, ImageGenerators(keys, device=device))
            made = arrays_of(drawer, x, keys, some.condition)
        rows += measuring({name: array.float().cpu().numpy() if name != "labels" else array.cpu().numpy()
                           for name, array in made.items()}, keys)
    return rows


def drawn_rows(drawer: Drawer, measuring: Measuring, count: int, batch: int) -> list[MeasuredSample]:
    """Rows of seeds, shared over the ranks; where a rank has run out it draws seed 0 again, and leaves it away."""
    rank, ranks, rows = distributed.rank(), distributed.world_size(), {}
    mine = range(count)[rank::ranks]
    for start in range(0, len(range(count)[::ranks]), batch):
        seeds = list(mine[start:start + batch])
        made = measuring(draw(drawer, seeds or [0]), seeds or [0])
        rows |= dict(zip(seeds, made))
    found = {seed: row for part in distributed.gather_objects(rows) for seed, row in part.items()}
    return [found[seed] for seed in range(count)]


def names_of(measuring: Measuring, size: Sequence[int]) -> list[str]:
    """Names of the measures that the best snapshot may go by."""
    names = ["frechet", "ks"] if measuring.images else []
    names += ["ms_ssim_gap"] if measuring.images and len(size) > 1 and min(size) >= LEAST_SIDE else []
    return names + (["latents_frechet"] if measuring.latents else [])


def numbers_of_rows(real: Sequence[MeasuredSample], drawn: Sequence[MeasuredSample], layout: Layout
                    ) -> dict[str, float]:
    """The numbers of the table by name; that of a floor ends in _floor."""
    from edm3d.reporting.distances import ks, ks_floors
    found: dict[str, float] = {}
    for kind, part in (("", "features"), ("latents_", "latents")):
        if getattr(real[0], part) is not None:
            sets = [np.stack([getattr(row, part) for row in rows]) for rows in (real, drawn)]
            for name, distance in ((f"{kind}frechet", frechet_distance), (f"{kind}kid", kernel_distance)):
                if not np.isfinite(sets[1]).all():  # a network that has diverged is as far as can be
                    found[name] = float("inf")
                    continue
                far = at_same_size(distance, *sets)
                found |= {name: far.distance, f"{name}_floor": far.floor, f"{name}_floor_p95": far.floor_p95}
    if real[0].numbers:
        apart = {name: ks(*(np.array([row.numbers[name] for row in rows]) for rows in (real, drawn)))
                 for name in real[0].numbers}
        found |= {"ks": max(apart.values()), "ks_floor": ks_floors(len(real), len(drawn))["floor_p99"]}
        found |= {f"ks_{name}": value for name, value in apart.items()}
    return found | variety(real, drawn, layout)


def variety(real: Sequence[MeasuredSample], drawn: Sequence[MeasuredSample], layout: Layout) -> dict[str, float]:
    """MS-SSIM of pairs of the first drawn volumes, that of real ones as its floor, and how far they are apart."""
    from edm3d.reporting.sections.variety import ms_ssim_row
    sets = [np.stack([row.shown[0] for row in rows[:KEPT]]) if rows[0].shown else None for rows in (real, drawn)]
    if sets[0] is None or sets[0].ndim < 4 or min(sets[0].shape[2:]) < LEAST_SIDE or not np.isfinite(sets[1]).all():
        return {}
    scaled = [np.clip((images[:, :1] - layout.lo) / layout.data_range, 0, 1) for images in sets]
    row: dict[str, Any] = ms_ssim_row(*scaled)[0]
    if not row["available"]:
        return {}
    drawn_mean, real_mean = row["generated_mean"], row["real_mean"]
    return {"ms_ssim": drawn_mean, "ms_ssim_floor": real_mean, "ms_ssim_gap": abs(drawn_mean - real_mean)}


def montage_of(real: Sequence[MeasuredSample], drawn: Sequence[MeasuredSample], layout: Layout) -> bytes | None:
    """Held-out volumes, where some are given, above drawn ones, None where there are no images."""
    if drawn[0].shown is None:
        return None
    from edm3d.reporting.montages import montage, png_bytes
    sets = {"Held out": real, "Drawn": drawn}
    blocks = [(title, [row.shown for row in rows[:SHOWN]]) for title, rows in sets.items() if rows]
    return png_bytes(montage(blocks, layout.spacing, label_classes=layout.label_classes, channels=layout.channels))
