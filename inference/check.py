"""Whether files of any kind are well: data and run folders, and what trained networks lie in."""

from functools import partial
from pathlib import Path

from edm3d.formats import h5
from edm3d.formats.check import Checker, Report, check_h5, checker_of
from edm3d.formats.describe import HDF5, KINDS
from edm3d.formats.edm_pickle import read_edm_pickle
from edm3d.formats.folders import is_utf8, passed_over, walk
from edm3d.formats.published import STAGE_WEIGHTS
from edm3d.formats.training_state import TrainingState
from edm3d.inference.latent_source import open_source
from edm3d.inference.network_files import Weights
from edm3d.inference.snapshot import Snapshot, with_labels
from edm3d.inference.told import in_words
from edm3d.utils import checkpoint
from edm3d.utils.files import first_line
from edm3d.utils.log import progress
from edm3d.utils.names import one_line
from edm3d.utils.runs import PUBLISHED, is_published


def check(path: Path, trust: bool = False) -> Report:
    """Read a file, or all files below a folder, and say what is in them and what is wrong; nothing is raised for that.

    trust: build any network that a snapshot names, to see whether its weights fit. ValueError if there is nothing to
    check.
    """
    if path.is_file():
        if (own := checker(path, trust)) is None:
            raise ValueError(f"{path}: wanted an {KINDS}")
        return checked(path, own)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    found = walk(path, lambda each: is_of_published(each) or checker(each, trust))
    own = {each: way for each in found.files if (way := checker(each, trust))}
    own |= {folder: checker(folder, trust) for folder in {each.parent for each in found.files if is_of_published(each)}}
    left = passed_over(found)
    if not own:
        raise ValueError("; ".join([f"{path}: holds no {KINDS}", *left]))
    reports = [checked(each, own[each]) for each in progress(sorted(own), desc="check", unit="file")]
    lines = [line for report in reports for line in report.lines]
    bad = sum(bool(report.problems) for report in reports)
    lines += [*left, f"{len(own)} files, {bad} bad"]
    return Report(lines, [problem for report in reports for problem in report.problems])


def is_of_published(path: Path) -> bool:
    """Whether a file is one of a published network, which are checked together."""
    return path.name in (*PUBLISHED, STAGE_WEIGHTS) and is_published(path.parent)


def checker(path: Path, trust: bool) -> Checker | None:
    """What checks a file, or the folder of a published network, whose files then count as one; None: nothing."""
    if path.is_dir():
        return partial(check_snapshot, trust=trust) if is_published(path) else None
    if path.name.startswith(".") or is_of_published(path):
        return None
    own = {".pt": partial(check_torch, trust=trust), ".pkl": check_pickle,
           **dict.fromkeys(HDF5, partial(check_data, trust=trust))}
    return own.get(path.suffix) or checker_of(path)


def checked(path: Path, own: Checker) -> Report:
    """The report on a path; whatever reading it raises is a problem of that file, and the next is looked at."""
    if not is_utf8(str(path)):
        return Report([], [f"{one_line(str(path))}: its name is not UTF-8; rename it"])
    try:
        return own(path)
    except Exception as e:  # libraries raise what they please on a damaged file
        text = str(e) if isinstance(e, ValueError) else f"cannot be read ({type(e).__name__}: {first_line(e):.200})"
        return Report([], [text if str(path) in text else f"{path}: {text}"])


def check_data(path: Path, trust: bool) -> Report:
    """A data file (formats/check.py); of latents of ours the first stage as well, without memory for it."""
    report = check_h5(path)
    if not report.problems and h5.read_format(path) == "latents":
        open_source(path).stage.verify(str(path), trust)
    return report


def check_torch(path: Path, trust: bool) -> Report:
    """A snapshot or a training state."""
    found = checkpoint.read_plain(path)
    is_state = isinstance(found, dict) and found.get("format") == "state"
    return check_state(path) if is_state else check_snapshot(path, trust)


def check_state(path: Path) -> Report:
    """A training state: all but whether it fits the program, which a resume looks at."""
    state = TrainingState.read(path)
    modules = ", ".join(f"{name} {count(weights)}" for name, weights in state.modules.items())
    return Report([f"{path}: training state at {state.nimg / 1000:g} kimg, weights of {modules}; verified: the "
                   "checksum over all, keys and types, weights and optimisers finite; whether it fits a run is for the "
                   "resume to see"], [])


def check_snapshot(path: Path, trust: bool) -> Report:
    """A snapshot, as file or published folder, and the networks in it, without memory for them."""
    snapshot = Snapshot.read(path)
    networks = [f"the network {snapshot.target}"]
    snapshot.verify(trust)
    if snapshot.first_stage and snapshot.first_stage.network:
        networks.append("the first stage that it carries, which has its hash")
    shape = f"{list(snapshot.shape)}{with_labels(snapshot.label_coding)}"
    gives = f", {in_words(snapshot.predicts)}" if snapshot.predicts else ""
    return Report([f"{path}: snapshot of task {snapshot.task} at {snapshot.nimg / 1000:g} kimg, "
                   f"{count(snapshot.weights)}, shape {shape}{gives}; verified: the checksum over all, keys "
                   f"and types, weights finite and just those of {' and of '.join(networks)}"], [])


def check_pickle(path: Path) -> Report:
    """An official EDM network, read as data."""
    found = read_edm_pickle(path)
    return Report([f"{path}: official EDM network {found.config['class_name']}, {count(found.state_dict)}; verified: "
                   "that nothing in it asks to be run"], [])


def count(weights: Weights) -> str:
    """How many weights there are."""
    return f"{sum(w.numel() for w in weights.values()) / 1e6:.2f} M weights in {len(weights)} tensors"
