"""Claim: encoding does not wait: `encode` makes 90 % or more of the images per second of the bare network.

Counted is the whole command in this process, from finding the snapshot to the finished latents file, without the round
trip of held-out volumes; the network alone encodes the same batches from memory.

Run from the top of the checkout: python -m benchmarks.encode_speed
"""

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import json_line
from edm3d.formats.facts import volume_facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.encode import EncodeOptions, encode, make_job, read_batch
from edm3d.inference.encode import all_places as places_of
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.physics.phantoms import ATTRIBUTES, LABEL_CLASSES, echo_phantom, phantom_affine
from edm3d.utils import distributed
from edm3d.utils.compose import compose

LIMIT = 0.9
SIZE, PHANTOMS, COPIES, BATCH, REPEATS = 64, 8, 8, 8, 3


def write_volumes(path: Path) -> None:
    """A cohort of phantoms, each of a few some times over."""
    names, units = zip(*ATTRIBUTES, strict=True)
    meta = VolumesMeta(3, ("echo",), ("target",), LABEL_CLASSES, names, units, (), Intensity(0.0, 1.0, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "benchmark"}) as writer:
        for i in range(PHANTOMS):
            drawn = echo_phantom(i, seed=0, size=SIZE)
            for copy in range(COPIES):
                writer.add("train", Item(drawn.image[None], drawn.label, drawn.attributes.astype("float32"), None,
                                         f"{i}-{copy}", f"{i}-{copy}", phantom_affine(SIZE, 3),
                                         full_box(drawn.image.shape)))


def write_stage(path: Path, volumes: VolumesFile) -> None:
    """A snapshot of the first stage of echo64_vae with drawn weights."""
    node = compose("echo64_vae", [])["training"]["network"]
    node = {**node, "in_channels": 1, "num_classes": len(LABEL_CLASSES), "spatial_dims": 3}
    net = AutoencoderKL(**{k: v for k, v in node.items() if k != "_target_"})
    Snapshot("autoencoder", node, volume_facts(volumes, "train"), (), weights=net.state_dict()).save(path)


@torch.no_grad()
def bare_seconds(folder: Path, volumes: VolumesFile, options: EncodeOptions) -> float:
    """Of the network alone, over all batches in memory."""
    device, snapshot = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Snapshot.read(folder / "stage.pt")
    stage = FirstStage(snapshot.build(), snapshot.facts).to(device)
    job, places = make_job(stage, folder / "stage.pt", volumes, options), places_of(volumes)
    batches = [read_batch(job, places[i:i + BATCH]) for i in range(0, len(places), BATCH)]
    start = time.perf_counter()
    for images, labels, _ in batches:
        posterior = job.stage.net.encode(images.to(device), labels.to(device))
        posterior.mean.cpu(), posterior.std.cpu()
    return time.perf_counter() - start


def command_seconds(folder: Path, options: EncodeOptions) -> float:
    """Of the command."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        encode(str(folder / "stage.pt"), folder / "vols.h5", folder / "lat.h5", options)
    return time.perf_counter() - start


def main() -> None:
    options = EncodeOptions(batch_size=BATCH, round_trip=0, overwrite=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volumes(folder / "vols.h5")
        volumes = VolumesFile(folder / "vols.h5")
        write_stage(folder / "stage.pt", volumes)
        distributed.set_threads(0)
        bare_seconds(folder, volumes, options)  # warm
        pairs = [(bare_seconds(folder, volumes, options), command_seconds(folder, options)) for _ in range(REPEATS)]
    bare, command = (statistics.median(column) for column in zip(*pairs, strict=True))
    count = PHANTOMS * COPIES
    print(json_line("encode, images/s as a share of the bare network's", ours=round(bare / command, 3), limit=LIMIT,
                    images_per_s=round(count / command, 2), bare_images_per_s=round(count / bare, 2), images=count,
                    size=SIZE, threads=torch.get_num_threads(), device="cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
