"""Generation: seeds -> noise -> sampler -> (decode) -> samples file, NIfTI, montage; split over ranks, restartable."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.nifti import spacing_of, write_nifti
from edm3d.formats.samples import FORMATS, SampleMeta, SamplesFile, SampleStage, requested_seeds, write_rows
from edm3d.formats.volumes import Intensity, VolumesFile
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import drawn_conditions, stored_values
from edm3d.inference.first_stage import FirstStage, tile_note, tiled, tiles_of
from edm3d.inference.parts import Parts, check_alike, make_missing, missing_of, ranks_at_work
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, takes_of
from edm3d.samplers import Guided, ImageGenerators, ShownItsEstimate
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice
from edm3d.utils.config import Sampling, build, build_from_file, check_targets, sampling_options
from edm3d.utils.log import RunLog, progress
from edm3d.utils.precision import autocast, resolve_precision
from edm3d.utils.runs import find_file

HELD_OUT = {"test": 0, "val": 1}  # splits to show real volumes of, before all others
Picture = tuple[np.ndarray, np.ndarray | None]  # image [C,*S] in stored units, label map [*S]


class Drawer(NamedTuple):
    """What turns seeds into volumes.

    denoiser and conditions give for a batch of seeds what the sampler calls, and what that is told. latent says whether
    latents are drawn (else voxels); first_stage decodes them and may be left out, whole is what to hold its tiles
    against. trajectory: keep what every step took the image to be.
    """

    denoiser: Callable[[Sequence[int]], Denoiser]
    conditions: Callable[[Sequence[int]], Condition]
    latent: bool
    first_stage: FirstStage | None
    sampler: Callable
    shape: tuple[int, ...]
    intensity: Intensity
    device: torch.device
    precision: str
    whole: FirstStage | None = None
    trajectory: bool = False


def generate(experiment: str, config: dict) -> None:
    """Draw the seeds that are asked for and not there yet. Every rank calls this; rank 0 writes the files."""
    options, run_root = sampling_options(config), config["training"]["options"]["run_root"]
    seeds = requested_seeds(options.seeds)
    check_options(options)
    with ranks_at_work(options.device, options.num_threads) as (device, log):
        path = find_file(options.network or experiment, "network-snapshot", Path(run_root), "sampling.network")
        log(f"Network   {path}")
        snapshot = Snapshot.read(path, config["training"]["task"])
        net = snapshot.build(options.trust)
        guided, guidance = add_guidance(net, snapshot, options, Path(run_root), device)
        whole = complete(snapshot, options, run_root)
        drawer = make_drawer(net.to(device), whole, options, device, guided)
        for line in describe_drawing(net, snapshot, options):
            log(line)
        meta = sample_meta(snapshot, whole, options, guidance)
        outdir = Path(options.outdir)
        target = outdir / f"samples.{options.format}"
        parts = Parts(outdir / "parts", [meta.snapshot_hash, meta.sampling])
        old = distributed.from_rank_0(lambda: existing(target, meta, options.overwrite))
        new = [s for s in seeds if not (old and s in old.rows)]
        missing = missing_of(parts, new)
        log(f"Seeds     {len(seeds)} asked for, {len(seeds) - len(missing)} there already")
        draw_missing(drawer, missing, parts, options.batch_size, log)
        if distributed.rank() == 0:
            merged = merge(target, old, parts, new, meta)
            log(f"Samples   {target}")
            for line in write_pictures(outdir, merged, set(missing), whole, options):
                log(line)


def check_options(options: Sampling) -> None:
    """ValueError for sampling options that no run could follow."""
    check_choice("sampling.format", options.format, FORMATS)
    for name, least in (("batch_size", 1), ("montage", 0), ("num_threads", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"sampling.{name}={getattr(options, name)}: wanted {least} or more")
    if "_target_" not in options.sampler:
        raise ValueError("sampling.sampler._target_: no value; choose a sampler group, e.g. sampler=edm_ode")
    check_real(options.real)
    check_targets(options.sampler, "sampling.sampler", filled=("net", "latents"))


def add_guidance(net: torch.nn.Module, snapshot: Snapshot, options: Sampling, run_root: Path, device: torch.device
                 ) -> tuple[Callable[[Denoiser], Denoiser] | None, dict]:
    """What puts the guidance that is asked for around the network, and a record of it; None and {} for none."""
    strength, interval, name = options.guidance.strength, options.guidance.interval, options.guidance.network
    if strength == 1:
        for key in ("network", "interval"):
            if (got := getattr(options.guidance, key)) is not None:
                raise ValueError(f"sampling.guidance.{key}={got}: does nothing at sampling.guidance.strength=1; wanted "
                                 "another strength, more than 1 to draw better than the guide")
        return None, {}
    if Wrapper(net).self_condition:
        raise ValueError(f"sampling.guidance.strength={strength}: the network is shown its own last estimate "
                         "(self_condition), which guidance would mix with the guide's; wanted strength 1")
    settings, guide = {"strength": strength, "interval": interval}, None
    if name is not None:
        path = find_file(name, "network-snapshot", run_root, "sampling.guidance.network")
        other = Snapshot.read(path, snapshot.task)
        if drawn_space(other) != drawn_space(snapshot):
            raise ValueError(f"sampling.guidance.network={name}: {path} draws {drawn_space(other)}, the network draws "
                             f"{drawn_space(snapshot)}; choose a snapshot of the same data")
        settings["guide"], guide = other.hash, other.build(options.trust).to(device)
        if other.hash == snapshot.hash:
            raise ValueError(f"sampling.guidance.network={name}: {path} is the network itself, which moves nothing; "
                             "wanted an earlier or worse snapshot")
    guided = partial(Guided, strength=strength, interval=interval, guide=guide)
    guided(net)  # refuses what it cannot guide before anything is drawn
    return guided, settings


def drawn_space(snapshot: Snapshot) -> str:
    """What a diffusion snapshot draws: shape, and latents of which first stage or voxels."""
    return f"{list(snapshot.shape)} {snapshot.space}"


def complete(snapshot: Snapshot, options: Sampling, run_root: str) -> Snapshot:
    """A snapshot with the first stage that the user names, where it does not carry one; ValueError for another one."""
    stage, name = snapshot.first_stage, options.autoencoder
    if stage is None or name is None:
        return snapshot
    path = find_file(name, "network-snapshot", Path(run_root), "sampling.autoencoder")
    named = Snapshot.read(path, "autoencoder")
    if stage.network is None:
        return snapshot.with_autoencoder(named)
    if named.network_hash != stage.hash:
        raise ValueError(f"sampling.autoencoder={name}: {path} has hash {named.network_hash[:12]}, the network was "
                         f"trained on latents of {stage.hash[:12]}; leave sampling.autoencoder away to use the one it "
                         "carries")
    return snapshot


def make_drawer(net: torch.nn.Module, snapshot: Snapshot, options: Sampling, device: torch.device,
                guided: Callable[[Denoiser], Denoiser] | None = None) -> Drawer:
    """Put the first stage on the device and the sampler beside the network; guided: see add_guidance."""
    stage, first_stage, whole = snapshot.first_stage, None, None
    precision = resolve_precision(options.precision, device)
    if stage is not None and options.decode:
        first_stage = snapshot.open_first_stage(options.trust, precision).to(device)
        try:
            first_stage, whole = tiled(first_stage, tiles_of(vars(options)), options.tile_compare)
        except ValueError as e:
            raise ValueError(f"sampling.{str(e).replace('tile ', 'tile_')}") from e
    sampler = build({**options.sampler, "_partial_": True})
    denoiser = partial(around, net, guided)
    try_sampler(sampler, denoiser(()))
    conditions = drawn_conditions(takes_of(net), options.classes, snapshot.facts.class_names, snapshot.shape[1:])
    return Drawer(denoiser, conditions, stage is not None, first_stage, sampler, snapshot.shape,
                  snapshot.facts.intensity, device, precision, whole, options.trajectory)


def around(net: Denoiser, guided: Callable[[Denoiser], Denoiser] | None, seeds: Sequence[int]) -> Denoiser:
    """What the sampler calls for a batch of seeds: the network, shown its estimate where it takes one, and guided."""
    denoiser = ShownItsEstimate(net) if Wrapper(net).self_condition else net
    return denoiser if guided is None else guided(denoiser)


class Blank(Wrapper):
    """A denoiser that says 0 at the noise levels of a network: what a sampler makes of its arguments, at no cost."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x)


