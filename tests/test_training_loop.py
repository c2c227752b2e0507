"""The training loop with a toy network: resume bit for bit, ranks and rounds that do not matter, and its files."""

import json
import sys
import types
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edm3d.formats.training_state import Progress, TrainingState
from edm3d.inference.batch import Batch
from edm3d.training.batch_transforms import DrawLatents, Identity
from edm3d.training.data_sampler import InfiniteSampler
from edm3d.training.ema import halflives
from edm3d.training.loss import EDMLoss
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.resume import is_newest, read_state
from edm3d.training.step import split_batch
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.ticks import SIGMA_EDGES
from edm3d.training.validation import Held
from edm3d.utils import checkpoint, distributed
from edm3d.utils.log import read_status, write_status
from edm3d.utils.runs import find_file, kimg_name, list_files, prune
from edm3d.utils.stats import Collector
from edm3d.utils.stop import Stop
from tests.ranks import on_ranks
from tests.toy import (
    BLANK,
    OPTIONS,
    Points,
    Toy,
    in_step,
    learned,
    make_trainer,
    stopped,
    ticks,
    trained,
    two_phases,
    weights,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """The state after 20 steps of one process, 12 images at once."""
    return trained(tmp_path_factory.mktemp("plain"))


def test_every_trained_thing_is_compared(plain, tmp_path):
    other = trained(tmp_path, replace(OPTIONS, total_kimg=0.228))
    for part in ("modules", "ema", "optimizers"):
        assert checkpoint.checksum(getattr(other, part)) != checkpoint.checksum(getattr(plain, part))
    assert learned(other) != learned(plain)


# ---- ranks and rounds ----


def test_accumulation_gives_what_one_round_gives(plain, tmp_path):
    for batch_gpu in (3, 1):
        state = trained(tmp_path / str(batch_gpu), replace(OPTIONS, batch_gpu=batch_gpu))
        for part in ("modules", "ema"):
            torch.testing.assert_close(weights(state, part), weights(plain, part), rtol=1e-5, atol=1e-6)


def on_rank(root: Path) -> None:
    """One of several processes: the plain run, a run with dropout, whole and broken off in step 7 of 20, bad losses."""
    trained(root / "plain")
    trained(root / "counters", replace(OPTIONS, noise="counters"))
    trained(root / "whole", dropout=0.3)
    trained(root / "second", resume=stopped(root / "first", 7, dropout=0.3), dropout=0.3)
    bad_loss_on_last_rank(root / "bad")
    bad_loss_in_fp16_on_last_rank(root / "fp16")
    ranks_disagree_at_the_start(root)
    ranks_move_buffers(root)


def bad_loss_on_last_rank(folder: Path) -> None:
    """A loss that is not finite on one rank, with a finite gradient: no rank moves a weight."""
    last = distributed.rank() == distributed.world_size() - 1
    trainer = make_trainer(folder, task=faulty_task({2} if last else set(), gradient=False))
    data, seen = trainer.batches(), []
    for _ in range(4):
        trainer.step(data)
        seen.append(checkpoint.checksum(trainer.task.net.state_dict()))
    assert seen[1] == seen[2] != seen[3]
    trainer.save_state()


def bad_loss_in_fp16_on_last_rank(folder: Path) -> None:
    """The same halves the loss scale of all ranks."""
    last = distributed.rank() == distributed.world_size() - 1
    trainer = make_trainer(folder, replace(OPTIONS, precision="fp16"), task=faulty_task({1} if last else set()))
    data = trainer.batches()
    for _ in range(3):
        trainer.step(data)
    trainer.settle()
    assert (trainer.progress.loss_scale, trainer.progress.scale_steps) == (32768, 1)
    trainer.save_state()


def ranks_disagree_at_the_start(folder: Path) -> None:
    """Networks that differ between ranks are refused before a step is taken."""
    task = faulty_task(set())
    with torch.no_grad():
        task.net.layers[3].bias[1] += distributed.rank()
    with pytest.raises(ValueError, match=r"faulty\.layers\.3\.bias differs between ranks: rank 1 .*same program"):
        make_trainer(folder / "plain", task=task)


def ranks_move_buffers(folder: Path) -> None:
    """Buffers that forward moves are one over all ranks; of what a state holds, rank 0 alone keeps copies."""
    trainer = make_trainer(folder / "plain", task=two_phases())
    data = trainer.batches()
    for _ in range(3):
        trainer.step(data)
    norm = trainer.task.phases[1].module.norm
    seen = distributed.gather(norm.running_mean)
    assert torch.equal(seen[0], seen[1]) and seen.abs().min() > 0
    trainer.save_snapshot()
    tensors = [leaf for _, leaf in checkpoint.walk(trainer.state().modules)
               if leaf is None or isinstance(leaf, torch.Tensor)]
    assert tensors and all((leaf is None) == (distributed.rank() > 0) for leaf in tensors)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_what_one_process_gives_and_resume_bit_for_bit(plain, tmp_path, ranks):
    on_ranks(on_rank, tmp_path, ranks=ranks)
    states = {p.name: TrainingState.read(list_files(p, "training-state")[-1]) for p in tmp_path.iterdir()}
    counted = trained(tmp_path / "one", replace(OPTIONS, noise="counters"))
    for part in ("modules", "ema"):
        for name, one in (("plain", plain), ("counters", counted)):
            apart = weights(states[name], part) - weights(one, part)
            assert apart.norm() <= 1e-5 * weights(one, part).norm()
        assert (weights(counted, part) - weights(plain, part)).norm() > 1e-3 * weights(plain, part).norm()
    assert states["first"].progress["nimg"] == 96  # in the middle of a tick
    assert learned(states["second"]) == learned(states["whole"]) != learned(states["plain"])
    assert ticks(tmp_path / "second") == ticks(tmp_path / "whole")[1:]


@pytest.mark.parametrize(("batch_size", "batch_gpu", "ranks", "wanted"), [
    (64, None, 1, (64, 1)), (64, 8, 2, (8, 4)), (8, 100, 2, (4, 1)), (1, None, 1, (1, 1)),
])
def test_batch_is_split_into_rounds(batch_size, batch_gpu, ranks, wanted):
    assert split_batch(batch_size, batch_gpu, ranks) == wanted


@pytest.mark.parametrize(("batch_size", "batch_gpu", "ranks"), [(10, None, 4), (0, None, 1), (-8, None, 1), (12, 5, 1),
                                                               (12, -1, 1)])
def test_batch_that_does_not_divide_is_refused_with_the_key(batch_size, batch_gpu, ranks):
    with pytest.raises(ValueError, match=r"training\.options\.batch_"):
        split_batch(batch_size, batch_gpu, ranks)


# ---- average, data, bad gradients ----


def test_average_is_that_of_a_loop_by_hand(tmp_path):
    trainer = make_trainer(tmp_path)
    data, nimg = trainer.batches(), 0
    average = {k: v.clone().double() for k, v in trainer.task.net.state_dict().items()}
    for _ in range(15):
        trainer.step(data)
        halflife = min(50, nimg * 0.5)  # images: 0.05 kimg, and half of what was seen
        beta = 0.5 ** (12 / halflife) if halflife else 0
        for name, value in trainer.task.net.state_dict().items():
            average[name] = beta * average[name] + (1 - beta) * value.double()
        nimg += 12
    trainer.settle()
    for name, value in trainer.ema.state_dict().items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(trainer.ema.layers[0].weight, trainer.task.net.layers[0].weight)


def faulty_task(bad_calls: set[int], gradient: bool = True, fused: bool = False) -> Task:
    """A task whose loss, and its gradient if told so, is not a number at the given calls."""
    net, calls = Toy(), []

    def loss(module: torch.nn.Module, batch: Batch, generators) -> LossOutput:
        calls.append(0)
        value = module(batch.images, torch.ones(len(batch.images))).square().sum()
        if len(calls) - 1 in bad_calls:
            value = value * np.nan if gradient else value + np.nan
        return LossOutput(value, len(batch.images), {})

    return Task([Phase("faulty", net, torch.optim.Adam(net.parameters(), lr=1e-2, fused=fused), loss)], net, BLANK)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("gradient", [True, False])
def test_steps_that_are_not_finite_are_skipped_at_once_and_counted_a_step_late(tmp_path, gradient, fused):
    trainer = make_trainer(tmp_path, task=faulty_task({2, 3}, gradient, fused))
    data, seen, averages, counts = trainer.batches(), [], [], []
    for _ in range(6):
        trainer.step(data)
        seen.append(checkpoint.checksum([trainer.task.net.state_dict(),
                                         trainer.task.phases[0].optimizer.state_dict()["state"]]))
        averages.append(checkpoint.checksum(trainer.ema.state_dict()))
        counts.append(trainer.progress.bad_steps)
    trainer.settle()
    averages.append(checkpoint.checksum(trainer.ema.state_dict()))
    assert seen[2] == seen[3] == seen[1] and len(set(seen)) == 4
    assert averages[2] == averages[3] == averages[4] and len(set(averages)) == 4  # each is of the step before; the rate
    assert averages[0] == averages[1] != averages[2]  # of the first step is 0
    assert counts == [0, 0, 0, 1, 2, 0] and trainer.progress.bad_steps == 0
    means = trainer.stats.means()
    assert means["bad_steps"] == pytest.approx(2 / 6)
    assert np.isfinite(means["loss/faulty"]) and np.isfinite(means["grad_norm"])
    assert trainer.progress.nimg == 72  # the images were seen all the same


def test_step_moves_all_phases_or_none(tmp_path):
    task, other = faulty_task(set()), faulty_task({2})
    other.phases[0].name = "other"
    trainer = make_trainer(tmp_path, task=Task([*task.phases, *other.phases], task.net, BLANK))
    data, seen = trainer.batches(), []
    for _ in range(4):
        trainer.step(data)
        seen.append([checkpoint.checksum(phase.module.state_dict()) for phase in trainer.task.phases])
    assert seen[2] == seen[1]
    assert all(a != b for a, b in zip(seen[2], seen[3], strict=True))


def test_bad_step_names_its_images(tmp_path):
    trainer, lines = make_trainer(tmp_path, replace(OPTIONS, batch_gpu=4), task=faulty_task({4})), []
    trainer.log = lines.append
    data = trainer.batches()
    for _ in range(3):  # of three rounds each
        assert not lines
        trainer.step(data)
    items = ", ".join(map(str, islice(InfiniteSampler(Points(), seed=0), 12, 24)))
    assert lines == ["Warning: loss or gradient not finite, step skipped (1 in a row): images 12 to 23 of the stream, "
                     f"data set items {items}"]


def test_run_ends_after_max_bad_steps_with_a_state_from_before_them(tmp_path):
    options = replace(OPTIONS, max_bad_steps=5, state_ticks=1)
    trainer = make_trainer(tmp_path, options, task=faulty_task(set(range(2, 100))))
    with pytest.raises(ValueError, match=r"in 5 steps in a row .*-000000.024.pt is from before them; start .*\.lr"):
        trainer.run(Stop(tmp_path))
    assert trainer.progress.nimg == 7 * 12  # a tick ended among them: its state too is from before
    assert [p.name for p in list_files(tmp_path, "training-state")] == ["training-state-000000.024.pt"]
    again = make_trainer(tmp_path, options, task=faulty_task(set()))
    again.restore(read_state(list_files(tmp_path, "training-state")[0], again.record))
    assert vars(again.progress) == {**vars(Progress()), "nimg": 24, "tick_seconds": again.progress.tick_seconds}
    assert again.stats.copy().means()["bad_steps"] == 0
    again.run(Stop(tmp_path))
    good = trained(tmp_path / "good", options, task=faulty_task(set()))
    assert learned(again.state()) == learned(good)
    assert ticks(tmp_path) == ticks(tmp_path / "good")


def test_a_run_goes_on_after_fewer_than_max_bad_steps(tmp_path):
    trainer = make_trainer(tmp_path, replace(OPTIONS, max_bad_steps=5), task=faulty_task({2, 3, 4, 5, 7, 8, 9, 10}))
    trainer.run(Stop(tmp_path))
    assert trainer.progress.nimg == 240


def test_a_run_that_ends_on_bad_steps_has_the_weights_of_before(tmp_path):
    trainer = make_trainer(tmp_path, task=faulty_task({18, 19}))
    trainer.run(Stop(tmp_path))
    before = make_trainer(tmp_path / "before", replace(OPTIONS, total_kimg=18 * 12 / 1000), task=faulty_task(set()))
    before.run(Stop(tmp_path / "before"))
    assert trainer.progress.bad_steps == 2 and list_files(tmp_path, "network-snapshot")
    weights = [trainer.state().modules, before.state().modules]
    assert checkpoint.checksum(weights[0]) == checkpoint.checksum(weights[1])


def test_a_run_of_nothing_but_bad_steps_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, replace(OPTIONS, max_bad_steps=99), task=faulty_task(set(range(100))))
    with pytest.raises(ValueError, match="not finite in 20 steps"):
        trainer.run(Stop(tmp_path))
    assert not list_files(tmp_path, "network-snapshot")


