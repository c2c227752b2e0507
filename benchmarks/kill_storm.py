"""Claim: a run that is killed again and again, also while it writes, ends in the weights of one that never was.

Run from the top of the checkout: python -m benchmarks.kill_storm --kills 50 [--ranks 3] [--seed 0]

The processes are forks of this one, which has imported everything: a start costs a third of a second instead of five.
Otherwise they do what train.py does under torchrun.
"""

import json
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import click
import torch._dynamo  # what training imports is imported before the forks
import torch.utils.tensorboard  # noqa: F401

import dataset_tool
import edm3d.training.run  # noqa: F401
import train
from benchmarks.common import json_line
from edm3d.formats.training_state import TrainingState
from edm3d.inference.snapshot import Snapshot
from edm3d.utils import checkpoint
from edm3d.utils.files import TEMPORARY
from edm3d.utils.runs import list_files

TICK = 48           # images; there is a state after each
TICKS_PER_KILL = 4
SLACK = 4           # more such parts of the run than kills
LATEST = 2          # ticks after its turn at which a kill comes at the latest, so that the run does not end before it
START_SECONDS = 1   # in which a process comes up: kills at the start fall into it
STEP_SECONDS = 0.3
PATIENCE = 120      # seconds in which something must happen
TOY = [
    "-cn=echo_edm", "dataset=volumes", "batch_transform=voxels", "training.network.model.model_channels=8",
    "training.network.model.channel_mult=[1,1]", "training.network.model.attention_levels=[]",
    "training.network.model.dropout=0.1", "training.validation.max_items=4", "training.validation.every_ticks=1",
    "training.options.batch_size=12", f"training.options.kimg_per_tick={TICK / 1000}", "training.options.state_ticks=1",
    "training.options.snapshot_ticks=1", "training.options.ema_halflife_kimg=[0.1,0.5]",
    "training.options.precision=fp32", "training.options.num_threads=1", "training.options.device=cpu",
    "training.options.resume=latest",
    "training.options.timeout_s=30",  # nobody but the others waits for a rank that is killed before it has met them
]  # fmt: skip


