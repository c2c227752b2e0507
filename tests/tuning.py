"""A task whose steps take what a table says, by a clock of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from edm3d.inference.batch import Batch
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.tune import Switches
from tests.toy import BLANK


class Clock:
    """Tells the time that steps say they took; out: choices for which memory runs out."""

    def __init__(self, seconds: Callable[[Switches], float], out: frozenset[Switches] = frozenset()):
        self.seconds, self.out, self.now, self.tried = seconds, out, 0.0, list[Switches]()

    def __call__(self) -> float:
        return self.now

    def assemble(self) -> Task:
        """A fresh task of one convolution over [1,4] as an image of 2 x 2, twice."""
        net = torch.nn.Conv2d(2, 2, 2)

        def loss(module: torch.nn.Module, batch: Batch, generators: object) -> LossOutput:
            choice = Switches(module.weight.stride(1) == 1, hasattr(module, "compiled"), len(batch.images))
            self.tried.append(choice)
            if choice in self.out:
                raise RuntimeError("CUDA out of memory")
            self.now += self.seconds(choice) * choice.batch_gpu / 12  # of a step of 12 images
            images = batch.images.reshape(-1, 1, 2, 2).expand(-1, 2, 2, 2)
            return LossOutput(module(images).square().sum(), len(images), {})

        return Task([Phase("toy", net, torch.optim.Adam(net.parameters(), lr=1e-2), loss)], net, BLANK)


@contextmanager
def compiling_marked() -> Iterator[None]:
    """torch.compile leaves a mark and nothing else."""
    def compile_(module: torch.nn.Module, mode: str | None) -> torch.nn.Module:
        module.compiled = True
        return module

    with patch("torch.compile", compile_):
        yield
