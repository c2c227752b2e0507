"""The private step: who enters a batch, clipping, noise, gradients per sample, and the check of them at the start."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("opacus")

from edm3d.formats.privacy import Ledger
from edm3d.inference.batch import Batch, Sample, collate
from edm3d.training.data_sampler import PoissonSampler
from edm3d.training.loader import Rounds
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.private.budget import Budget
from edm3d.training.private.clipping import ClippedSum
from edm3d.training.private.noise import secret_normal, secret_uniform
from edm3d.training.private.start_check import check_gradients
from edm3d.training.private.step import PrivateStep
from edm3d.utils.schema import Options, Privacy
from edm3d.utils.stats import Collector
from tests.toy import BLANK

CPU = torch.device("cpu")


def square_loss(module: nn.Module, batch: Batch, generators) -> LossOutput:
    """Of images [N,1,4], those of the value -9 have a loss that is not finite."""
    per_image = module(batch.images).square().flatten(1).sum(1)
    per_image = per_image * torch.where(batch.images[:, 0, 0] == -9, torch.nan, 1.0)
    return LossOutput(per_image.sum(), len(batch.images), {})


class Items:
    """Items [1,4] of values that are given."""

    shape = (1, 4)

    def __init__(self, values: Sequence[float]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((1, 4), self.values[index], np.float32))


def layers() -> nn.Module:
    """Two layers of fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


def make_step(values: Sequence[float], net: nn.Module | None = None, *, units: list[list[int]] | None = None,
              noise: float = 1e-9, norm: float = 1.0, batch_gpu: int | None = None, batch_size: int = 4,
              multiplicity: int = 1, loss=square_loss) -> PrivateStep:
    """A private step of a small network, all but without noise."""
    net = layers() if net is None else net
    units = [[i] for i in range(len(values))] if units is None else units
    task = Task([Phase("net", net, torch.optim.SGD(net.parameters(), lr=1.0), loss)], net, BLANK)
    privacy = Privacy(10, 1e-5, max_grad_norm=norm, noise_multiplicity=multiplicity)
    budget = Budget(privacy, units, batch_size, Ledger("record", len(units), norm, "prv", "test"), noise, 100)
    return PrivateStep(task, Items(values), Options(batch_size=batch_size, batch_gpu=batch_gpu, total_kimg=1), budget,
                       precision="fp32", device=CPU)


def one_step(step: PrivateStep, seed: int | None = None) -> tuple[list[torch.Tensor], list[int]]:
    """Gradients of a step, times the batch size, and the items that it saw; seed: of the mask."""
    data = step.batches(0)
    if seed is not None:
        sampler = PoissonSampler(step.budget.units, step.budget.sampling_rate, step.batch_gpu, seed=seed,
                                 repeats=step.budget.options.noise_multiplicity)
        step.plans, data = sampler.logical(), Rounds(step.dataset, sampler, None, 0, CPU)
    rounds = step.take(data)
    step.gradients(0, [batch for _, batch in rounds], 0, Collector(), [None] * len(rounds))
    gradients = [p.grad * step.options.batch_size for p in step.task.net.parameters()]
    return gradients, [index for indices, _ in rounds for index in indices]


def clipped_alone(values: Sequence[float], items: Sequence[Sequence[int]], norm: float, net: nn.Module
                  ) -> list[torch.Tensor]:
    """The same by hand: plain gradients of units one by one, clipped and added up."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for unit in items:
        images = torch.stack([torch.full((1, 4), float(values[i])) for i in unit]) if unit else torch.zeros(0, 1, 4)
        loss = net(images).square().sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        factor = min(1.0, norm / float(torch.cat([g.reshape(-1) for g in gradients]).norm()))
        total = [t + factor * g for t, g in zip(total, gradients)]
    return total


def size(gradients: Sequence[torch.Tensor]) -> float:
    """L2 norm of all together."""
    return float(torch.cat([g.reshape(-1) for g in gradients]).norm())


# ---- who enters ----


def masks(sampler: PoissonSampler, count: int) -> np.ndarray:
    """[count, units]: how often each unit is in each batch."""
    found = np.zeros((count, len(sampler.units)), int)
    for i, batch in enumerate(islice(sampler.logical(), count)):
        for unit in (unit for units in batch.units for unit in units):
            found[i, unit] += 1
    return found


class Running(nn.Module):
    """A layer without weights that keeps the mean of what it sees."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
        return x


