"""What the data commands are made of: options of several words, paths, errors in one line; imports nothing heavy."""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


class Words(click.ParamType):
    """Several words after one option, as in `--size 160 160 128`; works in commands of class WordsCommand."""

    def __init__(self, kind: type):
        self.kind = kind
        self.name = {int: "INT...", float: "NUMBER...", str: "NAME..."}[kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        """Split at the places where WordsCommand joined, numbers also at blanks and commas (`--size=32,32`)."""
        if isinstance(value, tuple):
            return value
        words = value.split("\n") if self.kind is str else value.replace(",", " ").split()
        try:
            return tuple(self.kind(word) for word in words)
        except ValueError:
            self.fail(f"{' '.join(words)!r}: wanted {'whole ' if self.kind is int else ''}numbers", param, ctx)


class WordsCommand(click.Command):
    """A command whose Words options take all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the words that follow such an option into one argument; UsageError for one that is given twice."""
        takes_words = {name for p in self.params if isinstance(p.type, Words) for name in p.opts}
        single = {name for p in self.params if isinstance(p.type, Words) and not p.multiple for name in p.opts}
        given = [arg.partition("=")[0] for arg in args]
        if twice := [name for name in sorted(single) if given.count(name) > 1]:
            raise click.UsageError(f"{twice[0]}: given twice, and the last alone would count; put all words behind one",
                                   ctx)
        joined: list[str] = []
        words = -1  # place in `joined` of the words being collected
        for arg in args:
            if re.match(r"--|-[a-zA-Z]", arg):  # -1 is a word
                words = len(joined) + 1 if arg in takes_words else -1
                joined.append(arg)
            elif joined and words == len(joined) - 1:
                joined[words] += "\n" + arg
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


class Script(click.Command):
    """A program of ours: what it prints ends nothing that it does (utils/terminal.py)."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run it."""
        from edm3d.utils.terminal import sturdy_streams
        with sturdy_streams():
            try:
                os.getcwd()
            except OSError as e:
                sys.exit(f"Error: the working folder cannot be reached ({e.strerror}); change to one that is there")
            return super().main(*args, **{"color": True, **extra})  # click cuts escapes out of names; we show them


class Scripts(Script, click.Group):
    """A program of several commands."""


class Tool(Scripts):
    """Turns errors a user can cause into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            from edm3d.utils.log import RANK_0_SPEAKS_S, error_text, is_lack_of_memory
            if ctx.params["debug"] or not (isinstance(error, (ValueError, OSError)) or is_lack_of_memory(error)):
                raise
            if os.environ.get("RANK", "0") != "0":
                time.sleep(RANK_0_SPEAKS_S)
            raise click.ClickException(error_text(error)) from error
