"""What our commands are called: scripts in a checkout, parts of the command edm3d where the package is installed."""

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train": "train.py", "generate": "generate.py", "data": "dataset_tool.py", "evaluate": "evaluate.py"}


def command(name: str, *words: str) -> str:
    """A line to type: `python dataset_tool.py plan` in a checkout, `edm3d data plan` where it is installed.

    From another working folder than the checkout the script goes by its whole path.
    """
    if not (ROOT / "edm3d").is_dir():  # it is beside utils/ in a checkout; a wheel has utils/ inside it
        return shlex.join(["edm3d", name, *words])
    script = SCRIPTS[name] if Path.cwd() == ROOT else str(ROOT / SCRIPTS[name])
    return shlex.join(["python", script, *words])
