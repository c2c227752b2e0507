"""Configuration: the typed schema of an experiment, the check of every key against its target, and building from it."""

import difflib
import importlib
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, InstantiationException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from utils.files import plain_hash

# homes of the classes that a file may name
TRUSTED = ("networks.", "training.loss.", "training.batch_transforms.", "training.datasets.", "torch.nn.",
           "monai.networks.nets.", "monai.networks.blocks.", "monai.networks.layers.")
# options that leave what is computed alone, the last digits aside
NOT_IN_HASH = ("total_kimg", "kimg_per_tick", "snapshot_ticks", "state_ticks", "keep_snapshots", "keep_states",
               "resume", "dry_run", "debug", "desc", "run_root", "device", "num_threads", "num_workers", "batch_gpu",
               "precision", "compile", "channels_last", "max_bad_steps")


@dataclass
class Options:
    """Run-level options of training (training.options.*)."""

    seed: int = 0                       # of the data order and of all randomness of the images
    batch_size: int = MISSING           # images per step over all ranks
    batch_gpu: int | None = None        # images per rank and round; smaller than batch_size / ranks: accumulate
    total_kimg: float = MISSING         # length of the training in thousands of images
    kimg_per_tick: float = 1            # how often progress is printed
    snapshot_ticks: int | None = 10     # how often EMA weights are saved, null = at the end only
    state_ticks: int | None = 10        # how often everything to resume from is saved, null = at the end only
    keep_snapshots: int = 3             # older ones are deleted
    keep_states: int = 2
    resume: str | None = None           # latest | a training-state file or a run folder
    lr_rampup_kimg: float = 0
    lr_schedule: str = "constant"       # constant | cosine (to 0 at total_kimg)
    ema_halflife_kimg: float = 500
    ema_rampup_ratio: float | None = 0.05
    grad_clip: float | None = None      # global norm above which gradients are scaled down
    precision: str = "auto"             # fp32 | bf16 | auto (bf16 where the processor multiplies it)
    channels_last: bool = False
    compile: bool = False
    num_threads: int = 0                # CPU threads per rank, 0 = cores / ranks
    num_workers: int = 0                # data loader processes per rank
    max_bad_steps: int = 20             # non-finite gradients in a row that stop the run
    device: str = "auto"                # cpu | cuda | auto
    dry_run: bool = False               # check and print the config, then stop
    debug: bool = False                 # show the traceback of errors
    desc: str | None = None             # goes into the run folder's name
    run_root: str = "results"


@dataclass
class Validation:
    """Held-out measurement while training (training.validation.*)."""

    split: str = "val"
    max_items: int = 64                 # 0 = none
    every_ticks: int = 10


@dataclass
class Training:
    """The training half of an experiment."""

    task: str = MISSING                 # autoencoder | diffusion
    dataset: dict[str, Any] = field(default_factory=dict)
    batch_transform: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    validation: Validation = field(default_factory=Validation)
    options: Options = field(default_factory=Options)


@dataclass
class Sampling:
    """The sampling half of an experiment."""

    network: str | None = None          # experiment name, run folder or snapshot; null = this experiment's newest run
    seeds: str = "0-15"
    batch_size: int = 16                # per rank
    outdir: str = MISSING
    format: str = "h5"                  # h5 | npz
    nifti: bool = True                  # one NIfTI per seed and kind
    classes: list[str] | None = None    # of a class-conditional network: the seeds go through them in turn; null = all
    overwrite: bool = False             # draw anew where the outdir holds samples of another network or other settings
    decode: bool = True                 # through the first stage that the snapshot carries
    autoencoder: str | None = None      # decode by this autoencoder instead; its hash must be the snapshot's
    montage: int = 6                    # samples in samples.png, 0 = none
    real: str | None = None             # volumes.h5 shown above them; null = the file that the snapshot was trained on
    precision: str = "fp32"
    num_threads: int = 0
    device: str = "auto"
    trust: bool = False                 # build any target that the snapshot names, not only those on the allow-list
    sampler: dict[str, Any] = field(default_factory=dict)


@dataclass
class Experiment:
    """What one YAML in configs/ holds."""

    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)


def register_schema() -> None:
    """Make the schema known to Hydra as `experiment_schema`; must run before composing."""
    ConfigStore.instance().store(name="experiment_schema", node=Experiment)


