"""Pictures while training: what all ranks show together every few ticks, and how it is kept."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.samples import Samples
from edm3d.reporting.slices import Block
from edm3d.utils import distributed
from edm3d.utils.files import atomic_path, first_line, remove_temporary
from edm3d.utils.log import is_lack_of_memory


class Shown(NamedTuple):
    """Blocks of pictures, the further arguments of reporting.montages.montage, and the samples where there are any."""

    blocks: list[Block]
    look: dict[str, Any]
    samples: Samples | None = None


Show = Callable[[torch.nn.Module], Shown]


class Preview(NamedTuple):
    """What is shown of an averaged network every few ticks. All ranks must call it together."""

    show: Show
    every_ticks: int


class MadePreview(NamedTuple):
    """A preview ready to be kept."""

    png: bytes
    samples: Samples | None


# ---- building ----


def check_ticks(validation: dict) -> None:
    """ValueError for settings that no measurement and no preview could follow."""
    off = {"preview_ticks": ", or null for no pictures", "sample_ticks": ", or null for no samples"}
    for key, least in (("every_ticks", 1), ("preview_ticks", 1), ("preview_items", 1), ("sample_ticks", 1),
                       ("num_samples", 2)):
        if (value := validation[key]) is not None and value < least:
            raise ValueError(f"training.validation.{key}={value}: wanted {least} or more{off.get(key, '')}")


def build_preview(validation: dict, make_show: Callable[[int], Show]) -> tuple[Preview | None, list[str]]:
    """The preview that training.validation asks for, None without one; and what to say where none can be made.

    make_show(count): what shows so many pictures, ValueError where there are none to show. All ranks must call this
    together: they show something together, or not at all.
    """
    every = validation["preview_ticks"]
    if every is None:
        return None, []
    show, why = None, ""
    try:
        show = make_show(validation["preview_items"])
    except ValueError as e:  # what is only drawn with does not keep a network from being trained
        why = str(e)
    reasons = [reason for reason in distributed.gather_objects(why) if reason]
    if not reasons:
        return Preview(show, every), []
    return None, [f"Warning: no pictures while training (training.validation.preview_ticks={every}): {reasons[0]}"]


# ---- making and keeping ----


def make(preview: Preview, net: torch.nn.Module, is_main: bool) -> tuple[MadePreview | None, str]:
    """The preview of a network, drawn on the main rank; and what was said where memory ran out, else ''."""
    try:
        shown = preview.show(net)
        return (MadePreview(drawn_png(shown), shown.samples) if is_main else None), ""
    except Exception as e:
        if not is_lack_of_memory(e):
            raise
        return None, first_line(e)


def drawn_png(shown: Shown) -> bytes:
    """The PNG bytes of a preview."""
    from edm3d.reporting.montages import montage, png_bytes
    return png_bytes(montage(shown.blocks, **shown.look))


def pixels(png: bytes) -> np.ndarray:
    """Colours [H,W,3] uint8 of a PNG."""
    from matplotlib.image import imread
    return np.round(imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(np.uint8)


def write_preview(run_dir: Path, name: str, made: MadePreview) -> None:
    """Write previews/preview-NAME.png, and beside it as .npz the samples as the network drew them.

    Images that were decoded from latents are left out: the latents give them again.
    """
    folder = run_dir / "previews"
    folder.mkdir(exist_ok=True)
    remove_temporary(folder)
    with atomic_path(folder / f"preview-{name}.png", len(made.png)) as temporary:
        temporary.write_bytes(made.png)
    if made.samples is None:
        return
    samples = made.samples
    kept = {key: array for key, array in samples.arrays.items() if key != "images" or "latents" not in samples.arrays}
    meta = samples.meta._replace(snapshot=str(run_dir / f"network-snapshot-{name}.pt"))
    Samples(samples.seeds, kept, meta).save(folder / f"preview-{name}.npz")
