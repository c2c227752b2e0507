"""What `prepare` is to read: the files of each case, what a table says of it, its patient, and its split."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.class_file import classes_by_name, read_classes
from edm3d.formats.cohort import CohortTable, Record, assign_splits
from edm3d.formats.decathlon import read_task
from edm3d.formats.folders import stem_of
from edm3d.formats.index_data import read_index, with_table
from edm3d.formats.nifti import suffix_of
from edm3d.formats.pairing import CaseFiles, differ_in_case, find_cases
from edm3d.formats.patients import Groups, groups_by_name
from edm3d.formats.patterns import IMAGES, proposal
from edm3d.formats.prepare_options import PrepareOptions
from edm3d.utils.checks import listed


class Sources(NamedTuple):
    """The cases, the options with what the source says of them, what is known of each case by a table, and notes."""

    cases: list[CaseFiles]
    options: PrepareOptions
    cohort: CohortTable | None
    notes: list[str]


def find_sources(
    images: Path | None, labels: Path | None, maps: Path | None, decathlon: Path | None, index: Path | None,
    options: PrepareOptions, cohort: CohortTable | None, table: Path | None,
) -> Sources:
    """What folders, the dataset.json of a task, or index files hold; table: where the cohort was read."""
    if sum(source is not None for source in (images, decathlon, index)) != 1 or (not images and (labels or maps)):
        raise ValueError("give --images, with --labels and --maps where there are any, or --decathlon, or --index")
    if options.attributes and not index:
        raise ValueError(f"--attributes {' '.join(options.attributes)}: they name the numbers in samples of --index; "
                         "columns of a --table have names")
    if images:
        if options.images_only:
            raise ValueError("--images-only: leave --labels out instead; this is for --decathlon")
        found = find_cases(images, labels, maps, image_pattern=options.image_pattern,
                           label_pattern=options.label_pattern, map_pattern=options.map_pattern,
                           channels=options.channels, classes=options.class_names,
                           table_ids=cohort.rows if cohort else ())
        options = replace(options, channels=found.channels or options.channels)
        return Sources(found.cases, options, cohort, found.notes)
    if options.image_pattern or options.label_pattern or options.map_pattern:
        what = "a Decathlon task lists its files" if decathlon else "index files name theirs"
        raise ValueError(f"--image-pattern, --label-pattern and --map-pattern are for --images; {what}")
    return of_task(decathlon, options, cohort) if decathlon else of_index(index, options, cohort, table)


def of_task(decathlon: Path, options: PrepareOptions, cohort: CohortTable | None) -> Sources:
    """What a Decathlon task holds."""
    task = read_task(decathlon, options.images_only)
    classes = () if options.images_only else options.classes or task.classes
    options = replace(options, channels=options.channels or task.channels, classes=classes)
    notes = [f"{task.unlisted} images of the test list have no label map and are left out"] if task.unlisted else []
    if task.beside:
        notes.append(f"{len(task.beside)} volumes that dataset.json does not list are left out: {listed(task.beside)}")
    return Sources(task.cases, options, cohort, notes)


def of_index(folder: Path, options: PrepareOptions, cohort: CohortTable | None, table: Path | None) -> Sources:
    """What the index files of a folder name: images in [0,1] where no option says otherwise, with slices of padding."""
    if options.fit:
        raise ValueError(f"--fit {' '.join(map(str, options.fit))}: --index takes --size, with the voxels as they are")
    if options.spatial_dims == 2:
        raise ValueError("--spatial-dims 2: samples of --index are stacks of slices, in 3D; leave it out")
    found = read_index(folder, options.attributes)
    if found.lacking and not options.spacing:
        raise ValueError(f"{found.lacking}: has no affine, as npz rarely do; give --spacing, the mm between slices, "
                         "rows and columns, as in --spacing 10 1.8269 1.8269")
    is_scaled = options.value_range is not None or options.percentiles is not None
    cases = [case._replace(label=None) for case in found.cases] if options.images_only else found.cases
    classes = () if options.images_only else options.classes or found.label_classes
    options = replace(options, spatial_dims=3, indexed=True, find_padding=True, within=not is_scaled, classes=classes,
                      value_range=options.value_range if is_scaled else (0.0, 1.0))
    return Sources(cases, options, with_table(found.table, cohort, table) if cohort else found.table, [])


def find_records(cases: list[CaseFiles], cohort: CohortTable | None, path: Path | None, options: PrepareOptions
                 ) -> tuple[dict[str, Record], list[str]]:
    """What is known of each case, its patient by its name where no table says so, and notes.

    The splits are those of the table, else those of the folders. path: of the table, or of the folder of an index, in
    whose splits patients must not be twice.
    """
    if cohort is None:
        records, notes = {case.id: Record(case.id, None, None, np.empty(0, np.float32)) for case in cases}, []
    else:
        records, notes = _rows(cases, cohort, path, options), [*cohort.notes]
        if unused := [id_ for id_ in cohort.rows if id_ not in records]:
            notes.append(f"{len(unused)} of {len(cohort.rows)} rows of {path} have no image and are left out: "
                         f"{listed(unused)}{differ_in_case(unused, records)}")
    where = path
    if any(case.split for case in cases):
        if any(record.split for record in records.values()):
            notes.append(f"Note: the images lie in folders called by splits, and {path} has a column split, which is "
                         "taken")
        else:
            where = "the folder of images"
            records = {case.id: records[case.id]._replace(split=case.split) for case in cases}
            notes.append("splits: by the folders of the images; --split is not used")
    if cohort and cohort.has_groups:
        return records, notes
    patients = {case.id: case.patient or case.id for case in cases}
    by_name = groups_by_name(set(patients.values()))
    groups = Groups({id_: by_name.of[patient] for id_, patient in patients.items()},
                    [*_of_patients(patients), *by_name.notes])
    if (parted := _parted(records, groups.of)) and options.indexed:
        raise ValueError(f"{path}: samples that by their names are of one patient are in several splits: "
                         f"{listed(parted, '; ')}; correct the index files, or say by a table with columns id and "
                         "group (--table) which are of one")
    if parted:
        return records, [*notes, f"Note: {where} has volumes in several splits that by their names are of one patient: "
                                 f"{listed(parted, '; ')}; a column group says which are of one"]
    return {id_: record._replace(group=groups.of[id_]) for id_, record in records.items()}, [*notes, *groups.notes]


def _of_patients(patients: Mapping[str, str]) -> list[str]:
    """A note on volumes that are of one patient by what a pattern calls {id}."""
    count = Counter(patients.values())
    several = [patient for patient in count if count[patient] > 1]
    return [f"patients: by {{id}} of {IMAGES}, {len(count)} of {len(patients)} volumes; those of one "
            f"({listed(sorted(several))}) stay in one split"] if several else []


def _rows(cases: list[CaseFiles], cohort: CohortTable, path: Path | None, options: PrepareOptions
          ) -> dict[str, Record]:
    if absent := [case.id for case in cases if case.id not in cohort.rows]:
        ids = [] if options.image_pattern else [case.id for case in cases]
        more = (proposal(ids, cohort.rows, len(absent), option=None) or differ_in_case(absent, cohort.rows)
                or _lost_zeros(absent, cohort.rows) or _with_suffix(cohort.rows))
        raise ValueError(f"{path}: no row for {len(absent)} image(s): {listed(absent)}{more}")
    return {case.id: cohort.rows[case.id] for case in cases}


def _lost_zeros(absent: Collection[str], rows: Collection[str]) -> str:
    """A hint where a spreadsheet has made numbers of ids, `1` of `001`."""
    pairs = [f"{id_} and {int(id_)}" for id_ in absent if id_.isascii() and id_.isdecimal() and str(int(id_)) in rows]
    return f"; a spreadsheet may have taken zeros away: {listed(pairs)}" if pairs else ""


def _with_suffix(rows: Collection[str]) -> str:
    """A hint where ids are names of files."""
    named = [id_ for id_ in rows if suffix_of(Path(id_))]
    return f"; ids go without the suffix of the file, as {stem_of(Path(named[0]))} for {named[0]}" if named else ""


def _parted(records: Mapping[str, Record], groups: Mapping[str, str]) -> list[str]:
    """The groups that a table or folders have put into several splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for id_, record in records.items():
        if record.split:
            splits[groups[id_]].add(record.split)
    return [f"{group} in {' and '.join(sorted(names))}" for group, names in splits.items() if len(names) > 1]


