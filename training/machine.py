"""How a run uses its machine: where weights lie, and what of that changes the last bits of a result."""

from collections.abc import Sequence

import torch

from edm3d.samplers.noise import GENERATORS
from edm3d.training.phases import Phase
from edm3d.training.resume import processor
from edm3d.utils import distributed, sharding
from edm3d.utils.schema import Options

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # of weights of 2D and 3D convolutions


def place(module: torch.nn.Module, optimizer: torch.optim.Optimizer | None, options: Options, device: torch.device
          ) -> None:
    """Bring a module to the device, whole or this rank's share of it."""
    if options.parallel == "fsdp" and distributed.world_size() > 1:
        sharding.shard(module, device, optimizer)
        return
    module.to(device)
    if options.channels_last:
        for p in module.parameters():
            if p.ndim in LAYOUTS:
                p.data = p.data.contiguous(memory_format=LAYOUTS[p.ndim])


def check_graphs(options: Options, rounds: int) -> None:
    """ValueError for CUDA graphs without what they are made of, or where their memory would be written to too early."""
    if not options.graphs:
        return
    if not options.compile:
        raise ValueError("training.options.graphs=true replays what is compiled; set training.options.compile=true as "
                         "well")
    if options.tune:
        raise ValueError("training.options.graphs=true does not go with training.options.tune=true, which measures no "
                         "graphs; turn one of them off")
    if rounds > 1:
        raise ValueError("training.options.graphs=true: gradients lie in memory that the next round writes to, and "
                         f"batch_gpu={options.batch_gpu} adds up those of {rounds}; set training.options.batch_gpu="
                         "null, or graphs=false where memory is short")


def as_called(module: torch.nn.Module, options: Options, device: torch.device) -> torch.nn.Module:
    """A network as steps call it: itself, or compiled, whose graphs CUDA replays where that is asked for."""
    if not options.compile:
        return module
    return torch.compile(module, mode="reduce-overhead" if options.graphs and device.type == "cuda" else None)


def environment(options: Options, batch_gpu: int, precision: str, phases: Sequence[Phase], device: torch.device
                ) -> dict:
    """What changes the last bits of a result; stored in the state, a change is warned of."""
    return {"threads": torch.get_num_threads(), "ranks": distributed.world_size(), "batch_gpu": batch_gpu,
            "precision": precision, "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark, "channels_last": options.channels_last,
            "compile": options.compile, "graphs": options.graphs, "parallel": options.parallel,
            "torch": str(torch.__version__), "device": device.type, "noise": options.noise or GENERATORS,
            "fused": [bool(p.optimizer.defaults.get("fused")) for p in phases],
            "processor": processor(device)}
