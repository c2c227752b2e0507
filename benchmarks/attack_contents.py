"""Wrong content under valid checksums: a leaf, key, array or attribute deleted or replaced, the file sealed anew."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.attack_watch import CANARY
from edm3d.formats import h5
from edm3d.formats.published import CONFIG, STAGE_WEIGHTS, WEIGHTS
from edm3d.inference.snapshot import network_hash
from edm3d.utils.checkpoint import checksum
from edm3d.utils.files import arrays_hash

DEEP = 300       # levels of nesting that Python itself can still walk
DEEPEST = 50_000  # levels that it cannot
HUGE = 1 << 40   # values that a file may claim to hold
Place = tuple[dict | list, object]


def nested(depth: int) -> list:
    """[[[...]]]."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


ODD = (None, [], {}, "x", "", -1, 0, 3.5, True, float("nan"), float("inf"), 1e300, 10 ** 30, list(range(5000)),
       nested(DEEP), "x" * 100_000, [None], [[1]], {"a": 1}, "../../x", "a\0b", "${oc.env:HOME}",
       {"_target_": "os.mkdir", "path": CANARY}, {"_target_": "os.system", "command": f"touch {CANARY}"},
       f"${{oc.create:{{_target_:os.mkdir,path:{CANARY}}}}}")  # fmt: skip


def places(tree: object) -> list[Place]:
    """Every (container, key) of a tree of dicts and lists."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in items] + [place for _, value in items for place in places(value)]


def alter_tree(chance: random.Random, tree: dict | list) -> None:
    """Delete or replace a leaf or a whole branch, near the root as often as anywhere."""
    near = places(tree)[:len(tree)]
    node, key = chance.choice(chance.choice([near, places(tree), places(tree)]))
    value = node[key]
    if chance.random() < 0.15:
        del node[key]
    elif isinstance(value, torch.Tensor):
        node[key] = alter_tensor(chance, value)
    elif isinstance(value, list) and value and chance.random() < 0.3:
        node[key] = chance.choice([value * 2, value[:-1], value[::-1], tuple(value)])
    else:
        node[key] = chance.choice(ODD)


def alter_tensor(chance: random.Random, value: torch.Tensor) -> object:
    """NaN or inf in it, another type or shape, no tensor at all."""
    bad = value.detach().clone()
    if bad.is_floating_point() and bad.numel():
        bad.view(-1)[chance.randrange(bad.numel())] = chance.choice([float("nan"), float("inf"), 3e38])
    zeros = torch.zeros(value.shape)
    return chance.choice([bad, bad, bad, zeros.to(torch.complex64), zeros.int(), zeros.bool(), zeros.double(),
                          value[None], value.reshape(-1)[:-1], torch.zeros(0), torch.zeros(value.shape, device="meta"),
                          zeros.to_sparse() if value.ndim else zeros, value.numpy().tolist(), None, "x"])


def alter_torch(chance: random.Random, path: Path) -> None:
    """A snapshot or a training state; the first stage in it is sealed again every other time."""
    data = torch.load(path, weights_only=True)
    data.pop("checksum")
    if chance.random() < 0.05:  # claims more than there is
        data[chance.choice(["ema", "modules", "x"])] = {"w": torch.zeros(1).expand(HUGE)}
        torch.save({**data, "checksum": "0" * 64}, path)
        return
    alter_tree(chance, data)
    inner = data.get("first_stage")
    try:
        if inner and chance.random() < 0.5:
            inner["hash"] = network_hash(inner["network"], inner["weights"])
        data["checksum"] = checksum(data)
    except Exception:  # what has no checksum: any will do
        data["checksum"] = "0" * 64
    torch.save(data, path)


# ---- HDF5 ----


def alter_h5(chance: random.Random, path: Path) -> None:
    """An attribute or a data set of an H5 file."""
    with h5py.File(path, "r+") as file:
        nodes = [file, *h5.datasets(file), *(file[name] for name in file if isinstance(file[name], h5py.Group))]
        attributes = [(n, a) for n in nodes for a in n.attrs if a not in ("sha256", "content_hash", "row_sha256")]
        huge = None
        if chance.random() < 0.5:
            alter_attribute(chance, *chance.choice(attributes))
        else:
            huge = alter_dataset(chance, file, chance.choice(h5.datasets(file)).name)
        h5.seal(file)
        if huge:
            file.create_dataset(huge, (HUGE,), "f4")
            h5.put_text(file[huge], "sha256", "0" * 64)
            h5.put_text(file, "content_hash", h5._content_hash(file))


def alter_attribute(chance: random.Random, node: h5py.HLObject, name: str) -> None:
    """Delete it, make it something else, or alter the JSON in it."""
    how, text = chance.random(), node.attrs[name]
    if how < 0.15:
        del node.attrs[name]
    elif how < 0.35:
        node.attrs[name] = chance.choice([3, -1, float("nan"), np.arange(5), np.zeros((2, 2)), b"\xff\xfe", "", "x",
                                          2 ** 62, True])
    elif how < 0.45:
        h5.put_text(node, name, "[" * DEEPEST)
    else:
        text = text.decode() if isinstance(text, bytes) else text
        tree = {"": json.loads(text) if isinstance(text, str) and text[:1] in "[{\"" else text}
        alter_tree(chance, tree)
        h5.put_text(node, name, json.dumps(tree.get(""), default=str))


def alter_dataset(chance: random.Random, file: h5py.File, name: str) -> str | None:
    """Replace a data set; the name of one that is to claim HUGE once the file is sealed."""
    values, rows = np.asarray(file[name][()]), file[name].attrs.get("row_sha256")
    how = chance.choice(["delete", "huge", "group", "type", "type", "shape", "shape", "values", "values", "values"])
    if how == "values":
        values = values.copy()
        if values.dtype.kind in "SO":
            values = np.array([chance.choice([b"", b"\xff\xfe", b"../x", b"a\0b", b"x"])] * len(values), "S8")
        elif values.size:
            odd = [np.nan, np.inf, 3e38] if values.dtype.kind == "f" else [0, 255, 127] if values.itemsize == 1 else [
                -1, -10 ** 9, 2 ** 62]
            values.reshape(-1)[chance.randrange(values.size)] = chance.choice(odd)
    elif how == "type":
        values = chance.choice([np.zeros(values.shape, t) for t in ("f2", "f8", "i1", ">f4", "c8", "?", "S3", "u8")])
    elif how == "shape":
        values = chance.choice([values[None], values.reshape(-1)[:0], values[:-1] if values.ndim else values[None],
                                np.zeros((2, 3, 4, 5, 6, 7)), np.float32(1)])
    del file[name]
    if how == "group":
        file.create_group(name)
    elif how not in ("delete", "huge"):
        file[name] = values
        if rows is not None and values.ndim:
            file[name].attrs["row_sha256"] = rows
    return name if how == "huge" else None


# ---- the others ----


def alter_npz(chance: random.Random, path: Path) -> None:
    """An array, or what meta says."""
    arrays = dict(np.load(path))
    sealed = arrays.pop("content_hash", None) is not None
    name = chance.choice(list(arrays))
    if name == "meta" or ("meta" in arrays and chance.random() < 0.4):
        tree = json.loads(str(arrays["meta"]))
        alter_tree(chance, tree)
        arrays["meta"] = np.array(json.dumps(tree, default=str))
    elif chance.random() < 0.15:
        del arrays[name]
    else:
        old = arrays[name]
        arrays[name] = chance.choice([
            old[None], old.reshape(-1)[:0], np.zeros(old.shape, "f8"), np.zeros(old.shape, "c8"),
            np.zeros(old.shape, "S3"), np.full(old.shape, np.nan, "f4"), np.full(old.shape, -1), np.array(3),
            np.zeros(old.shape, "?"), np.asfortranarray(np.zeros((3, 4, 5), "f4")), np.array("x")])
    if sealed:
        arrays["content_hash"] = np.array(arrays_hash(arrays))
    np.savez(path, **arrays)


def alter_gzip(chance: random.Random, path: Path) -> None:
    """A field of the NIfTI header."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(bytes(raw[:348]), nibabel.nifti1.header_dtype).copy()
    name = chance.choice(header.dtype.names)
    values = header[name].reshape(-1)
    place = chance.randrange(len(values))
    if values.dtype.kind in "SV":
        values[place] = chance.randbytes(values.dtype.itemsize)
    elif values.dtype.kind == "f":
        values[place] = chance.choice([np.nan, np.inf, -1, 0, 1e30, 1e-30])
    else:
        limits = np.iinfo(values.dtype)
        values[place] = chance.choice([limits.min, limits.max, 0, min(7, limits.max)])
    raw[:348] = header.tobytes()
    path.write_bytes(gzip.compress(bytes(raw), 1))


