"""Which files belong together, what the table says about them, and which split each patient goes to."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.nifti import KEYS, npz_names, suffix_of
from edm3d.formats.volumes import SPLITS
from edm3d.utils.checks import listed

_CHANNEL = re.compile(r"(.+)_(\d{4})")


class CaseFiles(NamedTuple):
    """The files of one volume."""

    id: str
    images: tuple[Path, ...]  # one per channel, or one that holds all
    label: Path | None


# ---- files ----


def find_cases(
    images: Path, labels: Path | None, *, table_ids: Collection[str] = (), channels: int | None = None
) -> list[CaseFiles]:
    """Pair images and label maps by name, sorted by id; ValueError names everything that has no partner.

    A name is the file name without its suffix, and for images also without nnU-Net's channel number `_0000`, unless a
    label map or the table has the full name. Without labels and table, numbers count as channels only if every case
    has the same ones, from 0000 on; `channels` is how many the user named, None = none. Without a labels folder the
    label maps inside npz images are taken, if there are any.
    """
    image_files = _by_stem(images)
    label_files = _by_stem(labels) if labels else {}
    grouped = _group_channels(image_files, {*label_files, *table_ids}, channels)
    if labels is None:
        has_label = {case: _has_label(files[0]) for case, files in grouped.items()}
        if any(has_label.values()):
            _refuse_lonely({case: grouped[case][0] for case, has in has_label.items() if has is False}, {})
        return [CaseFiles(case, files, files[0] if has_label[case] else None)
                for case, files in sorted(grouped.items())]
    _refuse_lonely(
        {case: files[0] for case, files in grouped.items() if case not in label_files},
        {case: path for case, path in label_files.items() if case not in grouped},
    )
    return [CaseFiles(case, files, label_files[case]) for case, files in sorted(grouped.items())]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = [(path.name.removesuffix(suffix), path) for path in sorted(folder.iterdir()) if (suffix := suffix_of(path))]
    if not files:
        raise ValueError(f"{folder}: holds no .nii, .nii.gz, .npy or .npz files")
    counts = Counter(stem for stem, _ in files)
    if double := [path.name for stem, path in files if counts[stem] > 1]:
        raise ValueError(f"{folder}: files of the same name: {', '.join(double)}; keep one of each")
    return dict(files)


def _group_channels(
    files: dict[str, Path], known: Collection[str], channels: int | None
) -> dict[str, tuple[Path, ...]]:
    numbered = {stem: (match[1], int(match[2])) for stem in files if (match := _CHANNEL.fullmatch(stem))}
    if not known and not _looks_like_channels(numbered, len(files), channels):
        numbered = {}
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in files.items():
        case, channel = (stem, 0) if stem in known else numbered.get(stem, (stem, 0))
        if channel in cases[case]:
            raise ValueError(f"{path.parent}: {path.name} and {cases[case][channel].name} are the same image")
        cases[case][channel] = path
    wanted = range(max(len(found) for found in cases.values()))
    lacking = [f"{case} has {_numbers(found)}" for case, found in cases.items() if sorted(found) != list(wanted)]
    if lacking:
        raise ValueError(f"channels {_numbers(wanted)} are wanted of every case, but {'; '.join(lacking)}")
    return {case: tuple(path for _, path in sorted(found.items())) for case, found in cases.items()}


def _looks_like_channels(numbered: dict[str, tuple[str, int]], files: int, channels: int | None) -> bool:
    found = defaultdict(list)
    for case, channel in numbered.values():
        found[case].append(channel)
    if len(numbered) < files or len({tuple(sorted(f)) for f in found.values()}) != 1:
        return False
    count = len(next(iter(found.values())))
    if sorted(next(iter(found.values()))) != list(range(count)):
        return False
    if len(found) == 1 and count > 1 and channels is None:
        raise ValueError(
            f"{next(iter(found))}_0000 to _{count - 1:04d}: are these channels of one case, or cases? "
            "Name the channels with --channels, or list the cases in a table with --table"
        )
    return channels is None or channels == count


def _numbers(channels: Iterable[int]) -> str:
    return ", ".join(f"_{c:04d}" for c in sorted(channels))


def _has_label(path: Path) -> bool | None:
    """Whether an npz file holds a label map too; None for one that cannot be read, which reading it will report."""
    try:
        return bool(set(KEYS["label"]) & set(npz_names(path))) if path.suffix == ".npz" else False
    except ValueError:
        return None


def _refuse_lonely(images: dict[str, Path], labels: dict[str, Path]) -> None:
    parts = [
        f"{len(lonely)} {what}: {', '.join(path.name for _, path in sorted(lonely.items()))}"
        for what, lonely in (("image(s) without a label map", images), ("label map(s) without an image", labels))
        if lonely
    ]
    if parts:
        raise ValueError(f"{'; '.join(parts)}. Files are paired by name, --images with --labels")


# ---- table ----


class Record(NamedTuple):
    """One row of a table."""

    group: str
    class_name: str | None
    split: str | None
    attributes: np.ndarray  # [A] float32, NaN = missing


class CohortTable(NamedTuple):
    """A cohort table."""

    rows: dict[str, Record]
    attribute_names: tuple[str, ...]
    attribute_units: tuple[str, ...]
    class_names: tuple[str, ...]
    ignored: tuple[str, ...]  # columns without a single number


def read_table(path: Path) -> CohortTable:
    """Read a CSV with columns id, and where wanted group, class, split; further columns of numbers are attributes.

    A unit stands in brackets in the header, `lv_volume [mL]`; an empty cell is a missing value, an empty group the id.
    """
    rows = _read_csv(path)
    columns = [c for c in rows[0] if c not in ("id", "group", "class", "split")]
    ignored = tuple(
        c
        for c in columns
        if all(_number(row[c]) is None for row in rows) and any(not _is_missing(row[c]) for row in rows)
    )
    columns = [c for c in columns if c not in ignored]
    bad = [
        f"{row['id']}: {c} = '{row[c]}'"
        for row in rows
        for c in columns
        if not _is_missing(row[c]) and _number(row[c]) is None
    ]
    if bad:
        raise ValueError(f"{path}: not a finite number: {listed(bad, '; ')}. Correct the cells or remove the column")
    headers = [re.fullmatch(r"(.*?)\s*(?:\[(.*)\])?", column) for column in columns]
    records = {
        row["id"]: Record(
            row.get("group") or row["id"],
            row.get("class") or None,
            row.get("split") or None,
            np.array([np.nan if _is_missing(row[c]) else _number(row[c]) for c in columns], np.float32),
        )
        for row in rows
    }
    classes = {record.class_name for record in records.values() if record.class_name}
    names, units = tuple(h[1] for h in headers), tuple(h[2] or "" for h in headers)
    return CohortTable(records, names, units, tuple(sorted(classes, key=_class_order)), ignored)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error
    lines = [line for line in lines if any(line)]
    header = lines[0] if lines else []
    if "id" not in header or len(set(header)) < len(header) or "" in header:
        raise ValueError(
            f"{path}: its first line must name every column once, one of them 'id', by commas; got {listed(header)}"
        )
    if uneven := [line[0] for line in lines if len(line) != len(header)]:
        raise ValueError(f"{path}: rows with more or fewer cells than the header: {listed(uneven)}")
    rows = [dict(zip(header, line)) for line in lines[1:]]
    doubled = [row_id or "(empty)" for row_id, n in Counter(r["id"] for r in rows).items() if n > 1 or not row_id]
    if doubled or not rows:
        raise ValueError(f"{path}: {'ids empty or doubled: ' + listed(doubled) if doubled else 'has no rows'}")
    return rows


def _is_missing(cell: str) -> bool:
    return cell.lower() in ("", "nan")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _class_order(name: str) -> tuple[float, str]:
    number = _number(name)
    return (np.inf if number is None else number, name)


# ---- splits ----


def parse_fractions(fractions: Sequence[float]) -> dict[str, float]:
    """Name up to three fractions train, val, test; ValueError unless they are not negative and sum to 1."""
    text = " ".join(f"{f:g}" for f in fractions)
    if not 1 <= len(fractions) <= 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise ValueError(
            f"--split {text}: wanted up to three fractions (train, val, test) that sum to 1, train above 0"
        )
    return {name: fraction for name, fraction in zip(SPLITS, fractions) if fraction > 0}


def assign_splits(groups: Sequence[str], fractions: dict[str, float], seed: int = 0) -> dict[str, str]:
    """Give every group a split, by a hash of seed and name, so that volumes divide as the fractions ask.

    groups: the group of each volume. Large groups are placed first, each where most volumes are still missing.
    ValueError if there are fewer groups than splits.
    """
    sizes = Counter(groups)
    if len(sizes) < len(fractions):
        raise ValueError(
            f"empty split: {len(sizes)} group(s) cannot fill {', '.join(fractions)}; change --split or add volumes"
        )
    missing = {split: fraction * len(groups) for split, fraction in fractions.items()}
    empty = set(fractions)
    chosen: dict[str, str] = {}
    order = sorted(sizes, key=lambda g: (-sizes[g], hashlib.sha256(f"{seed}:{g}".encode()).digest()))
    for position, group in enumerate(order):
        must_fill = len(order) - position == len(empty)  # one group left for each split that has none
        split = max((s for s in fractions if not must_fill or s in empty), key=missing.__getitem__)
        chosen[group] = split
        missing[split] -= sizes[group]
        empty.discard(split)
    return chosen