def test_names_stay_exact_when_ticks_become_longer(tmp_path):
    """A folder sorts its files by images, whatever the length of the ticks was when they were written."""
    (tmp_path / "training-state-000012.500.pt").touch()
    assert make_trainer(tmp_path, replace(OPTIONS, kimg_per_tick=1)).kimg_name(12900) == "000012.900"
    assert make_trainer(tmp_path / "new", replace(OPTIONS, kimg_per_tick=1)).kimg_name(12900) == "000012"


def test_gradient_clip_bounds_the_step(tmp_path):
    def step_length(clip: float | None) -> float:
        net = Toy()
        task = diffusion_task(net, EDMLoss(), torch.optim.SGD(net.parameters(), lr=1.0), Identity(), {})
        trainer = make_trainer(tmp_path, replace(OPTIONS, grad_clip=clip), task=task)
        data = trainer.batches()
        trainer.step(data)  # at 0 images the rate is 0
        before = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
        trainer.step(data)
        return float((torch.nn.utils.parameters_to_vector(net.parameters()) - before).detach().norm())

    assert step_length(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert step_length(None) > 0.01


def test_latents_are_drawn_and_whitened_image_by_image():
    from edm3d.networks.conditioning import Condition
    from edm3d.samplers.noise import ImageGenerators
    mean, std = torch.randn(3, 2, 4), torch.rand(3, 2, 4)
    transform = DrawLatents([1.0, -1.0], [2.0, 4.0], sigma_data=0.5)
    x, condition = transform(Batch(torch.cat([mean, std], 1), None, Condition()), ImageGenerators([5, 6, 7]))
    eps = ImageGenerators([5, 6, 7]).for_purpose("posterior").randn((2, 4))
    channel_mean, channel_std = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [4.0]])
    torch.testing.assert_close(x, (mean + std * eps - channel_mean) / channel_std * 0.5)
    assert not condition


