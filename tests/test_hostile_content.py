"""Files whose checksums are right and whose content is not: every reader refuses them by file and key, or reads them.

The changes are drawn from seeds: of an attribute or array of a small file of each kind, that is then sealed anew.
"""

import json
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edm3d.formats import diff3, h5
from edm3d.formats.facts import POSTERIORS, SCALINGS, Facts, LatentScaling
from edm3d.formats.npz import HASH
from edm3d.formats.sample_meta import SampleMeta, SampleStage
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.inference.check import check
from edm3d.networks import latent_codec, posteriors
from edm3d.training.datasets.arrays import ArraysDataset
from edm3d.training.datasets.brainweb import BrainwebSlices
from edm3d.utils.files import arrays_hash, read_npz
from tests.test_corruption import READERS, write_latents_file, write_volumes

VALUES = (None, [], {}, "x", "", -1, 0, 2.5, float("nan"), float("inf"), 1e300, 10 ** 30, True, [[]], {"a": 1}, ["x"],
          [1.0, -1.0], [0.0, 0.0], "${oc.env:HOME}", "\x1b[31m", "\0", [None], [1] * 3, "a" * 5000, "\ud800")
TEXTS = ("", "{", "nan", "[" * 100_000, "null", "1" * 6000, "\x1b[2J")
ATTRIBUTES = (np.arange(3), np.float64("nan"), np.bytes_(b"\xff"), np.array([b"a", b"b"]), h5py.Empty("f4"), "vlen",
              1e300, -1, np.zeros(0), np.array([["x"]], "S1"))
TYPES = ("f8", "f2", "i2", ">f4", "u1", "S5", bool, complex)
NUMBERS = (np.nan, np.inf, -np.inf, 1e30, -1, 255)


def write_diff3_latents(path: Path) -> None:
    """latent.h5 of five items in two subsets."""
    with h5py.File(path, "w") as file:
        for name, count in (("train", 3), ("val", 2)):
            for column in ("mean", "std"):
                file[f"{name}/{column}"] = np.random.default_rng(count).random((count, 2, 3, 4), np.float32)
            file[f"{name}/min"], file[f"{name}/max"] = np.zeros(count), np.ones(count)


def write_diff3_samples(path: Path) -> None:
    """_samplesV.h5 of three items."""
    with h5py.File(path, "w") as file:
        file["samples"] = np.random.default_rng(0).random((3, 2, 3, 4), np.float32)
        file["min"], file["max"], file["model_id"] = np.float32([-2]), np.float32([3]), np.array([7])


def write_drawn(path: Path) -> None:
    """Samples with all that they can hold."""
    random = np.random.default_rng(0)
    facts = Facts("a.h5", "ab", ("echo",), ("none", "wall", "blood"), ("ED", "ES"), spatial_shape=(5, 6),
                  attribute_names=("age",), attribute_units=("a",))
    latents = random.random((3, 2, 2, 3), np.float32)
    write_samples(path, [1, 4, 5], {
        "images": random.random((3, 1, 5, 6), np.float32), "labels": random.integers(0, 3, (3, 5, 6), np.uint8),
        "latents": latents, "classes": np.array([0, 1, 1]), "trajectory": np.stack([latents] * 2, 1)}, np.eye(4),
        SampleMeta(facts, "net.pt", "ab" * 32, {"precision": "fp32", "tile": [4, 4], "tile_overlap": 0.5,
                                                "tile_mode": "blend"},
                   SampleStage("cd" * 32, LatentScaling([0.0, 1.0], [1.0, 2.0], [-3.0, 3.0]))))


def read_diff3_latents(path: Path) -> object:
    file = diff3.open_latents(path)
    return [file.read(split) for split in file.splits]


KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "volumes": ("volumes.h5", write_volumes, READERS["volumes"]),
    "latents": ("latents.h5", write_latents_file, READERS["latents"]),
    "samples": ("samples.h5", write_drawn, READERS["samples"]),
    "npz": ("samples.npz", write_drawn, READERS["npz"]),
    "diff3 latents": ("latent.h5", write_diff3_latents, read_diff3_latents),
    "diff3 samples": ("_samplesV.h5", write_diff3_samples, diff3.read_samples),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A whole file of each kind, which its reader takes."""
    folder = tmp_path_factory.mktemp("whole")
    for name, write, read in KINDS.values():
        write(folder / name)
        read(folder / name)
    return folder


# ---- changes ----


def changed_tree(chance: random.Random, tree: Any) -> Any:
    """Plain data with a value, a key or an entry put, lost or renamed somewhere."""
    tree, places = json.loads(json.dumps(tree)), []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places or chance.random() < 0.2:
        return chance.choice(VALUES)
    node, key = chance.choice(places)
    if chance.random() < 0.25:
        del node[key]
    elif isinstance(node, dict) and chance.random() < 0.2:
        node[f"{key}é"] = node.pop(key)
    else:
        node[key] = chance.choice(VALUES)
    return tree


def changed_array(chance: random.Random, array: np.ndarray) -> np.ndarray:
    """An array of another type, shape, length or content."""
    how = chance.randrange(8)
    if how == 0:
        return array.astype(chance.choice(TYPES)) if array.dtype.kind in "fiu" else np.arange(len(array))
    if how == 1:
        return array[None] if array.ndim else array.reshape(1)
    if how == 2:
        return array[:chance.choice([0, -1])] if array.ndim else array
    if how == 3:
        return np.concatenate([array, array[:1]]) if array.ndim else array
    if how == 4:
        return array.T.copy()
    if array.dtype.kind not in "fiu":
        return np.where(np.arange(len(array)) == 0, chance.choice([b"", b"\xff", array[-1]]), array)
    array, value = array.copy(), np.array(chance.choice(NUMBERS)).astype(array.dtype)
    array[... if chance.random() < 0.3 else tuple(chance.randrange(n) for n in array.shape)] = value
    return array


def change_attribute(chance: random.Random, file: h5py.File) -> None:
    """Lose or replace an attribute of the root, the first stage or a data set."""
    stage = [file["first_stage"]] if "first_stage" in file else []
    node = chance.choice([file, file, file, *stage, *h5.datasets(file)])
    name = chance.choice([*node.attrs, "more"])
    old, how = node.attrs.get(name), chance.randrange(6)
    if name in node.attrs:
        del node.attrs[name]
    if how in (1, 2, 3):
        try:
            tree = json.loads(old)
        except (TypeError, ValueError):
            tree = None
        h5.put_text(node, name, json.dumps(changed_tree(chance, tree)))
    elif how == 4:
        h5.put_text(node, name, chance.choice(TEXTS)[:30_000])
    elif how == 5:
        node.attrs[name] = chance.choice(ATTRIBUTES)


def change_data(chance: random.Random, file: h5py.File) -> None:
    """Lose or replace a data set, or a group."""
    every = [dataset for dataset in h5.datasets(file) if dataset.shape is not None]
    node = chance.choice([d for d in every if "first_stage" not in d.name] if chance.random() < 0.8 else every)
    name, values, how, rows = node.name, node[()], chance.randrange(10), "row_sha256" in node.attrs
    if how == 1 and node.parent != file:
        name, values = node.parent.name, np.arange(3)
    del file[name]
    if how == 2:
        file.create_group(name)
    elif how == 3:
        file[name] = h5py.Empty("f4")
    elif how:
        file[name] = values if how == 1 else changed_array(chance, np.asarray(values))
        if rows:
            file[name].attrs["row_sha256"] = np.zeros((0, 32), np.uint8)


def change_h5(chance: random.Random, path: Path) -> None:
    """One or two changes of an HDF5 file, and hashes that agree with what there is then."""
    with h5py.File(path, "r+", libver="latest") as file:
        ours = "format" in file.attrs
        for _ in range(chance.choice([1, 1, 2])):
            (change_attribute if ours and chance.random() < 0.5 else change_data)(chance, file)
        try:
            if ours:
                h5.seal(file)
        except (TypeError, ValueError, AttributeError):
            pass  # nothing could be sealed that holds this


def change_npz(chance: random.Random, path: Path) -> None:
    """One change of an npz file, and its hash."""
    arrays = {name: array for name, array in np.load(path).items() if name != HASH}
    name = chance.choice([*arrays, "meta", "meta", "meta"])
    if chance.random() < 0.1:
        del arrays[name]
    elif name == "meta":
        tree = changed_tree(chance, json.loads(str(arrays["meta"])))
        arrays["meta"] = np.array(chance.choice(TEXTS) if chance.random() < 0.2 else json.dumps(tree))
    else:
        arrays[name] = changed_array(chance, arrays[name])
    np.savez(path, **arrays, **{HASH: np.array(arrays_hash(arrays))})


def outcome(kind: str, whole: Path, path: Path, seed: int) -> str:
    """What a reader, and check, make of a changed file."""
    path.unlink(missing_ok=True)  # who could not read the last one may have it open still
    shutil.copy(whole, path)
    with np.errstate(all="ignore"):
        (change_npz if path.suffix == ".npz" else change_h5)(random.Random(seed), path)
    try:
        KINDS[kind][2](path)
        found = "read"
    except ValueError as error:
        text = str(error)
        found = "refused" if str(path) in text and "\n" not in text and len(text) < 900 else f"UNCLEAR {text[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    problems = check(path).problems
    return found if problems or found != "refused" else "CHECK calls it whole"


def storm(kind: str, folder: Path, place: Path, first: int, count: int) -> Counter:
    """How often changed files were refused and read; fails on anything else, naming the seed."""
    whole = folder / KINDS[kind][0]
    found = {seed: outcome(kind, whole, place / whole.name, seed) for seed in range(first, first + count)}
    wrong = {seed: what for seed, what in found.items() if what not in ("read", "refused")}
    assert not wrong, "\n".join(f"{seed}: {what}" for seed, what in wrong.items())
    return Counter(found.values())


@pytest.mark.parametrize(("kind", "count"), [("volumes", 16), ("latents", 12), ("samples", 20), ("npz", 30),
                                             ("diff3 latents", 12), ("diff3 samples", 12)])
def test_wrong_content_under_right_checksums_is_refused_by_file_and_key(folder, tmp_path, kind, count):
    assert storm(kind, folder, tmp_path, 0, count)["refused"] > count / 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_files_of_wrong_content_are_refused_by_file_and_key(folder, tmp_path, kind):
    assert storm(kind, folder, tmp_path, 1000, 170)["refused"] > 50


# ---- single cases ----


def put(file: h5py.File, name: str, place: tuple | int, value: Any) -> None:
    file[name][place] = value


def retold(file: h5py.File, **changes: Any) -> None:
    """Say other things of the data."""
    h5.put_json(file, "data", h5.get_json(file, "data") | changes)


def swept(file: h5py.File, attributes: list | None = None, **changes: Any) -> None:
    """Have samples 1, 4 and 5 be of a sweep of two values, with these attributes."""
    h5.put_json(file, "sampling", {"sweep": {"name": "age", "unit": "a", "values": [2.0, 3.0], "column": 0} | changes})
    if attributes:
        h5.write_array(file, "attributes", np.float32(attributes))


CASES = {
    "volumes": [
        (lambda f: put(f, "train/affines", (1, 0, 0), np.nan), "/train/affines: that of 'é-1' has values that are not"),
        (lambda f: put(f, "train/affines", (1, 0), 0), "/train/affines: that of 'é-1' cannot be inverted"),
        (lambda f: put(f, "train/affines", (1, 3, 0), 1), "/train/affines: that of 'é-1' has the last row"),
        (lambda f: put(f, "val/boxes", (0, 1, 2), 5), "/val/boxes: that of 'é-6' ends at [6, 4, 5], beyond the volume"),
        (lambda f: put(f, "val/boxes", (0, 0, 0), 7), "/val/boxes: that of 'é-6' runs from [7, 1, 0] to [6, 4, 4]"),
        (lambda f: put(f, "val/classes", 1, 2), "/val/classes: that of 'é-7' is 2, and there are 2 classes"),
        (lambda f: put(f, "val/attributes", (1, 0), np.inf), "/val/attributes: that of 'é-7' are [inf, nan], wanted"),
        (lambda f: put(f, "val/ids", 1, f["val/ids"][0]), ": id 'é-6' is there 2 times, wanted once"),
        (lambda f: put(f, "val/ids", 1, b""), "has an empty id"),
        (lambda f: put(f, "val/labels", (1, 0, 0, 0), 2), ": /val 'é-7': label value 2 outside the 2 classes"),
        (lambda f: put(f, "val/images", (1, 0, 0, 0, 0), np.nan), ": /val 'é-7': values that are not finite"),
        (lambda f: put(f, "val/images", (1, 0, 0, 0, 0), 3), ": /val 'é-7': values"),
        (lambda f: h5.put_json(f, "intensity", {"lo": 0, "hi": 1e300, "clip": True, "unit": ""}), ": intensity"),
        (lambda f: h5.put_json(f, "intensity", {"lo": 1, "hi": 0, "clip": True, "unit": ""}), ": intensity"),
        (lambda f: h5.put_json(f, "provenance", []), ": attribute 'provenance' of / is a list"),
        (lambda f: h5.put_json(f, "label_classes", ["a", "a"]), ": label_classes: 'a' is there 2 times, wanted names"),
        (lambda f: h5.put_json(f, "class_names", ["a", "a"]), ": class_names: 'a' is there 2 times, wanted names"),
    ],
    "latents": [
        (lambda f: put(f, "val/std", (1, 0, 0, 0), -1), ": /val: mean or std of '6' is not finite, or std negative"),
        (lambda f: put(f, "first_stage/encoder.0.bias", 0, np.nan), ": /first_stage/encoder.0.bias is float32 with"),
        (lambda f: h5.put_json(f, "channel_std", [1.0, -1.0]), ": channel_std is [1.0, -1.0], wanted 0 or"),
        (lambda f: h5.put_json(f, "channel_mean", [1.0]), "channel_mean has 1 numbers, channel_std 2"),
        (lambda f: h5.put_json(f, "limits", [2.0, 1.0]), "limits is [2.0, 1.0], wanted the lowest and the highest"),
        (lambda f: h5.put_json(f, "scaling", "${oc.env:HOME}"), "scaling='${oc.env:HOME}', this program reads"),
        (lambda f: retold(f, channels=["a", "a"]), ": channels: 'a' is there 2 times, wanted names that differ"),
        (lambda f: h5.put_json(f, "posterior", None), ": attribute 'posterior' of / is None, wanted str"),
        (lambda f: h5.put_json(f["first_stage"], "network", ["x"]), "attribute 'network' of /first_stage is a list"),
        (lambda f: h5.put_json(f, "round_trip", {"psnr_db": "x", "num": 1, "split": "val"}), ": round_trip.psnr_db is"),
    ],
    "samples": [
        (lambda f: put(f, "images", (1, 0, 0, 0), np.nan), ": images of seed 4 have values that are not finite"),
        (lambda f: put(f, "labels", (2, 0, 0), 3), ": labels of seed 5 have the value 3, and there are 3 classes"),
        (lambda f: put(f, "classes", 2, 2), "/classes: that of 'seed 5' is 2, and there are 2 classes"),
        (lambda f: put(f, "affine", (0, 0), np.inf), ": affine has values that are not finite"),
        (lambda f: put(f, "seeds", 0, -1), ": seeds do not rise"),
        (lambda f: h5.put_json(f, "snapshot", "a" * 5000), ": snapshot is 'aaaa"),
        (lambda f: h5.put_json(f, "sampling", {"tile": [4, 4]}), ": sampling has tile, wanted all or none"),
        (lambda f: retold(f, attribute_names=["a", "a"], attribute_units=["", ""]), ": attribute_names: 'a' is there"),
        (lambda f: retold(f, channels=["a"], condition_channels=["a"]), ": channels and condition_channels: 'a' is th"),
        (lambda f: h5.put_json(f, "sampling", {"conditions": {"source": "a.csv", "hash": "", "ids": []}}),
         ": sampling.conditions.ids is empty, wanted those of the rows of 'a.csv'"),
        (lambda f: swept(f, column=1), ": sampling.sweep.column is 1, and data names 1 attributes"),
        (lambda f: swept(f, column=-1), ": sampling.sweep.column is -1, and data names 1 attributes"),
        (lambda f: swept(f, name="size"), ": sampling.sweep.name is 'size', data says 'age' of attribute 0"),
        (lambda f: swept(f, unit="mm"), ": sampling.sweep.unit is 'mm', data says 'a' of attribute 0"),
        (lambda f: swept(f, values=[]), ": sampling.sweep.values is empty, wanted those of 'age'"),
        (lambda f: swept(f), ": sampling.sweep is of 'age', and there are no attributes"),
        (lambda f: swept(f, [[3], [2], [2]]), ": attributes: 'age' of sample 5 is 2, wanted 3 by sampling.sweep.val"),
    ],
}


@pytest.mark.parametrize(("kind", "change", "said"), [(kind, *case) for kind, cases in CASES.items() for case in cases])
def test_what_cannot_be_is_named_with_its_item(folder, tmp_path, kind, change, said):
    path = tmp_path / KINDS[kind][0]
    shutil.copy(folder / path.name, path)
    with h5py.File(path, "r+") as file:
        change(file)
        h5.seal(file)
    with pytest.raises(ValueError) as refusal:
        KINDS[kind][2](path)
    assert str(refusal.value).startswith(str(path)) and said in str(refusal.value)
    assert [problem.replace("'", "") for problem in check(path).problems] == [str(refusal.value).replace("'", "")]


def test_attributes_that_are_missing_are_no_problem(folder, tmp_path):
    path = tmp_path / "latents.h5"
    shutil.copy(folder / "latents.h5", path)
    before = check(path).problems  # of its first stage, which is a made-up one
    with h5py.File(path, "r+") as file:
        file["train/attributes"][1] = np.nan
        h5.seal(file)
    assert check(path).problems == before


def test_words_that_files_may_use_are_those_of_the_code_that_acts_on_them():
    assert set(posteriors.POSTERIORS) == set(POSTERIORS) and latent_codec.SCALINGS == SCALINGS


# ---- npz ----


def bomb(path: Path) -> None:
    """A megabyte of zeros in a kilobyte, of which the array's header says that it is four million times as much."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10 ** 12,)})
        stream.write(bytes(2 ** 20))


