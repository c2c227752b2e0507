"""Small experiments and the data that they are planned for."""

from edm3d.formats.facts import Facts
from edm3d.training.tasks.base import PlannedData
from edm3d.utils.compose import compose

VAE = ["training.network.channels=[4,8]", "training.options.precision=fp32", "training.options.num_threads=1",
       "training.options.device=cpu"]
WIDE = "training.network.channels=[16,16]"  # oneDNN pads fewer channels inside its kernels
EDM = ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1,2]",
       "training.network.model.attention_levels=[1]", "training.network.model.channels_per_head=8",
       "training.network.model.dropout=0.2", "training.options.precision=fp32", "training.options.device=cpu",
       "training.options.num_threads=1", "training.options.batch_size=4"]


def planned(shape: tuple[int, ...], labels: str = "", first_stage: dict | None = None) -> PlannedData:
    """Data of items of a shape, a label class for each letter."""
    return PlannedData(shape, Facts("", "", label_classes=tuple(labels)), first_stage or {})


LABELLED = planned((1, 16, 16, 16), "abc")
VOXELS = planned((1, 8, 8, 8))


def vae(*overrides: str) -> dict:
    """A small first stage."""
    return compose("echo_vae", [*VAE, *overrides])


def edm(*overrides: str) -> dict:
    """A small voxel-space network with attention and dropout."""
    return compose("voxels_edm", [*EDM, *overrides])
