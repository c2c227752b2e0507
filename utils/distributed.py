"""The only caller of torch.distributed: one process or many, the rest of the code need not know which."""

import os

import torch
import torch.distributed as dist


def init(device_type: str = "auto") -> torch.device:
    """Join the process group that torchrun describes (or a group of one) and return this rank's device.

    device_type is auto, cpu or cuda; auto takes CUDA where there is one.
    """
    if device_type not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device_type!r}: wanted auto, cpu or cuda")
    if device_type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device here; use device=cpu or auto")
    use_cuda = device_type == "cuda" or (device_type == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group(backend="nccl" if use_cuda else "gloo", device_id=device if use_cuda else None)
    return device


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 .. world_size-1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def set_threads(num_threads: int) -> int:
    """Fix the CPU threads of this process (0: share this machine's cores between its ranks); returns the number."""
    if num_threads < 0:
        raise ValueError(f"training.options.num_threads={num_threads}: wanted 0 (share the cores) or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = num_threads or max(1, cores // local_world_size())
    torch.set_num_threads(threads)
    return threads


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: object) -> object:
    """Rank 0's value (plain Python data) on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients over the ranks in one flat buffer, in the order in which the parameters are declared.

    One buffer in a fixed order gives the same bits before and after a restart at any number of ranks, which bucketed
    overlapping reduction does not. A parameter without a gradient counts as zero.
    """
    if world_size() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def check_equal(name: str, value: str) -> None:
    """Stop every rank when they hold different values of what should be one (a config hash, weights)."""
    if world_size() == 1:
        return
    values: list[str | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    odd = [r for r, v in enumerate(values) if v != values[0]]
    if odd:
        raise ValueError(f"{name} differs between ranks: rank 0 has {values[0]}, rank {odd[0]} has {values[odd[0]]}")
