"""Ranks that are late, lost or different are named in one line: three processes meet, and one of them misbehaves."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from edm3d.utils import distributed

LATE_S, LONG_S = 3, 60  # time-outs: one to wait for, one that no test waits for
PROCESSES = multiprocessing.get_context("forkserver")  # forks from one process that has imported torch
PROCESSES.set_forkserver_preload(["utils.distributed"])


def on_rank(act: Callable[[], None], rank: int, timeout_s: float, environment: dict, folder: Path) -> None:
    """One of three processes: act, and leave in a file in what error that ended."""
    os.environ.update(environment, RANK=str(rank), WORLD_SIZE="3")
    distributed.BEAT_S = 0.2
    text = "-"
    try:
        distributed.init("cpu", timeout_s)
        try:
            act()
        finally:
            distributed.shutdown()
    except Exception as e:
        text = f"{type(e).__name__}: {e}"
    (folder / str(rank)).write_text(text)


@pytest.fixture
def meet(tmp_path) -> Callable:
    """meet(act): what `act` ends in on three ranks; '-' for no error, nothing for a rank that died.

    As under torchrun, the ranks meet in a store that none of them keeps and that outlives restarts; or rank 0 keeps it.
    """
    def keeper() -> dist.TCPStore:
        return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    agent = keeper()

    def run(act: Callable[[], None], timeout_s: float = LONG_S, present: int = 3, restarts: int = 0,
            rank_0_keeps: bool = False) -> dict[int, str]:
        port = (keeper() if rank_0_keeps else agent).port
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "TORCHELASTIC_USE_AGENT_STORE": str(not rank_0_keeps),
                       "TORCHELASTIC_RESTART_COUNT": str(restarts)}
        processes = [PROCESSES.Process(target=on_rank, args=(act, r, timeout_s, environment, tmp_path))
                     for r in range(present)]
        for p in processes:
            p.start()
        for p in processes:
            p.join(timeout_s + 10)
            assert not p.is_alive(), "a rank hangs"
        return {int(path.name): path.read_text() for path in sorted(tmp_path.iterdir())}

    return run


def two_steps(rank: int, instead: Callable[[], None]) -> None:
    """Two steps together; in the second, a rank does something before it comes to the sum."""
    for step in range(2):
        with distributed.meeting(f"step {step}"):
            if step and distributed.rank() == rank:
                instead()
            assert distributed.all_reduce_sum(torch.ones(1)).item() == 3


def step_at_the_gate(rank: int, before: Callable[[], None]) -> None:
    """Meet in the store alone, as ranks do before they use NCCL; a rank does something before it comes."""
    distributed._roll.gated = True
    if distributed.rank() == rank:
        before()
    with distributed.meeting("a step"):
        pass


def oversleep() -> None:
    time.sleep(LATE_S + 1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise KeyError("no such volume")


def last_lacks_memory() -> None:
    two_steps(2, lambda: torch.empty(1 << 50))


def all_come() -> None:
    two_steps(2, lambda: None)
    step_at_the_gate(2, lambda: time.sleep(0.2))


def last_is_late() -> None:
    two_steps(2, oversleep)


def first_is_late_at_the_gate() -> None:
    step_at_the_gate(0, oversleep)


def last_dies() -> None:
    two_steps(2, die)


def first_dies() -> None:
    two_steps(0, die)


def last_dies_while_another_is_slow() -> None:
    two_steps(distributed.rank(), {0: lambda: None, 1: lambda: time.sleep(2), 2: die}[distributed.rank()])


def last_fails() -> None:
    two_steps(2, fail)


def last_fails_before_the_gate() -> None:
    step_at_the_gate(2, fail)


def error_of_their_own() -> None:
    with distributed.meeting("a step"):
        raise RuntimeError("shapes do not fit")


def weights_differ() -> None:
    same = {"weight": torch.arange(6.0), "mask": torch.tensor([True, False]), "nan": torch.tensor(float("nan"))}
    distributed.check_same(same, "")
    weight = torch.tensor([1.0, 2.0])
    if distributed.rank() == 2:  # the last bit of one up and of the other down: a plain sum would not show it
        weight.view(torch.int32).add_(torch.tensor([1, -1], dtype=torch.int32))
    distributed.check_same({**same, "net.conv.weight": weight, "net.out.weight": weight * 2}, "try again")


def test_ranks_that_come_are_let_through(meet):
    assert meet(all_come) == {0: "-", 1: "-", 2: "-"}


def test_late_rank_is_named_by_all(meet):
    line = ("ConnectionError: rank 2 (last seen at step 1) did not arrive at a sum over ranks in step 1 "
            f"within {LATE_S} s")
    assert meet(last_is_late, LATE_S) == {0: line, 1: line, 2: line}


def test_late_rank_is_named_at_the_gate(meet):
    line = f"ConnectionError: rank 0 (last seen at the start) did not arrive at a step within {LATE_S} s"
    assert meet(first_is_late_at_the_gate, LATE_S) == {0: "-", 1: line, 2: line}


def test_rank_that_never_comes_is_named(meet):
    line = f"ConnectionError: rank 2 (last seen at nothing) did not arrive at the start within {LATE_S} s"
    assert meet(all_come, LATE_S, present=2) == {0: line, 1: line}


@pytest.mark.parametrize("act", [last_dies, last_dies_while_another_is_slow])
def test_lost_rank_is_named_at_once(meet, act):
    line = "ConnectionError: rank 2 was lost at a sum over ranks in step 1"
    assert meet(act) == {0: line, 1: line}


def test_ranks_that_are_restarted_do_not_meet_those_before(meet):
    meet(last_dies)
    assert meet(all_come, restarts=1) == {0: "-", 1: "-", 2: "-"}


def test_rank_that_keeps_the_store_is_named_when_it_is_lost(meet):
    line = "ConnectionError: rank 0, or the machine on which the ranks met, was lost at a sum over ranks in step 1"
    assert meet(first_dies, rank_0_keeps=True) == {1: line, 2: line}


@pytest.mark.parametrize("act", [last_fails, last_fails_before_the_gate])
def test_error_of_one_rank_reaches_the_others(meet, act):
    line = "ConnectionError: rank 2 failed: KeyError: 'no such volume'"
    assert meet(act) == {0: line, 1: line, 2: "KeyError: 'no such volume'"}


def test_lack_of_memory_on_one_rank_reaches_the_others_with_what_takes_less(meet):
    said = meet(last_lacks_memory)
    assert said[0] == said[1] and said[0].startswith("ConnectionError: rank 2 failed: RuntimeError: ")
    assert "can't allocate memory" in said[0] and "training.options.batch_gpu" in said[0]


def test_error_that_is_not_of_the_connection_is_left_alone(meet):
    assert set(meet(error_of_their_own).values()) == {"RuntimeError: shapes do not fit"}


def test_weights_that_differ_are_named_with_the_rank(meet):
    errors = set(meet(weights_differ).values())
    assert len(errors) == 1
    assert errors.pop().startswith("ValueError: net.conv.weight differs between ranks: rank 2 does not hold what")


def test_one_process_meets_itself():
    with distributed.meeting("a step"):
        distributed.check_same({"weight": torch.ones(1)}, "")
        assert distributed.all_reduce_sum(torch.ones(1)).item() == 1


def test_time_out_must_be_a_time():
    with pytest.raises(ValueError, match="timeout_s=0"):
        distributed.init("cpu", 0)


class SlowStore:
    """A store that takes its time over every beat."""

    def clone(self):
        return self

    def compare_set(self, *_):
        return b""

    def set(self, *_):
        time.sleep(0.5)


def test_no_beat_outlives_its_group():
    """A thread still inside the store's C++ code when Python ends aborts the whole process."""
    roll = distributed.Roll(SlowStore(), 0, 1, timeout_s=5)
    roll.close()
    assert not roll.beats.is_alive()


@pytest.mark.parametrize(("environment", "wanted"), [
    ({"RANK": "x"}, "RANK=x: wanted a whole number"), ({"RANK": "-1"}, "RANK=-1: wanted"),
    ({"RANK": "0"}, "WORLD_SIZE=: wanted"), ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 of WORLD_SIZE=2: wanted less"),
    ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "z"}, "MASTER_PORT=z: wanted"),
])
def test_an_environment_that_torchrun_did_not_set_is_refused(monkeypatch, environment, wanted):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=wanted):
        distributed.init("cpu")


def test_more_processes_than_cards_are_told_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.choose_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"2 processes .* 1 CUDA device: .*--nproc_per_node=1"):
        distributed.choose_device()
    assert distributed.choose_device("cpu") == torch.device("cpu")
