"""Whatever a user writes as seeds or as a configuration is understood, or refused by a ValueError that says where."""

import random
import re
import shutil
import tracemalloc
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from edm3d.formats.seeds import MOST_SEEDS, parse_seeds, requested_seeds
from edm3d.training.build import check_training
from edm3d.utils.compose import compose, shipped_configs

CONFIGS = shipped_configs()

# ---- seeds ----

ALPHABETS = ("0123456789-, ", "0123456789-,", "019-,[] ", "0a-,[]'\"{}$.+eE_\n\t\0", "٣²½Ⅷ１-,", "-,", "[]",
             "9" * 30 + "-,")  # fmt: skip


def by_hand(text: str) -> list[int] | None:
    """Seeds of a list, read with no regular expression; None when it is none."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and len(text) > 1:
        text = text[1:-1]
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not dash:
            first = last = first.removeprefix("+")
        if not first and set(last) == {"0"}:  # -0
            first = last
        if not all(piece.isascii() and piece.isdigit() and len(piece) < 19 for piece in (first, last)):
            return None
        if int(last) - int(first) >= MOST_SEEDS:
            return None
        seeds += range(int(first), int(last) + 1)
    return sorted(seeds) if seeds and len(set(seeds)) == len(seeds) <= MOST_SEEDS else None


def test_a_thousand_random_lists_of_seeds_are_read_right_or_refused():
    chance, outcomes = random.Random(0), Counter()
    for number in range(1000):
        alphabet = ALPHABETS[number % len(ALPHABETS)]
        text = "".join(chance.choices(alphabet, k=chance.choice([0, 1, 2, 3, 5, 8, 13, 40, 5000])))
        wanted = by_hand(text)
        try:
            seeds = requested_seeds(text)
        except ValueError as error:
            assert str(error).startswith("sampling.seeds=") and "\n" not in str(error), text[:99]
            assert wanted is None, f"{text[:99]!r} refused: {error}"
            assert len(str(error)) < 300
        else:
            assert seeds == wanted, text[:99]
        outcomes[wanted is None] += 1
        try:
            assert all(type(seed) is int for seed in parse_seeds(text))
        except ValueError as error:
            assert "seeds=" in str(error)
    assert min(outcomes.values()) > 100  # both kinds were tried


@pytest.mark.parametrize("text", [
    "0-999999999999", "0-999999999999999999", ",".join(["0-900000"] * 50), "1-999999999999,0", "9" * 100_000,
    ",".join(str(n % 7) for n in range(50_000)), [0] * 20_000, "[" * 100_000,
])  # fmt: skip
def test_huge_lists_of_seeds_are_refused_at_small_cost(text):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^sampling\.seeds="):
            requested_seeds(text)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2 ** 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("text", "seeds"), [
    ("[1, 2]", [1, 2]), (" 5 - 7 ,1", [1, 5, 6, 7]), ("[]", None), ("1 2", None), ("[1", None), ("1]", None),
    ("0,0", None), ("0-2,2", None), ("+3", [3]), ("1-", None), ("--1", None), (True, None), (1.0, None), ({}, None),
])  # fmt: skip
def test_odd_lists_of_seeds(text, seeds):
    if seeds is None:
        with pytest.raises(ValueError, match=r"^sampling\.seeds="):
            requested_seeds(text)
    else:
        assert requested_seeds(text) == seeds


# ---- configurations ----

VALUES = (None, True, -1, 0, 3, 10 ** 30, 0.5, -1e300, float("nan"), float("inf"), "", "abc", "1e3", "a.b", "???", "{",
          "[1", [], [1, "a", None], [[1]], {}, {"a": 1}, {"_target_": "os.system"}, {"_target_": 3}, {"_target_": ""},
          {"_target_": "torch.nn.Linear"}, {"_target_": "torch.nn.functional"}, {"_target_": ".."}, {1: 2}, "é\0ß",
          "${training.options.seed}", "${nothing.here}", "${training}", "${oc.env:NO_SUCH_VARIABLE}", "${", "${}",
          "${no_such_resolver:1}", "${training.options.${training.task}}", "${.seed}", "$" * 9)  # fmt: skip
OVERRIDES = ("{k}={v}", "+{k}={v}", "++{k}={v}", "~{k}", "{k}", "={v}", "{k}=", "{k}=={v}", "{k}.x={v}", "{k}={v},{v}",
             "{k}@a={v}", "training.{k}={v}", "--{k}", "{k}=${{{v}", "+x={{a:{v}", "{k}='")  # fmt: skip


def places(tree: object) -> list[tuple]:
    """Every (container, key) of a tree of dicts and lists."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in items] + [place for _, value in items for place in places(value)]


