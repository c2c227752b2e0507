"""Make a file of analytic PET phantoms, heads in slices, as scans are simulated of."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.phantom_files import KEY, of_archive
from edm3d.physics.pet_phantoms import pet_stack
from edm3d.utils import locks
from edm3d.utils.checks import check_count
from edm3d.utils.files import atomic_path, check_dest, check_free_disk, check_replaced
from edm3d.utils.log import progress

UNIT = "activity"


class PetPhantomOptions(NamedTuple):
    """Which phantoms to draw: heads, slices of each, pixels along each side, seed and kind."""

    subjects: int
    slices: int
    size: int
    seed: int
    kind: str


def draw_pet_phantoms(dest: Path, options: PetPhantomOptions, overwrite: bool = False) -> bool:
    """Write an .npz with `phantoms` [N,S,S] and the number of the head of each; False where the same is there already.

    overwrite: draw anew, over whatever is there. ValueError for options that no phantom has.
    """
    check_count(1, {"--subjects": options.subjects, "--slices": options.slices, "--size": options.size})
    made = [str(value) for value in options]
    check_dest(dest, ".npz", {})
    needed = 4 * options.subjects * options.slices * options.size ** 2
    with locks.output(dest):
        if not overwrite and is_made_by(dest, made):
            return False
        check_replaced(dest, overwrite, lambda path: of_archive(path, "file", None))
        check_free_disk(dest.parent, needed)
        stacks = [pet_stack(i, seed=options.seed, size=options.size, depth=options.slices, kind=options.kind).activity
                  for i in progress(range(options.subjects), desc="phantom", unit="head")]
        subjects = np.repeat(np.arange(options.subjects), options.slices)
        with atomic_path(dest, needed) as path, open(path, "wb") as file:
            np.savez_compressed(file, **{KEY: np.concatenate(stacks), "subjects": subjects, "unit": np.array(UNIT),
                                         "made_by": np.array(made)})
    return True


def is_made_by(path: Path, made: list[str]) -> bool:
    """Whether a file is there that these options made."""
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "made_by" in archive and archive["made_by"].tolist() == made
    except Exception:  # whatever is wrong with it, these did not make it; check_replaced says what it is
        return False
