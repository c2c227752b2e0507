"""Claim: the seven commands of the demo take at most 15 minutes on 2 CPU cores where they take 10 without the refiner.

They take at most 6 GiB, and the report's numbers hold.

Run from the top of a checkout whose .venv is made: .venv/bin/python -m benchmarks.demo [FOLDER]
The commands are those that `make demo` shows; they run in a copy of the checkout (FOLDER, default: a temporary one).
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import json_line

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "data", "results", "__pycache__")


def commands() -> list[str]:
    """The demo's commands, as make prints them."""
    lines = subprocess.run(["make", "-n", "demo", "-o", ".venv/.installed"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith("echo")]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "edm3d"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    seconds = {}
    for command in commands():
        start = time.perf_counter()
        subprocess.run(command.split(), cwd=folder, env=environment, check=True, stdout=sys.stderr)
        seconds[command] = round(time.perf_counter() - start, 1)
    report = json.loads((folder / "results/demo/report.json").read_text())
    first, metrics = report["first_stage"], report["metrics"]
    print(json_line(
        "demo: seven commands", seconds=round(sum(seconds.values()), 1), limit_seconds=900,
        max_process_gib=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2), limit_gib=6,
        dice=first["dice"], psnr_gap_db=first["ceiling"].get("gap_db"),
        ks={name: {k: metrics[name][k] for k in ("ks", "floor_p99", "noise")}
            for name in ("lv_volume", "wall_thickness")},
        enclosed=report["shares"]["cavity_enclosed"]["generated"], commands=seconds))


if __name__ == "__main__":
    main()
