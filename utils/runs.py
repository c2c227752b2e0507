"""Run folders: results/00012-NAME[-desc], found again by a name, a folder or a file, one process group at a time."""

import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, takewhile
from pathlib import Path

import psutil

from edm3d.utils import distributed, locks
from edm3d.utils.checks import listed
from edm3d.utils.commands import command
from edm3d.utils.config import near
from edm3d.utils.log import read_status, write_status
from edm3d.utils.plain import read_json

RUN = re.compile(r"^(\d{5,})-")
STOP_FILE = "STOP"  # a file of this name in a run folder ends the run
PUBLISHED = ("config.json", "model.safetensors")  # files by which the folder of a published network is known
PUBLISHED_FORMAT = "edm3d"  # in its config.json
HDF5 = b"\x89HDF\r\n\x1a\n"  # how such files start


def runs_of(root: Path, experiment: str) -> Iterator[Path]:
    """Run folders of an experiment, newest first; a damaged status.json is an error where one comes to its folder."""
    return (p for p in numbered(root) if is_run_of(p, experiment))


def numbered(root: Path) -> list[Path]:
    """Run folders, newest first."""
    folders = [p for p in root.iterdir() if RUN.match(p.name)] if root.is_dir() else []
    return sorted(folders, key=lambda p: int(RUN.match(p.name)[1]), reverse=True)


def runs_called(root: Path, name: str) -> Iterator[Path]:
    """Run folders by all that stands behind their number, EXPERIMENT-DESC (training.options.desc), newest first."""
    for folder in numbered(root):
        if RUN.sub("", folder.name) == name:
            with suppress(ValueError):  # damaged: that of an experiment's name says so
                said = read_status(folder).get("experiment")
                if isinstance(said, str) and name.startswith(f"{said}-"):
                    yield folder


def runs_meant(root: Path, name: str) -> Iterator[Path]:
    """Run folders that a name means: those of an experiment, else those called so, newest first."""
    return chain(runs_of(root, name), runs_called(root, name))


def is_run_of(folder: Path, experiment: str) -> bool:
    """Whether a run folder is an experiment's; ValueError where it may be, but status.json, which says so, is damaged
    or, beside states, names no experiment that the folder could be of.
    """
    try:
        said = read_status(folder).get("experiment")
    except ValueError as e:
        if not is_named_after(folder, experiment):
            return False
        raise ValueError(f"{e}{last_state(folder)}") from e
    if said == experiment or not is_named_after(folder, experiment) or (said and is_named_after(folder, said)):
        return said == experiment
    if (folder / "status.json").is_file() and (state := last_state(folder)):
        raise ValueError(f"{folder}/status.json: damaged (experiment is {said!r:.60}, the folder is named after "
                         f"{experiment}); delete it, or the folder, if the run is not needed{state}")
    return False


def last_state(folder: Path) -> str:
    """Which state of a run folder there is to go on from, for an error; '' for none."""
    states = list_files(folder, "training-state")
    return f"; its last training state is {states[-1]}" if states else ""


def odd_runs(root: Path, experiment: str) -> list[str]:
    """What is wrong with the status.json of runs that are none of an experiment's."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if RUN.match(folder.name) and not is_named_after(folder, experiment):
            try:
                read_status(folder)
            except ValueError as e:
                found.append(str(e).partition("; delete it")[0])
    return found


def is_named_after(folder: Path, experiment: str) -> bool:
    """Whether a run folder's name is one that an experiment may give."""
    return f"{RUN.sub('', folder.name)}-".startswith(f"{experiment}-")


def without_status(root: Path, experiment: str) -> list[Path]:
    """Folders named after an experiment that hold training states, but no status.json: they count as nobody's runs."""
    named = [p for p in sorted(root.glob("*-*")) if RUN.match(p.name) and is_named_after(p, experiment)]
    return [p for p in named if not (p / "status.json").exists() and list_files(p, "training-state")]


def new_run(root: Path, experiment: str, desc: str | None, config_hash: str) -> Path:
    """Make the next run folder; rank 0 chooses, all ranks get it."""
    def make() -> str:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            numbers = [int(m[1]) for m in map(RUN.match, (p.name for p in root.iterdir())) if m]
            path = root / "-".join(filter(None, (f"{max(numbers, default=-1) + 1:05d}", experiment, desc)))
            try:
                path.mkdir()
            except FileExistsError:  # another run took the number in this moment
                continue
            write_status(path, "running", experiment=experiment, config_hash=config_hash,
                         run_id=secrets.token_hex(8), launch=launch())
            return str(path)

    return Path(distributed.from_rank_0(make))


def launch() -> str | None:
    """What torchrun calls this launch, the same after its own restarts of the group; None without torchrun.

    Where that is "none", as without --standalone and --rdzv_id, the machine and process of torchrun, and its start.
    """
    name, agent = os.environ.get("TORCHELASTIC_RUN_ID"), os.getppid()
    return f"{socket.gethostname()} {agent} {started(agent)}" if name == "none" else name