# ---- numbers of a tick ----


def test_stats_have_a_line_per_tick(tmp_path):
    trained(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [t["tick"] for t in lines] == [1, 2, 3, 4]
    assert [t["kimg"] for t in lines] == pytest.approx([0.06, 0.12, 0.18, 0.24])
    assert {"time/total_sec", "time/sec_per_tick", "time/sec_per_kimg", "time/eta_sec", "time/data_share",
            "images_per_sec", "memory_gib", "loss/diffusion", "grad_norm", "bad_steps"} <= set(lines[0])
    assert all(np.isfinite(t["loss/diffusion"]) for t in lines)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_learning_rates_are_those_of_the_last_step_of_each_phase_that_has_begun(tmp_path):
    task = two_phases()
    task.phases[1].start_kimg, task.phases[1].optimizer.param_groups[0]["lr"] = 0.108, 2e-3
    task.phases[0].optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 4.0})
    trained(tmp_path, replace(OPTIONS, lr_rampup_kimg=0.096, lr_schedule="constant"), task=task)
    found = [{name: value for name, value in tick.items() if name.startswith("lr")} for tick in ticks(tmp_path)]
    first, *later = found  # the last steps of the ticks begin at 48, 108, 168 and 228 images
    assert first == pytest.approx({"lr/0": 5e-3, "lr/1": 2.0})
    assert later == [pytest.approx({"lr/0": 1e-2, "lr/1": 4.0, "lr/critic": 2e-3})] * 3
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr/critic")] == [
        (nimg, pytest.approx(2e-3)) for nimg in (120, 180, 240)]


