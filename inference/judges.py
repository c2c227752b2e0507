"""What else generated volumes are held against: a trained classifier, a learned distance, the volumes that asked."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from edm3d.formats.prediction import ATTRIBUTE, CLASSES, Prediction
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.decoded import best_device
from edm3d.inference.evaluate_downstream import found_in
from edm3d.inference.predictor import Predictor, open_predictor
from edm3d.inference.segment_grid import Placed, Trained
from edm3d.inference.segment_sources import seen
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Classifier, Perceptual
from edm3d.reporting.reference import file_volumes
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.files import file_hash, first_line
from edm3d.utils.names import one_line

KEY, LPIPS = "--classifier", "--lpips"
SLICES = 4  # of each plane of a volume
LEAST = 32  # pixels per side that networks of images take


# ---- the class that was asked for ----


def open_classifier(name: str, run_root: Path, samples: SamplesFile, file: VolumesFile, layout: Layout, trust: bool
                    ) -> Classifier:
    """A trained classification network, to be asked about samples and the real volumes; ValueError where it cannot be.
    """
    predictor = open_predictor(name, run_root, best_device(), trust=trust, key=KEY)
    predicts, facts, path = predictor.predicts, samples.meta.facts, predictor.snapshot.path
    if predicts.of_voxels:
        raise ValueError(f"{KEY}={name}: {path} is a segmenter ({one_line(str(predicts))}); wanted a network trained "
                         "with training.task=classification")
    columns = check_asked(predicts, path, samples, file)
    notes = predictor.check(facts, samples.path, KEY)
    size, wanted = samples.shape("images")[2:], predictor.snapshot.shape[1:]
    if size != wanted:
        notes.append(f"Note: volumes are {list(size)}, padded or cropped centrally to {list(wanted)}, on which the "
                     "classifier was trained")
    trained = predictor.facts
    if trained.content_hash in (file.content_hash, facts.content_hash):
        notes.append("Note: the classifier was trained on a split of the file of the "
                     + ("real volumes" if trained.content_hash == file.content_hash else "networks' training data"))
    record = {"name": one_line(name), "path": str(path), "hash": predictor.snapshot.hash,
              "predicts": one_line(str(predicts))}
    return Classifier(predicts.names, record, notes, lambda case: class_of(predictor, case, samples, layout),
                      predicts.threshold, columns)


def check_asked(predicts: Prediction, path: Path, samples: SamplesFile, file: VolumesFile) -> dict[str, int]:
    """Column of the attribute that is predicted, by set; {} for classes. ValueError where samples were asked for by
    none of what is predicted.
    """
    facts = samples.meta.facts
    if predicts.kind == CLASSES:
        if "classes" not in samples.names or (samples.array("classes") < 0).all():
            raise ValueError(f"{KEY}: {samples.path} was asked for by no class, so that there is none to be found; "
                             "leave it out")
        if set(facts.class_names) != set(predicts.names):
            got, wanted = listed_apart(predicts.names, facts.class_names)
            raise ValueError(f"{KEY}: {path} predicts the classes {got}, {samples.path} has {wanted or 'none'}; wanted "
                             "a classifier of the same")
        return {}
    assert predicts.kind == ATTRIBUTE
    if "attributes" not in samples.names:
        raise ValueError(f"{KEY}: {path} predicts {one_line(str(predicts))}, {samples.path} was asked for by no "
                         "attributes")
    columns = {}
    for name, names, units, source in (
            ("generated", facts.attribute_names or (), facts.attribute_units, samples.path),
            ("real", tuple(file.meta.attribute_names), tuple(file.meta.attribute_units), file.path)):
        if predicts.attribute not in names:
            raise ValueError(f"{KEY}: {path} predicts {one_line(predicts.attribute)}, the attributes of {source} are "
                             f"{listed(names) or 'none'}")
        columns[name] = list(names).index(predicts.attribute)
        if units is not None and (unit := units[columns[name]]) != predicts.unit:
            raise ValueError(f"{KEY}: {one_line(predicts.attribute)} is in {one_line(predicts.unit) or 'no unit'} for "
                             f"{path}, and in {one_line(unit) or 'no unit'} in {source}")
    return columns


def class_of(predictor: Predictor, case: Case, samples: SamplesFile, layout: Layout) -> int:
    """The number of the class that is found in a volume, seen as in training, on its axes."""
    affine = layout.affine if case.affine is None else case.affine
    placed = Placed(seen(case.image, samples.meta.facts.intensity), affine, Trained.of(predictor.facts.affine))
    return int(found_in(predictor, [placed], [case.id])[0].argmax())


# ---- a learned distance ----


def open_lpips(path: Path) -> Perceptual:
    """A TorchScript file called with two images [N,3,H,W] in [-1,1] that gives distances [N] or [N,1,...]; ValueError
    for any other.
    """
    device = best_device()
    if not path.is_file():
        raise ValueError(f"{LPIPS} {path}: no such file; wanted a TorchScript file of a distance of two images")
    try:
        with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated is no news to a user
            network = torch.jit.load(str(path), map_location=device).eval()
            needed = [a.name for a in network.forward.schema.arguments[1:] if not a.has_default_value()]
    except (RuntimeError, ValueError, AttributeError) as e:
        raise ValueError(f"{LPIPS} {path}: cannot be read as TorchScript ({first_line(e)})") from e
    if len(needed) != 2:
        raise ValueError(f"{LPIPS} {path}: the network takes {len(needed)} inputs ({listed(needed)}), wanted two "
                         "images")

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of images [N,3,H,W] in [-1,1]."""
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                found = network(*(torch.from_numpy(x).to(device) for x in (a, b)))
        except (RuntimeError, ValueError) as e:
            raise ValueError(f"{LPIPS} {path}: does not take two images {list(a.shape)} ({first_line(e)})") from e
        if not isinstance(found, torch.Tensor) or found.numel() != len(a) or found.shape[:1] != (len(a),):
            got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"{LPIPS} {path}: gives {got} of {len(a)} pairs, wanted a distance of each, [{len(a)}]")
        if not found.isfinite().all():
            raise ValueError(f"{LPIPS} {path}: gives distances that are not finite")
        return found.reshape(-1).float().cpu().numpy()

    trial = np.random.default_rng(0).uniform(-1, 1, (2, 3, 2 * LEAST, 2 * LEAST)).astype(np.float32)
    if (zero := np.abs(distances(trial, trial)).max()) > 1e-3:
        raise ValueError(f"{LPIPS} {path}: images are {zero:.3g} from themselves; wanted a distance, which is 0")
    record = {"path": str(path), "hash": file_hash(path),
              "slices": f"{SLICES} of each of three planes of a volume, evenly over its middle half, padded with black "
                        f"to squares of one size, {LEAST} pixels or more; each channel as grey; the mean of all"}
    return Perceptual(record, lambda one, other: float(distances(slices_of(one), slices_of(other)).mean()))


