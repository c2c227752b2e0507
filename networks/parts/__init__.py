"""The parts that a condition may have, one file per kind; they are stacked, dropped and drawn by what it says."""

from edm3d.networks.parts.attributes import Attributes
from edm3d.networks.parts.base import PartKind
from edm3d.networks.parts.class_labels import ClassLabels
from edm3d.networks.parts.images import Images
from edm3d.networks.parts.semantic import Semantic

PARTS: dict[str, PartKind] = {
    "class_labels": ClassLabels(),
    "attributes": Attributes(),
    "semantic": Semantic(),
    "images": Images(),
}
