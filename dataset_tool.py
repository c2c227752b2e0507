"""Data and files, no learning: python dataset_tool.py COMMAND --help"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edm3d.inference.commands import decode, encode, publish, segment, solvers, tune_grid
from edm3d.utils.checks import listed
from edm3d.utils.command_line import PATH, Tool, Words, WordsCommand
from edm3d.utils.commands import command
from edm3d.utils.terminal import printing_is_all


@click.group(cls=Tool, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks; before the command.")
def main(debug: bool) -> None:
    """Make, convert and inspect the files that training and sampling use."""


for each in (encode, decode, segment, publish, solvers, tune_grid):
    main.add_command(each)


# ---- phantom ----


@main.command(cls=WordsCommand)
@click.option("--dest", required=True, type=PATH, help="File to write (.h5).")
@click.option("--kind", default="echo", show_default=True, help="echo: 3D echo of the left heart; cardiac: short-axis "
              "stacks of cine MR at end-diastole and end-systole.")
@click.option("--num", default=640, show_default=True, type=click.IntRange(min=1), help="Number of phantoms.")
@click.option("--size", type=Words(int), help="Voxels along each axis of the 128 mm cube of an echo, or slices, rows "
              "and columns of a stack.  [default: 32, or 13 96 96]")
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Which endless set of phantoms; also of the split."
)
@click.option("--spatial-dims", type=int, help="Of echo; 2: slices of the same anatomy.  [default: 3]")
@click.option("--pairs", is_flag=True, help="Of echo: end-diastole and end-systole of each patient, as classes ED and "
              "ES, as stacks have them anyway.")
@click.option("--style", help="Of stacks, public or private: two scanners.  [default: public]")
@click.option("--missing", default=0.0, show_default=True, type=float, help="Share of the attributes' values to hide.")
@click.option(
    "--split", default=(0.8, 0.1, 0.1), show_default=True, type=Words(float), help="Fractions train val test."
)
@click.option("--overwrite", is_flag=True, help="Draw anew over a file of other contents.")
def phantom(dest: Path, kind: str, num: int, size: tuple[int, ...] | None, seed: int, missing: float,
            split: tuple[float, ...], overwrite: bool, **given: Any) -> None:
    """Draw analytic phantoms of the heart with exact labels and attributes.

    Where the same phantoms are there already, nothing is done.
    """
    from edm3d.inference.phantoms import PhantomOptions, draw_phantoms, source_of

    made = PhantomOptions(num, seed, split, kind, source_of(kind, size, **given), missing)
    drawn = draw_phantoms(dest, made, overwrite)
    click.echo(f"{dest}: {made.num} phantoms" if drawn else f"{dest}: all {made.num} phantoms there already")


@main.command("pet-phantom", cls=WordsCommand)
@click.option("--dest", required=True, type=PATH, help="File to write (.npz).")
@click.option("--subjects", default=24, show_default=True, type=click.IntRange(min=1), help="Heads.")
@click.option("--slices", default=12, show_default=True, type=click.IntRange(min=1), help="Slices of each.")
@click.option("--size", default=64, show_default=True, type=click.IntRange(min=8), help="Pixels along each side.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which endless set of heads.")
@click.option("--kind", default="brain", show_default=True, type=click.Choice(["brain", "ellipses"]),
              help="Brains, or heads of one activity with ellipses in them.")
@click.option("--overwrite", is_flag=True, help="Draw anew over a file of other contents.")
def pet_phantom(dest: Path, overwrite: bool, **options: Any) -> None:
    """Draw analytic PET phantoms: activities of heads in slices, of which scans are simulated.

    Where the same phantoms are there already, nothing is done.
    """
    from edm3d.inference.pet_phantoms import PetPhantomOptions, draw_pet_phantoms

    made = PetPhantomOptions(**options)
    drawn, count = draw_pet_phantoms(dest, made, overwrite), made.subjects * made.slices
    click.echo(f"{dest}: {count} slices of {made.subjects} heads" + ("" if drawn else ", there already"))


# ---- prepare ----


@main.command(cls=WordsCommand)
@click.option("--images", type=PATH, help="Folder of .nii, .nii.gz, .npy, .npz or .png files.")
@click.option("--labels", type=PATH, help="Folder of label maps of the same names (without channel numbers _0000).")
@click.option("--maps", type=PATH, help="Folder of second label maps, with classes of their own: to draw from.")
@click.option("--image-pattern", help="What images are called without suffix, as in '{id}_t1'; by '{id}_{channel}' "
              "those of an id become channels, by '{id}_{class}' or '{class}/{id}' names say the class.")
@click.option("--label-pattern", help="What label maps are called, as in '{id}_seg'; these may lie among the images.")
@click.option("--map-pattern", help="What maps are called, likewise.")
@click.option("--decathlon", type=PATH, help="Instead of folders: a Medical Decathlon task, by its dataset.json.")
@click.option("--index", type=PATH, help="Instead of folders: one whose training.npy, validation.npy and testing.npy "
              "name samples (.npz with image and labels).")
@click.option("--attributes", default=(), type=Words(str), help="Names of the numbers in labels of --index, with their "
              "unit: 'AGE [y]'.  [default: LVEDV, LVESV, ...; 14 of cardiac stacks]")
@click.option("--images-only", is_flag=True, help="Leave the label maps of the task, or of --index, aside.")
@click.option("--dest", required=True, type=PATH, help="File to write (.h5).")
@click.option("--table", type=PATH, help="CSV: id, [group, class, split], and attributes with their unit: 'age [y]'.")
@click.option("--size", type=Words(int), help="Voxels per axis, first axis of the array first (after "
              "--orientation): pad or crop centrally.")
@click.option("--fit", type=Words(int), help="Voxels per axis, in the order of --size: shrink all axes by one "
              "factor (never enlarge), pad.")
@click.option("--spacing", type=Words(float), help="mm per axis, in the order of --size: resample (splines; "
              "labels nearest). With --index: of samples that do not say it.")
@click.option("--find-padding", is_flag=True, help="Flat slices at the ends of the first axis are padding, and noted "
              "as such; always with --index.")
@click.option("--antialias/--no-antialias", default=True, show_default=True, help="Blur images before --spacing or "
              "--fit makes their voxels larger.")
@click.option("--max-label-loss", default=0.01, show_default=True, type=float, help="Share of a label map that may be "
              "lost where it lies on another grid than its image.")
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
@click.option("--map-classes", default=(), type=Words(str), help="Names of the values of --maps, background first.")
@click.option("--class-names", default=(), type=Words(str), help="Names of the class numbers in a dataset.json "
              "beside or above the images, or of what {class} may be.")
@click.option("--channels", default=(), type=Words(str), help="Names of all image channels of the files.")
@click.option("--channel", default=(), type=Words(str), help="Those to keep, by name or number.  [default: all]")
@click.option("--condition-channels", default=(), type=Words(str), help="Those that a network is shown and does not "
              "draw, by name or number.")
@click.option("--pixel-spacing", type=Words(float), help="mm per row and column of 2D files that do not say it (PNG, "
              "npy).")
@click.option("--spacing-attributes", is_flag=True, help="Write voxel size and field of view as attributes.")
@click.option("--overwrite", is_flag=True, help="Write over a file that is there.")
def prepare(images: Path | None, labels: Path | None, maps: Path | None, decathlon: Path | None,
            index: Path | None, dest: Path, table: Path | None, overwrite: bool, **options: Any) -> None:
    """Make a volumes file of folders of NIfTI, npy, npz or PNG files, of a Medical Decathlon task, or of index files.

    Images, label maps and maps, also in subfolders, are paired by name, or by what patterns call {id}. NIfTI has
    channels on the fourth axis, npy and npz on an extra first one. Subfolders training, validation and testing are the
    splits.
    """
    from edm3d.formats.prepare import PrepareOptions
    from edm3d.formats.prepare import prepare as run
    from edm3d.utils import locks
    from edm3d.utils.files import check_dest

    check_dest(dest, ".h5", {"--images": images, "--labels": labels, "--maps": maps, "--decathlon": decathlon,
                               "--index": index, "--table": table})
    with locks.output(dest):
        made = run(images, labels, dest, PrepareOptions(**options), maps=maps, table=table, decathlon=decathlon,
                   index=index, overwrite=overwrite)
    if made.table and made.table.ignored:
        click.echo(f"{table}: columns without numbers left out: {listed(made.table.ignored)}")
    for note in made.notes:
        click.echo(note)
    click.echo(f"{dest}: {', '.join(f'{split} {count}' for split, count in made.counts.items())}"
               + ("" if made.written else ", made of these files by these options, there already"))


# ---- import-edm ----


@main.command("import-edm")
@click.argument("source", metavar="FILE.pkl", type=PATH)
@click.option("--dest", required=True, type=PATH, help="Snapshot to write (.pt).")
@click.option("--inflate", type=click.Choice(["3"]), help="Make a 3D network of the 2D one, as a start for training.")
@click.option("--inflate-mode", type=click.Choice(["centre", "mean"]), help="Of the kernels.  [default: centre]")
@click.option("--overwrite", is_flag=True, help="Replace another snapshot that is there.")
def import_edm(source: Path, dest: Path, inflate: str | None, inflate_mode: str | None, overwrite: bool) -> None:
    """Make a snapshot of an official EDM network pickle. The file is read as data, nothing in it is ever run."""
    if inflate_mode and not inflate:
        raise click.UsageError(f"--inflate-mode {inflate_mode}: there is nothing to inflate without --inflate 3")
    from edm3d.inference.edm_snapshot import import_edm as run

    made = run(source, dest, (inflate_mode or "centre") if inflate else None, overwrite)
    size = "x".join(map(str, made.shape[1:]))
    click.echo(
        f"{source}: {made.class_name} of {made.model_name}, {made.shape[0]} channels, {made.classes} classes, "
        f"{made.weights / 1e6:.2f} M weights in {made.tensors} tensors"
    )
    if not made.written:
        click.echo(f"{dest}: made of this file in this way, there already")
    if inflate:
        click.echo(
            f"{dest}: 3D network for {size}, a start for training (training.options.init_from={dest}); what it draws "
            "has no meaning yet"
        )
    else:
        click.echo(f"{dest}: draws images of {size}; "
                   f"{command('generate', '-cn=EXPERIMENT', f'sampling.network={dest}')}")
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

    OVERRIDES are those of train, key=value, and stand before --shape. --fit prints the override to type.
    """
    import json

    from edm3d.training import fit as fits
    from edm3d.training import plan_fit
    from edm3d.training.plan import find_source
    from edm3d.utils.compose import compose

    printing_is_all()
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
@click.option("--overwrite", is_flag=True, help="Replace other proposed experiments that are there.")
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
@click.option("--trust", is_flag=True, help="Build networks of your own, which a snapshot names, to see whether its "
              "weights fit.")
