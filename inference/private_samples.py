"""What samples of a privately trained network say of its privacy: what else they are made of is not covered by it."""

from collections.abc import Iterator, Mapping
from typing import Any

from edm3d.formats.privacy import PrivacyStatement, once
from edm3d.inference.snapshot import Snapshot

SHOWN = 12  # digits of a hash that people are shown
BESIDE = {  # by the setting of samples
    "conditions": "what the samples were asked for, row by row of a file: its name, ids and values stand in them",
    "posterior": "the measurement that the samples were drawn by, and the name of its file",
    "quality": "the ranges outside of which samples were drawn again, as measured on real volumes",
}


def said_of_samples(said: PrivacyStatement, settings: Mapping[str, Any], refiner: Snapshot | None = None
                    ) -> PrivacyStatement:
    """The statement of a network as samples of it carry it.

    settings: of the samples (SampleMeta.sampling); refiner: of the network that refined them.
    """
    earlier = list(said.earlier)
    if refiner is not None and refiner.privacy is not None:
        earlier = once([*earlier, *refiner.privacy.as_earlier(f"refiner {refiner.hash[:SHOWN]}")])
    return said._replace(not_covered=[*beside(settings, refiner), *said.not_covered], earlier=earlier)


def beside(settings: Mapping[str, Any], refiner: Snapshot | None) -> Iterator[str]:
    """What samples are made of besides the network, and is not known to be public."""
    yield from (text for name, text in BESIDE.items() if name in settings)
    others = {"refiner": refiner.hash if refiner is not None and refiner.privacy is None else None,
              "network that guided them": (settings.get("guidance") or {}).get("guide")}
    yield from (f"what the {what} {found[:SHOWN]} has learnt, unless it is of other data or counts in this ledger"
                for what, found in others.items() if found)
