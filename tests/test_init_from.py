"""Starting from a snapshot: what is taken, what is not, and that both are said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.precond import DDPMPrecond
from edm3d.networks.unet import SongUNet
from edm3d.networks.vq import AutoencoderVQ
from edm3d.training.init_from import init_from, take_weights
from edm3d.utils import distributed
from edm3d.utils.schema import Options

NODE = {"_target_": "networks.precond.EDMPrecond", "model": {"width": 3, "channel_mult": [1, 2]}}


def start(tmp_path, net: nn.Module, weights: dict, node: dict = NODE, source: dict = NODE) -> list[str]:
    """Start a network of config `node` from a snapshot of config `source` with some weights."""
    path = tmp_path / "network-snapshot-000001.pt"
    replace(known(source), weights=weights).save(path)
    return init_from(net, known(node), Options(batch_size=1, total_kimg=1, init_from=str(path)))


def known(node: dict = NODE, first_stage: str | None = None) -> Snapshot:
    """What is known of a network on images, or on latents of a first stage of such a hash."""
    stage = first_stage and CarriedStage(LatentScaling([0.0], [1.0]), hash=first_stage)
    return Snapshot("diffusion", node, Facts("", ""), (1, 2), stage)


def network(width: int = 3, extra: bool = False) -> nn.Module:
    """Two layers, the second of a width to choose, and a third on request."""
    layers = {"first": nn.Linear(2, 2), "second": nn.Linear(2, width)}
    return nn.ModuleDict({**layers, **({"third": nn.Linear(1, 1, bias=False)} if extra else {})})


def test_all_weights_are_taken_where_all_fit():
    net, source = network(), network()
    report = take_weights(net, source.state_dict())
    assert report == ["  4 of the network's 4 taken"]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), source.parameters(), strict=True))


def test_what_does_not_fit_is_left_alone_and_named():
    net, source = network(extra=True), network(width=4)
    source["left"] = nn.Linear(1, 1, bias=False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = take_weights(net, source.state_dict())
    assert report == [
        "  2 of the network's 5 taken",
        "  2 not taken, of another shape: second.bias [4] -> [3], second.weight [4, 2] -> [3, 2]",
        "  1 start afresh, not in the snapshot: third.weight",
        "  1 left over in the snapshot: left.weight"]
    after = net.state_dict()
    assert torch.equal(after["first.weight"], source["first"].weight)
    assert all(torch.equal(after[k], before[k]) for k in before if not k.startswith("first"))


def test_a_report_names_ten_of_a_kind(tmp_path):
    left = {f"left{i}": torch.zeros(1) for i in range(30)}
    assert start(tmp_path, network(), {**network().state_dict(), **left})[-1] == (
        "  30 left over in the snapshot: left0, left1, left10, left11, left12, left13, left14, left15, left16, left17, "
        "... and 20 more")


@pytest.mark.parametrize(("names", "passes"), [((), False), (("first.bias",), False),
                                               (("first.bias", "first.weight"), True)])
def test_a_snapshot_that_gives_less_than_half_is_refused_and_leaves_the_network_alone(tmp_path, names, passes):
    net, source = network(), network().state_dict()
    before, weights = {k: v.clone() for k, v in net.state_dict().items()}, {k: source[k] for k in names}
    if passes:
        assert start(tmp_path, net, weights)[1] == "  2 of the network's 4 taken"
        return
    with pytest.raises(ValueError, match=f"training.options.init_from=.*: {len(names)} of the network's 4 weights"):
        start(tmp_path, net, weights)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_refusal_names_what_differs_in_the_config(tmp_path):
    node = {**NODE, "sigma_data": 0.5, "model": {"width": 4, "channel_mult": [1, 2], "strides": 2}}
    with pytest.raises(ValueError) as error:
        start(tmp_path, network(width=4), {}, node)
    assert str(error.value).endswith("training.network differs: model.width 3 -> 4")


@pytest.mark.parametrize(("change", "said"), [
    ({}, False), ({"model": {"width": 4}}, False), ({"_target_": "networks.precond.VPPrecond"}, True),
])
def test_another_meaning_of_the_output_is_said(tmp_path, change, said):
    lines = start(tmp_path, network(), network().state_dict(), {**NODE, **change})
    wanted = ("  trained for another output of the network: "
              "_target_ networks.precond.EDMPrecond -> networks.precond.VPPrecond")
    assert (wanted in lines) == said and len(lines) == 2 + said


def test_another_codec_is_another_output(tmp_path):
    fold, haar = ({**NODE, "model": {**NODE["model"], "codec": codec}} for codec in ("fold", "haar"))
    lines = start(tmp_path, network(), network().state_dict(), haar, fold)
    assert "  trained for another output of the network: model.codec fold -> haar" in lines


def test_the_table_of_noise_levels_is_the_new_networks_own():
    """A table of the same length fits, but belongs to the schedule of the snapshot."""
    net, source = (DDPMPrecond(network(), schedule, num_steps=10) for schedule in ("cosine", "linear"))
    before = net.u.clone()
    assert take_weights(net, source.state_dict()) == [
        "  4 of the network's 4 taken", "  1 not taken, as the configuration says otherwise: u"]
    assert torch.equal(net.u, before) and not torch.equal(net.u, source.u)
    assert torch.equal(net.model["first"].weight, source.model["first"].weight)


def test_a_table_that_is_the_same_is_not_spoken_of_and_fourier_frequencies_are_taken():
    song = {"spatial_dims": 1, "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": [],
            "embedding": "fourier"}
    net, source = (DDPMPrecond(SongUNet(1, 1, **song), num_steps=10) for _ in range(2))
    count = len(list(net.parameters())) + 1
    assert take_weights(net, source.state_dict()) == [f"  {count} of the network's {count} taken"]
    assert torch.equal(net.model.map_noise.freqs, source.model.map_noise.freqs)


def test_a_codebook_is_taken_with_its_running_means():
    net, source = (AutoencoderVQ(1, spatial_dims=1, channels=(2,), codebook_size=4) for _ in range(2))
    source.usage += 3
    count = len(source.state_dict())
    assert take_weights(net, source.state_dict()) == [f"  {count} of the network's {count} taken"]
    assert all(torch.equal(net.state_dict()[k], v) for k, v in source.state_dict().items())


def test_the_snapshot_is_chosen_by_rank_0_for_all(tmp_path, monkeypatch):
    """Another rank may see another newest file, as on a network drive."""
    for number, value in ((1, 1.0), (2, 2.0)):
        net = network()
        nn.init.constant_(net["first"].bias, value)
        replace(known(), weights=net.state_dict()).save(tmp_path / f"network-snapshot-{number:06d}.pt")
    monkeypatch.setattr(distributed, "from_rank_0", lambda choose: choose().with_name("network-snapshot-000001.pt"))
    net = network()
    init_from(net, known(), Options(batch_size=1, total_kimg=1, init_from=str(tmp_path)))
    assert net["first"].bias.tolist() == [1, 1]


def test_a_missing_snapshot_is_refused_by_its_key(tmp_path):
    with pytest.raises(ValueError, match="training.options.init_from=nothing"):
        init_from(network(), known(), Options(batch_size=1, total_kimg=1, init_from="nothing", run_root=str(tmp_path)))


@pytest.mark.parametrize(("was", "now", "line"), [
    (None, None, ""), ("a" * 64, "a" * 64, ""),
    ("a" * 64, "b" * 64, "  trained on latents of first stage aaaaaaaaaaaa, now on latents of first stage "
                         "bbbbbbbbbbbb"),
    (None, "b" * 64, "  trained on voxels, now on latents of first stage bbbbbbbbbbbb")])
def test_another_first_stage_is_said(tmp_path, was, now, line):
    net = network()
    path = tmp_path / "network-snapshot-000001.pt"
    replace(known(first_stage=was), weights=net.state_dict()).save(path)
    lines = init_from(net, known(first_stage=now), Options(batch_size=1, total_kimg=1, init_from=str(path)))
    assert lines[2:] == ([line] if line else [])
