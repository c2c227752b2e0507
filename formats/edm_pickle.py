"""Official EDM network pickles, read as plain data: what a file wants called is written down, never called.

The format: a dict whose `ema` is a module, made by one call of torch_utils.persistence with a dict that holds
class_name, module_src (program text, ignored here) and state, the module's __dict__. Modules inside are made the same
way, or are torch.nn containers; the storage of a tensor is a torch file of its own, in bytes.
"""

import io
import mmap
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.utils.checks import listed

MODULE = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = {f"torch.nn.modules.container.{name}"
              for name in ("ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential")}
PARAMETER, TENSOR = "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"
NUMBERS, DTYPE = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}, "numpy.dtype"
DICTS, SETS = {"builtins.dict", "collections.OrderedDict"}, {"builtins.set", "builtins.frozenset"}
MAKERS = {MODULE, PARAMETER, TENSOR, STORAGE, DTYPE, *CONTAINERS, *NUMBERS, *DICTS, *SETS}  # all that a file may name

OTHER_FILES = {b"PK": "a torch file or other zip archive", b"\x1f\x8b": "compressed by gzip, unpack it first",
               b"<": "a web page, download the file itself", b"version https://git-lfs": "a Git LFS pointer",
               b"\x89HDF": "an HDF5 file"}
POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16")  # first arguments of every preconditioner
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
MOST_ENTRIES = 300_000  # of dicts and lists, opened in one file; a large network has some ten thousand
MOST_AXES, MOST_LETTERS = 8, 100  # of a weight, of a name
LARGEST_ARGUMENT = 2 ** 16  # whole number, as of channels, classes or noise levels


class EdmPickle(NamedTuple):
    """An official network: {"class_name", "kwargs"} of its constructor, and its weights by their dotted names."""

    config: dict
    state_dict: dict[str, torch.Tensor]


