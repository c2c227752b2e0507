"""What the first pass of `prepare` learns of each case, and whether the cases fit into one file."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import PICTURE, suffix_of
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_load import LabelMove, lost_line
from edm3d.formats.prepare_options import CLASSES, PrepareOptions, clipping, join
from edm3d.utils.checks import listed

PLURALS = {"label": "label maps", "map": "maps"}  # by what a file is read as
MOST_CLIPPED = 0.2  # of the training voxels, without a note


class CaseFacts(NamedTuple):
    """What the first pass learns of a case."""

    shape: tuple[int, ...]  # [X,Y,Z] after orientation and spacing
    spacing: np.ndarray  # mm per axis of volumes, likewise
    codes: str  # orientation as stored, '' without geometry
    span: np.ndarray  # [C,2] lowest and highest value
    scale: np.ndarray  # [C,2] values that become 0 and 1
    maps: dict[str, frozenset[int]]  # the values of its label map and its map, by 'label' and 'map'
    moves: dict[str, LabelMove]  # likewise what it took to bring it onto the grid of the image
    digest: bytes  # of the files
    voxels: int  # of the image as its files have it, over all channels
    beyond: int  # of these, how many lie outside what is clipped to; 0 where nothing is
    dtype: str  # of the image as its files have it


def voxels_beyond(image: np.ndarray, scale: np.ndarray, options: PrepareOptions) -> int:
    """How many voxels of an image [C,X,Y,Z] will be clipped; scale: its percentiles [C,2], where these are asked for.
    """
    bounds = clipping(options)
    if bounds is None:
        return 0
    lo, hi = (bound.reshape(-1, 1, 1, 1) for bound in (scale.T if options.percentiles else np.array([bounds]).T))
    return int(np.count_nonzero(image < lo) + np.count_nonzero(image > hi))


def clip_lines(training: Sequence[CaseFacts], options: PrepareOptions) -> list[str]:
    """What share of the training voxels is clipped, with a note where it is so much that the option looks wrong."""
    bounds = clipping(options)
    if bounds is None:
        return []
    share = sum(fact.beyond for fact in training) / sum(fact.voxels for fact in training)
    lines = [f"clipped: {100 * share:.3g} % of the training voxels"]
    if share > MOST_CLIPPED:
        given, wanted = (("--percentiles", "percentiles go from 0 to 100, as in 0 99.5") if options.percentiles else
                         ("--range", "wanted the lowest and the highest value in the units of the files"))
        lines.append(f"Note: {given} {join(bounds)} clips much; {wanted}")
    return lines


def check_within(path: Path, span: np.ndarray, options: PrepareOptions) -> None:
    """ValueError for an image of span [C,2] with values beyond a range that it must keep to, by more than rounding."""
    if not options.within:
        return
    (lo, hi), (least, most) = options.value_range, (float(span.min()), float(span.max()))
    if Intensity(float(lo), float(hi), True, "").is_left_by(least, most):
        raise ValueError(f"{path}: values go from {least:g} to {most:g}, wanted {lo:g} to {hi:g}; where all samples "
                         "are on another scale, say it by --range, or scale each by --percentiles")


def check_scale(path: Path, span: np.ndarray, scale: np.ndarray) -> None:
    """ValueError where values, of span [C,2], leave single precision when they are scaled by percentiles [C,2]."""
    lo, hi = scale.astype(np.float64).T
    most = np.abs((span - lo[:, None]) / (hi - lo)[:, None]).max()
    if max(most, (hi - lo).max()) > np.finfo(np.float32).max / 2 or np.float32((hi - lo).min()) == 0:
        raise ValueError(f"{path}: its percentiles {scale.tolist()} are too near or too far apart for single precision")


def label_lines(cases: Sequence[CaseFiles], facts: Sequence[CaseFacts], role: str) -> list[str]:
    """What was done to label maps that did not lie on the grid of their image, and what each of them lost.

    role: label, or map for the maps beside them.
    """
    found = [(case, fact.moves[role]) for case, fact in zip(cases, facts) if role in fact.moves]
    total, lines = f"{len(found)} {PLURALS[role]}", []
    if turned := sum(move.turned for _, move in found):
        lines.append(f"{turned} of {total} have their axes in another order or direction than their image and were "
                     "turned onto it, no voxel changed")
    if moved := [(case, move) for case, move in found if move.resampled]:
        lossy = sorted((pair for pair in moved if not pair[1].is_faithful), key=lambda pair: -pair[1].share)
        each = listed((f"{case.id}: {lost_line(move)}" for case, move in lossy), "; ")
        lines.append(f"{len(moved)} of {total} lay on another grid than their image and were resampled onto it "
                     f"(nearest); {each or 'nothing of them was lost'}")
    return lines


def depth_lines(cases: Sequence[CaseFiles], facts: Sequence[CaseFacts], options: PrepareOptions) -> list[str]:
    """A note on pictures of 8 and of 16 bits, whose values are rarely on one scale."""
    found = {fact.dtype: case.id for case, fact in reversed(list(zip(cases, facts)))
             if suffix_of(case.images[0]) == PICTURE}
    if options.percentiles or len(found) < 2:
        return []
    return [f"Note: some images have 8 bits and some 16 ({found['uint8']} and {found['uint16']}); their values are "
            "taken as they are, --percentiles puts each on a scale of its own"]


def type_lines(cases: Sequence[CaseFiles], facts: Sequence[CaseFacts], options: PrepareOptions) -> list[str]:
    """A line on each type of samples of an index that was not float32, and became it."""
    by_type: dict[str, list[str]] = defaultdict(list)
    for case, fact in zip(cases, facts) if options.indexed else ():
        by_type[fact.dtype].append(case.id)
    return [f"{len(ids)} of {len(facts)} images are {name} and became float32: {listed(ids)}"
            for name, ids in sorted(by_type.items()) if name != "float32"]


def vanished_lines(vanished: Mapping[str, Sequence[int]], total: int, role: str) -> list[str]:
    """A note on label maps, or maps, by case, that lost all of a class on larger voxels."""
    if not vanished:
        return []
    each = listed((f"{case}: {listed(classes)}" for case, classes in vanished.items()), "; ")
    return [f"Note: {len(vanished)} of {total} {PLURALS[role]} lost whole classes on the new voxels, which are too "
            f"large for them ({each})"]


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
        advice = ("give --orientation, for instance RAS" if all(f.codes for f in facts) else
                  "those without one have no affine: make NIfTI of them, or leave them out")
        raise ValueError(f"the cases differ in orientation ({found}); {advice}")
    others = [pair for pair in pairs[1:] if not np.allclose(pair[1].spacing, first.spacing, rtol=1e-3, atol=0)]
    if others and not options.fit and not options.spacing_attributes:
        sizes = [(c.images[0].name, "x".join(f"{s:g}" for s in f.spacing)) for c, f in [pairs[0], *others]]
        found = listed((f"{name} {size}" for name, size in sizes), "; ")
        raise ValueError(f"the cases differ in voxel size, in mm ({found}); give --spacing, or "
                         "--spacing-attributes to keep each as it is and say it as an attribute")
    if options.grid is None and len({f.shape for f in facts}) > 1:
        odd = _one_per(pairs, lambda f: f.shape)
        found = listed((f"{c.id} {'x'.join(map(str, f.shape))}" for c, f in odd), "; ")
        raise ValueError(f"the cases differ in shape ({found}); give --size")
    for role in first.maps:
        if not options.names_of(role) and len({f.maps[role] for f in facts}) > 1:
            odd = _one_per(pairs, lambda f, role=role: f.maps[role])
            found = listed((f"{c.maps[role].name} {join(sorted(f.maps[role]))}" for c, f in odd), "; ")
            raise ValueError(f"the {PLURALS[role]} differ in their values ({found}); name every class with "
                             f"{CLASSES[role]} if some volumes lack one, or correct the files")


def _one_per(pairs: list[tuple[CaseFiles, CaseFacts]], key: Callable[[CaseFacts], Hashable]
             ) -> list[tuple[CaseFiles, CaseFacts]]:
    """The first case of each value of a key, the rarest value first."""
    counts = Counter(key(fact) for _, fact in pairs)
    firsts = {key(fact): (case, fact) for case, fact in reversed(pairs)}
    return sorted(firsts.values(), key=lambda pair: counts[key(pair[1])])
