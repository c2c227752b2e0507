"""What is said of images that lie otherwise than those that a network was trained on."""

from collections.abc import Sequence

from edm3d.formats.intensity import Intensity
from edm3d.inference.segment_grid import Difference, Trained
from edm3d.utils.checks import listed

MOST_OUTSIDE = 0.2  # of an image's voxels that may leave the range of training without a word
LEAST_FILLED = 0.05  # of that range, likewise
Found = tuple[str, Difference, float, float]  # of an image: id, place, share outside of the range, share of it filled


def said_of(found: Sequence[Found], trained: Trained, intensity: Intensity, resample: bool, tested: bool = False
            ) -> list[str]:
    """Lines on images by id: of their axes, voxel sizes and values. tested: no label maps are written."""
    differences = [(name, each) for name, each, *_ in found]
    lines = []
    if turned := {each.turned for _, each in differences} - {""}:
        count = sum(bool(each.turned) for _, each in differences)
        lines.append(f"Note: {count} of {len(found)} images have axes {listed(sorted(turned))}, those of training "
                     f"{trained.codes}: they are turned for the network"
                     + ("" if tested else ", and label maps lie on the images as they are"))
    if across := [f"{name} {each.plane}" for name, each in differences if each.plane]:
        lines.append(f"Warning: {len(across)} of {len(found)} images lie in another plane than those of training "
                     f"({trained.codes}), and are seen as they are: {listed(across)}")
    if unknown := [name for name, each in differences if each.unknown]:
        lines.append(f"Note: {len(unknown)} of {len(found)} images, or those of training, do not say how their axes "
                     f"lie: they are seen as they are stored: {listed(unknown)}")
    if spaced := [f"{name} {_size(each.spacing)}" for name, each in differences if each.spacing]:
        wanted = _size(trained.spacing[:len(next(each.spacing for _, each in differences if each.spacing))])
        lines.append(f"{'Note' if resample else 'Warning'}: {len(spaced)} of {len(found)} images have other voxels "
                     f"than those of training ({wanted} mm): {listed(spaced)}; "
                     + ("they are resampled for the network, and label maps back (nearest)" if resample else
                        "they are seen as they are" + ("" if tested else ", --resample brings them to its voxel size")))
    return [*lines, *_of_values(found, intensity)]


def _size(spacing: Sequence[float]) -> str:
    return "x".join(f"{step:.3g}" for step in spacing)


def _of_values(found: Sequence[Found], intensity: Intensity) -> list[str]:
    odd = [f"{name} ({100 * outside:.0f} % outside)" if outside > MOST_OUTSIDE else
           f"{name} (all within {100 * filled:.2g} % of it)"
           for name, _, outside, filled in found if outside > MOST_OUTSIDE or filled < LEAST_FILLED]
    if not odd:
        return []
    return [f"Warning: {len(odd)} of {len(found)} images have values that hardly fit the range of training, "
            f"{intensity.lo:g} to {intensity.hi:g} {intensity.unit}; are they in its unit? {listed(odd)}"]