def compose(config_dir: Path, name: str, overrides: Sequence[str]) -> dict:
    """The resolved plain config of an experiment with command-line overrides; ValueError for what does not fit.

    Composed without Hydra's main, so that no output folder and no job log of Hydra's own come into being.
    """
    register_schema()
    known = sorted(p.stem for p in config_dir.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"-cn={name}: no such experiment in {config_dir.name}/"
                         + (f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"))
    try:
        with hydra.initialize_config_dir(str(config_dir.resolve()), version_base=None):
            plain = to_plain(hydra.compose(name, quote_seeds(overrides)))
    except (HydraException, OmegaConfBaseException) as e:
        raise ValueError(composition_error(e, config_groups(config_dir))) from e
    check_keys(plain, Experiment)
    return plain


def quote_seeds(overrides: Sequence[str]) -> list[str]:
    """Overrides in which a list of seeds is text: Hydra takes `sampling.seeds=1,2` for a sweep, `[1,2]` for a list."""
    return [re.sub(r"""^(\+{0,2}sampling\.seeds)=([^'"]*,[^'"]*)$""", r"\1='\2'", text) for text in overrides]


def config_groups(config_dir: Path) -> dict[str, str]:
    """Groups, the folders of configs/, with the config path that their files fill (`# @package ...`)."""
    lines = {p.parent.name: p.read_text(encoding="utf-8").partition("\n")[0] for p in config_dir.glob("*/*.yaml")}
    return {group: line.removeprefix("# @package").strip() for group, line in sorted(lines.items())}


def check_keys(config: dict, schema: type, path: str = "") -> None:
    """ValueError for keys that a dataclass schema lacks: `+key=value` gets past Hydra."""
    hints = typing.get_type_hints(schema)
    for key, value in config.items():
        if key not in hints:
            raise ValueError(f"{path}{key}: {no_such_key(key, list(hints))}")
        if is_dataclass(hints[key]):
            check_keys(value, hints[key], f"{path}{key}.")


def no_such_key(key: str, known: Sequence[str]) -> str:
    """'no such key' with the nearest right one."""
    near = difflib.get_close_matches(key, known, n=1)
    return "no such key; " + (f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}")


def composition_error(error: Exception, groups: Mapping[str, str]) -> str:
    """Hydra's or OmegaConf's error as one line with the config path and the nearest right key or group.

    groups: see config_groups.
    """
    while not isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "--multirun" in str(error):
        given = re.search(r"'(.*)'", lines[0])[1]
        key = given.partition("=")[0]
        return f"{given}: several values for one key, but there are no sweeps; write {key}=[a,b] or \"{key}='a,b'\""
    full = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), None)
    if full is None:
        return " ".join(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        key, known = full.rpartition(".")[2], keys_around(full, error.parent_node)
        if key in known:
            return f"{full}: not in the YAML; write +{full}=... to add it"
        if full in groups:
            return (f"{full} is a group: to choose another {full} write {full}=NAME; its keys are under "
                    f"{groups[full]}, as in {groups[full]}.KEY=...")
        return f"{full}: {no_such_key(key, known if '.' in full else [*known, *groups])}"
    group = full.rpartition(".")[2]
    hint = f"; to choose another {group}, write {group}=NAME" if group in groups else ""
    return f"{full}: {lines[0]}{hint}"


def keys_around(full: str, parent: Any) -> list[str]:
    """Keys that may stand beside a config path: of the schema, or of its target and the YAML."""
    node: Any = Experiment
    for part in full.split(".")[:-1]:
        node = typing.get_type_hints(node).get(part) if is_dataclass(node) else None
    if is_dataclass(node):
        return [f.name for f in fields(node)]
    known = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    if "_target_" in known:
        known += inspect.signature(find_target(parent["_target_"], full.rpartition(".")[0])).parameters
    return known


def to_plain(config: DictConfig) -> dict:
    """Resolved plain dict of a config; ValueError naming the missing keys where a value is `???`."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)}: no value; set it in the experiment's YAML or on the command line")
    return OmegaConf.to_container(config, resolve=True, structured_config_mode=typing.cast(Any, "dict"))


def to_yaml(config: dict) -> str:
    """A plain config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def find_target(name: str, path: str) -> Callable:
    """The class or function behind a `_target_`; ValueError naming the config path when there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"{path}._target_={name}: cannot be imported ({e})") from e
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: not a class or function")
    return target


def targets(config: object, path: str) -> Iterator[tuple[str, dict]]:
    """All nodes with a `_target_` below a plain config, inner ones included, with their paths."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from targets(value, f"{path}.{key}")
    elif isinstance(config, (list, tuple)):
        for i, value in enumerate(config):
            yield from targets(value, f"{path}[{i}]")


def check_signature(path: str, node: dict, filled: tuple[str, ...] = ()) -> None:
    """Hold a node's keys and values against its target's signature; `filled` are arguments that code will add."""
    target = find_target(node["_target_"], path)
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in ("_target_", "_partial_", "_convert_", "_recursive_"):
            continue
        if key not in parameters and not takes_any:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(parameters)}"
            raise ValueError(f"{path}.{key}: no such parameter of {node['_target_']}{hint}")
        if key in hints and not fits(value, hints[key]):
            raise ValueError(f"{path}.{key}={value!r}: wanted {describe(hints[key])}")
    for name, p in parameters.items():
        needed = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if needed and name not in node and name not in filled and not node.get("_partial_"):
            raise ValueError(f"{path}.{name}: no value, but {node['_target_']} needs one")


