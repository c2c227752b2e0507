"""Reading official EDM pickles: friendly ones whole, hostile ones never run, damaged ones refused by name."""

import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import Counter, OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edm3d.formats.edm_pickle import read_edm_pickle

# ---- files as the official program writes them ----

BUFFERS = ("resample_filter", "freqs", "u")


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("a pickle was run")


@contextmanager
def persistence():
    """Let pickle find the function that official files name, while they are written."""
    modules = {name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence")}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    sys.modules.update(modules)
    try:
        yield
    finally:
        _reconstruct_persistent_obj.__module__ = __name__
        for name in modules:
            del sys.modules[name]


class Persistent:
    """An object of any class, pickled with its source text and its __dict__."""

    module_src = "class Nothing: pass"

    def __init__(self, class_name: str, *args: object, **kwargs: object):
        super().__init__()
        self._class_name, self._init_args, self._init_kwargs = class_name, args, kwargs

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.module_src, "class_name": self._class_name,
                "state": self.__dict__}
        return _reconstruct_persistent_obj, (meta,)


class PersistentModule(Persistent, nn.Module):
    """The same for modules."""


def official_module(config: dict, state_dict: dict[str, torch.Tensor]) -> PersistentModule:
    """A tree of modules with such weights: torch's containers at enc and dec, persistent modules elsewhere."""
    root = PersistentModule(config["class_name"], **config["kwargs"])
    for name, value in state_dict.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else PersistentModule(part))
            module = module._modules[part]
        if leaf in BUFFERS:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value))
            module.register_parameter("absent", None)
    return root


def official_bytes(content: object, protocol: int = 4) -> bytes:
    """The pickle of some content."""
    with persistence():
        return pickle.dumps(content, protocol)


def text(value: str) -> bytes:
    """The instruction that pushes a short text."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def official_file(path: Path, config: dict, state_dict: dict[str, torch.Tensor]) -> Path:
    """An official file: the network, and beside it what training needed."""
    pipe = Persistent("AugmentPipe", p=np.float64(0.12), xflip=1e8)
    pipe.filters = {"sym2": torch.ones(4)}
    content = {"ema": official_module(config, state_dict), "loss_fn": Persistent("EDMLoss", P_mean=-1.2),
               "augment_pipe": pipe, "dataset_kwargs": {"path": "cifar10.zip", "use_labels": True, "xflip": False}}
    path.write_bytes(official_bytes(content))
    return path


CONFIG = {"class_name": "EDMPrecond", "kwargs": {"img_resolution": 16, "channel_mult": [1, 2], "dropout": 0.1,
                                                 "model_type": "SongUNet", "use_fp16": False, "augment": {"p": None}}}
WEIGHTS = {"u": torch.arange(3.), "model.map_layer0.weight": torch.randn(4, 3),
           "model.enc.16x16_conv.weight": torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last),
           "model.enc.16x16_conv.bias": torch.randn(2),
           "model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 2, 2),
           "model.dec.16x16_aux.weight": torch.randn(()).double(), "model.out.weight": torch.randn(8).half()[2:5]}


@pytest.fixture
def file(tmp_path) -> Path:
    """A place for a file."""
    return tmp_path / "network.pkl"


def refused(path: Path, content: bytes | None = None) -> str:
    """The error of a file with such content; it names the file and is one line."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_edm_pickle(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400, text
    return text.removeprefix(f"{path}: ")


def small(**changes: object) -> PersistentModule:
    """A network of one weight, with other entries in its __dict__."""
    module = official_module(CONFIG, {"weight": torch.ones(2)})
    module.__dict__.update(changes)
    return module


# ---- friendly ----


