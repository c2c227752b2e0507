"""What an HDF5 file may consist of: groups, data sets and attributes of numbers and text, all of it in the file itself.

HDF5 can do more: links into other files, data sets whose values lie in another file or are put together of others,
cycles, filters that are loaded as programs, sizes that no file holds. A file is looked through for these before any of
its values is read, by calls that follow none of them.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5s, h5t, h5z

from edm3d.utils.checks import MOST_GROWTH
from edm3d.utils.plain import shown

MOST_DEPTH = 32  # groups in groups; ours have one below the root
MOST_NODES = 200_000
MOST_TEXT = 64 << 20  # bytes of an attribute
FILTERS = {h5z.FILTER_SHUFFLE: 1, h5z.FILTER_FLETCHER32: 1,  # by how much each can make values grow
           h5z.FILTER_DEFLATE: MOST_GROWTH, h5z.FILTER_LZF: MOST_GROWTH}
LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link into another file"}
PLAIN_TYPES = (h5t.INTEGER, h5t.FLOAT, h5t.STRING)


class Node(NamedTuple):
    """A group or data set by its path, opened by h5py's low-level interface."""

    path: str
    id: h5g.GroupID | h5d.DatasetID
    depth: int


def check_structure(file: h5py.File, ours: bool) -> None:
    """ValueError naming file and node unless all that is in a file is plain and lies in it.

    ours: attributes and data sets must also have types that files of ours have, numbers and text of fixed length. Text
    of variable length has no checksum, and damage to it can make HDF5 hang.
    """
    size = h5f.FileID.get_filesize(file.id)
    for node in _nodes(file):
        where = f"{file.filename}: {node.path}"
        if isinstance(node.id, h5d.DatasetID):
            _check_place(node.id, where)
            _check_size(node.id, where, size)
            if ours:
                _check_type(node.id, where)
        for index in range(h5a.get_num_attrs(node.id)):
            _check_attribute(h5a.open(node.id, index=index), f"{file.filename}: attribute", node.path, ours)


def is_text(node: h5py.Group | h5py.Dataset, name: str) -> bool:
    """Whether an attribute is there and text of fixed length."""
    if not h5a.exists(node.id, name.encode()):
        return False
    kind = h5a.open(node.id, name.encode()).get_type()
    return kind.get_class() == h5t.STRING and not kind.is_variable_str()


def is_plain(attribute: h5a.AttrID) -> bool:
    """Whether an attribute holds numbers or text of fixed length."""
    return not _odd_type(attribute.get_type()) and attribute.get_space().get_simple_extent_type() != h5s.NULL


def _nodes(file: h5py.File) -> Iterator[Node]:
    """All groups and data sets, none twice; ValueError for links that are no part of a plain tree."""
    waiting, seen, count = [Node("/", h5o.open(file.id, b"/"), 0)], {h5o.get_info(file.id, b"/").addr}, 0
    while waiting:
        group = waiting.pop()
        yield group
        for name in group.id:
            path = f"{group.path.rstrip('/')}/{_name(name)}"
            where, count = f"{file.filename}: {path if len(path) < 200 else f'{path[:200]}...'}", count + 1
            if (kind := group.id.links.get_info(name).type) != h5l.TYPE_HARD:
                raise ValueError(f"{where} is {LINKS.get(kind, 'a link of an unknown kind')}, which is not followed; "
                                 "copy what it leads to into the file (h5copy)")
            found = h5o.get_info(group.id, name)
            if found.addr in seen:
                raise ValueError(f"{where} is another name of what is in the file already, wanted each thing once")
            if group.depth >= MOST_DEPTH or count > MOST_NODES:
                raise ValueError(f"{where}: groups nested deeper than {MOST_DEPTH}, or more than {MOST_NODES:,} things "
                                 "in all, which no file of this program has")
            if found.type not in (h5o.TYPE_GROUP, h5o.TYPE_DATASET):
                raise ValueError(f"{where} is a named type, wanted groups and data sets alone")
            seen.add(found.addr)
            node = Node(path, h5o.open(group.id, name), group.depth + 1)
            if found.type == h5o.TYPE_GROUP:
                waiting.append(node)
            else:
                yield node


def _name(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _check_place(dataset: h5d.DatasetID, where: str) -> None:
    """ValueError for values that lie elsewhere, or that take a program of others to be read."""
    layout = dataset.get_create_plist()
    if layout.get_layout() == h5d.VIRTUAL:
        raise ValueError(f"{where} is a virtual data set, whose values lie elsewhere; copy them into the file")
    if layout.get_external_count():
        raise ValueError(f"{where} has its values in another file, which is not read; copy them into this one")
    for filter in _filters(dataset):
        if filter not in FILTERS:
            raise ValueError(f"{where} is stored by filter {filter}, which is not read; store it plain, or by gzip "
                             "(h5repack -f GZIP=1)")


def _filters(dataset: h5d.DatasetID) -> list[int]:
    layout = dataset.get_create_plist()
    return [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]


def _check_size(dataset: h5d.DatasetID, where: str, file_size: int) -> None:
    """ValueError for a data set that claims more values than can be in what is stored of it."""
    space, layout = dataset.get_space(), dataset.get_create_plist()
    if space.get_simple_extent_type() == h5s.NULL:
        raise ValueError(f"{where} has no values, wanted a shape, and 0 values in it at least")
    shape, item, stored = space.shape, dataset.get_type().get_size(), dataset.get_storage_size()
    values = prod(shape)
    if values and layout.get_layout() == h5d.CHUNKED:  # chunks at the edge are stored whole
        chunk = layout.get_chunk()
        values = prod(chunk) * prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    growth = prod(FILTERS[filter] for filter in _filters(dataset))
    if growth > max(FILTERS.values()):
        raise ValueError(f"{where} is compressed twice, wanted once")
    if stored > file_size or values * item > growth * stored:
        raise ValueError(f"{where} claims {shown(values * item)} bytes in shape {shape}, and {stored} are stored of "
                         "it: it was not written to its end, or is damaged")


def _check_type(dataset: h5d.DatasetID, where: str) -> None:
    if odd := _odd_type(dataset.get_type()):
        raise ValueError(f"{where} is {odd}, wanted numbers or text of fixed length")


def _check_attribute(attribute: h5a.AttrID, where: str, path: str, ours: bool) -> None:
    where = f"{where} {shown(_name(attribute.name))} of {path}"
    if (size := attribute.get_storage_size()) > MOST_TEXT:
        raise ValueError(f"{where} has {size} bytes, more than any of ours")
    if not ours:
        return
    if odd := _odd_type(attribute.get_type()):
        raise ValueError(f"{where} is {odd}, wanted numbers or text of fixed length (formats.h5.put_text)")
    if attribute.get_space().get_simple_extent_type() == h5s.NULL:
        raise ValueError(f"{where} has no value")


def _odd_type(found: h5t.TypeID) -> str:
    """What a type is that is neither whole numbers nor floats, truth values or text of fixed length; "" for these."""
    kind = found.get_class()
    if found.committed():
        return "of a named type"
    if kind == h5t.STRING:
        return "text of variable length" if found.is_variable_str() else ""
    try:
        dtype = found.dtype
    except (TypeError, ValueError) as e:
        return f"of a type that is not known ({e})"
    is_known = kind in PLAIN_TYPES or (kind == h5t.ENUM and dtype == np.bool_)
    return "" if is_known and dtype.kind in "iufb" and dtype.itemsize <= 8 else f"of type {shown(str(dtype))}"
