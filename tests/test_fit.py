"""The largest that fits a card: the search against a list, and what it finds against the planner."""

import json

import pytest

import dataset_tool
from edm3d.training.fit import Candidate, Fit, Found, batches, fit, lines, search, sizes, widths
from edm3d.training.plan import plan_step
from edm3d.training.plan_fit import FREE, GIB, step_levers
from tests.commands import refused, succeed
from tests.planned import LABELLED, VOXELS, edm, planned, vae

ONE_LEVEL = vae("training.network.channels=[8]", "training.network.num_blocks_decoder=1")


def numbered(*numbers: int) -> list[Candidate]:
    """Candidates whose peak is their number."""
    return [Candidate({"n": n}, (), str(n)) for n in numbers]


@pytest.mark.parametrize("room", [1, 2, 6, 7, 50, 99, 100, 1000])
@pytest.mark.parametrize("refuses", [set(), {4, 6, 7, 8}, set(range(1, 8)), {100}])
def test_search_finds_the_last_that_fits_whatever_cannot_be_built(room, refuses):
    def peak(candidate: Candidate) -> int:
        if candidate.sets["n"] in refuses:
            raise ValueError("no such network")
        return candidate.sets["n"]

    largest, too_much = search(numbered(*range(1, 101)), peak, room)
    known = [n for n in range(1, 101) if n not in refuses]
    fitting, over = [n for n in known if n <= room], [n for n in known if n > room]
    assert largest == ((str(fitting[-1]), fitting[-1]) if fitting else None)
    assert too_much == ((str(over[0]), over[0]) if over else None)


def test_search_starts_small_and_says_why_nothing_can_be_built():
    tried = []
    search(numbered(*range(1, 101)), lambda c: tried.append(c.sets["n"]) or c.sets["n"], 9)
    assert tried == [1, 3, 7, 15, 11, 9, 10]

    def refuse(_: Candidate) -> int:
        raise ValueError("odd heads")
    with pytest.raises(ValueError, match="odd heads"):
        search(numbered(1, 2), refuse, 9)


def test_what_is_tried_keeps_proportions_and_divides():
    network = vae("training.network.channels=[16,32,48]")["training"]
    assert [c.sets["training.network.channels"] for c in widths(network, LABELLED, 1)][:3] == [
        [8, 16, 24], [16, 32, 48], [24, 48, 72]]
    within = {"network": {"model": {"unet": {"channels": [4, 6]}}}}
    assert next(widths(within, VOXELS, 1)).typed == "training.network.model.unet.channels=[4,6]"
    counts = [c.typed for c in batches({"options": {"batch_size": 6, "graphs": False}}, VOXELS, 2)]
    assert counts[:3] == [f"training.options.batch_gpu={n}" for n in (1, 2, 3)]
    assert counts[3:5] == [f"training.options.batch_size={n} training.options.batch_gpu=null" for n in (12, 14)]
    strided = vae("training.network.channels=[4,4,4]", "training.network.strides=[[1,2,2],[1,2,2]]")["training"]
    stack = list(sizes(strided, planned((1, 13, 96, 48), "abc"), 1))
    assert [c.shape for c in stack][22:25] == [(1, 12, 92, 48), (1, 13, 96, 48), (1, 14, 100, 48)]
    assert stack[0].shape == (1, 1, 4, 4) and stack[0].typed == "training.dataset.size=[1,4,4]"
    cropped = vae("augment=patches", "training.augment.size=[8,8,4]")["training"]
    patches = [c.typed for c in sizes(cropped, planned((1, 20, 16, 16), "abc"), 1)]
    assert patches[1:4] == [
        "training.augment.size=[4,4,2]", "training.augment.size=[6,6,4]", "training.augment.size=[8,8,4]"]
    assert patches[-1] == "training.augment.size=[16,16,8]"  # no larger than the volumes


@pytest.mark.parametrize(("what", "config"), [
    ("width", ONE_LEVEL), ("batch", ONE_LEVEL), ("size", ONE_LEVEL),
    ("width", edm("training.network.model.channels_per_head=24", "training.network.model.model_channels=24"))])
def test_what_is_found_is_what_the_planner_says(what, config):
    source = LABELLED if config["training"]["task"] == "autoencoder" else VOXELS
    now = plan_step(config["training"], source).peak
    found = fit(config, source, what, 4 * now / GIB / (1 - FREE))
    assert now <= found.largest.peak <= 4 * now < found.too_much.peak


def test_command_prints_the_override_to_type(tmp_path):
    small = ["training.network.channels=[4,8]", "training.options.precision=fp32"]
    given = ["plan", "-cn", "echo_vae", *small, "--shape", "1", "8", "8", "8", "--classes", "2", "--fit", "batch"]
    found = json.loads(succeed(dataset_tool.main, *given, "--card", "0.004", "--json"))
    overrides = found["largest"]["overrides"].split()
    assert plan_step(vae(*small, *overrides)["training"], planned((1, 8, 8, 8), "ab")).peak == found["largest"]["peak"]
    assert found["largest"]["peak"] <= 0.004 * GIB * (1 - FREE) < found["too_much"]["peak"]
    assert found["fit"] == "batch"
    said = refused(tmp_path, dataset_tool.main, *given, "--card", "0.0001")
    assert "not even training.options.batch_gpu=1 fits --card 0.0001" in said
    assert "--fit batch: wanted --card" in refused(tmp_path, dataset_tool.main, *given)


def test_no_step_is_divided_where_graphs_are_replayed():
    config = edm("training.options.batch_size=6", "training.options.compile=true", "training.options.graphs=true")
    assert next(batches(config["training"], VOXELS, 1)).typed.endswith("batch_size=6 training.options.batch_gpu=null")
    assert all(lever.key != "training.options.batch_gpu" for lever in step_levers(config, VOXELS))


def test_lines_end_with_the_override_to_type():
    said = list(lines(Fit("size", Found("a=1", GIB), None), "mine", VOXELS, 2))
    assert said[0] == "mine on items of 1 x 8 x 8 x 8" and "Largest items" in said[1] and "2 GiB" in said[1]
    assert said[2:] == ["    1.000 GiB fits     a=1", "    more was not tried"]
    assert list(lines(Fit("batch", Found("a=1", GIB), Found("a=2", 2 * GIB)), "mine", VOXELS, 2))[3].endswith(" a=2")


def test_a_network_without_a_width_is_refused():
    with pytest.raises(ValueError, match="training.network has none of model_channels, channels"):
        next(widths({"network": {"_target_": "x"}}, VOXELS, 1))