def test_the_learning_rate_of_one_phase_is_called_lr(tmp_path):
    trained(tmp_path, replace(OPTIONS, lr_rampup_kimg=0, lr_schedule="constant"))
    assert [tick["lr"] for tick in ticks(tmp_path)] == [3e-2] * 4


def test_tick_counts_bad_steps_and_its_line_says_all(tmp_path):
    trainer, lines = make_trainer(tmp_path, replace(OPTIONS, batch_gpu=4), task=faulty_task({0, 6, 7})), []
    trainer.log = lines.append
    trainer.run(Stop(tmp_path))
    assert [t["bad_steps"] for t in ticks(tmp_path)] == [2, 0, 0, 0]  # two steps, though three rounds
    line = next(line for line in lines if line.startswith("tick"))
    assert line.endswith(f"loss: faulty {ticks(tmp_path)[0]['loss/faulty']:.4g}")
    for word in ("tick 1", "kimg 0.060", "time", "sec/tick", "sec/kimg", "ETA", "img/s", "GiB", "grad norm",
                 "data wait", "bad steps 2", "loss: faulty"):
        assert word in line


def test_tick_line_tells_losses_apart_and_leaves_statistics_of_the_data_to_the_files(tmp_path):
    trainer, lines = make_trainer(tmp_path, held=Held(Points(), 1)), []
    trainer.log = lines.append
    trainer.run(Stop(tmp_path))
    tick = ticks(tmp_path)[0]
    assert lines[0].endswith(f"loss: diffusion {tick['loss/diffusion']:.4g}, validation {tick['val/loss']:.4g}")
    assert 0 < tick["loss/data_square"] < 1


