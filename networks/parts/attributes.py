"""Numbers that are known of an image."""

from math import nan

from edm3d.networks.parts.base import PartKind


class Attributes(PartKind):
    """[N,A] float in the units of the file; null, of single numbers too: NaN."""

    one, many = "attribute", "attributes"
    width_key, dropout_key = "attribute_dim", "attribute_dropout"
    stored, names = "attributes", "attribute_names"

    def null(self, width: int | None) -> float:
        return nan
