"""A table of text out of a CSV file, as people and spreadsheets write it: rows by the names of their columns."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from edm3d.utils.checks import listed
from edm3d.utils.plain import MOST_BYTES

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
FOREIGN = {b"PK\x03\x04": "a spreadsheet (.xlsx, .ods) or an archive", b"\xd0\xcf\x11\xe0": "an Excel file (.xls)",
           b"\xff\xfe": "text in UTF-16, Excel's 'Unicode text'", b"\xfe\xff": "text in UTF-16",
           b"\x1f\x8b": "compressed", b"\x89HDF": "an HDF5 file"}


class TextTable(NamedTuple):
    """The rows below the header, cells without blanks at their ends, in Unicode's form NFC."""

    header: list[str]
    rows: list[dict[str, str]]
    separator: str


def read_rows(path: Path, key: str) -> TextTable:
    """Read a CSV file in UTF-8 whose columns are separated by commas, semicolons or tabs.

    ValueError naming it unless it names every column once, `key` among them, and has rows of so many cells, whose
    cells in column `key` are all there and differ.
    """
    separator, lines = _lines(path, _text(path, key), key)
    header = lines[0] if lines else []
    _check_header(path, header, key)
    if uneven := [line[0] or f"(row {i})" for i, line in enumerate(lines, 1) if len(line) != len(header)]:
        raise ValueError(f"{path}: rows with more or fewer cells than the header: {listed(uneven)}")
    rows = [dict(zip(header, line)) for line in lines[1:]]
    doubled = [name or "(empty)" for name, n in Counter(row[key] for row in rows).items() if n > 1 or not name]
    if doubled or not rows:
        raise ValueError(f"{path}: {f'{key}s empty or doubled: ' + listed(doubled) if doubled else 'has no rows'}")
    return TextTable(header, rows, separator)


def _text(path: Path, key: str) -> str:
    """The text of a file; ValueError saying what it is where it is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes, more than any table of volumes has")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; wanted a table with a column {key}, as --table has it") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error
    kind = next((what for start, what in FOREIGN.items() if content.startswith(start)), None)
    if kind or b"\0" in content:
        raise ValueError(f"{path}: is {kind or 'no text, it has bytes of 0'}; wanted a CSV file in UTF-8 "
                         "(in a spreadsheet: save as, CSV UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}); save it as CSV UTF-8") from error


def _lines(path: Path, text: str, key: str) -> tuple[str, list[list[str]]]:
    """The separator that tells column `key` apart, else the one of most columns; and the cells of all but empty lines.
    """
    found, problem = [], None
    for separator in SEPARATORS:
        try:
            cells = [[unicodedata.normalize("NFC", cell).strip() for cell in line]
                     for line in csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)]
        except csv.Error as error:
            problem = problem or error
            continue
        lines = [line for line in cells if any(line)]
        found.append((separator, lines))
        if lines and key in lines[0]:
            return found[-1]
    if problem is not None:
        raise ValueError(f"{path}: cannot be read as a table ({problem})") from problem
    return max(found, key=lambda item: len(item[1][0]) if item[1] else 0)


def _check_header(path: Path, header: Sequence[str], key: str) -> None:
    if key in header and len(set(header)) == len(header) and "" not in header:
        return
    near = sorted((name for name in header if name.casefold().endswith(key)), key=len)
    hint = f"; did you mean {key!r} by {near[0]!r}?" if near and key not in header else ""
    raise ValueError(f"{path}: its first line must name every column once, one of them {key!r}, by commas, "
                     f"semicolons or tabs; got {listed(header)}{hint}")
