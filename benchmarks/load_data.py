"""Claim: our loader reads volumes 5 times as fast as NIfTI.gz files, and no slower than an .npy for each array.

Run from the top of the checkout: python -m benchmarks.load_data [--num 64] [--size 64] [--latents LATENTS.h5]
One JSON line: CPU seconds of reading all volumes of a cohort of phantoms with their label maps, in a random order,
batch by batch as networks see them, from a volumes.h5 by ours (each time from the file, and kept in memory after the
first time, as is the default), and from two files for each by nibabel and numpy under torch's DataLoader; likewise
latents, posterior means and stds side by side, from a latents.h5, which ours reads whole when it is opened, and from an
.npy for each. Medians of epochs that take turns; files lie in the page cache, and are opened before. wait: the share of
a training step on latents, forward and backward by the network of echo_edm, that goes to waiting for them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import in_turns, json_line
from benchmarks.sample import our_network
from edm3d.formats.intensity import Intensity
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.physics.phantoms import ATTRIBUTES, LABEL_CLASSES, echo_phantom, phantom_affine
from edm3d.training.datasets.latents import LatentsDataset
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.training.loader import Rounds

NIFTI_LIMIT, NPY_LIMIT, DRAWN, BATCH = 5.0, 1.0, 8, 8
KEPT, OUR_LATENTS, NPY_LATENTS = "ours, kept in memory", "latents, ours", "latents, npy"
STEPS, DIVIDES = 3, 4  # of the network; what sizes it takes are multiples of
CPU = torch.device("cpu")


def write_cohort(folder: Path, num: int, size: int) -> None:
    """The same volumes and label maps as volumes.h5, NIfTI.gz and npy; a few phantoms, each some times over."""
    names, units = zip(*ATTRIBUTES, strict=True)
    meta = VolumesMeta(3, ("echo",), ("target",), LABEL_CLASSES, names, units, (), Intensity(0.0, 1.0, True, "a.u."))
    drawn, affine = [echo_phantom(i, seed=0, size=size) for i in range(min(DRAWN, num))], phantom_affine(size, 3)
    with VolumesWriter(folder / "volumes.h5", meta, {"kind": "benchmark"}) as writer:
        for i in range(num):
            each = drawn[i % len(drawn)]
            writer.add("train", Item(each.image[None], each.label, each.attributes.astype("float32"), None, str(i),
                                     str(i), affine, full_box(each.image.shape)))
            for name, array in (("image", each.image.astype(np.float32)), ("label", each.label.astype(np.uint8))):
                nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{i}_{name}.nii.gz")
                np.save(folder / f"{i}_{name}.npy", array)


class FilePairs(Dataset):
    """Images [1,*S] in [-1,1] and label maps of files, by what reads one."""

    def __init__(self, folder: Path, num: int, suffix: str, read: Callable[[Path], np.ndarray]):
        self.folder, self.num, self.suffix, self.read = folder, num, suffix, read

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = (self.read(self.folder / f"{index}_{name}{self.suffix}") for name in ("image", "label"))
        return image[None].astype(np.float32) * 2 - 1, label.astype(np.uint8)


def read_nifti(path: Path) -> np.ndarray:
    """Values of a NIfTI, as they are stored."""
    return np.asanyarray(nibabel.load(path).dataobj)


class LatentFiles(Dataset):
    """Means and stds of latents, side by side, of an .npy for each item."""

    def __init__(self, folder: Path, num: int):
        self.folder, self.num = folder, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> np.ndarray:
        return np.load(self.folder / f"{index}_latent.npy")


def ours(dataset: Sequence, order: Sequence[int]) -> None:
    """An epoch by our loader, in this process."""
    for _ in Rounds(dataset, list(order), BATCH, 0, CPU):
        pass


def theirs(dataset: Dataset, order: Sequence[int]) -> None:
    """An epoch by torch's, in this process."""
    for _ in DataLoader(dataset, batch_size=BATCH, sampler=list(order)):
        pass


def step_seconds(shape: Sequence[int]) -> float:
    """CPU seconds of a forward and backward pass of echo_edm's network on a batch of latents [2C,*s]."""
    net, found = our_network(shape[0] // 2).train(), []
    x = torch.randn(BATCH, shape[0] // 2, *(-(-s // DIVIDES) * DIVIDES for s in shape[1:]))
    for _ in range(STEPS):
        start = time.process_time()
        net(x, torch.ones(BATCH)).square().mean().backward()
        found.append(time.process_time() - start)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--latents", type=Path, help="a latents.h5")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, options.num, options.size)
        rng, counts = np.random.default_rng(0), dict.fromkeys(("ours", KEPT, "nifti.gz", "npy"), options.num)
        epochs = {
            "ours": partial(ours, VolumesDataset(str(folder / "volumes.h5"), cache=False)),
            KEPT: partial(ours, VolumesDataset(str(folder / "volumes.h5"))),
            "nifti.gz": partial(theirs, FilePairs(folder, options.num, ".nii.gz", read_nifti)),
            "npy": partial(theirs, FilePairs(folder, options.num, ".npy", np.load)),
        }
        if options.latents:
            latents = LatentsDataset(str(options.latents))
            items = latents.images
            for i, item in enumerate(items):
                np.save(folder / f"{i}_latent.npy", item)
            epochs[OUR_LATENTS] = partial(ours, latents)
            epochs[NPY_LATENTS] = partial(theirs, LatentFiles(folder, len(items)))
            counts |= dict.fromkeys((OUR_LATENTS, NPY_LATENTS), len(items))
        found = in_turns({key: lambda epoch=epoch, key=key: epoch(rng.permutation(counts[key]).tolist())
                          for key, epoch in epochs.items()}, options.repeats)
    of_latents = {}
    if options.latents:
        batch = found[OUR_LATENTS] * BATCH / counts[OUR_LATENTS]
        of_latents = {"ratio_latents_npy": round(found[NPY_LATENTS] / found[OUR_LATENTS], 2),
                      "wait": round(batch / (batch + step_seconds(items.shape[1:])), 5), "latents": len(items)}
    print(json_line("reading volumes: NIfTI.gz over ours", ratio=round(found["nifti.gz"] / found["ours"], 2),
                    limit=NIFTI_LIMIT, ratio_npy=round(found["npy"] / found["ours"], 2), limit_npy=NPY_LIMIT,
                    ratio_kept=round(found["nifti.gz"] / found[KEPT], 2),
                    ratio_npy_kept=round(found["npy"] / found[KEPT], 2),
                    volumes=options.num, size=options.size, repeats=options.repeats, **of_latents,
                    cpu_seconds={key: round(value, 4) for key, value in found.items()}))


if __name__ == "__main__":
    main()
