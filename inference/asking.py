"""Asking for what is drawn: literals and files, held against what a network was trained on before anything is drawn."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from edm3d.formats.asked import AskedFile, AskedGrids, open_asked
from edm3d.formats.facts import Facts
from edm3d.formats.sample_settings import PairedClasses
from edm3d.formats.seeds import requested_seeds
from edm3d.inference.asked_attributes import (
    AskedAttributes,
    attribute_rows,
    check_missing,
    extent_notes,
    geometry_of,
    range_notes,
    sweep_of,
    with_values,
)
from edm3d.inference.asked_pairs import notes_on, pairs_of, record_of
from edm3d.inference.conditions import Conditions
from edm3d.inference.guidance import dropout_option
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Part, takes_of
from edm3d.networks.parts import PARTS
from edm3d.networks.parts.base import PartKind
from edm3d.utils import distributed
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.files import first_line
from edm3d.utils.log import progress
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown
from edm3d.utils.schema import Sampling

USUAL_SEEDS = "0-15"
ROWS = 16  # of a file that are read at a time
MOST_NUMBER = 2 ** 63 - 1
MOST_DIGITS = 18  # of the number of a class
Once = Callable[[Callable[[], Any]], Any]
HOW = {"semantic": "by sampling.conditions=FOLDER of maps",
       "images": "by sampling.conditions=FILE with images"}


def directly(read: Callable[[], Any]) -> Any:
    """What a function gives, called here."""
    return read()


class Asker:
    """A network that may be asked: what it takes, what is known of its data, and the size [*S] of its volumes.

    otherwise: values of parts of which nothing is asked, where that is not for their kinds to say.
    """

    def __init__(self, takes: dict[str, Part], facts: Facts, size: Sequence[int],
                 otherwise: Mapping[str, Sequence[Any]] = MappingProxyType({})):
        self.takes, self.facts, self.size, self.otherwise = takes, facts, tuple(size), otherwise

    def __call__(self, options: Sampling, seeds: Sequence[int] | None = None, given: AskedFile | None = None,
                 once: Once = directly) -> Conditions:
        """What sampling options ask for, every row of it read once; ValueError for what the network was not trained on.

        seeds: those that are drawn, of which there must be as many as rows; None where that is no matter. given: what
        stands for the file of the options. once: calls what reads files, where several ranks ask for the same on one of
        them (`distributed.from_rank_0`).
        """
        file = given or self.opened(options)
        if file and seeds is not None:
            self.check_rows(file, seeds)
        pairs = pairs_of(self.takes, self.facts, options, file, self.class_number)
        told, more = self.attributes(options, file, pairs)
        asked = ({} if pairs else self.classes(options.classes, file)) | self.grids(file) | told
        conditions = self.drawn(Conditions(self.takes, {**self.otherwise, **asked}, self.size, **more), options)
        if pairs:
            conditions = conditions._replace(pairs=pairs, record={**conditions.record, **record_of(pairs)},
                                             notes=[*conditions.notes, *notes_on(pairs, file)])
        if file:
            self.check_told(file, asked)
        for name in self.takes.keys() - conditions.asked.keys():
            self.check_unasked(name)
        if seeds is not None and (max(seeds) + 1) * conditions.per_seed - 1 > MOST_NUMBER:
            key, many = ("sweep", "values") if conditions.sweep else ("pairs", "classes") if pairs else (
                "samples_per_condition", "draws")
            raise ValueError(f"sampling.{key}: seed {max(seeds)} times {conditions.per_seed} {many} is more than a "
                             "file can hold; wanted smaller seeds")
        return self.recorded(conditions, file, list(asked), once) if file else conditions

    def seeds(self, text: object, measured: Callable[[], int] = lambda: 1) -> list[int]:
        """Seeds as they are typed, None: one for each of several rows that were measured, else the usual ones."""
        if text is None and (rows := measured()) > 1:
            return list(range(rows))
        return requested_seeds(USUAL_SEEDS if text is None else text)

    def drawn(self, conditions: Conditions, options: Sampling) -> Conditions:
        """Conditions of which several samples are drawn for each seed, where that is asked for."""
        count = options.samples_per_condition
        if options.antithetic and count % 2:
            raise ValueError(f"sampling.antithetic=true: draws come in pairs, and there are "
                             f"sampling.samples_per_condition={count}; ask for an even number")
        if count == 1:
            return conditions
        if conditions.sweep:
            raise ValueError(f"sampling.samples_per_condition={count}: sampling.sweep draws one sample for each value, "
                             "from one noise; ask for one of the two")
        if not self.takes and not options.posterior:  # draws of a seed share its measurement as well
            raise ValueError(f"sampling.samples_per_condition={count}: the network is told nothing that samples could "
                             "share; ask for more seeds")
        record = {"samples_per_condition": count, **({"antithetic": True} if options.antithetic else {})}
        return conditions._replace(draws=count, antithetic=options.antithetic, record={**conditions.record, **record})

    def check_rows(self, file: AskedFile, seeds: Sequence[int]) -> None:
        """ValueError for a file with more rows than there are seeds, which would be left out in silence."""
        if len(file.ids) > len(seeds):
            raise ValueError(f"{file.source}: has {len(file.ids)} rows, and there are {len(seeds)} seeds; "
                             f"sampling.seeds={min(seeds)}-{min(seeds) + len(file.ids) - 1} takes them all")

    def check_told(self, file: AskedFile, asked: Mapping[str, Any]) -> None:
        """ValueError for a file of which the network is told nothing."""
        if not asked:
            told = listed(PARTS[name].many for name in self.takes) or "it was trained without conditions"
            raise ValueError(f"{file.source}: holds nothing that the network is told ({told})")

    def opened(self, options: Sampling) -> AskedFile | None:
        """The file that options name."""
        if options.conditions is None:
            if options.conditions_split is not None:
                raise ValueError(f"sampling.conditions_split={options.conditions_split}: there is no "
                                 "sampling.conditions whose split it could be")
            return None
        return open_asked(options.conditions, self.facts, len(self.size), options.conditions_split)

    def check_unasked(self, name: str) -> None:
        """ValueError for a part that a network was never trained without, and whose kind has but a null to draw."""
        kind, part = PARTS[name], self.takes[name]
        if part.dropout or type(kind).unasked is not PartKind.unasked:
            return
        if name == "attributes":
            known = AskedAttributes.of(part, self.facts)
            check_missing(known, np.full((1, part.width), np.nan, np.float32))
            return
        raise ValueError(f"sampling.conditions: no {kind.many} are asked for, and the network was never trained "
                         f"without; ask {HOW.get(name, 'for some')}, or train with {dropout_option(name)}=0.1")

    def refuse(self, name: str, said: str) -> None:
        """ValueError, begun by `said`, where a network takes nothing of a part."""
        if name not in self.takes:
            kind = PARTS[name]
            raise ValueError(f"{said}: the network was trained without {kind.many}; train one with "
                             f"training.network.model.{kind.width_key}=auto")

    # ---- classes ----

    def classes(self, literal: Sequence[str] | None, file: AskedFile | None) -> dict[str, Sequence[Any]]:
        """Numbers of the classes asked for, those typed in place of those of a file."""
        names = self.facts.class_names
        if literal and "class_labels" not in self.takes:
            raise ValueError(f"sampling.classes={list(literal)}: the network was trained without classes; train one "
                             f"with training.network.model.label_dim={len(names) or 'K'}")
        if literal:
            return {"class_labels": [self.class_number(name, "sampling.classes") for name in literal]}
        if file is None or file.classes is None or not ("class_labels" in self.takes or any(file.classes)):
            return {}
        if not self.takes_of_file("class_labels", file, "column class"):
            return {}
        numbers = []
        for id_, name in zip(file.ids, file.classes, strict=True):
            where = f"{file.source}: class of {one_line(id_)}"
            if name in ("", None) and not self.takes["class_labels"].dropout:
                raise ValueError(f"{where}: none, and the network was never trained without one; name one, or train "
                                 f"with {dropout_option('class_labels')}=0.1")
            numbers.append(-1 if name in ("", None) else self.class_number(name, where))
        return {"class_labels": numbers}

    def class_number(self, name: object, where: str) -> int:
        """Number of a class by its name, or by itself; ValueError for one that there is not."""
        names, text = self.facts.class_names, str(name)
        count = self.takes["class_labels"].width if "class_labels" in self.takes else len(names)
        if text in names:
            return names.index(text)
        if re.fullmatch(r"-?\d+", text, re.ASCII):
            if len(text) < MOST_DIGITS and 0 <= int(text) < count:
                return int(text)
            raise ValueError(f"{where}: there is no class {text[:MOST_DIGITS]}, but {count}, 0 to {count - 1}"
                             + (f" ({listed(names)})" if names else ""))
        raise ValueError(f"{where}: {shown(text)} is not one of {listed(names) or f'0 to {count - 1}'}")

    def takes_of_file(self, name: str, file: AskedFile, what: str) -> bool:
        """Whether a network takes a part that a file has; ValueError where somebody asks for it in vain."""
        if file.is_list:
            self.refuse(name, f"{file.source}: {what}")
        return name in self.takes

    # ---- attributes ----

    def attributes(self, options: Sampling, file: AskedFile | None, pairs: PairedClasses | None = None
                   ) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
        """Rows of the attributes asked for; and further fields of the conditions."""
        columns = list(file.attributes) if file else []
        notes = list(file.notes) if file else []
        for key, names in (("attributes", options.attributes), ("sweep", options.sweep)):
            if names:
                self.refuse("attributes", f"sampling.{key}.{one_line(str(next(iter(names))))}")
        if columns and not self.takes_of_file("attributes", file, f"column {one_line(columns[0].name)!r}"):
            columns = []
        if "attributes" not in self.takes:
            return {}, {"notes": notes}
        known = AskedAttributes.of(self.takes["attributes"], self.facts)
        if file and not file.is_list:
            columns = [column for column in columns if column.name in known.names]
        paired = pairs is not None and pairs.column is not None
        if not (columns or options.attributes or options.sweep or paired):
            return {}, {"notes": notes}
        rows, said, more = attribute_rows(known, columns, options.attributes, file.ids if columns else [],
                                          file.source if file else "")
        sweep = sweep_of(known, options.sweep, options.attributes)
        whole = rows
        if sweep:
            if any(known.number(column.name, "") == sweep.column for column in columns):
                more.append(f"Note      sampling.sweep.{one_line(sweep.name)} stands in place of the values of "
                            f"{file.source}")
            whole = with_values(rows, sweep.column, sweep.values)
        if paired:
            whole = with_values(rows, pairs.column, pairs.values)
        check_missing(known, whole, f"{file.source}" if columns else "")
        record = {**({"attributes": said} if said else {}), **({"sweep": sweep._asdict()} if sweep else {})}
        geometry = geometry_of(known, whole, self.facts, self.size, None if not columns or file.is_list else {
            *said, *([sweep.name] if sweep else ())})
        notes += [*more, *range_notes(known, whole), *extent_notes(known, whole, geometry)]
        return {"attributes": list(rows)}, {"sweep": sweep, "record": record, "notes": notes, "geometry": geometry}

    # ---- maps and images ----

    def grids(self, file: AskedFile | None) -> dict[str, Sequence[Any]]:
        """Maps, and images as networks see them, checked whenever they are read."""
        found: dict[str, Sequence[Any]] = {}
        if file is None:
            return found
        if file.maps is not None and self.takes_of_file("semantic", file, "its maps"):
            wanted = self.facts.semantic_classes
            if file.map_classes and wanted and tuple(file.map_classes) != wanted:
                got, named = listed_apart(file.map_classes, wanted)
                raise ValueError(f"{file.source}: classes of its maps are {got}, the network was trained on {named}")
            found["semantic"] = file.maps.then(self.checked_map)
        if file.images is not None and self.takes_of_file("images", file, "its images"):
            if file.intensity and file.intensity != self.facts.intensity:
                raise ValueError(f"{file.source}: intensities are {file.intensity}, the network was trained with "
                                 f"{self.facts.intensity}")
            found["images"] = file.images.then(self.checked_image)
        return found

    def checked_map(self, found: np.ndarray, name: str) -> np.ndarray:
        """A map [*S] as whole numbers; ValueError, begun by its name, for another grid and values of no class."""
        count, names = self.takes["semantic"].width, self.facts.semantic_classes
        if found.shape != self.size:
            raise ValueError(f"{name}: the map is on a grid of {sizes(found.shape)}, the volumes on "
                             f"{sizes(self.size)}; put it on theirs first, nothing is resampled here")
        if found.dtype.kind not in "biu" and (not np.isfinite(found).all() or (found != np.rint(found)).any()):
            raise ValueError(f"{name}: the map has values that are no whole numbers, wanted numbers of classes")
        if found.min() < 0 or found.max() >= count:
            odd = found.min() if found.min() < 0 else found.max()
            raise ValueError(f"{name}: the map has the value {odd:g}, and there are {count} classes, 0 to {count - 1}"
                             + (f" ({listed(names)})" if names else ""))
        return found.astype(np.int16)

    def checked_image(self, found: np.ndarray, name: str) -> np.ndarray:
        """An image [C,*S] in network units; ValueError, begun by its name, for another grid and other values."""
        count, intensity = self.takes["images"].width, self.facts.intensity
        if found.shape != (count, *self.size):
            raise ValueError(f"{name}: the image has {len(found)} channels on a grid of {sizes(found.shape[1:])}, "
                             f"wanted {count} on {sizes(self.size)}"
                             + (f" ({listed(self.facts.condition_channels)})" if self.facts.condition_channels else ""))
        if not np.isfinite(found).all():
            raise ValueError(f"{name}: the image has values that are not finite")
        if intensity.is_left_by(lo := float(found.min()), hi := float(found.max())):
            raise ValueError(f"{name}: the image has values {lo:g} to {hi:g}, the network was trained on "
                             f"{intensity.lo:g} to {intensity.hi:g} {intensity.unit}")
        return intensity.to_network(found.astype(np.float32)).astype(np.float32)

    # ---- the whole ----

    def recorded(self, conditions: Conditions, file: AskedFile, by: Sequence[str],
                 once: Once) -> Conditions:
        """With a record of the file: where it lay, the hash of all that is asked for row by row, and its ids.

        by: names of the parts that are asked for, of which every row is read.
        """
        digest = hashlib.sha256()
        grids = {name: found for name in by if isinstance(found := conditions.asked[name], AskedGrids)}

        def read(rows: Sequence[int]) -> dict[str, dict[int, bytes]]:
            for index in rows:
                digest.update(f"{file.ids[index]}\n".encode(errors="surrogatepass"))
                for name in by:
                    values = conditions.asked[name]
                    row = PARTS[name].row(values[index % len(values)], self.takes[name].width, self.size)
                    digest.update(f"{name}{row.dtype.str}{row.shape}".encode() + row.tobytes())
            return {name: {index: found.first[index] for index in rows} for name, found in grids.items()}

        once, count = once if grids else directly, len(file.ids)
        for start in progress(range(0, count, ROWS), desc="read conditions", unit=f"{ROWS} rows",
                              is_main=distributed.rank() == 0):  # some at a time, so that no rank waits for long
            for name, hashes in once(partial(read, range(start, min(start + ROWS, count)))).items():
                grids[name].first.update(hashes)
        record = {"source": file.source, "hash": once(digest.hexdigest), "ids": list(file.ids)}
        more = ", ..." if len(file.ids) > 3 else ""
        line = (f"Asked     {file.source}: {len(file.ids)} rows ({listed(file.ids[:3])}{more}), of "
                f"{listed(PARTS[name].many for name in by)}")
        lacking = [] if file.is_list else [PARTS[name].many for name in self.takes if name not in by]
        without = [f"Note      {file.source}: has no {name} of the network's; none are asked for" for name in lacking]
        return conditions._replace(record={**conditions.record, "conditions": record},
                                   notes=[line, *without, *conditions.notes])


def asker_of(net: object, snapshot: Snapshot, otherwise: Mapping[str, Sequence[Any]] = MappingProxyType({})) -> Asker:
    """A snapshot's network, which may be asked."""
    return Asker(takes_of(net), snapshot.facts, snapshot.volume_shape, otherwise)


