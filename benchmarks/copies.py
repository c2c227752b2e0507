"""How many planted copies of phantoms the audit finds at 1 % false alarms, and what it costs.

python benchmarks/copies.py --spatial-dims 2 --size 64 --seed 7000 [--first-stage ae.pt]
"""

import time
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.common import json_line
from edm3d.metrics.copies import PLANTED, Reference, planted, threshold
from edm3d.physics.phantoms import echo_phantom
from edm3d.utils.config import build


def phantoms(count: int, seed: int, size: int, dims: int) -> list[np.ndarray]:
    """Images [1,*S] in [0,1]."""
    return [echo_phantom(i, seed=seed, size=size, spatial_dims=dims).image[None] for i in range(count)]


def through(path: Path, image: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """An image decoded of a draw of its posterior; path: an autoencoder's {node, w}."""
    kept = torch.load(path, weights_only=True)
    net = build(kept["node"])
    net.load_state_dict(kept["w"])
    with torch.no_grad():
        found = net.encode(torch.from_numpy(image)[None] * 2 - 1, None)
        z = found.mean + found.std * torch.randn(found.mean.shape, generator=generator)
        return ((net.decode(z)[0][0].numpy() + 1) / 2).clip(0, 1).astype(np.float32)


@click.command()
@click.option("--spatial-dims", default=2)
@click.option("--size", default=64)
@click.option("--train", default=256)
@click.option("--held-out", default=400, help="The threshold is from the first half, false alarms from the second.")
@click.option("--copies", default=100)
@click.option("--seed", default=7000)
@click.option("--first-stage", type=click.Path(path_type=Path))
def main(spatial_dims: int, size: int, train: int, held_out: int, copies: int, seed: int, first_stage: Path | None
         ) -> None:
    """Print one line of JSON."""
    images, others = phantoms(train, seed, size, spatial_dims), phantoms(held_out, seed + 1, size, spatial_dims)
    start = time.perf_counter()
    reference = Reference(images.__getitem__, train, 1.0)
    reference.calibrate()
    begun = time.perf_counter() - start
    start = time.perf_counter()
    distances = np.array([reference.nearest(image).distance for image in others])
    each = (time.perf_counter() - start) / held_out
    limit, rng = threshold(distances[:held_out // 2]), np.random.default_rng(seed)
    generator, found, right = torch.Generator().manual_seed(seed), {}, {}
    for kind in (*PLANTED, *(["first stage"] if first_stage else [])):
        chosen = rng.choice(train, copies, replace=copies > train)
        made = [through(first_stage, images[i], generator) if kind == "first stage" else
                planted(kind, images[i], rng, 0, 1) for i in chosen]
        rows = [reference.nearest(image) for image in made]
        found[kind] = sum(row.distance < limit.value for row in rows)
        right[kind] = sum(row.index == i for row, i in zip(rows, chosen, strict=True))
    seconds = {}
    for count in (train // 4, train):
        part, start = Reference(images.__getitem__, count, 1.0), time.perf_counter()
        for image in others[:20]:
            part.nearest(image)
        seconds[count] = (time.perf_counter() - start) / 20 * count  # of as many samples as there are training items
    exponent = float(np.log(seconds[train] / seconds[train // 4]) / np.log(4))
    print(json_line(f"copies of echo phantoms, {spatial_dims}D {size}", train=train, planted=copies,
                    false_alarms=int((distances[held_out // 2:] < limit.value).sum()), unseen=held_out - held_out // 2,
                    threshold_rank=limit.rank, threshold_of=limit.num, seconds_reference=round(begun, 1),
                    seconds_per_volume=round(each, 4), exponent=round(exponent, 2),
                    **{f"found {kind}": int(n) for kind, n in found.items()},
                    **{f"right {kind}": int(n) for kind, n in right.items()}))


if __name__ == "__main__":
    main()
