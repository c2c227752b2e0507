"""Claim: `python train.py --help` answers in under 3 s.

Run from the top of the checkout: python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import json_line

LIMIT_SECONDS = 3.0
REPEATS = 5


def help_seconds() -> float:
    """Wall time of one `python train.py --help`, from start to exit."""
    root = Path(__file__).resolve().parents[1]
    start = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "--help"], cwd=root, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    ours = statistics.median(help_seconds() for _ in range(REPEATS))
    print(json_line("train.py --help, median wall seconds of 5", ours=round(ours, 3), limit=LIMIT_SECONDS))


if __name__ == "__main__":
    main()