def slices_of(volume: np.ndarray) -> np.ndarray:
    """Images [M,3,h,h] in [-1,1] of a volume or image [C,*S] in [0,1]: of three planes, padded to squares of one size.
    """
    planes = [volume] if volume.ndim == 3 else [
        np.moveaxis(volume, axis, 1)[:, places(volume.shape[axis])].reshape(-1, *np.delete(volume.shape[1:], axis - 1))
        for axis in (1, 2, 3)]
    side = max(LEAST, *(n for plane in planes for n in plane.shape[1:]))
    padded = [np.pad(plane, [(0, 0), *(((side - n) // 2, side - n - (side - n) // 2) for n in plane.shape[1:])])
              for plane in planes]
    grey = np.concatenate(padded)[:, None].astype(np.float32) * 2 - 1
    return np.ascontiguousarray(np.repeat(grey, 3, axis=1))


def places(length: int) -> np.ndarray:
    """Numbers of the slices that are taken of so many."""
    return np.unique(np.linspace(length / 4, 3 * length / 4 - 1, SLICES).round().astype(int).clip(0, length - 1))


# ---- the volumes that asked ----


def find_partner(samples: SamplesFile, file: VolumesFile, channels: Sequence[int], size: Sequence[int], lo: float
                 ) -> tuple[Callable[[int], Case | None] | None, str]:
    """What gives the real volume whose own map, or condition images, asked for a sample, by its number; or why not."""
    if not samples.meta.ids:
        return None, "no rows of a file asked for the generated volumes, so that none has a real volume of its own"
    told = next((name for name in ("maps", "cond_images") if name in samples.names), None)
    if told is None:
        return None, ("the rows that asked for the generated volumes have no maps and no images, by which one volume "
                      "is meant")
    places = {name: i for i, name in enumerate(name for split in file.splits for name in file.ids(split))}
    if not any(id_ in places for id_ in samples.meta.ids):
        return None, f"no id that asked for a generated volume is that of a volume of {file.path}"
    whole = file_volumes(file, "all", list(channels)).fitted(size, lo)
    shown = None if told == "maps" else file_volumes(file, "all", file.meta.numbers("condition")).fitted(size, lo)

    @cache
    def known(index: int) -> bool:
        """Whether the volume of that id is the one that asked: an id alone may be of another file."""
        place = places.get(samples.meta.id_of(int(samples.seeds[index])))
        if place is None:
            return False
        asked, own = samples.row(told, index), shown.case(place).image if shown else whole.case(place).semantic
        return own is not None and own.shape == asked.shape and bool(np.allclose(own, asked, atol=1e-5))

    def partner(index: int) -> Case | None:
        return whole.case(places[samples.meta.id_of(int(samples.seeds[index]))]) if known(index) else None

    return partner, (f"the ids that asked for generated volumes are those of volumes of {file.path}, but what asked is "
                     f"not the {'maps' if told == 'maps' else 'images'} of these")