def read_edm_pickle(path: str | Path) -> EdmPickle:
    """Read the averaged network of an official EDM pickle; ValueError for any other file, naming what it asks for."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, wanted a file' if path.is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            check_start(file.read(64))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # reads no more than there is
                return Gatherer(len(data)).network(Transcript().read(data))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    except RecursionError as e:
        raise ValueError(f"{path}: nested too deeply for a network") from e


def check_start(start: bytes) -> None:
    """ValueError for a file that by its first bytes is of another well-known kind, or empty."""
    found = next((kind for mark, kind in OTHER_FILES.items() if start.lstrip().startswith(mark)), None)
    if found or not start:
        raise ValueError(f"wanted an official EDM network (.pkl), this is {found or 'empty'}")


def shown(text: str) -> str:
    """Text out of a file, fit for a terminal."""
    return text if text.isprintable() and len(text) <= 100 else ascii(text[:100])


def refusal(name: str) -> ValueError:
    """The error for a class or function that no EDM network needs."""
    return ValueError(f"asks for {shown(name)}; an EDM network needs no such thing, and nothing in the file was run")


# ---- the instructions of a pickle ----


@dataclass(eq=False, slots=True)
class Maker:
    """Dotted name of a class or function that a file wants something made by."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """Something a file wants made: by what, of which arguments; then its state, and members or pairs, to be put in."""

    maker: str
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)


def kind(value: Any) -> str:
    """What a value out of a file is, for errors."""
    if isinstance(value, Made):
        return value.maker
    return f"the name {value.name}" if isinstance(value, Maker) else type(value).__name__


class Transcript:
    """Follows a pickle's instructions on a stack of numbers, texts, bytes, lists and tuples.

    Instructions that would import or call something leave a Maker or a Made on the stack. Nothing is hashed, compared
    or allocated by sizes that the file claims.
    """

    LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
                "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
                "SHORT_BINBYTES", "BINBYTES8"}
    CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

    def __init__(self):
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}

    def read(self, data: mmap.mmap) -> Any:
        """What the pickle describes; ValueError where it is damaged or asks for what no EDM network needs."""
        for name, arg in instructions(data):
            try:
                self.follow(name, arg)
            except (IndexError, KeyError) as e:
                raise damage(data, f"{name} without what it needs") from e
        if len(self.stack) != 1 or self.outer:
            raise damage(data, "it ends too early")
        return self.stack[0]

    def follow(self, name: str, arg: Any) -> None:
        """Follow one instruction."""
        match name:
            case _ if name in self.LITERALS:
                self.push(arg)
            case _ if name in self.CONSTANTS:
                self.push(self.CONSTANTS[name])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self.marked()
            case "DUP":
                self.push(self.stack[-1])
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.push(self.memo[arg])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(self.popped(int(name[-1]))))
            case "TUPLE":
                self.push(tuple(self.marked()))
            case "EMPTY_LIST":
                self.push([])
            case "LIST":
                self.push(self.marked())
            case "EMPTY_DICT":
                self.push(Made("builtins.dict"))
            case "DICT":
                self.push(Made("builtins.dict", items=pairs(self.marked())))
            case "EMPTY_SET":
                self.push(Made("builtins.set"))
            case "FROZENSET":
                self.push(Made("builtins.frozenset", items=self.marked()))
            case "APPEND":
                self.put_in(self.popped(1), {"list"})
            case "APPENDS":
                self.put_in(self.marked(), {"list"})
            case "ADDITEMS":
                self.put_in(self.marked(), SETS)
            case "SETITEM":
                self.put_in(pairs(self.popped(2)), DICTS)
            case "SETITEMS":
                self.put_in(pairs(self.marked()), DICTS)
            case "GLOBAL" | "INST":
                self.name_maker(name, arg.split(" ", 1))
            case "STACK_GLOBAL":
                self.name_maker(name, self.popped(2))
            case "REDUCE" | "NEWOBJ":
                self.make(*self.popped(2))
            case "BUILD":
                self.give_state(*self.popped(1))
            case _:
                raise ValueError(f"holds the instruction {name}, which no EDM network needs")

    def push(self, value: Any) -> None:
        """Put a value on the stack as it then is: what computes the value may have changed it."""
        self.stack.append(value)

    def popped(self, count: int) -> list[Any]:
        """The uppermost values, taken from the stack."""
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """The values above the last mark, taken from the stack."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def put_in(self, values: list[Any], takers: set[str]) -> None:
        """Put members or pairs into the uppermost value."""
        top = self.stack[-1]
        if kind(top) not in takers:
            raise ValueError(f"puts members into {kind(top)}, which is not a container that an EDM network needs")
        (top if isinstance(top, list) else top.items).extend(values)

    def name_maker(self, instruction: str, parts: list[Any]) -> None:
        """Leave the name of a maker (its module and its name there) on the stack, if it is on the list."""
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"asks for {'.'.join(map(kind, parts))}, wanted names of classes")
        name = ".".join(parts)
        if name not in MAKERS or instruction == "INST":
            raise refusal(name)
        self.push(Maker(name))

    def make(self, maker: Any, args: Any) -> None:
        """Note what is to be made of which arguments."""
        if not isinstance(maker, Maker) or not isinstance(args, tuple):
            raise ValueError(f"calls {kind(maker)} with {kind(args)}, wanted a named class and a tuple")
        self.push(Made(maker.name, args))

    def give_state(self, state: Any) -> None:
        """Note the state of the uppermost value."""
        top = self.stack[-1]
        if not isinstance(top, Made) or top.state is not None:
            raise ValueError(f"gives a state to {kind(top)}, which takes none")
        top.state = state


def instructions(data: mmap.mmap) -> Iterator[tuple[str, Any]]:
    """Names and arguments of a pickle's instructions; ValueError where it is damaged."""
    try:
        for opcode, arg, _ in pickletools.genops(data):
            yield opcode.name, arg
    except (ValueError, OverflowError) as e:
        raise damage(data, shown(str(e))) from e


def damage(data: mmap.mmap, why: str) -> ValueError:
    """The error for data that make no sense as a pickle; those of protocol 2 and later start with one and the same."""
    if data[:1] == b"\x80":
        return ValueError(f"not a pickle, or damaged ({why})")
    return ValueError(f"not a pickle: starts with {data[:20]!r}")


def pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    """Keys and values that lie on the stack in turn, as pairs."""
    if len(values) % 2:
        raise ValueError("not a pickle, or damaged (a key without a value)")
    return list(zip(values[::2], values[1::2]))


# ---- the network that it describes ----


class Gatherer:
    """Puts a network's settings and weights together from what its pickle, of `size` bytes, describes."""

    def __init__(self, size: int):
        self.size = size
        self.entries = self.weight_bytes = 0
        self.storages: dict[int, torch.Tensor] = {}  # by identity of their bytes, which a file can use many times

    def network(self, root: Any) -> EdmPickle:
        """The network behind the key `ema`; whatever lies beside it is left alone."""
        content = self.mapping(root, "the pickle")
        if "ema" not in content:
            raise ValueError(f"holds no network 'ema'; its keys are {shown(listed(content))}")
        ema = content["ema"]
        if kind(ema) != MODULE:
            raise ValueError(f"ema is {kind(ema)}, wanted a network made by {MODULE}")
        name = self.persistent(ema, "ema").get("class_name")
        if not isinstance(name, str):
            raise ValueError(f"ema: class_name is {kind(name)}, wanted a str")
        state = self.module_state(ema, "ema")
        return EdmPickle({"class_name": name, "kwargs": self.arguments(state)}, dict(self.weights(ema, "")))

    def arguments(self, state: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments by name."""
        args = self.plain(state.get("_init_args", ()), "_init_args")
        kwargs = self.plain(state.get("_init_kwargs"), "_init_kwargs")
        if not isinstance(args, list) or len(args) > len(POSITIONAL) or not isinstance(kwargs, dict):
            raise ValueError(f"ema: wanted at most {len(POSITIONAL)} values in _init_args and a dict _init_kwargs")
        return {**dict(zip(POSITIONAL, args)), **kwargs}

    def weights(self, module: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters and persistent buffers of a module and all inside it, by their dotted names."""
        where = shown(prefix.rstrip(".") or "ema")
        state = self.module_state(module, where)
        passing = self.members(state.get("_non_persistent_buffers_set"))
        for group in ("_parameters", "_buffers", "_modules"):
            for name, value in self.mapping(state.get(group), f"{where}: {group}").items():
                if "." in name or len(name) > MOST_LETTERS:
                    raise ValueError(f"{where}: {group} has the name {shown(name)}, wanted one without dots of at most "
                                     f"{MOST_LETTERS} letters")
                if value is None or (group == "_buffers" and name in passing):
                    continue
                if group == "_modules":
                    yield from self.weights(value, f"{prefix}{name}.")
                else:
                    yield f"{prefix}{name}", self.tensor(value, f"{prefix}{name}")

    def module_state(self, module: Any, where: str) -> dict[str, Any]:
        """The __dict__ of a module."""
        if kind(module) in CONTAINERS:
            return self.mapping(module.state, f"{where}: its state")
        return self.mapping(self.persistent(module, where).get("state"), f"{where}: its state")

    def persistent(self, module: Any, where: str) -> dict[str, Any]:
        """The dict (class_name, state, ...) that a module of EDM is made of."""
        match module:
            case Made(maker=maker, args=(meta,)) if maker == MODULE:
                return self.mapping(meta, where)
        raise ValueError(f"{shown(where)} is {kind(module)}, wanted a module")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        """A dict by its names."""
        if kind(value) not in DICTS or value.args:
            raise ValueError(f"{shown(where)} is {kind(value)}, wanted a dict that is filled key by key")
        self.count(len(value.items))
        if odd := [key for key, _ in value.items if not isinstance(key, str)]:
            raise ValueError(f"{shown(where)} has a key of type {kind(odd[0])}, wanted str")
        return dict(value.items)

    def members(self, value: Any) -> set[str]:
        """The texts in a set, or in none."""
        if value is None:
            return set()
        if kind(value) not in SETS:
            raise ValueError(f"_non_persistent_buffers_set is {kind(value)}, wanted a set")
        found = value.args[0] if len(value.args) == 1 and isinstance(value.args[0], list) else value.items
        self.count(len(found))
        return {name for name in found if isinstance(name, str)}

    def count(self, entries: int) -> None:
        """Keep account of what is opened: the same dict or list can lie in many places."""
        self.entries += entries
        if self.entries > MOST_ENTRIES:
            raise ValueError(f"more than {MOST_ENTRIES} entries; no EDM network has so many")

    def plain(self, value: Any, where: str) -> Any:
        """Plain data: None, numbers, texts, lists and dicts of these."""
        self.count(1)
        if isinstance(value, int) and abs(value) > LARGEST_ARGUMENT:
            raise ValueError(f"ema: {shown(where)} is a whole number beyond {LARGEST_ARGUMENT}")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.plain(v, where) for v in value]
        if kind(value) in DICTS:
            return {k: self.plain(v, f"argument {k}") for k, v in self.mapping(value, where).items()}
        if kind(value) in NUMBERS:
            return number(value, where)
        raise ValueError(f"ema: {shown(where)} holds {kind(value)}, wanted plain data")

    def tensor(self, value: Any, where: str) -> torch.Tensor:
        """A weight, as a view of its storage; ValueError when it is not inside it, or shares it beyond all measure."""
        if kind(value) == PARAMETER and value.args:
            value = value.args[0]
        match value:
            case Made(maker=maker, args=(storage, offset, tuple(size), tuple(stride), *_)) if maker == TENSOR:
                flat = self.storage(storage, where)
            case _:
                raise ValueError(f"{shown(where)} is {kind(value)}, wanted a tensor")
        if not is_inside(flat.numel(), offset, size, stride):
            raise ValueError(f"{shown(where)}: a tensor that does not lie in its storage of {flat.numel()} values")
        found = flat.as_strided(size, stride, offset)
        self.weight_bytes += found.nbytes
        if self.weight_bytes > self.size:
            raise ValueError(f"{shown(where)}: the weights up to here are larger than the file")
        return found

    def storage(self, value: Any, where: str) -> torch.Tensor:
        """All values [n] of a storage."""
        match value:
            case Made(maker=maker, args=(bytes(data),)) if maker == STORAGE:
                if id(data) not in self.storages:
                    self.storages[id(data)] = load_storage(data, shown(where))
                return self.storages[id(data)]
        raise ValueError(f"{shown(where)}: its storage is {kind(value)}, wanted {STORAGE} of bytes")


