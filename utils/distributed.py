"""Ranks and what they do together: one process or many, the rest of the code need not know which.

Only this file and utils/sharding.py call torch.distributed.
"""

import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from edm3d.utils.checks import listed
from edm3d.utils.files import first_line
from edm3d.utils.log import error_text, is_lack_of_memory
from edm3d.utils.precision import set_cuda_arithmetic

BEAT_S = 1  # how often a rank shows that its process is alive; it counts as lost after five beats that stay out
LONGEST_S = 10 ** 8  # of waiting: three years, which the libraries can count
MOST_THREADS = 1024
LETTING_GO_S = 0.2  # for gloo's threads to let go of what they sent last, once nothing more is to come
NCCL_S = 1800  # the least time-out of NCCL itself: it connects at the first collective, on many machines for minutes


class Roll:
    """Where every rank was last seen, kept in the store through which the ranks met, so that a missing one is named.

    Gloo turns a lost or late rank into an error; NCCL ends the process. Where `gated`, ranks therefore wait here for
    all to arrive before they begin.
    """

    def __init__(self, store: dist.Store, rank: int, ranks: int, timeout_s: float):
        self.store, self.rank, self.ranks, self.timeout_s = store, rank, ranks, timeout_s
        self.gated, self.count, self.path, self.closed = True, 0, [], threading.Event()
        for key in [f"{kind}/{r}" for kind in ("at", "beat") for r in range(ranks)]:
            store.compare_set(key, "", "0 nothing")  # where that rank has not written yet
        self.beats = threading.Thread(target=self.beat, args=(store.clone(),), daemon=True)
        self.beats.start()

    def beat(self, store: dist.Store) -> None:
        """Show now and again that this process is alive, whatever it waits for."""
        with suppress(dist.DistError):
            for number in itertools.count(1):
                store.set(f"beat/{self.rank}", str(number))
                if self.closed.wait(BEAT_S):
                    return

    def close(self) -> None:
        """End the beats. A thread inside the store's C++ code when Python ends would abort the process."""
        self.closed.set()
        self.beats.join(10 * BEAT_S)

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Sign in to what all ranks do together; ConnectionError, in one line with the rank, when one is missing."""
        self.count += 1
        self.path.append(what)
        try:
            self.store.set(f"at/{self.rank}", f"{self.count} {self.place()}")
            if self.gated:
                self.wait_for_all()
            yield
        except RuntimeError as e:
            if not isinstance(e, dist.DistError) and "gloo" not in str(e):
                raise
            raise ConnectionError(self.explain("timed out" in str(e).lower())) from e
        finally:
            self.path.pop()

    def place(self) -> str:
        """The meetings that this rank is in, the innermost first."""
        return " in ".join(reversed(self.path))

    def wait_for_all(self) -> None:
        """Return when all ranks have signed in as often as this one."""
        pause, end = 0.001, time.monotonic() + self.timeout_s
        while self.behind():
            if time.monotonic() > end or self.store.check(["verdict"]):
                raise ConnectionError(self.explain(late=True))
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def behind(self) -> dict[int, str]:
        """Ranks that have signed in less often than this one, and where they were seen last."""
        lines = self.store.multi_get([f"at/{r}" for r in range(self.ranks)])
        seen = [line.decode().split(" ", 1) for line in lines]
        return {r: place for r, (count, place) in enumerate(seen) if int(count) < self.count}

    def lost(self) -> list[int]:
        """Ranks that show no life for a while; none, at once, when a verdict is found."""
        keys, end = [f"beat/{r}" for r in range(self.ranks)], time.monotonic() + 5 * BEAT_S
        before = self.store.multi_get(keys)
        while time.monotonic() < end:
            if self.store.check(["verdict"]):
                return []
            time.sleep(BEAT_S / 20)
        return [r for r, (old, new) in enumerate(zip(before, self.store.multi_get(keys))) if old == new]

    def verdict(self, text: str) -> str:
        """What all ranks say went wrong: the first such text that any of them gave."""
        return self.store.compare_set("verdict", "", text).decode()

    def explain(self, late: bool) -> str:
        """Which rank is missing, in one line."""
        try:
            if late and (behind := self.behind()):
                names = listed(f"rank {r} (last seen at {place})" for r, place in behind.items())
                return self.verdict(f"{names} did not arrive at {self.place()} within {self.timeout_s:g} s")
            if gone := self.lost():
                return self.verdict(f"rank {listed(gone)} was lost at {self.place()}")
            return self.verdict(f"the connection between ranks broke at {self.place()}; all of them still run")
        except dist.DistError:
            return f"rank 0, or the machine on which the ranks met, was lost at {self.place()}"


_roll: Roll | None = None


@contextmanager
def meeting(what: str) -> Iterator[None]:
    """What all ranks do together, as a block or on a function; ConnectionError, naming the rank, when one is missing.

    Meetings may contain meetings; all ranks must come to the same ones in the same order.
    """
    if _roll is None:
        yield
    else:
        with _roll.meeting(what):
            yield


def init(device_type: str = "auto", timeout_s: float = 600, *, tf32: bool = False, cudnn_benchmark: bool = False
         ) -> torch.device:
    """Join the process group that torchrun describes (or a group of one) and return this rank's device.

    device_type is auto, cpu or cuda; auto takes CUDA where there is one. ConnectionError, naming the rank, when one
    does not arrive within timeout_s: now, or later at whatever the ranks do together. tf32, cudnn_benchmark: see
    precision.set_cuda_arithmetic.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}: wanted more than 0 seconds")
    device = choose_device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        set_cuda_arithmetic(tf32, cudnn_benchmark)
    if "RANK" in os.environ and not dist.is_initialized():
        join(device, timeout_s)
    return device


