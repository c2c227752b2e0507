"""Publishing: a snapshot as a folder that a model hub takes, with what its volumes must be like and a card."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edm3d.formats.facts import BETWEEN, Facts
from edm3d.formats.published import (
    CONFIG,
    FORMAT,
    read_published,
    record_of,
    write_published,
)
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.card import Said, card, field_of_view
from edm3d.inference.drawing import complete
from edm3d.inference.snapshot import Snapshot
from edm3d.utils import locks
from edm3d.utils.files import check_dest_folder, write_text
from edm3d.utils.plain import read_json
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Sampling

CARD, PREPROCESSING = "README.md", "preprocessing.json"


@dataclass(frozen=True)
class PublishOptions:
    """said: what only the user knows, for the card. report: a report.json of evaluate.

    volumes: the volumes file, where it is no longer at the place that the snapshot names. autoencoder: the first stage
    of a snapshot that does not carry it.
    """

    said: Said
    report: Path | None = None
    volumes: Path | None = None
    autoencoder: str | None = None
    overwrite: bool = False
    trust: bool = False


def publish(name: str, dest: Path, options: PublishOptions, run_root: str = "results") -> tuple[Snapshot, bool]:
    """Write DEST: weights as safetensors, config.json, preprocessing.json, README.md; what was published, and whether.

    False where just that was there already. name: of an experiment, a run folder or a snapshot. Folders of this machine
    are cut off all paths. ValueError where DEST holds anything else, or the report is of another network or not for
    release.
    """
    check_dest_folder(dest, {"SNAPSHOT": name, "--report": options.report, "--volumes": options.volumes,
                             "--autoencoder": options.autoencoder})
    with locks.output(dest, is_folder=True):
        return publish_to(name, dest, options, run_root)


def publish_to(name: str, dest: Path, options: PublishOptions, run_root: str) -> tuple[Snapshot, bool]:
    """The same into a folder that nobody else writes to."""
    check_published(dest)
    path = find_file(name, "network-snapshot", Path(run_root), "SNAPSHOT")
    read = Snapshot.read(path)
    snapshot = complete(read, Sampling(outdir="", autoencoder=options.autoencoder), run_root)
    if snapshot.first_stage:
        snapshot.first_stage.build(str(path), options.trust)  # ValueError where it is not there
    net = snapshot.build(options.trust)
    report = read_report(options.report, read) if options.report else None
    preparation = found_preparation(snapshot.facts, options.volumes)
    bare = without_paths(snapshot)
    texts = {PREPROCESSING: json.dumps(contract(bare.facts, preparation), indent=2) + "\n",
             CARD: card(dest.absolute().name, bare, net, preparation, report, options.said)}
    if (dest / CONFIG).exists() and not options.overwrite:
        if not is_begun(dest, bare, snapshot.hash, texts):
            raise ValueError(f"--dest {dest}: holds files already, another network or card; choose another folder, or "
                             "--overwrite what was published there")
        if is_whole(dest, texts):
            return bare, False
    write_published(dest, bare.plain(), snapshot.hash)
    for place, text in texts.items():
        write_text(dest / place, text)
    return bare, True


def is_begun(dest: Path, snapshot: Snapshot, snapshot_hash: str, texts: Mapping[str, str]) -> bool:
    """Whether a folder is of this network, and of these texts as far as they are there."""
    try:
        had = {name: (dest / name).read_text(encoding="utf-8") for name in texts if (dest / name).exists()}
    except (OSError, ValueError):
        return False
    wanted = record_of(snapshot.plain(), snapshot_hash)
    return read_json(dest / CONFIG) == wanted and had == {name: texts[name] for name in had}


def is_whole(dest: Path, texts: Iterable[str]) -> bool:
    """Whether a folder holds all that is published, undamaged: a killed command leaves one that does not."""
    try:
        read_published(dest)
    except (OSError, ValueError):
        return False
    return all((dest / name).exists() for name in texts)


def check_published(dest: Path) -> None:
    """ValueError for a folder that holds anything but what was published there, by its config.json."""
    if not any(not path.name.startswith(".") for path in dest.iterdir()):
        return
    found = read_json(dest / CONFIG) if (dest / CONFIG).is_file() else None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"--dest {dest}: holds files already, and nothing says that publish wrote them; choose "
                         "another folder")


def without_paths(snapshot: Snapshot) -> Snapshot:
    """The same without the folders of the machine it was trained on."""
    latents = snapshot.facts.latents
    facts = replace(snapshot.facts, source=BETWEEN.join(Path(file).name for file in snapshot.facts.files),
                    latents=latents and latents._replace(path=Path(latents.path).name))
    return replace(snapshot, facts=facts, config=names_of(snapshot.config))


def names_of(value: Any) -> Any:
    """A plain value in which absolute paths are cut to the names of their files."""
    if isinstance(value, Mapping):
        return {name: names_of(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [names_of(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def found_preparation(facts: Facts, volumes: Path | None) -> dict[str, Any] | None:
    """How the volumes were made, as their file says, None where that is not there; ValueError for another file."""
    path = volumes or Path(facts.source)
    if volumes is None and (path.suffix != ".h5" or not path.is_file()):
        return None
    if not facts.content_hash:
        raise ValueError(f"--volumes {path}: the network does not say which volumes it was trained on, as one that was "
                         "trained privately does not; leave it away")
    file = VolumesFile(path)
    if file.content_hash != facts.content_hash:
        if volumes is None:
            return None
        raise ValueError(f"--volumes {path}: not the volumes that the network was trained on (content hash "
                         f"{file.content_hash[:12]}, trained on {facts.content_hash[:12]})")
    return names_of(file.provenance)


def contract(facts: Facts, preparation: dict[str, Any] | None) -> dict[str, Any]:
    """What volumes must be like, and what those that are drawn are like."""
    return {"channels": list(facts.channels), "label_classes": list(facts.label_classes),
            "class_names": list(facts.class_names),
            "intensity": {**asdict(facts.intensity), "network_range": [-1, 1]},
            "spatial_shape": list(facts.spatial_shape), "spacing_mm": facts.spacing.tolist(),
            "field_of_view_mm": field_of_view(facts), "affine": [list(row) for row in facts.affine],
            "preparation": preparation}


def read_report(path: Path, snapshot: Snapshot) -> dict[str, Any]:
    """A report.json of this network's samples; ValueError for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        reported = report["generated"]["snapshot_hash"]
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"--report {path}: not a report.json of generated volumes ({e!r:.200})") from e
    if reported != snapshot.hash:
        raise ValueError(f"--report {path}: of samples of another network ({reported[:12]}, this one is "
                         f"{snapshot.hash[:12]})")
    marks = report.get("private")
    if isinstance(marks, Mapping) and marks.get("marked"):
        raise ValueError(f"--report {path}: reads private data, not for release, and its figures would stand in the "
                         "card; leave it away, or give one of real volumes that may be told of (evaluate.py without "
                         "--private)")
    return report
