"""The card of a published network: README.md with the front matter that model hubs read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from edm3d.formats.facts import Facts
from edm3d.formats.privacy import PrivacyStatement
from edm3d.inference.card_usage import fenced, hub_tags, hub_task, hub_task_of, predicting, refining, usage
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.told import in_words, names_in_words
from edm3d.networks.autoencoder import Autoencoder
from edm3d.networks.conditioning import Part, takes_of
from edm3d.utils.names import printable

INTENDED = "Research on synthetic volumes. Not a medical device: nothing it draws may be used for diagnosis."
INTENDED_OF_PREDICTIONS = "Research. Not a medical device: nothing it says of an image may be used for diagnosis."


@dataclass(frozen=True)
class Said:
    """What only the user knows.

    licence: of the weights, as hubs name it (apache-2.0, cc-by-nc-4.0, other). data and data_licence: what the volumes
    are, and their terms; "" for not said, as for the intended use, which is then ours.
    """

    licence: str
    title: str = ""
    data: str = ""
    data_licence: str = ""
    intended_use: str = ""


def card(name: str, snapshot: Snapshot, net: torch.nn.Module, preparation: Mapping[str, Any] | None,
         report: Mapping[str, Any] | None, said: Said) -> str:
    """README.md of a folder of a name. preparation: how the volumes were made, report: a report.json; None: not known.
    """
    takes = None if isinstance(net, Autoencoder) or snapshot.predicts else takes_of(net)
    title = said.title or name
    told = about_conditions(snapshot.facts, net)
    if snapshot.predicts:
        use = predicting(name, snapshot.predicts)
    elif takes is None:
        use = fenced("python", stage_lines(name))
    elif snapshot.refines:
        use = refining(name, snapshot.refines.first_stage)
    else:
        use = usage(name, takes, snapshot.facts)
    sections = {"What it is": about(snapshot, net), "Use": use,
                **({"What it is told" if snapshot.refines else "What it can be asked for": told} if told else {}),
                "Data": about_data(snapshot.facts, said),
                "Preprocessing and intensities": about_intensities(snapshot.facts, preparation),
                "Training": about_training(snapshot),
                **({"Differential privacy": about_privacy(snapshot.privacy)} if snapshot.privacy else {}),
                "Metrics": about_metrics(snapshot, report),
                "Intended use": said.intended_use or (INTENDED_OF_PREDICTIONS if snapshot.predicts else INTENDED),
                "What is not known": "\n".join(f"- {line}" for line in unknown(snapshot, preparation, report, said))}
    head = front_matter(title, snapshot, takes, report, said)
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return printable(f"---\n{front}---\n\n# {title}\n\n{body}\n")


def front_matter(title: str, snapshot: Snapshot, takes: Mapping[str, Part] | None, report: Mapping[str, Any] | None,
                 said: Said) -> dict[str, Any]:
    """What hubs read at the head of a card. takes: what the network is told, None for what draws nothing."""
    dims = f"{len(snapshot.facts.spatial_shape) or len(snapshot.shape) - 1}d"
    task = hub_task_of(snapshot.predicts) if snapshot.predicts else None if takes is None else hub_task(takes)
    kinds = [] if snapshot.predicts else ["diffusion", "edm"]
    front = {"license": said.licence, "library_name": "edm3d", **({"pipeline_tag": task} if task else {}),
             "tags": ["medical-imaging", *kinds, dims, *hub_tags(takes or {}), *snapshot.facts.channels]}
    if report is None:
        return front
    values = [{"type": kind, "name": text, "value": value} for kind, text, value, _ in metrics(report)]
    result = {"task": {"type": task or hub_task({})},
              "dataset": {"type": snapshot.facts.content_hash[:12], "name": said.data or snapshot.facts.source},
              "metrics": values}
    return {**front, "model-index": [{"name": title, "results": [result]}]}


def about(snapshot: Snapshot, net: torch.nn.Module) -> str:
    """What the network is, in a few lines."""
    weights = sum(p.numel() for p in net.parameters()) / 1e6
    facts, stage = snapshot.facts, snapshot.first_stage
    labels = f" with label maps of {', '.join(facts.label_classes)}" if facts.label_classes else ""
    works_on = snapshot.space if stage is None else (
        f"latents of a first stage that is in first_stage.safetensors (hash {stage.hash[:12]})")
    gives = f"It {in_words(snapshot.predicts)}. " if snapshot.predicts else ""
    return (f"A snapshot of task `{snapshot.task}` ({type(net).__name__}, {weights:.2f} M weights) trained by edm3d: "
            f"volumes of {size(facts.spatial_shape)} voxels, {', '.join(facts.channels)}{labels}. {gives}It works on "
            f"{works_on}; what it sees is {size(snapshot.shape)}. Nothing in this folder is code or pickle: weights "
            "are safetensors, config.json names the network's classes and their arguments.")


def stage_lines(name: str) -> str:
    """The shortest code that encodes and decodes by a first stage."""
    return "\n".join(["import edm3d", "", f'model = edm3d.load("{name}")  # this folder', "stage = model.first_stage",
                      "latents = stage.encode(images, labels)  # [N,C,*S] in the units below",
                      "images, labels = stage.decode(latents)"])


def about_conditions(facts: Facts, net: torch.nn.Module) -> str:
    """What the network is told, with the names and ranges that it was trained on; '' where that is nothing."""
    lines = []
    for name, part in takes_of(net).items():
        without = "may be left out" if part.dropout else "is needed, as it was never trained without"
        lines.append(f"- `{name}`: {', '.join(names_in_words(name, facts)) or part.width}; {without}")
    if not lines:
        return ""
    return "\n".join(["How: docs/conditions.md of edm3d. Of attributes the range in training; of maps the classes in "
                      "the order of their numbers, on the grid of the volumes.", "", *lines])


def about_data(facts: Facts, said: Said) -> str:
    """What was trained on."""
    classes = f" Classes: {', '.join(facts.class_names)}." if facts.class_names else ""
    named = f"File `{facts.source}`, content hash `{facts.content_hash[:16]}`" if facts.content_hash else \
        "Their file is not named"  # by a network that was trained privately
    return (f"{said.data or 'Not described.'}\n\nLicence of the data: {said.data_licence or 'not stated'}. "
            f"{named}.{classes}")


def about_intensities(facts: Facts, preparation: Mapping[str, Any] | None) -> str:
    """What volumes must be like to go through the network, and what drawn ones are like."""
    intensity = facts.intensity
    how = "not known" if preparation is None else f"`{preparation.get('kind', '?')}`, with all options in " \
        "preprocessing.json"
    clipped = "clipped to" if intensity.clip else "not clipped at"
    view = size([round(mm, 2) for mm in field_of_view(facts)])
    return (f"Volumes of {size(facts.spatial_shape)} voxels of {size(facts.spacing.round(4).tolist())} mm, a field of "
            f"view of {view} mm; volumes of another field of view were never seen. Image values are in "
            f"{intensity.unit}, {clipped} {intensity.lo:g} to {intensity.hi:g}, which networks see as -1 to 1. How the "
            f"volumes were made: {how}.")


def about_training(snapshot: Snapshot) -> str:
    """How long, and by what."""
    options = snapshot.config.get("training", {}).get("options", {})
    batch = f" in batches of {options['batch_size']}" if "batch_size" in options else ""
    return (f"{snapshot.nimg / 1000:g} thousand images{batch}; the weights are exponential moving averages. The whole "
            "configuration is in config.json.")


def about_privacy(said: PrivacyStatement) -> str:
    """The statement of a private training, item by item, and what it does not cover."""
    from edm3d.reporting.sections.private_training import PROMISED, rows_of  # here, since charts come with it
    return "\n".join([PROMISED, "", "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows_of(said)),
                      "", "Not covered:", "", *(f"- {text}" for text in said.not_covered)])


def about_metrics(snapshot: Snapshot, report: Mapping[str, Any] | None) -> str:
    """A table of what a report measured, and how well the first stage gives volumes back."""
    lines = []
    if report is not None:
        lines = [f"{report['generated']['num']} generated volumes (seeds {report['generated']['seeds']}) against "
                 f"{report['real']['num']} real ones: {report['real']['reference']}.", "",
                 "| measure | value | 99 % of real against real lie below |", "| --- | --- | --- |"]
        lines += [f"| {text} | {value:.4g} | {'' if limit is None else f'{limit:.4g}'} |"
                  for _, text, value, limit in metrics(report)]
    trip = snapshot.first_stage and snapshot.first_stage.round_trip
    if trip:
        lines += ["", f"The first stage gives {trip['num']} volumes of split {trip['split']} back at a PSNR of "
                      f"{trip['psnr_db']:.2f} dB."]
    return "\n".join(lines).strip() or "None given."


def metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """Kind, name, value of what a report measured, and what 99 % of comparisons of real with real stay below."""
    for name, found in report["metrics"].items():
        if found.get("ks") is not None:
            yield "ks", f"Kolmogorov-Smirnov distance, {name}", found["ks"], found.get("floor_p99")


def unknown(snapshot: Snapshot, preparation: Mapping[str, Any] | None, report: Mapping[str, Any] | None, said: Said
            ) -> Iterator[str]:
    """What a user would want to know, and nothing here says."""
    if not said.data:
        yield "What the data are, whom they show and how they were acquired."
    if not said.data_licence:
        yield "Under which terms the data may be used."
    if preparation is None:
        yield "How the volumes were prepared before training."
    if snapshot.predicts:
        yield "How well it does on images of others than those of the data."
    else:
        if report is None:
            yield "How well generated volumes agree with real ones: no report was given."
        yield "Whether it memorises: how near what it draws comes to training volumes was not measured for this card."
    if not snapshot.privacy:
        alone = ", that of the first stage alone was" if getattr(snapshot.first_stage, "privacy", None) else ""
        yield f"Privacy: training was not differentially private{alone}."
    yield "How it behaves for scanners, populations and diseases other than those of the data."


def field_of_view(facts: Facts) -> list[float]:
    """Extent per axis in mm."""
    return [n * step for n, step in zip(facts.spatial_shape, facts.spacing.tolist(), strict=True)]


def size(numbers: Any) -> str:
    """Numbers per axis as in 32 x 32 x 16."""
    return " x ".join(f"{n:g}" for n in numbers)