def try_sampler(sampler: Callable, net: Callable) -> None:
    """ValueError for arguments that the sampler refuses for this network, before anything is drawn."""
    try:
        sampler(Blank(net), torch.zeros(1, 1, 1))
    except ValueError as e:
        raise ValueError(f"sampling.sampler: {e}") from e


def describe_drawing(net: torch.nn.Module, snapshot: Snapshot, options: Sampling) -> Iterator[str]:
    """What will draw what, in a line, and a warning where it was never trained."""
    weights = f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M weights"
    inner = f"{type(net.model).__name__}, " if hasattr(net, "model") else ""
    arguments = " ".join(f"{k}={v}" for k, v in options.sampler.items() if k != "_target_")
    guidance = options.guidance
    guided = "" if guidance.strength == 1 else f", guidance {guidance.strength:g}" + (
        f" in {list(guidance.interval)}" if guidance.interval else "") + (
        f" by {guidance.network}" if guidance.network else "")
    yield (f"Drawing   {list(snapshot.shape)} {'latents' if snapshot.first_stage else 'voxels'} by "
           f"{type(net).__name__}({inner}{weights}), {options.sampler['_target_'].rpartition('.')[2]} "
           f"{arguments}{guided}")
    if snapshot.inflated:
        yield ("Note      this network was made 3D by import-edm --inflate and never trained since: a start for "
               "training (training.options.init_from), not for drawing")


