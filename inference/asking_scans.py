"""Asking networks of PET: which scans they are told, in which units, and at which dose those of phantoms are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edm3d.formats.asked import AskedColumn, AskedFile
from edm3d.formats.asked_scans import ScanFile, as_rows, checked, read_scans
from edm3d.formats.dose import PAIR, DoseRecord
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import spacing_of
from edm3d.formats.phantom_files import content_hash_of, is_phantoms
from edm3d.inference.asking import Asker, Once, asker_of, directly
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import Conditions
from edm3d.inference.guidance import dropout_option
from edm3d.inference.scan_settings import KEY, OWN_KEYS, checked_settings, scale_of, simulation_of, trained_simulation
from edm3d.inference.scans import Grid, OwnScans, Scans, SimulatedScans, keep_projector
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import takes_of
from edm3d.networks.parts import PARTS
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.dose import DoseSimulation
from edm3d.utils.checks import listed
from edm3d.utils.config import build, build_from_file, check_from_file
from edm3d.utils.files import first_line, plain_hash
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown
from edm3d.utils.schema import Sampling
from edm3d.utils.trusted import DATASETS, is_listed

TABLES = (".csv", ".tsv")
MOST_OFF = 0.1  # of voxel sizes, which is no matter
HOW_READ = ("order", "subjects")  # what of PhantomDataset is said of a file, not of what is made of it
OF_PHANTOMS = "training.datasets.phantoms.PhantomDataset"


def asker_for(net: object, snapshot: Snapshot, options: Sampling, given: AskedFile | None = None,
              run_root: str = "results") -> Asker:
    """What asks a snapshot's network: of PET, by the scans that options name, given ones (arrays), or phantoms of the
    held-out split. ValueError for what can be no scan of this network.
    """
    takes, dose = takes_of(net), snapshot.dose
    if dose is None:
        if options.scan:
            raise ValueError(f"{KEY}: {snapshot.path} is told no low dose (batch_transform=dose_pair); leave it away")
        return asker_of(net, snapshot)
    if "images" not in takes:
        file = options.conditions
        if given is not None or options.scan or (file and Path(file).suffix.lower() not in TABLES):
            what = "draws both doses" if dose.drawn == PAIR else "draws the high dose"
            raise ValueError(f"sampling.conditions={file or 'arrays'}: {snapshot.path} {what} and is told no scan; "
                             f"leave sampling.conditions and {KEY} away, or train with "
                             "training.batch_transform.drawn=high and training.network.model.image_dim=auto")
        return asker_of(net, snapshot)
    scans, file = open_scans(snapshot, options, given, run_root)
    return ScanAsker(net, snapshot, scans, file)


def in_units(snapshot: Snapshot, conditions: Conditions) -> Snapshot:
    """A snapshot whose facts say in which units it draws: those of the scans, of a pair the mean scale of training."""
    if snapshot.dose is None:
        return snapshot
    dose = snapshot.dose
    intensity = conditions.scans.intensity if conditions.scans else Intensity(0.0, dose.typical, False, dose.unit)
    return replace(snapshot, facts=replace(snapshot.facts, intensity=intensity))


class ScanAsker(Asker):
    """A network that is told scans; classes and attributes of phantoms are their own unless others are asked for."""

    def __init__(self, net: object, snapshot: Snapshot, scans: Scans, file: AskedFile):
        super().__init__(takes_of(net), snapshot.facts, snapshot.volume_shape)
        self.scans, self.file = scans, file

    def seeds(self, text: object, measured: Callable[[], int] = lambda: 1) -> list[int]:
        """Those that are typed, else one for each slice of a scan of the user's own, and no fewer than were measured.
        """
        if text is None and self.scans.per_scan:
            return list(range(max(len(self.scans.names), measured())))
        return super().seeds(text, measured)

    def __call__(self, options: Sampling, seeds: Sequence[int] | None = None, given: AskedFile | None = None,
                 once: Once = directly) -> Conditions:
        return super().__call__(options, seeds, self.file, once)

    def check_rows(self, file: AskedFile, seeds: Sequence[int]) -> None:
        """Fewer seeds than scans are no mistake."""

    def grids(self, file: AskedFile | None) -> dict[str, Sequence[Any]]:
        """None besides the scans."""
        return {}

    def check_told(self, file: AskedFile, asked: Mapping[str, Any]) -> None:
        """Scans are told in any case."""

    def check_unasked(self, name: str) -> None:
        if name != "images":
            super().check_unasked(name)

    def classes(self, literal: Sequence[str] | None, file: AskedFile | None) -> dict[str, Sequence[Any]]:
        """Where none are known and none asked for, none are told: no slice is told that of another."""
        found = super().classes(literal, file)
        if found or "class_labels" not in self.takes:
            return found
        if not self.takes["class_labels"].dropout:
            raise ValueError(f"{self.file.source}: has no classes, and the network was never trained without; say "
                             f"them by sampling.classes, or train with {dropout_option('class_labels')}=0.1")
        return {"class_labels": [-1]}

    def recorded(self, conditions: Conditions, file: AskedFile, by: Sequence[str], once: Once) -> Conditions:
        """With the scans, and a record of them."""
        record = {"source": file.source, "hash": self.scans.hash, "ids": list(file.ids)}
        more = ", ..." if len(file.ids) > 3 else ""
        told = listed(["scans", *(PARTS[name].many for name in by)])
        line = f"Asked     {file.source}: {len(file.ids)} rows ({listed(file.ids[:3])}{more}), of {told}"
        return conditions._replace(scans=self.scans, notes=[line, *conditions.notes],
                                   record={**conditions.record, "conditions": record, "scan": self.scans.record})


# ---- scans ----


def open_scans(snapshot: Snapshot, options: Sampling, given: AskedFile | None, run_root: str
               ) -> tuple[Scans, AskedFile]:
    """The scans that are asked for, and what else is known of them row by row."""
    changed = checked_settings(options.scan)
    simulation, node = simulation_of(snapshot, changed, options.trust)
    scale = scale_of(snapshot, options.trust)
    if given is None and (options.conditions is None or is_phantoms(options.conditions)):
        items, notes = phantoms_of(snapshot, options)
        if note := keep_projector(simulation, run_root):
            notes.append(f"Note      {note}")
        return simulated(snapshot, items, simulation, node, scale, changed, notes)
    dims, path = len(snapshot.shape) - 1, options.conditions
    file = read_scans(path, dims, options.conditions_split) if given is None else of_arrays(given, dims)
    file = file if dims == 2 else file.in_stacks(snapshot.shape[1])
    return own(snapshot, file, simulation, scale, changed)


def checked_unit(stated: str | None, dose: DoseRecord, changed: Mapping[str, Any], source: str) -> str:
    """The unit of activities, fit for a line of text: what is typed, else what the file states; ValueError where that
    is not the training's.
    """
    if "unit" in changed:
        return one_line(changed["unit"])
    if stated is not None and one_line(stated) != one_line(dose.unit):
        raise ValueError(f"{source}: is in {shown(stated)}, the network was trained on {shown(dose.unit)}; where "
                         f"that is no matter, as scales are those of each scan, say {KEY}.unit={one_line(stated)!r}")
    return one_line(dose.unit)


# ---- of phantoms ----


def phantoms_of(snapshot: Snapshot, options: Sampling) -> tuple[Sequence[Sample], list[str]]:
    """The data set of the phantoms that are asked for, else the held-out ones of training; and notes."""
    if options.conditions is None and options.conditions_split is None:
        try:
            items = held_out_items(snapshot, options.trust)
        except ValueError as e:
            raise ValueError(f"sampling.conditions: none are given, and the phantoms that {snapshot.path} was trained "
                             f"on cannot be read ({first_line(e)}); name a scan, or phantoms, by "
                             "sampling.conditions=FILE") from e
        changed = items.facts.content_hash != snapshot.facts.content_hash
        return items, [f"Note      {items.facts.source} is not what the network was trained on, but another file of "
                       "that name: held-out slices may be others"] if changed else []
    node, notes = phantoms_node(snapshot, options)
    check_from_file(node, str(snapshot.path), allowed=DATASETS)
    asked = f"sampling.conditions={options.conditions}" if options.conditions is not None else \
        f"sampling.conditions_split={options.conditions_split}"
    try:
        return build(node), notes
    except (ArithmeticError, ValueError) as e:
        raise ValueError(f"{asked}: {first_line(e)}") from e


def phantoms_node(snapshot: Snapshot, options: Sampling) -> tuple[dict[str, Any], list[str]]:
    """How the phantoms that are asked for are read, and notes: as in training, if they are those, wherever they lie."""
    node = {**snapshot.setting("training", "dataset"), "split": options.conditions_split or "all"}
    if node.get("_target_", "").removeprefix("edm3d.") != OF_PHANTOMS:
        if options.conditions is None:
            raise ValueError(f"sampling.conditions_split={options.conditions_split}: {snapshot.path} was not trained "
                             "on phantoms; name some by sampling.conditions=FILE")
        node = {"_target_": OF_PHANTOMS, "split": node["split"], **(
            {"stack": snapshot.shape[1]} if len(snapshot.shape) == 4 else {})}
    if options.conditions is None:
        return node, []
    node, said = {**node, "path": options.conditions}, [name for name in HOW_READ if node.get(name) is not None]
    if not said or content_hash_of(options.conditions) == snapshot.facts.content_hash:
        return node, []
    return {name: value for name, value in node.items() if name not in said}, [
        f"Note      {options.conditions} is not what the network was trained on: training.dataset."
        f"{listed(said)} of that are not taken for it"]


def held_out_items(snapshot: Snapshot, trust: bool) -> Sequence[Sample]:
    """The data set that a snapshot names, of the split that validation takes where it has splits.

    Out of a file come only data sets of ours, which read regular files of the formats that we parse, and never write.
    """
    node = dict(snapshot.setting("training", "dataset"))
    if not trust and not is_listed(snapshot.setting("training", "dataset", "_target_"), DATASETS):
        raise ValueError(f"{node['_target_']} is a class of your own, which may read them by sampling.trust=true")
    if "split" in node:
        node["split"] = snapshot.setting("training", "validation", "split")
    return build_from_file(node, str(snapshot.path), trust, DATASETS)


def simulated(snapshot: Snapshot, items: Sequence[Sample], simulation: DoseSimulation, node: Mapping[str, Any],
              scale: ActivityScale, changed: Mapping[str, Any], notes: Sequence[str] = ()) -> tuple[Scans, AskedFile]:
    """Scans simulated of phantoms; heights and classes are theirs."""
    facts: Facts = items.facts
    if (size := tuple(items[0].image.shape)) != (1, *snapshot.volume_shape):
        raise ValueError(f"{facts.source}: phantoms are {list(size)}, the network is told "
                         f"{[1, *snapshot.volume_shape]}; wanted that size")
    if "fit" in changed:
        raise ValueError(f"{KEY}.fit: {facts.source} are phantoms, which are of the network's size; leave it away")
    names = [one_line(str(name)) for name in getattr(items, "ids", range(len(items)))]
    intensity = replace(facts.intensity, unit=checked_unit(facts.intensity.unit, snapshot.dose, changed, facts.source))
    record = {"of": "phantoms", "simulation": dict(node), "scale": snapshot.dose.scale, "unit": intensity.unit}
    scans = SimulatedScans(items, names, snapshot.volume_shape, facts.intensity, simulation, scale, intensity, record,
                           plain_hash([getattr(items, "hash", facts.content_hash), names]))
    told = [items[i].condition for i in range(len(items))] if items[0].condition else []
    return scans, AskedFile(facts.source, names, classes_of(told, facts), heights_of(told, facts),
                            notes=[*notes, f"Scans     simulated at {simulation.dose:g} of the high dose"])


def classes_of(told: Sequence[Mapping[str, Any]], facts: Facts) -> list[str] | None:
    """Names of the classes of items, "" for none; None where they have none."""
    if not told or "class_labels" not in told[0] or not facts.class_names:
        return None
    return [facts.class_names[int(np.argmax(each["class_labels"]))] if np.any(each["class_labels"]) else ""
            for each in told]


def heights_of(told: Sequence[Mapping[str, Any]], facts: Facts) -> list[AskedColumn]:
    """Attributes of items, such as the heights of slices."""
    if not told or "attributes" not in told[0]:
        return []
    table = np.stack([each["attributes"] for each in told])
    units = facts.attribute_units or [None] * len(facts.attribute_names)
    return [AskedColumn(*column) for column in zip(facts.attribute_names, table.T.tolist(), units, strict=True)]


# ---- of his own ----


def of_arrays(given: AskedFile, dims: int) -> ScanFile:
    """Scans of arrays in memory (the argument `images`); ValueError for arrays of several sizes, and for maps."""
    if given.maps is not None or given.images is None:
        raise ValueError("maps: the network is told low-dose images; give these as images")
    rows = [given.images[i] for i in range(len(given.images))]
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"images: {listed(sorted({str(list(row.shape)) for row in rows}))}; wanted one size")
    images = as_rows(np.stack(rows), dims, "images")
    return checked(ScanFile("images", images, list(given.ids)))


def own(snapshot: Snapshot, file: ScanFile, simulation: DoseSimulation, scale: ActivityScale,
        changed: Mapping[str, Any]) -> tuple[Scans, AskedFile]:
    """Scans of the user's own, in their own units."""
    if made := [name for name in changed if name not in (*OWN_KEYS, "dose")]:
        raise ValueError(f"{KEY}.{made[0]}: {file.source} holds scans, of which nothing is simulated; leave it away, "
                         "or name phantoms by sampling.conditions")
    dose, size = snapshot.dose, snapshot.volume_shape
    check_scan_size(file, size, simulation, bool(changed.get("fit")))
    unit = checked_unit(file.unit, dose, changed, file.source)
    record = {"of": "scans", "scale": dose.scale, "unit": unit,
              **{name: changed[name] for name in ("fit", "dose") if name in changed}}
    grid = Grid.centred(file.images.shape[2:], size)
    intensity = Intensity(0.0, float(file.images.max()), False, unit)
    scans = OwnScans(file, grid, scale, intensity, record, changed.get("dose"))
    notes = own_notes(file, scans, dose, changed)
    if file.depth is not None:
        notes.append(f"Stacks    {file.source}: {file.depth} slices are {len(file.images)} stacks of {size[0]}, each "
                     "drawn by itself; the last is filled up by empty slices")
    return scans, AskedFile(file.source, scans.names, notes=notes)