def fits(value: object, hint: object) -> bool:
    """Whether a plain value can be what a type hint says; hints that plain data cannot decide pass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, dict):
        return isinstance(value, hint)
    if inspect.isclass(hint) and f"{hint.__module__}.{hint.__qualname__}" == "torch.Tensor":
        return False
    if origin in (list, tuple, Sequence):
        inner = [a for a in args if a is not Ellipsis]
        return isinstance(value, (list, tuple)) and (not inner or all(any(fits(v, a) for a in inner) for v in value))
    return True


def describe(hint: object) -> str:
    """A type hint as a person would say it."""
    return getattr(hint, "__name__", None) if inspect.isclass(hint) else str(hint).replace("typing.", "")


def check_targets(config: dict, path: str, filled: tuple[str, ...] = ()) -> None:
    """Check every `_target_` node below `config`; `filled` are arguments that code adds to any of them."""
    for where, node in targets(config, path):
        check_signature(where, node, filled)


def build(node: dict) -> Any:
    """Instantiate a checked `_target_` node, nested ones first; errors of the target come out as they are."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as e:
        if isinstance(e.__cause__, Exception):
            raise e.__cause__ from None
        raise ValueError(str(e)) from e


def build_from_file(node: dict, source: str, trust: bool = False) -> Any:
    """Instantiate a node that came out of a file: only classes that live on the allow-list, unless trust."""
    for path, inner in targets(node, "config"):
        name = str(inner["_target_"])
        if not trust and not is_trusted(name, path):
            raise ValueError(f"{source}: {path}._target_={name} is not on the list of what a file may name "
                             f"(classes of {', '.join(TRUSTED)}); set trust=true if you trust the file")
        check_signature(path, inner)
    if not trust and "${" in json.dumps(node, default=str):  # could make a target out of text, after the check
        raise ValueError(f"{source}: the network's config holds ${{...}}; set trust=true if you trust the file")
    return build(node)


def is_trusted(name: str, path: str) -> bool:
    """Whether a target is a class that is defined, not only imported, in a module on the allow-list."""
    if not name.startswith(TRUSTED):
        return False
    target = find_target(name, path)
    return inspect.isclass(target) and f"{target.__module__}.".startswith(TRUSTED)


def fill(node: dict, **values: object) -> dict:
    """A copy of a network node in which parameters its targets have, and the YAML left out, take measured values."""
    node = dict(node)
    for key, value in node.items():
        if isinstance(value, dict):
            node[key] = fill(value, **values)
    if "_target_" in node:
        parameters = inspect.signature(find_target(node["_target_"], "network")).parameters
        node.update({k: v for k, v in values.items() if k in parameters and node.get(k) is None})
    return node


def config_hash(training: dict) -> str:
    """Hash of what a training run computes: length, logging and resuming aside, and how the machine is used.

    The latter (device, threads, precision, ...) changes no more than the last digits; the state records it, and a
    change is warned of on resuming.
    """
    training = {**training, "options": {k: v for k, v in training["options"].items() if k not in NOT_IN_HASH}}
    training.pop("validation", None)
    return plain_hash(training)[:16]
