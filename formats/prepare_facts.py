"""What the first pass of `prepare` learns of each case, and whether the cases fit into one file."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np

from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_options import PrepareOptions, join
from edm3d.utils.checks import listed


class CaseFacts(NamedTuple):
    """What the first pass learns of a case."""

    shape: tuple[int, ...]  # [X,Y,Z] after orientation and spacing
    spacing: np.ndarray  # mm per axis of volumes, likewise
    codes: str  # orientation as stored, '' without geometry
    span: np.ndarray  # [C,2] lowest and highest value
    scale: np.ndarray  # [C,2] values that become 0 and 1
    labels: frozenset[int]  # label values
    moved: bool  # whether the label map lay on another grid
    digest: bytes  # of the files


def raise_all(problems: Iterable[str], total: int) -> None:
    """ValueError with a line for each problem, if there are any, of `total` volumes."""
    problems = list(problems)
    if problems:
        raise ValueError(f"{len(problems)} of {total} volumes cannot be used:\n  " + "\n  ".join(problems))


def check_together(cases: list[CaseFiles], facts: list[CaseFacts], options: PrepareOptions) -> None:
    """Refuse cases that are well by themselves but do not fit into one file."""
    first = facts[0]
    pairs = list(zip(cases, facts))
    raise_all(
        [f"{c.images[0]}: {len(f.span)} channels, {cases[0].id} has {len(first.span)}" for c, f in pairs
         if len(f.span) != len(first.span)],
        len(cases),
    )  # fmt: skip
    if options.orientation is None and len({f.codes for f in facts}) > 1:
        found = listed((f"{c.id} {f.codes or 'none'}" for c, f in _one_per(pairs, lambda f: f.codes)), "; ")
        raise ValueError(f"the cases differ in orientation ({found}); give --orientation, for instance RAS")
    others = [pair for pair in pairs[1:] if not np.allclose(pair[1].spacing, first.spacing, rtol=1e-3, atol=0)]
    if others and not options.fit:
        sizes = [(c.images[0].name, "x".join(f"{s:g}" for s in f.spacing)) for c, f in [pairs[0], *others]]
        found = listed((f"{name} {size}" for name, size in sizes), "; ")
        raise ValueError(f"the cases differ in voxel size, in mm ({found}); give --spacing")
    if options.grid is None and len({f.shape for f in facts}) > 1:
        odd = _one_per(pairs, lambda f: f.shape)
        found = listed((f"{c.id} {'x'.join(map(str, f.shape))}" for c, f in odd), "; ")
        raise ValueError(f"the cases differ in shape ({found}); give --size")
    if not options.classes and len({f.labels for f in facts}) > 1:
        odd = _one_per(pairs, lambda f: f.labels)
        found = listed((f"{c.label.name} {join(sorted(f.labels))}" for c, f in odd), "; ")
        raise ValueError(f"the label maps differ in their values ({found}); name every class with --classes if some "
                         "volumes lack one, or correct the files")


def _one_per(pairs: list[tuple[CaseFiles, CaseFacts]], key: Callable[[CaseFacts], Hashable]
             ) -> list[tuple[CaseFiles, CaseFacts]]:
    """The first case of each value of a key, the rarest value first."""
    counts = Counter(key(fact) for _, fact in pairs)
    firsts = {key(fact): (case, fact) for case, fact in reversed(pairs)}
    return sorted(firsts.values(), key=lambda pair: counts[key(pair[1])])
