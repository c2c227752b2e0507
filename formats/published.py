"""A published network: a folder of safetensors weights and JSON, as a model hub takes it; nothing in it can be run.

config.json holds what a snapshot holds besides the weights, model.safetensors and first_stage.safetensors the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from edm3d.utils.checkpoint import checksum, tensor_bytes
from edm3d.utils.files import atomic_path, write_text
from edm3d.utils.runs import PUBLISHED

CONFIG, WEIGHTS = PUBLISHED
STAGE_WEIGHTS = "first_stage.safetensors"
FORMAT, VERSION = "edm3d", 1


def write_published(folder: Path, content: Mapping[str, Any], snapshot_hash: str) -> None:
    """Write what a snapshot holds (inference.snapshot.Snapshot.plain) and the hash of its file."""
    plain, tensors = json_round_trip(without_weights(content)), weights_of(content)
    record = {"format": FORMAT, "version": VERSION, "snapshot_hash": snapshot_hash,
              "checksum": checksum({"content": plain, "tensors": tensors}), "content": plain}
    (folder / STAGE_WEIGHTS).unlink(missing_ok=True)  # of what was published here before
    for name, weights in tensors.items():
        with atomic_path(folder / name, tensor_bytes(weights) + 2**20) as temporary:
            plain_weights = {k: w.detach().cpu().contiguous().clone() for k, w in weights.items()}
            temporary.write_bytes(save(plain_weights, metadata={"format": "pt"}))  # save_file lets its owner alone read
    write_text(folder / CONFIG, json.dumps(record, indent=2) + "\n")


def read_published(folder: Path) -> tuple[dict[str, Any], str]:
    """What a snapshot holds, and the hash of its file; ValueError when something is missing, damaged or newer."""
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, content = record["version"], dict(record["content"])
        stored, snapshot_hash = record["checksum"], record["snapshot_hash"]
        stage = None if content["first_stage"] is None else dict(content["first_stage"])
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: not the configuration of a published network ({e!r:.200})") from e
    if record.get("format") != FORMAT or not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{path}: format {record.get('format')!r:.60}, version {version!r:.60}; this program reads "
                         f"edm3d up to {VERSION}")
    names = [WEIGHTS, STAGE_WEIGHTS] if stage and stage.get("network") else [WEIGHTS]
    tensors = {name: read_tensors(folder / name) for name in names}
    if checksum({"content": content, "tensors": tensors}) != stored:
        raise ValueError(f"{folder}: the checksum does not match: {CONFIG} or the weights beside it are damaged or "
                         "were changed")
    content["ema"] = tensors[WEIGHTS]
    if stage:
        content["first_stage"] = {**stage, "weights": tensors.get(STAGE_WEIGHTS, {})}
    return content, snapshot_hash


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
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path}: not readable as safetensors ({e})") from e
