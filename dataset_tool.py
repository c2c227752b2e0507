"""Data and files, no learning: python dataset_tool.py COMMAND --help"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edm3d.utils.checks import listed
from edm3d.utils.command_line import PATH, Tool, Words, WordsCommand


@click.group(cls=Tool, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks; before the command.")
def main(debug: bool) -> None:
    """Make, convert and inspect the files that training and sampling use."""


# ---- options that commands share ----


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


# ---- phantom ----


@main.command(cls=WordsCommand)
@click.option("--dest", required=True, type=PATH, help="File to write (.h5).")
@click.option("--num", default=640, show_default=True, type=click.IntRange(min=1), help="Number of phantoms.")
@click.option("--size", default=32, show_default=True, type=int, help="Voxels along each axis of the 128 mm cube.")
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Which endless set of phantoms; also of the split."
)
@click.option("--spatial-dims", default=3, show_default=True, type=int, help="2: slices of the same anatomy.")
@click.option("--pairs", is_flag=True, help="End-diastole and end-systole of each patient, as classes ED and ES.")
@click.option(
    "--split", default=(0.8, 0.1, 0.1), show_default=True, type=Words(float), help="Fractions train val test."
)
@click.option("--overwrite", is_flag=True, help="Draw anew over a file of other contents.")
def phantom(dest: Path, overwrite: bool, **options: Any) -> None:
    """Draw analytic 3D echo phantoms of the left heart with exact labels and attributes.

    Where the same phantoms are there already, nothing is done.
    """
    from edm3d.inference.phantoms import PhantomOptions, draw_phantoms

    made = PhantomOptions(**options)
    drawn = draw_phantoms(dest, made, overwrite)
    click.echo(f"{dest}: {made.num} phantoms" if drawn else f"{dest}: all {made.num} phantoms there already")


# ---- prepare ----


@main.command(cls=WordsCommand)
@click.option("--images", type=PATH, help="Folder of .nii, .nii.gz, .npy or .npz files.")
@click.option("--labels", type=PATH, help="Folder of label maps of the same names (without channel numbers _0000).")
@click.option("--image-pattern", help="What images are called without suffix, as in '{id}_t1'; by '{id}_{channel}' "
              "those of an id become channels.")
@click.option("--label-pattern", help="What label maps are called, as in '{id}_seg'; these may lie among the images.")
@click.option("--decathlon", type=PATH, help="Instead of folders: a Medical Decathlon task, by its dataset.json.")
@click.option("--images-only", is_flag=True, help="Leave the label maps of the task aside.")
@click.option("--dest", required=True, type=PATH, help="File to write (.h5).")
@click.option("--table", type=PATH, help="CSV: id, [group, class, split], and attributes with their unit: 'age [y]'.")
@click.option("--size", type=Words(int), help="Voxels per axis, first axis of the array first (after "
              "--orientation): pad or crop centrally.")
@click.option("--fit", type=Words(int), help="Voxels per axis, in the order of --size: shrink all axes by one "
              "factor (never enlarge), pad.")
@click.option("--spacing", type=Words(float), help="mm per axis, in the order of --size: resample (splines; "
              "labels nearest).")
@click.option("--orientation", help="Where the axes point to, such as RAS: the first to the right, the second "
              "anterior, the third superior. Turns volumes before --spacing and --size.")
@click.option("--percentiles", type=Words(float), help="Scale each volume's own percentiles to 0..1, as in 0 99.5.")
@click.option("--range", "value_range", type=Words(float), help="Values that networks see as -1 and 1, as in 0 255.  "
              "[default: lowest and highest of the training volumes]")
@click.option("--clip/--no-clip", default=True, show_default=True, help="To --percentiles or --range.")
@click.option(
    "--split", default=(0.8, 0.1, 0.1), show_default=True, type=Words(float), help="Fractions train val test."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Of the split.")
@click.option("--spatial-dims", type=int, help="2 or 3; by default as --size or the first image says.")
@click.option("--classes", default=(), type=Words(str), help="Names of the label values, background first.")
@click.option("--channels", default=(), type=Words(str), help="Names of all image channels of the files.")
@click.option("--channel", default=(), type=Words(str), help="Those to keep, by name or number.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Write over a file that is there.")
def prepare(images: Path | None, labels: Path | None, decathlon: Path | None, dest: Path, table: Path | None,
            overwrite: bool, **options: Any) -> None:
    """Make a volumes file of folders of NIfTI, npy or npz files, or of a Medical Decathlon task.

    Images and label maps are paired by name, or by what patterns call {id}. NIfTI has channels on the fourth axis, npy
    and npz on an extra first one.
    """
    from edm3d.formats.prepare import PrepareOptions
    from edm3d.formats.prepare import prepare as run
    from edm3d.utils.files import check_dest

    check_dest(dest, overwrite)
    made = run(images, labels, dest, PrepareOptions(**options), table=table, decathlon=decathlon)
    if made.table and made.table.ignored:
        click.echo(f"{table}: columns without numbers left out: {listed(made.table.ignored)}")
    for note in made.notes:
        click.echo(note)
    click.echo(f"{dest}: {', '.join(f'{split} {count}' for split, count in made.counts.items())}")


# ---- encode ----


@main.command(cls=WordsCommand)
@click.option("--autoencoder", required=True, help="Experiment name (its newest run), run folder or snapshot.")
@click.option("--source", required=True, type=PATH, help="Volumes file (.h5).")
@click.option("--dest", required=True, type=PATH, help="Latents file to write (.h5).")
@click.option("--size", type=Words(int), help="Voxels per axis, first axis of the array first: pad or crop "
              "centrally before encoding.")
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


@main.command(cls=WordsCommand)
@click.option("--latents", required=True, type=PATH, help="Samples or latents file, ours or DIFF-3's (.h5, .npz).")
@click.option("--dest", required=True, type=PATH, help="Volumes file to write (.h5), or a folder for NIfTI.")
@click.option("--autoencoder", help="Experiment name, run folder or snapshot.  [default: what the latents name]")
@click.option("--network", help="The same, of the diffusion run that drew them.  [default: what the latents name]")
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


# ---- import-edm ----


@main.command("import-edm")
@click.argument("source", metavar="FILE.pkl", type=PATH)
@click.option("--dest", required=True, type=PATH, help="Snapshot to write (.pt).")
@click.option("--inflate", type=click.Choice(["3"]), help="Make a 3D network of the 2D one, as a start for training.")
@click.option("--inflate-mode", type=click.Choice(["centre", "mean"]), help="Of the kernels.  [default: centre]")
def import_edm(source: Path, dest: Path, inflate: str | None, inflate_mode: str | None) -> None:
    """Make a snapshot of an official EDM network pickle. The file is read as data, nothing in it is ever run."""
    if inflate_mode and not inflate:
        raise click.UsageError(f"--inflate-mode {inflate_mode}: there is nothing to inflate without --inflate 3")
    from edm3d.inference.edm_snapshot import import_edm as run

    made = run(source, dest, (inflate_mode or "centre") if inflate else None)
    size = "x".join(map(str, made.shape[1:]))
    click.echo(
        f"{source}: {made.class_name} of {made.model_name}, {made.shape[0]} channels, {made.classes} classes, "
        f"{made.weights / 1e6:.2f} M weights in {made.tensors} tensors"
    )
    if inflate:
        click.echo(
            f"{dest}: 3D network for {size}, a start for training (training.options.init_from={dest}); what it draws "
            "has no meaning yet"
        )
    else:
        click.echo(f"{dest}: draws images of {size}; python generate.py -cn=EXPERIMENT sampling.network={dest}")
    click.echo(f"The same network in an experiment: {shlex.join(made.overrides())}")


# ---- plan ----


@main.command(cls=WordsCommand)
@click.option("-cn", "--config-name", required=True, help="Experiment: the name of a YAML in configs/.")
@click.option("--config-dir", type=PATH, help="Folder of experiments and groups of your own, searched first.")
@click.option("--shape", type=Words(int), help="Channels and voxels per axis, first axis of the array first, of "
              "an item whose file is not there yet.")
@click.option("--classes", default=0, show_default=True, type=click.IntRange(min=0), help="Label classes, likewise.")
@click.option("--card", type=click.FloatRange(min=0, min_open=True), help="GiB that there are: say what would fit.")
@click.option("--fit", type=click.Choice(["width", "batch", "size"]),
              help="With --card: the widest network, the largest batch or the largest items that fit it.")
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(min=1), help="Processes that share a batch.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.argument("overrides", nargs=-1)
def plan(config_name: str, config_dir: Path | None, shape: Sequence[int] | None, classes: int, card: float | None,
         fit: str | None, ranks: int, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Predict parameters, FLOPs and peak memory of a training step and of decoding; nothing is trained.

    OVERRIDES are those of train.py, key=value, and stand before --shape. --fit prints the override to type.
    """
    import json

    from edm3d.training import fit as fits
    from edm3d.training import plan_fit
    from edm3d.training.plan import find_source
    from edm3d.utils.compose import compose

    if fit and not card:
        raise ValueError(f"--fit {fit}: wanted --card as well, the GiB that there are")
    config = compose(config_name, overrides, config_dir)
    source = find_source(config["training"], shape, classes)
    made = fits.fit(config, source, fit, card, ranks) if fit else plan_fit.plan(config, source, card, ranks)
    say = fits if fit else plan_fit
    if as_json:
        click.echo(json.dumps(say.plain(made, config_name, source, card)))
    else:
        for line in say.lines(made, config_name, source, card):
            click.echo(line)


