"""Claim: decoding 160x160x128 in tiles takes a quarter of the whole decode's peak memory or less, and slabs take half.

Labels of tiles agree with those of the whole in 95 % of voxels or more; slabs agree within 1e-3. Without --snapshot the
first stage is that of echo64_vae, trained for a few minutes on crops of phantoms. Each way of decoding is a process of
its own; counted is what its resident memory rises to above the level before.

Run from the top of the checkout:
python -m benchmarks.decode_memory [--snapshot FILE] [--tile 48 48 48] [--slab 32 32 32]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.common import FREEING, json_line, with_peak
from edm3d.formats.facts import Facts
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.tiles import Tiles, by_parts
from edm3d.physics.phantoms import LABEL_CLASSES, echo_phantom
from edm3d.utils.compose import compose

ROOT = Path(__file__).resolve().parents[1]
SIZE = (160, 160, 128)
MODES = ("whole", "blend", "exact")
STEPS, CROP, PHANTOMS = 400, 32, 4


def phantom(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image [1,1,*S] in [-1,1] and label map [1,*S] of a phantom."""
    drawn = echo_phantom(index, seed=0, size=SIZE[0])
    return (torch.from_numpy(drawn.image[None, None, :, :, :SIZE[2]]) * 2 - 1,
            torch.from_numpy(drawn.label[None, :, :, :SIZE[2]]))


def trained_stage(path: Path) -> None:
    """Write the snapshot of a first stage of the shape of echo64_vae, trained on crops of phantoms."""
    node = compose("echo64_vae", [])["training"]["network"]
    node = {k: v for k, v in node.items() if k != "_target_"} | {
        "in_channels": 1, "num_classes": len(LABEL_CLASSES), "spatial_dims": 3}
    torch.manual_seed(0)
    net = AutoencoderKL(**node)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.9, 0.99))
    volumes, random = [phantom(i) for i in range(1, PHANTOMS + 1)], np.random.default_rng(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        crops = []
        for _ in range(4):
            image, label = volumes[random.integers(PHANTOMS)]
            at = tuple(slice(a, a + CROP) for a in (random.integers(n - CROP + 1) for n in SIZE))
            crops.append((image[(..., *at)], label[(..., *at)]))
        image, label = map(torch.cat, zip(*crops, strict=True))
        out = net(image, label)
        loss = 3 * (out.image - image).abs().mean() + cross_entropy(out.logits, label.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    Snapshot("autoencoder", {"_target_": "networks.autoencoder.AutoencoderKL", **node}, Facts("", ""), (),
             weights=net.state_dict()).save(path)


def stage_of(path: Path) -> torch.nn.Module:
    """The autoencoder of a snapshot."""
    return Snapshot.read(path).build()


@torch.no_grad()
def measure(mode: str, folder: Path, snapshot: Path, tile: list[int]) -> None:
    """Decode the latents of the folder, write the result beside them, and print peak and seconds."""
    net = stage_of(snapshot)
    net = net if mode == "whole" else by_parts(net, Tiles(tuple(tile), mode=mode))
    z = torch.from_numpy(np.load(folder / "z.npy"))
    net.decode(z[..., :net.factor[0], :net.factor[1], :2 * net.factor[2]].clone())  # what is loaded at the first call
    if mode == "blend":
        import monai.inferers  # noqa: F401
    start = time.perf_counter()
    (image, logits), peak = with_peak(lambda: net.decode(z))
    seconds = time.perf_counter() - start
    np.savez(folder / f"{mode}.npz", image=image.numpy(), label=logits.argmax(1).numpy().astype(np.uint8),
             logits=logits.numpy())
    print(json.dumps({"peak": peak, "seconds": seconds}))


def compare(folder: Path, mode: str) -> dict[str, float]:
    """How an image (as a share of its range) and a label map decoded in parts differ from those of the whole."""
    whole, parts = (np.load(folder / f"{name}.npz") for name in ("whole", mode))
    off = whole["image"] - parts["image"]
    return {"max": float(np.abs(off).max()), "rms": float(np.sqrt(np.square(off).mean())) / 2,
            "logits": float(np.abs(whole["logits"] - parts["logits"]).max()),
            "agree": float((whole["label"] == parts["label"]).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshot", type=Path)
    parser.add_argument("--tile", type=int, nargs=3, default=[48, 48, 48])
    parser.add_argument("--slab", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mode:
        measure(given.mode, given.folder, given.snapshot, given.tile)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        snapshot = given.snapshot or folder / "stage.pt"
        if given.snapshot is None:
            trained_stage(snapshot)
        net = stage_of(snapshot)
        image, label = phantom(0)
        with torch.no_grad():
            slabs = by_parts(net, Tiles(tuple(given.tile), mode="exact"))
            posterior = slabs.encode(image, label if net.num_classes else None)
        np.save(folder / "z.npy", posterior.mean.numpy())
        found = {}
        for mode in MODES:
            tile = given.slab if mode == "exact" else given.tile
            command = [sys.executable, "-m", "benchmarks.decode_memory", "--mode", mode, "--folder", name,
                       "--snapshot", str(snapshot), "--tile", *map(str, tile)]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                                 env={**os.environ, **FREEING}).stdout
            found[mode] = json.loads(out.splitlines()[-1])
        truth = float((np.load(folder / "whole.npz")["label"] == label.numpy()).mean())
        tiles, slabs = compare(folder, "blend"), compare(folder, "exact")
    whole = found["whole"]["peak"]
    print(json_line(
        "decoding 160x160x128, peak memory of tiles and slabs as a share of the whole decode's",
        ours=round(found["blend"]["peak"] / whole, 3), limit=0.25, slabs=round(found["exact"]["peak"] / whole, 3),
        slabs_limit=0.5, whole_mib=round(whole / 2**20), tiles_mib=round(found["blend"]["peak"] / 2**20),
        slabs_mib=round(found["exact"]["peak"] / 2**20), tile=" ".join(map(str, given.tile)),
        slab=" ".join(map(str, given.slab)),
        labels_agree=round(tiles["agree"], 4), labels_limit=0.95, image_rms_share_of_range=round(tiles["rms"], 5),
        image_max=round(tiles["max"], 4), slabs_image_max=slabs["max"], slabs_logits_max=slabs["logits"],
        slabs_difference_limit=1e-3, whole_labels_right=round(truth, 4),
        **{f"{mode}_seconds": round(found[mode]["seconds"], 1) for mode in MODES}, threads=torch.get_num_threads()))


if __name__ == "__main__":
    main()