def more_than_there_is(path: Path) -> None:
    """A thousand bytes, of which the array's header says that they are ten million millions."""
    write_member(path, {"descr": "|u1", "fortran_order": False, "shape": (10 ** 13,)}, bytes(1000))


def write_member(path: Path, header: dict, values: bytes, name: str = "x.npy", mode: str = "w") -> None:
    with zipfile.ZipFile(path, mode) as archive, archive.open(name, "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(values)


def twice(path: Path) -> None:
    for mode in "wa":
        write_member(path, {"descr": "<f4", "fortran_order": False, "shape": (1,)}, bytes(4), mode=mode)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "text")


BAD_NPZ = [bomb, more_than_there_is, no_array,
           pytest.param(twice, marks=pytest.mark.filterwarnings("ignore:Duplicate")),
           lambda p: write_member(p, {"descr": "<f4", "fortran_order": False, "shape": (-1, -2)}, bytes(8)),
           lambda p: write_member(p, {"descr": "|O", "fortran_order": False, "shape": (1,)}, b"cos\nsystem\n."),
           lambda p: np.savez(p, x=np.zeros(3, [("a", "f4")])),
           lambda p: write_member(p, {"descr": "<f4", "fortran_order": False, "shape": (2 ** 62, 2 ** 62)}, bytes(8))]


