"""What our commands are called: scripts in a checkout, parts of the command edm3d where the package is installed."""

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train": "train.py", "generate": "generate.py", "data": "dataset_tool.py", "evaluate": "evaluate.py"}


def command(name: str, *words: str) -> str:
    """A line to type: `python dataset_tool.py plan` in a checkout, `edm3d data plan` where it is installed."""
    in_checkout = (ROOT / "edm3d").is_dir()  # beside utils/; a wheel has utils/ inside it
    return shlex.join([*(["python", SCRIPTS[name]] if in_checkout else ["edm3d", name]), *words])
