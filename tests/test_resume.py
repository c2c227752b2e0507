"""Going on from where a run stopped: the right state, bit for bit, or an error that says why not."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import train
from edm3d.formats.training_state import TrainingState
from edm3d.training import run as training_run
from edm3d.training.build import held_out
from edm3d.training.resume import changes, choose_start, latest, listed_differences, read_state
from edm3d.training.run import asked_in_this_launch, common_part
from edm3d.training.step import PlainStep
from edm3d.utils import checkpoint
from edm3d.utils import log as utils_log
from edm3d.utils import runs as utils_runs
from edm3d.utils.config_hash import config_hash
from edm3d.utils.log import read_status, write_status
from edm3d.utils.runs import list_files, locked, runs_of
from tests.toy import OPTIONS, learned, make_trainer, ticks, trained

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["-cn=echo_edm", "dataset=volumes", "batch_transform=voxels", "training.dataset.path=echo.h5",
         "training.network.model.model_channels=8", "training.network.model.channel_mult=[1]",
         "training.network.model.num_blocks=1", "training.network.model.attention_levels=[]",
         "training.network.model.dropout=0.1", "training.options.batch_size=4", "training.options.total_kimg=0.08",
         "training.options.kimg_per_tick=0.024", "training.options.state_ticks=1", "training.options.num_threads=1",
         "training.options.device=cpu", "training.options.precision=fp32", "training.validation.max_items=4",
         "training.validation.every_ticks=1", "training.validation.preview_ticks=null"]
LATEST = "training.options.resume=latest"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with data and the results of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("resume")
    with chdir(folder):
        made = CliRunner().invoke(dataset_tool.main, ["phantom", "--dest", "echo.h5", "--num", "40", "--size", "8"])
        assert made.exit_code == 0, made.output
        assert run("whole").exit_code == 0
    return folder


@pytest.fixture
def at(folder):
    """Work in that folder."""
    with chdir(folder):
        yield folder


def run(root: str, *overrides: str):
    """Train in this process, with runs in a folder of their own."""
    return CliRunner().invoke(train.main, [*TRAIN, f"training.options.run_root={root}", *overrides])


def command(root: str, *overrides: str, ranks: int = 0, launcher: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """The same as a command line of its own, of one process or of several under torchrun."""
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *launcher] if ranks else []
    return [sys.executable, *start, str(ROOT / "train.py"), *TRAIN, f"training.options.run_root={root}", *overrides]


def result(run_dir: Path) -> str:
    """Hash of all that a run has learned."""
    return learned(TrainingState.read(list_files(run_dir, "training-state")[-1]))


def kill_in_step(monkeypatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal in the middle of a step of the next training (the first is 0)."""
    gradients, calls = PlainStep.gradients, []

    def act(self, *arguments) -> float:
        calls.append(0)
        if len(calls) - 1 == step:
            os.kill(os.getpid(), number)
        return gradients(self, *arguments)

    monkeypatch.setattr(PlainStep, "gradients", act)


# ---- bit for bit ----


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_in_the_middle_is_bit_identical(tmp_path, dropout):
    options = replace(OPTIONS, batch_gpu=4, lr_rampup_kimg=0.1, lr_schedule="cosine")
    whole = trained(tmp_path / "whole", options, dropout=dropout)
    first = make_trainer(tmp_path / "first", options, dropout=dropout)
    data = first.batches()
    for _ in range(7):
        first.step(data)
    first.save_state()
    torch.manual_seed(1234)  # whatever the process drew in between
    state = list_files(tmp_path / "first", "training-state")[0]
    second = trained(tmp_path / "second", options, resume=state, dropout=dropout)
    assert learned(second) == learned(whole)
    assert second.progress["nimg"] == 240


def test_ticks_after_the_state_are_not_told_twice(tmp_path):
    options = replace(OPTIONS, state_ticks=1, keep_states=9)
    trained(tmp_path, options)
    wanted = ticks(tmp_path)
    for state in list_files(tmp_path, "training-state")[2:]:  # as if killed in the fourth tick, before its state
        state.unlink()
    with open(tmp_path / "stats.jsonl", "a", encoding="utf-8") as file:
        file.write('{"tick": 5, "kim')
    trained(tmp_path, options, resume=list_files(tmp_path, "training-state")[-1])
    assert ticks(tmp_path) == wanted and len(wanted) == 4


