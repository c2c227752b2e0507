"""Downstream networks tested on real volumes: every case is inferred once, and the report of it is made of that."""

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import click
import numpy as np

from edm3d.formats.facts import volume_facts
from edm3d.formats.geometry import fit_centre
from edm3d.formats.nifti import spacing_of
from edm3d.formats.prediction import LABELS, Prediction, class_by_threshold, names_of
from edm3d.formats.volumes import HELD_OUT, Item, VolumesFile
from edm3d.inference.decoded import best_device
from edm3d.inference.evaluate_first_stage import layout_of
from edm3d.inference.predictor import Predictor, open_predictor
from edm3d.inference.segment_grid import Placed, Trained, difference
from edm3d.inference.segment_said import said_of
from edm3d.inference.segment_sources import seen
from edm3d.inference.trained_on import ALL, notes_on, rows_of_runs
from edm3d.metrics.overlap import dice
from edm3d.metrics.surface import hausdorff
from edm3d.reporting import downstream, sections
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.downstream import DownstreamContext
from edm3d.reporting.report import check_report, opening, write_report
from edm3d.reporting.scores import ImageScores, Scores, VoxelScores
from edm3d.reporting.section import Walked
from edm3d.reporting.slices import known_affine
from edm3d.utils import locks
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.files import check_folder
from edm3d.utils.log import progress
from edm3d.utils.names import one_line
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import passed_over

KEY = "--runs"


class DownstreamOptions(NamedTuple):
    """How to test. split: 'auto' is test, or val without one; num: of its cases, None for all; seed: of resampling."""

    split: str = "auto"
    num: int | None = None
    batch_size: int = 1
    seed: int = 0
    precision: str = "fp32"
    trust: bool = False
    overwrite: bool = False
    run_root: Path = Path("results")


class TestCases(NamedTuple):
    """The cases that are tested: split and number in the file, id, group, and the true class, None for label maps."""

    file: VolumesFile
    split: str
    places: list[tuple[str, int]]
    ids: list[str]
    groups: list[str]
    truth: np.ndarray | None
    left_out: int

    def read(self, index: int) -> Item:
        """A case as the file has it."""
        return self.file.read(*self.places[index])


def evaluate_downstream(runs: Sequence[str], real: Path, dest: Path, options: DownstreamOptions) -> dict:
    """Write the report of runs (names, run folders or snapshots) on a volumes file; what report.json holds."""
    if not runs:
        raise ValueError(f"{KEY}: names no run; wanted names, run folders or snapshots of downstream networks")
    check_folder(dest, f"--dest {dest}")
    with locks.output(dest, is_folder=True):
        device = best_device()
        predictors = [open_predictor(name, options.run_root, device, trust=options.trust, key=KEY,
                                     precision=resolve_precision(options.precision, device)) for name in runs]
        check_alike(runs, predictors)
        file = VolumesFile(real)
        hashes = " ".join(sorted(each.snapshot.hash for each in predictors))
        check_report(dest, {"real": {"content_hash": file.content_hash}, "downstream": {"hashes": hashes}},
                     options.overwrite)
        cases = cases_of(file, predictors[0].predicts, options)
        for line in notes_before(runs, predictors, cases, options.run_root):
            click.echo(line)
        with KeptMaps(dest) as kept:
            return tested(runs, predictors, cases, kept, dest, options, hashes)