class Run:
    """One command, started as often as needed: the processes of its ranks and the folder its run folders are in."""

    def __init__(self, root: Path, data: Path, ranks: int, images: int):
        self.root, self.ranks, self.processes = root, ranks, list[ForkProcess]()
        self.arguments = [*TOY, f"training.dataset.path={data}", f"training.options.run_root={root}",
                          f"training.options.total_kimg={images / 1000}"]
        root.mkdir()

    def start(self) -> None:
        """Fork the ranks."""
        (self.root / "output.txt").touch()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        context = multiprocessing.get_context("fork")
        self.processes = [context.Process(target=self.train, args=(rank, port)) for rank in range(self.ranks)]
        for process in self.processes:
            process.start()

    def train(self, rank: int, port: int) -> None:
        """What a rank does: train.py, its output in a file."""
        log = os.open(self.root / "output.txt", os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if self.ranks > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.ranks),
                              LOCAL_WORLD_SIZE=str(self.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        train.main(self.arguments)

    def alive(self) -> bool:
        """Whether no rank has ended."""
        return all(process.is_alive() for process in self.processes)

    def kill(self, ranks: list[int]) -> None:
        """SIGKILL these ranks."""
        for rank in ranks:
            self.processes[rank].kill()

    def ended(self) -> bool:
        """Wait for all ranks to end by themselves; False, and kill them, when some do not."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        left = [i for i, process in enumerate(self.processes) if process.is_alive()]
        self.kill(left)
        for process in self.processes:
            process.join()
        return not left

    def check_end(self) -> None:
        """Wait for the end; RuntimeError with what was printed unless it is a good one."""
        self.ended()
        codes = [process.exitcode for process in self.processes]
        if any(codes):
            raise RuntimeError(f"exit codes {codes}\n{self.take_output()[-3000:]}")

    def finish(self) -> TrainingState:
        """Run to the end; the last training state."""
        self.start()
        self.check_end()
        return TrainingState.read(self.newest_state())

    def take_output(self) -> str:
        """What was printed since the last call."""
        path = self.root / "output.txt"
        text = path.read_text()
        path.unlink()
        return text

    def temporary(self) -> int:
        """How many temporary files there are."""
        return sum(bool(TEMPORARY.match(name)) for name in self.names())

    def newest_state(self) -> Path | None:
        """The last training state of the newest run folder that has one."""
        states = [list_files(folder, "training-state") for folder in sorted(self.root.glob("0*"))]
        return next((found[-1] for found in reversed(states) if found), None)

    def names(self) -> Iterator[str]:
        """Names of all files in the run folders."""
        return (entry.name for folder in self.root.glob("0*") for entry in os.scandir(folder))

    def ticks(self) -> int:
        """Images of the last tick that the run has told of."""
        lines = [line for folder in sorted(self.root.glob("0*")) for path in folder.glob("stats.jsonl")
                 for line in path.read_text().splitlines() if line.endswith("}")]
        return round(json.loads(lines[-1])["kimg"] * 1000) if lines else 0


def images_of(state: Path | None) -> int:
    """Images seen by a training state, by its name."""
    return round(float(state.stem.rpartition("-")[2]) * 1000) if state else 0


def wait(run: Run, condition: Callable[[], bool], pause: float) -> None:
    """Look again and again until a condition holds or a rank has ended."""
    deadline = time.monotonic() + PATIENCE
    while run.alive() and not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happens\n{run.take_output()[-3000:]}")
        time.sleep(pause)


def await_moment(run: Run, target: int, chance: random.Random) -> None:
    """Wait for a moment to kill at: any of the start, any of a step, or while a file is being written."""
    how = chance.choice(["start", "step", "network-snapshot", "network-best", "training-state"])
    if how != "start":
        wait(run, lambda: images_of(run.newest_state()) >= target, pause=0.02)
    seconds = {"start": chance.uniform(0, START_SECONDS), "step": chance.uniform(0, STEP_SECONDS)}
    end = time.monotonic() + seconds.get(how, 2 * STEP_SECONDS)  # the best snapshot is written ever more rarely

    def now() -> bool:
        writes = any(TEMPORARY.match(name) and how in name for name in run.names())
        return writes or time.monotonic() > end or images_of(run.newest_state()) >= target + LATEST * TICK

    wait(run, now, pause=0.0005)
    time.sleep(chance.choice([0, 0.001, 0.003]))


def damaged(root: Path) -> list[str]:
    """Snapshots and states that do not load, temporary files aside."""
    bad = []
    for path in root.glob("0*/*.pt"):
        if not TEMPORARY.match(path.name):
            try:
                checkpoint.load(path, "state" if path.name.startswith("training-state") else "snapshot")
            except ValueError as error:
                bad.append(str(error))
    return bad


def learned(state: TrainingState) -> str:
    """Hash of all that was learned, and how far."""
    parts = {name: getattr(state, name) for name in ("modules", "ema", "more_emas", "optimizers")}
    return checkpoint.checksum({**parts, "nimg": state.nimg})


def snapshots(root: Path) -> str:
    """Hash of the weights in the last snapshots, every average and the best."""
    folder = sorted(root.glob("0*"))[-1]
    last = list_files(folder, "network-snapshot")[-1]
    files = sorted([*folder.glob(f"{last.stem}*.pt"), folder / "network-best.pt"])
    return checkpoint.checksum([Snapshot.read(path).weights for path in files])


@dataclass
class Seen:
    """What a storm of kills was seen to do."""

    kills: int = 0
    kills_in_writes: int = 0        # with a temporary file left behind
    kills_before_word: int = 0      # before the run had said what it goes on from
    fresh_starts: int = 0           # where there was no state
    resumes: int = 0
    wrong_resumes: int = 0          # from another state than the last one, or from none though there was one
    hung: int = 0                   # groups that did not end after one of their ranks was killed
    max_lost_images: int = 0        # of ticks that the run had told of
    lost_files: int = 0             # snapshots and states that do not load


def storm(run: Run, kills: int, images: int, chance: random.Random) -> Seen:
    """Start and kill a run up to `kills` times."""
    seen = Seen()
    for number in range(kills):
        state = run.newest_state()
        run.start()
        await_moment(run, images * (number + 1) // (kills + SLACK), chance)
        if not run.alive():
            run.check_end()
            break  # it was faster than the one who kills
        run.kill(list(range(run.ranks)) if chance.random() < 0.5 else [chance.randrange(run.ranks)])
        seen.hung += not run.ended()
        seen.kills += 1
        seen.kills_in_writes += run.temporary() > 0
        said = run.take_output()
        wanted = f"Resumed from {state} " if state else "starting fresh"
        has_word = "Resumed from" in said or "starting fresh" in said
        seen.kills_before_word += not has_word
        seen.fresh_starts += has_word and state is None
        seen.resumes += has_word and state is not None
        seen.wrong_resumes += has_word and wanted not in said
        seen.max_lost_images = max(seen.max_lost_images, run.ticks() - images_of(run.newest_state()))
        seen.lost_files += len(damaged(run.root))
    return seen


@click.command()
@click.option("--kills", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, ranks: int, seed: int) -> None:
    """Kill a small run at random moments and compare its end with that of an undisturbed one."""
    images = (kills + SLACK) * TICKS_PER_KILL * TICK
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "echo.h5")
        phantom = ["phantom", "--dest", str(data), "--num", "24", "--size", "16", "--spatial-dims", "2"]
        dataset_tool.main(phantom, standalone_mode=False)
        whole, killed = (Run(Path(folder, name), data, ranks, images) for name in ("whole", "killed"))
        wanted, start = learned(whole.finish()), time.monotonic()
        seen = storm(killed, kills, images, random.Random(seed))
        same = learned(killed.finish()) == wanted and snapshots(killed.root) == snapshots(whole.root)
        print(json_line("a run killed at random moments ends in the weights of one that was not", **asdict(seen),
                        left_temporary=killed.temporary(), bit_identical=same, images=images, images_per_state=TICK,
                        ranks=ranks, seconds=round(time.monotonic() - start)))


if __name__ == "__main__":
    main()