def test_tick_of_bad_steps_alone_is_written(tmp_path):
    trained(tmp_path, task=faulty_task(set(range(5))))
    first = ticks(tmp_path)[0]
    assert first["bad_steps"] == 5 and "grad_norm" not in first and "loss/faulty" not in first


def test_bins_hold_the_values_between_their_edges():
    stats = Collector()
    stats.report_bins("x", torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.05, 0.5, 0.6, 7.0]), (0.1, 1))
    stats.report_bins("x", torch.tensor([5.0]), torch.tensor([0.01]), (0.1, 1))
    assert stats.means() == {"x_0-0.1": 3, "x_0.1-1": 2.5, "x_1-inf": 4}
    stats.report_bins("x", torch.tensor([1.0]), torch.tensor([0.5]), (0.1, 1))
    assert stats.means() == {"x_0.1-1": 1}  # a fresh start, and no word of what was not seen


def test_loss_by_noise_level_adds_up_to_the_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    data = trainer.batches()
    trainer.step(data)
    trainer.settle()
    sums = {names: table for names, table in trainer.stats.sums.items() if names[0].startswith("loss/sigma_")}
    (names, table), = sums.items()
    assert len(names) == len(SIGMA_EDGES) + 1 and names[2] == "loss/sigma_0.1-0.3"
    torch.testing.assert_close(table.sum(0), trainer.stats.sums["loss/diffusion",][0])


def test_statistics_go_to_other_ranks_without_loss(monkeypatch):
    """Two ranks' sums, taken up by two, by one and by three ranks."""
    monkeypatch.setattr(distributed, "gather", lambda table: torch.stack([table, 10 * table]))
    stats = Collector()
    stats.report("a", 3.0, 2)
    stats.report_bins("b", torch.tensor([1.0]), torch.tensor([1.0]), (2,))
    state = stats.state()
    for ranks, wanted in ((2, [3.0, 30.0]), (1, [33.0]), (3, [3.0, 30.0, 0.0])):
        monkeypatch.setattr(distributed, "world_size", lambda ranks=ranks: ranks)
        found = []
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            taken = Collector()
            taken.load_state(state)
            found.append(float(taken.sums["a",][0, 0]))
            assert set(taken.sums) == {("a",), ("b_0-2", "b_2-inf")}
        assert found == wanted


