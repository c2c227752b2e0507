"""CPU threads: what is asked for, what OMP_NUM_THREADS says, and what torchrun puts there by itself."""

import os
import subprocess
import sys

import pytest
import torch

from edm3d.utils import distributed

CHILD = "from edm3d.utils.distributed import asked_threads; print(asked_threads())"
# starts the child as torchrun does: it sets the variable where it was started without
PARENT = """
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": sys.argv[1]}
subprocess.run([sys.executable, "-c", sys.argv[2]])
"""


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Sixteen cores, and a process that is put back as it was."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_threads", "environment", "wanted"), [
    (0, {}, 16), (0, {"LOCAL_WORLD_SIZE": "4"}, 4), (0, {"LOCAL_WORLD_SIZE": "32"}, 1), (3, {}, 3),
    (0, {"OMP_NUM_THREADS": "5"}, 5), (0, {"OMP_NUM_THREADS": "5", "LOCAL_WORLD_SIZE": "4"}, 5),
    (3, {"OMP_NUM_THREADS": "5"}, 3), (0, {"OMP_NUM_THREADS": "6,2"}, 6), (0, {"OMP_NUM_THREADS": ""}, 16),
    (0, {"OMP_NUM_THREADS": "1"}, 1), (0, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "4"}, 1),
    (0, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}, 1),
    (0, {"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}, 2),
])  # fmt: skip
def test_threads_are_those_asked_for_or_of_the_environment_or_a_share_of_the_cores(
        monkeypatch, num_threads, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.set_threads(num_threads) == torch.get_num_threads() == wanted


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5", "9" * 20])
def test_odd_numbers_of_threads_are_refused(monkeypatch, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS={text}: wanted a whole number of 1 .. 1024"):
        distributed.set_threads(0)
    assert distributed.set_threads(2) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the system does not show environments")
@pytest.mark.parametrize(("set_to", "ranks", "wanted"), [
    (None, 2, "None"), ("1", 2, "1"), ("4", 2, "4"), ("1", 1, "1")])
def test_the_one_thread_of_torchrun_is_told_from_that_of_the_user(root, set_to, ranks, wanted):
    environment = {**os.environ, "PYTHONPATH": str(root), **({"OMP_NUM_THREADS": set_to} if set_to else {})}
    ran = subprocess.run([sys.executable, "-c", PARENT, str(ranks), CHILD], env=environment, capture_output=True,
                         text=True, check=False)
    assert ran.stdout.strip() == wanted, ran.stderr


def test_where_the_system_does_not_tell_one_thread_is_torchruns(monkeypatch):
    monkeypatch.setattr(os, "getppid", lambda: 2 ** 30)
    for name, value in {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.set_threads(0) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP elsewhere")
@pytest.mark.parametrize(("environment", "wanted"), [
    ({}, {"GOMP_SPINCOUNT = '1000'"}), ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT = '7'"}),
    ({"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY = 'PASSIVE'", "GOMP_SPINCOUNT = '0'"}),
    ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY = 'ACTIVE'", "GOMP_SPINCOUNT = '30000000000'"})])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(environment, wanted):
    """As OpenMP itself says when torch is imported, after a script."""
    rest = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", "import train, torch"], capture_output=True, text=True, check=True,
                          env={**rest, **environment, "OMP_DISPLAY_ENV": "verbose"})
    assert wanted <= {line.replace("[host] ", "").strip() for line in done.stderr.splitlines()}