def test_a_layer_that_keeps_what_it_sees_is_named():
    """Gradients per sample are right where a layer only watches, and where it scales by what it has seen."""
    for layer, name in ((Running(), "1.mean"),
                        (nn.InstanceNorm1d(1, track_running_stats=True), "1.running_mean")):
        net = nn.Sequential(nn.Linear(4, 8), layer, nn.SiLU(), nn.Linear(8, 4)) if name == "1.running_mean" else \
            nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4))
        step, before = make_step([1.0, 2.0], net), {key: b.clone() for key, b in net.named_buffers()}
        with pytest.raises(ValueError, match=f"training.network: {name} keeps what the network sees of images"):
            check_gradients(step, step.dataset)
        assert all(torch.equal(b, before[key]) for key, b in net.named_buffers())


def test_units_enter_independently_at_the_rate():
    drawn = masks(PoissonSampler([[i] for i in range(20)], 0.3, 100, seed=1), 4000)
    assert drawn.max() == 1 and abs(drawn.mean() - 0.3) < 0.006
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.03
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.07
    sizes = drawn.sum(1)
    assert abs(sizes.var() - 20 * 0.3 * 0.7) < 0.3  # of a fixed size it would be 0


def test_empty_batches_come_out():
    sampler = PoissonSampler([[0], [1]], 0.1, 4, seed=2)
    sizes = masks(sampler, 3000).sum(1)
    assert abs((sizes == 0).mean() - 0.81) < 0.03
    batch = next(batch for batch in sampler.logical() if not batch.items)
    assert batch.units == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_mask_and_take_as_many_rounds(ranks):
    units = [[2 * i, 2 * i + 1] for i in range(12)]
    whole = PoissonSampler(units, 0.4, 3, seed=5)
    parts = [PoissonSampler(units, 0.4, 3, seed=5, rank=r, num_replicas=ranks) for r in range(ranks)]
    for batch, *shares in islice(zip(whole.logical(), *(part.logical() for part in parts)), 50):
        assert len({len(share.items) for share in shares}) == 1
        assert all(len(items) <= 3 for share in shares for items in share.items)
        assert sorted(i for share in shares for items in share.items for i in items) == sorted(
            i for items in batch.items for i in items)
        assert sum(map(len, batch.items)) == sum(len(items) for share in shares for items in share.items)


def test_the_stream_of_rounds_is_that_of_the_batches():
    sampler = PoissonSampler([[i] for i in range(9)], 0.5, 2, seed=7, repeats=2)
    batches = list(islice(sampler.logical(), 20))
    rounds = [items for batch in batches for items in batch.items]
    assert list(islice(sampler, len(rounds))) == rounds
    assert all(items.count(i) % 2 == 0 or len(items) == 2 for items in rounds for i in items)


def test_seeds_are_new_every_time():
    step = make_step(range(8))
    seen = {tuple(map(tuple, next((step.batches(0), step.plans)[1]).items)) for _ in range(12)}
    assert len(seen) > 6


def test_odd_samplers_are_refused():
    for bad in ({"units": []}, {"rate": 0}, {"rate": 1.5}, {"most": 0}, {"rank": 2}, {"repeats": 0}):
        with pytest.raises(ValueError, match="PoissonSampler"):
            PoissonSampler(**{"units": [[0]], "rate": 0.5, "most": 1, "seed": 0, **bad})


# ---- clipping ----


@pytest.mark.parametrize("batch_gpu", [None, 1, 2])
def test_the_sum_is_that_of_clipped_gradients_by_hand(batch_gpu):
    values, seen = np.linspace(-3, 3, 8), 0
    for seed in range(4):
        step = make_step(values, batch_gpu=batch_gpu)
        found, items = one_step(step, seed)
        wanted = clipped_alone(values, [[i] for i in items], 1.0, layers())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        seen += len(items)
    assert seen > 8


