"""Which files belong together, by name: images with their label maps and maps, several images of one id as channels."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edm3d.formats.folders import (
    Tree,
    check_names,
    is_utf8,
    passed_over,
    relative,
    stem_of,
    stems,
    walk,
    without_pictures,
)
from edm3d.formats.nifti import KEYS, SUFFIXES, npz_names, suffix_of
from edm3d.formats.patterns import (
    ANY,
    IMAGES,
    LABELS,
    MAPS,
    NOUNS,
    NUMBERED,
    Name,
    Pattern,
    is_of_label_maps,
    proposal,
    several_of_one,
    told_apart,
)
from edm3d.formats.split_folders import check_same_split, splits_by_folder
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

Stems = dict[str, Path]  # files by their names without suffix
FOLDERS = {IMAGES: "--images", LABELS: "--labels", MAPS: "--maps"}  # by the option of the pattern of what lies in them
ROLES = {LABELS: "label", MAPS: "map"}  # as files are read


class CaseFiles(NamedTuple):
    """The files of one volume."""

    id: str
    images: tuple[Path, ...]  # one per channel, or one that holds all
    label: Path | None = None
    map: Path | None = None
    split: str | None = None  # that of the folder that it lies in
    class_name: str | None = None  # what its name says by the pattern, as the next
    patient: str | None = None

    @property
    def maps(self) -> dict[str, Path]:
        """The files of its label map and map, by what they are read as."""
        return {role: path for role, path in (("label", self.label), ("map", self.map)) if path}


class Pairing(NamedTuple):
    """The cases, sorted by id; what stands for {channel}, in the order of each case's images; and what to tell."""

    cases: list[CaseFiles]
    channels: tuple[str, ...]
    notes: list[str]


def find_cases(images: Path, labels: Path | None = None, maps: Path | None = None, *, image_pattern: str | None = None,
               label_pattern: str | None = None, map_pattern: str | None = None, channels: Sequence[str] = (),
               classes: Sequence[str] = (), table_ids: Collection[str] = ()) -> Pairing:
    """Pair images, label maps and maps by the ids in their names; ValueError names everything that has no partner.

    Names go without suffix, in Unicode's form NFC. Subfolders are read too: where two files below one of the folders
    have one name, the names of all begin with their folders, `p1/t1.nii` is p1_t1. Subfolders called by splits
    (training, val, ...) say which each case is for (formats/split_folders.py).

    A pattern says what of a name is the id. Images of one id are its channels, in the order of `channels` where these
    are named, else sorted; every id must have the same. Without image_pattern an id is the whole name, but for
    nnU-Net's channel number `_0000`, unless a label map, a map or the table has the full name; without all of these,
    numbers count as channels only if every case has the same ones, from 0000 on. With label_pattern the label maps may
    lie among the images, and labels may be None; else the label maps inside npz images are taken then, if there are
    any. So it is with map_pattern and maps. classes: what alone stands for {class} in patterns, () for anything.
    """
    channels, classes = ([unicodedata.normalize("NFC", name) for name in names] for names in (channels, classes))
    patterns = {IMAGES: Pattern(IMAGES, image_pattern or ANY, channels, classes),
                LABELS: Pattern(LABELS, label_pattern or ANY, classes=classes),
                MAPS: Pattern(MAPS, map_pattern or ANY, classes=classes)}
    given = {LABELS: (labels, label_pattern), MAPS: (maps, map_pattern)}
    folders = {IMAGES: images}
    folders |= {option: folder or images for option, (folder, pattern) in given.items() if folder or pattern}
    taken, notes = _sorted_out(folders, patterns)
    of = {option: _by_id(taken[option], patterns[option], folder) for option, folder in folders.items()
          if option != IMAGES}
    if image_pattern is None:
        found, names = _numbered(taken[IMAGES], {*table_ids}.union(*of.values()), len(channels)), ()
    else:
        found, names, said = _by_pattern(taken[IMAGES], patterns[IMAGES], channels, images)
    for option, files in of.items():
        how = (f"They are paired by name, --images with {FOLDERS[option]}" if given[option][0] else
               "They are paired by what their patterns call {id}")
        _refuse_lonely({case: images[0] for case, images in found.items() if case not in files},
                       {case: path for case, path in files.items() if case not in found}, option, taken[IMAGES],
                       taken[option], how)
    of = {option: of[option] if option in of else _inside(found, option) for option in ROLES}
    if LABELS not in folders and image_pattern is None:
        if not table_ids:
            _refuse_label_folders(images, taken[IMAGES].values())
        notes += _looks_mixed(images, found)
    cases = [case._replace(class_name=said[case.id].class_name or None, patient=said[case.id].patient)
             if patterns[IMAGES].names_patients else case for case in _cases(folders, found, of)]
    return Pairing(cases, names, notes)


