"""What a torch file may hold, looked at before torch reads it and before anything is made of its content."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from edm3d.utils.plain import shown

NAMES = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict",
         *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char",
                                               "Byte", "Bool", "ComplexFloat", "ComplexDouble"))}  # of any file of ours
MOST_LEAVES, MOST_LEVELS = 1_000_000, 100  # of a tree; a state of a large network has some ten thousand, ten deep
SHARED = 4  # times as many bytes as the file has may tensors have together: some share what they hold
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")


def check_archive(path: Path) -> None:
    """ValueError unless a file is an archive as torch.save writes it, whole, and its structure names but tensors."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [PurePosixPath(member.filename) for member in members]
        odd = len(set(names)) < len(names) or len({name.parts[:1] for name in names}) != 1 \
            or any(member.compress_type != zipfile.ZIP_STORED for member in members)
        structure = [member for member, name in zip(members, names) if name.parts[1:] == ("data.pkl",)]
        if odd or len(structure) != 1 or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError(f"{path}: refused, it is no archive as this program writes them")
        if archive.testzip():  # torch itself does not look at the CRCs
            raise ValueError(f"{path}: the file is damaged, a checksum inside it does not match")
        check_structure(archive.read(structure[0]), path)


def check_structure(data: bytes, path: Path) -> None:
    """ValueError for a pickle that names anything but tensors, or a tuple that grows by naming itself again and again.

    Such a tuple takes for ever where it is the key of a dict. Nothing is made: only its parts are counted.
    """
    stack: list[int | None] = []  # leaves of what lies there, None: a mark
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4") or \
                (code.name == "GLOBAL" and argument not in NAMES):
            name = str(argument).replace(" ", ".") if code.name == "GLOBAL" else code.name
            raise ValueError(f"{path}: refused, it is not plain tensors and data: it names {shown(name)}")
        if "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
            continue
        taken = list(popped(stack, [each.name for each in code.stack_before]))
        size = memo.get(argument, 0) if "GET" in code.name else 1 + sum(taken) if code.name in TUPLES else 1
        if size > MOST_LEAVES:
            raise ValueError(f"{path}: refused, it is not plain tensors and data: a tuple of {size:.0e} parts")
        stack += [None if each.name == "mark" else size for each in code.stack_after]


def popped(stack: list[int | None], before: list[str]) -> Iterator[int]:
    """Take off a stack what an instruction of a pickle takes, down to the last mark where it takes that."""
    if "mark" in before:
        while (top := stack.pop()) is not None:
            yield top
        before = before[:before.index("mark")]
    for _ in before:
        yield stack.pop() or 0


def check_tree(content: object, path: Path) -> None:
    """ValueError naming file and key unless a tree is dicts, lists, tensors and plain values, of no more than a file's.

    Tensors are dense, on the CPU, and hold all values that they claim.
    """
    room = SHARED * path.stat().st_size + 2 ** 20
    count, waiting = 0, [("", content, 0)]
    while waiting:
        key, value, level = waiting.pop()
        count += 1
        if count > MOST_LEAVES or level > MOST_LEVELS:
            raise ValueError(f"{path}: {shown(key)} is nested too deeply, or holds too much")
        if isinstance(value, dict):
            for name, inner in value.items():
                if type(name) not in (str, int):
                    raise ValueError(f"{path}: {shown(key)} has a name that is {shown(name)}, wanted text or a number")
                waiting.append((f"{key}.{name}" if key else str(name), inner, level + 1))
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{key}[{i}]", inner, level + 1) for i, inner in enumerate(value)]
        elif isinstance(value, torch.Tensor):
            check_tensor(value, key, path)
            room -= value.numel() * value.element_size()
            if room < 0:
                raise ValueError(f"{path}: its tensors claim more values than the file holds")
        elif value is not None and type(value) not in (bool, int, float, str):
            raise ValueError(f"{path}: {shown(key)} is {shown(value)}, which no file of this program holds")


def check_tensor(value: torch.Tensor, key: str, path: Path) -> None:
    """ValueError naming file and key for a tensor that is not plain numbers, all of them there."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu" or \
            value.is_quantized:
        raise ValueError(f"{path}: {shown(key)} is a tensor of another kind, wanted plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: {shown(key)} claims {list(value.shape)} values, more than the file holds")
