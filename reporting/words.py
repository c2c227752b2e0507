"""Words out of files, as pictures can show them."""

import textwrap

from edm3d.utils.names import printable

MOST_LINES = 10  # of a caption


def shown_word(text: str, most: int = 60) -> str:
    r"""A name on a picture: without control characters, cut in its middle to `most` characters, `$` no mathematics."""
    return _as_text(_shortened(text, most))


def shown_lines(text: str, most: int = 60) -> str:
    """A caption of some lines of at most so many characters, longer ones wrapped, and cut in their middle."""
    lines = [_shortened(line, 2 * most) for line in text.split("\n")]
    wrapped = [part for line in lines for part in textwrap.wrap(line, most) or [""]]
    return _as_text("\n".join(wrapped[:MOST_LINES]))


def _shortened(text: str, most: int) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else f"{text[:most - most // 3 - 3]}...{text[-(most // 3):]}"


def _as_text(text: str) -> str:
    """As matplotlib takes it, which holds `$` for the ends of mathematics."""
    return text.replace("$", r"\$")
