"""The attack sees every class of fault that it counts, and finds none in a short form of itself."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import torch
from tqdm import tqdm

from benchmarks import attack_contents, attack_races
from benchmarks.attack_contents import alter
from benchmarks.attack_damage import WAYS, damage
from benchmarks.attack_files import Ground, damage_trial
from benchmarks.attack_judge import FAULTS, Verdict
from benchmarks.attack_kinds import Target, all_kinds
from benchmarks.attack_names import check_tables
from benchmarks.attack_watch import CANARY, SECRET, Command, Fault, spread, watch
from edm3d.formats import h5
from edm3d.utils import checkpoint

WORD = b"a good word"


def careful() -> object:
    """A reader as it should be: it refuses all that is not the good word."""
    raw = Path("a.bin").read_bytes() if Path("a.bin").is_file() else b""
    if raw != WORD:
        print("Error: a.bin: damaged", file=sys.stderr)
        raise SystemExit(1)
    return raw.decode()


def only_if_damaged(act) -> Command:
    """A reader that does something else with a damaged file."""
    def run() -> object:
        whole = Path("a.bin").is_file() and Path("a.bin").read_bytes() == WORD
        return careful() if whole else act()

    return Command("read", run)


def say(text: str, code: int = 1):
    print(text, file=sys.stderr)
    raise SystemExit(code)


def connect() -> None:
    with socket.socket() as s:
        s.settimeout(0.1)
        try:
            s.connect(("127.0.0.1", 9))
        except OSError:
            say("Error: a.bin: no such host")


def allocate() -> None:
    try:
        np.ones(8 << 27)
    except MemoryError:
        say("Traceback (most recent call last):\nMemoryError")


def fill() -> None:
    np.ones(80 << 20)
    say("Error: a.bin: damaged")


PLANTED = {
    "tracebacks": (lambda: {}["x"], lambda: os.kill(os.getpid(), signal.SIGSEGV),
                   lambda: say("Traceback (most recent call last):\nValueError: a.bin")),
    "hangs": (lambda: time.sleep(30),),
    "memory": (allocate, fill),
    "silent_changes": (lambda: "another word",),
    "lost_outputs": (lambda: (_ for _ in ()).throw(Fault("lost_outputs", "7 of 8 volumes")),),
    "files_outside": (lambda: Path("elsewhere").write_text("x"), lambda: Path("../up").write_text("x"),
                      lambda: Path("b.bin").unlink(), lambda: os.mkdir("/tmp/attack-planted-outside"),
                      lambda: open("/tmp/attack-planted-file", "w").close()),
    "code_run": (lambda: os.system("true"), lambda: subprocess.run(["true"]), lambda: os.makedirs(f"out/{CANARY}")),
    "network_asked": (connect, lambda: socket.getaddrinfo("localhost", 9)),
    "unnamed": (lambda: say("Error: something is wrong"),),
    "unclean": (lambda: say("Error: a.bin: damaged\nError: and more"), lambda: say("a.bin is bad"),
                lambda: say("Error: a.bin: \x1b[31mred"), lambda: print("RuntimeWarning: x", file=sys.stderr)),
    "leaks": (lambda: print(SECRET), lambda: Path("out").write_text(f"home is {os.environ['HOME']}")),
}


@pytest.fixture
def ground(tmp_path) -> Ground:
    """A world of two good files."""
    (tmp_path / "world").mkdir()
    for name, text in (("a.bin", WORD), ("b.bin", b"another one"), ("other.bin", b"of another kind")):
        (tmp_path / "world" / name).write_bytes(text)
    return Ground(0, tmp_path / "world", tmp_path / "cages", {}, limit_s=60)


def attacked(ground: Ground, command: Command, number: int = 0, checked: bool = True) -> Verdict:
    """Damage number N of the one kind that is attacked; there is another to put in its place."""
    kinds = [Target("word", "a.bin", "b.bin", (command,), checked), Target("other", "other.bin", "b.bin", ())]
    return damage_trial(ground, kinds, number * len(kinds))


@pytest.mark.parametrize(("fault", "act"), [(f, a) for f, acts in PLANTED.items() for a in acts])
def test_a_planted_fault_is_seen(ground, fault, act):
    limit = 1 if fault == "hangs" else 60
    found = attacked(ground._replace(limit_s=limit), only_if_damaged(act))
    assert fault in [finding.fault for finding in found.findings]
    assert set(finding.fault for finding in found.findings) <= {fault, "silent_changes", "unclean"}
    for left in (Path("/tmp/attack-planted-outside"), Path("/tmp/attack-planted-file")):
        if left.exists():
            left.rmdir() if left.is_dir() else left.unlink()


def test_every_fault_is_planted():
    assert {*PLANTED, "leftovers"} == set(FAULTS)  # what a killed command leaves is planted below


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_a_careful_reader_has_no_fault(ground, number):
    found = attacked(ground, Command("read", careful), number)
    assert found.findings == [] and found.outcomes == {"refused": 1}


def test_a_change_is_a_fault_where_there_is_a_checksum_and_nothing_is_said(ground):
    changed, said = (only_if_damaged(act) for act in (lambda: "x", lambda: print("a.bin: taken as it is") or "x"))
    assert attacked(ground, changed, checked=False).outcomes == {"legal": 1}
    assert attacked(ground, said).outcomes == {"said": 1}
    assert attacked(ground._replace(whole={}), Command("read", lambda: "the same")).outcomes == {"unharmed": 1}


def test_after_a_hang_or_a_crash_the_other_commands_are_tried(tmp_path):
    acts = (lambda: time.sleep(30), lambda: 1, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 2)
    commands = [Command(str(i), act) for i, act in enumerate(acts)]
    seen = watch(lambda made: (made / "x").touch(), commands, tmp_path / "cage", 1)
    assert [one.code for one in seen] == ["hangs", 0, "signal 9", 0]


def test_a_command_that_fails_on_good_files_stops_the_attack(ground):
    with pytest.raises(RuntimeError, match="does not work on a good file"):
        ground.ask_whole("word", Command("read", lambda: say("Error: a.bin", 1)))
    with pytest.raises(RuntimeError, match="could not be made"):
        watch(lambda made: 1 / 0, [Command("read", careful)], ground.cages / "x", 60)


def test_a_worker_that_dies_is_no_silence():
    with pytest.raises(RuntimeError, match="ended by"):
        list(spread([lambda: 1, lambda: os._exit(3)], 2))
    assert sorted(spread([lambda i=i: i for i in range(5)], 2)) == list(range(5))


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_every_damage_changes_the_file(tmp_path, way):
    path, twin, other = (tmp_path / name for name in "abc")
    for seed in range(20):
        if path.is_dir():
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        path.write_bytes(bytes(range(200)) * 9)
        twin.write_bytes(bytes(range(100)) * 9)
        other.write_bytes(b"other")
        damage(random.Random(seed), way, path, twin, [other])
        assert path.is_dir() or path.read_bytes() != bytes(range(200)) * 9


def test_altered_content_has_valid_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(attack_contents, "HUGE", 64)  # this process has no bounds
    outcomes = []
    for seed in range(30):
        checkpoint.save(tmp_path / "a.pt", "snapshot", {"ema": {"w": torch.ones(3)}, "shape": [1], "first_stage": None})
        with h5.atomic_h5(tmp_path / "a.h5") as file:
            h5.set_format(file, "volumes", {"kind": "test"})
            h5.write_array(file, "x", np.ones((3, 4)))
        for path, read in ((tmp_path / "a.pt", lambda p: checkpoint.load(p, "snapshot")),
                           (tmp_path / "a.h5", lambda p: h5.check_metadata(h5py.File(p)))):
            alter(random.Random(seed), path)
            try:
                read(path)
                outcomes.append((path.suffix, "whole"))
            except Exception as error:
                outcomes.append((path.suffix, "checksum" if "checksum" in str(error) else "refused"))
    assert outcomes.count((".pt", "whole")) > 10 and outcomes.count((".h5", "whole")) > 10
    assert outcomes.count((".pt", "checksum")) < 8


def test_tables_and_pages_are_looked_through(tmp_path):
    (tmp_path / "a.csv").write_text("id,n\nx,-1.5\n'=1,+2\n")
    check_tables(str(tmp_path))
    (tmp_path / "a.csv").write_text("id\n=1+1\n")
    with pytest.raises(Fault, match="cell '=1"):
        check_tables(str(tmp_path))
    (tmp_path / "a.csv").unlink()
    (tmp_path / "a.html").write_text("<td><script>alert(1)</script></td>")
    with pytest.raises(Fault, match="script"):
        check_tables(str(tmp_path))


def test_kinds_have_names_of_their_own():
    kinds = all_kinds()
    assert len({kind.name for kind in kinds}) == len(kinds) > 30
    assert all(len({command.name for command in kind.commands}) == len(kind.commands) > 0 for kind in kinds)


# ---- races and kills ----


@click.command()
@click.argument("text")
def careless(text: str) -> None:
    """Write out.txt through a temporary file, whoever else does, and leave that of a killed predecessor."""
    temporary = Path(f".tmp-{os.getpid()}-{'0' * 16}-out.txt")
    temporary.write_text(text)
    time.sleep(0.3)
    temporary.rename("out.txt")


@click.command()
@click.argument("text")
def careful_one(text: str) -> None:
    """Write out.txt unless it is there with another text."""
    try:
        with open("out.txt", "x") as file:
            file.write(text)
    except FileExistsError:
        if Path("out.txt").read_text() != text:
            raise click.ClickException("out.txt: another command is at work on it") from None


def job(command: click.Command, text: str) -> attack_races.Job:
    return attack_races.Job(text, command, (text,), "out.txt", lambda: Path("out.txt").read_text())


def test_what_two_commands_lose_is_seen(ground, monkeypatch):
    faults = []
    for command in (careless, careful_one):
        pair = (job(command, "one"), job(command, "two"))
        monkeypatch.setattr(attack_races, "PAIRS", [pair])
        attack_races.try_alone(list(pair), ground, 1)
        found = attack_races.race_trial(ground, 0)
        faults.append([each.fault for each in found.findings])
    assert faults == [["lost_outputs"], []]


def test_what_a_killed_command_leaves_is_seen(ground, monkeypatch):
    monkeypatch.setattr(attack_races, "JOBS", [job(careless, "one")])
    monkeypatch.setattr(attack_races, "await_moment", lambda process, work, alone, chance: attack_races.changes_in(
        process, work, 60, most=1))
    attack_races.try_alone(attack_races.JOBS, ground, 1)
    found = attack_races.kill_trial(ground, 0)
    assert found.outcomes == {"kill in a write": 1} and [each.fault for each in found.findings] == ["leftovers"]


@click.command()
@click.argument("text")
def drawing(text: str) -> None:
    """Be at work on a bar for a while, then write out.txt."""
    with tqdm.get_lock():
        Path("at-work").touch()
        time.sleep(0.3)
    Path("at-work").unlink()
    Path("out.txt").write_text(text)


def test_a_kill_in_the_middle_of_a_bar_is_no_hang_of_others(ground, monkeypatch):
    """tqdm's own lock is one for all forks of a process, and stays with whoever is killed while he has it."""
    monkeypatch.setattr(attack_races, "JOBS", [job(drawing, "one")])
    monkeypatch.setattr(attack_races, "await_moment", lambda process, work, alone, chance: attack_races.changes_in(
        process, work, 60, most=1))
    tqdm.get_lock()
    attack_races.try_alone(attack_races.JOBS, ground, 1)
    found = attack_races.kill_trial(ground._replace(limit_s=10), 0)
    assert found.outcomes == {"kill": 1} and not found.findings


# ---- the attack itself ----


def run_attack(root: Path, *arguments: str, timeout: int) -> dict:
    """What benchmarks/attack.py prints, and that it found nothing."""
    command = [sys.executable, "-m", "benchmarks.attack", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-6000:]}"
    figures = json.loads(done.stdout.splitlines()[-1])
    assert all(figures[fault] == 0 for fault in FAULTS)
    return figures


@pytest.mark.slow
def test_a_short_attack_finds_nothing(root):
    figures = run_attack(root, "--share", "0.003", timeout=240)
    assert [figures[part] for part in ("damages", "contents", "names", "races", "kills")] == [6, 2, 1, 1, 1]


@pytest.mark.slow
def test_the_whole_attack_finds_nothing(root):
    figures = run_attack(root, timeout=3 * 3600)
    assert figures["damages"] == 2000 and figures["refused"] > figures["died"] == 0
