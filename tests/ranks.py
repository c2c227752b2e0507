"""Functions run by several processes that meet, each a rank of a group on the CPU."""

import os
import socket
from collections.abc import Callable

import torch

from edm3d.utils import distributed


def on_ranks(function: Callable[..., object], *arguments: object, ranks: int = 2) -> None:
    """Call a function of a module with these arguments on all ranks; an error of any of them is raised here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(meet, (ranks, port, function, arguments), nprocs=ranks)


def meet(rank: int, ranks: int, port: int, function: Callable[..., object], arguments: tuple) -> None:
    """One of the processes, of one thread."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init("cpu")
    try:
        function(*arguments)
    finally:
        distributed.shutdown()
