"""Configuration: the typed schema of an experiment, the check of every key against its target, and building from it."""

import difflib
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, InstantiationException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from edm3d.utils.files import first_line

# homes of the classes that a file may name
TRUSTED = ("edm3d.networks.", "edm3d.training.datasets.", "torch.nn.", "monai.networks.nets.",
           "monai.networks.blocks.", "monai.networks.layers.")
ROOMS = ("metrics.", "networks.", "physics.", "samplers.", "training.")  # of our own targets, which go by short names
TRUST = "if you trust the file, say so: training.options.trust=true, sampling.trust=true or --trust"
COMPOSING = re.compile(r"In '.*': \w+ raised while composing config:$")  # Hydra's heading above OmegaConf's error
# arguments that the program itself gives a target, by the target's place in the config, which must not
GIVEN = {"sampling.sampler": ("net", "latents", "condition", "randn_like", "callback"),
         "training.optimizer": ("params",), "training.discriminator.optimizer": ("params",)}


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
    init_from: str | None = None        # start a new run from the weights of a snapshot, as far as they fit
    lr_rampup_kimg: float = 0
    lr_schedule: str = "constant"       # constant | cosine (to 0 at total_kimg)
    ema_halflife_kimg: Any = 500.0      # or a list: the first is shown and validated, each gets a snapshot of its own
    ema_rampup_ratio: float | None = 0.05
    grad_clip: float | None = None      # global norm above which gradients are scaled down
    precision: str = "auto"             # fp32 | bf16 | auto (bf16 where the processor multiplies it)
    channels_last: bool = False
    checkpointing: bool = False         # blocks keep their inputs only and run again backwards: less memory, more time
    compile: bool = False
    parallel: str = "ddp"               # ddp | fsdp (every rank holds a share of the weights)
    timeout_s: float = 600              # how long ranks wait for one that is late
    num_threads: int = 0                # CPU threads per rank, 0 = cores / ranks
    num_workers: int = 0                # data loader processes per rank
    min_psnr: float | None = 20         # dB that diffusion asks of its latents, decoded again; null: no matter
    max_bad_steps: int = 20             # so many steps in a row without finite loss and gradients end the run
    wandb: str | None = None            # W&B project to log to as well
    trust: bool = False                 # build any target that a first stage's file names, not only the allow-list
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
    preview_ticks: int | None = None    # how often pictures are made (training.preview), null = never
    preview_items: int = 4              # held-out volumes or samples in them


@dataclass
class Training:
    """The training half of an experiment."""

    task: str = MISSING                 # autoencoder | diffusion
    dataset: dict[str, Any] = field(default_factory=dict)
    batch_transform: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    validation: Validation = field(default_factory=Validation)
    options: Options = field(default_factory=Options)


@dataclass
class Guidance:
    """How far samples are pushed towards their condition (sampling.guidance.*)."""

    strength: float = 1                 # 1 = the network alone; more pushes away from the guide
    interval: list[float] | None = None  # noise levels [lo, hi] between which the guide acts, null = all
    network: str | None = None          # a worse or earlier snapshot as guide (autoguidance); null = no class label


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
    trajectory: bool = False            # keep the denoised image of every step beside the samples
    decode: bool = True                 # through the first stage that the snapshot carries
    autoencoder: str | None = None      # decode by this autoencoder; its hash must be the snapshot's, if that has one
    tile: list[int] | None = None       # decode in tiles of so many voxels per axis, null = whole volumes
    tile_overlap: float = 0.25          # of neighbouring tiles, as a share of a tile
    tile_mode: str = "blend"            # blend | exact (as the whole volume, in slabs)
    tile_compare: bool = True           # say by how much blended tiles differ from the whole, in the memory of exact
    montage: int = 6                    # samples in samples.png, 0 = none
    real: str | None = None             # volumes.h5 shown above them; null = the file that the snapshot was trained on
    precision: str = "fp32"
    num_threads: int = 0
    device: str = "auto"
    trust: bool = False                 # build any target that the snapshot names, not only those on the allow-list
    guidance: Guidance = field(default_factory=Guidance)
    sampler: dict[str, Any] = field(default_factory=dict)


@dataclass
class Experiment:
    """What one YAML in configs/ holds."""

    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)


def compose(config_dir: Path, name: str, overrides: Sequence[str]) -> dict:
    """The resolved plain config of an experiment with command-line overrides; ValueError for what does not fit.

    Composed without Hydra's main, so that no output folder and no job log of Hydra's own come into being.
    """
    ConfigStore.instance().store(name="experiment_schema", node=Experiment)
    known = sorted(p.stem for p in config_dir.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"-cn={name}: {no_such(f'experiment in {config_dir.name}/', name, known)}")
    try:
        plain = to_plain(compose_raw(config_dir, name, overrides))
    except (HydraException, OmegaConfBaseException) as e:
        raise ValueError(composition_error(e, name, config_groups(config_dir))) from e
    check_keys(plain, Experiment)
    return plain