@pytest.mark.parametrize("write", BAD_NPZ)
def test_an_npz_that_claims_what_it_does_not_hold_is_refused_at_small_cost(tmp_path, write):
    write(tmp_path / "x.npz")
    for read in (read_npz, SamplesFile, ArraysDataset, BrainwebSlices):
        with pytest.raises(ValueError, match=r"x\.npz: "):
            read(tmp_path / "x.npz")


def test_names_of_members_lead_nowhere_and_any_order_of_axes_is_read(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    np.savez_compressed(tmp_path / "x.npz", **{"../../x": array, "turned": np.asfortranarray(array)})
    assert all(np.array_equal(found, array) for found in read_npz(tmp_path / "x.npz").values())


def test_an_array_that_there_is_no_memory_for_is_not_begun(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(10 ** 6, np.uint8))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10 ** 6 - 1}))
    with pytest.raises(ValueError, match=r"x\.npz: .*takes 1,000,000 bytes of memory, and 999,999 are free"):
        read_npz(tmp_path / "x.npz")


def test_samples_that_change_after_they_were_opened_are_not_read_on(folder, tmp_path):
    path = tmp_path / "samples.npz"
    shutil.copy(folder / path.name, path)
    file, raw = SamplesFile(path), bytearray(path.read_bytes())
    place = raw.index(file.row("images", 1).tobytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"samples\.npz: was changed after it was opened"):
        file.row("images", 1)
    path.unlink()
    with pytest.raises(ValueError, match=r"samples\.npz: no such file"):
        file.row("images", 1)