def _cases(folders: Mapping[str, Path], found: Mapping[str, tuple[Path, ...]], of: Mapping[str, Mapping[str, Path]]
           ) -> list[CaseFiles]:
    """The cases by id, with the splits that the folders of their images stand for."""
    splits = splits_by_folder(folders[IMAGES], [path for files in found.values() for path in files])
    check_same_split(splits, splits, [(files[0], path) for files in found.values() for path in files[1:]])
    for option, paths in of.items():
        if option in folders:
            others = splits_by_folder(folders[option], list(paths.values()))
            check_same_split(splits, others, [(files[0], paths[case]) for case, files in found.items()])
    return [CaseFiles(case, files, of[LABELS].get(case), of[MAPS].get(case), splits.get(files[0]))
            for case, files in sorted(found.items())]


# ---- which files ----


def _sorted_out(folders: Mapping[str, Path], named: Mapping[str, Pattern]) -> tuple[dict[str, Stems], list[str]]:
    """The files that fit each pattern, by its option, and a note on those that fit none.

    In one folder, what fits several belongs to the pattern that says most.
    """
    places: list[tuple[Path, list[Pattern]]] = []
    for option, folder in folders.items():
        same = [patterns for other, patterns in places
                if folder.is_dir() and other.is_dir() and folder.samefile(other)] or [[]]
        same[0].append(named[option])
        places += [(folder, same[0])] if len(same[0]) == 1 else []
    taken, notes = {option: {} for option in folders}, []
    for (folder, patterns), (found, files) in zip(places, _read_folders([folder for folder, _ in places])):
        left = []
        if len(alike := [pattern.option for pattern in patterns if pattern.text == ANY]) > 1:
            apart = told_apart(files) or ", as in {id}_t1 and {id}_seg"
            raise ValueError(f"{folder}: {' and '.join(FOLDERS[option] for option in alike)} are one folder, whose "
                             f"files {' and '.join(alike)} tell apart{apart}")
        for stem, path in files.items():
            if pattern := _pattern_of(stem, path, patterns, folder):
                taken[pattern.option][stem] = path
            else:
                left.append(path)
        for pattern in patterns:
            if not taken[pattern.option]:
                raise ValueError(f"{folder}: no name fits {pattern}; there are {listed(files)}")
        if left:
            misfit = (f"fit neither {' nor '.join(map(str, patterns))}" if patterns[1:] else
                      f"do not fit {patterns[0]}")
            notes.append(f"{len(left)} of {len(files)} files in {folder} {misfit} and are left out: "
                         f"{listed(relative(left, folder))}")
        notes += passed_over(found)
    return taken, notes


