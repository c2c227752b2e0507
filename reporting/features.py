"""Features of the volumes of a report: what sections may ask for."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

VOLUME = "volume"  # the view of the whole volume; others are planes, by name
SLICES = 8  # of a plane and volume


class ExtractorRecord(NamedTuple):
    """What is said of an extractor.

    kind: autoencoder, torchscript or random; relative: whether its distances compare within one report alone;
    preprocessing: how images became what it sees, in words.
    """

    name: str
    kind: str
    source: str
    hash: str
    preprocessing: str
    relative: bool
    width: int


class Features(NamedTuple):
    """Features by extractor, view and set: found[name][view][set] is [N,d] float32.

    Of the view `volume` row i is of volume i of the set; of a plane SLICES slices are there of every volume, those of
    one volume together. seconds: what each extractor took. missing: why an extractor that was asked for, or a second
    one, is not there.
    """

    records: Mapping[str, ExtractorRecord]
    found: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
    seconds: Mapping[str, float]
    missing: Mapping[str, str]
