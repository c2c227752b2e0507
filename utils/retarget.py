"""Another target than a YAML was written for: which keys belonged to the old one, and are left out for the new one."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from edm3d.utils.config import find_target, full_name, targets


class Layer(NamedTuple):
    """What one YAML sets: its name (echo_edm, or network/adm for that of a group), and a tree from the root on."""

    name: str
    tree: dict


def leave_out(raw: DictConfig, layers: Sequence[Layer], typed: set[str],
              targets_alone: Callable[[str], dict[str, str]]) -> list[str]:
    """Take the keys of old targets out of a composed config that the new ones do not take; a note for each target.

    typed: paths that the command line gives, which stay, and are refused. So are those of a YAML that was written for
    the new target: by the `_target_` beside them, or, in an experiment, by what it composes to by itself
    (`targets_alone`). Where nothing takes the place of a target, as by discriminator=none, all its keys go. Where a
    target of ours is chosen by its group to be trained, all keys stay: most families share theirs, and what an
    experiment says of a network's size is not to be lost.
    """
    notes: list[str] = []
    for half in ("training", "sampling"):
        tree = OmegaConf.to_container(raw[half], resolve=False)
        notes += leave_out_below(half, tree, raw, layers, typed, targets_alone)
    return notes


def leave_out_below(path: str, node: dict, raw: DictConfig, layers: Sequence[Layer], typed: set[str],
                    targets_alone: Callable[[str], dict[str, str]]) -> Iterator[str]:
    """The same at a path, where `node` is, and below it."""
    old, chosen = {}, node.get("_target_")
    if chosen is None or path.startswith("sampling.") or not is_choice_of_ours(path, chosen, layers, typed):
        written_for = writers(path, layers, targets_alone)
        old = {key: target for key, target in written_for.items()
               if key in node and target not in (None, chosen) and not is_typed(f"{path}.{key}", typed)}
        old = not_taken(old, chosen, path) if old and chosen else old
    for key in old:
        with open_dict(parent := OmegaConf.select(raw, path)):
            del parent[key]
    for target in dict.fromkeys(old.values()):
        keys = ", ".join(key for key in old if old[key] == target)
        yield f"Note: {path}: {chosen or 'none, which is chosen,'} does not take {keys} of {target}; left out"
    for key, value in node.items():
        if isinstance(value, dict) and key not in old:
            yield from leave_out_below(f"{path}.{key}", value, raw, layers, typed, targets_alone)


def writers(path: str, layers: Sequence[Layer], targets_alone: Callable[[str], dict[str, str]]
            ) -> dict[str, str | None]:
    """For each key that YAMLs set at a path: the target that the last of them was written for, None where unknown."""
    found: dict[str, str | None] = {}
    for layer in layers:
        node = below(layer.tree, path)
        target = node.get("_target_")
        if node and target is None and "/" not in layer.name:
            target = targets_alone(layer.name).get(path)
        found |= dict.fromkeys((key for key in node if not str(key).startswith("_")), target)
    return found


def is_choice_of_ours(path: str, target: object, layers: Sequence[Layer], typed: set[str]) -> bool:
    """Whether the target at a path is one of ours that a group's YAML names."""
    names = [layer.name for layer in layers if "_target_" in below(layer.tree, path)]
    by_group = f"{path}._target_" not in typed and bool(names) and "/" in names[-1]
    return by_group and full_name(str(target)).startswith("edm3d.")


def not_taken(old: dict[str, str], target: str, path: str) -> dict[str, str]:
    """Those of some keys that a target has no parameter for; none where it cannot be found, which is said later."""
    try:
        parameters = inspect.signature(find_target(target, path)).parameters
    except ValueError:
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {}
    return {key: value for key, value in old.items() if key not in parameters}


def below(tree: object, path: str) -> dict:
    """The node of a tree at a path, {} where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def leaves(value: object, path: str) -> Iterator[str]:
    """Paths of all values of a tree that stands at a path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path


def is_typed(path: str, typed: set[str]) -> bool:
    """Whether the command line gives a value at a path or below it."""
    return any(each == path or each.startswith(f"{path}.") for each in typed)


def target_paths(tree: dict) -> dict[str, str]:
    """Path -> target of all nodes of an experiment."""
    return {path: node["_target_"] for half in ("training", "sampling") for path, node in targets(tree[half], half)}