def compose_raw(config_dir: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes; ValueError for files that are no YAML, for odd defaults, and without the schema."""
    try:
        with hydra.initialize_config_dir(str(config_dir.resolve()), version_base=None):
            config = hydra.compose(name, quote_seeds(overrides))
    except (HydraException, OmegaConfBaseException):
        raise
    except yaml.YAMLError as e:
        raise ValueError(yaml_error(e)) from e
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"-cn={name}: cannot be composed, look at its defaults ({first_line(e)})") from e
    if OmegaConf.get_type(config) is not Experiment:
        raise ValueError(f"-cn={name}: its defaults lack experiment_schema, by which all keys are checked")
    return config


def yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, and where, as one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{getattr(error, 'name', 'YAML')}: {' '.join(str(error).split())}"
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def quote_seeds(overrides: Sequence[str]) -> list[str]:
    """Overrides in which a list of seeds is text: Hydra takes `sampling.seeds=1,2` for a sweep, `[1,2]` for a list."""
    return [re.sub(r"""^(\+{0,2}sampling\.seeds)=([^'"]*,[^'"]*)$""", r"\1='\2'", text) for text in overrides]


class Group(NamedTuple):
    """A group of configs/: the config path that its files fill (`# @package ...`), and their names."""

    package: str
    choices: list[str]


def config_groups(config_dir: Path) -> dict[str, Group]:
    """The groups, which are the folders of configs/, by name."""
    groups: dict[str, Group] = {}
    for path in sorted(config_dir.glob("*/*.yaml")):
        package = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# @package").strip()
        groups.setdefault(path.parent.name, Group(package, [])).choices.append(path.stem)
    return groups


def check_keys(config: dict, schema: type, path: str = "") -> None:
    """ValueError for keys that a dataclass schema lacks, or has alone: `+key=value` and `~key` get past Hydra."""
    hints = typing.get_type_hints(schema)
    for key in hints:
        if key not in config:
            raise ValueError(f"{path}{key}: missing; give it a value, or leave it out for its default")
    for key, value in config.items():
        if key not in hints:
            raise ValueError(f"{path}{key or repr(key)}: {no_such('key', key, hints)}")
        if is_dataclass(hints[key]):
            check_keys(value, hints[key], f"{path}{key}.")


def no_such(what: str, name: object, known: Iterable[str], are: str = "there are") -> str:
    """'no such ...' with the nearest right name, or all."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"no such {what}; " + (f"did you mean '{near[0]}'?" if near else f"{are} {', '.join(known)}")


def composition_error(error: Exception, name: str, groups: Mapping[str, Group]) -> str:
    """Hydra's or OmegaConf's error as one line with the config path and the nearest right key or group.

    name: of the experiment.
    """
    while not isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not COMPOSING.match(line)]
    if "--multirun" in str(error):
        given = re.search(r"'(.*)'", lines[0])[1]
        key = given.partition("=")[0]
        return f"{given}: several values for one key, but there are no sweeps; write {key}=[a,b] or \"{key}='a,b'\""
    full = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), None)
    if full is None:
        text = " ".join(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
        return f"-cn={name}: {text}"
    if isinstance(error, InterpolationKeyError):
        return missing_source(full, lines[0])
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        chosen_first = nothing_chosen(full.rpartition(".")[0], error.parent_node, groups)
        if chosen_first:
            return f"{full}: {chosen_first}"
        key, known = full.rpartition(".")[2], keys_around(full, error.parent_node)
        if key in known:
            return f"{full}: not in the YAML; write +{full}=... to add it"
        if full in groups:
            package = groups[full].package
            return (f"{full} is a group: to choose another {full} write {full}=NAME; its keys are under {package}, "
                    f"as in {package}.KEY=...")
        return f"{full or repr(full)}: {no_such('key', key, known if '.' in full else [*known, *groups])}"
    group = full.rpartition(".")[2]
    hint = f"; to choose another {group}, write {group}=NAME" if group in groups else ""
    return f"{full or f'-cn={name}'}: {lines[0]}{hint}"


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
        known += inspect.signature(find_target(parent["_target_"], full.rpartition(".")[0])).parameters
    return known


def to_plain(config: DictConfig) -> dict:
    """Resolved plain dict of a config; ValueError naming the missing keys where a value is `???`."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)}: no value; set it in the experiment's YAML or on the command line")
    return OmegaConf.to_container(config, resolve=True, structured_config_mode=typing.cast(Any, "dict"))


def sampling_options(config: dict) -> Sampling:
    """The sampling half of a plain config as typed options."""
    half = config["sampling"]
    return Sampling(**{**half, "guidance": Guidance(**half["guidance"])})


