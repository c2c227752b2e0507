"""Generation: seeds -> noise -> sampler -> (decode) -> samples file, NIfTI, montage; split over ranks, restartable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from networks.latent_codec import LatentCodec
from samplers.noise import ImageGenerators
from training.precision import autocast, resolve_precision
from training.snapshot import build_codec, first_stage_hash, load_network
from utils import checkpoint, distributed
from utils.config import Sampling, build, build_from_file, check_targets
from utils.log import RunLog, progress
from utils.nifti import write_nifti
from utils.runs import find_file
from utils.sample_io import FORMATS, Parts, SampleMeta, SamplesFile, requested_seeds, write_samples
from utils.volumes import Intensity, VolumesFile

Picture = tuple[np.ndarray, np.ndarray | None]  # image [C,*S] in stored units, label map [*S]


class Drawer(NamedTuple):
    """What turns seeds into volumes.

    latent says whether the network draws latents (else voxels); codec decodes them and may be left out.
    """

    net: torch.nn.Module
    latent: bool
    codec: LatentCodec | None
    sampler: Callable
    shape: tuple[int, ...]
    intensity: Intensity
    device: torch.device
    precision: str


def generate(experiment: str, config: dict) -> None:
    """Draw the seeds that are asked for and not there yet. Every rank calls this; rank 0 writes the files."""
    options, run_root = Sampling(**config["sampling"]), config["training"]["options"]["run_root"]
    seeds = requested_seeds(options.seeds)
    check_options(options)
    device = distributed.init(options.device)
    try:
        distributed.set_threads(options.num_threads)
        log = RunLog(distributed.rank() == 0)
        path = find_file(options.network or experiment, "network-snapshot", Path(run_root), "sampling.network")
        log(f"Network   {path}")
        net, snapshot = load_network(path, "diffusion", options.trust)
        drawer = make_drawer(net, snapshot, options, str(path), run_root, device)
        meta = sample_meta(snapshot, path, options)
        outdir = Path(options.outdir)
        target = outdir / f"samples.{options.format}"
        old = existing(target, meta)
        parts = Parts(outdir / "parts" / checkpoint.plain_hash([meta.snapshot_hash, meta.sampling])[:16])
        missing = [s for s in seeds if not (old and s in old.rows) and not parts.path(s).is_file()]
        log(f"Seeds     {len(seeds)} asked for, {len(seeds) - len(missing)} there already")
        draw_missing(drawer, missing, parts, options.batch_size)
        distributed.barrier()
        if distributed.rank() == 0:
            merged = merge(target, old, parts, seeds, meta)
            write_pictures(outdir, merged, set(missing), snapshot, options)
        log(f"Samples   {target}" + (f"\nNIfTI     {outdir / 'nifti'}" if options.nifti else "")
            + (f"\nMontage   {outdir / 'samples.png'}" if options.montage else ""))
    finally:
        distributed.shutdown()


def check_options(options: Sampling) -> None:
    """ValueError for sampling options that no run could follow."""
    if options.format not in FORMATS:
        raise ValueError(f"sampling.format={options.format!r}: wanted one of {', '.join(FORMATS)}")
    if options.batch_size < 1:
        raise ValueError(f"sampling.batch_size={options.batch_size}: wanted 1 or more")
    if "_target_" not in options.sampler:
        raise ValueError("sampling.sampler._target_: no value; choose a sampler group, e.g. sampler=edm_ode")
    check_targets(options.sampler, "sampling.sampler", filled=("net", "latents"))


def make_drawer(net: torch.nn.Module, snapshot: dict, options: Sampling, source: str, run_root: str,
                device: torch.device) -> Drawer:
    """Put the network, its first stage and the sampler on the device."""
    part, codec = snapshot["first_stage"], None
    if options.autoencoder is not None and part is not None:
        check_autoencoder(options.autoencoder, part["hash"], run_root)
    if part is not None and options.decode:
        codec = build_codec(part, source, options.trust).to(device)
    sampler = build({**options.sampler, "_partial_": True})
    intensity = Intensity(**snapshot["data"]["intensity"])
    return Drawer(net.to(device), part is not None, codec, sampler, tuple(snapshot["shape"]), intensity, device,
                  resolve_precision(options.precision, device))


def check_autoencoder(name: str, wanted: str, run_root: str) -> None:
    """ValueError unless the named autoencoder is the one whose latents the network was trained on."""
    path = find_file(name, "network-snapshot", Path(run_root), "sampling.autoencoder")
    _, snapshot = load_network(path, "autoencoder")
    found = first_stage_hash(snapshot["network"], snapshot["ema"])
    if found != wanted:
        raise ValueError(f"sampling.autoencoder={name}: {path} has hash {found[:12]}, the network was trained on "
                         f"latents of {wanted[:12]}; leave sampling.autoencoder away to use the one it carries")


def sample_meta(snapshot: dict, path: Path, options: Sampling) -> SampleMeta:
    """What the samples file records; `sampling` holds what a sample depends on besides the seed and the network."""
    settings = {"sampler": options.sampler, "decode": options.decode, "precision": options.precision}
    return SampleMeta(snapshot["data"], str(path), checkpoint.checksum(snapshot), settings)


def existing(path: Path, meta: SampleMeta) -> SamplesFile | None:
    """Samples drawn before; ValueError when they are of another network or other settings."""
    if not path.is_file():
        return None
    old = SamplesFile(path)
    for name in ("snapshot_hash", "sampling"):
        if getattr(old.meta, name) != getattr(meta, name):
            raise ValueError(f"{path} was drawn with another {name} ({json.dumps(getattr(old.meta, name))[:200]}); "
                             "choose another sampling.outdir or delete it")
    return old


def draw_missing(drawer: Drawer, missing: list[int], parts: Parts, batch_size: int) -> None:
    """Draw this rank's share of the seeds, batch by batch."""
    rank, ranks = distributed.rank(), distributed.world_size()
    mine = missing[rank::ranks]
    with progress(total=len(mine), desc="generate", unit="sample", is_main=rank == 0) as bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start:start + batch_size]
            arrays = draw(drawer, batch)
            for i, seed in enumerate(batch):
                parts.write(seed, {name: array[i] for name, array in arrays.items()})
            bar.update(len(batch))