def started(pid: int) -> str:
    """When a process was started: in ticks of the machine, or by its clock, which may be set meanwhile."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else str(psutil.Process(pid).create_time())


def attempt() -> int:
    """How often torchrun has started this group of processes again (--max-restarts)."""
    return distributed.number("TORCHELASTIC_RESTART_COUNT", 0)


@contextmanager
def locked(run_dir: Path) -> Iterator[bool]:
    """Keep other process groups off a run folder as long as rank 0 lives; ValueError when one is at it.

    A record lock: the system lifts it when the process dies in whatever way, and forked processes do not share it.
    Gives False where the file system knows no locks.
    """
    handle = None

    def take() -> bool:
        nonlocal handle
        try:
            handle = locks.take(run_dir / ".lock")
        except locks.Busy as e:
            raise ValueError(f"{run_dir}: another run is at work in this folder ({e.owner}); wait for its end, or end "
                             f"it by a file {run_dir}/{STOP_FILE}") from e
        except OSError as e:
            raise ValueError(f"{run_dir}: no files can be written there ({e.strerror}); go on from a copy of it") from e
        return handle is not None

    try:
        yield distributed.from_rank_0(take)
    finally:
        if handle:
            handle.close()


def kimg_name(nimg: int, exact: bool) -> str:
    """Images seen as file names give them: 000012 for 12034 images, exactly 000012.034."""
    kimg, images = divmod(nimg, 1000)
    return f"{kimg:06d}" + (f".{images:03d}" if images and exact else "")


def has_exact_names(folder: Path) -> bool:
    """Whether a run folder holds states or snapshots that are named by exact images."""
    return any("." in path.stem for kind in ("training-state", "network-snapshot") for path in list_files(folder, kind))


def list_files(folder: Path, kind: str) -> list[Path]:
    """Files network-snapshot-KKKKKK.pt or training-state-KKKKKK.pt of a run, oldest first."""
    pattern = re.compile(rf"{kind}-(\d+)(?:\.(\d{{3}}))?\.pt")
    found = [(m, path) for path in folder.glob(f"{kind}-*.pt") if (m := pattern.fullmatch(path.name))]
    return [path for m, path in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2] or 0)))]


def find_file(name: str, kind: str, root: Path, key: str) -> Path:
    """The newest snapshot or state meant by an experiment's name, also with the description of a run behind it
    (echo_vae-mine), a run folder or a file; `key` is what to change.

    A published network is meant by its folder, which is given back.
    """
    path = Path(name)
    if path.is_file():
        if kind == "network-snapshot":  # who reads a state says more: which one is before it
            check_is_archive(path, kind, key)
            check_is_no_state(path, key)
        return path
    if kind == "network-snapshot" and is_published(path):
        return path
    for folder in [path] if path.is_dir() else runs_meant(root, name):
        if files := list_files(folder, kind):
            return files[-1]
    if path.is_dir():
        raise ValueError(f"{key}={name}: the folder holds no {kind}-*.pt")
    likely = near(name, sorted(names_of_runs(root) - {name}))
    raise ValueError(f"{key}={name}: no such file or folder, and no run of that name with a {kind} in {root}/"
                     + "".join(f"; did you mean '{one}'?" for one in likely))


def names_of_runs(root: Path) -> set[str]:
    """Names by which runs are found, of their experiments and their own; a folder whose status.json is damaged is left
    out.
    """
    names = set()
    for folder in root.glob("*-*"):
        with suppress(ValueError):
            if said := read_status(folder).get("experiment"):
                names |= {said, RUN.sub("", folder.name)}
    return names


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published network (formats/published.py), or what a killed command left of one."""
    config, weights = (folder / name for name in PUBLISHED)
    if not config.is_file() or weights.is_file():
        return config.is_file()
    with suppress(ValueError):
        found = read_json(config)
        return isinstance(found, dict) and found.get("format") == PUBLISHED_FORMAT
    return False


def passed_over(path: Path, name: str, root: Path) -> list[str]:
    """A note on runs of an experiment that are newer than the one a file of it was found in, if there are any."""
    if Path(name).exists():
        return []
    newer = list(takewhile(lambda folder: folder != path.parent, runs_meant(root, name)))
    told = [f"{folder} ({': '.join(filter(None, (status.get('status'), first_words(status.get('why', '')))))})"
            for folder in newer for status in [read_status(folder)]]
    kind = path.stem.rpartition("-")[0]
    return [f"Note: newer, but without a {kind}: {listed(told)}; used is {path.parent}"] if told else []


def first_words(text: str, length: int = 100) -> str:
    """The first line of a text, shortened."""
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= length else f"{line[:length - 3]}..."


def check_is_archive(path: Path, kind: str, key: str) -> None:
    """ValueError for a file that by its first bytes is not what torch.save writes, a zip archive."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return
    found = "holds data (HDF5)" if start == HDF5 else f"starts with {start!r}" if start else "is empty"
    is_pickle = start.startswith(b"\x80") or path.suffix == ".pkl"
    hint = f"; {command('data', 'import-edm')} makes a snapshot of an official EDM network" if is_pickle else ""
    raise ValueError(f"{key}={path}: wanted a {kind} (.pt), this file {found}{hint}")


def check_is_no_state(path: Path, key: str) -> None:
    """ValueError for a training state by its name, where a snapshot is wanted."""
    if path.name.startswith("training-state-"):
        found = list_files(path.parent, "network-snapshot")
        beside = f"; the newest beside it is {found[-1]}" if found else ", of which there is none beside it"
        raise ValueError(f"{key}={path}: a training state, wanted a network-snapshot{beside}")


def prune(folder: Path, kind: str, keep: int) -> None:
    """Delete all but the newest `keep` files of a kind, each after the files of further averages that go with it."""
    for path in list_files(folder, kind)[:-keep]:
        for companion in folder.glob(f"{path.stem}-ema*.pt"):
            companion.unlink()
        path.unlink()
