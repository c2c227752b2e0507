"""Images on the same grid, as a low dose beside the full one."""

from collections.abc import Sequence

from edm3d.networks.parts.base import PartKind


class Images(PartKind):
    """[N,C,*S] as networks see images, mostly in [-1,1], of volumes at full size; null: zeros."""

    one, many = "condition image", "condition channels"
    width_key, dropout_key = "image_dim", "image_dropout"
    stored, names, grid = "cond_images", "condition_channels", "image"

    def shape(self, width: int, size: Sequence[int]) -> tuple[int, ...]:
        return (width, *size)
