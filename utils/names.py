"""Names that come out of files, made fit for what they are put into: a folder, a terminal, a spreadsheet."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

MOST_BYTES = 200  # of the name of a file, so that suffixes still fit into the 255 of most file systems
RESERVED = re.compile(r'[/\\:*?"<>|]')  # what separates folders, or no other system takes
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how cells begin that a spreadsheet computes
HIDDEN = ("Cc", "Cs", "Cf", "Zl", "Zp")  # categories of letters that move a cursor, show nothing or cannot be encoded


def file_names(ids: Sequence[str], most: int = MOST_BYTES) -> list[str]:
    """A name for each id, fit to be that of a file in any folder: the id itself, wherever that is fit.

    Others have separators, control characters, leading dots and blanks at their ends replaced, are cut to `most` bytes,
    and end in a hash of the id. So do ids that differ in case or Unicode form alone, which some systems hold for one.
    """
    ids = _apart(ids)
    names = [_component(id_, most) for id_ in ids]
    odd = {i for i, (name, id_) in enumerate(zip(names, ids)) if name != id_} | _alike(names)
    while odd:
        names = [_hashed(name, id_, most) if i in odd else name for i, (name, id_) in enumerate(zip(names, ids))]
        odd = _alike(names)  # an id may be what another became
    return names


def _apart(ids: Sequence[str]) -> list[str]:
    """The ids, what is there more than once with its number among its like, so that no two are one."""
    seen: Counter[str] = Counter()
    numbered = []
    for id_ in ids:
        seen[id_] += 1
        numbered.append(id_ if seen[id_] == 1 else f"{id_}/{seen[id_]}")
    return numbered if len(set(numbered)) == len(ids) else [f"{id_}/{i}" for i, id_ in enumerate(ids)]


def _alike(names: Sequence[str]) -> set[int]:
    """Places of names that some file system holds for the same."""
    counts = Counter(map(_folded, names))
    return {i for i, name in enumerate(names) if counts[_folded(name)] > 1}


def renamed(ids: Iterable[str], names: Iterable[str]) -> list[str]:
    """What to tell of ids that became other names of files, `'a/b' as a_b-1f3c`."""
    return [f"{id_!r} as {name}" for id_, name in zip(ids, names) if id_ != name]


def _component(text: str, most: int) -> str:
    """One component of a path that is like a text, not empty and within `most` bytes."""
    text = "".join("_" if unicodedata.category(c).startswith("C") else c for c in RESERVED.sub("_", text))
    text = re.sub(r"^\.+|^\s+|[\s.]+$", "_", text) or "_"
    return text.encode()[:most].decode(errors="ignore")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _hashed(name: str, text: str, most: int) -> str:
    end = "-" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return name.encode()[:most - len(end)].decode(errors="ignore") + end


def printable(text: str) -> str:
    r"""A text for a terminal: control characters but line breaks and tabs stand as they are written, `\x1b`.

    So a name out of a file moves no cursor and colours nothing. What no terminal could encode is written so, too.
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else
                   c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """A name for a line of text: printable, its line breaks and tabs escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def titled(name: str, unit: str) -> str:
    """A name with its unit, if it has one."""
    return f"{name} [{unit}]" if unit else name


def cell(value: object) -> object:
    """A value for a table: text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