def test_config_and_weights_come_out_as_they_went_in(file):
    config, weights = read_edm_pickle(official_file(file, CONFIG, WEIGHTS))
    assert config == CONFIG
    assert set(weights) == set(WEIGHTS)
    for name, weight in WEIGHTS.items():
        assert torch.equal(weights[name], weight) and weights[name].dtype == weight.dtype
        assert type(weights[name]) is torch.Tensor and not weights[name].requires_grad


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_are_read_too(file, protocol):
    network = official_module(CONFIG, {"weight": torch.ones(2)})
    file.write_bytes(official_bytes({"ema": network}, protocol))
    assert read_edm_pickle(file).config == CONFIG


def test_buffers_that_are_not_persistent_are_left_out(file):
    network = official_module(CONFIG, {"u": torch.ones(2), "weight": torch.ones(2)})
    network.register_buffer("scratch", torch.zeros(3), persistent=False)
    file.write_bytes(official_bytes({"ema": network}))
    assert list(read_edm_pickle(file).state_dict) == ["weight", "u"]


def test_arguments_by_place_and_numpy_numbers(file):
    network = PersistentModule("EDMPrecond", 32, 3, sigma_data=np.float64(0.25), M=np.int32(-7), flag=np.bool_(True),
                               big=np.dtype(">f4").type(1.5))
    file.write_bytes(official_bytes({"ema": network}))
    kwargs = read_edm_pickle(file).config["kwargs"]
    assert kwargs == {"img_resolution": 32, "img_channels": 3, "sigma_data": 0.25, "M": -7, "flag": True, "big": 1.5}
    assert {type(v) for v in kwargs.values()} == {int, float, bool}
    assert "at most 4" in refused(file, official_bytes({"ema": PersistentModule("EDMPrecond", 1, 2, 3, 4, 5)}))


def test_the_other_spelling_of_numpy_and_foreign_byte_order(file):
    good = official_bytes({"ema": PersistentModule("EDMPrecond", sigma_data=np.float64(0.25))})
    old = good.replace(text("numpy._core.multiarray"), text("numpy.core.multiarray")).replace(text("<"), text(">"))
    assert len(old) == len(good) - 1
    file.write_bytes(old)
    assert read_edm_pickle(file).config["kwargs"]["sigma_data"] == np.array(0.25).byteswap().item()


def test_nothing_of_the_source_text_runs_or_stays(file, tmp_path):
    class Armed(PersistentModule):
        module_src = f"open({str(tmp_path / 'marker')!r}, 'w')"

    network = Armed("EDMPrecond")
    network.add_module("inner", Armed("SongUNet"))
    file.write_bytes(official_bytes({"ema": network}))
    assert "marker" not in repr(read_edm_pickle(file))
    assert os.listdir(tmp_path) == ["network.pkl"]


# ---- hostile: nothing is run, the error names what was asked for ----


class Asks:
    """Pickles as a call."""

    def __init__(self, function: object, *args: object):
        self.call = function, args

    def __reduce__(self):
        return self.call


def stored_as(data: bytes) -> Asks:
    """A weight whose storage is some bytes."""
    return Asks(torch._utils._rebuild_tensor_v2, Asks(torch.storage._load_from_bytes, data), 0, (1,), (1,), False, {})


CALLS = {
    "posix.system": (os.system, "touch marker"),
    "builtins.eval": (eval, "open('marker', 'w')"),
    "builtins.exec": (exec, "open('marker', 'w')"),
    "io.open": (open, "marker", "w"),
    "builtins.getattr": (getattr, os, "system"),
    "subprocess.Popen": (subprocess.Popen, ["touch", "marker"]),
    "torch.serialization.load": (torch.load, "marker"),
    "functools.partial": (functools.partial, os.system, "touch marker"),
    "operator.attrgetter": (operator.attrgetter, "system"),
    "importlib.import_module": (importlib.import_module, "antigravity"),
    "torch.nn.modules.linear.Linear": (nn.Linear, 1, 1),
    "torch._utils._rebuild_sparse_tensor": (torch._utils._rebuild_sparse_tensor, torch.strided, ()),
    "collections.Counter": (Counter, "a"),
}
PLACES = {
    "instead of all": lambda ask: ask,
    "beside ema": lambda ask: {"ema": small(), "loss_fn": ask},
    "as ema": lambda ask: {"ema": ask},
    "as a key": lambda ask: {"ema": small(), (ask,): 1},
    "as an argument": lambda ask: {"ema": PersistentModule("EDMPrecond", sigma_data=ask)},
    "as an attribute": lambda ask: {"ema": small(note=ask)},
    "as a hook": lambda ask: {"ema": small(_forward_hooks={0: ask})},
    "as a weight": lambda ask: {"ema": small(_parameters={"weight": ask})},
    "in a child": lambda ask: {"ema": small(_modules={"inner": nn.ModuleList([small(_buffers={"u": ask})])})},
    "as module_src": lambda ask: {"ema": type("Armed", (PersistentModule,), {"module_src": ask})("EDMPrecond")},
}


