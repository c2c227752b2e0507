"""The features of a report: made while the volumes pass by, one at a time, and kept on disk."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats.feature_cache import FeatureCache
from edm3d.inference.extractors import (
    AUTOENCODER,
    RANDOM,
    SCRIPT,
    Extractor,
    autoencoder_extractor,
    check_words,
    random_extractor,
    script_extractor,
)
from edm3d.inference.first_stage import FirstStage
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.features import SLICES, VOLUME, ExtractorRecord, Features
from edm3d.reporting.slices import plane_names
from edm3d.utils.checks import listed
from edm3d.utils.files import file_hash, plain_hash
from edm3d.utils.log import progress
from edm3d.utils.names import one_line

DEFAULT = (AUTOENCODER, RANDOM)
NO_PLANES = "none"
CONTENT = 0.1  # of the largest standard deviation of a slice: what has less is empty
VERSION = 1  # of how features are made: those kept by another are not read


class FeatureOptions(NamedTuple):
    """words: of --features; planes: of --planes, () all there are, ('none',) no plane; folder: where they are kept."""

    words: Sequence[str] = DEFAULT
    planes: Sequence[str] = ()
    folder: Path | None = None


class FeaturePass:
    """Makes the features of sets as their volumes pass.

    planes: axis that each is normal to, by name; missing: why an extractor is not there.
    """

    def __init__(self, extractors: Sequence[Extractor], layout: Layout, planes: Mapping[str, int],
                 missing: Mapping[str, str], device: torch.device, cache: FeatureCache):
        self.extractors, self.layout, self.planes, self.missing = extractors, layout, dict(planes), dict(missing)
        self.device, self.cache = device, cache
        self.found: dict[str, dict[str, dict[str, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
        self.seconds: Counter[str] = Counter({each.record.name: 0.0 for each in extractors})

    def over(self, name: str, cases: Iterable[Case], count: int, key: str | None = None) -> Iterator[Case]:
        """The same volumes, `count` of them, one by one; afterwards there are features of the set of this name.

        key: of all that its volumes depend on; None: these features are not kept on disk.
        """
        wanted = self._not_kept(name, count, key)
        rows: list[list[np.ndarray]] = [[] for _ in wanted]
        for case in cases:
            if wanted:
                self._extract(case, wanted, rows)
            yield case
        for (extractor, view), made in zip(wanted, rows, strict=True):
            if made:
                self._keep(name, extractor, view, np.concatenate(made), key)

    def alone(self, name: str, cases: Iterable[Case], count: int, key: str | None = None) -> None:
        """The same of a set that nothing else is measured of; none is read whose features are all there."""
        if self._not_kept(name, count, key):
            for _ in progress(self.over(name, cases, count, key), total=count, desc=f"features of {name}",
                              unit="volume"):
                pass

    def features(self) -> Features:
        """All that was found."""
        return Features({each.record.name: each.record for each in self.extractors},
                        {name: {view: dict(sets) for view, sets in views.items()} for name, views in
                         self.found.items()}, dict(self.seconds), self.missing)

    def views(self, extractor: Extractor) -> list[str]:
        """What an extractor sees of each volume."""
        return [VOLUME] * (extractor.of_volume is not None) + list(self.planes) * (extractor.of_slices is not None)

    def _not_kept(self, name: str, count: int, key: str | None) -> list[tuple[Extractor, str]]:
        """Extractors and views whose features of a set are still to be made; the others are read."""
        wanted = []
        for extractor in self.extractors:
            for view in self.views(extractor):
                rows = count * (1 if view == VOLUME else SLICES)
                kept = None if key is None else \
                    self.cache.read(self._key(key, extractor.record, view), rows, extractor.record.width)
                if kept is None:
                    wanted.append((extractor, view))
                else:
                    self.found[extractor.record.name][view][name] = kept
        return wanted

    def _extract(self, case: Case, wanted: Sequence[tuple[Extractor, str]], rows: Sequence[list[np.ndarray]]) -> None:
        scaled = (case.inside.image - self.layout.lo) * (2 / self.layout.data_range) - 1
        image = torch.from_numpy(np.ascontiguousarray(scaled, np.float32))[None].to(self.device)
        seen = {VOLUME: image} | {view: slices_of(image[0], axis) for view, axis in self.planes.items()
                                  if any(view == each for _, each in wanted)}
        for (extractor, view), made in zip(wanted, rows, strict=True):
            start = time.perf_counter()
            made.append(extractor(case, seen[view], view))
            self.seconds[extractor.record.name] += time.perf_counter() - start

    def _keep(self, name: str, extractor: Extractor, view: str, features: np.ndarray, key: str | None) -> None:
        self.found[extractor.record.name][view][name] = features
        if key is not None:
            self.cache.write(self._key(key, extractor.record, view), features)

    def _key(self, of_set: str, record: ExtractorRecord, view: str) -> str:
        return plain_hash([VERSION, of_set, record.kind, record.hash, record.preprocessing, view,
                           self.planes.get(view), SLICES])


def slices_of(image: torch.Tensor, axis: int) -> torch.Tensor:
    """SLICES slices [K,C,h,w] of an image [C,*S], normal to an axis, evenly spaced through what has content.

    That is from the first to the last slice whose standard deviation is above CONTENT of the largest. Where there are
    fewer slices some are there twice, so that all volumes count alike.
    """
    planes = image.movedim(axis + 1, 0)
    spread = planes.flatten(1).std(1, correction=0)
    inside = torch.nonzero(spread > CONTENT * spread.max())
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, len(planes) - 1)
    numbers = first + ((torch.arange(SLICES) + 0.5) * (last - first + 1) / SLICES).long()
    return planes[numbers.to(image.device)].contiguous()


def planes_asked(words: Sequence[str], layout: Layout, dims: int) -> dict[str, int]:
    """Axis that each plane is normal to, by the name of the plane; ValueError for planes that there are not.

    words: axial, coronal and sagittal where it is known how axes lie, else the axes that planes show: 01, 02 and 12.
    """
    named = {name: dims - 1 - i for i, (name, _) in enumerate(plane_names(dims, layout.affine))}
    if tuple(words) == (NO_PLANES,) or (not words and dims != 3):
        return {}
    if dims != 3:
        raise ValueError(f"--planes {' '.join(map(one_line, words))}: the samples are {dims}D, they have no planes; "
                         "leave it away")
    by_word = {"".join(filter(str.isdigit, name)) or name: name for name in named}
    if unknown := [word for word in words if word not in by_word]:
        raise ValueError(f"--planes {' '.join(map(one_line, unknown))}: the samples have {listed(list(by_word))}"
                         + ("" if "axial" in by_word else " (axes of the array: their affine does not say how they "
                                                          "lie)") + f", or {NO_PLANES}")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise ValueError(f"--planes: {listed(twice)} twice; name each plane once")
    return {by_word[word]: named[by_word[word]] for word in words} if words else named


def feature_pass(options: FeatureOptions, layout: Layout, size: Sequence[int], stage: FirstStage | None,
                 no_stage: str, device: torch.device, held: tuple[int, int] | None = None) -> FeaturePass:
    """What makes the features that are asked for, of volumes [*size]; ValueError for words that name none.

    no_stage: why no features of the first stage are to be had, '' where they are. held: slices along the first axis
    that count, None: all; the first stage sees the others, too, as it learnt to, and their latents are left out.
    """
    check_words(options.words)
    whole, size = size, (size if held is None else (held[1] - held[0], *size[1:]))
    planes, found, missing = planes_asked(options.planes, layout, len(size)), [], {}
    paths = {word: Path(word.partition(":")[2]) for word in options.words if word.startswith(f"{SCRIPT}:")}
    stems = Counter(path.stem for path in paths.values())
    for word in options.words:
        if word == AUTOENCODER and (no_stage or stage is None):
            missing[word] = no_stage
        elif word == AUTOENCODER:
            found.append(autoencoder_extractor(stage, layout, whole, held))
        elif word == RANDOM:
            found.append(random_extractor(layout, size, device))
        else:
            path = paths[word]
            name = f"{SCRIPT}-{path.stem}" + (f"-{file_hash(path)[:8]}" if stems[path.stem] > 1 and path.is_file()
                                              else "")
            found.append(script_extractor(path, one_line(name), layout, size, device))
    if twice := [name for name, count in Counter(each.record.name for each in found).items() if count > 1]:
        raise ValueError(f"--features: {listed(twice)} is one file twice; name each extractor once")
    if len(found) < 2:
        missing["second extractor"] = "only one was asked for (--features)" if not missing else \
            "of those that were asked for one alone is to be had" if found else "none is to be had"
    return FeaturePass(found, layout, planes, missing, device, FeatureCache(options.folder))
