"""The check at the start: gradients per sample of two images, beside those of each image by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from edm3d.inference.batch import Batch, Sample, collate
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.buffers import Buffers
from edm3d.training.private.checks import told_bare
from edm3d.training.private.step import PrivateStep

TOLERANCE = 1e-3  # of the gradient of a parameter, in float32
SLIGHT = 1e-6  # of the whole gradient: smaller ones are rounding
STIR = 0.05  # of weights, so that layers which begin as zero hide nothing
SEED = 0
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


def check_gradients(step: PrivateStep, dataset: Sequence[Sample]) -> None:
    """ValueError, naming the layer, unless gradients per sample of two items are those of single passes.

    On the run's own network, loss and conditions, in float32, with weights stirred and dropout off; the weights are as
    before afterwards. Nothing of what it sees is told. ValueError also for a network that keeps something of the items
    in its buffers, which no noise hides.
    """
    module, items = step.task.phases[0].module, [dataset[i % len(dataset)] for i in range(2)]
    buffers = Buffers([module])
    buffers.remember()
    with stirred(module), torch.random.fork_rng(devices=[]):
        together = per_sample(step, collate(items))
        if any(moved := buffers.moved()):
            buffers.put_back(torch.ones((), dtype=torch.bool, device=step.device))
            name = next(name for (name, _), has in zip(module.named_buffers(), moved, strict=True) if has)
            raise ValueError(f"training.network: {name} keeps what the network sees of images, without noise; choose a "
                             "layer that keeps nothing, as GroupNorm in place of running statistics")
        for i, item in enumerate(items):
            compare(module, [g[i] for g in together], alone(step, collate([item]), i))


def per_sample(step: PrivateStep, batch: Batch) -> list[torch.Tensor]:
    """Gradients [N, ...] of each trained parameter by the hooks."""
    module = step.task.phases[0].module
    try:
        step.backward(batch, ImageGenerators(range(len(batch.images)), seed=SEED, device=step.device), "fp32")
        return [taken(name, p, len(batch.images)) for name, p in trained(module)]
    except (RuntimeError, TypeError, IndexError, AttributeError) as e:  # functorch raises what it pleases
        bare = told_bare(module)
        where = f" (weights stand outside of layers in {bare})" if bare else ""
        raise ValueError(f"training.network: no gradients per sample{where}: {type(e).__name__}: {e!s:.300}; a weight "
                         "must be in a layer that is called once per image with one tensor") from e
    finally:
        clear(module)


def taken(name: str, p: nn.Parameter, count: int) -> torch.Tensor:
    """What the hooks left at a parameter: [N, ...], zeros where nothing."""
    found = p.grad_sample
    found = sum(found) if isinstance(found, list) else found
    if found is None:
        return torch.zeros(count, *p.shape, device=p.device)
    if len(found) != count:
        raise ValueError(f"training.network: {name} gives gradients of {len(found)} samples for {count} images, which "
                         "privacy cannot follow")
    return found


def alone(step: PrivateStep, batch: Batch, key: int) -> list[torch.Tensor]:
    """Gradients [...] of each trained parameter on one image, by plain backpropagation."""
    module = step.task.phases[0].module
    step.hooks.disable_hooks()
    try:
        step.backward(batch, ImageGenerators([key], seed=SEED, device=step.device), "fp32")
        return [torch.zeros_like(p) if p.grad is None else p.grad for _, p in trained(module)]
    finally:
        step.hooks.enable_hooks()
        clear(module)


def compare(module: nn.Module, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    """ValueError naming the first parameter whose gradients differ."""
    whole = float(torch.stack([g.norm() for g in wanted]).norm())
    for (name, _), one, other in zip(trained(module), found, wanted, strict=True):
        apart = float((one - other).norm())
        if not apart <= TOLERANCE * float(other.norm()) + SLIGHT * whole:
            raise ValueError(f"training.network: the gradient of {name} per sample is not that of the sample by itself "
                             f"({apart / max(float(other.norm()), 1e-30):.2g} of it apart), so that clipping would "
                             "bound nothing: its layer is used outside of its forward, keeps something between images, "
                             "or lets images see each other")


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that learn, by name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def clear(module: nn.Module) -> None:
    """Forget gradients of all kinds, and what hooks have kept for them."""
    for p in module.parameters():
        p.grad, p.grad_sample, p._forward_counter = None, None, 0
    for part in module.modules():
        if hasattr(part, "activations"):
            part.activations = []


@contextmanager
def stirred(module: nn.Module) -> Iterator[None]:
    """Weights moved a little while the block lasts, and dropout off, as a layer or as a function."""
    functions = {name: getattr(nn.functional, name) for name in DROPOUTS}
    before = [p.detach().clone() for p in module.parameters()]
    random = torch.Generator().manual_seed(SEED)
    try:
        with torch.no_grad():
            for p in module.parameters():
                p += STIR * torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device)
        for name in functions:
            setattr(nn.functional, name, lambda x, *given, **named: x)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(module.parameters(), before, strict=True):
                p.copy_(old)
        for name, function in functions.items():
            setattr(nn.functional, name, function)