@pytest.mark.parametrize("batch_gpu", [None, 1, 2])
def test_gradients_of_a_group_are_summed_before_clipping(batch_gpu):
    values, units = np.linspace(-3, 3, 8), [[0, 1, 2], [3], [4, 5], [6, 7]]
    for seed in range(4):
        step = make_step(values, units=units, batch_gpu=batch_gpu, batch_size=2, norm=0.7)
        found, items = one_step(step, seed)
        chosen = [unit for unit in units if unit[0] in items]
        assert sorted(items) == sorted(i for unit in chosen for i in unit)
        torch.testing.assert_close(found, clipped_alone(values, chosen, 0.7, layers()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_gpu", [None, 2])
def test_noise_levels_of_an_image_are_averaged_before_clipping(batch_gpu):
    values = np.linspace(-3, 3, 8)
    found, items = one_step(make_step(values, multiplicity=3, batch_gpu=batch_gpu), 1)
    images = items[::3]
    assert items == [i for i in images for _ in range(3)] and images
    torch.testing.assert_close(found, clipped_alone(values, [[i] for i in images], 1.0, layers()), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("units", [None, [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9]]])
def test_no_unit_moves_the_sum_by_more_than_the_norm(units):
    """The same masks with and without a unit, whatever its values: huge, not finite, or none."""
    random, empty = np.random.default_rng(0), 0
    for _ in range(12):
        values = random.normal(size=10) * 10.0 ** random.integers(-3, 4)
        values[random.integers(10)] = random.choice([1e20, -9, np.inf, np.nan, 0])
        norm = float(10.0 ** random.integers(-2, 2))
        kept = [[i] for i in range(10)] if units is None else units
        step = make_step(values, units=kept, norm=norm, batch_size=2)
        chosen = [number for number in range(len(kept)) if random.random() < 0.3]
        for left_out in [*chosen, None]:
            there = [number for number in chosen if number != left_out]
            found = summed(step, there)
            empty += not there
            assert all(g.isfinite().all() for g in found)
            if left_out is None:
                whole = found
            elif left_out == chosen[0]:
                first = found
        if chosen:
            assert size([a - b for a, b in zip(whole, first)]) <= norm * (1 + 1e-5)
        else:
            assert size(whole) == 0
    assert empty > 1


def summed(step: PrivateStep, units: Sequence[int]) -> list[torch.Tensor]:
    """The clipped sum of chosen units, without noise."""
    total = ClippedSum(step.optimizer)
    step.optimizer.zero_grad(set_to_none=True)
    for unit in units:
        items = step.budget.units[unit]
        step.backward(collate([step.dataset[i] for i in items]), step.generators(0, len(items)), "fp32")
        total.add([unit] * len(items))
    total.close()
    return [p.summed_grad for p in step.task.net.parameters()]


def test_gradients_that_are_not_finite_count_as_zero():
    found, items = one_step(make_step([1.0, -9.0, 2.0], batch_size=3))
    assert sorted(items) == [0, 1, 2]
    torch.testing.assert_close(found, clipped_alone([1.0, 0, 2.0], [[0], [2]], 1.0, layers()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_gpu", [None, 1])
def test_an_image_that_is_not_finite_takes_nothing_from_its_group(batch_gpu):
    step = make_step([1.0, -9.0, 2.0], units=[[0, 1], [2]], batch_size=2, batch_gpu=batch_gpu)
    found, items = one_step(step)
    assert sorted(items) == [0, 1, 2]
    torch.testing.assert_close(found, clipped_alone([1.0, 0, 2.0], [[0], [2]], 1.0, layers()), rtol=1e-4, atol=1e-5)


# ---- noise ----


def test_noise_has_the_stated_deviation_once_per_step():
    step = make_step([1.0], noise=0.5, norm=2.0, batch_size=1, batch_gpu=1)
    step.budget.units = [[0]]
    step.budget.sampling_rate = 1e-9  # empty batches: noise alone
    data, drawn = step.batches(0), []
    for _ in range(1000):
        rounds = step.take(data)
        step.gradients(0, [batch for _, batch in rounds], 0, Collector(), [])
        drawn.append(torch.cat([p.grad.reshape(-1) for p in step.task.net.parameters()]))
    drawn = torch.stack(drawn)
    assert abs(float(drawn.std()) / (0.5 * 2.0) - 1) < 0.03
    assert abs(float(drawn.mean())) < 0.02 and drawn.unique().numel() > 0.99 * drawn.numel()
    assert float((drawn.abs() > 3).float().mean()) == pytest.approx(0.0027, abs=0.001)


def test_noise_is_added_once_whatever_the_rounds():
    for batch_gpu in (None, 1):
        step = make_step([0.0] * 8, noise=3.0, batch_size=8, batch_gpu=batch_gpu, norm=1e-3)
        data, drawn = step.batches(0), []
        for _ in range(60):
            rounds = step.take(data)
            step.gradients(0, [batch for _, batch in rounds], 0, Collector(), [None] * len(rounds))
            drawn.append(torch.cat([p.grad.reshape(-1) for p in step.task.net.parameters()]))
        assert len(rounds) == (8 if batch_gpu else 1)
        assert float(torch.stack(drawn).std()) == pytest.approx(3.0 * 1e-3 / 8, rel=0.08)


def test_secret_numbers():
    drawn = secret_uniform(200_000)
    assert drawn.min() > 0 and drawn.max() < 1 and abs(float(drawn.mean()) - 0.5) < 0.005
    assert not torch.equal(drawn, secret_uniform(200_000))
    like = torch.zeros(3, 5, dtype=torch.float32)
    assert secret_normal(like, 2.0).shape == (3, 5) and secret_normal(like, 2.0).dtype == torch.float32


# ---- gradients per sample ----


class Bare(nn.Module):
    """A weight outside of layers, in a block that takes two tensors."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

        def forward(self, x, y):
            return self.inner(x * self.scale) + y

    def __init__(self):
        super().__init__()
        self.block = self.Scale()

    def forward(self, x):
        return self.block(x, x.square())


class Outside(nn.Module):
    """A layer whose weight is used outside of its forward."""

    def __init__(self):
        super().__init__()
        self.first, self.stray = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.first(x), self.stray.weight)


class Together(nn.Module):
    """Images that see each other."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        out = self.inner(x)
        return out - out.mean(0, keepdim=True)


def test_the_start_check_passes_what_is_right_and_leaves_no_trace():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    nn.init.zeros_(net[2].weight)
    net[0].bias.requires_grad_(False)
    before = {name: w.clone() for name, w in net.state_dict().items()}
    step = make_step([1.0, -2.0, 3.0], net)
    check_gradients(step, step.dataset)
    assert all(torch.equal(w, before[name]) for name, w in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not torch.equal(net[1](torch.ones(99)), torch.ones(99))
    found, items = one_step(make_step([1.0, -2.0, 3.0], layers(), batch_size=3))
    torch.testing.assert_close(found, clipped_alone([1.0, -2.0, 3.0], [[i] for i in items], 1.0, layers()), rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize(("net", "named"), [(Bare, "outside of layers in block"), (Outside, "stray.weight"),
                                            (Together, "inner.weight")])
def test_the_start_check_names_the_layer_at_fault(net, named):
    step = make_step([1.0, -2.0], net())
    with pytest.raises(ValueError, match=rf"training\.network: .*{named}"):
        check_gradients(step, step.dataset)


def test_layers_that_keep_what_they_saw_are_refused():
    with pytest.raises(ValueError, match="BatchNorm"):
        make_step([1.0], nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(1)))


def test_frozen_weights_have_no_part_in_it():
    net = layers()
    net[0].requires_grad_(False)
    step, before = make_step([1.0, 2.0, 3.0], net, batch_size=3), net[0].weight.clone()
    rounds = step.take(step.batches(0))
    step.gradients(0, [batch for _, batch in rounds], 0, Collector(), [None])
    step.task.phases[0].optimizer.step()
    assert net[0].weight.grad is None and torch.equal(net[0].weight, before)
    assert net[2].weight.grad.norm() > 0
