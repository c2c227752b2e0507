"""What is said where a file of ours is wanted and another path is given: what that is, and which command makes one."""

from collections.abc import Iterable
from pathlib import Path

from edm3d.utils.commands import command

DATA = ("samples.h5", "samples.npz", "*.h5")  # likely files of a folder
ANY = (*DATA, "network-snapshot-*[0-9].pt", "model.safetensors")


def maker(format: str) -> str:
    """Which command makes files of a format, and of what; '' where none does."""
    return {"volumes": f"{command('data', 'prepare')} makes one of NIfTI, npy, npz or PNG files",
            "latents": f"{command('data', 'encode')} makes one of a volumes file",
            "samples": f"{command('generate')} makes one"}.get(format, "")


def as_wanted(format: str) -> str:
    """That a file of a format is wanted, and what makes such files."""
    return f"wanted a {format} file; {maker(format)}"


def check_is_file(path: Path, format: str | None = None, likely: Iterable[str] = DATA) -> None:
    """ValueError unless there is a file; of a folder it names the one that is meant, if it can be guessed.

    format: of the file that is wanted, where that is known. likely: patterns of names in a folder, of several that fit
    one of them the last is meant.
    """
    if path.is_file():
        return
    if not path.is_dir():
        raise ValueError(f"{path}: no such file" + (f"; {as_wanted(format)}" if format else ""))
    found = [file for pattern in likely for file in sorted(path.glob(pattern))[-1:]]
    hint = f"did you mean {found[0]}?" if found else maker(format or "")
    raise ValueError(f"{path}: a folder, wanted a {f'{format} ' if format else ''}file" + (f"; {hint}" if hint else ""))
