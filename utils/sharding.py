"""Networks of which every rank holds a share (FSDP2); all but `shard` does the right thing for whole ones as well."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edm3d.utils import distributed

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)
DECIDE_THEMSELVES = (torch.optim.Adam, torch.optim.AdamW)  # whether they step, where they are fused


def shard(module: nn.Module, device: torch.device, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Leave every rank its share of a module's weights, on its device, and hand the shares to a fresh optimiser.

    All ranks must hold the same weights. They are made whole block by block when the module is called, which all ranks
    must do equally often. Gradients come out as the sum over ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second of start-up, which whole ones do without
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    whole_weights = list(module.parameters())
    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # the root too: averages are updated as shares
        part.set_gradient_divide_factor(1)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    if optimizer is not None:
        assert not optimizer.state, "shares are made before the first step"
        shares = dict(zip(map(id, whole_weights), module.parameters(), strict=True))
        for group in optimizer.param_groups:
            group["params"] = [shares[id(p)] for p in group["params"]]


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that are made whole one at a time: what containers hold, single layers aside."""
    for child in module.children():
        if isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS):
            if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                yield child
        else:
            yield from blocks(child)


def is_share(value: object) -> bool:
    """Whether a tensor is a rank's share of one."""
    tensors = sys.modules.get("torch.distributed.tensor")  # without which there are none
    return tensors is not None and isinstance(value, tensors.DTensor)


def reshard(module: nn.Module) -> None:
    """Leave every rank its share again, where a call that broke off has left weights whole."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # weights that are whole now do not tell that they were in shares
    for part in module.modules() if fsdp else ():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()


def checkpoint_blocks(module: nn.Module) -> None:
    """Have the blocks of a network keep nothing but their inputs for the backward pass, where they run once more."""
    for block in blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the ranks; those of shares are summed already.

    A missing gradient becomes zero, on one rank as on many.
    """
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    distributed.all_reduce_gradients([p for p in parameters if not is_share(p)])


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale gradients down to a global norm (None: leave them) and return the norm that they had."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    return norm.full_tensor() if is_share(norm) else norm


def step_unless(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """Step an optimiser unless a flag [] bool on its device is set, which leaves weights and moments as they are.

    Adam and AdamW, fused, look at the flag on the device, as they do for torch.amp.GradScaler. For any other optimiser,
    for shares, and until there are moments, the host waits for it.
    """
    groups = optimizer.param_groups
    shared = any(is_share(p) for group in groups for p in group["params"])
    by_itself = type(optimizer) in DECIDE_THEMSELVES and all(group["fused"] for group in groups) and not shared
    if by_itself and optimizer.state:
        optimizer.found_inf = bad.float()
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
    elif not bad:
        optimizer.step()


def check_same_weights(modules: Mapping[str, nn.Module], advice: str) -> None:
    """ValueError, naming weight and rank, unless all ranks hold the same parameters and buffers, shares aside."""
    distributed.check_same({f"{name}.{key}": value for name, module in modules.items()
                            for key, value in (*module.named_parameters(), *module.named_buffers())
                            if not is_share(value)}, advice)


@distributed.meeting("the gathering of a state")
def full_state(source: nn.Module | torch.optim.Optimizer) -> dict:
    """The state_dict of a module or optimiser in whole CPU tensors, the same whether it is in shares or not.

    All ranks must call this together; rank 0 alone gets the tensors, the others None in their places.
    """
    return whole(source.state_dict())


def whole(value: Any) -> Any:
    """A tree with its tensors, shares put together, on rank 0's CPU; None in their places elsewhere."""
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(whole, value))
    if not isinstance(value, torch.Tensor):
        return value
    value = whole_tensor(value)
    return value.detach().cpu() if distributed.rank() == 0 else None


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with its shares put together, on every rank; all ranks must call this together."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def load_full_state(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take over what `full_state` gave of such a module; every rank brings the whole state and keeps its share."""
    here = module.state_dict()
    module.load_state_dict({key: share(value, here.get(key)) for key, value in state.items()})


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, full: dict) -> None:
    """Take over what `full_state` gave of such an optimiser; every rank brings the whole state and keeps its share."""
    numbers = [number for group in full["param_groups"] for number in group["params"]]
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    weight = dict(zip(numbers, weights))  # a wrong count is for load_state_dict to refuse
    optimizer.load_state_dict({**full, "state": {
        number: {key: share(value, weight.get(number)) for key, value in entries.items()}
        for number, entries in full["state"].items()}})


def share(value: Any, like: torch.Tensor | None) -> Any:
    """This rank's share of a whole tensor, where `like` is in shares; numbers and all else stay what they are.

    ValueError for a tensor of another shape, which has no share.
    """
    if not is_share(like) or not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    if value.shape != like.shape:
        raise ValueError(f"training.options.parallel=fsdp: no share of {list(value.shape)} goes with weights of "
                         f"{list(like.shape)}; go on with parallel=ddp")
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # not a window on the whole
