"""Features on disk, one file for what one extractor sees of one set: read where whole, else made and written anew."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edm3d.formats.kept_arrays import read_kept, write_kept
from edm3d.utils.files import first_line, remove_temporary
from edm3d.utils.log import note


@dataclass
class FeatureCache:
    """A folder of features [N,d], named by the hash of all that they depend on; None: nothing is kept.

    Two processes that make the same features write the same. Where nothing can be written a note says so, once.
    """

    folder: Path | None
    told: bool = field(default=False, init=False)

    def read(self, key: str, count: int, width: int) -> np.ndarray | None:
        """Features [count,width] float32 of a key, None where there are none that are whole."""
        found = None if self.folder is None else read_kept(self._path(key), key)
        features = None if found is None else found.get("features")
        sound = features is not None and features.dtype == np.float32 and features.shape == (count, width)
        return features if sound and np.isfinite(features).all() else None

    def write(self, key: str, features: np.ndarray) -> None:
        """Keep features."""
        if self.folder is None:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_temporary(path.parent, path.name, spare_living=True)
            write_kept(path, key, {"features": features})
        except (OSError, ValueError) as error:
            if not self.told:
                note(f"Note: features are not kept in {self.folder} ({first_line(error)}); they are made anew each "
                     "time")
            self.told = True

    def _path(self, key: str) -> Path:
        return self.folder / f"features-{key[:24]}.npz"
