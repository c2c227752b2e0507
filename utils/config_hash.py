"""The hash of what a training run computes, by which its runs and states are found again.

hashed_keys.json holds the keys that there were when a first list was made, and stays as it is: any other key came
later, and is left out wherever it stands at its default, so that runs of before keep their hashes.
"""

import inspect
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

from edm3d.utils.config import ROOMS, find_target
from edm3d.utils.files import plain_hash
from edm3d.utils.schema import Options, Training

# options that leave what is computed alone, the last digits aside; noise is the state's once there is one
NOT_IN_HASH = ("total_kimg", "kimg_per_tick", "snapshot_ticks", "state_ticks", "keep_snapshots", "keep_states",
               "resume", "dry_run", "debug", "desc", "run_root", "device", "num_threads", "num_workers", "batch_gpu",
               "noise", "precision", "tf32", "cudnn_benchmark", "compile", "graphs", "channels_last", "checkpointing",
               "profile", "tune", "parallel", "min_psnr", "timeout_s", "max_bad_steps", "wandb", "trust")
FIRST_KEYS = json.loads(Path(__file__).with_name("hashed_keys.json").read_text(encoding="utf-8"))


def config_hash(training: dict) -> str:
    """Hash of what a training run computes.

    How the machine is used (device, threads, precision, ...) is no part of it: it changes no more than the last
    digits; the state records it, and a change is warned of on resuming.
    """
    return plain_hash(hashed_part(training))[:16]


def hashed_part(training: dict) -> dict:
    """What of a training half decides on what is computed: length, logging, resuming and use of the machine aside."""
    options = {k: v for k, v in training["options"].items() if k not in NOT_IN_HASH}
    if isinstance(options.get("ema_halflife_kimg"), int):  # 500 on the command line is 500.0
        options["ema_halflife_kimg"] = float(options["ema_halflife_kimg"])
    training = {**training, "options": without_defaults(options, FIRST_KEYS["options"], field_defaults(Options))}
    always = {*FIRST_KEYS["training"].split()} - {"augment", "discriminator"}
    aside = {"validation", *(part for part, value in training.items() if value in ({}, None) and part not in always)}
    kept = {part: value for part, value in training.items() if part not in aside}
    return hashed_node(without_defaults(kept, FIRST_KEYS["training"], field_defaults(Training)))


def hashed_node(node: object) -> object:
    """A plain config in which targets of ours lack the new parameters that stand at their defaults."""
    if isinstance(node, list):
        return [hashed_node(value) for value in node]
    if not isinstance(node, dict):
        return node
    first = FIRST_KEYS["targets"].get(str(node.get("_target_")), "")
    return {k: hashed_node(v) for k, v in without_defaults(node, first, new_parameters(node, first)).items()}


def without_defaults(node: dict, first: str, defaults: dict[str, object]) -> dict:
    """A node without the keys that are not among the `first` (in one line) and stand at their defaults."""
    return {k: v for k, v in node.items() if k in first.split() or k not in defaults or not same(v, defaults[k])}


def same(value: object, default: object) -> bool:
    """Whether a plain value is the default that code says; true is not 1."""
    default = list(default) if isinstance(default, tuple) else default
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def field_defaults(schema: type) -> dict[str, object]:
    """Defaults of a dataclass's fields as plain data."""
    made = schema()
    return {f.name: asdict(value) if is_dataclass(value := getattr(made, f.name)) else value for f in fields(schema)}


def new_parameters(node: dict, first: str) -> dict[str, object]:
    """Defaults of the parameters that a node names and its target did not have at first.

    {} for targets that are not ours, which are not imported, and for those that are gone.
    """
    target = str(node.get("_target_"))
    new = [key for key in node if not str(key).startswith("_") and key not in first.split()]
    if not new or not target.startswith(ROOMS):
        return {}
    try:
        parameters = inspect.signature(find_target(target, "training")).parameters
    except ValueError:
        return {}
    return {key: parameters[key].default for key in new if key in parameters}
