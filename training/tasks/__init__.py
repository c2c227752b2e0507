"""The tasks, one file each: training.task chooses one by its name here."""

from training.tasks.autoencoder import AutoencoderTask
from training.tasks.base import TaskType
from training.tasks.diffusion import DiffusionTask

TASKS: dict[str, TaskType] = {
    "autoencoder": AutoencoderTask(),
    "diffusion": DiffusionTask(),
}