def to_yaml(config: dict) -> str:
    """A plain config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def read_yaml(path: Path) -> dict:
    """A plain config from a YAML file of ours; ValueError when it is damaged."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as e:
        raise ValueError(f"{path}: not readable as YAML ({str(e).splitlines()[0]})") from e


def find_target(name: str, path: str) -> Callable:
    """The class or function behind a `_target_`; ValueError naming the config path when there is none."""
    if not isinstance(name, str):
        raise ValueError(f"{path}._target_={name!r}: wanted the name of a class or function")
    module, _, attribute = full_name(name).rpartition(".")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"{path}._target_={name}: cannot be imported ({e})") from e
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: not a class or function")
    return target


def full_name(name: str) -> str:
    """The name by which a `_target_` is imported: networks.unet.ADMUNet means ours, before anybody else's."""
    module = f"edm3d.{name.rpartition('.')[0]}"
    try:
        is_ours = name.startswith(ROOMS) and importlib.util.find_spec(module) is not None
    except ImportError:  # of a folder above it
        is_ours = False
    return f"edm3d.{name}" if is_ours else name


def with_full_names(node: Any) -> Any:
    """A plain config whose `_target_`s stand as they are imported."""
    if isinstance(node, dict):
        return {k: full_name(v) if k == "_target_" else with_full_names(v) for k, v in node.items()}
    return [with_full_names(value) for value in node] if isinstance(node, (list, tuple)) else node


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
            what = f"parameter of {node['_target_']}"
            raise ValueError(f"{path}.{key}: {no_such(what, key, parameters, 'it has')}")
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
    if is_tensor(hint):
        return False
    if origin in (list, tuple, Sequence):
        inner = [a for a in args if a is not Ellipsis]
        return isinstance(value, (list, tuple)) and (not inner or all(any(fits(v, a) for a in inner) for v in value))
    return True


def describe(hint: object) -> str:
    """A type hint as a person would say it, without what plain values cannot be."""
    origin, args = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not Ellipsis]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args if not is_tensor(a))
    if hint in (None, type(None)):
        return "null"
    if (origin or hint) in (list, tuple, Sequence):
        return "a list" + (f" of {' or '.join(dict.fromkeys(map(describe, args)))}" if args else "")
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def is_tensor(hint: object) -> bool:
    """Whether a type hint is torch.Tensor, which is not imported here."""
    return inspect.isclass(hint) and f"{hint.__module__}.{hint.__qualname__}" == "torch.Tensor"


def check_targets(config: dict, path: str, filled: tuple[str, ...] = ()) -> None:
    """Check every `_target_` node below `config`; `filled` are arguments that code adds to any of them.

    Those of GIVEN are added too, and refused in the config.
    """
    for where, node in targets(config, path):
        given = GIVEN.get(where, ())
        for key in given:
            if key in node:
                raise ValueError(f"{where}.{key}: the program gives this itself; leave it out")
        check_signature(where, node, (*filled, *given))


def build(node: dict, *arguments: object, path: str = "") -> Any:
    """Instantiate a checked `_target_` node, nested ones first; `arguments` are given to it besides.

    Errors of the target come out as they are; ValueErrors say the config path in front, if `path` says that of node.
    """
    try:
        return hydra.utils.instantiate(with_full_names(node), *arguments, _convert_="all")
    except InstantiationException as e:
        cause = e.__cause__
        if not isinstance(cause, Exception):
            raise ValueError(str(e)) from e
        if not path or not isinstance(cause, ValueError) or str(cause).startswith(path):
            raise cause from None
        inner = re.search(r"\nfull_key: (.+)$", str(e))
        raise ValueError(f"{path}{'.' + inner[1] if inner else ''}: {cause}") from cause


def build_from_file(node: dict, source: str, trust: bool = False) -> Any:
    """Instantiate a node that came out of a file: only classes that live on the allow-list, unless trust."""
    for path, inner in targets(node, "config"):
        name = str(inner["_target_"])
        if not trust and not is_trusted(name, path):
            raise ValueError(f"{source}: {path}._target_={name} is not on the list of what a file may name "
                             f"(classes of {', '.join(TRUSTED)}); {TRUST}")
        check_signature(path, inner)
    if not trust and "${" in json.dumps(node, default=str):  # could make a target out of text, after the check
        raise ValueError(f"{source}: the network's config holds ${{...}}; {TRUST}")
    return build(node)


def is_trusted(name: str, path: str) -> bool:
    """Whether a target is a class that is defined, not only imported, in a module on the allow-list."""
    if not full_name(name).startswith(TRUSTED):
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


def differences(old: object, new: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Paths at which two plain configs differ, with the values of both; None is none, and as good as an empty node."""
    if all(value is None or isinstance(value, dict) for value in (old, new)):
        old, new = old or {}, new or {}
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new
