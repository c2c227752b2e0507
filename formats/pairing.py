"""Which files belong together: images with their label maps, and several images of one id as its channels, by name."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from edm3d.formats.folders import Tree, check_names, is_utf8, passed_over, relative, stem_of, stems, walk
from edm3d.formats.nifti import KEYS, npz_names, suffix_of
from edm3d.formats.patterns import (
    ANY,
    IMAGES,
    LABELS,
    NUMBERED,
    Pattern,
    is_of_label_maps,
    proposal,
    several_of_one,
    told_apart,
)
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

Stems = dict[str, Path]  # files by their names without suffix


class CaseFiles(NamedTuple):
    """The files of one volume."""

    id: str
    images: tuple[Path, ...]  # one per channel, or one that holds all
    label: Path | None


class Pairing(NamedTuple):
    """The cases, sorted by id; what stands for {channel}, in the order of each case's images; and what to tell."""

    cases: list[CaseFiles]
    channels: tuple[str, ...]
    notes: list[str]


def find_cases(images: Path, labels: Path | None, *, image_pattern: str | None = None, label_pattern: str | None = None,
               channels: Sequence[str] = (), table_ids: Collection[str] = ()) -> Pairing:
    """Pair images and label maps by the ids in their names; ValueError names everything that has no partner.

    Names go without suffix, in Unicode's form NFC. Subfolders are read too: where two files below `images` or below
    `labels` have one name, the names of all begin with their folders, `p1/t1.nii` is p1_t1.

    A pattern says what of a name is the id. Images of one id are its channels, in the order of `channels` where these
    are named, else sorted; every id must have the same. Without image_pattern an id is the whole name, but for
    nnU-Net's channel number `_0000`, unless a label map or the table has the full name; without labels and table,
    numbers count as channels only if every case has the same ones, from 0000 on. With label_pattern the label maps may
    lie among the images, and labels may be None; else the label maps inside npz images are taken then, if there are
    any.
    """
    channels = [unicodedata.normalize("NFC", channel) for channel in channels]
    image_names, label_names = Pattern(IMAGES, image_pattern or ANY, channels), Pattern(LABELS, label_pattern or ANY)
    among = labels is None
    labels = images if among and label_pattern else labels
    taken, notes = _sorted_out(images, labels, image_names, label_names)
    image_files, label_files = taken[IMAGES], taken[LABELS]
    label_of = {label_names.read(stem)[0]: path for stem, path in label_files.items()}
    if image_pattern is None:
        found, names = _numbered(image_files, {*label_of, *table_ids}, len(channels)), ()
    else:
        found, names = _by_pattern(image_files, image_names, channels)
    if labels is not None:
        _refuse_lonely({case: files[0] for case, files in found.items() if case not in label_of},
                       {case: path for case, path in label_of.items() if case not in found}, image_files, label_files,
                       "They are paired by what their patterns call {id}" if among else
                       "They are paired by name, --images with --labels")
    else:
        label_of = _inside(found)
        if image_pattern is None and not table_ids:
            _refuse_label_folders(images, image_files.values())
        notes += _looks_mixed(images, found) if image_pattern is None else []
    return Pairing([CaseFiles(case, files, label_of.get(case)) for case, files in sorted(found.items())], names, notes)


# ---- which files ----


def _sorted_out(images: Path, labels: Path | None, image_names: Pattern, label_names: Pattern
                ) -> tuple[dict[str, Stems], list[str]]:
    """The files that fit each pattern, by its option, and a note on those that fit none.

    In one folder, what fits both belongs to the pattern that says more.
    """
    places, taken, notes = [(images, [image_names])], {IMAGES: {}, LABELS: {}}, []
    if labels is not None and labels.is_dir() and images.is_dir() and labels.samefile(images):
        places[0][1].append(label_names)
    elif labels is not None:
        places.append((labels, [label_names]))
    trees = _read_folders([folder for folder, _ in places])
    for (folder, patterns), (found, files) in zip(places, trees):
        left = []
        if [pattern.text for pattern in patterns] == [ANY, ANY]:
            raise ValueError(f"{folder}: --images and --labels are one folder, whose files {IMAGES} and {LABELS} tell "
                             f"apart{told_apart(files) or ', as in {id}_t1 and {id}_seg'}")
        for stem, path in files.items():
            if pattern := _pattern_of(stem, path, patterns):
                taken[pattern.option][stem] = path
            else:
                left.append(path)
        for pattern in patterns:
            if not taken[pattern.option]:
                raise ValueError(f"{folder}: no name fits {pattern}; there are {listed(files)}")
        if left:
            misfit = f"fit neither {patterns[0]} nor {patterns[1]}" if patterns[1:] else f"do not fit {patterns[0]}"
            notes.append(f"{len(left)} of {len(files)} files in {folder} {misfit} and are left out: "
                         f"{listed(relative(left, folder))}")
        notes += passed_over(found)
    return taken, notes


