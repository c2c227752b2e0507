"""Claim: `python train.py --help` answers in under 3 s, and what training needs is imported in 1.6 times torch's time.

Run from the top of the checkout: python -m benchmarks.startup
One JSON line for each; wall seconds of the first, CPU seconds of the second; medians of processes that take turns.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import in_turns, json_line

LIMIT_SECONDS, LIMIT_RATIO = 3.0, 1.6
REPEATS = 5
ROOT = Path(__file__).resolve().parents[1]
HELP, IMPORT, TORCH = ["train.py", "--help"], ["-c", "import edm3d.training.run"], ["-c", "import torch"]


def start(words: list[str]) -> None:
    """One process of Python, from start to exit."""
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def of_children() -> float:
    """CPU seconds of all processes that were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    took = in_turns({"help": lambda: start(HELP)}, REPEATS, time.perf_counter)["help"]
    print(json_line("train.py --help, median wall seconds of 5", ours=round(took, 3), limit=LIMIT_SECONDS))
    took = in_turns({"ours": lambda: start(IMPORT), "torch": lambda: start(TORCH)}, REPEATS, of_children)
    print(json_line("what training needs is imported in 1.6 times torch's time", limit=LIMIT_RATIO,
                    ratio=round(took["ours"] / took["torch"], 3),
                    **{f"{name}_s": round(value, 3) for name, value in took.items()}))


if __name__ == "__main__":
    main()
