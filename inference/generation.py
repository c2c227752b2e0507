"""Generation: seeds -> noise -> sampler -> (decode) -> samples file, NIfTI, montage; split over ranks, restartable."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm3d.formats import h5
from edm3d.formats.asked_words import captions, drawn_again
from edm3d.formats.nifti import npz_names, spacing_of
from edm3d.formats.npz import is_odd
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import ARRAYS, FORMATS, SamplesFile, write_rows
from edm3d.formats.seeds import requested_seeds
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.asking_scans import asker_for, in_units
from edm3d.inference.drawing import Drawer, complete, draw_kept, make_drawer, sample_meta
from edm3d.inference.enhanced import write_enhanced, write_scan_montage
from edm3d.inference.first_stage import tile_note
from edm3d.inference.guidance import add_guidance, described
from edm3d.inference.measurements import check_posterior, given_in_words, rows_measured
from edm3d.inference.parts import Arrays, Parts, check_alike, check_shapes, make_missing, missing_of, ranks_at_work
from edm3d.inference.quality import check_quality
from edm3d.inference.real_pictures import real_pictures, shown_channels
from edm3d.inference.refiner import Refiner, check_draws_alone
from edm3d.inference.sample_files import (
    PNG,
    check_png,
    check_records,
    clear_others,
    records,
    write_asked,
    write_niftis,
    write_pngs,
)
from edm3d.inference.scans import Scans
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.starts import CONDITION, MEAN, STARTS, started
from edm3d.inference.sweeps import write_sweep
from edm3d.inference.trajectories import write_trajectories
from edm3d.inference.tuned_levels import with_tuned_levels
from edm3d.reporting.cases import Layout
from edm3d.reporting.slices import Asked
from edm3d.samplers.noise import SCHEMES
from edm3d.utils import distributed, locks
from edm3d.utils.checks import check_choice, listed
from edm3d.utils.compiled import keep_compiled
from edm3d.utils.config import check_targets
from edm3d.utils.files import atomic_path, check_folder
from edm3d.utils.log import RunLog
from edm3d.utils.plain import shown
from edm3d.utils.runs import find_file, passed_over
from edm3d.utils.schema import Sampling, sampling_options


def generate(experiment: str, config: dict) -> None:
    """Draw the seeds that are asked for and not there yet. Every rank calls this; rank 0 writes the files."""
    options, run_root = sampling_options(config), config["training"]["options"]["run_root"]
    check_options(options)
    options = started(options)
    outdir = Path(options.outdir)
    check_folder(outdir, f"sampling.outdir={outdir}")
    with (ranks_at_work(options.device, options.num_threads) as (device, log),
          locks.output(outdir, "sampling.outdir", is_folder=True)):
        path = find_file(options.network or experiment, "network-snapshot", Path(run_root), "sampling.network")
        log(f"Network   {path}")
        for line in passed_over(path, options.network or experiment, Path(run_root)):
            log(line)
        snapshot = Snapshot.read(path, config["training"]["task"])
        check_draws_alone(snapshot)
        options = with_tuned_levels(options, snapshot)
        net = snapshot.build(options.trust)
        guided, guidance = add_guidance(net, snapshot, options, Path(run_root), device)
        whole = complete(snapshot, options, run_root)
        if options.format == PNG:
            check_png(snapshot, options.decode)
        if options.real and options.montage:
            shown_channels(VolumesFile(options.real), whole, f"sampling.real={options.real}")
        asker = asker_for(net, whole, options, run_root=run_root)
        seeds = asker.seeds(options.seeds, partial(rows_measured, options.posterior, whole, device, run_root))
        conditions = asker(options, seeds, once=distributed.from_rank_0)
        whole = in_units(whole, conditions)
        drawer = make_drawer(net.to(device), whole, options, device, conditions, guided, run_root=run_root)
        measured = drawer.measured.notes(seeds) if drawer.measured else ()
        if options.compile:
            net.compile()  # from here on: all checks are done
            log(keep_compiled())
        for line in (*describe_drawing(net, snapshot, options, drawer.refiner), *measured, *conditions.notes):
            log(line)
        meta = sample_meta(snapshot, whole, options, guidance, conditions.record, drawer.refiner, drawer.measured,
                           drawer.quality, drawer.noise)
        numbers = conditions.numbers(seeds)
        target = outdir / f"samples.{'h5' if options.format == PNG else options.format}"
        parts = Parts(outdir / "parts", list(meta.made_of.values()), partial(check_part, drawer))
        distributed.from_rank_0(parts.tidy)
        old = distributed.from_rank_0(lambda: existing(target, meta, options.overwrite))
        new = [number for number in numbers if not (old and number in old.rows)]
        missing = missing_of(parts, new)
        of_each = f", {conditions.per_seed} samples of each (numbers {numbers[0]} to {numbers[-1]})"
        log(f"Seeds     {len(seeds)} asked for{of_each if conditions.per_seed > 1 else ''}, "
            f"{len(numbers) - len(missing)} there already")
        draw_missing(drawer, missing, parts, options.batch_size, log, path)
        if distributed.rank() == 0:
            merged = merge(target, old, parts, new, meta)
            log(f"Samples   {target}")
            for line in drawn_again(merged):
                log(f"Quality   {line}")
            for line in chain(write_pictures(outdir, merged, whole, options, conditions.scans),
                              write_sweep(outdir, merged, options.montage),
                              write_trajectories(outdir, merged, drawer, whole, options)):
                log(line)


def check_options(options: Sampling) -> None:
    """ValueError for sampling options that no run could follow."""
    check_choice("sampling.format", options.format, (*FORMATS, PNG))
    check_choice("sampling.start", options.start, STARTS)
    if options.noise is not None:
        check_choice("sampling.noise", options.noise, SCHEMES)
    if options.seeds is not None:
        requested_seeds(options.seeds)
    for name, least in (("batch_size", 1), ("montage", 0), ("gif", 0), ("trajectory_montage", 0), ("num_threads", 0),
                        ("samples_per_condition", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"sampling.{name}={getattr(options, name)}: wanted {least} or more")
    if "_target_" not in options.sampler:
        raise ValueError("sampling.sampler._target_: no value; choose a sampler group, e.g. sampler=edm_ode")
    check_real(options.real)
    check_quality(options.quality)
    check_targets(options.sampler, "sampling.sampler", filled=("net", "latents"))
    check_posterior(options.posterior)


def describe_drawing(net: torch.nn.Module, snapshot: Snapshot, options: Sampling, refiner: Refiner | None
                     ) -> Iterator[str]:
    """What will draw what, in a line, what will refine it, and a warning where it was never trained."""
    weights = f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M weights"
    inner = f"{type(net.model).__name__}, " if hasattr(net, "model") else ""
    start = {MEAN: ", from the regression mean", CONDITION: ", from the condition image"}.get(options.start, "")
    yield (f"Drawing   {list(snapshot.shape)} {'latents' if snapshot.first_stage else snapshot.space} by "
           f"{type(net).__name__}({inner}{weights}), {named(options.sampler)}"
           f"{described(options.guidance)}{start}")
    if options.posterior:
        yield f"Given     {given_in_words(options.posterior)}"
    if refiner is not None:
        yield f"Refining  by {refiner.snapshot.path}, {named(refiner.settings)}"
    if snapshot.inflated:
        yield ("Note      this network was made 3D by import-edm --inflate and never trained since: a start for "
               "training (training.options.init_from), not for drawing")


def named(sampler: Mapping[str, Any]) -> str:
    """A sampler and its arguments in words."""
    arguments = " ".join(f"{k}={v}" for k, v in sampler.items() if k != "_target_")
    return f"{sampler['_target_'].rpartition('.')[2]} {arguments}"


def check_real(path: str | None) -> None:
    """ValueError when the volumes to show above the samples cannot be read, before anything is drawn."""
    if path is None:
        return
    try:
        VolumesFile(path).close()
    except ValueError as e:
        raise ValueError(f"sampling.real={path}: {e}") from e


def existing(path: Path, meta: SampleMeta, overwrite: bool) -> SamplesFile | None:
    """Samples drawn before; ValueError when they, or what lies beside them, are of another network or other settings,
    None to overwrite them.
    """
    old = drawn_before(path, meta, overwrite) if path.is_file() else None
    check_records(path.parent, meta, overwrite)
    return old


def drawn_before(path: Path, meta: SampleMeta, overwrite: bool) -> SamplesFile | None:
    """The same of the samples file alone, which is there."""
    try:
        old = SamplesFile(path)
    except ValueError as e:
        check_is_samples(path)
        if overwrite:
            return None
        raise ValueError(f"{e}; choose another sampling.outdir, or draw anew by sampling.overwrite=true") from e
    had, wanted = old.meta.made_of, meta.made_of
    if overwrite and had != wanted:
        return None
    by = f"its noise was drawn by sampling.noise={shown(old.meta.noise)}; " if old.meta.noise != meta.noise else ""
    check_alike(f"{path} was drawn with", had, wanted,
                f"{by}choose another sampling.outdir, or draw anew by sampling.overwrite=true")
    return old


def check_is_samples(path: Path) -> None:
    """ValueError for a file that is not even a damaged samples file, and is not overwritten."""
    try:
        if path.suffix == ".h5":
            h5.check_holds(path, "samples")
        elif lacking := {"seeds", "content_hash"} - set(npz_names(path)):
            raise ValueError(f"{path}: not a samples file: no {listed(sorted(lacking))} in it")
    except ValueError as e:
        raise ValueError(f"{e}; nothing of another kind is overwritten: delete it, or choose another "
                         "sampling.outdir") from e


def draw_missing(drawer: Drawer, missing: list[int], parts: Parts, batch_size: int, log: RunLog, path: Path) -> None:
    """Draw this rank's share of the seeds, batch by batch; say by how much tiles differ in the first.

    ValueError naming the snapshot (path) for what is not finite.
    """
    def drawn(batch: list[int], _: None) -> list[dict[str, np.ndarray]]:
        arrays = draw_kept(drawer, batch)
        if odd := [name for name, array in arrays.items() if is_odd(name, array)]:
            seeds = drawer.conditions.seeds(batch)
            raise ValueError(f"{path}: what it draws for seeds {seeds[0]} to {seeds[-1]} is not finite "
                             f"({listed(odd)}): its network has diverged or is damaged, or "
                             "what is asked for (guidance, attributes) is far from all that it was trained on")
        if drawer.whole is not None and batch[0] == missing[0]:
            log(tiles_differ(drawer, arrays))
        return [{name: array[i] for name, array in arrays.items()} for i in range(len(batch))]

    make_missing(parts, missing, batch_size, drawn, read=lambda batch: None, desc="generate", unit="sample")


def tiles_differ(drawer: Drawer, arrays: dict[str, np.ndarray]) -> str:
    """By how much the first of samples, decoded in tiles and not refined, differs from the whole."""
    latents, semantic = (torch.from_numpy(arrays[k][:1]).to(drawer.device) if k in arrays else None
                         for k in ("latents", "maps"))
    return tile_note(drawer.whole, latents, *drawer.first_stage.decode(latents, semantic), semantic)


def check_part(drawer: Drawer, _: int, arrays: Arrays) -> None:
    """ValueError for arrays that cannot have been drawn."""
    drawn, any_image, coding = drawer.shape, (None,) * len(drawer.shape), drawer.label_coding
    image = any_image if drawer.latent else (drawn[0] - (coding.channels if coding else 0), *drawn[1:])
    images = {} if drawer.latent and drawer.first_stage is None else {"images": image}
    check_shapes(arrays, {**images, **({"latents": drawn} if drawer.latent else {}),
                          **({"trajectory": (None, *drawn)} if drawer.trajectory else {})})
    maps = {"labels": arrays["images"].shape[1:]} if images and (coding or "labels" in arrays) else {}
    checked = {"attempts": (), "flagged": ()} if drawer.quality else {}
    check_shapes(arrays, maps | checked | drawer.conditions.shapes())
    for name, array in arrays.items():
        if name not in ARRAYS or (array.dtype.kind == "f") != (np.dtype(ARRAYS[name]).kind == "f"):
            raise ValueError(f"{name} of {array.dtype} is nothing that is drawn")


def merge(target: Path, old: SamplesFile | None, parts: Parts, new: list[int], meta: SampleMeta) -> SamplesFile:
    """One file in seed order from the samples that were there and the new seeds' parts, with one row in memory."""
    if new:
        fresh, seeds = set(new), sorted({*new, *(old.rows if old else ())})

        def row(name: str, index: int) -> np.ndarray:
            seed = seeds[index]
            return parts.read(seed, name)[name] if seed in fresh else old.row(name, old.rows[seed])

        names = parts.names(new)
        if old and set(names) - {"seeds", "affine"} != set(old.names):
            raise ValueError(f"{old.path}: holds {listed(old.names)}, and what is drawn now is {listed(names)}; choose "
                             "another sampling.outdir, or draw anew by sampling.overwrite=true")
        write_rows(target, seeds, names, row, np.asarray(meta.facts.affine), meta)
    parts.remove()
    return SamplesFile(target) if new else old


