"""Networks out of files: config and weights are held against each other before memory is taken for them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.nn.modules import module as hooks

from edm3d.utils import checkpoint
from edm3d.utils.config import build_from_file
from edm3d.utils.files import first_line
from edm3d.utils.plain import shown
from edm3d.utils.torch_files import MOST_LEVELS

Weights = dict[str, torch.Tensor]
Trial = Callable[[torch.nn.Module], None]

LARGEST = 2 ** 20  # whole number in the config of a network out of a file, as of channels, classes or noise levels
MOST_VALUES = 10_000  # in such a config
SLACK, SPARE = 4, 2 ** 20  # what building may register for a time: so many times what the file holds, and that more


def build_network(node: dict, weights: Weights, source: str, trust: bool = False, *, key: str = "ema",
                  trial: Trial | None = None) -> torch.nn.Module:
    """A network from its config and weights, both out of a file; eval mode, no gradients.

    It is verified first, see there.
    """
    verify_network(node, weights, source, trust, key=key, trial=trial)
    with bounded(weights, source), errors_of(source, "cannot be built as its file says"):
        net = build_from_file(node, source, trust)
    check_fit(net, weights, source, key)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def verify_network(node: dict, weights: Weights, source: str, trust: bool = False, *, key: str = "ema",
                   trial: Trial | None = None) -> None:
    """Build a network without memory (meta device), and hold the weights against it; key: what they are in the file.

    `trial` may then run it on shapes alone. ValueError naming the file where any of it fails.
    """
    check_size(node, f"{source}: network")
    if not isinstance(node.get("_target_"), str):
        raise ValueError(f"{source}: network._target_ is missing, or no name of a class")
    skeleton = build_skeleton(node, weights, source, trust)
    if skeleton is not None:
        check_fit(skeleton, weights, source, key)
        if trial:
            try_out(skeleton, trial, source, trust)


def build_skeleton(node: dict, weights: Weights, source: str, trust: bool) -> torch.nn.Module | None:
    """The network without memory; None for one that is trusted and looks at numbers when it is built."""
    with bounded(weights, source), errors_of(source, "cannot be built as its file says"):
        try:
            with torch.device("meta"):
                return build_from_file(node, source, trust)
        except RuntimeError:
            if trust:
                return None
            raise


def try_out(skeleton: torch.nn.Module, trial: Trial, source: str, trust: bool) -> None:
    """Run a network on shapes alone; one that is trusted may look at numbers, which are not there."""
    with torch.no_grad(), torch.device("meta"), errors_of(source, "does not run as its file says"):
        try:
            trial(skeleton.eval().to("meta"))
        except RuntimeError:
            if not trust:
                raise


@contextmanager
def errors_of(source: str, what: str) -> Iterator[None]:
    """Make of whatever a network's class raises on odd arguments a ValueError that names the file."""
    try:
        yield
    except ValueError as e:
        if source in str(e):
            raise
        raise ValueError(f"{source}: {e}") from e
    except Exception as e:
        raise ValueError(f"{source}: its network {what} ({type(e).__name__}: {first_line(e):.200})") from e


def check_size(value: object, where: str) -> None:
    """ValueError for a config that is larger, or asks for more, than that of any network."""
    waiting, count = [(where, value, 0)], 0
    while waiting:
        at, inner, level = waiting.pop()
        count += 1
        if count > MOST_VALUES or level > MOST_LEVELS:
            raise ValueError(f"{where}: a config of more values than any network has")
        if isinstance(inner, int) and abs(inner) > LARGEST:
            raise ValueError(f"{at}={shown(inner)}: wanted no more than {LARGEST}")
        pairs = inner.items() if isinstance(inner, Mapping) else enumerate(inner) if isinstance(inner, (list, tuple)) \
            else ()
        waiting += [(f"{at}.{name}", each, level + 1) for name, each in pairs]


@contextmanager
def bounded(weights: Weights, source: str) -> Iterator[None]:
    """End the building of a network, by ValueError, as soon as it is much larger than the weights of its file."""
    modules = SLACK * len(weights) + 10_000
    tensors, values = SLACK * len(weights) + 1000, SLACK * sum(w.numel() for w in weights.values()) + SPARE

    def count(_: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal tensors, values
        tensors, values = tensors - 1, values - (0 if tensor is None else tensor.numel())
        if tensors < 0 or values < 0:
            raise ValueError(f"{source}: weights do not fit the network it names, which has many more than the file")

    def count_module(*_: object) -> None:
        nonlocal modules
        modules -= 1
        if modules < 0:
            raise ValueError(f"{source}: weights do not fit the network it names, which has many more layers")

    handles = [hooks.register_module_parameter_registration_hook(count),
               hooks.register_module_buffer_registration_hook(count),
               hooks.register_module_module_registration_hook(count_module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_fit(net: torch.nn.Module, weights: Weights, source: str, key: str) -> None:
    """ValueError unless weights out of a file are just those of a network."""
    try:
        checkpoint.check_weights(weights, net.state_dict(), source, key)
    except ValueError as e:
        raise ValueError(f"{source}: weights do not fit the network it names: {str(e).removeprefix(f'{source}: ')}"
                         ) from e


def network_hash(network: dict, weights: Weights) -> str:
    """Hash of a network: its config and weights."""
    return checkpoint.checksum({"network": network, "weights": weights})
