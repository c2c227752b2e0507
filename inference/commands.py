"""The commands of dataset_tool.py that run or pass on a trained network: encode, decode, segment, publish, ..."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edm3d.utils.command_line import PATH, Words, WordsCommand
from edm3d.utils.terminal import printing_is_all

Decorator = Callable[[Callable], Callable]


def tile_options(verb: str) -> Decorator:
    """The options of tiles, which a command gets as one value, `tiles` (None: whole volumes)."""
    add = all_of(
        click.option("--tile", type=Words(int),
                     help=f"Voxels per axis, first axis of the array first: {verb} in tiles of this size.  "
                          "[default: whole]"),
        click.option("--tile-overlap", default=0.25, show_default=True, type=float,
                     help="Of neighbouring tiles, a share."),
        click.option("--tile-mode", default="blend", show_default=True,
                     help="blend, or exact (as the whole; in slabs)."))

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def with_tiles(**options: Any) -> None:
            from edm3d.inference.first_stage import tiles_of

            tiles = {name: options.pop(name) for name in ("tile", "tile_overlap", "tile_mode")}
            command(tiles=tiles_of(tiles), **options)

        return add(with_tiles)

    return decorate


def work_options(batch_size: int, overwrite: str) -> Decorator:
    """The options of a command that takes all volumes of a file through a network."""
    return all_of(
        click.option("--batch-size", default=batch_size, show_default=True, type=click.IntRange(min=1),
                     help="Volumes at a time."),
        click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "auto"])),
        click.option("--num-threads", default=0, show_default=True, type=click.IntRange(min=0),
                     help="0: OMP_NUM_THREADS, or share the cores."),
        click.option("--overwrite", is_flag=True, help=overwrite),
        click.option("--run-root", default="results", show_default=True, type=PATH,
                     help="Where runs are looked for by name."),
        click.option("--trust", is_flag=True,
                     help="Let the snapshot build classes that are not on the list of known ones."))


def all_of(*decorators: Decorator) -> Decorator:
    """Decorators as one; the first stands uppermost."""
    return lambda command: functools.reduce(lambda made, decorate: decorate(made), reversed(decorators), command)


# ---- encode ----


@click.command(cls=WordsCommand)
@click.option("--autoencoder", required=True, help="Experiment name (its newest run), run folder or snapshot.")
@click.option("--source", required=True, type=PATH, help="Volumes file (.h5).")
@click.option("--dest", required=True, type=PATH, help="Latents file to write (.h5).")
@click.option("--size", type=Words(int), help="Voxels per axis, first axis of the array first: pad or crop "
              "centrally before encoding.  [default: as the autoencoder's data set did]")
@click.option("--scaling", default="standardize", show_default=True, help="How diffusion is to scale the latents: "
              "standardize (per channel), minmax (all to -1..1) or scale_factor (all by 1 / std).")
@tile_options("encode")
@click.option("--round-trip", default=16, show_default=True, type=click.IntRange(min=0),
              help="Held-out volumes to decode again, to store what they lose.")
@work_options(8, overwrite="Encode anew over latents of other volumes, stages or settings.")
def encode(autoencoder: str, source: Path, dest: Path, run_root: Path, **options: Any) -> None:
    """Encode all volumes once: posterior mean and std of each, with the autoencoder in the same file.

    Under torchrun the ranks share the work. A run that was stopped goes on where it was, a second one does nothing.
    """
    from edm3d.inference.encode import EncodeOptions
    from edm3d.inference.encode import encode as run

    run(autoencoder, source, dest, EncodeOptions(**options), run_root)


# ---- decode ----


@click.command(cls=WordsCommand)
@click.option("--latents", required=True, type=PATH, help="Samples or latents file, ours or DIFF-3's (.h5, .npz).")
@click.option("--dest", required=True, type=PATH, help="Volumes file to write (.h5), or a folder for NIfTI.")
@click.option("--autoencoder", help="Experiment name, run folder or snapshot.  [default: what the latents name]")
@click.option("--network", help="The same, of the diffusion run that drew them.  [default: what the latents name]")
@click.option("--refiner", help="What refines the images: experiment name, run folder or snapshot.")
@tile_options("decode")
@click.option("--compare/--no-compare", default=True, show_default=True,
              help="Say by how much tiles differ from the whole; takes the memory of slabs.")
@click.option("--uint8", is_flag=True, help="Whole numbers 0 to 255 across the intensity range, compressed.")
@click.option("--montage", default=6, show_default=True, type=click.IntRange(min=0),
              help="Volumes in the picture beside them; 0: none.")
@work_options(1, overwrite="Decode anew over volumes of other latents, stages or settings.")
def decode(latents: Path, dest: Path, autoencoder: str | None, network: str | None, run_root: Path, **options: Any
           ) -> None:
    """Decode latents that were made earlier or elsewhere; those of another first stage are refused.

    Under torchrun the ranks share the work. A run that was stopped goes on where it was, a second one does nothing.
    """
    from edm3d.inference.decode import DecodeOptions
    from edm3d.inference.decode import decode as run

    run(latents, dest, DecodeOptions(**options), autoencoder=autoencoder, network=network, run_root=run_root)


# ---- segment ----


@click.command()
@click.option("--network", required=True, help="Segmenter: experiment name, run folder or snapshot.")
@click.option("--source", required=True, type=PATH, help="Volumes file, samples file (.h5, .npz), or a folder of .nii, "
              ".nii.gz, .npy, .npz or .png images.")
@click.option("--dest", required=True, type=PATH, help="File like the source to write (.h5), or a folder for NIfTI.")
@click.option("--split", help="Only this split of a volumes file.  [default: all]")
@click.option("--image-pattern", help="What the images of a folder are called without suffix, as in '{id}_t1'; by "
              "'{id}_{channel}' those of an id become channels.")
@click.option("--resample", is_flag=True, help="Show images to the network at the voxel size of its training; label "
              "maps come back to that of the image (nearest).")
@click.option("--montage", default=6, show_default=True, type=click.IntRange(min=0),
              help="Images in the picture beside the label maps; 0: none.")
@work_options(1, overwrite="Segment anew over label maps of other images, networks or settings, and over corrected "
              "ones.")
def segment(network: str, source: Path, dest: Path, run_root: Path, **options: Any) -> None:
    """Write label maps of images by a trained segmenter.

    Into a file like the source, with its label maps in place of those that are there, or as NIfTI, each on the voxels
    of its image. Images whose axes lie otherwise than in training are turned for the network. Under torchrun the ranks
    share the work. A run that was stopped goes on where it was, a second one does nothing.
    """
    from edm3d.inference.segment import SegmentOptions
    from edm3d.inference.segment import segment as run

    run(network, source, dest, SegmentOptions(**options), run_root)


# ---- publish ----


@click.command()
@click.argument("snapshot")
@click.option("--dest", required=True, type=PATH, help="Folder to write.")
@click.option("--licence", required=True, help="Of the weights, as model hubs name it: apache-2.0, other.")
@click.option("--title", default="", help="Of the card.  [default: the folder's name]")
@click.option("--data", default="", help="What the volumes are, whom they show, how they were acquired.")
@click.option("--data-licence", default="", help="Terms of the data.")
@click.option("--intended-use", help="A sentence or two.  [default: research, no diagnosis]")
@click.option("--report", type=PATH, help="A report.json of its samples: metrics of the card.")
@click.option("--volumes", type=PATH, help="The volumes file, if it is not where the snapshot says.")
@click.option("--autoencoder", help="First stage of a snapshot that does not carry it.")
@click.option("--overwrite", is_flag=True, help="Publish anew over what was published there.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are looked for by name.")
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
def publish(snapshot: str, dest: Path, run_root: Path, **options: Any) -> None:
    """Make a folder of SNAPSHOT (a name, run folder or file) that a model hub takes: safetensors, JSON and a card.

    edm3d.load(DEST) and sampling.network=DEST draw the same volumes from it, bit for bit.
    """
    from dataclasses import fields

    from edm3d.inference.card import Said
    from edm3d.inference.publish import PublishOptions
    from edm3d.inference.publish import publish as run

    said = {f.name: value for f in fields(Said) if (value := options.pop(f.name)) is not None}
    _, written = run(snapshot, dest, PublishOptions(Said(**said), **options), str(run_root))
    click.echo(f"{dest}: {', '.join(sorted(path.name for path in dest.iterdir()))}"
               + ("" if written else "; just so there already"))


# ---- solvers ----


@click.command(cls=WordsCommand)
@click.argument("network")
@click.option("--samplers", default=("edm_ode", "multistep", "ddim"), show_default=True, type=Words(str),
              help="Shipped ones, by name.")
@click.option("--steps", default=(6, 9, 12, 18, 35), show_default=True, type=Words(int), help="Numbers of steps.")
@click.option("--seeds", default="0-3", show_default=True, help="Volumes to draw by each, one at a time.")
@click.option("--real", type=PATH, help="Volumes file: say how far what is drawn is from real volumes as well.")
@click.option("--num", default=64, show_default=True, type=click.IntRange(min=2),
              help="Volumes to draw for that by each, and as many real ones.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Of these at a time.")
@click.option("--dest", type=PATH, help="Folder for solvers.json, .csv and .png.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are looked for by name.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "auto"]))
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
def solvers(network: str, samplers: Sequence[str], steps: Sequence[int], seeds: str, real: Path | None, num: int,
            batch_size: int, dest: Path | None, as_json: bool, run_root: Path, **options: Any) -> None:
    """Say what samplers cost NETWORK (a name, run folder or snapshot), and how far they end from the exact solution.

    Stand NETWORK before --samplers and --steps. Seconds are without decoding, which costs the same after every sampler.
    """
    import json

    from edm3d.formats.seeds import requested_seeds
    from edm3d.inference.model import Model
    from edm3d.inference.solvers import read_real, table, try_solvers, write_table
    from edm3d.utils.files import check_folder

    printing_is_all()
    if dest is not None:
        check_folder(dest, f"--dest {dest}")
    model = Model.load(network, run_root=str(run_root), **options)
    against = None if real is None else read_real(model, real, num, batch_size)
    rows = list(try_solvers(model, samplers, steps, requested_seeds(seeds), against))
    if dest is not None:
        write_table(dest, rows, against)
    for line in [json.dumps([row._asdict() for row in rows])] if as_json else table(rows, against):
        click.echo(line)


# ---- tune-grid ----


@click.command("tune-grid", cls=WordsCommand)
@click.argument("snapshot")
@click.option("--dest", required=True, type=PATH, help="Snapshot to write (.pt): a copy that has the levels as well.")
@click.option("--sampler", default="ipndm", show_default=True, help="Shipped one, by name.")
@click.option("--steps", default=(8,), show_default=True, type=Words(int), help="Numbers of steps; levels for each.")
@click.option("--seeds", default="0-7", show_default=True, help="To tune on.")
@click.option("--held-out", default="8-23", show_default=True, help="Seeds on which the result is measured again.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Seeds at a time.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1),
              help="Of the search, at most; one draws the seeds about steps + 2 times.")
@click.option("--overwrite", is_flag=True, help="Write over another snapshot that is there.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are looked for by name.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "auto"]))
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
def tune_grid(snapshot: str, dest: Path, run_root: Path, device: str, precision: str, trust: bool, **options: Any
              ) -> None:
    """Choose the noise levels of a sampler of few steps for SNAPSHOT (a name, run folder or file), and store them.

    They are those by which it ends nearest to the exact solution of the same noise. The copy draws by them where
    sampling.sampler.grid=tuned asks for it.
    """
    from edm3d.inference.tuned_grids import TuneOptions, tune_snapshot

    for grid in tune_snapshot(snapshot, dest, TuneOptions(**options), run_root=str(run_root), device=device,
                              precision=precision, trust=trust):
        click.echo(grid.line())
    click.echo(f"{dest}: a copy that has them")
