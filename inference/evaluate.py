"""Samples held against real volumes: what is compared, measured on the device, and the report of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.audit import audit
from edm3d.inference.compared import describe_samples, sample_case, shared_layout, tame
from edm3d.inference.decoded import best_device, find_first_stage, noise_cases, reconstruct
from edm3d.inference.features import DEFAULT, FeatureOptions, feature_pass
from edm3d.inference.judges import find_partner, open_classifier, open_lpips
from edm3d.inference.labelling import find_labeller
from edm3d.inference.licences import licences_of
from edm3d.inference.padding import padding_of
from edm3d.inference.sample_files import ways_beside
from edm3d.reporting import comparison, sections
from edm3d.reporting.cases import Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.downstream_file import read_downstream
from edm3d.reporting.reference import Cases, choose_reference, file_volumes, held_out_split
from edm3d.reporting.report import check_report, opening, write_report
from edm3d.reporting.section import missing, walk
from edm3d.utils import locks
from edm3d.utils.checks import listed
from edm3d.utils.files import check_folder, file_hash, plain_hash
from edm3d.utils.log import progress
from edm3d.utils.names import one_line

FIRST_STAGE_VOLUMES = 64
MIN_SAMPLES = 256  # as many as our own features are wide


class ComparisonOptions(NamedTuple):
    """How to compare. split: of the real volumes (reporting.reference.choose_reference); num_noise: volumes of decoded
    noise; snapshot: instead of the one that the samples name; seed: of noise, pairs and resampling; ignore_spacing:
    measure in voxels of the samples' size; overwrite: also a report of others than these. train: volumes that networks
    learnt from, and of which split. classifier: a classification network by name, run folder or snapshot; lpips: a
    TorchScript file of a distance of two images; downstream: a report of downstream networks, or its folder. features,
    planes: as the command's words (inference.features); min_samples: volumes of a set that a Frechet distance takes;
    run_root: below which snapshots are looked for and features kept, None: results, and no features are kept. planted,
    members: how many copies the audit makes and losses it looks at; private: whether the volumes learnt from are, and
    show_private: are shown all the same. padding: see inference.padding. gif: whether to animate.
    """

    split: str = "auto"
    num_noise: int = 64
    snapshot: Path | None = None
    seed: int = 0
    trust: bool = False
    ignore_spacing: bool = False
    overwrite: bool = False
    train: Path | None = None
    train_split: str = "train"
    classifier: str | None = None
    lpips: Path | None = None
    downstream: Path | None = None
    features: Sequence[str] = DEFAULT
    planes: Sequence[str] = ()
    min_samples: int = MIN_SAMPLES
    run_root: Path | None = None
    planted: int = 100
    members: int = 128
    private: bool = False
    show_private: bool = False
    padding: bool | None = None
    gif: bool = False


AS_EVER = ComparisonOptions()


def evaluate(real: Path, generated: Path, dest: Path, options: ComparisonOptions = AS_EVER) -> dict:
    """Write the report of a samples file against a volumes file; returns what report.json holds."""
    check_folder(dest, f"--dest {dest}")
    with locks.output(dest, is_folder=True):
        samples, file = SamplesFile(generated), VolumesFile(real)
        inputs = {"real": {"content_hash": file.content_hash}, "generated": {"sha256": file_hash(samples.path)}}
        check_report(dest, inputs, options.overwrite)
        return compare(samples, file, dest, options)


def compare(samples: SamplesFile, file: VolumesFile, dest: Path, options: ComparisonOptions) -> dict:
    """Measure, and write the report."""
    generated, num_noise, seed = samples.path, options.num_noise, options.seed
    layout = shared_layout(samples, file, options.ignore_spacing)
    channels = [file.meta.channels.index(name) for name in layout.channels]
    size = samples.row("images", 0).shape[1:]
    against = choose_reference(file, options.split, channels).fitted(size, layout.lo).told(
        file.meta.attribute_names, [name for name, _ in layout.attributes])
    padding = padding_of(file, size, options.padding)
    held_slices = padding and padding.kept
    against = against.within(held_slices)
    patients = {id_: group for name in file.splits
                for id_, group in zip(file.ids(name), file.groups(name), strict=True)}
    drawn = Cases(str(generated), len(samples), lambda i: sample_case(samples, i, layout, patients)).within(
        held_slices)
    held_out = held_out_split(file)
    sets, lengths = {"real": against, "generated": drawn}, {"real": len(against), "generated": len(drawn)}
    stage, reason = find_first_stage(samples, options.snapshot, options.trust, best_device(),
                                     options.run_root or Path("results"))
    unlabelled = "" if stage is None or bool(layout.label_classes) == bool(stage.net.num_classes) else \
        "the samples hold no label maps, which their first stage encodes with the images" \
        if stage.net.num_classes else "the samples hold label maps of a segmenter, and their first stage gives none"
    labeller, unknown = find_labeller(samples, options.trust, best_device())
    absent = {"decoded": reason or unlabelled, "noise": reason or unknown or ("" if num_noise else "--num-noise is 0")}
    if not absent["noise"]:
        noise = noise_cases(stage, num_noise, seed, layout, labeller)
        sets["noise"], lengths["noise"] = (case._replace(held=held_slices) for case in noise), num_noise
    if not absent["decoded"]:
        held = file_volumes(file, held_out, channels).fitted(size, layout.lo).within(held_slices)
        lengths["decoded"] = min(FIRST_STAGE_VOLUMES, len(held))
        sets["decoded"] = reconstruct(stage, held, lengths["decoded"], layout)

    more, gone = beside(samples, file, layout, channels, size, options)
    check_audit(options)
    learnt = options.train and learnt_from(options.train, options.train_split, layout, size).within(held_slices)
    kept = options.run_root and options.run_root / "features"
    no_maps = "the first stage is masked by maps, which generated volumes do not have" if stage and stage.masked else ""
    passing = feature_pass(FeatureOptions(options.features, options.planes, kept), layout, size, stage,
                           reason or unlabelled or no_maps, best_device(), held_slices)
    context = Comparison(layout=layout, provenance=file.provenance, missing=absent | gone, real=against,
                         generated=drawn, seeds=samples.seeds,
                         asked=tuple(map(samples.meta.id_of, samples.seeds)) if samples.meta.ids else (),
                         held_out=held_out, seed=seed, padding=padding, train=learnt,
                         min_samples=options.min_samples, animate=options.gif, **more)
    seen = [layout.channels, size, *([held_slices] if held_slices else [])]
    of_features = {"real": plain_hash([file.content_hash, against.description, *seen]),
                   "generated": plain_hash([file_hash(samples.path), *seen]), "noise": None}

    def complete(context: Comparison) -> Comparison:
        if learnt is not None:
            passing.alone("train", learnt, len(learnt), plain_hash([VolumesFile(options.train).content_hash,
                                                                    learnt.description, *seen]))
        context = replace(context, features=passing.features(), first=to_be_shown(context.first, options))
        return context if learnt is None else replace(
            context, audit=audit(samples, context, stage or reason or "there is none", options))

    passed = {name: passing.over(name, cases, lengths[name], of_features[name]) if name in of_features else cases
              for name, cases in sets.items()}
    walked = walk(sections.COMPARISON, context, {name: shown(name, cases, lengths[name])
                                                 for name, cases in passed.items()}, complete)
    about = {**opening(str(generated), sections.COMPARISON), **compared_files(samples, file, against, learnt, options),
             "options": {"split": options.split, "seed": seed, "ignore_spacing": options.ignore_spacing,
                         "size": list(size)},
             "noise": missing(absent["noise"]) if absent["noise"] else
             {"available": True, "num": num_noise, "seed": seed}}
    result = write_report(dest, sections.COMPARISON, comparison.FRAME, walked, about)
    click.echo(comparison.text(sections.COMPARISON, result))
    if "network" in (labels := result["generated"]["labels"]):
        click.echo(f"Label maps: {comparison.by_segmenter(labels)}")
    if (quality := result["generated"]["quality"])["available"]:
        click.echo(f"Quality check: {comparison.by_quality(quality)}")
    click.echo(f"Report    {dest / 'report.html'}")
    return result


def compared_files(samples: SamplesFile, file: VolumesFile, against: Cases, learnt: Cases | None,
                   options: ComparisonOptions) -> dict[str, Any]:
    """What report.json says of the files that it is of, and of their licences."""
    remark = "; in voxels of the samples' size, whatever their own" if options.ignore_spacing else ""
    if file.provenance.get("kind") == "segment":
        remark += f"; their label maps are of a segmenter ({one_line(str(file.provenance.get('network')))})"
    train = {} if learnt is None else {"train": {"path": str(options.train), "reference": learnt.description,
                                                 "num": len(learnt)}}
    return {"real": {"path": str(file.path), "content_hash": file.content_hash,
                     "reference": against.description + remark, "num": len(against),
                     "preparation": tame(file.provenance)},
            **train, "generated": describe_samples(samples, options.snapshot, bool(file.meta.label_classes)),
            "licences": licences_of(file.provenance, options.snapshot or Path(samples.meta.snapshot))}


def beside(samples: SamplesFile, file: VolumesFile, layout: Layout, channels: Sequence[int], size: Sequence[int],
           options: ComparisonOptions) -> tuple[dict[str, Any], dict[str, str]]:
    """What else samples are held against, by fields of Comparison, and why what of that is not there."""
    partner, unpaired = find_partner(samples, file, channels, size, layout.lo)
    more = {"partner": partner, "told": {"generated": samples.meta.facts.semantic_classes,
                                         "real": tuple(file.meta.map_classes) or tuple(file.meta.label_classes)},
            "classifier": options.classifier and open_classifier(
                options.classifier, options.run_root or Path("results"), samples, file, layout, options.trust),
            "lpips": options.lpips and open_lpips(options.lpips),
            "utility": options.downstream and read_downstream(options.downstream)}
    ways, no_ways = ({}, "the data are private; --show-private shows them") if hides(options) else ways_beside(samples)
    more |= {"ways": ways, "sweep": samples.meta.sweep}
    unasked = "" if "maps" in samples.names else "no maps asked for the generated volumes"
    return more, {"pairs": unpaired, "maps": unasked, "trajectories": no_ways,
                  "classifier": "no classifier was given (--classifier)", "lpips": "no weights were given (--lpips)"}


def hides(options: ComparisonOptions) -> bool:
    """Whether real volumes are not to be seen."""
    return options.private and not options.show_private


def to_be_shown(first: Mapping[str, list], options: ComparisonOptions) -> dict[str, list]:
    """The volumes that pictures are made of: of private data none but those that networks drew."""
    hidden = ("real", "decoded") if hides(options) else ()
    return {name: [] if name in hidden else items for name, items in first.items()}


def check_audit(options: ComparisonOptions) -> None:
    """ValueError for options of the audit without what they are of."""
    if options.train is None and (options.private or options.show_private):
        raise ValueError(f"--{'private' if options.private else 'show-private'}: says something of the training "
                         "volumes, and there are none; give --train, or leave it away")
    if options.show_private and not options.private:
        raise ValueError("--show-private: shows training volumes that are --private; without that they are shown")


def learnt_from(path: Path, split: str, layout: Layout, size: Sequence[int]) -> Cases:
    """Volumes that networks learnt from, on the grid of the samples; ValueError for others than these can be."""
    file = VolumesFile(path)
    if unknown := [name for name in layout.channels if name not in file.meta.channels]:
        raise ValueError(f"--train {path}: has no channels {listed(unknown)}, which the samples have, but "
                         f"{listed(file.meta.channels)}")
    if (range_ := (file.meta.intensity.lo, file.meta.intensity.hi)) != (layout.lo, layout.hi):
        raise ValueError(f"--train {path}: intensity range {range_} differs from {(layout.lo, layout.hi)} of the "
                         "samples")
    if file.meta.spatial_dims != len(size):
        raise ValueError(f"--train {path}: has {file.meta.spatial_dims} axes, the samples have {len(size)}")
    channels = [file.meta.channels.index(name) for name in layout.channels]
    return file_volumes(file, split, channels, "--train-split").fitted(size, layout.lo)


def shown(name: str, cases: Iterable, length: int) -> Iterator:
    """The same, with a progress bar that is there from the first to the last of them."""
    yield from progress(cases, total=length, desc=name, unit="volume")
