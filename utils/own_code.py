"""Code of the user's own: modules of the working folder, found whatever program was started and from where."""

import importlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[1]
OTHERS = tuple(str(Path(sysconfig.get_path(name)).resolve()) + os.sep for name in ("stdlib", "purelib", "platlib"))


def import_module(name: str) -> ModuleType:
    """A module by its full name, also one of the working folder; ImportError, with file and line, where it fails.

    The working folder is the last place that is looked into, so that no file in it stands before a library. The
    checkout's root, in which Python finds a script that stands there, is left out meanwhile: its folders go by
    edm3d.networks and so on, and `networks` is the user's.
    """
    if name.partition(".")[0] == "edm3d":
        return importlib.import_module(name)
    here, places = Path.cwd(), [(place, Path(place).resolve()) for place in sys.path]
    sys.path[:] = [place for place, path in places if path != CHECKOUT]
    if here not in (path for _, path in places if path != CHECKOUT):
        sys.path.append(str(here))
    try:
        return importlib.import_module(name)
    except Exception as e:
        if isinstance(e, ModuleNotFoundError) and e.name and f"{name}.".startswith(f"{e.name}."):  # there is none
            raise ModuleNotFoundError(f"no module {e.name!r}, installed or in the working folder {here}") from e
        where = place_of(e)
        if not where and not isinstance(e, ImportError):
            raise
        raise ImportError(f"{where}{type(e).__name__}: {e}") from e
    finally:
        sys.path += [place for place, path in places if path == CHECKOUT and place not in sys.path]


def place_of(error: Exception) -> str:
    """File and line of the user's code in which an import failed, '' where it was none of his."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "<", error.lineno))
    own = [(file, line) for file, line in places if not file.startswith("<") and is_own(Path(file).resolve())]
    return f"{own[-1][0]}, line {own[-1][1]}: " if own else ""


def is_own(file: Path) -> bool:
    """Whether a file is the user's: neither of Python nor installed nor one of ours."""
    ours = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("edm3d.")}
    return not str(file).startswith(OTHERS) and str(file) not in ours