def _pattern_of(stem: str, path: Path, patterns: Sequence[Pattern]) -> Pattern | None:
    """The pattern that a name fits; of two the one with more letters of its own."""
    fit = sorted((pattern for pattern in patterns if pattern.read(stem)), key=lambda pattern: pattern.literal)
    if len(fit) == 2 and fit[0].literal == fit[1].literal:
        raise ValueError(f"{one_line(str(path))}: fits {fit[0]} and {fit[1]} alike; make one of them say more")
    return fit[-1] if fit else None


def _read_folders(folders: Sequence[Path]) -> list[tuple[Tree, Stems]]:
    """What lies below each folder, not below another one of these, and its volumes by name; ValueError for none.

    All or none have the names of their folders in front (see find_cases).
    """
    if odd := [folder for folder in folders if not is_utf8(str(folder))]:
        raise ValueError(f"{one_line(str(odd[0]))}: its name is not UTF-8; rename it")
    if absent := [folder for folder in folders if not folder.is_dir()]:
        raise ValueError(f"{absent[0]}: no such folder")
    trees = []
    for folder in folders:
        trees.append(walk(folder, without=[other for other in folders if other != folder]))
        check_names(trees[-1])
        if not trees[-1].files:
            raise ValueError("; ".join([f"{folder}: holds no .nii, .nii.gz, .npy or .npz files",
                                        *passed_over(trees[-1])]))
    is_deep = any(len({(stem_of(path), path.parent) for path in found.files}) > len(set(map(stem_of, found.files)))
                  for found in trees)
    return [(found, _by_stem(found, is_deep)) for found in trees]


def _by_stem(found: Tree, is_deep: bool) -> Stems:
    """The volumes by name; ValueError naming those of one name."""
    named = list(stems(found, is_deep))
    counts = Counter(stem for stem, _ in named)
    if double := [path for stem, path in named if counts[stem] > 1]:
        written = {path.name[:-len(suffix_of(path))] for path in double}
        how = ", in two Unicode forms" if len(written) > len(set(map(stem_of, double))) else ""
        raise ValueError(f"{found.root}: files of the same name{how}: {listed(relative(double, found.root))}; keep one "
                         "of each")
    return dict(named)


def _refuse_label_folders(root: Path, images: Iterable[Path]) -> None:
    """ValueError where subfolders by their names hold label maps, which would be taken for images."""
    folders = {path.relative_to(root).parts[:-1] for path in images}
    if names := sorted({name for parts in folders for name in parts if is_of_label_maps(name)}):
        raise ValueError(f"{root}: by their names its folders {listed(names)} hold label maps; give the folder of "
                         "images by --images and that of label maps by --labels, a Medical Decathlon task by "
                         "--decathlon, or list all images in a table (--table)")


def _looks_mixed(folder: Path, found: Mapping[str, object]) -> list[str]:
    """A note on images that by their names are label maps, or channels of one id, and are taken for volumes each."""
    if told := told_apart(found):
        return [f"Note: every file in {folder} is taken for an image of its own, though some look like label maps"
                f"{told}"]
    if channels := several_of_one(found):
        return [f"Note: names in {folder} end in {channels}, and every file is taken for a volume of its own; to make "
                f"channels of them give {IMAGES} '{NUMBERED}'"]
    return []


# ---- channels ----


def _by_pattern(files: Stems, pattern: Pattern, channels: Sequence[str]
                ) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """The images of each id, and what stands for {channel}, in one order."""
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for stem, path in files.items():
        case, channel = pattern.read(stem)
        cases[case][channel] = path
    wanted = channels if pattern.has_channel and channels else sorted({c for found in cases.values() for c in found})
    return _in_order(cases, wanted), tuple(wanted) if pattern.has_channel else ()


