"""A published network: a folder of safetensors weights and JSON, as a model hub takes it; nothing in it can be run.

config.json holds what a snapshot holds besides the weights, model.safetensors and first_stage.safetensors the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save

from edm3d.utils.checkpoint import checksum, tensor_bytes
from edm3d.utils.checks import is_whole
from edm3d.utils.files import atomic_path, first_line, write_text
from edm3d.utils.plain import from_plain, read_json, shown
from edm3d.utils.runs import PUBLISHED, PUBLISHED_FORMAT

CONFIG, WEIGHTS = PUBLISHED
STAGE_WEIGHTS = "first_stage.safetensors"
FORMAT, VERSION = PUBLISHED_FORMAT, 1


def write_published(folder: Path, content: Mapping[str, Any], snapshot_hash: str) -> None:
    """Write what a snapshot holds (inference.snapshot.Snapshot.plain) and the hash of its file.

    config.json first: by it a folder is known as ours, also where a kill leaves it without all weights.
    """
    tensors, record = weights_of(content), record_of(content, snapshot_hash)
    write_text(folder / CONFIG, json.dumps(record, indent=2) + "\n")
    (folder / STAGE_WEIGHTS).unlink(missing_ok=True)  # of what was published here before
    for name, weights in tensors.items():
        with atomic_path(folder / name, tensor_bytes(weights) + 2**20) as temporary:
            plain_weights = {k: w.detach().cpu().contiguous().clone() for k, w in weights.items()}
            temporary.write_bytes(save(plain_weights, metadata={"format": "pt"}))  # save_file lets its owner alone read


def record_of(content: Mapping[str, Any], snapshot_hash: str) -> dict[str, Any]:
    """What config.json holds of a network."""
    plain = json_round_trip(without_weights(content))
    return {"format": FORMAT, "version": VERSION, "snapshot_hash": snapshot_hash,
            "checksum": checksum({"content": plain, "tensors": weights_of(content)}), "content": plain}


class Published(NamedTuple):
    """What config.json holds; content: what a snapshot holds (inference.snapshot.Content), without the weights."""

    format: str
    version: int
    snapshot_hash: str
    checksum: str
    content: dict[str, Any]


def read_published(folder: Path) -> tuple[dict[str, Any], str]:
    """What a snapshot holds, and the hash of its file; ValueError when something is missing, damaged or newer."""
    path = folder / CONFIG
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: not the configuration of a published network (format {FORMAT})")
    version = found.get("version")
    if not is_whole(version) or not 1 <= version <= VERSION:
        raise ValueError(f"{path}: version is {shown(version)}; this program reads up to {VERSION}")
    record = from_plain(Published, found, path)
    content, stage = record.content, record.content.get("first_stage")
    if "first_stage" not in content or not isinstance(stage, dict | None):
        raise ValueError(f"{path}: content.first_stage is {shown(stage)}, wanted names with values, or null")
    names = [WEIGHTS, STAGE_WEIGHTS] if stage and stage.get("network") else [WEIGHTS]
    tensors = {name: read_tensors(folder / name) for name in names}
    try:
        agrees = checksum({"content": content, "tensors": tensors}) == record.checksum
    except (ValueError, RecursionError) as e:  # as of numbers of thousands of digits
        raise ValueError(f"{path}: not what a published network holds: {first_line(e)}") from e
    if not agrees:
        raise ValueError(f"{folder}: the checksum does not match: {CONFIG} or the weights beside it are damaged or "
                         "were changed")
    more = {"first_stage": {**stage, "weights": tensors.get(STAGE_WEIGHTS, {})}} if stage else {}
    return {**content, "ema": tensors[WEIGHTS], **more}, record.snapshot_hash


def without_weights(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is no tensor of what a snapshot holds."""
    stage = content["first_stage"]
    bare = stage and {name: value for name, value in stage.items() if name != "weights"}
    return {name: value for name, value in content.items() if name != "ema"} | {"first_stage": bare}


def weights_of(content: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors by file."""
    stage = content["first_stage"]
    return {WEIGHTS: content["ema"]} | ({STAGE_WEIGHTS: stage["weights"]} if stage and stage["network"] else {})


def json_round_trip(value: Any) -> Any:
    """A plain value as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; ValueError when it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; publish the network again if that was stopped on the way")
    try:
        return load_file(path)
    except Exception as e:  # safetensors and torch raise what they please on a damaged file
        raise ValueError(f"{path}: not readable as safetensors ({type(e).__name__}: {first_line(e)})") from e