def check_real(path: str | None) -> None:
    """ValueError when the volumes to show above the samples cannot be read, before anything is drawn."""
    if path is None:
        return
    try:
        VolumesFile(path).close()
    except ValueError as e:
        raise ValueError(f"sampling.real={path}: {e}") from e


def sample_meta(snapshot: Snapshot, whole: Snapshot, options: Sampling, guidance: dict) -> SampleMeta:
    """What the samples file records; `sampling` holds what a sample depends on besides the seed and the snapshot.

    whole: the snapshot with its first stage, which is a setting where the snapshot itself does not carry it.
    """
    stage, tiles = whole.first_stage, tiles_of(vars(options))
    settings = {"sampler": options.sampler, "decode": options.decode, "precision": options.precision,
                "classes": options.classes, **({"guidance": guidance} if guidance else {}),
                **({"trajectory": True} if options.trajectory else {}), **(tiles.plain() if tiles else {}),
                **({"first_stage": stage.hash} if whole is not snapshot else {})}
    return SampleMeta(whole.facts, str(snapshot.path), snapshot.hash, settings,
                      stage and SampleStage(stage.hash, stage.scaling))


def existing(path: Path, meta: SampleMeta, overwrite: bool) -> SamplesFile | None:
    """Samples drawn before; ValueError when they are of another network or other settings, None to overwrite them."""
    if not path.is_file():
        return None
    old = SamplesFile(path)
    had, wanted = ({"snapshot_hash": each.snapshot_hash, "sampling": each.sampling} for each in (old.meta, meta))
    if overwrite and had != wanted:
        return None
    check_alike(f"{path} was drawn with", had, wanted,
                "choose another sampling.outdir, or draw anew by sampling.overwrite=true")
    return old


def draw_missing(drawer: Drawer, missing: list[int], parts: Parts, batch_size: int, log: RunLog) -> None:
    """Draw this rank's share of the seeds, batch by batch; say by how much tiles differ in the first."""
    def drawn(batch: list[int], _: None) -> list[dict[str, np.ndarray]]:
        arrays = draw(drawer, batch)
        if drawer.whole is not None and batch[0] == missing[0]:
            log(tile_note(drawer.whole, *(torch.from_numpy(arrays[k][:1]).to(drawer.device) if k in arrays else None
                                          for k in ("latents", "images", "labels"))))
        return [{name: array[i] for name, array in arrays.items()} for i in range(len(batch))]

    make_missing(parts, missing, batch_size, drawn, read=lambda batch: None, desc="generate", unit="sample")


def draw(drawer: Drawer, seeds: list[int]) -> dict[str, np.ndarray]:
    """Volumes of some seeds; the noise is drawn on the CPU, so that it is the same on every device."""
    generators = ImageGenerators(seeds, purpose="sample")
    noise = generators.randn(drawer.shape).to(drawer.device)
    condition, arrays, steps = drawer.conditions(seeds), {}, []
    with autocast(drawer.precision, drawer.device):
        x = drawer.sampler(drawer.denoiser(seeds), noise, condition=condition.to(drawer.device),
                           randn_like=generators.randn_like,
                           **({"callback": keep(steps)} if drawer.trajectory else {})).float()
    if drawer.trajectory:
        arrays["trajectory"] = torch.stack(steps, dim=1)
    if drawer.latent:
        arrays["latents"] = x
    if drawer.first_stage is not None:
        arrays["images"], label = drawer.first_stage.decode(x)
        if label is not None:
            arrays["labels"] = label
    elif not drawer.latent:
        arrays["images"] = drawer.intensity.from_network(x)
    return stored_values(condition) | {name: array.cpu().numpy() for name, array in arrays.items()}


