"""The hashes and training halves of the shipped experiments, as they were when tests/data/hashes.json was made.

A run is found again by its hash (training.options.resume=latest): one that changes leaves every run of before behind.
The file holds compose(...)["training"] and config_hash of it for every YAML in configs/ at that time, and hashes under
overrides; no code writes it. Keys may come in beside those of the file, but only such as leave the hash alone.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import pytest

from edm3d.training.noise_laws import Table
from edm3d.utils.compose import compose, shipped_configs
from edm3d.utils.config_hash import FIRST_KEYS, config_hash
from edm3d.utils.schema import Options, Training

CONFIGS = shipped_configs()
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


def test_no_experiment_of_then_is_gone():
    assert set(FROZEN["experiments"]) <= {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(FROZEN["experiments"]))
def test_shipped_experiments_are_what_they_were(name):
    training = compose(name, [])["training"]
    assert list(changed(FROZEN["experiments"][name]["training"], training)) == []
    assert config_hash(training) == FROZEN["experiments"][name]["hash"]


@pytest.mark.parametrize("variant", FROZEN["variants"], ids=lambda v: " ".join([v["experiment"], *v["overrides"]]))
def test_hashes_under_overrides_are_what_they_were(variant):
    training = compose(variant["experiment"], variant["overrides"])["training"]
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


# ---- keys that come later ----


def loss(**keys: object) -> dict:
    """A small training half, with more keys of an inner target of ours."""
    return {"task": "t", "options": {"seed": 0}, "loss": {"_target_": "training.loss.DenoisingLoss", "law": {
        "_target_": "training.noise_laws.Table", **keys}}}


def test_parameters_that_came_later_count_from_their_default_on(monkeypatch):
    class Later(Table):
        def __init__(self, table=None, extra: int = 3, pair: tuple[int, int] = (1, 2), needed: bool = True):
            pass

    bare = config_hash(loss())
    assert len({bare, config_hash(loss(extra=3)), config_hash(loss(extra=4))}) == 3  # unknown keys are hashed
    monkeypatch.setattr("edm3d.training.noise_laws.Table", Later)
    assert bare == config_hash(loss()) == config_hash(loss(extra=3, pair=[1, 2], needed=True)) == config_hash(
        loss(extra=3.0))
    changed = [{"extra": 4}, {"extra": None}, {"pair": [1, 3]}, {"needed": 1}, {"extra": True}]
    assert len({bare, *(config_hash(loss(**keys)) for keys in changed)}) == 6


def test_parameters_that_were_there_at_first_always_count():
    for name, keys in FIRST_KEYS["targets"].items():
        assert keys, name
    assert FIRST_KEYS["targets"]["training.loss.EDMLoss"] == "P_mean P_std sigma_data strata"
    half = {"options": {"seed": 0}, "loss": {"_target_": "training.loss.EDMLoss"}}
    assert config_hash(half) != config_hash({**half, "loss": {**half["loss"], "P_mean": -1.2}})


def test_options_and_parts_that_came_later_count_from_their_default_on(monkeypatch):
    @dataclass
    class Privacy:
        epsilon: float = 8

    bare = loss()
    more = {**bare, "options": {"seed": 0, "shade": 0.5}, "privacy": {"epsilon": 8}, "physics": {}}
    assert config_hash(more) != config_hash(bare)
    later = make_dataclass("Later", [("shade", float, 0.5)], bases=(Options,))
    monkeypatch.setattr("edm3d.utils.config_hash.Options", later)
    monkeypatch.setattr("edm3d.utils.config_hash.Training", make_dataclass("Later", [
        ("privacy", Privacy, field(default_factory=Privacy)), ("physics", dict, field(default_factory=dict))],
        bases=(Training,)))
    assert config_hash(more) == config_hash({**bare, "physics": None}) == config_hash(bare)
    others = [{**more, "options": {"seed": 0, "shade": 0.6}}, {**more, "privacy": {"epsilon": 1}},
              {**more, "physics": {"_target_": "physics.x"}}, {**more, "options": {"seed": 1}}]
    assert len({config_hash(bare), *map(config_hash, others)}) == 5


def test_targets_of_others_and_such_as_are_gone_are_hashed_as_they_stand(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("evil.Net", "networks.gone.Net", "networks.unet.Gone", "training", ["networks.unet.ADMUNet"]):
        nodes = [{"_target_": target, **keys} for keys in ({}, {"a": None}, {"a": 1})]
        assert len({config_hash({"options": {"seed": 0}, "network": node}) for node in nodes}) == 3
    assert "evil" not in sys.modules