def _numbered(files: Stems, known: Collection[str], channels: int) -> dict[str, tuple[Path, ...]]:
    """The images of each id by nnU-Net's channel numbers, where the names have such (see find_cases)."""
    pattern = Pattern(IMAGES, NUMBERED, digits=True)
    numbered = {stem: match for stem in files if (match := pattern.read(stem))}
    if not known and not _looks_like_channels(numbered.values(), len(files), channels):
        numbered = {}
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for stem, path in files.items():
        case, channel = (stem, "0000") if stem in known else numbered.get(stem, (stem, "0000"))
        if channel in cases[case]:
            names = " and ".join(one_line(file.name) for file in (path, cases[case][channel]))
            raise ValueError(f"{path.parent}: {names} are the same image")
        cases[case][channel] = path
    return _in_order(cases, _first(max(len(found) for found in cases.values())))


def _looks_like_channels(numbered: Collection[tuple[str, str]], files: int, channels: int) -> bool:
    found = defaultdict(list)
    for case, channel in numbered:
        found[case].append(channel)
    if len(numbered) < files or len({tuple(sorted(each)) for each in found.values()}) != 1:
        return False
    case, first = next(iter(found.items()))
    if sorted(first) != _first(len(first)):
        return False
    if len(found) == 1 and len(first) > 1 and not channels:
        raise ValueError(
            f"{case}_0000 to _{len(first) - 1:04d}: are these channels of one case, or cases? "
            "Name the channels with --channels, or list the cases in a table with --table"
        )
    return channels in (0, len(first))


def _first(count: int) -> list[str]:
    """nnU-Net's first channel numbers."""
    return [f"{channel:04d}" for channel in range(count)]


def _in_order(cases: Mapping[str, Mapping[str, Path]], wanted: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The images of each id in the order of the channels that are wanted; ValueError naming who lacks which."""
    lacking = [f"{case} lacks {listed(absent)}" for case, found in sorted(cases.items())
               if (absent := [channel for channel in wanted if channel not in found])]
    if lacking:
        raise ValueError(f"channels {listed(wanted)} are wanted of every id, but {listed(lacking, '; ')}")
    return {case: tuple(found[channel] for channel in wanted) for case, found in cases.items()}


# ---- label maps ----


def _inside(found: Mapping[str, tuple[Path, ...]]) -> dict[str, Path]:
    """The npz images that hold a label map too; ValueError where only some do."""
    has_label = {case: _has_label(files[0]) for case, files in found.items()}
    if any(has_label.values()):
        those = listed(found[case][0].name for case, has in sorted(has_label.items()) if has)
        _refuse_lonely({case: found[case][0] for case, has in has_label.items() if has is False},
                       how=f"Every npz holds one, or none does; there is one in {those}")
    return {case: found[case][0] for case, has in has_label.items() if has}


def _has_label(path: Path) -> bool | None:
    """Whether an npz file holds a label map too; None for one that cannot be read, which reading it will report."""
    try:
        return bool(set(KEYS["label"]) & set(npz_names(path))) if suffix_of(path) == ".npz" else False
    except ValueError:
        return None


def _refuse_lonely(images: Mapping[str, Path], labels: Mapping[str, Path] = MappingProxyType({}),
                   image_files: Iterable[str] = (), label_files: Iterable[str] = (), how: str = "") -> None:
    """ValueError naming images and label maps by id that have no partner, and patterns by which more would have one.

    how: a sentence on how they are paired.
    """
    parts = [
        f"{len(lonely)} {what}: {listed(_names(lonely))}"
        for what, lonely in (("image(s) without a label map", images), ("label map(s) without an image", labels))
        if lonely
    ]
    if parts:
        more = proposal(set(image_files), set(label_files), len(images) + len(labels))
        raise ValueError(f"{'; '.join(parts)}. {how}{more or differ_in_case(images, labels)}")


def _names(files: Mapping[str, Path]) -> list[str]:
    """The files' names in the order of their ids; the id of one that is made of its folders too."""
    return [path.name if case in stem_of(path) else case for case, path in sorted(files.items())]


def differ_in_case(names: Iterable[str], others: Iterable[str]) -> str:
    """A hint naming which of these names are among the others but for capital letters; '' for none."""
    alike = {other.casefold(): other for other in others}
    pairs = [f"{name} and {alike[name.casefold()]}" for name in sorted(names) if name.casefold() in alike]
    return f"; capital and small letters differ: {listed(pairs)}" if pairs else ""