def keep(steps: list[torch.Tensor]) -> Callable[[int, torch.Tensor, torch.Tensor], None]:
    """A sampler's callback that appends the denoised image of every step, float32 on the CPU."""
    return lambda step, x, denoised: steps.append(denoised.to("cpu", torch.float32))


def merge(target: Path, old: SamplesFile | None, parts: Parts, new: list[int], meta: SampleMeta) -> SamplesFile:
    """One file in seed order from the samples that were there and the new seeds' parts, with one row in memory."""
    if new:
        fresh, seeds = set(new), sorted({*new, *(old.rows if old else ())})

        def row(name: str, index: int) -> np.ndarray:
            seed = seeds[index]
            return parts.read(seed, name)[name] if seed in fresh else old.row(name, old.rows[seed])

        write_rows(target, seeds, list(parts.read(new[0])), row, np.asarray(meta.facts.affine), meta)
    parts.remove()
    return SamplesFile(target) if new else old


def write_pictures(outdir: Path, samples: SamplesFile, new: set[int], snapshot: Snapshot, options: Sampling
                   ) -> Iterator[str]:
    """NIfTI of every seed, and the montage of real above generated, as far as there are images; a line on each."""
    if "images" not in samples.names:
        return
    dims = len(samples.shape("images")) - 2
    if options.nifti and dims > 1:
        write_niftis(outdir / "nifti", samples, new)
        yield f"NIfTI     {outdir / 'nifti'}"
    elif options.nifti:
        yield "NIfTI     none: it holds images and volumes, these are signals (1D)"
    if options.montage:
        from edm3d.reporting.montages import samples_montage
        count = min(options.montage, len(samples))
        generated, facts = [(samples.row("images", i), samples.row("labels", i)) for i in range(count)], snapshot.facts
        real = real_pictures(snapshot, options.real, count, options.trust)
        samples_montage(real, generated, spacing_of(samples.affine)[:dims], outdir / "samples.png",
                        label_classes=facts.label_classes, channels=facts.channels,
                        captions=captions(samples.meta.facts, samples.seeds[:count], samples.array("classes")))
        yield f"Montage   {outdir / 'samples.png'}"


def write_niftis(folder: Path, samples: SamplesFile, new: set[int]) -> None:
    """NIfTI of every seed that is new or has none that is up to date."""
    written = samples.path.stat().st_mtime
    dims, unit = len(samples.shape("images")) - 2, samples.meta.facts.intensity.unit
    kinds = {name: kind for name, kind in (("images", "image"), ("labels", "label")) if name in samples.names}
    for i, seed in enumerate(progress(samples.seeds, desc="nifti", unit="sample")):
        for name, kind in kinds.items():
            path = folder / f"seed{seed:06d}_{kind}.nii.gz"
            fresh = path.is_file() and path.stat().st_mtime >= written
            if seed in new or not fresh:
                write_nifti(path, samples.row(name, i), samples.affine, spatial_dims=dims, unit=unit)


def captions(facts: Facts, seeds: Sequence[int], classes: np.ndarray | None) -> list[str]:
    """Class (where there are some) and seed of the first samples."""
    texts = [f"seed {seed}" for seed in seeds]
    return texts if classes is None else [f"class {facts.class_names[i]}\n{text}" for i, text in zip(classes, texts)]


def real_pictures(snapshot: Snapshot, source: str | None, count: int, trust: bool) -> list[Picture]:
    """Images and label maps of up to `count` volumes that the network was trained on the likes of.

    They come from `source` (a volumes.h5), held-out ones first, else from the file or the data set that the snapshot
    names; [] when that is not there.
    """
    path = Path(source or snapshot.facts.source)
    if not path.is_file() and source is None:
        return []
    if source is not None or path.suffix == ".h5":
        file = VolumesFile(path)
        splits = sorted(file.splits, key=lambda split: HELD_OUT.get(split, len(HELD_OUT)))
        places = islice(((split, i) for split in splits for i in range(file.length(split))), count)
        items = [file.read(*place) for place in places]
        return [(item.image, item.label) for item in items]
    training = snapshot.training
    node = dict(training["dataset"])
    if "split" in node:
        node["split"] = training["validation"]["split"]
    dataset = build_from_file(node, "the snapshot", trust)
    intensity = snapshot.facts.intensity
    return [(intensity.from_network(sample.image), sample.label) for sample in spread(dataset, count)]


def spread(dataset: Sequence[Sample], count: int) -> list[Sample]:
    """Up to `count` items from all over a data set."""
    return [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))]
