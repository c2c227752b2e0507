"""Which volumes are of one patient by their names, so that splits keep patients together where no table says so.

The rule, by the parts of a name between `_ - .` and blanks, capital letters or small:
1. A patient's number is the patient: sub-01 as BIDS has it, patient001, subj_7.
2. Else words for what is seen of a patient, and when, are left out: t1, flair, ct, ED, left, frame01, visit 2.
3. Else so is a last or first part, if most names that are one without it have several of the same few: p1_x and p1_y,
   p2_x and p2_y. No number: scan_001 and scan_002 are two patients.
Volumes whose names are one then are of one patient.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

_SEPARATORS = re.compile(r"[_\-. ]+")
_NUMBERED = r"sub-[a-z0-9]+(?=_|$)|(?:sub|subj|subject|pat|patient|participant)[_\-. ]?\d+(?![a-z0-9])"
_NUMBER_OF_ONE = re.compile(rf"(?:^|(?<=[_\-. ]))(?:{_NUMBERED})")
_MODALITIES = """
    t1 t1w t1c t1ce t1gd t1n t1post t1pre t2 t2w t2f t2s t2star flair pd pdw dwi adc dti fa swi asl cbf cbv bold fmri
    dce dsc mra mprage mp2rage tof ct cta cbct pet fdg spect mr mri us cine image img"""
_STEPS = "raw orig original preproc preprocessed processed brain bet n4 corrected registered resampled"
_STATES = """
    ed es diastole systole rest stress pre post native contrast arterial venous portal delayed 2ch 3ch 4ch sax lax 3d 4d
    axial coronal sagittal ax cor sag left right l r lh rh od os baseline followup"""
_SEEN = frozenset(f"{_MODALITIES} {_STEPS} {_STATES}".split())
_WITH_NUMBER = """
    ses session visit timepoint tp time frame phase run rep acq dyn slice view day week month year fu followup"""
_COUNTED = frozenset(_WITH_NUMBER.split())  # the number may be the next part
_COUNTED_WORD = re.compile(rf"(?:{'|'.join(_COUNTED)})[a-z]?\d+|t\d|b0|b\d{{3,4}}")
_SHOWN = 3  # volumes of a patient in a note


class Groups(NamedTuple):
    """The group of each volume, and what to tell of them."""

    of: dict[str, str]
    notes: list[str]


def groups_by_name(ids: Iterable[str]) -> Groups:
    """Put volumes of one patient by their names into a group; each other is one of its own, called as its id."""
    ids = sorted(ids)
    read = {id_: _without_what_is_seen(id_) for id_ in ids}
    patient_of = _without_channels({base for base, _ in read.values()})
    members: dict[str, list[str]] = defaultdict(list)
    for id_, (base, _) in read.items():
        members[patient_of[base]].append(id_)
    of, is_one = {id_: id_ for id_ in ids}, len(members) == 1
    if is_one and any(is_counted for _, is_counted in read.values()):  # one patient's frames, or those of a cohort?
        return Groups(of, _unsure(ids))
    shared = {base or several[0]: several for base, several in members.items() if len(several) > 1}
    of |= {id_: base for base, several in shared.items() for id_ in several}
    patients = sorted(set(of.values()))
    return Groups(of, [*_said(ids, shared), *(_unsure(patients) if _end_in_numbers(patients) else [])])


# ---- names ----


def _without_what_is_seen(id_: str) -> tuple[str, bool]:
    """What of a name is the patient's, in small letters, and whether a counted word (frame01) was left out of it."""
    name = id_.casefold()
    if found := _NUMBER_OF_ONE.search(name):
        return found[0], False
    left, are_counted, parts = [], False, [part for part in _SEPARATORS.split(name) if part]
    while parts:
        part = parts.pop(0)
        if part in _COUNTED and parts and re.fullmatch(r"[a-z]?\d+", parts[0]):
            parts.pop(0)
            are_counted = True
        elif part in _SEEN:
            continue
        elif _COUNTED_WORD.fullmatch(part):
            are_counted = True
        else:
            left.append(part)
    return "_".join(left), are_counted


def _without_channels(names: Collection[str]) -> dict[str, str]:
    """Names without their last part, or their first, where it tells apart what there are several of; else as they are.
    """
    heads = {name.rpartition("_")[0] for name in names}
    lasts = {name: name.rpartition("_")[::2] if "_" in name and name not in heads else (name, "") for name in names}
    firsts = {name: name.partition("_")[::-2] for name in names if "_" in name}
    if _are_channels(lasts.values()):
        return {name: id_ for name, (id_, _) in lasts.items()}
    if _are_channels(firsts.values()) and not all(id_.isdecimal() for id_, _ in firsts.values()):
        return {name: firsts[name][0] if name in firsts else name for name in names}
    return {name: name for name in names}


def _are_channels(places: Iterable[tuple[str, str]]) -> bool:
    """Whether, of (id, rest), the rests are what most ids have several of.

    Three quarters of all names have a rest that others have too; such rests are at least two, no more than their ids
    (less, if they have digits), and no numbers; half of the ids have several of them.
    """
    places = list(places)
    count = Counter(rest for _, rest in places)
    common = [(id_, rest) for id_, rest in places if count[rest] > 1]
    of_id, rests = Counter(id_ for id_, _ in common), {rest for _, rest in common}
    has_digits = any(letter.isdigit() for rest in rests for letter in rest)
    return (1 < len(rests) <= len(of_id) - has_digits and 4 * len(common) >= 3 * len(places)
            and 2 * sum(several > 1 for several in of_id.values()) >= len(of_id)
            and not any(rest.isdecimal() for rest in rests))


def _end_in_numbers(ids: Iterable[str]) -> bool:
    """Whether most names are several of one but for a number at their end: patients of sites, or visits of patients."""
    heads = Counter(match[1] for id_ in ids if (match := re.fullmatch(r"(.+)[_\-. ]\d+", id_, re.DOTALL)))
    return len(heads) > 1 and 2 * sum(several > 1 for several in heads.values()) >= len(heads)


# ---- what is said ----


def _said(ids: list[str], shared: dict[str, list[str]]) -> list[str]:
    if not shared:
        return []
    base, several = max(shared.items(), key=lambda item: len(item[1]))
    more = ", ..." if len(several) > _SHOWN else ""
    return [f"Note: by their names {sum(map(len, shared.values()))} of {len(ids)} volumes are several of one patient, "
            f"{len(shared)} in all, and stay in one split ({one_line(base)}: {listed(several[:_SHOWN])}{more}); "
            "a table with columns id and group (--table) says otherwise"]


def _unsure(names: list[str]) -> list[str]:
    return [f"Note: names are told apart by numbers ({listed(names[:_SHOWN])}, ...), each of which is taken for a "
            "patient; a table with columns id and group (--table) says which are of one"]