def load_storage(data: bytes, where: str) -> torch.Tensor:
    """All values [n] of a storage from the torch file that holds it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what it meets in damaged files
            check_archive(data)
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # pickle.UnpicklingError and whatever else a hostile file provokes
        asked = re.search(r"GLOBAL (\S+)", str(e))
        raise refusal(asked[1]) if asked else ValueError(f"{where}: its storage is damaged ({type(e).__name__})") from e
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in FLOATS:
        found = getattr(storage, "dtype", type(storage).__name__)
        raise ValueError(f"{where}: its storage holds {found}, wanted floating-point numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def check_archive(data: bytes) -> None:
    """BadZipFile for a torch file in form of an archive whose parts unpack to more than it is."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(part.file_size for part in archive.infolist()) > len(data):
                raise zipfile.BadZipFile


def is_inside(length: int, offset: Any, size: tuple, stride: tuple) -> bool:
    """Whether a tensor lies in a storage of `length` values and has no more of them than that."""
    if len(size) != len(stride) or len(size) > MOST_AXES:
        return False
    if not all(type(n) is int and 0 <= n <= length for n in (offset, *size, *stride)):
        return False
    return 0 < prod(size) <= length and offset + sum((n - 1) * s for n, s in zip(size, stride)) < length


def number(value: Made, where: str) -> bool | int | float:
    """The number that a numpy scalar holds."""
    match value.args:
        case (Made(maker=maker, args=(str(code), *_), state=state), bytes(raw)) if maker == DTYPE:
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
            if code in NUMBER_CODES and order in ("<", ">", "=", "|") and len(raw) == np.dtype(code).itemsize:
                return np.frombuffer(raw, np.dtype(code).newbyteorder(order))[0].item()
    raise ValueError(f"ema: {shown(where)} holds a numpy scalar that is not a number")
