"""What is known of the volumes of a file, and travels with them into latents, snapshots, states and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.intensity import Intensity
from edm3d.formats.items import affine_problem, check_names
from edm3d.formats.nifti import spacing_of
from edm3d.formats.volumes import NAMES, ROLES, VolumesFile
from edm3d.utils.files import plain_hash
from edm3d.utils.plain import from_plain, shown, taken

# fields by which a run knows its data again; the others follow from the contents that the hashes are of
IDENTITY = ("source", "content_hash", "channels", "condition_channels", "label_classes", "map_classes", "class_names",
            "intensity", "spatial_shape", "affine", "latents", "latents_hash", "first_stage")
LISTS = ("channels", "condition_channels", "label_classes", "map_classes", "class_names", "spatial_shape",
         "attribute_names", "attribute_units")  # tuples, which plain data has none of
POSTERIORS = ("gaussian", "gamma", "point")  # of networks.posteriors
SCALINGS = ("standardize", "minmax", "scale_factor")  # of networks.latent_codec
UNIT_RANGE = Intensity(0.0, 1.0, True, "a.u.")
NO_AFFINE = tuple(map(tuple, np.eye(4).tolist()))
BETWEEN = " + "  # the files in the source of facts of several
OF_VOLUMES = ("channels", "condition_channels", "label_classes", "map_classes", "intensity", "spatial_shape", "affine")


class LatentScaling(NamedTuple):
    """How diffusion scales latents: the arguments of networks.latent_codec.shift_and_gain."""

    channel_mean: list[float]
    channel_std: list[float]
    limits: list[float] | None = None
    scaling: str = "standardize"
    sigma_data: float = 0.5

    @classmethod
    def from_plain(cls, found: object, source: object, key: str) -> "LatentScaling":
        """From plain data of a file; ValueError naming it (source) and the key for anything else."""
        scaling = from_plain(cls, found, source, key)
        try:
            check_statistics(scaling)
            if not scaling.sigma_data > 0:
                raise ValueError(f"sigma_data is {scaling.sigma_data}, wanted more than 0")
        except ValueError as e:
            raise ValueError(f"{source}: {key}: {e}") from e
        return scaling


class LatentFacts(NamedTuple):
    """Of latents: their file, its content hash, statistics of draws from the training split, scaling and posterior.

    All but path and hash are None where a file of before names these alone.
    """

    path: str
    hash: str
    channel_mean: list[float] | None = None
    channel_std: list[float] | None = None
    limits: list[float] | None = None
    scaling: str | None = None
    posterior: str | None = None

    @property
    def statistics(self) -> dict[str, Any]:
        """What a batch transform must know: all but where the latents are."""
        return {name: value for name, value in self._asdict().items() if name not in ("path", "hash")}


class AttributeStatistics(NamedTuple):
    """Of the attributes of a split, in their units: those of the items that have one, and how many have none.

    A number for each attribute; mean 0, std 1 and the range 0 to 0 where no item has it. items: how many there are,
    None where a file of before does not say.
    """

    mean: list[float]
    std: list[float]
    lo: list[float]
    hi: list[float]
    missing: list[int]
    items: int | None = None

    @classmethod
    def of(cls, attributes: np.ndarray) -> "AttributeStatistics":
        """Of values [N,A], NaN where missing."""
        columns = [column[~np.isnan(column)] for column in np.asarray(attributes, np.float64).T]
        some = [column if len(column) else np.zeros(1) for column in columns]
        return cls([float(column.mean()) for column in some], [float(column.std()) or 1.0 for column in some],
                   [float(column.min()) for column in some], [float(column.max()) for column in some],
                   [len(attributes) - len(column) for column in columns], len(attributes))

    def never(self) -> list[int]:
        """Numbers of the attributes that no item has, as far as is known."""
        return [] if self.items is None else [a for a, missing in enumerate(self.missing) if missing >= self.items]

    def check(self, count: int) -> None:
        """ValueError for figures that cannot be of so many attributes."""
        for name in ("mean", "std", "lo", "hi", "missing"):
            if (found := len(getattr(self, name))) != count:
                raise ValueError(f"attribute_statistics are of {found} attributes, there are {count}")
        if not min([*self.std, 1]) > 0:
            raise ValueError(f"attribute_statistics: std is {self.std}, wanted more than 0")
        if any(lo > hi for lo, hi in zip(self.lo, self.hi)) or min([*self.missing, 0]) < 0:
            raise ValueError(f"attribute_statistics: lo is {self.lo}, hi {self.hi}, missing {self.missing}; wanted "
                             "none of lo above hi, and missing 0 or more")
        if self.items is not None and self.items < max([*self.missing, 0]):
            raise ValueError(f"attribute_statistics: missing is {self.missing}, of {self.items} items")

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def check_statistics(known: LatentScaling | LatentFacts) -> None:
    """ValueError unless means and deviations are of the same channels, these 0 or more, limits two and rising, and the
    scaling one that there is.
    """
    if known.channel_mean is not None or known.channel_std is not None:
        counts = [len(numbers or ()) for numbers in (known.channel_mean, known.channel_std)]
        if counts[0] != counts[1] or not counts[0]:
            raise ValueError(f"channel_mean has {counts[0]} numbers, channel_std {counts[1]}; wanted one per channel")
        if min(known.channel_std) < 0:
            raise ValueError(f"channel_std is {known.channel_std}, wanted 0 or more")
    if known.limits is not None and (len(known.limits) != 2 or known.limits[0] > known.limits[1]):
        raise ValueError(f"limits is {known.limits}, wanted the lowest and the highest")
    if known.scaling not in (None, *SCALINGS):
        raise ValueError(f"scaling={shown(known.scaling)}, this program reads {', '.join(SCALINGS)}")


@dataclass(frozen=True)
class Facts:
    """Of volumes: where they come from, what their channels, labels, classes and attributes are, and their geometry.

    source and content_hash: of the file; spatial_shape [*S] and affine [4,4] of a volume (of the first, where they
    differ); intensity: what image values mean. channels are those that are drawn, condition_channels those that a
    network may be shown; map_classes of the maps, which stand beside label maps. attribute_names None: not known, as
    files of before do not say; attribute_statistics: of the training split. latents: of those that stand for the
    volumes; first_stage: hash of the one that makes latents of them while training. lacking: where the items are of
    several files, those without something that others have, which so is left aside: by the field that would name it;
    not stored.
    """

    source: str
    content_hash: str
    channels: tuple[str, ...] = ()
    label_classes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    intensity: Intensity = UNIT_RANGE
    spatial_shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = NO_AFFINE
    condition_channels: tuple[str, ...] | None = None
    map_classes: tuple[str, ...] | None = None
    attribute_names: tuple[str, ...] | None = None
    attribute_units: tuple[str, ...] | None = None
    attribute_statistics: AttributeStatistics | None = None
    latents: LatentFacts | None = None
    first_stage: str | None = None
    lacking: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if problem := affine_problem(self.affine):
            raise ValueError(f"affine {problem}")
        if len(self.spatial_shape) > 3 or any(n < 1 for n in self.spatial_shape):
            raise ValueError(f"spatial_shape is {list(self.spatial_shape)}, wanted 1 to 3 numbers of 1 or more")
        check_names({**{name: getattr(self, name) for name in (*NAMES, "condition_channels")},
                     "channels and condition_channels": (*self.channels, *(self.condition_channels or ()))})
        names, units = self.attribute_names, self.attribute_units
        if names is not None and units is not None and len(names) != len(units):
            raise ValueError(f"attribute_names has {len(names)} names, attribute_units {len(units)}")
        if self.attribute_statistics:
            self.attribute_statistics.check(len(names or ()))
        for key in ("label_classes", "map_classes"):
            if len(getattr(self, key) or ()) > 256:
                raise ValueError(f"{key} has {len(getattr(self, key))} names; maps are uint8, so at most 256")
        if self.latents is not None:
            check_statistics(self.latents)
            if self.latents.posterior not in (None, *POSTERIORS):
                raise ValueError(f"posterior={shown(self.latents.posterior)}, this program reads "
                                 f"{', '.join(POSTERIORS)}")

    @property
    def files(self) -> list[str]:
        """The files that `source` names, several where the items are of several."""
        return self.source.split(BETWEEN)

    @property
    def file(self) -> str:
        """The file that training reads: that of the latents where there are some."""
        return self.latents.path if self.latents else self.source

    def class_name(self, index: int) -> str:
        """Name of a class, its number where they have no names."""
        return self.class_names[index] if self.class_names else str(index)

    @property
    def semantic_classes(self) -> tuple[str, ...]:
        """Names of the classes of the map that a network may be told: of the maps, else of the label maps."""
        return self.map_classes or self.label_classes

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size per axis in mm."""
        return spacing_of(np.asarray(self.affine))[:len(self.spatial_shape)]

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file; what is None is left out."""
        found = {f.name: value for f in fields(self) if f.name != "lacking"
                 and (value := getattr(self, f.name)) is not None}
        found |= {name: list(found[name]) for name in LISTS if name in found}
        found |= {"intensity": asdict(self.intensity), "affine": [list(row) for row in self.affine]}
        if self.attribute_statistics:
            found["attribute_statistics"] = self.attribute_statistics.plain()
        if self.latents:
            known = {name: value for name, value in self.latents._asdict().items() if value is not None}
            found |= {"latents": known.pop("path"), "latents_hash": known.pop("hash")}
            found |= {"latent_statistics": known} if known else {}
        return found

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object) -> "Facts":
        """From what `plain` gave, also that of older files; ValueError naming the file (source) for anything else."""
        found = dict(taken(found, Mapping[str, Any], source, "what it says of its volumes"))
        if lacking := [name for name in ("intensity", "affine") if name not in found]:
            raise ValueError(f"{source}: what it says of its volumes has no {' and no '.join(lacking)}")
        if "latents" in found:
            known = taken(found.pop("latent_statistics", {}), Mapping[str, Any], source, "latent_statistics")
            place = {"path": found["latents"], "hash": found.pop("latents_hash", None)}
            found["latents"] = from_plain(LatentFacts, known | place, source, "latents")
        return from_plain(cls, found, source)

    def identity(self) -> dict[str, Any]:
        """The part of `plain` by which a run knows its data again."""
        return {name: value for name, value in self.plain().items() if name in IDENTITY}

    def with_volumes_of(self, other: "Facts") -> "Facts":
        """These facts, with what another file says of volumes and their geometry."""
        return replace(self, **{name: getattr(other, name) for name in OF_VOLUMES})


def volume_facts(file: VolumesFile, split: str) -> Facts:
    """What is known of the volumes of a split; the affine is that of its first."""
    meta, attributes = file.meta, file.table(split, "attributes")
    targets, conditions = (tuple(meta.channels[i] for i in meta.numbers(role)) for role in ROLES)
    return Facts(str(file.path), file.content_hash, targets, meta.label_classes, meta.class_names, meta.intensity,
                 file.spatial_shape(split), rows_of(file.affines(split)[0]), conditions or None,
                 meta.map_classes or None, meta.attribute_names, meta.attribute_units,
                 None if attributes is None or not meta.attribute_names else AttributeStatistics.of(attributes))


def mixture_hash(hashes: Sequence[str | None], shares: Sequence[float | None], counts: Sequence[int | None], seed: int
                 ) -> str:
    """Of data that files make together, by the content hash of each, None: left out; that of one file taken as it is.

    shares, counts: of each file, None where none is given; seed: of the order by which items are drawn where one is.
    """
    drawn = any(value is not None for value in (*shares, *counts))
    if len(hashes) == 1 and not drawn and hashes[0] is not None:
        return hashes[0]
    return plain_hash([list(hashes), list(shares), list(counts), seed if drawn else None])


def rows_of(affine: np.ndarray | Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """An affine [4,4] as facts hold it."""
    return tuple(tuple(map(float, row)) for row in affine)
