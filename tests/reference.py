"""Reference numbers: a part in tests/data, one xz-packed .npz each, and the full set in ../shared where that is there.

tests/data/edm_networks has whole networks with one row of their inputs and outputs, the outputs in float64 only and to
11 digits; edm_samplers has states to 12 digits. Both are more than is asked of us. Weights lie on a grid: they are
stored as whole numbers, and `steps` says by name what 1 stands for, so that they are the reference's bit for bit.
"""

import io
import json
import lzma
from functools import cache
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
FULL = "parity/edm_vectors.npz"  # in ../shared


@cache
def stored(name: str) -> dict[str, np.ndarray]:
    """The arrays of an archive in tests/data, by key."""
    with np.load(io.BytesIO(lzma.decompress((DATA / f"{name}.npz.xz").read_bytes()))) as archive:
        return dict(archive)


def group_of(arrays: dict[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    """The arrays of a group, named from there."""
    data = {k.removeprefix(f"{group}/"): array for k, array in arrays.items() if k.startswith(f"{group}/")}
    assert data, f"no {group}"
    return data


def read_full(shared: Path, group: str) -> dict[str, np.ndarray]:
    """The arrays of a group of the full set."""
    with np.load(shared / FULL) as archive:
        return group_of({k: archive[k] for k in archive.files if k.startswith(f"{group}/")}, group)


def config_of(data: dict[str, np.ndarray]) -> dict:
    """The JSON of a group's config."""
    return json.loads(str(data["config"]))


def weights_of(data: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The group's weights by the release's names, float32."""
    steps = json.loads(str(data.get("steps", "{}")))
    return {k.removeprefix("param/"): torch.from_numpy(v.astype(np.float32)) * steps.get(k.removeprefix("param/"), 1)
            for k, v in data.items() if k.startswith("param/")}