def check_scan_size(file: ScanFile, size: Sequence[int], simulation: DoseSimulation, fit: bool) -> None:
    """ValueError unless scans are of the network's size, or may be made so."""
    found = file.images.shape[2:]
    lines = getattr(getattr(simulation, "geometry", None), "sinogram_shape", None)
    if found == tuple(size):
        return
    if len(found) == 3 and found[0] != size[0]:
        raise ValueError(f"{file.source}: stacks are of {found[0]} slices, the network is told {size[0]}, and "
                         f"{KEY}.fit crops within slices alone; wanted stacks of {size[0]}, or a NIfTI, which is cut "
                         "into them")
    words = f"{file.source}: scans are {'x'.join(map(str, found))}, the network is told {'x'.join(map(str, size))}"
    if lines and found[-2:] == tuple(lines):
        raise ValueError(f"{words}; {lines[0]} angles x {lines[1]} shifts are those of a sinogram, which has to be "
                         "reconstructed first")
    if not fit:
        raise ValueError(f"{words}; resample them first, or pad and crop them about their centre by {KEY}.fit=true")


def own_notes(file: ScanFile, scans: OwnScans, dose: DoseRecord, changed: Mapping[str, Any]) -> list[str]:
    """What there is to tell of scans of the user's own."""
    unit = one_line(scans.intensity.unit) or "no unit"
    stated = "as is typed" if "unit" in changed else "as the file states" if file.unit is not None else \
        "the training's, as the file states none"
    notes = [f"Unit      {unit}, {stated}"]
    if scans.empty:
        many = f"{len(scans.empty)} empty slices are" if len(scans.empty) > 1 else "1 empty slice is"
        notes.append(f"Note      {file.source}: {many} left out "
                     f"({listed(scans.empty[:3])}{', ...' if len(scans.empty) > 3 else ''})")
    whole, kept = float(file.images.sum(dtype=np.float64)), float(scans.images.sum(dtype=np.float64))
    if whole - kept > 1e-6 * whole:
        notes.append(f"Note      {file.source}: {(whole - kept) / whole:.1%} of the activity is cropped away by "
                     f"{KEY}.fit")
    if file.affine is not None and (trained := dose.simulation.get("pixel_mm")):
        found = spacing_of(file.affine)[:2]
        if max(abs(found / trained - 1)) > MOST_OFF:
            notes.append(f"Note      {file.source}: voxels are {found[0]:.3g} x {found[1]:.3g} mm within a slice, "
                         f"those of training {trained:g} mm; the network has seen no such sizes")
    return notes


def scans_of_items(net: object, snapshot: Snapshot, items: Sequence[Sample], facts: Facts, trust: bool,
                   run_root: str) -> Asker:
    """What asks a network by scans of a few items, while it is being trained."""
    listed_items = Few(items, facts)
    simulation = trained_simulation(snapshot, trust)
    keep_projector(simulation, run_root)
    return ScanAsker(net, snapshot, *simulated(snapshot, listed_items, simulation, snapshot.dose.simulation,
                                               scale_of(snapshot, trust), {}))


class Few(list):
    """Items in memory, and what is known of their data."""

    def __init__(self, items: Sequence[Sample], facts: Facts):
        super().__init__(items)
        self.facts = facts
