"""Networks in shares against whole ones on two ranks: the same training, and states that go on under either."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.training.ema import update_ema
from edm3d.utils import checkpoint, distributed, sharding
from tests.ranks import on_ranks

RANKS, ROUNDS, PER_ROUND = 2, 2, 2
CPU = torch.device("cpu")


def toy_net() -> EDMPrecond:
    """A UNet with attention, and with a class embedding that no class ever reaches."""
    torch.manual_seed(0)
    net = EDMPrecond(ADMUNet(1, 1, spatial_dims=2, label_dim=3, model_channels=8, channel_mult=(1,), num_blocks=1,
                             attention_levels=(0,), channels_per_head=8, dropout=0))
    for p in net.parameters():
        p.data += 0.02 * torch.randn(p.shape)  # layers that start at zero would hide what is behind them
    return net


class Run:
    """A network, its average and its optimiser, whole (ddp) or in shares (fsdp), at some step."""

    def __init__(self, parallel: str, state: dict | None = None):
        self.net = toy_net()
        self.ema = deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2, eps=0.1, weight_decay=0.1)
        self.done, self.norms = 0, []
        if parallel == "fsdp":
            sharding.shard(self.net, CPU, self.optimizer)
            sharding.shard(self.ema, CPU)
        if state:
            sharding.load_full_state(self.net, state["net"])
            sharding.load_full_state(self.ema, state["ema"])
            sharding.load_full_optimizer_state(self.optimizer, state["optimizer"])
            self.done = state["done"]

    def train(self, steps: int) -> "Run":
        """Some steps on images that depend on the step, the round and the rank."""
        parameters = list(self.net.parameters())
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            for round_ in range(ROUNDS):
                seed = (self.done * ROUNDS + round_) * RANKS + distributed.rank()
                clean, noise = torch.randn(2, PER_ROUND, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
                loss = (self.net(clean + noise, torch.ones(PER_ROUND)) - clean).square().sum()
                (loss / (RANKS * ROUNDS * PER_ROUND)).backward()
            sharding.sum_gradients(parameters)
            self.norms.append(sharding.clip_gradients(parameters, 4.0 if self.done % 2 else None).item())
            self.optimizer.step()
            update_ema(self.ema, self.net, 0.5)
            self.done += 1
        return self

    def state(self) -> dict:
        """Everything to go on from here, whole on rank 0."""
        return {"net": sharding.full_state(self.net), "ema": sharding.full_state(self.ema),
                "optimizer": sharding.full_state(self.optimizer), "done": self.done}

    def save(self, path: Path) -> None:
        """Write the state as a training does."""
        state = self.state()
        if distributed.rank() == 0:
            checkpoint.save(path, "state", {**state, "norms": self.norms})
        distributed.barrier()


def on_rank(folder: Path) -> None:
    """One of two processes: all runs that the tests look at."""
    for first in ("ddp", "fsdp"):
        run = Run(first).train(3)
        run.save(folder / f"{first}-half.pt")
        run.train(3).save(folder / f"{first}.pt")
        for second in ("ddp", "fsdp"):
            half = checkpoint.load(folder / f"{first}-half.pt", "state").content
            Run(second, half).train(3).save(folder / f"{first}-{second}.pt")
    check_shares()
    check_shares_after_a_call_that_broke_off()


def check_shares() -> None:
    """What only the ranks themselves can see."""
    run = Run("fsdp").train(1)
    state = run.state()
    assert all(isinstance(p, DTensor) for p in run.net.parameters())
    held = sum(p.to_local().numel() for p in run.net.parameters())
    assert held < 0.6 * sum(p.numel() for p in run.net.parameters())
    first = next(iter(state["optimizer"]["state"].values()))["exp_avg"]
    assert (first is None) == (distributed.rank() == 1)
    sharding.check_same_weights({"net": run.net}, "")  # shares differ, and should
    whole = toy_net()
    sharding.check_same_weights({"net": whole}, "")
    if distributed.rank() == 1:
        whole.model.out_conv.bias.data += 1e-6
    with pytest.raises(ValueError, match=r"net\.model\.out_conv\.bias differs between ranks: rank 1"):
        sharding.check_same_weights({"net": whole}, "")
    with pytest.raises(ValueError, match=r"no share of \[5\]"):
        sharding.share(torch.zeros(5), next(run.net.parameters()))


class BreaksOff(torch.nn.Module):
    """A layer without blocks, whose memory runs out behind it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        raise MemoryError


