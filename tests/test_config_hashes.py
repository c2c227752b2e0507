"""The hashes and training halves of the shipped experiments, as they were when tests/data/hashes.json was made.

A run is found again by its hash (training.options.resume=latest): one that changes leaves every run of before behind.
The file holds compose(...)["training"] and config_hash of it for every YAML in configs/, and hashes under overrides;
no code writes it. Keys may come in beside those of the file, but only such as leave the hash alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.config import compose, config_hash

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FROZEN = json.loads((Path(__file__).parent / "data/hashes.json").read_text(encoding="utf-8"))


def changed(frozen: object, now: object, path: str = "training") -> Iterator[str]:
    """What of a frozen tree is missing or other now, also in type; keys of dicts that are new do not count."""
    if type(frozen) is not type(now):
        yield f"{path}: {frozen!r} -> {now!r}"
    elif isinstance(frozen, dict):
        for key, value in frozen.items():
            yield from changed(value, now[key], f"{path}.{key}") if key in now else [f"{path}.{key}: is gone"]
    elif isinstance(frozen, list) and len(frozen) == len(now):
        for i, (old, new) in enumerate(zip(frozen, now)):
            yield from changed(old, new, f"{path}[{i}]")
    elif frozen != now:
        yield f"{path}: {frozen!r} -> {now!r}"


def test_every_shipped_experiment_is_frozen():
    assert sorted(FROZEN["experiments"]) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(FROZEN["experiments"]))
def test_shipped_experiments_are_what_they_were(name):
    training = compose(CONFIGS, name, [])["training"]
    assert list(changed(FROZEN["experiments"][name]["training"], training)) == []
    assert config_hash(training) == FROZEN["experiments"][name]["hash"]


@pytest.mark.parametrize("variant", FROZEN["variants"], ids=lambda v: " ".join([v["experiment"], *v["overrides"]]))
def test_hashes_under_overrides_are_what_they_were(variant):
    training = compose(CONFIGS, variant["experiment"], variant["overrides"])["training"]
    assert config_hash(training) == variant["hash"]


def test_samplers_and_the_machine_are_no_part_of_the_hash():
    aside = ("sampl", "training.options.device", "training.options.precision", "training.options.total_kimg",
             "training.validation")
    same = [v for v in FROZEN["variants"] if all(o.startswith(aside) for o in v["overrides"])]
    assert len(same) == 4
    assert {v["hash"] for v in same} == {FROZEN["experiments"]["echo_edm"]["hash"]}


def test_changes_are_seen():
    frozen = {"a": 1, "b": {"c": [1, 2]}, "d": None}
    assert list(changed(frozen, {**frozen, "new": 3})) == []
    assert list(changed(frozen, {"a": True, "b": {"c": [1, 3]}})) == [
        "training.a: 1 -> True", "training.b.c[1]: 2 -> 3", "training.d: is gone"]
