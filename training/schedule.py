"""Learning rate as a pure function of the images seen."""

from math import cos, pi

SCHEDULES = ("constant", "cosine")


def lr_factor(nimg: int, total_kimg: float, rampup_kimg: float = 0, schedule: str = "constant") -> float:
    """What the base learning rate is multiplied by: linear ramp-up from 0, then constant or a cosine to 0."""
    if schedule not in SCHEDULES:
        raise ValueError(f"training.options.lr_schedule={schedule!r}: wanted one of {', '.join(SCHEDULES)}")
    factor = min(nimg / max(rampup_kimg * 1000, 1e-8), 1)  # the step at nimg 0 has rate 0, as in EDM
    if schedule == "cosine":
        factor *= (1 + cos(pi * min(nimg / (total_kimg * 1000), 1))) / 2
    return factor
