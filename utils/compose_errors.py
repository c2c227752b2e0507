"""What is said of an experiment that cannot be composed: one line with the config path and the nearest right key."""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from edm3d.utils import schema
from edm3d.utils.config import GIVEN, find_target, near, no_such, targets
from edm3d.utils.overrides import split, takes_text, to_type

COMPOSING = re.compile(r"In '.*': \w+ raised while composing config:$")  # Hydra's heading above OmegaConf's error
HEADER = re.compile(r"#\s*@package\s+(\S+)")
Elsewhere = Callable[[str], list[str]]  # a key that is not there -> full paths that may have been meant

# ---- names that the field uses ----

EULER = "sampler=ddim sampling.sampler.grid=polynomial (its steps with eta 0 are Euler's)"
MULTISTEP = "sampler=multistep sampling.sampler.order=2 (its order 2 is of the family of DPM-Solver++(2M))"
TABLE_1 = ("sampler=ablation sampling.sampler.discretization={} sampling.sampler.schedule={} "
           "sampling.sampler.scaling=none")
OPTIMIZER = "training.optimizer._target_=torch.optim.{}"
# group -> a name, in small letters without signs -> what that is here
KNOWN_AS = {
    "sampler": {
        **dict.fromkeys(("heun", "edm", "ode", "pfode", "deterministic"), "sampler=edm_ode (Heun's method)"),
        **dict.fromkeys(("sde", "churn", "stochastic"), "sampler=edm_sde (Heun's method with churn)"),
        **dict.fromkeys(("euler", "eulerode"), EULER),
        "midpoint": "sampler=ablation sampling.sampler.solver=heun sampling.sampler.alpha=0.5",
        **dict.fromkeys(("ancestral", "eulera", "eulerancestral"), "sampler=ddpm (eta 1)"),
        **dict.fromkeys(("dpm", "dpmpp", "dpmsolver", "dpmsolverpp", "dpm2m", "dpmpp2m", "dpmsolverpp2m"), MULTISTEP),
        "deis": "sampler=multistep (DEIS in log sigma)",
        **dict.fromkeys(("pndm", "plms", "fpndm"), "sampler=ipndm (PNDM with no Runge-Kutta steps to start)"),
        "vp": "sampler=ablation (its defaults are VP's)",
        "ve": TABLE_1.format("ve", "ve"), "iddpm": TABLE_1.format("iddpm", "linear"),
    },
    "network": {**dict.fromkeys(("unet", "edm", "diffusionunet"), "network=adm (the UNet of ADM and EDM)"),
                "diffusionmodelunet": "network=monai"},
    "autoencoder": {**dict.fromkeys(("vae", "aekl", "autoencoderkl"), "autoencoder=kl"),
                    **dict.fromkeys(("vqvae", "vqgan"), "autoencoder=vq")},
    "optimizer": {name.lower(): OPTIMIZER.format(name) for name in ("SGD", "RAdam", "NAdam", "RMSprop")},
}  # fmt: skip


def known_as(group: str, name: str) -> str:
    """What a choice of the field's that a group lacks is here, as somebody would type it, '' where it is nothing."""
    plain = re.sub(r"[\W_]", "", name.lower().replace("++", "pp"))
    return KNOWN_AS.get(group, {}).get(plain, "")


# ---- groups ----


class Group(NamedTuple):
    """A group of configs/: the config path that its files fill (`# @package ...`), and their names.

    without: files that do not say what they fill.
    """

    package: str
    choices: list[str]
    without: list[Path]


def config_groups(folders: Sequence[Path]) -> dict[str, Group]:
    """The groups, which are the folders of the folders of configurations, by name; those that say what they fill."""
    groups: dict[str, Group] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*.yaml")):
        group, package = groups.setdefault(path.parent.name, Group("", [], [])), package_of(path)
        group.without.extend([] if package else [path])
        choices = sorted({*group.choices, path.stem})
        groups[path.parent.name] = group._replace(package=group.package or package, choices=choices)
    return {name: group for name, group in groups.items() if group.package}


def package_of(path: Path) -> str:
    """What a YAML says at its top that it fills, '' where it says nothing."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), lines)
    return next((found[1] for line in comments if (found := HEADER.match(line))), "")


# ---- errors ----


def yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, and where, as one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{getattr(error, 'name', 'YAML')}: {' '.join(str(error).split())}"
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def composition_error(error: Exception, place: str, given: Sequence[str], groups: Mapping[str, Group],
                      elsewhere: Elsewhere) -> str:
    """Hydra's or OmegaConf's error as one line with the config path and the nearest right key or group.

    place: the override that is at fault, or the experiment; given: all overrides.
    """
    override = re.match(r"Could not override '(.*)'", str(error))
    while not isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not COMPOSING.match(line)]
    full = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), None)
    if full is None:
        return missing_file(lines, place, groups)
    literal = next((f"; for the text itself write {to_type(key, value)}" for _, key, value in map(split, given)
                    if key == full and "${" in value and takes_text(key)), "")
    if isinstance(error, InterpolationKeyError):
        said = missing_source(full, lines[0]) + literal
        return said if "." in full else f"{place}: {said}"  # the defaults of a file, which is then not named
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        return unknown_key(full, override[1] if override else full, error.parent_node, groups, elsewhere)
    if full in groups and groups[full].without:
        return (f"{groups[full].without[0]}: does not say what it fills; wanted its first line to be "
                f"'# @package {groups[full].package}'")
    if (found := re.match(r"Key '(.*)' not in '(\w+)'$", lines[0])) and is_dataclass(getattr(schema, found[2], None)):
        known = [f.name for f in fields(getattr(schema, found[2]))]  # of a YAML file
        return f"{full}: {no_such('key', found[1], known)}"
    group = full.rpartition(".")[2]
    hint = f"; to choose another {group}, write {group}=NAME" if group in groups else ""
    return f"{full or place}: {lines[0]}{hint}{literal}"


def missing_file(lines: Sequence[str], place: str, groups: Mapping[str, Group]) -> str:
    """What is said of a choice for which there is no file, and of overrides that are none; lines: Hydra's."""
    told = itertools.takewhile(lambda line: not line.startswith(("Config search path", "See http")), lines)
    text = " ".join(told)
    if (found := re.search(r"Could not find '(\w+)/(.*?)'", text)) and found[1] in groups:
        group, choice = found.groups()
        meant = f"; here that is {known}" if (known := known_as(group, choice)) else ""
        of = "" if place.lstrip("+").startswith(f"{group}=") else f"{place}: "
        return f"{of}{group}={choice}: no such {group}{meant}; there are {', '.join(groups[group].choices)}"
    return f"{place}: {text}"