def tested(runs: Sequence[str], predictors: Sequence[Predictor], cases: TestCases, kept: "KeptMaps", dest: Path,
           options: DownstreamOptions, hashes: str) -> dict:
    """Infer, and write the report."""
    file, predicts, snapshots = cases.file, predictors[0].predicts, [each.snapshot for each in predictors]
    rows, trained = rows_of_runs(runs, snapshots, file.content_hash)
    first = [next(i for i, run in enumerate(trained) if run.row == row) for row in range(len(rows))]
    found = infer(runs, predictors, cases, kept, first, options.batch_size)
    context = DownstreamContext(
        layout=layout_of_targets(cases, predicts), provenance=file.provenance, predicts=predicts, rows=rows,
        runs=trained, ids=cases.ids, groups=cases.groups, case=lambda i: case_of(cases, i, predicts),
        found=lambda row, i: kept.read(first[row], i), seed=options.seed,
        notes=[*notes_on(runs, snapshots, file, cases.split, cases.ids), *notes_on_axes(runs, predictors, cases)])
    parts = sections.OF_VOXELS if predicts.of_voxels else sections.OF_IMAGES
    about = {**opening(f"{len(runs)} run{'s' * (len(runs) > 1)} on {file.path}", parts),
             "real": {"path": str(file.path), "content_hash": file.content_hash, "split": cases.split,
                      "num": len(cases.places), "left_out": cases.left_out},
             "downstream": {"predicts": one_line(str(predicts)), "hashes": hashes,
                            "precision": predictors[0].precision, "seed": options.seed},
             "notes": [*context.notes, *left_out_note(cases, predicts)]}
    walked = Walked(context, dict.fromkeys(runs, cases.ids), [found] * len(parts))
    result = write_report(dest, parts, downstream.frame_of(trained), walked, about)
    click.echo(f"{downstream.text(parts, result)}\nReport    {dest / 'report.html'}")
    return result


# ---- what is tested ----


def check_alike(names: Sequence[str], predictors: Sequence[Predictor]) -> None:
    """ValueError for a run that is there twice, and for runs that do not predict the same."""
    seen: dict[str, str] = {}
    for name, predictor in zip(names, predictors, strict=True):
        if (first := seen.get(predictor.snapshot.hash)) is not None:
            raise ValueError(f"{KEY}: {first} and {name} are one snapshot ({predictor.snapshot.path}); name each once")
        seen[predictor.snapshot.hash] = name
    targets: dict[Prediction, list[str]] = {}
    for name, predictor in zip(names, predictors, strict=True):
        targets.setdefault(predictor.predicts, []).append(name)
    if len(targets) > 1:
        said = "; ".join(f"{listed(of)}: {one_line(str(what))}" for what, of in targets.items())
        raise ValueError(f"{KEY}: runs that predict the same can be held beside each other, these do not: {said}")


def cases_of(file: VolumesFile, predicts: Prediction, options: DownstreamOptions) -> TestCases:
    """The cases of a split that can be tested; ValueError where there are none, or of other classes."""
    split = options.split
    if split == "auto":
        split = next((name for name in HELD_OUT if name in file.splits), "")
    if split not in (*file.splits, ALL):
        wanted = f"has no split {split!r}" if split else "has no split test or val"
        raise ValueError(f"--split: {file.path} {wanted}; it has {listed(file.splits)} (or {ALL})")
    check_classes(file, predicts, split)
    places, ids, groups, truth = [], [], [], []
    for name in file.splits if split == ALL else [split]:
        classes = classes_of(file, name, predicts)
        for i, (id_, group, value) in enumerate(zip(file.ids(name), file.groups(name), classes, strict=True)):
            if value >= 0:
                places.append((name, i))
                ids.append(id_)
                groups.append(group)
                truth.append(value)
    total = sum(file.length(name) for name in file.splits if split in (ALL, name))
    if not places:
        raise ValueError(f"--real: {file.path} has no case in split {split!r} whose {predicts.attribute or 'class'} is "
                         "known; choose another --split, or prepare the file with a table that says it")
    most = options.num or len(places)
    return TestCases(file, split, places[:most], ids[:most], groups[:most],
                     None if predicts.of_voxels else np.array(truth[:most]), total - len(places))


