"""Damaged files are refused by name or read unharmed: random corruptions of every kind of file, none silent.

The reading runs in a process of its own, so that a crash, a hang or a print of a library is a failure like any other:
python -m tests.test_corruption KIND FOLDER FIRST COUNT
"""

import json
import resource
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.latents import EncodedSplit, FirstStageRecord, LatentsFile, write_latents
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter
from edm3d.inference.check import check

ROOT = Path(__file__).resolve().parents[1]
FILES = {"state": "training-state-000012.pt", "volumes": "volumes.h5", "latents": "latents.h5", "samples": "samples.h5",
         "npz": "samples.npz"}
MEMORY = 6 << 30  # bytes of address space a reader may have
SECONDS = 20  # per file

# ---- whole files ----


def write_state(path: Path) -> None:
    """A training state with weights, two optimisers' worth of odd keys, and plain data."""
    import torch

    from edm3d.utils import checkpoint
    net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.SiLU(), torch.nn.Linear(16, 5))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    net(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    checkpoint.save(path, "state", {
        "config": {"training": {"seed": 0, "lr": 1e-3, "split": "train", "none": None}}, "data_hash": "ab" * 32,
        "progress": {"nimg": 12, "tick": 3, "seconds": 1.5}, "modules": {"net": net.state_dict()},
        "ema": {k: v.bfloat16() for k, v in net.state_dict().items()}, "optimizers": {"net": optimizer.state_dict()}})


def write_volumes(path: Path) -> None:
    """Ten labelled volumes of five patients in two splits."""
    random = np.random.default_rng(0)
    meta = VolumesMeta(3, ("echo",), ("target",), ("background", "cavity"), ("volume", "age"), ("mL", "a"),
                       ("ED", "ES"), Intensity(0, 1, True, "a.u."))
    with VolumesWriter(path, meta, {"kind": "test"}) as writer:
        for i in range(10):
            writer.add("train" if i < 6 else "val", Item(
                random.random((1, 6, 5, 4), np.float32), random.integers(0, 2, (6, 5, 4), np.uint8),
                np.array([i, np.nan], np.float32), i % 2, f"é-{i}", f"patient-{i // 2}", np.diag([2.0, 2, 3, 1]),
                np.array([[0, 1, 0], [6, 4, 4]])))


def write_latents_file(path: Path) -> None:
    """Latents of eight volumes in two splits, with a first stage of two weights."""
    random = np.random.default_rng(0)

    def split(first: int, count: int) -> EncodedSplit:
        mean, std = random.random((2, count, 2, 3, 4), np.float32)
        names = [str(i) for i in range(first, first + count)]
        return EncodedSplit(mean, std, names, names, np.tile(np.eye(4), (count, 1, 1)), {
            "classes": np.arange(count), "attributes": random.random((count, 1), np.float32)})

    stage = FirstStageRecord({"_target_": "networks.autoencoder.Autoencoder", "channels": [4, 8]}, {
        "encoder.0.weight": random.random((4, 1, 3), np.float32), "encoder.0.bias": np.zeros(4, np.float32)}, "cd" * 32)
    write_latents(path, {"train": split(0, 5), "val": split(5, 3)}, stage, Facts("", "", ("echo",)), {"kind": "test"})


def write_samples_file(path: Path) -> None:
    """Images, label maps, latents and classes of four seeds."""
    random = np.random.default_rng(0)
    arrays = {"images": random.random((4, 1, 5, 6), np.float32), "labels": random.integers(0, 3, (4, 5, 6), np.uint8),
              "latents": random.random((4, 2, 2, 3), np.float32), "classes": np.arange(4)}
    write_samples(path, [1, 4, 5, 2 ** 40], arrays, np.diag([2.0, 2, 1, 1]), SampleMeta(
        Facts("", "", ("echo",)), "net.pt", "ab" * 32, {"num_steps": 18}))


WRITERS = {"state": write_state, "volumes": write_volumes, "latents": write_latents_file, "samples": write_samples_file,
           "npz": write_samples_file}

# ---- all that a reader gives ----


def read_state(path: Path) -> object:
    from edm3d.utils import checkpoint
    return checkpoint.load(path, "state").content


def read_volumes(path: Path) -> object:
    file = VolumesFile(path)
    try:
        return [file.meta, file.provenance, file.content_hash, [
            [split, file.ids(split), file.groups(split), file.table(split, "attributes"), file.table(split, "classes"),
             file.affines(split), [tuple(file.read(split, i)) for i in range(file.length(split))]]
            for split in file.splits]]
    finally:
        file.close()


def read_latents(path: Path) -> object:
    file = LatentsFile(path)
    return [file.facts.content_hash, file.facts.channels, file.facts.latents.statistics, file.content_hash,
            file.first_stage(), {split: file.read(split) for split in file.splits}]


def read_samples(path: Path) -> object:
    file = SamplesFile(path)
    rows = {name: [file.row(name, i) for i in range(len(file))] for name in file.names}
    return [file.seeds, file.affine, rows, {name: file.array(name) for name in file.names}, file.meta.plain(),
            file.rows]


READERS = {"state": read_state, "volumes": read_volumes, "latents": read_latents, "samples": read_samples,
           "npz": read_samples}


def same(a: object, b: object) -> bool:
    """Whether two trees are equal in every value, type and shape; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(type(x) is type(y) and same(a[x], b[y]) for x, y in zip(
            sorted(a, key=repr), sorted(b, key=repr)))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "requires_grad"):
        import torch
        return (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad) and torch.equal(a, b)
    return a == b


# ---- corruptions of bytes ----

Random = np.random.Generator


def flip(random: Random, raw: bytearray) -> None:
    """Change up to eight bytes anywhere."""
    for place in random.integers(0, len(raw), random.integers(1, 9)):
        raw[place] ^= random.integers(1, 256)


def flip_one_bit(random: Random, raw: bytearray) -> None:
    """Change one bit."""
    raw[random.integers(len(raw))] ^= 1 << random.integers(8)


def truncate(random: Random, raw: bytearray) -> None:
    """Cut the end off."""
    del raw[random.integers(0, len(raw)):]


def append(random: Random, raw: bytearray) -> None:
    """Put bytes behind the end."""
    raw += random.bytes(random.integers(1, 3000)) if random.random() < 0.5 else bytes(random.integers(1, 3000))


def zero_block(random: Random, raw: bytearray) -> None:
    """Overwrite a block with zeros, as a disk that lost a write."""
    start, length = random.integers(len(raw)), random.integers(1, 2048)
    raw[start:start + length] = bytes(len(raw[start:start + length]))


def move_block(random: Random, raw: bytearray) -> None:
    """Overwrite a block with another one of the file."""
    length = int(random.integers(1, min(512, len(raw) // 2)))
    source, target = random.integers(0, len(raw) - length, 2)
    raw[target:target + length] = raw[source:source + length]


BYTES = (flip, flip_one_bit, truncate, append, zero_block, move_block)


def bytewise(change: Callable[[Random, bytearray], None], random: Random, path: Path) -> None:
    """Corrupt the bytes of a file."""
    raw = bytearray(path.read_bytes())
    change(random, raw)
    path.write_bytes(raw)


# ---- corruptions of zip archives (states, npz), CRCs made anew ----


def member_bytes(random: Random, path: Path) -> None:
    """Flip bytes of one member under a right CRC."""
    def change(members: dict[str, bytearray]) -> None:
        flip(random, members[random.choice([name for name, raw in members.items() if raw])])
    rewrite(path, change)


def pickle_bytes(random: Random, path: Path) -> None:
    """Flip bytes of the structure of a state under a right CRC."""
    rewrite(path, lambda members: flip(random, next(raw for name, raw in members.items() if name.endswith("data.pkl"))))


def member_swap(random: Random, path: Path) -> None:
    """Give two members each other's content."""
    def change(members: dict[str, bytearray]) -> None:
        a, b = random.choice(list(members), 2, replace=False)
        members[a], members[b] = members[b], members[a]
    rewrite(path, change)


def member_lost(random: Random, path: Path) -> None:
    """Take a member away."""
    rewrite(path, lambda members: members.pop(random.choice(list(members))))


def rewrite(path: Path, change: Callable[[dict[str, bytearray]], object]) -> None:
    """Write a zip archive anew after a change of its members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(content))


# ---- corruptions of the content, saved anew under the old checksum ----


def state_content(random: Random, path: Path) -> None:
    """Swap tensors or keys, change a type, put NaN, lose or retype a leaf of a state."""
    import torch
    tree = torch.load(path, weights_only=True)
    nodes = list(dicts(tree))
    tensors = [(node, key) for node in nodes for key, value in node.items() if isinstance(value, torch.Tensor)]
    (node, key), (other, name) = (tensors[i] for i in random.choice(len(tensors), 2, replace=False))
    how = random.integers(8)
    if how == 0:
        if torch.equal(node[key], other[name]):
            other[name] = other[name] + 1
        node[key], other[name] = other[name], node[key]
    elif how == 1:
        node[key] = node[key].double()
    elif how == 2:
        node[key] = torch.full_like(node[key], float("nan"))
    elif how == 3:
        node[key].view(-1)[random.integers(node[key].numel())] += 1
    elif how == 4:
        del node[key]
    elif how == 5:
        node[f"{key}x"] = node.pop(key)
    elif how == 6:
        node = tree["optimizers"]["net"]["state"]
        node["0"] = node.pop(0)
    else:
        group = tree["optimizers"]["net"]["param_groups"][0]
        group["betas"] = list(group["betas"])
    torch.save(tree, path)


def dicts(tree: object) -> list[dict]:
    """All dicts of a tree."""
    if isinstance(tree, dict):
        return [tree, *(inner for value in tree.values() for inner in dicts(value))]
    return [inner for value in tree for inner in dicts(value)] if isinstance(tree, (list, tuple)) else []


def npz_content(random: Random, path: Path) -> None:
    """Change the type or the number of rows of an array, or lose one."""
    arrays = dict(np.load(path))
    name = random.choice(["seeds", "affine", "images", "labels", "latents", "classes"])
    how = random.integers(3)
    if how == 0:
        arrays[name] = arrays[name].astype(np.float16)
    elif how == 1:
        arrays[name] = arrays[name][:-1]
    else:
        arrays["meta"] = np.array(str(arrays["meta"])[1:])
    np.savez(path, **arrays)


def h5_content(random: Random, path: Path) -> None:
    """Swap, retype, shorten or lose data sets, put NaN, change values or attributes of an H5 file."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        numbers = [name for name in names if file[name].dtype.kind in "fiu"]
        name = str(random.choice(numbers))
        node, how = file[name], random.integers(8)
        if how == 0:
            other = str(random.choice([n for n in names if n != name]))
            for old, new in ((name, "aside"), (other, name), ("aside", other)):
                file.move(old, new)
        elif how == 1:
            retyped = node[()].astype(random.choice(["float64", "int16", ">f4"]))
            replace(file, name, retyped, keep_hash=random.random() < 0.5)
        elif how == 2:
            replace(file, name, node[:-1] if node.ndim else node[()] + 1, keep_hash=True)
        elif how == 3:
            del file[name]
        elif how == 4:
            floats = file[str(random.choice([n for n in numbers if file[n].dtype.kind == "f"]))]
            floats[(0,) * floats.ndim] = np.nan if np.isfinite(floats[(0,) * floats.ndim]) else 0
        elif how == 5:
            node[(-1,) * node.ndim] = node[(-1,) * node.ndim] + 1
        elif how == 6:
            strings = [n for n in names if h5py.check_string_dtype(file[n].dtype)]
            if strings:
                file[strings[0]][0] = "another"
            else:
                del file.attrs["provenance"]
        else:
            attribute = str(random.choice(list(file.attrs)))
            file.attrs[attribute] = np.bytes_("other") if random.random() < 0.5 else "other"


def replace(file: h5py.File, name: str, values: np.ndarray, keep_hash: bool) -> None:
    """Put another array under the name of a data set."""
    old = file[name].attrs["sha256"]
    del file[name]
    file[name] = values
    if keep_hash:
        file[name].attrs["sha256"] = old


ZIP = (member_bytes, member_swap, member_lost)
CONTENT = {"state": (state_content, pickle_bytes, *ZIP), "volumes": (h5_content,), "latents": (h5_content,),
           "samples": (h5_content,), "npz": (npz_content, member_lost)}


def corruptions(kind: str) -> list[Callable[[Random, Path], None]]:
    """All ways to corrupt a file of a kind; changes of the content as often as those of bytes."""
    content = list(CONTENT[kind])
    return [partial(bytewise, change) for change in BYTES] + content * max(1, 4 // len(content))


# ---- one process that reads damaged files ----


def outcome(kind: str, path: Path, wanted: object) -> str:
    """What a reader makes of a damaged file: refused, unharmed, or what it did wrong."""
    try:
        got = READERS[kind](path)
    except (ValueError, OSError) as error:
        text = str(error)
        return "refused" if str(path) in text and "\n" not in text else f"WRONG: unclear error {error!r}"
    except BaseException as error:
        return f"WRONG: {type(error).__name__}: {error}"
    return "unharmed" if same(got, wanted) else "WRONG: other data were read, and nothing said"


def damage_and_read(kind: str, folder: Path, first: int, count: int) -> None:
    """Corrupt the file of a kind `count` times and print what reading it gave, one JSON line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = folder / FILES[kind]
    wanted, raw, ways = READERS[kind](whole), whole.read_bytes(), corruptions(kind)
    path = folder / "damaged" / FILES[kind]
    path.parent.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        change = ways[seed % len(ways)]
        with np.errstate(all="ignore"):  # casts that lose values
            change(np.random.default_rng(seed), path)
        signal.alarm(SECONDS)
        name = (change.args[0] if isinstance(change, partial) else change).__name__
        print(json.dumps({"seed": seed, "how": name}), end=" ", flush=True)
        print(json.dumps(outcome(kind, path, wanted)), flush=True)
    signal.alarm(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, name in FILES.items():
        WRITERS[kind](folder / name)
    return folder


def storm(kind: str, folder: Path, first: int, count: int) -> Counter:
    """How often damaged files were refused and unharmed; fails on anything else, naming kind and seed."""
    command = [sys.executable, "-m", "tests.test_corruption", kind, str(folder), str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + count)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{kind}: ended by {done.returncode} at {lines[-1:]}\n{done.stderr[-2000:]}"
    assert not done.stderr, f"{kind}: {done.stderr[-2000:]}"
    wrong = [line for line in lines if '"WRONG' in line]
    assert not wrong, f"{kind}: {len(wrong)} of {count} wrong:\n" + "\n".join(wrong[:20])
    assert len(lines) == count
    return Counter(json.loads(line[line.rindex(' "'):]) for line in lines)


@pytest.mark.parametrize(("kind", "count"), [("state", 110), ("volumes", 110), ("latents", 50), ("samples", 50),
                                             ("npz", 50)])
def test_damaged_files_are_refused_by_name_or_read_unharmed(folder, kind, count):
    found = storm(kind, folder, 0, count)
    assert set(found) <= {"refused", "unharmed"} and found["refused"] > count / 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("state", 1000), ("volumes", 1000), ("latents", 300), ("samples", 300),
                                             ("npz", 300)])
def test_a_thousand_damaged_files_are_refused_by_name_or_read_unharmed(folder, kind, count):
    assert storm(kind, folder, 1000, count)["refused"] > count / 2


def test_silent_unclear_and_foreign_errors_would_be_seen(tmp_path, monkeypatch):
    def raising(error: Exception) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            raise error
        return read

    path = tmp_path / "x.npz"
    for reader, wanted in [
        (lambda _: [np.float32(1)], "unharmed"), (lambda _: [np.float64(1)], "WRONG: other"),
        (lambda _: [np.float32(2)], "WRONG: other"), (raising(ValueError(f"{path}: damaged")), "refused"),
        (raising(ValueError("damaged")), "WRONG: unclear"), (raising(OSError(f"{path}: a\nb")), "WRONG: unclear"),
        (raising(KeyError(str(path))), "WRONG: KeyError"),
    ]:
        monkeypatch.setitem(READERS, "npz", reader)
        assert outcome("npz", path, [np.float32(1)]).startswith(wanted)


def test_every_corruption_changes_the_file(folder, tmp_path):
    for kind in FILES:
        for i, change in enumerate(corruptions(kind)):
            path = tmp_path / FILES[kind]
            path.write_bytes((folder / FILES[kind]).read_bytes())
            with np.errstate(all="ignore"):
                change(np.random.default_rng(i), path)
            assert path.read_bytes() != (folder / FILES[kind]).read_bytes()
            path.unlink()


def test_chunk_of_zeros_is_noticed_though_fletcher32_calls_it_whole(folder, tmp_path):
    """What a disk leaves that lost a write: the chunk of a row, checksum included, is zero."""
    path = tmp_path / "volumes.h5"
    path.write_bytes((folder / FILES["volumes"]).read_bytes())
    with h5py.File(path) as file:
        chunk = file["train/images"].id.get_chunk_info_by_coord((2, 0, 0, 0, 0))
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with h5py.File(path) as file:
        assert not file["train/images"][2].any()  # and HDF5 said nothing
    volumes = VolumesFile(path)
    volumes.read("train", 1)
    with pytest.raises(ValueError, match=r"volumes\.h5: /train/images, row 2, is damaged"):
        volumes.read("train", 2)


@pytest.mark.parametrize(("kind", "name"), [("volumes", "train/images"), ("latents", "train/mean"),
                                            ("samples", "images")])
def test_numbers_that_are_no_numbers_but_were_written_so_are_refused_and_named_by_check(folder, tmp_path, kind, name):
    path = tmp_path / FILES[kind]
    path.write_bytes((folder / FILES[kind]).read_bytes())
    with h5py.File(path, "r+") as file:
        file[name][2, 0, 0] = np.nan
        h5.seal(file)
    with pytest.raises(ValueError, match=rf"{path}: .*not finite"):
        READERS[kind](path)
    assert ["not finite" in problem and str(path) in problem for problem in check(path).problems] == [True]


if __name__ == "__main__":
    damage_and_read(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
