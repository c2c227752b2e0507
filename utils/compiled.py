"""Where what torch.compile makes is kept."""

import os
from contextlib import suppress
from pathlib import Path

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled() -> str:
    """Have torch.compile keep what it makes where the next start finds it, not in /tmp; a line that says where.

    In ~/.cache/edm3d/compiled, unless the environment names a folder. Where none can be made, torch chooses.
    """
    if CACHE not in os.environ:
        with suppress(OSError, RuntimeError):  # a home that is read-only, or none
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edm3d" / "compiled"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ[CACHE] = str(folder)
    where = os.environ.get(CACHE, "a folder of torch")
    return f"Compiled    the first step is long; what it makes is kept in {where}"