def choose_device(device_type: str = "auto") -> torch.device:
    """This rank's device of a type (auto, cpu, cuda); ValueError where there is none."""
    if device_type not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device_type!r}: wanted auto, cpu or cuda")
    if device_type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device here; use device=cpu or auto")
    use_cuda = device_type == "cuda" or (device_type == "auto" and torch.cuda.is_available())
    if not use_cuda:
        return torch.device("cpu")
    place, cards = number("LOCAL_RANK", 0), torch.cuda.device_count()
    if place >= cards:
        raise ValueError(f"{place + 1} processes or more on this machine, and torch sees {cards} CUDA device"
                         f"{'s' * (cards != 1)}: start as many as there are (--nproc_per_node={cards}), or use "
                         "device=cpu")
    return torch.device("cuda", place)


def join(device: torch.device, timeout_s: float) -> None:
    """Meet the other ranks in the store that torchrun names, then connect to them.

    torchrun keeps that store when it restarts a group, addresses of dead processes and all, so that each start must
    have a part of its own.
    """
    global _roll
    limit, nccl = timedelta(seconds=min(timeout_s, LONGEST_S)), device.type == "cuda"
    if number("RANK") >= number("WORLD_SIZE"):
        raise ValueError(f"RANK={number('RANK')} of WORLD_SIZE={number('WORLD_SIZE')}: wanted less; torchrun sets both")
    number("MASTER_PORT")
    try:
        store, rank, ranks = next(dist.rendezvous("env://", timeout=limit))
    except dist.DistError as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(e):
            raise ConnectionError(f"{where} is in use by another program; choose another port, or --standalone") from e
        raise ConnectionError(f"the {os.environ.get('WORLD_SIZE')} ranks did not all meet at {where} "
                              f"within {timeout_s:g} s") from e
    store = dist.PrefixStore(f"start/{number('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _roll = Roll(dist.PrefixStore("roll", store.clone()), rank, ranks, timeout_s)
    with meeting("the start"):
        dist.init_process_group("nccl" if nccl else "gloo", store=store, rank=rank, world_size=ranks,
                                timeout=max(limit, timedelta(seconds=NCCL_S)) if nccl else limit,
                                device_id=device if nccl else None)
    _roll.gated = nccl


def number(name: str, default: int | None = None) -> int:
    """A whole number that torchrun sets in the environment; ValueError for anything else, or where it lacks."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{name}={text}: wanted a whole number, as torchrun sets it in the environment; without "
                         "torchrun unset RANK, WORLD_SIZE and the like")
    return int(text)


def shutdown() -> None:
    """Leave the process group, if there is one; an error on its way out is left for the other ranks to name.

    Shares of networks keep gloo's threads alive, and one that lets go of a tensor while Python ends aborts the process.
    Nothing tells when they are done, which is soon, unless the machine has much else to do.
    """
    global _roll
    error = sys.exc_info()[1]
    failed = error is not None and not isinstance(error, SystemExit)
    if _roll is not None:
        if failed:
            line = error_text(error) if is_lack_of_memory(error) else first_line(error)
            with suppress(dist.DistError):
                _roll.verdict(f"rank {_roll.rank} failed: {type(error).__name__}: {line}")
        _roll.close()
    _roll = None
    if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):  # NCCL would wait for the others
        dist.destroy_process_group()
        time.sleep(LETTING_GO_S)


def rank() -> int:
    """Number of this process, 0 .. world_size-1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def set_threads(num_threads: int) -> int:
    """Fix the CPU threads of this process; returns the number.

    0: what OMP_NUM_THREADS says, or this machine's cores shared between its ranks.
    """
    if not 0 <= num_threads <= MOST_THREADS:
        raise ValueError(f"training.options.num_threads={num_threads}: wanted 0 (share the cores) .. {MOST_THREADS}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = num_threads or asked_threads() or max(1, cores // number("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads)
    return threads


def asked_threads() -> int | None:
    """The number in OMP_NUM_THREADS, None where the user has set none; ValueError for anything else."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    first = text.partition(",")[0].strip()  # the others are for threads inside of threads
    if not first or (first == "1" and set_by_torchrun()):
        return None
    if not re.fullmatch("[0-9]{1,4}", first) or not 1 <= int(first) <= MOST_THREADS:
        raise ValueError(f"OMP_NUM_THREADS={text}: wanted a whole number of 1 .. {MOST_THREADS}, or none")
    return int(first)


def set_by_torchrun() -> bool:
    """Whether torchrun has put OMP_NUM_THREADS=1 there, as it does for several ranks where there is none.

    That is told by the environment that torchrun, the parent of all ranks, was started with; where the system does not
    show it (/proc), 1 counts as torchrun's.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or number("LOCAL_WORLD_SIZE", 1) < 2:
        return False
    try:
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return True
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in started_with.split(b"\0"))