def check_classes(file: VolumesFile, predicts: Prediction, split: str) -> None:
    """ValueError where the classes, or the attribute, of a file are not those that networks predict."""
    facts = volume_facts(file, file.splits[0] if split == ALL else split)
    if predicts.threshold is not None:
        names, units = facts.attribute_names or (), facts.attribute_units or ()
        if predicts.attribute not in names:
            raise ValueError(f"--real: {file.path} has no attribute {one_line(predicts.attribute)}, which the runs "
                             f"predict; it has {listed(names) or 'none'}")
        if (unit := units[names.index(predicts.attribute)]) != predicts.unit:
            raise ValueError(f"--real: {one_line(predicts.attribute)} is in {one_line(unit) or 'no unit'} in "
                             f"{file.path}, and in {one_line(predicts.unit) or 'no unit'} in the runs' data")
        return
    found = names_of(predicts.kind, facts)
    what = {LABELS: "label maps", "maps": "maps"}.get(predicts.kind, "classes")
    if not found:
        raise ValueError(f"--real: {file.path} has no {what}, which the runs predict")
    if found != predicts.names:
        got, wanted = listed_apart(found, predicts.names)
        raise ValueError(f"--real: {what} of {file.path} are {got}, the runs predict {wanted}")


def classes_of(file: VolumesFile, split: str, predicts: Prediction) -> np.ndarray:
    """The true class [N] of every item of a split, -1 where it is not known; 0 for all where voxels have them."""
    if predicts.of_voxels:
        return np.zeros(file.length(split), np.int64)
    if predicts.threshold is None:
        return file.table(split, "classes")
    column = file.meta.attribute_names.index(predicts.attribute)
    return class_by_threshold(file.table(split, "attributes")[:, column], predicts.threshold)


def notes_before(names: Sequence[str], predictors: Sequence[Predictor], cases: TestCases, run_root: Path) -> list[str]:
    """What to say before anything is inferred, each once; ValueError for data that a network cannot see."""
    file = cases.file
    facts, found = volume_facts(file, cases.places[0][0]), []
    for name, predictor in zip(names, predictors, strict=True):
        found += passed_over(predictor.snapshot.path, name, run_root)
        found += predictor.check(facts, file.path, KEY)
        if not predictor.of_voxels and (size := predictor.snapshot.shape[1:]) != facts.spatial_shape:
            found.append(f"Note: images of {file.path} are {list(facts.spatial_shape)}, padded or cropped centrally to "
                         f"{list(size)}, on which {one_line(name)} was trained")
    return [*dict.fromkeys(found)]


def notes_on_axes(names: Sequence[str], predictors: Sequence[Predictor], cases: TestCases) -> list[str]:
    """In what cases lie otherwise than what runs were trained on, with the runs where that is not all of them."""
    lie = {split: (cases.file.spatial_shape(split), [*map(known_affine, cases.file.affines(split))])
           for split in dict(cases.places)}
    said: dict[str, list[str]] = {}
    for name, predictor in zip(names, predictors, strict=True):
        trained = Trained.of(predictor.facts.affine)
        found = [(id_, difference(lie[split][0], lie[split][1][i], trained), 0.0, 1.0)
                 for id_, (split, i) in zip(cases.ids, cases.places, strict=True)]
        for line in said_of(found, trained, predictor.facts.intensity, resample=False, tested=True):
            said.setdefault(line, []).append(name)
    return [line if len(of) == len(names) else f"{line} (by {listed(of)})" for line, of in said.items()]


def left_out_note(cases: TestCases, predicts: Prediction) -> list[str]:
    """How many cases have no class to be tested."""
    what = one_line(predicts.attribute) if predicts.attribute else "class"
    return [f"Note: {cases.left_out} cases of split {cases.split!r} are left out, as their {what} is not known"] \
        if cases.left_out else []


def layout_of_targets(cases: TestCases, predicts: Prediction) -> Layout:
    """What pictures must know of the channels that networks see; voxel size and affine are those of the first case."""
    meta, layout = cases.file.meta, layout_of(cases.file, cases.places[0][0])
    return Layout(tuple(meta.channels[c] for c in meta.numbers("target")),
                  predicts.names if predicts.of_voxels else (), layout.spacing, layout.lo, layout.hi, layout.unit,
                  layout.affine)


def true_map(item: Item, predicts: Prediction) -> np.ndarray | None:
    """The label map [*S] that networks are to give, None where they give none."""
    if not predicts.of_voxels:
        return None
    return item.label if predicts.kind == LABELS else item.semantic


