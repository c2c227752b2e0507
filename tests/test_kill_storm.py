"""A run that is killed again and again ends in the weights of one that never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def storm(root: Path, *arguments: str, timeout: int) -> dict:
    """What benchmarks/kill_storm.py prints."""
    command = [sys.executable, "-m", "benchmarks.kill_storm", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_survived(figures: dict, kills: int) -> None:
    """Nothing lost but the work since the last state, and the end as if nothing had been."""
    assert figures["bit_identical"] is True
    assert figures["kills"] == kills
    assert figures["resumes"] + figures["fresh_starts"] + figures["kills_before_word"] == kills
    assert figures["resumes"] >= kills / 3
    assert all(figures[name] == 0 for name in ("lost_files", "wrong_resumes", "left_temporary", "hung"))
    assert figures["max_lost_images"] <= figures["images_per_state"]


def test_two_kills(root):
    assert_survived(storm(root, "--kills", "2", "--seed", "1", timeout=240), 2)


@pytest.mark.slow
def test_fifty_kills(root):
    figures = storm(root, "--kills", "50", timeout=1800)
    assert_survived(figures, 50)
    assert figures["kills_in_writes"] > 5


@pytest.mark.slow
def test_kills_of_one_or_all_of_three_ranks(root):
    assert_survived(storm(root, "--kills", "8", "--ranks", "3", timeout=1800), 8)
