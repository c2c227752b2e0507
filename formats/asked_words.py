"""What samples were asked for: as a table, in words, and as captions of pictures."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile
from edm3d.utils.checks import listed
from edm3d.utils.names import cell, one_line, titled

CAPTIONED = 4  # attributes in a caption


def table(samples: SamplesFile) -> str:
    """CSV text, a row for each sample: name of its files, id, seed, class and attributes; of a sweep its number, too.

    A cell is empty where nothing was asked for; nothing in it is what a spreadsheet would compute. '' where no file and
    no attribute was asked for: classes that seeds go through in turn need no table.
    """
    meta, seeds = samples.meta, [int(seed) for seed in samples.seeds]
    values = samples.array("attributes")
    if not meta.ids and (values is None or np.isnan(values).all()):
        return ""
    asked: list[tuple[str, Sequence[object]]] = []
    if "classes" in samples.names:
        asked.append(("class", [meta.class_name(i) or "" for i in samples.array("classes")]))
    elif meta.pairs:
        asked.append(("class", list(map(meta.paired_class, seeds))))
    if values is not None:
        asked += [(titled(name, unit), ["" if np.isnan(value) else str(value) for value in column])
                  for name, unit, column in zip(*attribute_names(meta.facts, values.shape[1]), values.T, strict=True)]
    ids = [] if not meta.ids else [("id", [meta.id_of(seed) for seed in seeds])]
    numbers = [("number", seeds)] if meta.sweep or meta.pairs or meta.draws > 1 else []
    numbers += [("draw", list(map(meta.draw_of, seeds)))] if meta.draws > 1 else []
    columns = [("name", meta.file_names(seeds)), *ids, *numbers, ("seed", list(map(meta.noise_of, seeds))), *asked]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell(head) for head, _ in columns])
    writer.writerows(map(cell, row) for row in zip(*(column for _, column in columns), strict=True))
    return out.getvalue().encode(errors="backslashreplace").decode()  # ids may hold what no file of text can


def captions(meta: SampleMeta, seeds: Sequence[int], classes: np.ndarray | None = None,
             attributes: np.ndarray | None = None) -> list[str]:
    """Lines on samples by their numbers: class, id, seed, and the first attributes with their units, a swept one before
    the others, as far as they were asked for.
    """
    texts = []
    for i, number in enumerate(int(seed) for seed in seeds):
        name = meta.paired_class(number) if classes is None else meta.class_name(classes[i])
        lines = [] if name is None else [f"class {name}"]
        lines += [] if meta.id_of(number) is None else [meta.id_of(number)]
        lines += [f"seed {meta.noise_of(number)}" + (f", draw {meta.draw_of(number)}" if meta.draws > 1 else "")]
        lines += [] if attributes is None else attribute_words(meta.facts, attributes[i],
                                                               meta.sweep.column if meta.sweep else None)
        texts.append("\n".join(" ".join(line.split()) for line in lines))
    return texts


def attribute_words(facts: Facts, row: np.ndarray, first: int | None = None) -> list[str]:
    """The attributes of a sample that were asked for, `lv volume 120 mL`, and how many more there are.

    first: number of one that comes before the others.
    """
    names, units = attribute_names(facts, len(row))
    order = sorted(range(len(row)), key=lambda number: number != first)
    found = [f"{names[a]} {row[a]:.3g} {units[a]}".rstrip() for a in order if not np.isnan(row[a])]
    more = len(found) - CAPTIONED
    return found if more <= 0 else [*found[:CAPTIONED - 1], f"and {more + 1} more"]


def said_of_samples(path: Path) -> list[str]:
    """What `check` and `info` say of what the samples of a file were asked for; ValueError naming one that is damaged.
    """
    return [f"  {line}" for line in lines(SamplesFile(path))]


def lines(samples: SamplesFile) -> Iterator[str]:
    """What was asked of the samples of a file, a line for each kind."""
    meta, facts = samples.meta, samples.meta.facts
    yield from meta.privacy.lines() if meta.privacy else ()
    yield from (f"quality check, {meta.quality.attempts} attempts at most: {line}" for line in drawn_again(samples))
    if meta.asked_rows:
        yield f"asked for by {one_line(meta.asked_rows.source)}: {len(meta.ids)} rows"
    if "classes" in samples.names:
        counts = Counter(meta.class_name(i) or "none" for i in samples.array("classes"))
        yield f"classes asked for: {listed(f'{name} {count}' for name, count in counts.items())}"
    if "attributes" in samples.names:
        columns = samples.array("attributes")
        for name, unit, column in zip(*attribute_names(facts, columns.shape[1]), columns.T, strict=True):
            known = column[~np.isnan(column)]
            span = f"{known.min():.4g} to {known.max():.4g} {one_line(unit)}".rstrip() if len(known) else "none"
            lacking = f", {len(column) - len(known)} without" if 0 < len(known) < len(column) else ""
            yield f"attribute asked for: {one_line(name)} {span}{lacking}"
    if "maps" in samples.names:
        yield f"maps asked for, of classes {listed(facts.semantic_classes) or 'without names'}"
    if "cond_images" in samples.names:
        yield f"condition images asked for, of {listed(facts.condition_channels or ()) or 'no names'}"


def drawn_again(samples: SamplesFile) -> list[str]:
    """How many samples were drawn again, and which could not be brought into the ranges of a quality check; [] where
    there was none.
    """
    if samples.meta.quality is None:
        return []
    attempts, flagged = samples.array("attempts"), samples.array("flagged").astype(bool)
    again = (attempts > 0) | (flagged & (samples.meta.quality.attempts > 1))
    said = f"{again.sum()} of {len(samples)} seeds drawn again, {flagged.sum()} flagged"
    return [said + (f": seed {listed(samples.seeds[flagged].tolist())}" if flagged.any() else "")]


def attribute_names(facts: Facts, count: int) -> tuple[Sequence[str], Sequence[str]]:
    """Names and units of the attributes of samples, their numbers where they have no names."""
    names = facts.attribute_names or [f"attribute {a + 1}" for a in range(count)]
    return names, facts.attribute_units or [""] * len(names)
