"""The parts that a condition may have, one file per kind; they are stacked, dropped and drawn by what it says."""

from networks.parts.attributes import Attributes
from networks.parts.base import PartKind
from networks.parts.class_labels import ClassLabels
from networks.parts.images import Images
from networks.parts.semantic import Semantic

PARTS: dict[str, PartKind] = {
    "class_labels": ClassLabels(),
    "attributes": Attributes(),
    "semantic": Semantic(),
    "images": Images(),
}