def find_classes(records: dict[str, Record], cases: list[CaseFiles], cohort: CohortTable | None, images: Path | None,
                 options: PrepareOptions) -> tuple[dict[str, Record], tuple[str, ...], list[str]]:
    """The records with their classes, the names of all classes, and notes: of the table, else of a dataset.json; or of
    the names of files, which what else says of classes must agree with.
    """
    found = read_classes(images, cases, options.class_names) if images and not (cohort and cohort.class_names) else None
    by_name = {case.id: case.class_name for case in cases if case.class_name}
    if options.class_names and found is None and not by_name:
        raise ValueError(f"--class-names {' '.join(options.class_names)}: they name the numbers of a dataset.json, and "
                         "there is none with labels beside or above the images; classes of a table have names")
    of = {id_: record.class_name for id_, record in records.items()} if found is None else found.of
    names, notes = (cohort.class_names if cohort else (), []) if found is None else (found.names, found.notes)
    if by_name:
        of, names, said = classes_by_name(cases, of, names, options.class_names, found is not None)
        notes = [*notes, *said]
    return {id_: record._replace(class_name=of[id_]) for id_, record in records.items()}, names, notes


def find_splits(records: dict[str, Record], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """The split of each case: the table's, where it names any, else by fractions of the patients."""
    named = {case: record.split for case, record in records.items() if record.split}
    if not named:
        try:
            chosen = assign_splits([record.group for record in records.values()], fractions, seed)
        except ValueError as error:
            raise ValueError(f"{error}{_together(records)}") from error
        return {case: chosen[record.group] for case, record in records.items()}
    if without := sorted(records.keys() - named.keys()):
        raise ValueError(f"table column 'split' is empty for {listed(without)}; fill it for all volumes or none")
    return named  # a group in two of them is refused by VolumesWriter


def _together(records: Mapping[str, Record]) -> str:
    """Which volumes are of one patient, for an error on how few there are; '' where each is of its own."""
    members: dict[str, list[str]] = defaultdict(list)
    for id_, record in records.items():
        members[record.group].append(id_)
    several = max(members.values(), key=len)
    return (f". Volumes of one patient stay together, as {listed(several)}; a table with columns id and group "
            "(--table) says which are") if len(several) > 1 else ""