def check(path: Path, trust: bool) -> None:
    """Read a file of any kind, or all files below a folder: what is in them, and what is wrong (exit code 1)."""
    from edm3d.inference.check import check as run

    printing_is_all()
    report = run(path, trust)
    for line in report.lines:
        click.echo(line)
    for problem in report.problems:
        click.echo(f"BAD {problem}", err=True)
    if report.problems:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("path", type=PATH)
def info(path: Path) -> None:
    """Print what a file holds: .h5, .npz, .npy, NIfTI, PNG, .pt, .pkl, JSON, YAML; or the folder of a run.

    Or the folder of a published network.
    """
    from edm3d.formats.describe import describe

    printing_is_all()
    for line in describe(path):
        click.echo(line)
    if path.is_dir() or path.suffix == ".pt":
        from edm3d.inference.told import said_of_networks  # torch takes seconds, and other files do without

        for line in said_of_networks(path):
            click.echo(line)


# ---- export ----


@main.command()
@click.argument("path", type=PATH)
@click.option("--format", "kind", required=True, type=click.Choice(["nifti", "png"]), help="Of the files.")
@click.option("--dest", required=True, type=PATH, help="Folder to write to.")
@click.option("--split", help="Only this split of a volumes file.")
@click.option("--indices", help="Only these: rows of each split of a volumes file, seeds of a samples file (0-7,12).")
@click.option("--overwrite", is_flag=True, help="Export over another export, of which nothing stays.")
def export(path: Path, kind: str, dest: Path, **options: Any) -> None:
    """Write the volumes of a volumes or samples file out, with their true affines.

    NIfTI goes to DEST/images and DEST/labels, as `prepare` reads it; PNG shows three planes, without the label map and
    with it.
    """
    from edm3d.inference.export import export as run

    for line in run(path, kind, dest, **options):
        click.echo(line)


# ---- privacy ----


@main.command("privacy-ledger")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--delta", type=float, help="Of all of them; the largest that they state by default.")
def privacy_ledger(paths: Sequence[Path], delta: float | None) -> None:
    """Say what private trainings have spent, each and together, of the people that are in the data of all of them.

    PATHS: run folders, their privacy.json, training states, snapshots, latents or samples. What they stand on, as a
    first stage that was trained privately, counts as well.
    """
    from edm3d.training.private.composing import composed

    printing_is_all()
    for line in composed(paths, delta):
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

    printing_is_all()
    passed = True
    for name, well, text in examine(run_root, device):
        click.echo(f"{'pass' if well else 'FAIL'}  {name:<12} {text}")
        passed &= well
    if not passed:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
