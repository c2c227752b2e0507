"""What a profile says of a step beside its times: arithmetic and memory, by the plan."""

from dataclasses import replace

from edm3d.training.plan import find_source, plan_step
from edm3d.training.profiling import Planned
from edm3d.utils.distributed import choose_device, number
from edm3d.utils.precision import resolve_precision
from edm3d.utils.schema import Options


def planned(training: dict, options: Options) -> Planned | None:
    """Numbers of rank 0's step, by the plan; None on other ranks, and where it cannot be planned.

    To be called before the ranks meet: what is planned meets with nobody.
    """
    if number("RANK", 0):
        return None
    share = max(1, options.batch_size // number("WORLD_SIZE", 1))
    here = replace(options, batch_size=share, parallel="ddp",
                   precision=resolve_precision(options.precision, choose_device(options.device)))
    try:
        plan = plan_step({**training, "options": vars(here)}, find_source(training, (), 0))
    except ValueError:  # of what only other parts of the run may refuse
        return None
    return Planned(plan.flops, {name: getattr(plan, name) for name in ("weights", "averages", "optimizer",
                                                                     "activations", "temporary", "peak")})