def check_shares_after_a_call_that_broke_off() -> None:
    """Its weights are whole then, all of them, until they are shared again."""
    net = BreaksOff()
    sharding.shard(net, torch.device("cpu"))
    with pytest.raises(MemoryError):
        net(torch.zeros(1, 8))
    assert not any(map(sharding.is_share, net.parameters()))
    sharding.reshard(net)
    assert all(map(sharding.is_share, net.parameters()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    """States at the end of six steps: ddp, fsdp, and A-B: three steps under A, then three under B from the file."""
    folder = tmp_path_factory.mktemp("runs")
    on_ranks(on_rank, folder, ranks=RANKS)
    return {path.stem: checkpoint.load(path, "state").content for path in folder.glob("*.pt")}


def vector(state: dict, part: str) -> torch.Tensor:
    """All numbers of a part of a state."""
    if part == "optimizer":
        return torch.cat([t.double().flatten() for s in state[part]["state"].values() for t in s.values()])
    return torch.cat([t.double().flatten() for t in state[part].values()])


def difference(a: dict, b: dict) -> float:
    """The largest relative difference of networks, averages and optimisers."""
    return max(float((vector(a, part) - vector(b, part)).norm() / vector(b, part).norm())
               for part in ("net", "ema", "optimizer"))


def test_shares_train_like_the_whole(runs):
    assert difference(runs["fsdp"], runs["ddp"]) <= 1e-5
    assert runs["fsdp"]["norms"] == pytest.approx(runs["ddp"]["norms"], rel=1e-5)
    moved = vector(runs["ddp"], "net") - torch.cat([p.detach().double().flatten() for p in toy_net().parameters()])
    assert moved.norm() > 0.01 * vector(runs["ddp"], "net").norm()


def test_states_have_the_same_form(runs):
    ddp, fsdp = runs["ddp"], runs["fsdp"]
    assert list(ddp["net"]) == list(fsdp["net"]) == list(toy_net().state_dict())
    assert ddp["optimizer"]["state"].keys() == fsdp["optimizer"]["state"].keys()
    assert ddp["optimizer"]["param_groups"] == fsdp["optimizer"]["param_groups"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_going_on_under_the_same_is_bit_identical(runs, parallel):
    parts = ("net", "ema", "optimizer", "done")
    whole, resumed = ({k: runs[name][k] for k in parts} for name in (parallel, f"{parallel}-{parallel}"))
    assert checkpoint.checksum(whole) == checkpoint.checksum(resumed)


@pytest.mark.parametrize("name", ["ddp-fsdp", "fsdp-ddp"])
def test_going_on_under_the_other_changes_the_last_digits_only(runs, name):
    assert difference(runs[name], runs["ddp"]) <= 1e-5


def test_blocks_are_what_containers_hold():
    net = toy_net()
    names = {module: name for name, module in net.named_modules()}
    assert [names[b] for b in sharding.blocks(net)] == [
        f"model.{b}" for b in ("enc.level0_block0", "dec.level0_in0", "dec.level0_in1", "dec.level0_block0",
                               "dec.level0_block1")]
    autoencoder = AutoencoderKL(1, channels=(8, 16), spatial_dims=2, num_blocks=1, num_blocks_decoder=1)
    kinds = [type(b).__name__ for b in sharding.blocks(autoencoder)]
    assert kinds == ["ResBlock", "ResBlock", "ResBlock", "Upsample", "ResBlock"]