@meeting("a barrier")
def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@meeting("a sum over ranks")
def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the ranks, where the ranks talk: on the device under NCCL."""
    if world_size() > 1:
        tensor = tensor.to(meeting_device())
        dist.all_reduce(tensor)
    return tensor


def meeting_device() -> torch.device:
    """Where tensors lie that ranks exchange: NCCL knows its device only, gloo wants the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@meeting("the sum of the gradients")
def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients over the ranks in one flat buffer, in the order in which the parameters are declared.

    One buffer in a fixed order gives the same bits before and after a restart at any number of ranks, which bucketed
    overlapping reduction does not.
    """
    if world_size() == 1 or not parameters:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def check_equal(name: str, value: str) -> None:
    """Stop every rank when they hold different values of what should be one, such as a config hash."""
    values = gather_objects(value)
    odd = [r for r, v in enumerate(values) if v != values[0]]
    if odd:
        raise ValueError(f"{name} differs between ranks: rank 0 has {values[0]}, rank {odd[0]} has {values[odd[0]]}")


@meeting("a maximum over ranks")
def max_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of the ranks' numbers, one by one, on every rank."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=meeting_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


@meeting("a gathering from all ranks")
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors of one shape from all ranks, stacked in the order of the ranks, on every rank."""
    if world_size() == 1:
        return tensor[None]
    tensor = tensor.to(meeting_device())
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


@meeting("a gathering from all ranks")
def gather_objects(value: object) -> list:
    """Plain Python data of all ranks, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(function: Callable[[], Any]) -> Any:
    """What a function gives on rank 0 (plain data), on every rank; its ValueError or OSError is raised on every rank.

    So that no rank waits for one that has failed.
    """
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = function()
        except (ValueError, OSError) as e:
            box[1] = e
    if dist.is_initialized():
        with meeting("a message from rank 0"):
            dist.broadcast_object_list(box, src=0)
    value, error = box
    if error is not None:
        raise error
    return value


@meeting("the comparison of weights")
def check_same(tensors: Mapping[str, torch.Tensor], advice: str) -> None:
    """ValueError, naming the first that differs and the rank, unless all ranks hold the same tensors to the last bit.

    What is compared is one sum per tensor over its bits as integers: cheap, the same in any order, and NaN is NaN.
    """
    if world_size() == 1 or not tensors:
        return
    sums = gather(torch.stack([bit_sum(t) for t in tensors.values()]))
    odd = (sums != sums[0]).cpu()
    if odd.any():
        index = int(odd.any(0).nonzero()[0])
        r = int(odd[:, index].nonzero()[0])
        raise ValueError(f"{list(tensors)[index]} differs between ranks: rank {r} does not hold what rank 0 does; "
                         f"{advice}")


def bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of b (b + 1) over the elements' bit patterns b, modulo 2^64: a 0-dimensional int64 tensor."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(kind).long()
    return (bits * (bits + 1)).sum()