def asks(call: tuple) -> Asks:
    """A call as an object; modules among its arguments, which do not pickle, by name."""
    return Asks(*[part.__name__ if isinstance(part, types.ModuleType) else part for part in call])


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name(file, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert f"asks for {name};" in refused(file, official_bytes({"ema": small(note=asks(CALLS[name]))}))
    assert os.listdir(tmp_path) == ["network.pkl"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", PLACES)
def test_a_call_is_found_wherever_it_is_and_at_any_protocol(file, tmp_path, monkeypatch, place, protocol):
    monkeypatch.chdir(tmp_path)
    content = PLACES[place](asks(CALLS["posix.system"]))
    wanted = "asks for posix.system;" if protocol > 2 else "asks for "  # older ones ask for helpers before
    assert wanted in refused(file, official_bytes(content, protocol))
    assert os.listdir(tmp_path) == ["network.pkl"]


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "torch.nn.modules.linear.Linear"])
@pytest.mark.parametrize("archive", [False, True])
def test_calls_inside_a_storage_are_refused(file, tmp_path, monkeypatch, name, archive):
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(asks(CALLS[name]), inner, _use_new_zipfile_serialization=archive)
    message = refused(file, official_bytes({"ema": small(_parameters={"weight": stored_as(inner.getvalue())})}))
    assert f"asks for {name.removeprefix('builtins.')};" in message
    assert os.listdir(tmp_path) == ["network.pkl"]