def _pattern_of(stem: str, path: Path, patterns: Sequence[Pattern], root: Path) -> Pattern | None:
    """The pattern that a name fits; of several the one with most letters of its own."""
    fit = sorted((pattern for pattern in patterns if pattern.read(stem, path.relative_to(root))),
                 key=lambda pattern: pattern.literal)
    if len(fit) > 1 and fit[-2].literal == fit[-1].literal:
        raise ValueError(f"{one_line(str(path))}: fits {fit[-2]} and {fit[-1]} alike; make one of them say more")
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
        trees.append(without_pictures(walk(folder, without=[other for other in folders if other != folder])))
        check_names(trees[-1])
        if not trees[-1].files:
            raise ValueError("; ".join([f"{folder}: holds no {', '.join(sorted(SUFFIXES))} files",
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


def _by_pattern(files: Stems, pattern: Pattern, channels: Sequence[str], root: Path
                ) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...], dict[str, Name]]:
    """The images of each id, what stands for {channel}, in one order, and what the name of each id's first image says.
    """
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    said: dict[str, Name] = {}
    for stem, path in files.items():
        name = pattern.read(stem, path.relative_to(root))
        is_other = said.setdefault(name.id, name)._replace(channel=name.channel) != name
        _refuse_double(path, next(iter(cases[name.id].values())) if is_other else cases[name.id].get(name.channel),
                       pattern)
        cases[name.id][name.channel] = path
    wanted = channels if pattern.has_channel and channels else sorted({c for found in cases.values() for c in found})
    return _in_order(cases, wanted), tuple(wanted) if pattern.has_channel else (), said


def _by_id(files: Stems, pattern: Pattern, root: Path) -> dict[str, Path]:
    """Label maps or maps by their ids."""
    found: dict[str, Path] = {}
    for stem, path in files.items():
        name = pattern.read(stem, path.relative_to(root))
        _refuse_double(path, found.get(name.id), pattern)
        found[name.id] = path
    return found


def _refuse_double(path: Path, other: Path | None, pattern: Pattern) -> None:
    if other:
        raise ValueError(f"{one_line(str(other))} and {one_line(str(path))} are one {NOUNS[pattern.option]} by "
                         f"{pattern}; rename one of them, or make the pattern say more")


def _numbered(files: Stems, known: Collection[str], channels: int) -> dict[str, tuple[Path, ...]]:
    """The images of each id by nnU-Net's channel numbers, where the names have such (see find_cases)."""
    pattern = Pattern(IMAGES, NUMBERED, digits=True)
    numbered = {stem: match for stem in files if (match := pattern.read(stem))}
    if not known and not _looks_like_channels([name[:2] for name in numbered.values()], len(files), channels):
        numbered = {}
    cases: dict[str, dict[str, Path]] = defaultdict(dict)
    for stem, path in files.items():
        case, channel = (stem, "0000") if stem in known else numbered.get(stem, (stem, "0000"))[:2]
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


# ---- label maps and maps ----


def _inside(found: Mapping[str, tuple[Path, ...]], option: str) -> dict[str, Path]:
    """The npz images that hold a label map or map too; ValueError where only some do."""
    has_label = {case: _has(files[0], ROLES[option]) for case, files in found.items()}
    if any(has_label.values()):
        those = listed(found[case][0].name for case, has in sorted(has_label.items()) if has)
        _refuse_lonely({case: found[case][0] for case, has in has_label.items() if has is False}, {},
                       option, how=f"Every npz holds one, or none does; there is one in {those}")
    return {case: found[case][0] for case, has in has_label.items() if has}


def _has(path: Path, role: str) -> bool | None:
    """Whether an npz file has an array of a role; None for one that cannot be read, which reading it will report."""
    try:
        return bool(set(KEYS[role]) & set(npz_names(path))) if suffix_of(path) == ".npz" else False
    except ValueError:
        return None


def _refuse_lonely(images: Mapping[str, Path], others: Mapping[str, Path], option: str,
                   image_files: Iterable[str] = (), other_files: Iterable[str] = (), how: str = "") -> None:
    """ValueError naming images and others by id that have no partner, and patterns by which more would have one.

    option: of the pattern of the others, label maps or maps; how: a sentence on how they are paired.
    """
    noun = NOUNS[option]
    parts = [
        f"{len(lonely)} {what}: {listed(_names(lonely))}"
        for what, lonely in ((f"image(s) without a {noun}", images), (f"{noun}(s) without an image", others))
        if lonely
    ]
    if parts:
        more = proposal(set(image_files), set(other_files), len(images) + len(others), option)
        raise ValueError(f"{'; '.join(parts)}. {how}{more or differ_in_case(images, others)}")


def _names(files: Mapping[str, Path]) -> list[str]:
    """The files' names in the order of their ids; the id of one that is made of its folders too."""
    return [path.name if case in stem_of(path) else case for case, path in sorted(files.items())]


def differ_in_case(names: Iterable[str], others: Iterable[str]) -> str:
    """A hint naming which of these names are among the others but for capital letters; '' for none."""
    alike = {other.casefold(): other for other in others}
    pairs = [f"{name} and {alike[name.casefold()]}" for name in sorted(names) if name.casefold() in alike]
    return f"; capital and small letters differ: {listed(pairs)}" if pairs else ""
