"""Words out of files, as pictures can show them."""

from edm3d.utils.names import printable

MOST_LINES = 4  # of a caption


def shown_word(text: str, most: int = 60) -> str:
    r"""A name on a picture: without control characters, cut in its middle to `most` characters, `$` no mathematics."""
    text = printable(" ".join(text.split()))
    if len(text) > most:
        text = f"{text[:most - most // 3 - 3]}...{text[-(most // 3):]}"
    return text.replace("$", r"\$")


def shown_lines(text: str, most: int = 60) -> str:
    """A caption of some lines."""
    return "\n".join(shown_word(line, most) for line in text.split("\n")[:MOST_LINES])
