"""What a network is told, in words: `info` of snapshots, states and runs, and the cards of published networks."""

import json
import re
import shlex
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dataset_tool
from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.png import write_png
from edm3d.formats.training_state import Collected, Progress, TrainingState
from edm3d.inference.asking import Asker
from edm3d.inference.card_usage import table_of, usage
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.told import lines, takes_of_node
from edm3d.networks.conditioning import Part, takes_of
from edm3d.networks.parts import PARTS
from edm3d.utils import checkpoint
from edm3d.utils.compose import compose
from edm3d.utils.config import build
from edm3d.utils.schema import sampling_options
from tests.commands import succeed

SIZE = (8, 8)
FACTS = Facts("v.h5", "", ("us",), ("air", "wall"), ("ED", "late systole"), spatial_shape=SIZE,
              condition_channels=("low",), map_classes=("out", "in", "rim"),
              attribute_names=("lv_volume", "body mass", "age"), attribute_units=("ml", "kg", "a"),
              attribute_statistics=AttributeStatistics([100.26, 25, 0], [20, 5, 1], [40.5, 15, 0], [200, 40, 0],
                                                       [0, 0, 9], 9))
MODEL = {"_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, "spatial_dims": 2,
         "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
WIDTHS = {"label_dim": 2, "attribute_dim": 3, "attribute_dropout": 0.1, "attribute_gaps": 0.25, "semantic_dim": 3,
          "image_dim": 1, "image_dropout": 0.2, "semantic_hidden": 8, "attribute_mean": [100, 25, 0],
          "attribute_std": [20, 5, 1]}
TOLD = ["told 2 classes (ED, late systole): in training left out of 0.05 of the images",
        "told 3 attributes (lv_volume [ml] 40.5 to 200, body mass [kg] 15 to 40, age [a] in no training item): in "
        "training left out of 0.1 of the images, single values of 0.25",
        "told 3 map classes (out, in, rim): in training never left out",
        "told 1 condition channels (low): in training left out of 0.2 of the images"]


def node(**widths) -> dict:
    """The config of a denoiser whose network is told parts of these widths."""
    told = {"label_dropout": 0.05} if widths else {}
    return {"_target_": "networks.precond.EDMPrecond", **told, "model": {**MODEL, **widths}}


def save(path: str, network: dict, facts: Facts = FACTS, task: str = "diffusion") -> Snapshot:
    """A snapshot of a network, untrained."""
    snapshot = Snapshot(task, network, facts, (1, *SIZE), weights=build(network).state_dict())
    snapshot.save(Path(path))
    return snapshot


@pytest.fixture
def at(tmp_path):
    """Work in a folder of its own."""
    with chdir(tmp_path):
        yield tmp_path


# ---- info ----


def told_by_info(path: str) -> list[str]:
    """The lines of `info` on what a network is told."""
    return [line.strip() for line in succeed(dataset_tool.main, "info", path).splitlines() if "told " in line]


def test_info_says_what_a_network_is_told(at):
    save("net.pt", node(**WIDTHS))
    assert told_by_info("net.pt") == TOLD
    save("bare.pt", node())
    assert told_by_info("bare.pt") == ["told nothing"]
    succeed(dataset_tool.main, "publish", "net.pt", "--dest", "hub", "--licence", "x")
    assert told_by_info("hub") == TOLD


def test_info_of_a_run_and_of_a_state_says_it_by_the_newest(at):
    Path("run").mkdir()
    Path("run/status.json").write_text("{}")
    auto = {**WIDTHS, "attribute_dim": "auto", "semantic_dim": "auto", "image_dim": "auto"}
    config = {"training": {"task": "diffusion", "options": {}, "network": node(**auto)}}
    state = TrainingState(config, FACTS, 1.0, {}, {**Progress().__dict__}, Collected(
        [], torch.zeros(1, 0, 2, dtype=torch.float64))._asdict(), {}, [], {}, {})
    checkpoint.save(Path("run/training-state-000001.pt"), "state", state.plain())
    assert told_by_info("run/training-state-000001.pt") == TOLD
    assert told_by_info("run") == [f"training-state-000001.pt: {line}" for line in TOLD]
    save("run/network-snapshot-000002.pt", node())
    assert told_by_info("run") == ["network-snapshot-000002.pt: told nothing"]


def test_what_a_config_says_is_what_its_network_takes():
    assert takes_of_node(node(**WIDTHS), FACTS) == takes_of(build(node(**WIDTHS)))
    assert takes_of_node(node(), FACTS) == {} and takes_of_node({"model": 3, "label_dim": "x"}, FACTS) == {}


def test_names_and_ranges_are_said_as_far_as_they_are_known():
    takes = {"attributes": Part(2), "semantic": Part(4, 0.5)}
    assert list(lines(takes, Facts("", ""))) == ["told 2 attributes: in training never left out",
                                                 "told 4 map classes: in training left out of 0.5 of the images"]
    facts = replace(FACTS, attribute_statistics=None, attribute_names=("a\x1b", "b"), attribute_units=("", "mm"))
    assert next(iter(lines(takes, facts))) == "told 2 attributes (a\\x1b, b [mm]): in training never left out"


# ---- cards ----


def asked_by_card(facts: Facts, **parts: Part):
    """What the command of a card asks of a network that takes these parts, and the words of the card."""
    takes = {name: parts[name] for name in PARTS if name in parts}
    text = usage("hub", takes, facts)
    command = next(line for line in text.splitlines() if line.startswith("edm3d generate"))
    experiment, *overrides = shlex.split(command)[2:]
    options = sampling_options(compose(experiment.removeprefix("-cn="), overrides))
    if found := re.search(r"```\n(id,.*?)```", text, re.DOTALL):
        Path("conditions.csv").write_text(found[1])
    for kind, channels in (("map", 1), ("image", 40)):
        write_png(Path(f"{kind}.png"), np.full(SIZE, channels, np.uint8))
    code = text.split("```python\n")[1].split("```")[0]
    return Asker(takes, facts, SIZE)(options, range(8)), code


def test_the_example_of_a_card_asks_for_all_that_a_network_is_told(at):
    facts = replace(FACTS, intensity=Intensity(0.0, 255.0, True, ""))
    every = {"class_labels": Part(2), "attributes": Part(3), "semantic": Part(3), "images": Part(1)}
    asked, code = asked_by_card(facts, **every)
    assert "classes=['ED'], attributes={'lv_volume': 100.26, 'body mass': 25.0}, conditions='conditions.csv'" in code
    told = asked([0])
    assert told.class_labels.tolist() == [[1, 0]] and (told.semantic == 1).all() and told.images.unique().numel() == 1
    np.testing.assert_array_equal(told.attributes, np.float32([[100.26, 25, np.nan]]))
    asked, code = asked_by_card(facts, semantic=Part(3))
    assert (asked([3]).semantic == 1).all() and "conditions='map.png')" in code
    asked, code = asked_by_card(facts, attributes=Part(3, 0.1, 0.1))
    np.testing.assert_array_equal(asked([0]).attributes, np.float32([[100.26, np.nan, np.nan]]))
    odd = replace(facts, class_names=("null", "b"), attribute_names=('a "b"\\', "c'd", "e"))
    asked, code = asked_by_card(odd, class_labels=Part(2), attributes=Part(3))
    assert asked([0]).attributes[0, :2].tolist() == np.float32([100.26, 25]).tolist() and "['null']" in code
    assert asked([0]).class_labels.tolist() == [[1, 0]]
    asked, code = asked_by_card(facts)
    assert asked.asked == {} and "range(8))" in code
    assert [table_of(dict.fromkeys(parts), replace(FACTS, spatial_shape=(8,) * 3)) for parts in (
        ["semantic"], ["images"], ["images", "semantic"])] == [
            "", "id,image\nmine,image.nii.gz", "id,map,image\nmine,map.nii.gz,image.nii.gz"]


@pytest.mark.parametrize(("widths", "task", "tags"), [
    ({}, "unconditional-image-generation", []),
    ({"semantic_dim": 3, "semantic_hidden": 8, "label_dim": 2}, "image-to-image",
     ["conditional-image-generation", "class-label-conditional", "semantic-map-conditional"]),
    ({"label_dim": 2}, "other", ["conditional-image-generation", "class-label-conditional"]),
])
def test_a_card_has_the_task_of_what_its_network_is_told(at, widths, task, tags):
    save("net.pt", node(**widths))
    report = {"generated": {"snapshot_hash": Snapshot.read(Path("net.pt")).hash, "num": 8, "seeds": "0-7"},
              "real": {"num": 10, "reference": "test"}, "metrics": {"lv_volume": {"ks": 0.25}}}
    Path("report.json").write_text(json.dumps(report))
    succeed(dataset_tool.main, "publish", "net.pt", "--dest", "hub", "--licence", "x", "--report", "report.json")
    text = Path("hub/README.md").read_text()
    front = yaml.safe_load(text.removeprefix("---\n").split("---\n", 1)[0])
    assert front["pipeline_tag"] == front["model-index"][0]["results"][0]["task"]["type"] == task
    assert [tag for tag in front["tags"] if "conditional" in tag] == tags
    assert ("The network is told" in text) == ("What it can be asked for" in text) == bool(widths)
