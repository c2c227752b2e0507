"""The index stream, the average of weights, the learning rate and seed lists against reference numbers and sums."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from edm3d.formats.seeds import parse_seeds, requested_seeds
from edm3d.training.data_sampler import CHUNK, InfiniteSampler
from edm3d.training.ema import copy_buffers, ema_beta, update_ema
from edm3d.training.schedule import lr_factor
from tests.reference import stored


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    """Reference numbers, one array per key."""
    return stored("edm_training")


def first(count: int, **arguments) -> list[int]:
    """The first indices of a stream over `length` items."""
    return list(islice(InfiniteSampler(range(arguments.pop("length")), **arguments), count))


# ---- which item comes next ----


def test_streams_are_the_reference_ones(vectors):
    names = [k for k in vectors if k.startswith("index/")]
    assert len(names) == 36
    for name in names:
        length, seed, window, shuffle, ranks = name.removeprefix("index/").split("_")
        rank, of = ranks.removeprefix("rank").split("of")
        got = first(200, length=int(length[1:]), seed=int(seed[4:]), window_size=float(window[3:]),
                    shuffle=shuffle == "shuf1", rank=int(rank), num_replicas=int(of))
        assert got == vectors[name].tolist(), name


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_start_idx_goes_on_where_the_stream_was_left(ranks):
    for rank in range(ranks):
        arguments = {"length": 11, "seed": 4, "rank": rank, "num_replicas": ranks}
        whole = first(80, **arguments)
        for seen in (0, 6, 30, 60):  # images seen by all ranks
            assert first(20, start_idx=seen, **arguments) == whole[seen // ranks:][:20]


def test_swaps_are_those_drawn_one_by_one_but_not_drawn_so(monkeypatch):
    length, window, count = 11, 5, 3 * CHUNK
    random, order, wanted = np.random.RandomState(3), np.arange(length), []
    random.shuffle(order)
    for position in range(count):
        i = position % length
        wanted.append(int(order[i]))
        j = (i - random.randint(window)) % length
        order[i], order[j] = order[j], order[i]
    draws, calls = np.random.RandomState.randint, []

    class Counting(np.random.RandomState):
        def randint(self, *arguments, **named):
            calls.append(0)
            return draws(self, *arguments, **named)

    monkeypatch.setattr(np.random, "RandomState", Counting)
    assert first(count, length=length, seed=3, window_size=window / length) == wanted
    assert first(9, length=length, seed=3, window_size=window / length, start_idx=count - 9) == wanted[-9:]
    assert len(calls) == 6


def test_ranks_share_one_stream():
    one = first(60, length=7, seed=2)
    for ranks in (2, 3):
        shared = [first(60 // ranks, length=7, seed=2, rank=r, num_replicas=ranks) for r in range(ranks)]
        assert [shared[i % ranks][i // ranks] for i in range(60)] == one


def test_first_pass_sees_every_item_without_a_window():
    assert sorted(first(10, length=10, window_size=0)) == list(range(10))
    assert first(5, length=3, shuffle=False) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dataset": []}, "empty"), ({"dataset": [1], "rank": 2, "num_replicas": 2}, "rank=2"),
    ({"dataset": [1], "window_size": 1.5}, "window_size=1.5"), ({"dataset": [1], "seed": -1}, "seed=-1: wanted"),
    ({"dataset": [1], "seed": 2 ** 32}, "seed=4294967296, wanted"), ({"dataset": [1], "seed": 0.5}, "seed=0.5: wanted"),
    ({"dataset": [1], "start_idx": -1}, "start_idx=-1: wanted a whole"),
    ({"dataset": [1], "start_idx": 1.5}, "start_idx=1.5: wanted a whole number of 0 or more"),
])
def test_impossible_streams_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfiniteSampler(**arguments)


# ---- average and learning rate ----


@pytest.mark.parametrize("case", range(4))
def test_ema_and_learning_rate_are_the_reference_ones(vectors, case):
    config = json.loads(str(vectors[f"sched/{case}/config"]))
    rows = np.stack([vectors[f"sched/{case}/{k}"] for k in ("nimg", "ema_beta", "lr")], axis=1)
    for nimg, beta, lr in rows.tolist():
        got = ema_beta(nimg, config["batch_size"], config["ema_halflife_kimg"], config["ema_rampup_ratio"])
        assert got == pytest.approx(beta, rel=1e-12, abs=1e-300)
        assert config["lr"] * lr_factor(nimg, 1e6, config["lr_rampup_kimg"]) == pytest.approx(lr, rel=1e-12)


def test_half_life_halves():
    assert ema_beta(10 ** 9, 500, 0.5, 0.05) == pytest.approx(0.5)
    assert ema_beta(1000, 50, 500, 0.05) == pytest.approx(0.5)  # ramp-up: 5 % of 1000 images
    assert ema_beta(0, 8, 500, 0.05) == 0


def test_cosine_falls_to_half_in_the_middle_and_0_at_the_end():
    assert [lr_factor(n, 10, 0, "cosine") for n in (5000, 10000, 20000)] == pytest.approx([0.5, 0, 0])
    assert lr_factor(1, 10, 0, "cosine") == pytest.approx(1)
    assert lr_factor(0, 10, 0, "cosine") == 0  # as in the reference: the step at 0 images has rate 0
    assert lr_factor(500, 10, 1, "constant") == 0.5
    assert lr_factor(2500, 10, 5, "cosine") == pytest.approx(0.5 * (1 + 0.5 ** 0.5) / 2)
    with pytest.raises(ValueError, match="lr_schedule='step'"):
        lr_factor(1, 1, schedule="step")


def test_parameters_are_averaged_and_buffers_are_copied():
    ema, net = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        ema.weight.fill_(1)
        net.weight.fill_(5)
        net.running_mean.fill_(3)
    ema.requires_grad_(False)
    update_ema(ema, net, 0.75)
    assert ema.weight.tolist() == [2, 2] and ema.running_mean.tolist() == [0, 0] and net.weight.tolist() == [5, 5]
    copy_buffers(ema, net)
    assert ema.running_mean.tolist() == [3, 3]
    update_ema(ema, net, 0)
    assert ema.weight.tolist() == [5, 5]


# ---- seed lists ----


def test_seed_lists_are_read_as_the_reference_does(vectors):
    cases = [k.removesuffix("/input") for k in vectors if k.startswith("parse/") and k.endswith("/input")]
    assert len(cases) == 10
    for case in cases:
        assert parse_seeds(str(vectors[f"{case}/input"])) == vectors[f"{case}/output"].tolist()
    for text in vectors["parse/value_error"]:
        with pytest.raises(ValueError, match="seeds"):
            parse_seeds(str(text))


def test_requested_seeds_are_sorted():
    assert requested_seeds("3,0-1,7") == [0, 1, 3, 7]
    assert requested_seeds(5) == [5]  # Hydra makes a number of seeds=5
    assert requested_seeds([3, 1]) == [1, 3]  # and a list of seeds=[3,1]


@pytest.mark.parametrize(("text", "message"), [
    ("5-2", "empty"), ("", "neither a number"), ("a", "'a'"), ("-3", "-3 is negative"), ("1,2,1", "1 is there twice"),
    ("0-4,3", "3 is there twice"), ("1.5", "1.5"), ("1,,2", "neither"), (None, "None"),
])
def test_seed_lists_that_make_no_sense_are_refused_with_the_key(text, message):
    with pytest.raises(ValueError, match=r"sampling\.seeds") as error:
        requested_seeds(text)
    assert message in str(error.value)