# ---- propose ----


@main.command()
@click.argument("path", metavar="FILE.h5", type=PATH)
@click.option("--dest", required=True, type=PATH, help="Diffusion experiment to write (.yaml); the first stage's lies "
              "beside it, NAME_vae.yaml.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True),
              help="GiB to plan for.  [default: those of the card, or free in this machine]")
@click.option("--device", type=click.Choice(["cuda", "cpu"]),
              help="What they are of.  [default: cuda with --memory or where there is a card]")
@click.option("--overwrite", is_flag=True, help="Replace experiments that are there.")
def propose(path: Path, dest: Path, **options: Any) -> None:
    """Write a first-stage and a diffusion experiment that fit a volumes file and the memory; say what to run next.

    Sizes, strides, widths, batch and precision are chosen by plan after plan; a comment beside each says why.
    """
    from edm3d.training.proposed import write

    for line in write(path, dest, **options):
        click.echo(line)


# ---- check, info ----


@main.command()
@click.argument("path", type=PATH)
def check(path: Path) -> None:
    """Read a file, or all files below a folder: what is in them, and what is wrong (exit code 1)."""
    from edm3d.formats.describe import check as run

    if path.suffix == ".pt" and path.is_file():
        raise ValueError(
            f"{path}: check reads data files; python dataset_tool.py info {path} says what this one holds, and every "
            "program that reads it compares its checksum"
        )
    report = run(path)
    for line in report.lines:
        click.echo(line)
    for problem in report.problems:
        click.echo(f"BAD {problem}", err=True)
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("path", type=PATH)
def info(path: Path) -> None:
    """Print what a file holds: .h5, .npz, .npy, NIfTI, snapshot or training state (.pt)."""
    from edm3d.formats.describe import describe

    for line in describe(path):
        click.echo(line)


