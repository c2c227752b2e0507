"""How a run uses its machine: where weights lie, and what of that changes the last bits of a result."""

from collections.abc import Sequence

import torch

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


def environment(options: Options, batch_gpu: int, precision: str, phases: Sequence[Phase], device: torch.device
                ) -> dict:
    """What changes the last bits of a result; stored in the state, a change is warned of."""
    return {"threads": torch.get_num_threads(), "ranks": distributed.world_size(), "batch_gpu": batch_gpu,
            "precision": precision, "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark, "channels_last": options.channels_last,
            "compile": options.compile, "parallel": options.parallel, "torch": str(torch.__version__),
            "device": device.type, "fused": [bool(p.optimizer.defaults.get("fused")) for p in phases],
            "processor": processor(device)}