def write_pictures(outdir: Path, samples: SamplesFile, snapshot: Snapshot, options: Sampling,
                   scans: Scans | None = None) -> Iterator[str]:
    """Files of every seed, and the montage of real above generated, as far as there are images; a line on each."""
    yield from clear_others(outdir, samples.meta)
    yield from write_asked(outdir, samples)
    if "images" not in samples.names:
        return
    yield from write_enhanced(outdir, samples, scans, records(outdir, samples.meta)["enhanced"])
    dims = len(samples.shape("images")) - 2
    if options.nifti and dims > 1:
        yield from write_niftis(outdir, samples)
        yield f"NIfTI     {outdir / 'nifti'}"
    elif options.nifti:
        yield "NIfTI     none: it holds images and volumes, these are signals (1D)"
    if options.format == PNG:
        yield from write_pngs(outdir, samples)
        yield f"PNG       {outdir / 'png'}"
    if options.gif:
        yield from write_gif(outdir / "samples.gif", samples, snapshot, options, scans)
    if options.montage and scans is not None:
        write_scan_montage(outdir / "samples.png", samples, scans, options.montage)
        yield f"Montage   {outdir / 'samples.png'}"
    elif options.montage:
        why = write_montage(outdir / "samples.png", samples, snapshot, options)
        yield f"Montage   {outdir / 'samples.png'}" + (f"; without real volumes: {why}; name some by sampling.real="
                                                       "FILE.h5" if why else "")