@pytest.mark.parametrize(("number", "code", "why"), [(signal.SIGTERM, 75, "stopped by SIGTERM"),
                                                     (signal.SIGINT, 130, "stopped by Ctrl-C")])
def test_run_that_is_signalled_says_so_and_goes_on_bit_for_bit(at, monkeypatch, number, code, why):
    kill_in_step(monkeypatch, 8, number)
    stopped = run(number.name)
    assert stopped.exit_code == code and "training.options.resume=latest goes on" in stopped.output
    run_dir = Path(number.name, "00000-echo_edm")
    status = read_status(run_dir)
    assert (status["status"], status["why"], status["nimg"]) == ("requeue", why, 36)
    again = run(number.name, LATEST)
    assert again.exit_code == 0 and "Resumed from" in again.output
    assert read_status(run_dir)["status"] == "done"
    assert result(run_dir) == result(Path("whole/00000-echo_edm"))
    best, wanted = (checkpoint.load(p / "network-best.pt", "snapshot").content for p in
                    (run_dir, Path("whole/00000-echo_edm")))
    assert best["nimg"] == wanted["nimg"] and checkpoint.checksum(best["ema"]) == checkpoint.checksum(wanted["ema"])


def test_file_stop_is_removed_when_obeyed(at):
    assert run("file").exit_code == 0
    (run_dir := Path("file/00000-echo_edm")).joinpath("STOP").touch()
    longer = "training.options.total_kimg=0.096"
    assert run("file", LATEST, longer).exit_code == 0
    status = read_status(run_dir)
    assert (status["status"], status["why"], status["nimg"]) == ("done", "stopped by the file STOP", 84)
    assert not (run_dir / "STOP").exists()
    assert run("file", LATEST, longer).exit_code == 0 and read_status(run_dir)["nimg"] == 96