class FakeWandb(types.ModuleType):
    """As much of W&B as is used."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = {}, [], False

    def init(self, **settings) -> "FakeWandb":
        self.started = settings
        return self

    def log(self, fields: dict, step: int) -> None:
        self.logged.append((step, fields["tick"]))

    def finish(self) -> None:
        self.finished = True


def test_wandb_is_told_on_request(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    write_status(tmp_path, "running", run_id="abc")
    trained(tmp_path, replace(OPTIONS, wandb="echo"))
    assert wandb.started["project"] == "echo" and wandb.started["id"] == "abc" and wandb.finished
    assert wandb.logged == [(60, 1), (120, 2), (180, 3), (240, 4)]


def test_wandb_that_does_not_start_is_an_error_that_names_the_key(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ValueError, match=r"^training\.options\.wandb=echo: .* \(ZeroDivisionError: division by zero\)"):
        trained(tmp_path, replace(OPTIONS, wandb="echo"))


@pytest.mark.parametrize(("call", "logged"), [("log", []), ("finish", [60, 120, 180, 240])])
def test_wandb_that_fails_later_is_told_of_once_and_ends_no_run(tmp_path, monkeypatch, plain, call, logged):
    wandb, tries, said = FakeWandb(), [], []

    def fail(*_: object, **more: object) -> None:
        tries.append(0)
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(wandb, call, fail)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer = make_trainer(tmp_path, replace(OPTIONS, wandb="echo"))
    trainer.log = said.append
    trainer.run(Stop(tmp_path))
    assert learned(trainer.state()) == learned(plain) and len(ticks(tmp_path)) == 4
    assert tries == [0] and [step for step, _ in wandb.logged] == logged
    assert [line for line in said if "W&B" in line] == [
        "Warning: W&B failed (RuntimeError: no network) and gets nothing more until the next start; stats.jsonl and "
        "TensorBoard go on"]


# ---- files ----


@pytest.mark.parametrize(("nimg", "exact", "name"), [
    (0, True, "000000"), (12000, True, "000012"), (12034, True, "000012.034"), (12034, False, "000012"),
    (7, True, "000000.007"), (999, False, "000000"), (1234567890, True, "1234567.890")])
def test_files_are_named_by_kimg(nimg, exact, name):
    assert kimg_name(nimg, exact) == name


def test_files_are_listed_by_images_and_further_averages_are_not(tmp_path):
    names = ["000002", "000001.999", "000002.001", "1000000", "000002-ema5", "best", "000002.01", "abc"]
    for name in names:
        (tmp_path / f"network-snapshot-{name}.pt").touch()
    assert [p.name.split("-")[2] for p in list_files(tmp_path, "network-snapshot")] == [
        "000001.999.pt", "000002.pt", "000002.001.pt", "1000000.pt"]


def test_files_of_short_and_long_ticks_in_one_folder_are_taken_in_order(tmp_path):
    names = ["000001.600", "000002", "000002.400", "000009.999", "000010", "1000000"]
    for kind in ("training-state", "network-snapshot"):
        for name in reversed(names):
            (tmp_path / f"{kind}-{name}.pt").write_bytes(b"PK")
    (tmp_path / "network-snapshot-000002.400-ema5.pt").touch()
    write_status(tmp_path, "running", experiment="x")
    for left in range(len(names), 0, -1):
        newest = tmp_path / f"training-state-{names[left - 1]}.pt"
        assert find_file(str(tmp_path), "training-state", tmp_path, "key") == newest and is_newest(newest)
        assert left == 1 or not is_newest(tmp_path / f"training-state-{names[left - 2]}.pt")
        newest.unlink()
    prune(tmp_path, "network-snapshot", 4)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == sorted(
        f"network-snapshot-{name}.pt" for name in [*names[2:], "000002.400-ema5"])
    prune(tmp_path, "network-snapshot", 3)
    assert not list(tmp_path.glob("*-ema5.pt"))


def test_old_snapshots_and_states_are_deleted(tmp_path):
    options = replace(OPTIONS, batch_size=500, total_kimg=5, kimg_per_tick=1, snapshot_ticks=1, state_ticks=2,
                      keep_snapshots=2, keep_states=1)
    trained(tmp_path, options)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "network-snapshot-000004.pt", "network-snapshot-000005.pt", "training-state-000005.pt"]
    assert not list(tmp_path.glob(".*"))


def test_snapshot_holds_the_average(plain, tmp_path):
    state = trained(tmp_path)
    snapshot = checkpoint.load(list_files(tmp_path, "network-snapshot")[-1], "snapshot").content
    assert len({checkpoint.checksum(average) for average in (snapshot["ema"], state.ema, plain.ema)}) == 1
    assert snapshot["task"] == "diffusion" and snapshot["nimg"] == 240


def test_every_half_life_has_snapshots_of_its_own(plain, tmp_path):
    several = trained(tmp_path / "several", replace(OPTIONS, ema_halflife_kimg=[0.05, 0.2, 1], snapshot_ticks=1,
                                                    keep_snapshots=2))
    assert sorted(p.name for p in (tmp_path / "several").glob("network-*.pt")) == [
        f"network-snapshot-000000.{images}{ema}.pt" for images in (180, 240) for ema in ("-ema0.2", "-ema1", "")]
    assert checkpoint.checksum(several.ema) == checkpoint.checksum(plain.ema)
    other = trained(tmp_path / "other", replace(OPTIONS, ema_halflife_kimg=0.2))
    assert checkpoint.checksum(several.more_emas[0]) == checkpoint.checksum(other.ema)
    snapshot = checkpoint.load(tmp_path / "several/network-snapshot-000000.240-ema0.2.pt", "snapshot").content
    assert snapshot["ema_halflife_kimg"] == 0.2
    assert checkpoint.checksum(snapshot["ema"]) == checkpoint.checksum(other.ema)
    assert find_file(str(tmp_path / "several"), "network-snapshot", tmp_path, "key").name.endswith("000.240.pt")


@pytest.mark.parametrize("value", [0, -1, "five", [], [1, 0], [1, 1.0], True, float("nan"), None])
def test_half_lives_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"training\.options\.ema_halflife_kimg="):
        halflives(value)


# ---- validation ----


def test_validation_repeats_itself_and_does_not_touch_the_training(plain, tmp_path):
    trainer = make_trainer(tmp_path, held=Held(Points(), 1))
    assert trainer.validate() == trainer.validate()
    trainer.run(Stop(tmp_path))
    assert learned(trainer.state()) == learned(plain)
    losses = [t["val/loss"] for t in ticks(tmp_path)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_validation_takes_the_same_items_at_the_same_noise_levels(tmp_path):
    trainer, seen = make_trainer(tmp_path, held=Held(Points(), 1)), []
    loss = trainer.task.phases[0].loss

    def watch(module, batch, generators):
        out = loss(module, batch, generators)
        seen.append((out.levels.sigma, generators.for_purpose("noise").randn((4,)), batch.images))
        return out

    trainer.task.phases[0].loss = watch
    trainer.validate()
    data, before = trainer.batches(), [torch.cat(part) for part in zip(*seen, strict=True)]
    trainer.step(data)
    seen.clear()
    trainer.batch_gpu = 5
    trainer.validate()
    after = [torch.cat(part) for part in zip(*seen, strict=True)]
    assert len(before[0]) == 31 and before[0].unique().numel() == 31
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_best_snapshot_is_that_of_the_lowest_validation_loss(tmp_path):
    options = replace(OPTIONS, snapshot_ticks=1, keep_snapshots=9)
    trainer, losses = make_trainer(tmp_path, options, held=Held(Points(), 1)), iter([3.0, 1.0, np.nan, 2.0])
    trainer.validate = lambda: {"val/loss": next(losses)}
    trainer.run(Stop(tmp_path))
    best = checkpoint.load(tmp_path / "network-best.pt", "snapshot").content
    assert best["nimg"] == 120 and best["val_loss"] == 1 == trainer.progress.best
    same = checkpoint.load(tmp_path / "network-snapshot-000000.120.pt", "snapshot").content
    assert checkpoint.checksum(best["ema"]) == checkpoint.checksum(same["ema"])
    assert find_file(str(tmp_path), "network-snapshot", tmp_path, "key").name == "network-snapshot-000000.240.pt"
    assert ticks(tmp_path)[2]["val/loss"] is None


def test_best_is_chosen_anew_when_other_items_are_measured(tmp_path):
    held, options = Held(Points(), 1, "these"), replace(OPTIONS, total_kimg=0.06)
    trained(tmp_path, options, held=held)
    state = read_state(list_files(tmp_path, "training-state")[-1], make_trainer(tmp_path).record)
    for now, anew in ((held, False), (None, False), (Held(Points(), 5, "these"), False),
                      (Held(Points(), 1, "others"), True)):
        said: list[str] = []
        again = make_trainer(tmp_path, options, held=now)
        again.log = said.append
        again.restore(state)
        assert (again.progress.best == np.inf) is anew
        assert [("network-best.pt is chosen anew" in line) for line in said] == [True] * anew
        assert again.progress.measured == ("others" if anew else "these")


def test_status_tells_of_the_last_state(tmp_path):
    options = replace(OPTIONS, state_ticks=1)
    trainer = make_trainer(tmp_path, options)
    in_step(trainer, 12, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run(Stop(tmp_path))
    status = read_status(tmp_path)
    assert (status["status"], status["nimg"], status["state"]) == ("running", 120, "training-state-000000.120.pt")