def write_gif(path: Path, samples: SamplesFile, snapshot: Snapshot, options: Sampling, scans: Scans | None
              ) -> Iterator[str]:
    """A GIF of real volumes and the first samples, slice by slice, where there are slices; a line on it."""
    from edm3d.reporting.animations import MOST_BYTES, NO_SLICES, SHOWN, animation
    affine, dims, facts = samples.affine_of(0), len(samples.shape("images")) - 2, samples.meta.facts
    if dims == 1:
        yield f"GIF       none: {NO_SLICES}"
        return
    count = min(options.gif, len(samples), SHOWN[dims])
    real, why = ([], "") if scans else real_pictures(snapshot, options.real, count, options.trust)
    layout = Layout(facts.channels, facts.label_classes, tuple(spacing_of(affine)[:dims]), facts.intensity.lo,
                    facts.intensity.hi, facts.intensity.unit, affine)
    generated = [(samples.row("images", i), samples.row("labels", i)) for i in range(count)]
    with atomic_path(path) as temporary:
        temporary.write_bytes(animation([("Real", real), ("Generated", generated)], layout))
    yield (f"GIF       {path}: {count} samples, {'above' if real else 'without'} real volumes" + f" ({why})" * bool(why)
           + f", {MOST_BYTES / 1e6:g} MB at most")


def write_montage(path: Path, samples: SamplesFile, snapshot: Snapshot, options: Sampling) -> str:
    """A PNG of real volumes, what the first samples were asked for, and these; why there are no real ones, else ''."""
    from edm3d.reporting.montages import montage, save_png
    count, facts = min(options.montage, len(samples)), snapshot.facts
    rows = {name: [samples.row(name, i) for i in range(count)] for name in samples.names}
    real, why = real_pictures(snapshot, options.real, count, options.trust)
    generated = list(zip(rows["images"], rows.get("labels", [None] * count), strict=True))
    affine, dims = samples.affine_of(0), len(samples.shape("images")) - 2
    save_png(montage([("Real", real), ("Generated", generated)], spacing_of(affine)[:dims], affine=affine,
                     label_classes=facts.label_classes, channels=facts.channels, asked=Asked.of(facts, rows),
                     captions=captions(samples.meta, samples.seeds[:count], rows.get("classes"),
                                       rows.get("attributes"))), path)
    return why