def draw(drawer: Drawer, seeds: list[int]) -> dict[str, np.ndarray]:
    """Volumes of some seeds; the noise is drawn on the CPU, so that it is the same on every device."""
    generators = ImageGenerators(seeds, purpose="sample")
    noise = generators.randn(drawer.shape).to(drawer.device)
    with autocast(drawer.precision, drawer.device):
        x = drawer.sampler(drawer.net, noise, randn_like=generators.randn_like)
    image, label = x.float(), None
    arrays = {"latents": x.float()} if drawer.latent else {}
    if drawer.codec is not None:
        image, label = drawer.codec.decode(x)
    if drawer.codec is not None or not drawer.latent:
        arrays["images"] = drawer.intensity.from_network(image)
    if label is not None:
        arrays["labels"] = label
    return {name: array.cpu().numpy() for name, array in arrays.items()}


def merge(target: Path, old: SamplesFile | None, parts: Parts, seeds: list[int], meta: SampleMeta) -> SamplesFile:
    """One file in seed order from the samples that were there and the new parts."""
    new = [s for s in seeds if not (old and s in old.rows)]
    if new:
        fresh = {s: parts.read(s) for s in new}
        everything = sorted({*fresh, *(old.rows if old else ())})
        names = list(next(iter(fresh.values())))
        arrays = {name: np.stack([fresh[s][name] if s in fresh else old.arrays[name][old.rows[s]]
                                  for s in everything]) for name in names}
        write_samples(target, everything, arrays, np.asarray(meta.data["affine"]), meta)
    if parts.folder.is_dir():
        parts.remove()
    return SamplesFile(target)


def write_pictures(outdir: Path, samples: SamplesFile, new: set[int], snapshot: dict, options: Sampling) -> None:
    """NIfTI of every seed that is new or has none yet, and the montage of real above generated."""
    if options.nifti and "images" in samples.arrays:
        dims, unit = samples.images(0).ndim - 1, samples.meta.data["intensity"]["unit"]
        for i, seed in enumerate(progress(samples.seeds, desc="nifti", unit="sample")):
            for kind, array in (("image", samples.images(i)), ("label", samples.labels(i))):
                path = outdir / "nifti" / f"seed{seed:06d}_{kind}.nii.gz"
                if array is not None and (seed in new or not path.is_file()):
                    write_nifti(path, array, samples.affine, spatial_dims=dims, unit=unit)
    if options.montage and "images" in samples.arrays:
        from reporting.montages import samples_montage
        count = min(options.montage, len(samples))
        generated = [(samples.images(i), samples.labels(i)) for i in range(count)]
        real = real_pictures(snapshot, options.real, count, options.trust)
        spacing = np.linalg.norm(samples.affine[:3, :3], axis=0)
        samples_montage(real, generated, spacing, outdir / "samples.png",
                        label_classes=snapshot["data"]["label_classes"])


def real_pictures(snapshot: dict, source: str | None, count: int, trust: bool) -> list[Picture]:
    """Images and label maps of held-out volumes that the network was trained on the likes of.

    They come from `source` (a volumes.h5), else from the file or the data set that the snapshot names; [] when that is
    not there.
    """
    path = Path(source or snapshot["data"]["source"])
    if not path.is_file() and source is None:
        return []
    if path.suffix == ".h5":
        file = VolumesFile(path)
        split = "test" if "test" in file.splits else file.splits[-1]
        items = [file.read(split, i) for i in range(min(count, file.length(split)))]
        return [(item.image, item.label) for item in items]
    if source is not None:
        raise ValueError(f"sampling.real={source}: wanted a volumes file (.h5)")
    dataset = build_from_file(snapshot["config"]["training"]["dataset"], "the snapshot", trust)
    intensity = Intensity(**snapshot["data"]["intensity"])
    samples = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, count)]
    return [(intensity.from_network(sample.image), sample.label) for sample in samples]
