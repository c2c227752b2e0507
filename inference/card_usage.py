"""What the card of a network shows of its use: an example that asks for what the network is told, and its task."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from edm3d.formats.facts import Facts
from edm3d.formats.prediction import Prediction
from edm3d.networks.conditioning import Part
from edm3d.networks.parts import PARTS
from edm3d.utils.names import one_line

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # names that a shell and Hydra take as they are
WORDS = ("null", "none", "true", "false", "inf", "nan", "on", "off", "yes", "no")  # that are no names there
TABLE = "conditions.csv"


def hub_task(takes: Mapping[str, Part]) -> str:
    """What hubs call the task of a network that is told these parts."""
    if not takes:
        return "unconditional-image-generation"
    return "image-to-image" if {"semantic", "images"} & takes.keys() else "other"


def hub_task_of(predicts: Prediction) -> str:
    """What hubs call the task of a segmenter or classifier."""
    return "image-segmentation" if predicts.of_voxels else "image-classification"


def hub_tags(takes: Mapping[str, Part]) -> list[str]:
    """Further tags of it."""
    kinds = [f"{PARTS[name].one.replace(' ', '-')}-conditional" for name in takes]
    return ["conditional-image-generation", *kinds] if takes else []


def values_of(part: Part, facts: Facts) -> dict[str, float]:
    """Plausible values of attributes by name: the means of the training, of one where the others may be missing."""
    known = facts.attribute_statistics
    if not known or not facts.attribute_names:
        return {}
    found, gone = {}, known.never()
    for number, name in enumerate(facts.attribute_names):
        needed = not (part.gaps or known.missing[number])
        if number not in gone and (needed or not found):
            short, mean = float(f"{known.mean[number]:.5g}"), known.mean[number]
            found[name] = short if known.lo[number] <= short <= known.hi[number] else mean
    return found


def asked_of(takes: Mapping[str, Part], facts: Facts) -> dict[str, Any]:
    """Arguments of `model.sample` that ask for something of every part."""
    asked: dict[str, Any] = {}
    if "class_labels" in takes:
        asked["classes"] = [facts.class_name(0)]
    if "attributes" in takes and (values := values_of(takes["attributes"], facts)):
        asked["attributes"] = values
    if {"semantic", "images"} & takes.keys():
        asked["conditions"] = TABLE if "images" in takes else file_named("map", facts)
    return asked


def file_named(stem: str, facts: Facts) -> str:
    """The name of a file of a map or an image."""
    return f"{stem}.{'png' if len(facts.spatial_shape) == 2 else 'nii.gz'}"


def table_of(takes: Mapping[str, Part], facts: Facts) -> str:
    """What a table of one row may say that names the files of a map and an image; '' where none is needed."""
    if "images" not in takes:
        return ""
    kinds = ["map"] * ("semantic" in takes) + ["image"]
    return f"{','.join(['id', *kinds])}\n{','.join(['mine', *(file_named(kind, facts) for kind in kinds)])}"


def python_lines(name: str, takes: Mapping[str, Part], facts: Facts) -> list[str]:
    """Code that draws."""
    asked = "".join(f", {key}={value!r}" for key, value in asked_of(takes, facts).items())
    return ["import edm3d", "", f'model = edm3d.load("{name}")  # this folder',
            f"samples = model.sample(seeds=range(8){asked})",
            "print(samples.images.shape, samples.units, samples.affine)", 'samples.save_nifti("nifti")']


def command_words(name: str, takes: Mapping[str, Part], facts: Facts) -> list[str]:
    """The overrides of `edm3d generate` that ask for the same."""
    asked = asked_of(takes, facts)
    words = [f"sampling.network={name}", "sampling.outdir=drawn", "sampling.seeds=0-7"]
    if "classes" in asked:
        first = asked["classes"][0]
        words.append(f"sampling.classes=[{first if is_plain(first) else 0}]")
    for attribute, value in asked.get("attributes", {}).items():
        quoted = attribute if is_plain(attribute) else '"' + attribute.replace("\\", "\\\\").replace('"', '\\"') + '"'
        words.append(f"sampling.attributes.{quoted}={value:g}" if float(f"{value:g}") == value
                     else f"sampling.attributes.{quoted}={value!r}")
    if "conditions" in asked:
        words.append(f"sampling.conditions={asked['conditions']}")
    return words


def is_plain(name: str) -> bool:
    """Whether a name may be typed as it stands."""
    return bool(PLAIN.fullmatch(name)) and name.casefold() not in WORDS


def usage(name: str, takes: Mapping[str, Part], facts: Facts) -> str:
    """The shortest code that draws, what it asks for, and the same from the command line."""
    command = " ".join(["edm3d generate -cn=echo_edm", *map(shlex.quote, command_words(name, takes, facts))])
    parts = [fenced("python", "\n".join(python_lines(name, takes, facts)))]
    if takes:
        parts.append(in_words(takes, facts))
    if table := table_of(takes, facts):
        parts += [f"`{TABLE}` names the files, one row for each seed or cycled:", fenced("", table)]
    parts += ["From the command line (any diffusion experiment serves for `-cn`, which gives the sampler):",
              fenced("", one_line(command))]
    return "\n\n".join(parts)


def refining(name: str, stage: str) -> str:
    """The shortest code that refines what another network draws, of a first stage by its hash, and the same typed."""
    lines = ["import edm3d", "", f'model = edm3d.load("DIFFUSION")  # one of latents of first stage {stage[:12]}',
             f'samples = model.sample(seeds=range(8), refiner="{name}")  # this folder']
    words = ["sampling.network=DIFFUSION", f"sampling.refiner={name}", "sampling.outdir=drawn", "sampling.seeds=0-7"]
    command = " ".join(["edm3d generate -cn=echo_edm", *map(shlex.quote, words)])
    return "\n\n".join(["It draws nothing by itself: it refines the images that a first stage decodes.",
                        fenced("python", "\n".join(lines)), "From the command line:", fenced("", one_line(command))])


def predicting(name: str, predicts: Prediction) -> str:
    """The shortest code that says what images show, and the same typed."""
    size = "[N,K,*S], of every voxel" if predicts.of_voxels else "[N,K]"
    lines = ["from pathlib import Path", "", "import torch", "",
             "from edm3d.inference.predictor import open_predictor", "",
             f'predictor = open_predictor("{name}", Path("results"), torch.device("cpu"))  # this folder',
             "x = predictor.facts.intensity.to_network(images)  # [N,C,*S] in the units below",
             f"probabilities = predictor(torch.as_tensor(x))  # {size}"]
    parts = [fenced("python", "\n".join(lines))]
    if predicts.of_voxels:
        words = f"edm3d data segment --network {shlex.quote(name)} --source volumes.h5 --dest labels.h5"
        parts += ["From the command line:", fenced("", one_line(words))]
    return "\n\n".join(parts)


def in_words(takes: Mapping[str, Part], facts: Facts) -> str:
    """What the network is told, in a sentence, and what happens where nothing is said."""
    told = {"class_labels": "a class", "attributes": "attributes by name, in the units of the data",
            "semantic": "a map of classes on the grid of the volumes", "images": "a condition image on that grid"}
    lines = [f"The network is told {', '.join(told.get(name, PARTS[name].one) for name in takes)}."]
    if "class_labels" in takes:
        lines.append("Without `classes` the seeds go through all of them in turn.")
    if missing := [PARTS[name].one for name, part in takes.items() if not part.dropout and name != "class_labels"]:
        lines.append(f"It was never trained without: {', '.join(missing)}.")
    return " ".join(lines)


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
