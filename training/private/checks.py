"""What does not go with privacy: refused before a run has a folder, with the reason."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edm3d.training.phases import Task
from edm3d.training.trainable import KEY, asked
from edm3d.utils.schema import Options

ON = "training.privacy.target_epsilon is set"
TASKS = ("autoencoder", "diffusion")
CODES_STAY = f"{KEY}=re:coder|_code"  # encoder, decoder, and what may lie between them and the codes


def check_config(training: dict[str, Any], options: Options) -> None:
    """ValueError for keys of a training half that break the proof, or through which no gradients per sample are known.
    """
    loss, task = training["loss"], training["task"]
    wrong = {
        f"training.task={task}": task not in TASKS and
        "only first stages and diffusion are trained privately (their snapshots alone can leave out what is measured)",
        "training.discriminator": bool(training["discriminator"]) and
        "a discriminator learns from the data without noise, and hands on to the network what it has seen; choose "
        "discriminator=none",
        "training.loss.perceptual_weight": bool(loss.get("perceptual_weight")) and
        "of the network of perceptual features nothing says that it has not seen the data; set it to 0",
        "training.loss.strata": loss.get("strata") is not None and
        "the noise levels of a batch are drawn together, so that one image changes what others see; set it to null",
        "training.options.checkpointing=true": options.checkpointing and
        "gradients per sample are then missing, without a word; set it to false, and batch_gpu lower",
        "training.options.compile=true": options.compile and
        "gradients per sample are taken layer by layer, which a compiled network does not show; set it to false",
        "training.options.precision=fp16": options.precision == "fp16" and
        "a step that overflows would have to be skipped, which tells of the data; choose bf16 or fp32",
        "training.options.tune=true": options.tune and
        "the steps that it measures are not private ones; set it to false",
        "training.options.profile=true": options.profile and
        "a profile shows how many units a step has drawn, which is part of what is hidden; profile a run without it",
        f"training.options.parallel={options.parallel}": options.parallel != "ddp" and
        "gradients per sample need whole weights on every rank; choose ddp",
    }
    for key, why in wrong.items():
        if why:
            raise ValueError(f"{key}: {ON}, and {why}")


def check_task(task: Task, trainable: object = None) -> None:
    """ValueError for networks in which images see each other, or that learn by other means than gradients.

    trainable: the part that is trained (training.options.trainable); with one, codebooks stay.
    """
    if len(task.phases) > 1:
        raise ValueError(f"training.privacy: {ON}, and the task has {len(task.phases)} networks that learn; only one "
                         "can")
    phase = task.phases[0]
    if phase.absorb is not None and not asked(trainable):
        raise ValueError(f"training.network: {ON}, and its codebook moves by what it sees, without noise; choose "
                         f"autoencoder=kl, or keep the codebook of a public first stage: training.options.init_from= "
                         f"and a part that is trained, '{CODES_STAY}' for all but the codes")
    for name, module in phase.module.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(f"training.network: {ON}, and {name} is a {type(module).__name__}: images see each other "
                             "through it; choose GroupNorm")
    if not any(p.requires_grad for p in phase.module.parameters()):
        raise ValueError("training.network: no weight is to be trained")


def told_bare(module: torch.nn.Module) -> str:
    """Where weights stand outside of layers, as an error may name it."""
    return ", ".join(name or "the network itself" for name, part in module.named_modules()
                     if any(True for _ in part.children()) and any(True for _ in part.parameters(recurse=False)))
