"""What is a fault in what a command was seen to do with a bad file."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.attack_watch import RISE, SECRET, Observed
from edm3d.utils.log import less_memory

FAULTS = ("tracebacks", "hangs", "memory", "silent_changes", "lost_outputs", "files_outside", "code_run",
          "network_asked", "unnamed", "unclean", "leaks", "leftovers")
LAST_LINES = 6
TRACEBACK = "Traceback (most recent call last)"
ASIDE = re.compile(r"(Note|Warning|Usage|Try|Warning .*|Aborted!?)\b|\s|$")  # lines of stderr that are no error
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what moves a terminal's cursor or colours it


class Offence(NamedTuple):
    """A fault, and what it takes to see it again. trial: part/number; command: as in the registry of kinds."""

    fault: str
    trial: str
    what: str
    command: str
    last_lines: str


class Verdict(NamedTuple):
    """What became of one bad file: how often each outcome, and the faults."""

    part: str
    outcomes: Counter[str]
    findings: list[Offence]


def kind_of_death(seen: Observed) -> list[str]:
    """Tracebacks, hangs and lack of memory, whatever was to be expected."""
    found = []
    if seen.code in FAULTS and seen.code != "tracebacks":
        found.append(seen.code)
    elif isinstance(seen.code, str) or TRACEBACK in seen.text:
        found.append("memory" if "MemoryError" in seen.text else "tracebacks")
    elif less_memory() in seen.text or "bad_alloc" in seen.text:
        found.append("memory")
    return found if "memory" in found or seen.rise < RISE else [*found, "memory"]


def kind_of_deeds(seen: Observed) -> list[str]:
    """Code run, network asked, files written outside, the home told, raw escapes on the terminal."""
    kinds = {"run": "code_run", "network": "network_asked", "outside": "files_outside", "leak": "leaks"}
    found = [kinds[event.split(":")[0]] for event in seen.events]
    found += ["files_outside"] * bool(seen.strays) + ["leaks"] * (SECRET in seen.text)
    return list(dict.fromkeys([*found, *["unclean"] * bool(RAW.search(seen.text))]))


def kind_of_words(seen: Observed, names: Sequence[str]) -> list[str]:
    """For a refusal: one line that begins by Error (a list may follow, indented), or lines BAD of check, and a name.
    """
    lines = [line for line in seen.err.splitlines() if not ASIDE.match(line)]
    bad = seen.command.startswith("check") and all(line.startswith("BAD ") for line in lines)
    clean = bad or (len(lines) == 1 and lines[0].startswith("Error"))
    named = any(name in seen.err for name in names)  # prepare lists files below its line
    return ["unclean"] * (not clean) + ["unnamed"] * (not named)


def faults_of(seen: Observed, ask_whole: Callable[[], Observed], names: Sequence[str], compared: bool
              ) -> tuple[str, list[str]]:
    """Outcome (refused, unharmed, changed, said, legal) and faults of a command on a bad file.

    ask_whole: gives what it does with the good one; names: what a message may call the file; compared: whether a
    silent change of numbers is a fault.
    """
    faults = kind_of_death(seen) + kind_of_deeds(seen)
    if seen.code:
        dead = isinstance(seen.code, str) or "tracebacks" in faults or "memory" in faults
        return ("died", faults) if dead else ("refused", faults + kind_of_words(seen, names))
    whole = ask_whole()
    known = set(whole.text.splitlines())
    new = [line for line in seen.text.splitlines() if line not in known]
    if [line for line in seen.err.splitlines() if line not in known and not ASIDE.match(line)]:
        faults.append("unclean")
    if whole.digest is None or seen.digest == whole.digest:
        return "unharmed", faults
    if any(name in line for line in new for name in names):
        return "said", faults
    return ("changed", [*faults, "silent_changes"]) if compared else ("legal", faults)


def findings_of(faults: Sequence[str], trial: str, what: str, seen: Observed) -> list[Offence]:
    """One for each fault, with events and last lines."""
    strays = [f"stray: {name}" for name in seen.strays[:4]]
    lines = [*seen.text.rstrip().splitlines()[-LAST_LINES:], *seen.events[:4], *strays]
    return [Offence(fault, trial, what, seen.command, "\n".join(lines)) for fault in dict.fromkeys(faults)]
