"""Run folders: results/00012-NAME[-desc], found again by a name, a folder or a file."""

import json
import re
from pathlib import Path

from utils import distributed
from utils.log import write_status

RUN = re.compile(r"^(\d{5,})-")


def runs_of(root: Path, experiment: str) -> list[Path]:
    """Run folders of an experiment, oldest first."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        status = folder / "status.json"
        if RUN.match(folder.name) and status.is_file() and \
                json.loads(status.read_text()).get("experiment") == experiment:
            found.append(folder)
    return found


def new_run(root: Path, experiment: str, desc: str | None, config_hash: str) -> Path:
    """Make the next run folder; rank 0 chooses, all ranks get it."""
    path = None
    if distributed.rank() == 0:
        root.mkdir(parents=True, exist_ok=True)
        while path is None:
            numbers = [int(m[1]) for m in map(RUN.match, (p.name for p in root.iterdir())) if m]
            name = "-".join(filter(None, (f"{max(numbers, default=-1) + 1:05d}", experiment, desc)))
            try:
                (root / name).mkdir()
                path = root / name
            except FileExistsError:  # another run took the number in this moment
                continue
        write_status(path, "running", experiment=experiment, config_hash=config_hash)
    return Path(distributed.broadcast_object(str(path) if path else None))


def newest_with_hash(root: Path, experiment: str, config_hash: str) -> Path | None:
    """The newest run of an experiment with a training state and the same config hash."""
    for folder in reversed(runs_of(root, experiment)):
        same = json.loads((folder / "status.json").read_text()).get("config_hash") == config_hash
        if same and list_files(folder, "training-state"):
            return folder
    return None


def list_files(folder: Path, kind: str) -> list[Path]:
    """Files network-snapshot-*.pt or training-state-*.pt of a run, oldest first."""
    return sorted(folder.glob(f"{kind}-*.pt"), key=lambda p: int(re.findall(r"\d+", p.stem)[-1]))


def find_file(name: str, kind: str, root: Path, key: str) -> Path:
    """The newest snapshot or state meant by an experiment's name, a run folder or a file; `key` is what to change."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        files = list_files(path, kind)
        if not files:
            raise ValueError(f"{key}={name}: the folder holds no {kind}-*.pt")
        return files[-1]
    for folder in reversed(runs_of(root, name)):
        files = list_files(folder, kind)
        if files:
            return files[-1]
    raise ValueError(f"{key}={name}: no such file or folder, and no run of that name with a {kind} in {root}/")


def prune(folder: Path, kind: str, keep: int) -> None:
    """Delete all but the newest `keep` files of a kind."""
    for path in list_files(folder, kind)[:-keep]:
        path.unlink()