# ---- export ----


@main.command()
@click.argument("path", type=PATH)
@click.option("--format", "kind", required=True, type=click.Choice(["nifti", "png"]), help="Of the files.")
@click.option("--dest", required=True, type=PATH, help="Folder to write to.")
@click.option("--split", help="Only this split of a volumes file.")
@click.option("--indices", help="Only these: rows of each split of a volumes file, seeds of a samples file (0-7,12).")
def export(path: Path, kind: str, dest: Path, split: str | None, indices: str | None) -> None:
    """Write the volumes of a volumes or samples file out, with their true affines.

    NIfTI goes to DEST/images and DEST/labels, as `prepare` reads it; PNG shows three planes, without the label map and
    with it.
    """
    from edm3d.inference.export import export as run

    click.echo(f"{dest}: {run(path, kind, dest, split, indices)} volumes")


# ---- publish ----


@main.command()
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
    run(snapshot, dest, PublishOptions(Said(**said), **options), str(run_root))
    click.echo(f"{dest}: {', '.join(sorted(path.name for path in dest.iterdir()))}")


# ---- solvers ----


@main.command(cls=WordsCommand)
@click.argument("network")
@click.option("--samplers", default=("edm_ode", "multistep", "ddim"), show_default=True, type=Words(str),
              help="Names of configs/sampler/.")
@click.option("--steps", default=(6, 9, 12, 18, 35), show_default=True, type=Words(int), help="Numbers of steps.")
@click.option("--seeds", default="0-3", show_default=True, help="Volumes to draw by each, one at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are looked for by name.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "auto"]))
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
def solvers(network: str, samplers: Sequence[str], steps: Sequence[int], seeds: str, as_json: bool, run_root: Path,
            **options: Any) -> None:
    """Say what samplers cost NETWORK (a name, run folder or snapshot), and how far they end from the exact solution.

    Stand NETWORK before --samplers and --steps. Decoding is left out: it costs the same after every sampler.
    """
    import json

    from edm3d.formats.samples import requested_seeds
    from edm3d.inference.model import Model
    from edm3d.inference.solvers import table, try_solvers

    model = Model.load(network, run_root=str(run_root), **options)
    rows = list(try_solvers(model, samplers, steps, requested_seeds(seeds)))
    for line in [json.dumps([row._asdict() for row in rows])] if as_json else table(rows):
        click.echo(line)


# ---- doctor ----


@main.command()
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are to go.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
def doctor(run_root: Path, device: str) -> None:
    """Say whether edm3d works on this machine: versions, device, disk, arithmetic, and a toy road of some seconds.

    To paste into a bug report. Exit code 1 where something fails.
    """
    from edm3d.training.doctor import examine

    passed = True
    for name, well, text in examine(run_root, device):
        click.echo(f"{'pass' if well else 'FAIL'}  {name:<12} {text}")
        passed &= well
    if not passed:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