def alter_json(chance: random.Random, path: Path) -> None:
    """A plain JSON file."""
    if chance.random() < 0.1:
        path.write_text(chance.choice(["[" * DEEPEST, "{}", "[]", "null", '"x"', "1e999", '{"a":' * DEEPEST]))
        return
    tree = json.loads(path.read_text())
    alter_tree(chance, tree)
    path.write_text(json.dumps(tree, default=str))


def alter_published(chance: random.Random, path: Path) -> None:
    """The configuration or the weights of a published network, under a checksum made anew."""
    folder = path.parent
    written = json.loads((folder / CONFIG).read_text())
    tensors = {name: load_file(folder / name) for name in (WEIGHTS, STAGE_WEIGHTS)}
    if path.name == CONFIG:
        alter_tree(chance, written if chance.random() < 0.2 else written["content"])
    else:
        weights = tensors[path.name]
        name = chance.choice(sorted(weights))
        changed = alter_tensor(chance, weights[name])
        if isinstance(changed, torch.Tensor) and changed.device.type == "cpu" and not changed.is_sparse:
            weights[name] = changed.contiguous().clone()
        else:
            del weights[name]
        save_file(weights, path, {"format": "pt"})
    if "content" in written:
        written["checksum"] = checksum({"content": written["content"], "tensors": tensors})
    (folder / CONFIG).write_text(json.dumps(written))


ALTER: dict[str, Callable[[random.Random, Path], None]] = {
    ".pt": alter_torch, ".h5": alter_h5, ".npz": alter_npz, ".gz": alter_gzip, ".json": alter_json,
    ".safetensors": alter_published}


def alter(chance: random.Random, path: Path) -> None:
    """Alter the content of a file of any kind in ALTER, under valid checksums."""
    change = alter_published if path.parent.name == "published" else ALTER[path.suffix]
    change(chance, path)