def case_of(cases: TestCases, index: int, predicts: Prediction) -> Case:
    """A case for pictures: its target channels, and its true label map."""
    item = cases.read(index)
    return Case(item.id, item.image[cases.file.meta.numbers("target")], true_map(item, predicts))


# ---- inference ----


class KeptMaps:
    """Label maps by run and case, in a nameless file beside the report: for the pictures, whose cases are chosen last.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: dict[tuple[int, int], tuple[int, int, tuple[int, ...]]] = {}

    def __enter__(self) -> "KeptMaps":
        self.file: BinaryIO = tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def add(self, run: int, case: int, labels: np.ndarray) -> None:
        """Keep a map [*S] uint8."""
        content = zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)
        self.places[run, case] = self.file.seek(0, 2), len(content), labels.shape
        self.file.write(content)

    def read(self, run: int, case: int) -> np.ndarray:
        """It again."""
        place, length, shape = self.places[run, case]
        self.file.seek(place)
        return np.frombuffer(zlib.decompress(self.file.read(length)), np.uint8).reshape(shape)


def infer(names: Sequence[str], predictors: Sequence[Predictor], cases: TestCases, kept: KeptMaps, shown: Sequence[int],
          batch_size: int) -> dict[str, Scores]:
    """What every run reaches on every case, each read once for all runs; of runs that are shown maps are kept."""
    predicts, found = predictors[0].predicts, [[] for _ in predictors]
    trained = [Trained.of(predictor.facts.affine) for predictor in predictors]
    for numbers in batches(len(cases.places), batch_size):
        items, ids = [cases.read(i) for i in numbers], [cases.ids[i] for i in numbers]
        for run, predictor in enumerate(predictors):
            given = found_in(predictor, [lying_as(trained[run], cases.file, item) for item in items], ids)
            if not predicts.of_voxels:
                found[run] += given
                continue
            for number, item, labels in zip(numbers, items, given, strict=True):
                found[run].append(voxel_scores(true_map(item, predicts), labels, len(predicts.names), item))
                if run in shown:
                    kept.add(run, number, labels)
    if predicts.of_voxels:
        return {name: VoxelScores(*map(np.stack, zip(*of_cases, strict=True)))
                for name, of_cases in zip(names, found, strict=True)}
    return {name: ImageScores(cases.truth, np.stack(of_cases)) for name, of_cases in zip(names, found, strict=True)}


def batches(count: int, size: int) -> Iterator[range]:
    """Numbers of cases, some at a time, with a progress bar."""
    with progress(total=count, desc="test", unit="case") as bar:
        for start in range(0, count, size):
            yield range(start, min(start + size, count))
            bar.update(min(size, count - start))


def lying_as(trained: Trained, file: VolumesFile, item: Item) -> Placed:
    """A case as a network sees it, on the axes of its training."""
    return Placed(seen(item.image[file.meta.numbers("target")], file.meta.intensity), item.affine, trained)


def found_in(predictor: Predictor, placed: Sequence[Placed], ids: Sequence[str]) -> list[np.ndarray]:
    """Of cases: label maps [*S] on their own grids, or log-odds [K]; ValueError where they are not finite."""
    if predictor.of_voxels:
        found = predictor.each([each.image for each in placed], ids)
        return [each.back(labels) for each, labels in zip(placed, found, strict=True)]
    size = predictor.snapshot.shape[1:]
    low = np.full(predictor.snapshot.shape[0], -1.0)
    return predictor.each([image if image.shape[1:] == size else fit_centre(image, np.eye(4), size, low)[0]
                           for image in (each.image for each in placed)], ids)


def voxel_scores(truth: np.ndarray, labels: np.ndarray, num_classes: int, item: Item) -> tuple[np.ndarray, ...]:
    """Dice, Hausdorff distances (95 % and maximum), presence in truth and found, by class but the first."""
    there = [np.bincount(each.ravel(), minlength=num_classes)[1:] > 0 for each in (truth, labels)]
    return (np.nan_to_num(dice(labels, truth, num_classes)[1:]),
            *hausdorff(labels, truth, num_classes, spacing_of(item.affine)[:truth.ndim]), *there)
