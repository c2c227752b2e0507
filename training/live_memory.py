"""How much memory tensors would take that nobody fills: storages of fake tensors, counted as they come and go."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

FEW = 8  # numbers in a row that are computed, and not imagined
ANY_NUMBER = 1.0  # what a value is said to be that nobody has computed


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations give while it is on: `now`, and the most there were, `peak`.

    Storages count once, however many views there are, and until the last of them is gone, those that autograd keeps
    for the backward pass included. What kernels take for themselves and give back is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.living: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.arange.start and max(map(abs, args)) <= FEW:  # axes that losses go by, as a list
            with unset_fake_temporarily():
                return func(*args, **{**(kwargs or {}), "device": "cpu"})
        if func is torch.ops.aten._local_scalar_dense.default and not isinstance(args[0], FakeTensor):
            with unset_fake_temporarily():
                return func(*args)
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException:  # float(loss) and its like
            return ANY_NUMBER
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.count(value.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        """Add a storage that is not counted yet, and take it off when it goes."""
        key, size = id(storage), storage.nbytes()
        if key in self.living:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self.living[key]

        self.living[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now


@contextmanager
def fake_tensors() -> Iterator[None]:
    """A context in which tensors have shapes and types but no values; real ones that come in count as such."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copying a network does
        yield


def imagine(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with fake weights, to be called among fake tensors; what its constructor computes is computed."""
    with unset_fake_temporarily(), torch.device("meta"):
        net = make()
    fakes: dict[int, torch.Tensor] = {}  # a weight may have several places
    for module in net.modules():
        lists = [value for value in vars(module).values() if isinstance(value, list)]  # as DynUNet keeps its heads
        for place in (module._parameters, module._buffers, vars(module), *lists):
            for name, tensor in enumerate(place) if isinstance(place, list) else place.items():
                if isinstance(tensor, torch.Tensor):
                    fake = fakes.setdefault(id(tensor), torch.empty(tensor.shape, dtype=tensor.dtype))
                    is_weight = isinstance(tensor, nn.Parameter) and not isinstance(fake, nn.Parameter)
                    fakes[id(tensor)] = place[name] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
    return net


def tensor_bytes(tensors: Any) -> int:
    """Bytes of the different storages in a tree of tensors."""
    storages = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tree_iter(tensors)
                if isinstance(t, torch.Tensor)}
    return sum(storages.values())
