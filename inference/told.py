"""What a network is told besides the noisy image, in words: for its card, and for `info`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edm3d.formats.facts import Facts
from edm3d.formats.prediction import Prediction
from edm3d.formats.training_state import TrainingState
from edm3d.inference.network_files import build_skeleton, check_size
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Part, takes_of
from edm3d.networks.parts import PARTS
from edm3d.samplers.noise import GENERATORS
from edm3d.utils import checkpoint
from edm3d.utils.checks import is_whole
from edm3d.utils.commands import command
from edm3d.utils.names import one_line, titled
from edm3d.utils.runs import is_published, list_files

DRAW_NOTHING = ("autoencoder", "segmentation", "classification")  # tasks of networks that do not


def names_in_words(name: str, facts: Facts) -> list[str]:
    """Names of the values of a part as far as they are known, those of attributes with units and ranges in training."""
    kind = PARTS[name]
    names = (getattr(facts, kind.names) if kind.names else None) or ()
    if name != "attributes":
        return [one_line(each) for each in names]
    found, units = facts.attribute_statistics, facts.attribute_units or ("",) * len(names)
    titles = [one_line(titled(each, unit)) for each, unit in zip(names, units, strict=True)]
    if not found:
        return titles
    never = found.never()
    return [f"{title} in no training item" if number in never else f"{title} {lo:g} to {hi:g}"
            for number, (title, lo, hi) in enumerate(zip(titles, found.lo, found.hi, strict=True))]


def lines(takes: Mapping[str, Part], facts: Facts) -> Iterator[str]:
    """A line on each part: its width, names, and how often it was left out in training."""
    for name, part in takes.items():
        names = names_in_words(name, facts)
        known = f" ({', '.join(names)})" if names else ""
        left = f"left out of {part.dropout:.3g} of the images" if part.dropout else "never left out"
        gaps = f", single values of {part.gaps:.3g}" if part.gaps else ""
        yield f"told {part.width} {PARTS[name].many}{known}: in training {left}{gaps}"


def in_words(predicts: Prediction) -> str:
    """What a segmenter or classifier gives of an image."""
    of = "every voxel" if predicts.of_voxels else "an image"
    return one_line(f"gives the class of {of}, of {predicts}")


def used_by(predicts: Prediction) -> str:
    """By which command a segmenter or classifier is used."""
    if predicts.of_voxels:
        return f"{command('data', 'segment', '--network')} writes label maps by it"
    return f"{command('evaluate', 'downstream', '--runs')} tests it"


def said_of_networks(path: Path) -> list[str]:
    """What `info` says of what a network is told, of a snapshot, a state, a run or a published folder; else [].

    Of a run it is the newest snapshot, and the newest state where there is none. What is damaged is for `check` to say.
    """
    try:
        found = newest(path)
        if found is None:
            return []
        if not found.is_dir() and checkpoint.read_plain(found).get("format") == "state":
            (takes, facts, draws), tuned = of_state(TrainingState.read(found)), []
        else:
            snapshot = Snapshot.read(found)
            takes, facts, draws = takes_of_snapshot(snapshot), snapshot.facts, snapshot.task not in DRAW_NOTHING
            tuned = [grid.line() for grid in snapshot.grids]
            tuned += [f"trained by noise of {snapshot.noise}"] if snapshot.noise != GENERATORS else []
            if snapshot.predicts is not None:
                return [f"  {'' if found == path else f'{found.name}: '}{in_words(snapshot.predicts)}"]
    except ValueError:
        return []
    where = "" if found == path else f"{found.name}: "
    told = list(lines(takes, facts)) or (["told nothing"] if draws else [])
    return [f"  {where}{line}" for line in (*told, *tuned)]


def newest(path: Path) -> Path | None:
    """The network that a path means, None where it means none."""
    if not path.is_dir():
        return path if path.suffix == ".pt" else None
    if is_published(path):
        return path
    return next((files[-1] for kind in ("network-snapshot", "training-state") if (files := list_files(path, kind))),
                None)


def takes_of_snapshot(snapshot: Snapshot) -> dict[str, Part]:
    """What a snapshot's network takes: by itself, without memory, or by its config where it is not one of ours."""
    check_size(snapshot.network, f"{snapshot.path}: network")
    try:
        return takes_of(build_skeleton(snapshot.network, snapshot.weights, str(snapshot.path), False))
    except ValueError:
        return takes_of_node(snapshot.network, snapshot.facts)


def of_state(state: TrainingState) -> tuple[dict[str, Part], Facts, bool]:
    """What the network of a training state takes by its configuration, its data, and whether it draws."""
    training = state.config["training"]
    node = training.get("network")
    takes = takes_of_node(node, state.facts) if isinstance(node, Mapping) else {}
    return takes, state.facts, training.get("task") not in DRAW_NOTHING


def takes_of_node(node: Mapping[str, Any], facts: Facts) -> dict[str, Part]:
    """What a config says that a network takes: widths, `auto` being as many as the data have names, and drop shares."""
    inner = node.get("model") if isinstance(node.get("model"), Mapping) else {}
    keys, takes = {**node, **inner}, {}
    for name, kind in PARTS.items():
        width = keys.get(kind.width_key)
        if width == "auto":
            width = len((getattr(facts, kind.names) if kind.names else None) or ())
        shares = [keys.get(kind.dropout_key), keys.get("attribute_gaps") if name == "attributes" else 0]
        if is_whole(width) and width > 0:
            takes[name] = Part(width, *(share if isinstance(share, (int, float)) else 0 for share in shares))
    return takes
