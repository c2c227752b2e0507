"""Splits by folders: what lies in images/training is for training, images/validation and images/testing likewise.

Only the first folder below the one that was given counts, and only by its whole name: never what lies above it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from edm3d.formats.cohort import nearest_split
from edm3d.formats.folders import relative
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

FOLDERS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}


def splits_by_folder(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The split of each file below a folder, {} where none of its subfolders has the name of a split.

    ValueError for a subfolder that seems to be meant for a split, for files beside those of splits, for splits that are
    there twice, and for those without files.
    """
    first: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        first[next(iter(file.relative_to(root).parts[:-1]), "")].append(file)
    exact = [name for name in first if name in FOLDERS]
    near = {name: split for name in first if name not in FOLDERS and (split := nearest_split(name))}
    if near and (exact or len(set(near.values())) == len(first) > 1):
        said = listed(f"{name} ({nearest_name(split)})" for name, split in sorted(near.items()))
        raise ValueError(f"{one_line(str(root))}: folders that seem to be meant for splits: {said}; rename them as in "
                         "brackets")
    if not exact:
        return {}
    if others := sorted(path for name in first if name not in FOLDERS for path in first[name]):
        raise ValueError(f"{one_line(str(root))}: its folders {listed(sorted(exact))} are splits, and {len(others)} "
                         f"file(s) lie beside them: {listed(relative(others, root))}; move them into a split or away")
    if len({FOLDERS[name] for name in exact}) < len(exact):
        raise ValueError(f"{one_line(str(root))}: of its folders {listed(sorted(exact))} two are one split; make one "
                         "folder of them")
    if empty := sorted(path.name for path in root.iterdir() if path.name in {*FOLDERS} - {*exact} and path.is_dir()):
        raise ValueError(f"{one_line(str(root))}: no file in its folder(s) {listed(empty)}, which stand for splits; "
                         "fill or remove them")
    return {file: FOLDERS[name] for name in exact for file in first[name]}


def nearest_name(split: str) -> str:
    """Names of the folders of a split."""
    return " or ".join(name for name, of in FOLDERS.items() if of == split)


def check_same_split(splits: dict[Path, str], others: dict[Path, str], pairs: Iterable[tuple[Path, Path]]) -> None:
    """ValueError for files that belong together, (file, other), and by their folders lie in two splits."""
    apart = [f"{file} and {other}" for file, other in pairs
             if file in splits and other in others and splits[file] != others[other]]
    if apart:
        raise ValueError(f"files of one volume lie in folders of two splits: {listed(apart, '; ')}")
