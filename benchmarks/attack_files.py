"""One bad file after another, each read by all commands that read its kind: damaged bytes, and wrong content."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.attack_contents import ALTER, alter
from benchmarks.attack_damage import WAYS, damage, find
from benchmarks.attack_judge import Offence, Verdict, faults_of, findings_of
from benchmarks.attack_kinds import Target
from benchmarks.attack_watch import LIMIT_S, Command, Observed, spread, watch


class Ground(NamedTuple):
    """What trials stand on: folders of good files and of the cages.

    whole: what commands do with good files, by kind and command, as far as it was asked.
    """

    seed: int
    world: Path
    cages: Path
    whole: dict[tuple[str, str], Observed]
    limit_s: float = LIMIT_S

    def chance(self, part: str, number: int) -> random.Random:
        """Random numbers of a trial, whatever the others are."""
        return random.Random(f"{self.seed}/{part}/{number}")

    def copy(self, folder: Path) -> None:
        """A copy of the good files."""
        shutil.copytree(self.world, folder, dirs_exist_ok=True, symlinks=True)


    def ask_whole(self, kind: str, command: Command) -> Observed:
        """What a command does with good files; RuntimeError where it fails, or does what only an attack should."""
        if (kind, command.name) not in self.whole:
            cage = self.cages / f"whole-{os.getpid()}-{kind.replace(' ', '-')}"
            seen, = watch(self.copy, [command], cage, self.limit_s)
            if seen.code or seen.events or seen.strays:
                raise RuntimeError(f"{kind}: {seen.command} does not work on a good file ({seen.code}, {seen.events}, "
                                   f"{seen.strays})\n{seen.text[-3000:]}")
            self.whole[kind, command.name] = seen
        return self.whole[kind, command.name]


def try_whole(kinds: Sequence[tuple[str, tuple[Command, ...]]], ground: Ground, jobs: int) -> None:
    """See once what all commands do with good files, so that nobody needs to ask again."""
    def task(kind: str, command: Command) -> tuple[str, Observed]:
        return kind, ground.ask_whole(kind, command)

    tasks = [partial(task, kind, command) for kind, commands in kinds for command in commands]
    for kind, seen in spread(tasks, jobs):
        ground.whole[kind, seen.command] = seen


def trial(ground: Ground, part: str, number: int, kind: Target, what: str, make: Callable[[Path], None], compared: bool
          ) -> Verdict:
    """Make a bad file, let all commands of the kind read it, and judge."""
    def made(folder: Path) -> None:
        ground.copy(folder)
        make(folder)

    name, outcomes, findings = f"{part}/{number}", Counter[str](), list[Offence]()
    found = watch(made, kind.commands, ground.cages / f"{part}-{number}", ground.limit_s)
    for command, seen in zip(kind.commands, found, strict=True):
        outcome, faults = faults_of(seen, partial(ground.ask_whole, kind.name, command), kind.said_as, compared)
        outcomes[outcome] += 1
        findings += findings_of(faults, name, what, seen)
    return Verdict(part, outcomes, findings)


def damage_trial(ground: Ground, kinds: Sequence[Target], number: int) -> Verdict:
    """Damage number N: of kind N mod kinds, in the way that follows from the rest."""
    kind, way = kinds[number % len(kinds)], number // len(kinds) % len(WAYS)
    chance = ground.chance("damages", number)

    def make(folder: Path) -> None:
        others = [find(folder, each.path) for each in kinds if each.family != kind.family]
        damage(chance, way, find(folder, kind.path), find(folder, kind.twin), others)

    what = f"{kind.name} ({kind.path}): {WAYS[way]}"
    if WAYS[way] == "folder":  # which `check` is right to walk through
        kind = kind._replace(commands=tuple(each for each in kind.commands if each.name != "check"))
    return trial(ground, "damages", number, kind, what, make, kind.checked and WAYS[way] != "other kind")


def content_kinds(kinds: Sequence[Target]) -> list[Target]:
    """Kinds whose content can be altered under valid checksums."""
    return [kind for kind in kinds if Path(kind.path).suffix in ALTER]


def content_trial(ground: Ground, kinds: Sequence[Target], number: int) -> Verdict:
    """Wrong content number N."""
    kind = kinds[number % len(kinds)]
    chance = ground.chance("contents", number)
    what = f"{kind.name} ({kind.path}): content"
    return trial(ground, "contents", number, kind, what, lambda folder: alter(chance, find(folder, kind.path)), False)
