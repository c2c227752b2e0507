"""Real volumes that are shown beside what a network draws: of a file, or those that it was trained on."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from edm3d.formats import h5
from edm3d.formats.volumes import Item, VolumesFile, held_out_first
from edm3d.inference.asking_scans import held_out_items
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.slices import Picture
from edm3d.utils.checks import listed
from edm3d.utils.files import first_line
from edm3d.utils.trusted import DATASETS, is_listed

UNSAID = "the network was trained privately, and its snapshot does not say on which volumes"


def real_pictures(snapshot: Snapshot, source: str | None, count: int, trust: bool) -> tuple[list[Picture], str]:
    """Images and label maps of up to `count` volumes like those that a network was trained on, or why there are none.

    They come from `source` (a volumes.h5; ValueError for one that does not match the samples), held-out ones first,
    else from the file or the data set that the snapshot names, where that is as it was in training.
    """
    if source is not None:
        return volume_pictures(VolumesFile(source), snapshot, count, f"sampling.real={source}"), ""
    try:
        return training_pictures(snapshot, count, trust), ""
    except (OSError, ValueError) as e:
        return [], first_line(e)


def volume_pictures(file: VolumesFile, snapshot: Snapshot, count: int, said: str) -> list[Picture]:
    """The first volumes of a file, held-out ones first, with the channels that the samples have."""
    channels = shown_channels(file, snapshot, said)
    places = islice(((split, i) for split in held_out_first(file.splits) for i in range(file.length(split))), count)
    return [(item.image[channels], item.label) for item in (file.read(*place) for place in places)]


def real_volume(snapshot: Snapshot, source: str | None) -> Item:
    """The first volume, a held-out one if there is any, of a file (None: of that which the network was trained on) with
    the channels that are drawn; ValueError where there is none, or its intensities or names are others.
    """
    if source is None and snapshot.hides_its_data:
        raise ValueError(UNSAID)
    facts, path = snapshot.facts, Path(source or snapshot.facts.source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not holds_volumes(path):
        raise ValueError(f"{path} holds no volumes")
    file = VolumesFile(path)
    if source is None and file.content_hash != facts.content_hash:
        raise ValueError(f"{path} is not what the network was trained on, but another file of that name")
    if (span := (file.meta.intensity.lo, file.meta.intensity.hi)) != (facts.intensity.lo, facts.intensity.hi):
        raise ValueError(f"{path}: intensity range {span} differs from {(facts.intensity.lo, facts.intensity.hi)}")
    for what, had, wanted in (("classes", file.meta.class_names, facts.class_names),
                              ("attributes", file.meta.attribute_names, facts.attribute_names or ()),
                              ("classes of maps", file.meta.map_classes or file.meta.label_classes,
                               facts.semantic_classes)):
        if wanted and tuple(had) != tuple(wanted):
            raise ValueError(f"{path}: its {what} are {listed(had)}, the network knows {listed(wanted)}")
    channels = shown_channels(file, snapshot, str(path))
    split = next((name for name in held_out_first(file.splits) if file.length(name)), None)
    if split is None:
        raise ValueError(f"{path} holds no volumes")
    item = file.read(split, 0)
    return item._replace(image=item.image[channels])


def shown_channels(file: VolumesFile, snapshot: Snapshot, said: str) -> list[int]:
    """Numbers of the channels of a file that samples have, by name; ValueError, begun by `said`, where it lacks any.

    Single channels go by any name, and so do all where those of the samples have none.
    """
    names, had, dims = snapshot.facts.channels, file.meta.channels, len(snapshot.shape) - 1
    count = channel_count(snapshot) or len(had)
    if file.meta.spatial_dims == dims and names and set(names) <= set(had):
        return [had.index(name) for name in names]
    if file.meta.spatial_dims == dims and len(had) == count and (count == 1 or not names):
        return list(range(count))
    wanted = f"channels {listed(names)}" if names else f"{count} channels"
    raise ValueError(f"{said}: its volumes are in {file.meta.spatial_dims}D, of channels {listed(had)}; wanted "
                     f"{wanted} in {dims}D, as the network draws them")


def channel_count(snapshot: Snapshot) -> int | None:
    """How many channels images have, None where only their latents are known."""
    labels = snapshot.label_coding.channels if snapshot.label_coding else 0
    return len(snapshot.facts.channels) or (None if snapshot.first_stage else snapshot.shape[0] - labels)


def training_pictures(snapshot: Snapshot, count: int, trust: bool) -> list[Picture]:
    """Items of what the network was trained on; ValueError where that is not there, is other data by now, or is the
    user's own and not trusted.
    """
    if snapshot.hides_its_data:
        raise ValueError(UNSAID)
    facts, path = snapshot.facts, Path(snapshot.facts.source)
    if absent := [file for file in facts.files if not Path(file).is_file()]:
        raise ValueError(f"there is no file {absent[0]}")
    changed = ValueError(f"{path} is not what the network was trained on, but another file of that name")
    ours = is_listed(snapshot.setting("training", "dataset", "_target_"), DATASETS)
    if holds_volumes(path):
        file = VolumesFile(path)
        if file.content_hash == facts.content_hash:
            return volume_pictures(file, snapshot, count, str(path))
        if ours and facts.latents:
            raise changed
    if facts.latents:
        raise ValueError(f"{path} holds no volumes")
    dataset = held_out_items(snapshot, trust)
    if ours and dataset.facts.content_hash != facts.content_hash:
        raise changed
    pictures = [(facts.intensity.from_network(sample.image), sample.label) for sample in spread(dataset, count)]
    if (wanted := channel_count(snapshot)) and (odd := [len(image) for image, _ in pictures if len(image) != wanted]):
        raise ValueError(f"{path} holds images of {odd[0]} channels, the network was trained on {wanted}")
    return pictures


def holds_volumes(path: Path) -> bool:
    """Whether a file is a volumes.h5; data sets of the user's own read anything."""
    try:
        return path.suffix == ".h5" and h5.read_format(path) == "volumes"
    except ValueError:
        return False


def spread(dataset: Sequence[Sample], count: int) -> list[Sample]:
    """Up to `count` items from all over a data set."""
    return [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))]
