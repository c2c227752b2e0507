"""The tasks, one file each: training.task chooses one by its name here."""

from edm3d.training.tasks.autoencoder import AutoencoderTask
from edm3d.training.tasks.base import TaskType
from edm3d.training.tasks.classification import ClassificationTask
from edm3d.training.tasks.diffusion import DiffusionTask
from edm3d.training.tasks.segmentation import SegmentationTask

TASKS: dict[str, TaskType] = {
    "autoencoder": AutoencoderTask(),
    "diffusion": DiffusionTask(),
    "segmentation": SegmentationTask(),
    "classification": ClassificationTask(),
}
