"""Asking a run to end: what signals and a file STOP leave behind, and that it goes on from there bit for bit."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edm3d.training.resume import read_state
from edm3d.utils import checkpoint, distributed, stop
from edm3d.utils.runs import list_files
from edm3d.utils.stop import Stop, reason_of
from tests.toy import OPTIONS, in_step, learned, make_trainer, ticks, trained

ACCUMULATED = replace(OPTIONS, batch_gpu=12, lr_rampup_kimg=0.1, lr_schedule="cosine", ema_halflife_kimg=[0.05, 0.2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict, list[dict]]:
    """Final state and numbers of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, ACCUMULATED, dropout=0.3), ticks(folder)


@pytest.fixture
def at_once(monkeypatch):
    """Look for the file STOP before every step."""
    monkeypatch.setattr(stop, "LOOK_SECONDS", -1)


def go_on(folder: Path) -> dict:
    """Go on from the newest state in a folder, in the same folder; the final state."""
    return trained(folder, ACCUMULATED, resume=list_files(folder, "training-state")[-1], dropout=0.3)


@pytest.mark.parametrize(("number", "why", "code"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGUSR1, "SIGUSR1", 75),
                                                     (signal.SIGHUP, "SIGHUP", 75), (signal.SIGINT, "Ctrl-C", 130)])
@pytest.mark.parametrize("step", [7, 9])  # in the middle of a tick, and the last of one
def test_signal_leaves_a_state_that_goes_on_bit_for_bit(whole, tmp_path, number, why, code, step):
    before = [signal.getsignal(n) for n in stop.BY_SIGNAL]
    trainer = make_trainer(tmp_path, ACCUMULATED, dropout=0.3)
    in_step(trainer, step, lambda: os.kill(os.getpid(), number))
    with Stop(tmp_path) as asked:
        reason = trainer.run(asked)
    assert (reason.why, reason.status, reason.exit_code) == (why, "requeue", code)
    assert [signal.getsignal(n) for n in stop.BY_SIGNAL] == before
    path, = list_files(tmp_path, "training-state")
    assert read_state(path, trainer.record).nimg == 12 * (step + 1)
    assert not list_files(tmp_path, "network-snapshot")
    assert learned(go_on(tmp_path)) == learned(whole[0])
    assert ticks(tmp_path) == whole[1]


def test_run_that_is_asked_in_its_last_step_is_done(tmp_path):
    trainer = make_trainer(tmp_path)
    in_step(trainer, 19, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Stop(tmp_path) as asked:
        assert trainer.run(asked) is None


def test_second_ctrl_c_interrupts_at_once_but_an_echo_of_the_first_does_not(tmp_path):
    trainer, seen = make_trainer(tmp_path), []
    with Stop(tmp_path) as asked:
        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # as from the terminal and from torchrun
            seen.append("still here")
            asked.interrupted -= 1.5
            os.kill(os.getpid(), signal.SIGINT)
            seen.append("never here")

        in_step(trainer, 3, interrupt)
        with pytest.raises(KeyboardInterrupt, match="second"):
            trainer.run(asked)
    assert seen == ["still here"]
    assert not list_files(tmp_path, "training-state")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signal_that_was_ignored_at_the_start_stays_so(tmp_path, number):
    """As nohup does, and a shell that starts something in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stop(tmp_path) as asked:
            os.kill(os.getpid(), number)
            assert asked.wish() == 0 and signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", sorted(stop.BY_SIGNAL))
def test_signal_is_heard_where_standard_error_takes_nothing(tmp_path, monkeypatch, number):
    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "write", fail)
    with Stop(tmp_path) as asked:
        signal.raise_signal(number)
        assert asked.wish() == stop.BY_SIGNAL[number]


def test_file_stop_ends_the_run_with_state_and_snapshot(whole, tmp_path, at_once):
    trainer = make_trainer(tmp_path, ACCUMULATED, dropout=0.3)
    in_step(trainer, 7, (tmp_path / "STOP").touch)
    reason = trainer.run(Stop(tmp_path))
    assert (reason.why, reason.status, reason.exit_code) == ("the file STOP", "done", 0)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "network-snapshot-000000.096-ema0.2.pt", "network-snapshot-000000.096.pt", "training-state-000000.096.pt"]
    (tmp_path / "STOP").unlink()
    assert learned(go_on(tmp_path)) == learned(whole[0])


def test_file_stop_of_before_the_start_is_obeyed_after_a_step(tmp_path):
    (tmp_path / "STOP").touch()
    trainer = make_trainer(tmp_path)
    assert trainer.run(Stop(tmp_path)).status == "done" and trainer.progress.nimg == 12


def test_scheduler_comes_before_the_file_and_a_person_before_the_scheduler(tmp_path, at_once):
    (tmp_path / "STOP").touch()
    asked, found = Stop(tmp_path), []
    for number in (None, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        if number:
            asked.ask(number, None)
        found.append(reason_of(asked.wish()).why)
    assert found == ["the file STOP", "SIGUSR1", "SIGHUP", "SIGTERM", "Ctrl-C", "Ctrl-C"]
    assert reason_of(Stop(tmp_path / "other").wish()) is None


def test_state_is_written_once_where_a_signal_meets_the_end_of_a_tick(tmp_path, monkeypatch):
    trainer, written = make_trainer(tmp_path, replace(OPTIONS, state_ticks=1)), []
    monkeypatch.setattr(checkpoint, "save", lambda path, *_: written.append(path.name))
    in_step(trainer, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Stop(tmp_path) as asked:
        assert trainer.run(asked).why == "SIGTERM"
    assert written == ["training-state-000000.060.pt"]


def test_error_after_a_sigterm_is_told_by_rank_0_alone(tmp_path, monkeypatch):
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    for rank, number in ((0, signal.SIGTERM), (1, signal.SIGUSR1), (1, signal.SIGTERM), (1, signal.SIGHUP)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with pytest.raises(RuntimeError), Stop(tmp_path) as asked:
            asked.ask(number, None)
            raise RuntimeError("lost a rank")
        assert raised == ([signal.SIGTERM] if rank and number != signal.SIGUSR1 else [])
        raised.clear()


def test_loader_processes_outlive_a_signal_to_the_whole_group(tmp_path):
    """A scheduler signals every process of a job; the step that is under way still needs its data."""
    trainer = make_trainer(tmp_path, replace(OPTIONS, num_workers=1))

    def signal_all() -> None:
        for process in [*psutil.Process().children(), psutil.Process()]:
            if process.pid == os.getpid() or "pt_data_worker" in process.name():
                process.send_signal(signal.SIGTERM)

    in_step(trainer, 3, signal_all)
    with Stop(tmp_path) as asked:
        wish = asked.wish
        asked.wish = lambda: wish() if trainer.progress.nimg >= 180 else 0  # many more batches
        assert trainer.run(asked).why == "SIGTERM"
    assert trainer.progress.nimg == 192