def unknown_key(full: str, typed: str, parent: Any, groups: Mapping[str, Group], elsewhere: Elsewhere) -> str:
    """What is said of a key that is not in the config.

    full: the path up to the first part that is not there; typed: the whole; parent: the node that lacks it.
    """
    chosen_first = nothing_chosen(full.rpartition(".")[0], parent, groups)
    if chosen_first:
        return f"{full}: {chosen_first}"
    key, known = full.rpartition(".")[2], keys_around(full, parent)
    if key in known:
        return f"{full}: not in the YAML; write +{full}=... to add it"
    if full in groups:
        package = groups[full].package
        meant = [path for path in elsewhere(typed) if path.startswith(f"{package}.")] if full != typed else []
        return (f"{full} is a group: to choose another {full} write {full}=NAME; its keys are under {package}, "
                f"as in {(meant or [f'{package}.KEY'])[0]}=...")
    known = known if "." in full else [*known, *groups]
    return no_such_key(full, known, elsewhere, typed)


def no_such_key(full: str, known: Iterable[str], elsewhere: Elsewhere, typed: str = "") -> str:
    """'no such key' with the full path of a key of that name elsewhere, or with the nearest key here.

    The nearest first where the wrong part is not the last of what was typed, and no key elsewhere ends in all of it.
    """
    key, typed = full.rpartition(".")[2], typed or full
    paths = elsewhere(typed) if key else []
    if paths and (typed == full or not near(key, known) or all(path.endswith(f".{typed}") for path in paths)):
        return f"{typed}: no such key here; write {' or '.join(paths)}"
    return f"{full or repr(full)}: {no_such('key', key, known)}"


def paths_of(typed: str, tree: dict) -> list[str]:
    """Full paths of an experiment that end as a typed key does, in as many parts as possible.

    Those of the half that it names, if any; with a plus where the YAML leaves a key to its default.
    """
    paths = [path for half in ("training", "sampling") for path in all_paths(tree[half], half)]
    parts = typed.split(".")
    for those in ([path for path in paths if path.lstrip("+").startswith(f"{parts[0]}.")], paths):
        for first in range(len(parts)):
            end = "." + ".".join(parts[first:])
            if found := [path for path in those if path.endswith(end) and path.lstrip("+") != typed]:
                return found
    return []


def all_paths(tree: object, path: str) -> Iterator[str]:
    """Paths of all keys of a tree, and with a plus those of parameters that it leaves to their defaults."""
    yield from key_paths(tree, path)
    for where, node in targets(tree, path):
        try:
            parameters = inspect.signature(find_target(node["_target_"], where)).parameters
        except ValueError:
            continue
        taken = (*node, *GIVEN.get(where, ()))
        yield from (f"+{where}.{name}" for name in parameters if name not in taken)


def key_paths(tree: object, path: str) -> Iterator[str]:
    """Paths of all keys of a tree of dicts."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{path}.{key}"
            yield from key_paths(value, f"{path}.{key}")


def missing_source(full: str, message: str) -> str:
    """What is said of a key that takes the value of one which is not there; message: OmegaConf's."""
    source = re.search(r"'(.*)'", message)[1]
    hint = ""
    if full.startswith("training.loss.") and source.startswith("training.network."):
        hint = "; choose precond and loss that go together, as in precond=ddpm loss=ddpm"
    return f"{full} takes {source}, which is not there{hint}"


def nothing_chosen(path: str, node: Any, groups: Mapping[str, Group]) -> str:
    """What is said of keys below a config path whose group has chosen nothing, '' where something is there."""
    group = next((name for name, group in groups.items() if group.package == path), None)
    if group is None or node:
        return ""
    return f"nothing is chosen here; choose {group}=NAME first ({', '.join(groups[group].choices)})"


def keys_around(full: str, parent: Any) -> list[str]:
    """Keys that may stand beside a config path: of the schema, or of its target and the YAML."""
    schema = OmegaConf.get_type(parent)
    if is_dataclass(schema):
        return [f.name for f in fields(schema)]
    known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    if "_target_" in known:
        path = full.rpartition(".")[0]
        parameters = inspect.signature(find_target(parent["_target_"], path)).parameters
        known += [name for name in parameters if name not in (*known, *GIVEN.get(path, ()))]
    return known
