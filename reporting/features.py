"""What is measured on one volume, gathered over a set of volumes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metrics import clinical

HISTOGRAM_BINS = 64
# The echo anatomy has clinical names; any other class is called by its own.
VOLUME_NAMES = {"cavity": "lv_volume", "atrium": "la_volume"}
HEART = ("cavity", "myocardium", "atrium")


class Case(NamedTuple):
    """One volume: image [C, *S] in stored intensity, label [*S] integer or None."""

    id: str
    image: np.ndarray
    label: np.ndarray | None


@dataclass(frozen=True)
class Layout:
    """What all volumes of a comparison share: channels, classes (index = label value), voxel size [mm], intensities."""

    channels: tuple[str, ...]
    label_classes: tuple[str, ...]
    spacing: tuple[float, ...]
    lo: float
    hi: float
    unit: str

    @property
    def is_heart(self) -> bool:
        """Whether wall thickness and enclosure of the cavity can be asked for."""
        return set(HEART) <= set(self.label_classes)


@dataclass(frozen=True)
class Measured:
    """Features of N volumes.

    scalars: name -> [N] float64, NaN where undefined; flags: name -> [N] bool;
    histograms [N, C, HISTOGRAM_BINS]: shares of voxels, the outer bins hold what lies beyond the range;
    spectra [N, C, K]: log10 of the radial power, K frequencies from 1 cycle per volume up to Nyquist.
    """

    ids: tuple[str, ...]
    scalars: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    histograms: np.ndarray
    spectra: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def volume_name(label_class: str) -> str:
    """Name of the scalar that holds the volume of a class."""
    return VOLUME_NAMES.get(label_class, f"{label_class}_volume")


def scalar_units(layout: Layout) -> dict[str, str]:
    """Unit of every scalar that `measure` returns, in order of appearance."""
    volume_unit = "mL" if len(layout.spacing) == 3 else "cm2"
    units = {volume_name(name): volume_unit for name in layout.label_classes[1:]}
    if layout.is_heart:
        units["wall_thickness"] = "mm"
    for channel in layout.channels:
        units[_intensity_name("mean", channel, layout)] = layout.unit
        units[_intensity_name("std", channel, layout)] = layout.unit
    return units


def measure(cases: Iterable[Case], layout: Layout) -> Measured:
    """Measure volumes one at a time (nothing but features is kept); raises ValueError if there are none."""
    rows = [(case.id, _scalars(case, layout), _flags(case, layout), *_textures(case, layout)) for case in cases]
    if not rows:
        raise ValueError("no volumes to measure: the set is empty")
    ids, scalars, flags, histograms, spectra = zip(*rows, strict=True)
    return Measured(
        ids=tuple(ids),
        scalars={name: np.array([row[name] for row in scalars], dtype=np.float64) for name in scalars[0]},
        flags={name: np.array([row[name] for row in flags], dtype=bool) for name in flags[0]},
        histograms=np.stack(histograms),
        spectra=np.stack(spectra),
    )


def intensity_bins(layout: Layout) -> np.ndarray:
    """Edges [HISTOGRAM_BINS + 1] of the intensity histogram, over the stored range."""
    return np.linspace(layout.lo, layout.hi, HISTOGRAM_BINS + 1)


def radial_log_power(volume: np.ndarray) -> np.ndarray:
    """Log10 power [K] of a volume [*S] in shells of equal frequency, from 1 cycle per shortest side up to Nyquist.

    The mean is taken off and a Hann window applied, so that borders do not leak into high frequencies.
    """
    values = np.asarray(volume, dtype=np.float64) - np.mean(volume)
    for axis, size in enumerate(values.shape):
        window = np.hanning(size + 2)[1:-1]
        values = values * window.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    power = np.abs(np.fft.fftn(values)) ** 2 / values.size
    shortest = min(values.shape)
    grids = np.meshgrid(*[np.fft.fftfreq(size) * shortest for size in values.shape], indexing="ij", sparse=True)
    shell = np.rint(np.sqrt(sum(grid**2 for grid in grids))).astype(int).ravel()
    last = shortest // 2
    inside = shell <= last
    total = np.bincount(shell[inside], weights=power.ravel()[inside], minlength=last + 1)[1:]
    count = np.bincount(shell[inside], minlength=last + 1)[1:]
    return np.log10(np.maximum(total / count, 1e-12))


def _scalars(case: Case, layout: Layout) -> dict[str, float]:
    row = {}
    if layout.label_classes:
        volumes = clinical.structure_volumes(case.label, layout.spacing, len(layout.label_classes))
        names = [volume_name(name) for name in layout.label_classes]
        row.update({name: float(value) for name, value in zip(names[1:], volumes[1:], strict=True)})
    if layout.is_heart:
        row["wall_thickness"] = float(clinical.wall_thickness(case.label, layout.spacing, **_heart_labels(layout)))
    for channel, volume in zip(layout.channels, case.image, strict=True):
        row[_intensity_name("mean", channel, layout)] = float(volume.mean(dtype=np.float64))
        row[_intensity_name("std", channel, layout)] = float(volume.std(dtype=np.float64))
    return row


def _flags(case: Case, layout: Layout) -> dict[str, bool]:
    if not layout.is_heart:
        return {}
    return {"cavity_enclosed": bool(clinical.cavity_enclosed(case.label, **_heart_labels(layout)))}


def _heart_labels(layout: Layout) -> dict[str, int]:
    return {name: layout.label_classes.index(name) for name in HEART}


def _textures(case: Case, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Histogram [C, HISTOGRAM_BINS] and log power [C, K] of every channel."""
    edges = intensity_bins(layout)
    clipped = np.clip(case.image, layout.lo, layout.hi)
    histograms = np.stack([np.histogram(volume, bins=edges)[0] / volume.size for volume in clipped])
    return histograms, np.stack([radial_log_power(volume) for volume in case.image])


def _intensity_name(statistic: str, channel: str, layout: Layout) -> str:
    return f"intensity_{statistic}" if len(layout.channels) == 1 else f"{channel}_intensity_{statistic}"