def put_value(chance: random.Random, tree: dict) -> None:
    """Give a key a value that is not meant for it."""
    node, key = chance.choice(places(tree))
    node[key] = chance.choice(VALUES)


def rename(chance: random.Random, tree: dict) -> None:
    """Misspell a key."""
    node, key = chance.choice([(n, k) for n, k in places(tree) if isinstance(n, dict)])
    cut = chance.randint(0, len(str(key)))
    wrong = str(key)[:cut] + chance.choice("xé. _") + str(key)[cut + 1:]
    node[chance.choice([wrong, wrong, chance.randrange(9), ""])] = node.pop(key)


def lose(chance: random.Random, tree: dict) -> None:
    """Take a key or an entry away."""
    node, key = chance.choice(places(tree))
    del node[key]


def move(chance: random.Random, tree: dict) -> None:
    """Put copies of two nodes in each other's place."""
    (a, i), (b, j) = chance.choices(places(tree), k=2)
    a[i], b[j] = deepcopy(b[j]), deepcopy(a[i])


def mutate_tree(chance: random.Random, path: Path) -> None:
    """Change one to three things in a YAML."""
    tree = yaml.safe_load(path.read_text())
    for _ in range(chance.randint(1, 3)):
        if places(tree):
            chance.choice([put_value, put_value, rename, lose, move])(chance, tree)
    head = path.read_text().partition("\n")[0]  # where a group says what it fills
    path.write_text(f"{head}\n{yaml.safe_dump(tree, sort_keys=False)}")


def mutate_text(chance: random.Random, path: Path) -> None:
    """Change characters of a YAML."""
    text = list(path.read_text())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        text[place:place + chance.choice([0, 1, 1, 5])] = chance.choice(
            ["\t", ":", "- ", "*a", "&a ", "{", "\n", "!!python/object:os.x ", "\0", "é"])
    path.write_text("".join(text))


def trial(number: int, configs: Path) -> tuple[str, list[str]]:
    """An experiment and overrides, after something was changed in a copy of configs/."""
    chance = random.Random(number)
    name = chance.choice(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    shutil.copytree(CONFIGS, configs)
    how = number % 4
    if how == 0:
        keys = ["training", "training.options.seed", "training.network._target_", "network", "sampler", "x", "task",
                "é", "training.loss", "training.network.model", "training.validation", "sampling.seeds"]
        values = ["1", "abc", "null", "[1,2]", "{a:1}", "${training.task}", "${x}", "true", "1e400", "'", "echo_edm"]
        return name, [chance.choice(OVERRIDES).format(k=chance.choice(keys), v=chance.choice(values))
                      for _ in range(chance.randint(1, 2))]
    files = [configs / f"{name}.yaml"] if how < 3 else sorted(configs.glob("*/*.yaml"))
    (mutate_text if number % 3 == 0 else mutate_tree)(chance, chance.choice(files))
    return name, []


def outcome(number: int, folder: Path) -> str:
    """What becomes of a mutated experiment: valid, refused, or what went wrong."""
    name, overrides = trial(number, folder)
    try:
        check_training(compose(name, overrides, folder)["training"])
    except ValueError as error:
        text = str(error)
        where = re.search(r"^([^:]*|\S*)[^ :]: |[\w@]+\.[\w.]+|[\w+~]*=|\.yaml", text)
        return "refused" if where and "\n" not in text else f"WRONG: unclear: {text!r}"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {error!s:.300}"
    return "valid"


def fuzz_configs(tmp_path: Path, first: int, count: int) -> Counter:
    """How often mutated experiments were valid or refused; fails on anything else, naming the number."""
    found = {number: outcome(number, tmp_path / str(number)) for number in range(first, first + count)}
    wrong = {number: what for number, what in found.items() if what.startswith("WRONG")}
    assert not wrong, "\n".join(f"{number}: {what}" for number, what in wrong.items())
    return Counter(found.values())


@pytest.mark.filterwarnings("ignore:.*missing `_self_`")
def test_mutated_configurations_are_valid_or_refused(tmp_path):
    assert fuzz_configs(tmp_path, 0, 40)["refused"] > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*missing `_self_`")
def test_three_hundred_mutated_configurations_are_valid_or_refused(tmp_path):
    assert fuzz_configs(tmp_path, 1000, 300)["refused"] > 150
