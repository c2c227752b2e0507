"""Whether a network can do what a downstream task asks of it: found out without memory, before anything is trained."""

import inspect
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from edm3d.networks.layers import check_divides
from edm3d.utils.config import build, find_target
from edm3d.utils.files import first_line

KEY = "training.network"
FACTORS = sorted(2 ** a * 3 ** b for a, b in product(range(8), range(3)) if 2 ** a * 3 ** b <= 128)
LARGE = 5 * 128 * 9  # a size that all of them divide


def check_norms(net: nn.Module, node: dict) -> None:
    """ValueError naming a layer that takes statistics over images, of a batch or of those before: ranks would differ.

    node: of the network, for the key to change.
    """
    for name, module in net.named_modules():
        running = isinstance(module, _InstanceNorm) and module.track_running_stats
        if not running and not isinstance(module, _BatchNorm):
            continue
        kind = f"{type(module).__name__}{' with track_running_stats' if running else ''}"
        raise ValueError(f"{KEY}: {name or 'it'} is a {kind}, whose statistics hang on which images are together on a "
                         f"rank; {instead(node)}")


def instead(node: dict) -> str:
    """What to write in place of a batch norm."""
    known = inspect.signature(find_target(node["_target_"], KEY)).parameters
    for key, wanted in (("norm_name", "[instance,{affine:true}]"), ("norm", "[group,{num_groups:8}]")):
        if key in known:
            return f"write {KEY}.{key}={wanted}"
    return "choose a network with instance or group norm"


def check_output(node: dict, shape: Sequence[int], names: Sequence[str], of_voxels: bool) -> None:
    """ValueError unless a network of a node gives logits of these classes for images [C,*S], or for their voxels.

    SizeError for a size that it cannot divide. What cannot be run on the meta device is left to the first step.
    """
    wanted = (2, len(names), *(shape[1:] if of_voxels else ()))
    for training in (True, False):
        try:
            out = on_meta(node, shape, training)
        except NotImplementedError:
            return
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as e:
            if "meta tensor" in str(e):
                return
            raise_for_size(node, shape, e)
        heads = isinstance(out, torch.Tensor) and of_voxels and training and out.ndim == len(wanted) + 1
        if heads and (*out.shape[:1], *out.shape[2:]) == wanted:  # deep supervision
            continue
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
            gives = list(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
            raise ValueError(f"{KEY}: {short(node)} gives {gives} of two images of {list(shape)}, wanted "
                             f"{list(wanted)}: a value for each of {len(names)} classes ({', '.join(names)})"
                             f"{' and voxel' if of_voxels else ''}; {advice(node, len(names), of_voxels)}")


def on_meta(node: dict, shape: Sequence[int], training: bool) -> Any:
    """What a network of a node gives of two images [C,*S], without memory."""
    with unset_fake_temporarily(), torch.device("meta"), torch.no_grad():
        return build(node, path=KEY).train(training)(torch.zeros(2, *shape))


def raise_for_size(node: dict, shape: Sequence[int], error: Exception) -> None:
    """Say what is wrong with a network that fails on images [C,*S]: SizeError where other sizes work, ValueError else.
    """
    channels, *size = shape
    for key, value in (("in_channels", channels), ("spatial_dims", len(size))):
        if node.get(key) not in (None, value):
            raise ValueError(f"{KEY}.{key}={node[key]}: images are {list(shape)}; leave it out, or write {value}")
    factor = divisor(node, channels, len(size))
    if factor is not None:
        check_divides(size, factor, f"{KEY}: {short(node)}")
    smaller = "" if factor is None else (f"; its smallest level must be larger than one voxel: choose larger images or "
                                         f"fewer levels (sizes divide by {list(factor)})")
    raise ValueError(f"{KEY}: {short(node)} fails on images of {list(shape)}: {first_line(error)}{smaller}") from error


def divisor(node: dict, channels: int, dims: int) -> tuple[int, ...] | None:
    """What the sizes of images must divide by, per axis, found by trying; None where the network fails on all."""
    found = []
    for axis in range(dims):
        def works(factor: int, axis: int = axis) -> bool:
            return runs(node, (channels, *(5 * factor if i == axis else LARGE for i in range(dims))))
        found.append(next(filter(works, FACTORS), None))
    return None if None in found else tuple(found)


def runs(node: dict, shape: Sequence[int]) -> bool:
    """Whether a network of a node runs on images [C,*S] in training."""
    try:
        on_meta(node, shape, True)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


def short(node: dict) -> str:
    """The name of a network's class."""
    return str(node["_target_"]).rpartition(".")[2]


def advice(node: dict, classes: int, of_voxels: bool) -> str:
    """What a user would change about an output of another shape."""
    known: dict[str, Callable] = dict(inspect.signature(find_target(node["_target_"], KEY)).parameters)
    for key in ("out_channels", "num_classes"):
        if key in known and node.get(key) not in (None, classes):
            return f"leave {KEY}.{key} out, or write {classes}"
    return f"choose another network, as network={'dynunet' if of_voxels else 'densenet'}"
