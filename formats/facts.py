"""What is known of the volumes of a file, and travels with them into latents, snapshots, states and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.nifti import spacing_of
from edm3d.formats.volumes import Intensity, VolumesFile

# fields by which a run knows its data again; the others follow from the contents that the hashes are of
IDENTITY = ("source", "content_hash", "channels", "label_classes", "class_names", "intensity", "spatial_shape",
            "affine", "latents", "latents_hash", "first_stage")
LISTS = ("channels", "label_classes", "class_names", "spatial_shape", "channel_roles", "attribute_names",
         "attribute_units")
UNIT_RANGE = Intensity(0.0, 1.0, True, "a.u.")
NO_AFFINE = tuple(map(tuple, np.eye(4).tolist()))
OF_VOLUMES = ("channels", "channel_roles", "label_classes", "intensity", "spatial_shape", "affine")


class LatentScaling(NamedTuple):
    """How diffusion scales latents: the arguments of networks.latent_codec.shift_and_gain."""

    channel_mean: list[float]
    channel_std: list[float]
    limits: list[float] | None = None
    scaling: str = "standardize"
    sigma_data: float = 0.5


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


@dataclass(frozen=True)
class Facts:
    """Of volumes: where they come from, what their channels, labels, classes and attributes are, and their geometry.

    source and content_hash: of the file; spatial_shape [*S] and affine [4,4] of a volume (of the first, where they
    differ); intensity: what image values mean. channel_roles None: all are targets; attribute_names None: not known, as
    files of before do not say. latents: of those that stand for the volumes; first_stage: hash of the one that makes
    latents of them while training.
    """

    source: str
    content_hash: str
    channels: tuple[str, ...] = ()
    label_classes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    intensity: Intensity = UNIT_RANGE
    spatial_shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = NO_AFFINE
    channel_roles: tuple[str, ...] | None = None
    attribute_names: tuple[str, ...] | None = None
    attribute_units: tuple[str, ...] | None = None
    latents: LatentFacts | None = None
    first_stage: str | None = None

    @property
    def file(self) -> str:
        """The file that training reads: that of the latents where there are some."""
        return self.latents.path if self.latents else self.source

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size per axis in mm."""
        return spacing_of(np.asarray(self.affine))[:len(self.spatial_shape)]

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file; what is None is left out."""
        found = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        found |= {name: list(found[name]) for name in LISTS if name in found}
        found |= {"intensity": asdict(self.intensity), "affine": [list(row) for row in self.affine]}
        if self.latents:
            known = {name: value for name, value in self.latents._asdict().items() if value is not None}
            found |= {"latents": known.pop("path"), "latents_hash": known.pop("hash")}
            found |= {"latent_statistics": known} if known else {}
        return found

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object) -> "Facts":
        """From what `plain` gave, also that of older files; ValueError naming the file (source) for anything else."""
        try:
            found = dict(found)
            found |= {name: tuple(found[name]) for name in LISTS if name in found}
            if "latents" in found:
                known = found.pop("latent_statistics", {})
                found["latents"] = LatentFacts(found["latents"], found.pop("latents_hash"), **known)
            return cls(**found | {"intensity": Intensity(**found["intensity"]),
                                  "affine": tuple(map(tuple, found["affine"]))})
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{source}: what it says of its volumes cannot be understood: {e}") from e

    def identity(self) -> dict[str, Any]:
        """The part of `plain` by which a run knows its data again."""
        return {name: value for name, value in self.plain().items() if name in IDENTITY}

    def with_volumes_of(self, other: "Facts") -> "Facts":
        """These facts, with what another file says of volumes and their geometry."""
        return replace(self, **{name: getattr(other, name) for name in OF_VOLUMES})


def volume_facts(file: VolumesFile, split: str) -> Facts:
    """What is known of the volumes of a split; the affine is that of its first."""
    meta = file.meta
    conditions = set(meta.channel_roles) - {"target"}
    return Facts(str(file.path), file.content_hash, meta.channels, meta.label_classes, meta.class_names, meta.intensity,
                 file.spatial_shape(split), rows_of(file.affines(split)[0]),
                 meta.channel_roles if conditions else None, meta.attribute_names, meta.attribute_units)


def rows_of(affine: np.ndarray | Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """An affine [4,4] as facts hold it."""
    return tuple(tuple(map(float, row)) for row in affine)