def wait_for(condition, seconds: float = 60) -> None:
    """Return when a condition holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def has_state(run_dir: Path) -> bool:
    """Whether a run folder holds a training state."""
    return run_dir.is_dir() and bool(list_files(run_dir, "training-state"))


LONG = "training.options.total_kimg=4"  # a thousand steps: long enough to be caught in the middle


def test_second_run_is_refused_and_sigterm_to_a_process_of_its_own_works(at):
    run_dir = Path("process/00000-echo_edm")
    with open("process.txt", "w", encoding="utf-8") as out:
        process = subprocess.Popen(command("process", LONG), stdout=out, stderr=out)
    try:
        wait_for(lambda: has_state(run_dir))
        refused = run("process", LONG, LATEST)
        assert refused.exit_code == 1 and str(run_dir) in refused.stderr and str(process.pid) in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        process.terminate()
        assert process.wait(30) == 75, Path("process.txt").read_text()
    finally:
        process.kill()
    status = read_status(run_dir)
    assert status["status"] == "requeue" and 0 < status["nimg"] < 4000
    read = TrainingState.read(list_files(run_dir, "training-state")[-1])
    assert read.progress["nimg"] == status["nimg"]


def test_lock_ends_with_its_process_however_it_dies(tmp_path):
    code = (f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
            f"from edm3d.utils.runs import locked\n"
            f"with locked(Path({str(tmp_path)!r})):\n    print('locked', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"{tmp_path}: another run is at work .*process {process.pid} on"), \
            locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path) as held:
        assert held


# ---- which state ----


def make_run(root: Path, number: int, training: dict, *, states: tuple[str, ...] = (),
             launch: str | None = None) -> Path:
    """A run folder with empty states."""
    folder = root / f"{number:05d}-exp"
    folder.mkdir(parents=True)
    write_status(folder, "running", experiment="exp", config_hash=config_hash(training), launch=launch)
    (folder / "config.yaml").write_text(json.dumps({"training": training}))
    for name in states:
        (folder / f"training-state-{name}.pt").touch()
    return folder


CONFIG = {"options": {"seed": 0}, "loss": {"P_mean": 1.0}}
OTHER = {"options": {"seed": 0}, "loss": {"P_mean": 2.0}}


def test_latest_is_the_newest_state_of_the_newest_run_of_the_same_configuration(tmp_path):
    make_run(tmp_path, 0, CONFIG, states=("000009",))
    chosen = make_run(tmp_path, 1, {**CONFIG, "options": {"seed": 0, "total_kimg": 5}}, states=("000002", "000010.500"))
    start = latest(tmp_path, "exp", CONFIG)
    assert start == (chosen / "training-state-000010.500.pt", [])
    make_run(tmp_path, 2, OTHER, states=("000003",))
    make_run(tmp_path, 3, CONFIG)
    start = latest(tmp_path, "exp", CONFIG)
    assert start.state == chosen / "training-state-000010.500.pt"
    assert "00003-exp, it has no training state" in start.notes[0]
    assert "00002-exp, it is of another configuration (training.loss.P_mean: 2.0 -> 1.0)" in start.notes[1]


@pytest.mark.parametrize(("given", "meant"), [("true", "latest"), ("True", "latest"), ("false", "null")])
def test_yes_and_no_are_no_states_to_resume_from(tmp_path, given, meant):
    with pytest.raises(ValueError, match=f"resume={given}: wanted latest, a training-.*; did you mean '{meant}'"):
        choose_start(replace(OPTIONS, resume=given, run_root=str(tmp_path)), "exp", CONFIG)


def test_latest_with_nothing_there_starts_fresh_and_says_so(tmp_path):
    options = replace(OPTIONS, resume="latest", run_root=str(tmp_path))
    start = choose_start(options, "exp", CONFIG)
    assert start.state is None and len(start.notes) == 1 and "starting fresh" in start.notes[0]
    make_run(tmp_path, 0, OTHER, states=("000003",))
    start = choose_start(options, "exp", CONFIG)
    assert start.state is None and "training.loss.P_mean" in start.notes[1]


def test_restart_by_torchrun_goes_on_in_the_run_that_broke_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "now")
    make_run(tmp_path, 0, CONFIG, states=("000009",), launch="before")
    broken = make_run(tmp_path, 1, CONFIG, states=("000001", "000002"), launch="now")
    make_run(tmp_path, 2, OTHER, states=("000005",), launch="now")
    options = replace(OPTIONS, run_root=str(tmp_path))
    assert choose_start(options, "exp", CONFIG).state is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert choose_start(options, "exp", CONFIG).state is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert choose_start(options, "exp", CONFIG).state == broken / "training-state-000002.pt"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert choose_start(options, "exp", CONFIG).state is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "now")
    make_run(tmp_path, 3, CONFIG, launch="now")  # broke off before its first state
    assert choose_start(options, "exp", CONFIG).state is None


def test_launches_that_torchrun_calls_none_are_told_apart_by_its_process(tmp_path, monkeypatch):
    agents = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    options = replace(OPTIONS, run_root=str(tmp_path))
    try:
        monkeypatch.setattr(os, "getppid", lambda: agents[0].pid)
        finished = make_run(tmp_path, 0, CONFIG, states=("000002",), launch=utils_runs.launch())
        assert choose_start(options, "exp", CONFIG).state == finished / "training-state-000002.pt"
        monkeypatch.setattr(os, "getppid", lambda: agents[1].pid)
        assert choose_start(options, "exp", CONFIG).state is None
        monkeypatch.setattr(os, "getppid", lambda: agents[0].pid)
        monkeypatch.setattr(utils_runs, "started", lambda pid: "another time")  # the number of a process come again
        assert choose_start(options, "exp", CONFIG).state is None
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_start_of_a_process_stays_and_follows_the_order():
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert utils_runs.started(process.pid) == utils_runs.started(process.pid)
        assert float(utils_runs.started(process.pid)) > float(utils_runs.started(os.getpid()))
    finally:
        process.kill()
        process.wait()


def test_restart_after_a_signal_ends_again(at, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "now")
    with monkeypatch.context() as patch:
        kill_in_step(patch, 8, signal.SIGUSR1)
        assert run("again").exit_code == 75
    for attempt in ("1", "2", "3"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        assert run("again").exit_code == 75
        status = read_status(Path("again/00000-echo_edm"))
        assert (status["status"], status["why"], status["nimg"]) == ("requeue", "stopped by SIGUSR1", 36)
        assert os.listdir("again") == ["00000-echo_edm"]


@pytest.mark.parametrize("named", [False, True])
def test_a_run_that_ends_while_another_starts_is_not_gone_on_from_in_the_middle(at, monkeypatch, named):
    """Its last state comes between choice and lock: `latest` takes that one, a state by name a new folder."""
    root = f"race-{named}"
    assert run(root).exit_code == 0
    run_dir = Path(root, "00000-echo_edm")
    before, last = list_files(run_dir, "training-state")
    aside, taken = last.rename(run_dir / "aside"), []

    def end_first(folder: Path):
        taken.append(folder)
        if len(taken) == 1:
            aside.rename(last)
        return locked(folder)

    monkeypatch.setattr(training_run, "locked", end_first)
    again = run(root, f"training.options.resume={before}" if named else LATEST)
    assert again.exit_code == 0, again.output
    assert f"Resumed from {before if named else last}" in again.output
    assert taken[-1] == (Path(root, "00001-echo_edm") if named else run_dir)
    assert result(taken[-1]) == result(Path("whole/00000-echo_edm"))


# ---- whether it fits ----


def test_damaged_state_is_not_skipped_but_the_one_before_is_named(tmp_path):
    options = replace(OPTIONS, state_ticks=1, keep_states=3)
    trained(tmp_path, options)
    before, newest = list_files(tmp_path, "training-state")[-2:]
    newest.write_bytes(newest.read_bytes()[:-100])
    record = make_trainer(tmp_path / "other").record
    with pytest.raises(ValueError, match=rf"{newest.name}.*the one before it is training.options.resume={before}"):
        read_state(newest, record)
    oldest = list_files(tmp_path, "training-state")[0]
    oldest.write_bytes(b"")
    with pytest.raises(ValueError, match=oldest.name) as error:
        read_state(oldest, record)
    assert "one before it is" not in str(error.value) and "leave resume away to start anew, or from weights by " \
        f"training.options.init_from={tmp_path}/network-snapshot-000000.240.pt" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_damaged_state_is_refused_in_the_same_words_by_latest_and_by_name(tmp_path, content):
    folder = make_run(tmp_path, 0, CONFIG, states=("000001", "000002"))
    before, newest = list_files(folder, "training-state")
    newest.write_bytes(content)
    said = []
    for resume in ("latest", str(newest), str(folder)):
        start = choose_start(replace(OPTIONS, run_root=str(tmp_path), resume=resume), "exp", CONFIG)
        with pytest.raises(ValueError) as error:
            read_state(start.state, {})
        said.append(str(error.value))
    assert len(set(said)) == 1 and f"{newest}: damaged or" in said[0]
    assert said[0].endswith(f"; the one before it is training.options.resume={before}")


def test_state_of_another_experiment_or_data_is_refused_with_the_keys(tmp_path):
    config = {"training": {"options": {"seed": 0, "total_kimg": 1}, "network": {"width": 8}}}
    first = make_trainer(tmp_path / "a", config=config)
    first.save_state()
    state, = list_files(tmp_path / "a", "training-state")
    longer = {"training": {"options": {"seed": 0, "total_kimg": 2}, "network": {"width": 8}}}
    read_state(state, make_trainer(tmp_path / "b", config=longer).record)
    other = make_trainer(tmp_path / "c", config={"training": {"options": {"seed": 1, "total_kimg": 2},
                                                              "network": {"width": 9}}})
    with pytest.raises(ValueError, match=r"training\.options\.resume") as error:
        read_state(state, other.record)
    assert "another configuration (training.network.width: 8 -> 9, training.options.seed: 0 -> 1);" in str(error.value)
    changed = make_trainer(tmp_path / "d", config=config, data_hash="other")
    with pytest.raises(ValueError, match=r"another data set \(content_hash: data -> other\)"):
        read_state(state, changed.record)


def test_state_of_another_program_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    state = trainer.state().plain()
    state.pop("stats")
    checkpoint.save(tmp_path / "old.pt", "state", state)
    with pytest.raises(ValueError, match="lacks stats: it was written by another version"):
        read_state(tmp_path / "old.pt", trainer.record)
    state = trainer.state()
    state.modules["diffusion"]["layers.0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit"):
        trainer.restore(state)


def test_differences_are_told_by_path_and_values():
    told = listed_differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": [4], "d": 3}, "e": "x" * 99 + "y"})
    assert told == f"b.c: 2 -> [4], e: none -> {'x' * 20}...{'x' * 19}y"
    assert listed_differences({"a": 1}, {"a": 1}) == ""


def test_change_of_what_moves_the_last_digits_is_warned_of(tmp_path):
    trainer = make_trainer(tmp_path)
    environment = trainer.environment()
    assert changes(environment, environment) == [] and environment["processor"]
    found = changes({**environment, "threads": 7, "processor": "Z80"}, environment)
    assert len(found) == 2 and "threads was 7, is 1" in found[0] and "processor was Z80" in found[1]


def test_what_validation_measures_has_a_fingerprint(at):
    node = {"_target_": "training.datasets.volumes.VolumesDataset", "path": "echo.h5", "split": "train"}
    validation = {"split": "val", "max_items": 3, "every_ticks": 1}
    seen = [held_out({"dataset": node, "validation": {**validation, **change}}).fingerprint
            for change in ({}, {"every_ticks": 9}, {"max_items": 2}, {"split": "test"})]
    assert seen[0] == seen[1] and len(set(seen)) == 3


@pytest.mark.parametrize("split", ["all", "val"])
def test_what_is_trained_on_is_not_held_out(split):
    node = {"_target_": "training.datasets.arrays.ArraysDataset", "path": "never-read.npy", "split": split}
    assert held_out({"dataset": node, "validation": {"split": "val", "max_items": 3, "every_ticks": 1}}) is None


# ---- disk ----


def test_disk_that_fills_up_fails_the_run_and_spares_the_files(at, monkeypatch):
    usage, save = namedtuple("usage", "total used free"), checkpoint.save

    def fill_up(path: Path, kind: str, payload: dict) -> None:
        if path.name == "training-state-000000.048.pt":
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 ** 40, 2 ** 40 - 10, 10))
        save(path, kind, payload)

    monkeypatch.setattr(checkpoint, "save", fill_up)
    full = run("full")
    assert full.exit_code == 1 and "MiB needed, 0.00 MiB free" in full.stderr and len(full.stderr.splitlines()) == 1
    run_dir = Path("full/00000-echo_edm")
    assert [p.name for p in list_files(run_dir, "training-state")] == ["training-state-000000.024.pt"]
    assert not list(run_dir.glob(".tmp-*"))
    status = read_status(run_dir)
    assert status["status"] == "failed" and "not enough free disk" in status["why"]
    assert (run_dir / "log.txt").read_text().splitlines()[-1] == f"Failed: {status['why']}"
    monkeypatch.undo()
    assert run("full", LATEST).exit_code == 0
    assert result(run_dir) == result(Path("whole/00000-echo_edm"))


def test_disk_without_room_for_another_byte_still_learns_that_the_run_failed(at, monkeypatch):
    """Nothing can be added to a log or come into being any more: what is there may be overwritten."""
    def full(*_: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_up(path: Path, kind: str, payload: dict) -> None:
        monkeypatch.setattr(Path, "write_text", full)
        monkeypatch.setattr(training_run, "append_log", full)
        full()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fill_up)
        failed = run("brim", "training.validation.max_items=0")
    monkeypatch.undo()
    assert failed.exit_code == 1 and failed.stderr == "Error: [Errno 28] No space left on device\n"
    status = read_status(Path("brim/00000-echo_edm"))
    assert (status["status"], status["why"]) == ("failed", "OSError: [Errno 28] No space left on device")
    assert status["experiment"] == "echo_edm" and os.listdir("brim") == ["00000-echo_edm"]


@pytest.mark.parametrize("why", ["", "x" * 500])
def test_status_that_is_overwritten_is_whole(tmp_path, monkeypatch, why):
    write_status(tmp_path, "running", why="y" * 200, experiment="a")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(utils_log, "write_text", lambda *_: os.open(tmp_path / "none/there", os.O_WRONLY))
    write_status(tmp_path, "failed", why=why)
    assert read_status(tmp_path) == {"experiment": "a", "status": "failed", "why": why}
    with pytest.raises(OSError, match="none/there"):
        write_status(tmp_path / "other", "failed")


def test_what_a_killed_process_left_behind_is_removed(at):
    assert run("left").exit_code == 0
    left = Path("left/00000-echo_edm/.tmp-123-training-state-000000.080.pt")
    left.write_bytes(b"half")
    assert run("left", LATEST).exit_code == 0
    assert not left.exists()


# ---- several ranks, killed ----


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that torchrun has started, in the order of their ranks."""
    return sorted((p for p in psutil.Process(process.pid).children() if "train.py" in " ".join(p.cmdline())),
                  key=lambda p: int(p.environ()["RANK"]))


