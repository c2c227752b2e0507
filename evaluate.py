"""Hold generated volumes, what a first stage gives back, or networks that tell something of images, against real ones.

python evaluate.py --help
"""

from pathlib import Path

import click

from edm3d.utils.command_line import PATH, Script, Scripts, Words, WordsCommand

OF_ALL = ("real", "dest", "split", "trust", "overwrite", "run_root", "padding", "gif")
OF_SAMPLES = ("num_noise", "snapshot", "seed", "ignore_spacing", "train", "train_split", "classifier",
              "lpips", "downstream", "features", "planes", "min_samples",
              "planted", "members", "private", "show_private")
OF_TRAIN = ("train_split", "planted", "members")  # say nothing without --train
OF_TILES = ("tile_overlap", "tile_mode")
OF_FIRST_STAGE = ("refiner", "num", "tile", *OF_TILES, "min_psnr")
OF_COMPARE = ("compare", "dest", "overwrite", "debug")
KINDS = {"generated": OF_SAMPLES, "autoencoder": OF_FIRST_STAGE}


class WordsScripts(WordsCommand, Scripts):
    """A program of several commands some of whose own options take several words."""


@click.group(cls=WordsScripts, invoke_without_command=True, subcommand_metavar="",
             context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--real", type=click.Path(path_type=Path), help="Real volumes (volumes.h5).  [required]")
@click.option("--generated", type=click.Path(path_type=Path), help="Samples (.h5 or .npz).")
@click.option("--autoencoder", help="Instead of samples: a first stage (name, run folder or snapshot), to see what "
                                    "volumes lose in it.")
@click.option("--compare", type=Words(str), multiple=True, help="Instead of volumes: two reports or more (report.json, "
                                                                "or folders), side by side; --dest is optional.")
@click.option("--refiner", help="With --autoencoder: refine what comes back (name, run folder or snapshot).")
@click.option("--dest", type=click.Path(path_type=Path), help="Folder of the report.  [required]")
@click.option("--split", default="auto", show_default=True,
              help="Real volumes to compare with: a split of the file or 'all'. auto: fresh phantoms of another seed "
                   "if the file holds phantoms, else its test split, or all of it when that has fewer than 32 volumes; "
                   "for a first stage its test split, or val without one.")
@click.option("--train", type=click.Path(path_type=Path), help="Volumes that the networks learnt from (volumes.h5).")
@click.option("--train-split", default="train", show_default=True, help="Split of --train, or 'all'.")
@click.option("--classifier", help="A trained classifier (name, run folder or snapshot), which is to find the classes "
                                   "that samples were asked for.")
@click.option("--lpips", type=click.Path(path_type=Path), help="A TorchScript file of a distance of two images, for "
              "samples that a real volume's map or images asked for.")
@click.option("--downstream", type=click.Path(path_type=Path), help="Report of evaluate.py downstream (report.json, or "
              "its folder), whose table is shown.")
@click.option("--features", type=Words(str), default=("autoencoder", "random"), show_default="autoencoder random",
              help="What distances are taken in: of the first stage (autoencoder), of a network of your own "
                   "(torchscript:PATH, which runs code of that file), of one that has learnt nothing (random).")
@click.option("--planes", type=Words(str), default=(), help="Planes whose slices are compared, too: axial coronal "
              "sagittal; or by axes of the array: 01 02 12; or none.  [default: all of 3D]")
@click.option("--min-samples", default=256, show_default=True, type=click.IntRange(min=2),
              help="Fewer volumes of a set have no Frechet distance, which few push up.")
@click.option("--planted", default=100, show_default=True, type=click.IntRange(min=0),
              help="With --train: copies of each kind that the audit makes itself, to show what it finds.")
@click.option("--members", default=128, show_default=True, type=click.IntRange(min=0),
              help="With --train: volumes of training, and held out, whose loss is looked at; 0 leaves it out.")
@click.option("--private", is_flag=True, help="The training volumes are private: the report says so, and shows none.")
@click.option("--show-private", is_flag=True, help="Show them all the same.")
@click.option("--ignore-spacing", is_flag=True,
              help="Measure all volumes in voxels of the samples' size, where those of real ones differ (prepare "
                   "--fit).")
@click.option("--leave-padding-out/--keep-padding", "padding", default=None,
              help="Slices of padding at the ends of stacks count in nothing that is measured on images.  [default: "
                   "where the boxes of --real record some]")
@click.option("--num-noise", default=64, show_default=True, type=click.IntRange(min=0),
              help="Volumes of decoded noise, which a model that learned nothing would draw; 0 leaves them out.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="Instead of the snapshot the samples name.")
@click.option("--seed", default=0, show_default=True, help="Of the noise, the pairs and the resampling.")
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
@click.option("--num", default=64, show_default=True, type=click.IntRange(min=1), help="Volumes that a first stage "
                                                                                       "is measured on.")
@click.option("--tile", help="Take them through a first stage in tiles of so many voxels per axis, first axis of the "
                             "array first (64,64,48).  "
                             "[default: whole]")
@click.option("--tile-overlap", default=0.25, show_default=True, type=float, help="Of neighbouring tiles, a share.")
@click.option("--tile-mode", default="blend", show_default=True, help="blend, or exact (as the whole; in slabs).")
@click.option("--min-psnr", default=20.0, show_default=True, help="dB that a first stage must reach to pass.")
@click.option("--run-root", default="results", show_default=True, type=click.Path(path_type=Path),
              help="Where runs are looked for by name, and features are kept.")
@click.option("--gif", is_flag=True, help="Animate volumes, too: real and generated, or before and after, slice by "
                                          "slice (figures/animation.gif).")
@click.option("--overwrite", is_flag=True, help="Replace a report of other volumes or another network in --dest.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def main(context: click.Context, debug: bool, **options: object) -> None:
    """Report how generated volumes compare with real ones, or what volumes lose in a first stage.

    Writes report.html (one file, opens anywhere), report.json, cases.csv and figures/*.png into --dest; of --compare
    compare.html and compare.json.
    """
    if context.invoked_subcommand:
        return
    from edm3d.utils.log import run_main
    if options["compare"]:
        run_main(lambda: compare(context, options), debug)
        return
    for option in context.command.params:  # not required by click, which would ask subcommands for them, too
        if option.name in ("real", "dest") and options[option.name] is None:
            raise click.MissingParameter(ctx=context, param=option)
    if (options["generated"] is None) == (options["autoencoder"] is None):
        raise click.UsageError("wanted one of --generated and --autoencoder, or --compare")
    run_main(lambda: report(context, options), debug)


def compare(context: click.Context, options: dict) -> None:
    """Show reports side by side; ValueError for an option of what measures volumes."""
    from edm3d.inference.compare_reports import compare_reports
    for name in options:
        if name not in OF_COMPARE and is_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')}: an option of volumes, without use to --compare; leave it "
                             "away")
    compare_reports([Path(word) for words in options["compare"] for word in words], options["dest"],
                    options["overwrite"])


def report(context: click.Context, options: dict) -> None:
    """Write the report that is asked for; ValueError for an option of the other one."""
    kind, other = sorted(KINDS, key=lambda name: options[name] is None)
    for name in KINDS[other]:
        if is_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')}: an option of --{other}, without use to --{kind}; leave "
                             "it away")
    for name in OF_TRAIN if options["train"] is None else ():
        if is_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')}: says how training volumes are looked at, and there are "
                             "none; give --train, or leave it away")
    given = {name: options[name] for name in (kind, *OF_ALL, *KINDS[kind])}
    if kind == "generated":
        from edm3d.inference.evaluate import ComparisonOptions, evaluate
        files = [given.pop(name) for name in ("real", kind, "dest")]
        evaluate(*files, ComparisonOptions(**given))
    else:
        from edm3d.inference.evaluate_first_stage import FirstStageOptions, evaluate_first_stage
        from edm3d.inference.first_stage import tiles_of
        files = [given.pop(name) for name in (kind, "real", "dest")]
        tiles = tiles_of({"tile": voxels(given.pop("tile"))} | {name: given.pop(name) for name in OF_TILES})
        evaluate_first_stage(*files, FirstStageOptions(tiles=tiles, **given))


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was typed."""
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def voxels(text: str | None) -> list[int] | None:
    """Sizes as in 64,64,48; ValueError for anything else."""
    try:
        return None if text is None else [int(word) for word in text.replace(",", " ").replace("x", " ").split()]
    except ValueError as error:
        raise ValueError(f"--tile {text}: wanted voxels per axis, as in 64,64,48") from error


class WordsScript(WordsCommand, Script):
    """A program of ours some of whose options take several words."""


@main.command("downstream", cls=WordsScript)
@click.option("--runs", required=True, type=Words(str), help="Trained segmenters, or classifiers: names, run folders "
              "or snapshots. Those that differ by their seed alone are one row.")
@click.option("--real", required=True, type=PATH, help="Real volumes to test on (volumes.h5).")
@click.option("--dest", required=True, type=PATH, help="Folder of the report.")
@click.option("--split", default="auto", show_default=True, help="Split of the file that is tested, or 'all'.  auto: "
              "test, or val without one.")
@click.option("--num", type=click.IntRange(min=1), help="Cases to test, the first ones.  [default: all]")
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(min=1), help="Cases at a time.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "auto"]))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the resampling.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Where runs are looked for by name.")
@click.option("--trust", is_flag=True, help="Let snapshots build classes that are not on the list of known ones.")
@click.option("--overwrite", is_flag=True, help="Replace a report of other volumes or other networks in --dest.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def downstream(runs: tuple[str, ...], real: Path, dest: Path, debug: bool, **options: object) -> None:
    """Test trained segmenters or classifiers on real volumes: train on X, test on real.

    Writes report.html (one file, opens anywhere), report.json, cases.csv and figures/*.png into --dest.
    """
    from edm3d.utils.log import run_main

    def test() -> None:
        from edm3d.inference.evaluate_downstream import DownstreamOptions, evaluate_downstream
        evaluate_downstream(runs, real, dest, DownstreamOptions(**options))

    run_main(test, debug)


@main.command("enhancement", cls=WordsScript)
@click.option("--samples", required=True, type=Words(str), multiple=True, help="Samples of PET scans of phantoms (.h5 "
              "or .npz), several draws of each (sampling.samples_per_condition).")
@click.option("--dest", required=True, type=PATH, help="Folder of the report.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the resampling, and ties.")
@click.option("--trust", is_flag=True, help="Let the samples build simulations that are not on the list of known ones.")
@click.option("--run-root", default="results", show_default=True, type=PATH, help="Below which projectors are kept.")
@click.option("--overwrite", is_flag=True, help="Replace a report of other samples in --dest.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def enhancement(samples: tuple[tuple[str, ...], ...], dest: Path, debug: bool, **options: object) -> None:
    """Hold drawn high doses of PET scans against phantoms and high-dose images, beside what needs no network.

    Writes report.html (one file, opens anywhere), report.json, cases.csv and figures/*.png into --dest.
    """
    from edm3d.utils.log import run_main

    def hold() -> None:
        from edm3d.inference.evaluate_enhancement import EnhancementOptions, evaluate_enhancement
        evaluate_enhancement([Path(name) for names in samples for name in names], dest, EnhancementOptions(**options))

    run_main(hold, debug)


if __name__ == "__main__":
    main()