TOUCH = b"S'touch marker'\n"
BY_HAND = {
    "protocol 0": (b"cos\nsystem\n(" + TOUCH + b"tR.", "asks for os.system;"),
    "INST": (b"\x80\x04(" + TOUCH + b"ios\nsystem\n.", "asks for os.system;"),
    "INST of a class on the list": (b"\x80\x04(icollections\nOrderedDict\n.", "asks for collections.OrderedDict;"),
    "OBJ": (b"\x80\x04(cos\nsystem\n" + TOUCH + b"o.", "asks for os.system;"),
    "OBJ of a class on the list": (b"\x80\x04(ccollections\nOrderedDict\no.", "instruction OBJ"),
    "NEWOBJ": (b"\x80\x04cos\nsystem\n(" + TOUCH + b"t\x81.", "asks for os.system;"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
    "from the memo": (b"\x80\x04" + text("system") + b"\x940" + text("os") + b"\x940h\x01h\x00\x93" + TOUCH + b"\x85R.",
                      "asks for os.system;"),
    "dotted": (b"\x80\x04" + text("os") + text("path.join") + b"\x93.", "asks for os.path.join;"),
    "dotted from the list": (b"\x80\x04" + text("collections") + text("OrderedDict.pop") + b"\x93.",
                             "asks for collections.OrderedDict.pop;"),
    "through a module of the list": (b"\x80\x04ctorch._utils\nsys.modules\n.", "asks for torch._utils.sys.modules;"),
    "named by numbers": (b"\x80\x04K\x01K\x02\x93.", "asks for int.int"),
    "with terminal codes": (b"\x80\x04\x8c\x04\x1b[2J\x8c\x01x\x93.", r"asks for '\x1b[2J.x';"),
    "extension code": (b"\x80\x04\x82\xf0" + TOUCH + b"\x85R.", "instruction EXT1"),
    "persistent id": (b"\x80\x04\x8c\x01aQ.", "instruction BINPERSID"),
    "persistent id in text": (b"\x80\x04Pa\n.", "instruction PERSID"),
    "a call of text": (b"\x80\x04\x8c\x09os.system" + TOUCH + b"\x85R.", "calls str"),
    "a call of what was made": (b"\x80\x04ccollections\nOrderedDict\n)R)R.", "calls collections.OrderedDict"),
    "state for a class": (b"\x80\x04ccollections\nOrderedDict\n}\x8c\x08__init__K\x01sb.", "gives a state to the name"),
    "state given twice": (b"\x80\x04ccollections\nOrderedDict\n)R}b}b.", "gives a state to collections.OrderedDict"),
    "members for a class": (b"\x80\x04ccollections\nOrderedDict\n\x8c\x01aK\x01s.", "puts members into the name"),
    "members for text": (b"\x80\x04\x8c\x01aK\x01a.", "puts members into str"),
    "buffers from outside": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
}


@pytest.mark.parametrize("how", BY_HAND)
def test_instructions_written_by_hand(file, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(copyreg._inverted_registry, 240, ("os", "system"))
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)
    content, wanted = BY_HAND[how]
    assert wanted in refused(file, content)
    assert os.listdir(tmp_path) == ["network.pkl"]


def test_state_that_would_overwrite_what_python_needs_stays_on_paper(file):
    container = nn.ModuleDict()
    container.__dict__.update({"__class__": 1, "__dict__": {"_modules": 2}, "__slots__": 3, "_modules": {"a": small()}})
    file.write_bytes(official_bytes({"ema": small(_modules={"enc": container})}))
    assert list(read_edm_pickle(file).state_dict) == ["weight", "enc.a.weight"]


# ---- hostile: sizes ----


@pytest.mark.parametrize("content", [
    b"\x80\x04Nr\xff\xff\xff\x7f0N.",  # a place far out in the memo
    b"\x80\x04\x8e" + (2 ** 62).to_bytes(8, "little") + b"abc.",  # bytes beyond the end
    b"\x80\x04\x8d" + (2 ** 63 + 1).to_bytes(8, "little") + b"abc.",
    b"\x80\x04\x95" + (2 ** 62).to_bytes(8, "little") + b"N.",
    b"\x80\x04\x8b\xff\xff\xff\x7fabc.",  # a number of two billion bytes
    b"\x80\x04)" + b"\x85" * 100_000 + b".",  # tuples in tuples
    b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
])  # fmt: skip
def test_claimed_sizes_cost_nothing(file, content):
    refused(file, content)


CONTAINER = (b"ctorch.nn.modules.container\nModuleDict\n)\x81}(" + text("_parameters") + b"}" + text("_buffers") + b"}"
             + text("_modules") + b"}")  # SETITEM(S) and BUILD still to come
DEEP = (CONTAINER + text("m")) * 2000 + b"N" + b"sub" * 2000
SHARED = b"N" + b"".join(b"p7\n0" + CONTAINER + b"(" + text("a") + b"g7\n" + text("b") + b"g7\nu" + b"ub"
                         for _ in range(40))
GROWING = {
    "arguments in arguments": (12345, b"]" * 5000 + b"a" * 4999, "nested too deeply"),
    "the same arguments again and again": (12345, b")" + b"22\x87" * 40, "more than 300000 entries"),
    "modules in modules": (54321, DEEP, "nested too deeply"),
    "the same modules again and again": (54321, SHARED, "more than 300000 entries"),
}


@pytest.mark.parametrize("what", GROWING)
def test_nesting_and_repetition_are_bounded(file, what):
    place, value, wanted = GROWING[what]
    network = PersistentModule("EDMPrecond", sigma_data=12345)
    network.__dict__["_modules"] = {"m": 54321}
    content = official_bytes({"ema": network}).replace(b"M" + place.to_bytes(2, "little"), value)
    assert wanted in refused(file, content)


def rebuilt(*view: object, values: int = 6, hooks: object = None) -> Asks:
    """A weight as the file describes it: a view (offset, size, stride) of a storage."""
    return Asks(torch._utils._rebuild_tensor_v2, torch.zeros(values)._typed_storage(), *view, False, hooks)


@pytest.mark.parametrize("view", [
    (1, (2, 3), (3, 1)), (0, (7,), (1,)), (0, (2, 3), (4, 1)), (6, (1,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)),
    (0, (2 ** 40, 2 ** 40), (0, 0)), (0, (3, 3), (0, 0)), (0, (2, 3), (1,)), (0, (0,), (1,)), (0, (2 ** 70,), (1,)),
    (0, (1,) * 100, (1,) * 100), (0, (True,), (1,)), (0, (1.0,), (1,)), ("0", (1,), (1,)),
])  # fmt: skip
def test_tensors_must_lie_in_their_storage(file, view):
    wanted = "weight: a tensor that does not lie in its storage of 6 values"
    assert wanted in refused(file, official_bytes({"ema": small(_parameters={"weight": rebuilt(*view)})}))


def test_hooks_and_views_of_tensors(file):
    weight = rebuilt(1, (2, 2), (1, 3), hooks={0: "not looked at"})
    file.write_bytes(official_bytes({"ema": small(_parameters={"weight": weight})}))
    assert read_edm_pickle(file).state_dict["weight"].shape == (2, 2)


def test_one_storage_cannot_be_many_weights(file):
    shared = rebuilt(0, (6000,), (1,), values=6000)
    many = {f"w{i}": shared for i in range(100)}
    assert "larger than the file" in refused(file, official_bytes({"ema": small(_parameters=many)}))


STORAGES = {
    "a tensor": (torch.ones(3), "torch.float32"),
    "a dict": ({"a": 1}, "dict"),
}


@pytest.mark.parametrize("what", STORAGES)
def test_storages_hold_floating_point_numbers(file, what):
    content, found = STORAGES[what]
    inner = io.BytesIO()
    torch.save(content, inner, _use_new_zipfile_serialization=False)
    message = refused(file, official_bytes({"ema": small(_parameters={"weight": stored_as(inner.getvalue())})}))
    assert f"holds {found}, wanted floating-point" in message


def test_storages_in_torchs_newer_form(file):
    inner, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.full((1000,), 7.0)._typed_storage(), inner)
    file.write_bytes(official_bytes({"ema": small(_parameters={"weight": stored_as(inner.getvalue())})}))
    assert read_edm_pickle(file).state_dict["weight"].tolist() == [7]
    with zipfile.ZipFile(inner) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in archive.namelist():
            target.writestr(part, archive.read(part))
    message = refused(file, official_bytes({"ema": small(_parameters={"weight": stored_as(packed.getvalue())})}))
    assert "weight: its storage is damaged (BadZipFile)" in message