@pytest.mark.slow
def test_three_ranks_killed_at_any_moment_go_on_bit_for_bit(at):
    options = ["training.options.batch_size=6", "training.options.total_kimg=0.3"]
    whole = subprocess.run(command("three", *options, ranks=3), capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr
    run_dir = Path("killed/00000-echo_edm")
    for victims, number in (([1], signal.SIGKILL), ([0, 1, 2], signal.SIGKILL), ([0], signal.SIGTERM)):
        before = list_files(run_dir, "training-state")[-1:] if run_dir.is_dir() else []
        with open(f"killed-{number.name}-{victims}.txt", "w", encoding="utf-8") as out:
            process = subprocess.Popen(command("killed", *options, LATEST, ranks=3), stdout=out, stderr=out)
        wait_for(lambda before=before: has_state(run_dir) and list_files(run_dir, "training-state")[-1:] != before)
        ranks = ranks_of(process)
        for victim in victims:
            ranks[victim].send_signal(number)
        assert process.wait(60) != 0
    assert read_status(run_dir)["status"] == "requeue"
    last = subprocess.run(command("killed", *options, LATEST, ranks=3), capture_output=True, text=True, timeout=120)
    assert last.returncode == 0, last.stderr
    assert result(run_dir) == result(Path("three/00000-echo_edm"))


NO_NAME = ("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0")  # torchrun calls such a launch "none"


@pytest.mark.slow
@pytest.mark.parametrize("meet", [("--standalone",), NO_NAME])
def test_torchrun_restarts_the_group_from_the_newest_state(at, meet):
    for root in ("calm", "restarted"):
        shutil.rmtree(root, ignore_errors=True)
    options = ["training.options.total_kimg=0.3"]
    whole = subprocess.run(command("calm", *options, ranks=2), capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr
    run_dir = Path("restarted/00000-echo_edm")
    with open("restarted.txt", "w", encoding="utf-8") as out:
        process = subprocess.Popen(command("restarted", *options, ranks=2, launcher=(*meet, "--max-restarts=1")),
                                   stdout=out, stderr=out)
    wait_for(lambda: has_state(run_dir))
    ranks_of(process)[1].kill()
    assert process.wait(120) == 0, Path("restarted.txt").read_text()
    assert "Restarted by torchrun" in Path("restarted.txt").read_text()
    assert list(runs_of(Path("restarted"), "echo_edm")) == [run_dir]
    assert result(run_dir) == result(Path("calm/00000-echo_edm"))


@pytest.mark.slow
@pytest.mark.parametrize("meet", [("--standalone",), NO_NAME])
def test_a_signal_ends_a_group_that_torchrun_would_restart_twice(at, meet):
    shutil.rmtree("ended", ignore_errors=True)
    run_dir = Path("ended/00000-echo_edm")
    with open("ended.txt", "w", encoding="utf-8") as out:
        process = subprocess.Popen(command("ended", LONG, ranks=2, launcher=(*meet, "--max-restarts=2")), stdout=out,
                                   stderr=out)
    wait_for(lambda: has_state(run_dir))
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 1
    status = read_status(run_dir)
    assert (status["status"], status["why"], status["attempt"]) == ("requeue", "stopped by SIGUSR1", 2)
    assert Path("ended.txt").read_text().count("ending again") == 2 and os.listdir("ended") == [run_dir.name]


@pytest.mark.slow
def test_a_sharded_run_goes_on_after_a_validation_that_is_not_the_best(at):
    """Nothing is saved then, and the next step must find the averages as shares. One rank has no item to validate."""
    made = subprocess.run(command("still", "training.options.parallel=fsdp", "training.optimizer.lr=0",
                                  "training.validation.max_items=1",
                                  "training.options.state_ticks=null", ranks=2),
                          capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    values = [json.loads(line)["val/loss"] for line in
              (next(Path("still").glob("0*")) / "stats.jsonl").read_text().splitlines()]
    assert len(values) > 2 and len(set(values)) == 1


def test_a_longer_run_under_cosine_is_warned_of(tmp_path):
    options = replace(OPTIONS, lr_schedule="cosine")
    trained(tmp_path, options)
    for schedule, warned in (("cosine", True), ("constant", False)):
        said: list[str] = []
        again = make_trainer(tmp_path, replace(options, lr_schedule=schedule, total_kimg=1))
        again.log = said.append
        again.restore(TrainingState.read(list_files(tmp_path, "training-state")[-1]))
        assert any("total_kimg was 0.24, is 1" in line for line in said) is warned


@pytest.mark.slow
def test_a_sharded_run_ends_like_a_whole_one(at):
    options = ["training.optimizer.lr=1e-2", "training.options.total_kimg=0.12", "training.network.model.dropout=0"]
    weights = []
    for parallel in ("ddp", "fsdp"):
        made = subprocess.run(command(parallel, *options, f"training.options.parallel={parallel}", ranks=2),
                              capture_output=True, text=True, timeout=120)
        assert made.returncode == 0, made.stderr
        state = TrainingState.read(list_files(next(Path(parallel).glob("0*")), "training-state")[-1])
        weights.append(torch.cat([w.flatten() for w in state.ema.values()]))
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 1e-4


@pytest.mark.parametrize(("launch", "attempt", "asked"), [("a", 0, True), ("b", 0, False), ("a", 1, False)])
def test_only_a_request_to_the_attempt_before_ends_a_restart_again(tmp_path, monkeypatch, launch, attempt, asked):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    write_status(tmp_path, "running", launch=launch, attempt=attempt)
    assert not asked_in_this_launch(tmp_path)
    write_status(tmp_path, "requeue")
    assert asked_in_this_launch(tmp_path) is asked


def test_runs_are_in_order_and_a_damaged_status_of_another_experiment_does_not_matter(tmp_path):
    for name, text in (("99999-a", '{"experiment": "a"}'), ("100000-a-b", '{"experiment": "a"}'), ("100001-ab", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    assert [p.name for p in runs_of(tmp_path, "a")] == ["100000-a-b", "99999-a"]


def test_a_damaged_status_of_an_older_run_does_not_hide_a_newer_one(tmp_path):
    make_run(tmp_path, 0, CONFIG)
    newer = make_run(tmp_path, 1, CONFIG)
    (tmp_path / "00000-exp" / "status.json").write_text("{")
    assert next(runs_of(tmp_path, "exp")) == newer
    with pytest.raises(ValueError, match="00000-exp/status.json"):
        list(runs_of(tmp_path, "exp"))


@pytest.mark.parametrize("desc", ["", "-wide"])
def test_a_damaged_status_is_named_and_never_the_reason_of_a_fresh_start(tmp_path, monkeypatch, desc):
    folder = make_run(tmp_path, 7, CONFIG, states=("000009",)).rename(tmp_path / f"00007-exp{desc}")
    options = replace(OPTIONS, run_root=str(tmp_path), resume="latest")
    state, whole = folder / "training-state-000009.pt", (folder / "status.json").read_text()
    for text in ("", "{", whole[:-3], "[1]", "\0" * 40):
        (folder / "status.json").write_text(text)
        advice = f"delete it, .* its last training state is {state}"
        with pytest.raises(ValueError, match=rf"{folder}/status.json: damaged .*{advice}"):
            choose_start(options, "exp", CONFIG)
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"{folder}/status.json"):
            patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
            choose_start(replace(options, resume=None), "exp", CONFIG)
    (folder / "status.json").unlink()
    (folder / "status.json").mkdir()  # what is no file does not count as none
    with pytest.raises(ValueError, match=rf"{folder}/status.json: damaged .*{advice}"):
        choose_start(options, "exp", CONFIG)
    (folder / "status.json").rmdir()
    state.write_bytes(b"PK")
    assert choose_start(replace(options, resume=str(state)), "exp", CONFIG).state == state
    assert f"passed over {folder}, it has states but no status.json" in choose_start(options, "exp", CONFIG).notes[1]


def test_ranks_share_all_but_how_they_use_their_machines():
    training = {"options": {"total_kimg": 1, "kimg_per_tick": 1, "num_threads": 1, "device": "cpu"}, "loss": {}}
    same = {**training, "options": {**training["options"], "num_threads": 2, "device": "cuda"}}
    longer = {**training, "options": {**training["options"], "total_kimg": 2}}
    assert common_part(same) == common_part(training) != common_part(longer)


@pytest.mark.parametrize(("change", "said"), [
    (lambda status: {}, "experiment is None"), (lambda status: [], "its content is a list"),
    (lambda status: None, "its content is None"), (lambda status: {**status, "experiment": 3}, "experiment is 3"),
    (lambda status: {**status, "experiment": "other"}, "experiment is 'other'"),
    (lambda status: {**status, "config_hash": []}, "config_hash is a list"),
    (lambda status: {**status, "nimg": "x"}, "nimg is 'x'"), (lambda status: {**status, "launch": {}}, "launch is a"),
    (lambda status: {**status, "config_hash": "0" * 16}, "config_hash is '0000000000000000', not that of"),
    (lambda status: {k: v for k, v in status.items() if k != "config_hash"}, "config_hash is None, not that of"),
])  # fmt: skip
def test_a_status_that_does_not_tell_whose_run_it_is_never_makes_latest_begin_anew(tmp_path, change, said):
    folder = make_run(tmp_path, 3, CONFIG, states=("000009",))
    status = folder / "status.json"
    status.write_text(json.dumps(change(json.loads(status.read_text()))))
    with pytest.raises(ValueError, match=f"{status}.*{re.escape(said)}.*training-state-000009.pt") as error:
        latest(tmp_path, "exp", CONFIG)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=str(status)):
        latest(tmp_path, "exp", {**CONFIG, "loss": {"P_mean": 3.0}})


def test_damage_in_other_runs_is_named_and_stops_nothing(tmp_path):
    mine = make_run(tmp_path, 0, CONFIG, states=("000001",))
    for number, text in enumerate(("[", "training: 3", "training: {options: 3}", "&a [*a]", "- 1", "\0"), 1):
        other = make_run(tmp_path, number, OTHER, states=("000002",))
        (other / "config.yaml").write_text(text)
    (tmp_path / "00009-other").mkdir()
    (tmp_path / "00009-other/status.json").write_text("[1]")
    start = latest(tmp_path, "exp", CONFIG)
    assert start.state == mine / "training-state-000001.pt"
    assert "00009-other/status.json: damaged" in start.notes[0] and "00006-exp" in start.notes[1]
    assert "config.yaml" in start.notes[1]


def test_a_damaged_status_of_a_run_that_goes_on_stops_nothing(tmp_path):
    folder = make_run(tmp_path, 0, CONFIG)
    (folder / "status.json").write_text("{")
    write_status(folder, "running", nimg=3)
    assert json.loads((folder / "status.json").read_text()) == {"nimg": 3, "status": "running", "why": ""}
