"""Where the label maps of samples are of a segmenter: the same of volumes that are measured beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from edm3d.formats.samples import SamplesFile
from edm3d.inference.predictor import Predictor, open_predictor
from edm3d.inference.segment_grid import Placed, Trained
from edm3d.utils.precision import resolve_precision

Labeller = Callable[[np.ndarray], np.ndarray]


def find_labeller(samples: SamplesFile, trust: bool, device: torch.device) -> tuple[Labeller | None, str]:
    """What gives images [C,*S], in the unit of the samples and on their grid, label maps [*S] uint8 as theirs are.

    None where the label maps were drawn, and where the segmenter is not there any more, with the reason.
    """
    known = samples.meta.labelling
    if known is None:
        return None, ""
    path = Path(known.network)
    if not path.exists():
        return None, f"the segmenter that the samples' label maps are of, {path}, is not there"
    precision = resolve_precision(str(known.settings.get("precision", "fp32")), device)
    predictor = open_predictor(str(path), Path(), device, precision=precision, trust=trust)
    if predictor.snapshot.hash != known.hash:
        return None, f"{path} is not the segmenter that the samples' label maps are of: its hash differs"
    return partial(label_of, predictor, samples, bool(known.settings.get("resample"))), ""


def label_of(predictor: Predictor, samples: SamplesFile, resample: bool, image: np.ndarray) -> np.ndarray:
    """The label map [*S] of an image [C,*S] that lies as the samples do."""
    placed = Placed(samples.meta.facts.intensity.to_network(np.asarray(image, np.float32)), samples.affine,
                    Trained.of(predictor.facts.affine), resample)
    return placed.back(predictor.each([placed.image])[0])
