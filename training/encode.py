"""Encode the volumes of a cohort once: posterior mean and std of every item, with the first stage in the same file."""

from pathlib import Path

import numpy as np
import torch

from training.datasets.volumes import VolumesDataset
from training.precision import autocast, resolve_precision
from training.snapshot import first_stage_hash, load_network
from utils.latents import EncodedSplit, FirstStageRecord, write_latents
from utils.log import progress
from utils.volumes import VolumesFile


def encode_volumes(snapshot_path: Path, source: Path, dest: Path, *, batch_size: int = 8, precision: str = "fp32",
                   trust: bool = False) -> dict[str, int]:
    """Write the latents of all splits of a volumes file; returns the number of items of each split."""
    if dest.resolve() == source.resolve():
        raise ValueError(f"--dest {dest} is --source; the latents need a file of their own")
    net, snapshot = load_network(snapshot_path, "autoencoder", trust)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    splits = VolumesFile(source).splits
    datasets = {split: VolumesDataset(str(source), split, cache=False) for split in splits}
    data = next(iter(datasets.values())).data
    for key in ("channels", "label_classes", "intensity"):
        if data[key] != snapshot["data"][key]:
            raise ValueError(f"{source}: {key} are {data[key]}, the autoencoder {snapshot_path} was trained with "
                             f"{snapshot['data'][key]}")
    precision = resolve_precision(precision, device)
    encoded = {split: encode_split(net, dataset, batch_size, device, precision, split)
               for split, dataset in datasets.items()}
    weights = {k: v.numpy() for k, v in snapshot["ema"].items()}
    record = FirstStageRecord(snapshot["network"], weights, first_stage_hash(snapshot["network"], snapshot["ema"]))
    write_latents(dest, encoded, record, data, {"kind": "encode", "source": str(source),
                                                "source_hash": data["content_hash"], "first_stage": record.hash})
    return {split: len(dataset) for split, dataset in datasets.items()}


@torch.no_grad()
def encode_split(net: torch.nn.Module, dataset: VolumesDataset, batch_size: int, device: torch.device, precision: str,
                 split: str) -> EncodedSplit:
    """Posterior mean and std of all items of a dataset."""
    shape = (len(dataset), *net.latent_shape(dataset.shape[1:]))
    mean, std = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for start in progress(range(0, len(dataset), batch_size), desc=f"encode {split}", unit="batch"):
        rows = slice(start, min(start + batch_size, len(dataset)))
        samples = [dataset[i] for i in range(rows.start, rows.stop)]
        image = torch.from_numpy(np.stack([s.image for s in samples])).to(device)
        label = None if samples[0].label is None else torch.from_numpy(np.stack([s.label for s in samples])).to(device)
        with autocast(precision, device):
            posterior = net.encode(image, label)
        if not (posterior.mean.isfinite().all() and posterior.std.isfinite().all()):
            raise ValueError(f"{dataset.file.path}: the latents of {split} volumes {rows.start} to {rows.stop - 1} are "
                             "not finite; the autoencoder has diverged, train it again with a lower learning rate")
        mean[rows], std[rows] = posterior.mean.float().cpu().numpy(), posterior.std.float().cpu().numpy()
    file = dataset.file
    return EncodedSplit(mean, std, file.ids(split), file.groups(split), file.affines(split), file.classes(split),
                        file.attributes(split))
