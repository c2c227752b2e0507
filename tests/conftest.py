"""What every test stands on: one torch thread, no display, and the places files are found."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before matplotlib is imported, here and in the commands the tests start
os.environ["OMP_NUM_THREADS"] = "1"  # what commands set as well

from contextlib import chdir
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the thread count changes the last bits; a single one is the same on every machine

ROOT = Path(__file__).resolve().parents[1]


def walk_own_files(root: Path) -> list[Path]:
    """Every file of the project, relative to root, sorted, less what .gitignore names and virtual environments.

    Needs no git, so that an unpacked archive is checked like a clone.
    """
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def is_ours(path: Path) -> bool:
        relative, name = path.relative_to(root).as_posix(), path.name
        ignored = any(
            fnmatch(relative, pattern.strip("/")) if pattern.startswith("/") else fnmatch(name, pattern.strip("/"))
            for pattern in patterns
        )
        return not ignored and name != ".git" and not (path / "pyvenv.cfg").exists()

    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if is_ours(Path(folder, name))]
        found += [Path(folder, name).relative_to(root) for name in names if is_ours(Path(folder, name))]
    return sorted(found)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def own_files() -> list[Path]:
    """Every file of the project, relative to the top of the checkout."""
    return walk_own_files(ROOT)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout, where there is one."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no reference material: there is no ../shared beside the checkout")
    return folder


@pytest.fixture
def at(here: Path):
    """Work in the folder that a module's own fixture `here` has made; commands may set the number of threads."""
    threads = torch.get_num_threads()
    with chdir(here):
        yield here
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def few_fresh_phantoms():
    """Reports on phantoms are held against 12 fresh ones, not 512: half a minute less for each."""
    from edm3d.reporting import reference

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "FRESH_PHANTOMS", 12)
        yield
