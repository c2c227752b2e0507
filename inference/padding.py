"""Which slices of stacks a report leaves out, because they are padding in real ones."""

from collections.abc import Sequence

import numpy as np

from edm3d.formats.padding import padded_slices
from edm3d.formats.volumes import VolumesFile
from edm3d.reporting.section import Padding

LEAVE, KEEP = "--leave-padding-out", "--keep-padding"


def padding_of(file: VolumesFile, size: Sequence[int], leave_out: bool | None) -> Padding | None:
    """The padding that the boxes of a real file record, on a grid [*size] on which volumes are padded or cropped
    centrally; None where it records none along the first axis.

    leave_out: whether it is left out; None: where there is some. ValueError where there is none to leave out, or no
    slice that holds image in all stacks.
    """
    found = [boxes for split in file.splits if (boxes := file.table(split, "boxes")) is not None]
    depth = file.spatial_shape(file.splits[0])[0]
    boxes = np.concatenate(found) if found and file.meta.spatial_dims == 3 else np.empty((0, 2, 3), np.int64)
    counts = padded_slices(boxes, depth)
    if not counts.any():
        if leave_out:
            raise ValueError(f"{LEAVE}: {file.path} records no slices of padding; prepare it anew with --find-padding, "
                             "or leave it away")
        return None
    total = Padding(int(np.count_nonzero(counts)), len(counts), int(counts.sum()), size[0], None)
    if leave_out is False:
        return total
    before = int((depth - size[0]) / 2)  # as formats.geometry.fit_centre has it
    first = max(0, int(boxes[:, 0, 0].max()) - before)
    last = min(size[0], int(boxes[:, 1, 0].min()) - before)
    if last <= first:
        raise ValueError(f"{file.path}: no slice holds image in all of its {len(boxes)} stacks, so that nothing "
                         f"can be compared without padding; give {KEEP}")
    return total._replace(kept=(first, last))