def sizes(shape: Sequence[int]) -> str:
    """A grid in a message."""
    return "x".join(map(str, shape))


def arrays_of(name: str, found: Any) -> list[np.ndarray]:
    """The rows of an array, or a list of arrays; ValueError naming what is none."""
    try:
        return [np.asarray(each) for each in found]
    except (TypeError, ValueError) as e:
        raise ValueError(f"{name}: cannot be taken as arrays of numbers ({first_line(e)})") from e


def in_memory(maps: Any = None, images: Any = None) -> AskedFile | None:
    """Maps [N,*S] and images [N,C,*S] in stored units, arrays or lists of them, as a file would ask for them."""
    given = {"maps": maps, "images": images}
    rows = {name: arrays_of(name, found) for name, found in given.items() if found is not None}
    if not rows:
        return None
    if len(lengths := {len(found) for found in rows.values()}) > 1 or 0 in lengths:
        raise ValueError("; ".join(f"{name}: {len(found)} given" for name, found in rows.items())
                         + "; wanted one or more, as many of each")
    for name, found in rows.items():
        if odd := [row for row in found if row.dtype.kind not in "biuf" or row.ndim < 1]:
            raise ValueError(f"{name}: holds {odd[0].dtype} {odd[0].shape}, wanted arrays of numbers")
    ids = [str(i) for i in range(*lengths)]

    def lazily(name: str) -> AskedGrids | None:
        return AskedGrids([f"{name}[{id_}]" for id_ in ids], rows[name].__getitem__) if name in rows else None

    return AskedFile("arrays", ids, maps=lazily("maps"), images=lazily("images"), is_list=True)