def test_weights_are_floating_point_numbers(file):
    wanted = "u: its storage holds torch.int64, wanted floating-point"
    assert wanted in refused(file, official_bytes({"ema": small(_buffers={"u": torch.arange(3)})}))


# ---- files that are something else ----


OTHERS = {
    "empty": (b"", "this is empty"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip"),
    "page": (b"\n <!DOCTYPE html><html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "text": (b"hello world", "not a pickle: starts with b'hello world'"),
    "text with instructions": (b"time is what clocks measure", "not a pickle: starts with b'time is what clocks"),
    "zeros": (bytes(100), r"not a pickle: starts with b'\x00"),
    "no stop": (b"\x80\x04N", "not a pickle, or damaged"),
    "nothing on the stack": (b"\x80\x04.", "not a pickle, or damaged"),
    "key without a value": (b"\x80\x04}(NNNu.", "a key without a value"),
    "two things on the stack": (b"\x80\x04NN.", "ends too early"),
    "number": (pickle.dumps(5), "the pickle is int, wanted a dict"),
    "list": (pickle.dumps([{"ema": 1}]), "the pickle is list, wanted a dict"),
    "other keys": (pickle.dumps({"G": 1, "D": 2}), "no network 'ema'; its keys are G, D"),
    "key of another type": (pickle.dumps({1: 2}), "key of type int"),
    "dict from arguments": (pickle.dumps(Asks(OrderedDict, [("ema", 1)])), "wanted a dict that is filled key by key"),
    "plain ema": (pickle.dumps({"ema": {"weight": 1}}), "ema is builtins.dict, wanted a network"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_files_are_called_what_they_are(file, what):
    content, wanted = OTHERS[what]
    assert wanted in refused(file, content)


def test_torch_files_folders_and_missing_files(tmp_path):
    torch.save({"ema": torch.ones(1)}, tmp_path / "snapshot.pt")
    assert "torch file" in refused(tmp_path / "snapshot.pt")
    torch.save({"ema": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "wanted a dict" in refused(tmp_path / "old.pt")
    assert "a folder, wanted a file" in refused(tmp_path) and "no such file" in refused(tmp_path / "absent.pkl")


MODULES = {
    "a container": (nn.ModuleDict(), "ema is torch.nn.modules.container.ModuleDict, wanted a network"),
    "no class name": (Persistent(5, a=1), "class_name is int"),
    "no arguments": (small(_init_kwargs=None), "a dict _init_kwargs"),
    "bytes as argument": (PersistentModule("EDMPrecond", a=b"x"), "argument a holds bytes"),
    "no weights": (Persistent("EDMPrecond"), "ema: _parameters is NoneType, wanted a dict"),
    "a child that is no module": (small(_modules={"inner": {"weight": 1}}), "inner is builtins.dict, wanted a module"),
    "a weight that is no tensor": (small(_parameters={"weight": 1.0}), "weight is float, wanted a tensor"),
    "a name with a dot": (small(_parameters={"a.b": None}), "_parameters has the name a.b"),
    "a name without end": (small(_parameters={"a" * 1000: None}), "of at most 100 letters"),
    "odd set": (small(_non_persistent_buffers_set=["u"]), "_non_persistent_buffers_set is list"),
}


def test_what_is_no_module_is_refused(file):
    for what, (ema, wanted) in MODULES.items():
        assert wanted in refused(file, official_bytes({"ema": ema})), what


def test_numpy_scalars_that_are_no_numbers(file):
    scalar = np.float64(1).__reduce__()[0]
    for value in (Asks(scalar, np.dtype("O"), b"12345678"), Asks(scalar, np.dtype("f8"), b"123"), np.str_("a")):
        content = official_bytes({"ema": PersistentModule("EDMPrecond", sigma_data=value)})
        assert "sigma_data holds a numpy scalar that is not a number" in refused(file, content)


# ---- damaged ----


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """The bytes of a friendly file."""
    return official_file(tmp_path_factory.mktemp("sound") / "network.pkl", CONFIG, WEIGHTS).read_bytes()


def test_truncated_files_are_refused(file, sound):
    for length in range(0, len(sound), 97):
        refused(file, sound[:length])


def test_a_flipped_byte_gives_a_network_or_an_error_in_one_line(file, sound, recwarn):
    random, loaded = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(sound)
        content[random.integers(len(sound))] ^= random.integers(1, 256)
        file.write_bytes(content)
        try:
            loaded += bool(read_edm_pickle(file).config)
        except ValueError as e:
            assert str(e).startswith(f"{file}: ") and "\n" not in str(e)
    assert 20 < loaded < 280 and not recwarn.list
