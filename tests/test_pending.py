"""Steps of which the host hears late: what is skipped on the device, what is saved, and what nobody waits for."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edm3d.inference.batch import Batch
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.pending import Sent, is_bad
from edm3d.training.phases import LossOutput, Phase, PhaseStep, StepStatistics, Task
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.utils import checkpoint, sharding
from edm3d.utils.runs import list_files
from edm3d.utils.stats import Collector
from edm3d.utils.stop import Stop
from tests.toy import BLANK, OPTIONS, Codebook, Critic, Toy, in_step, learned, make_trainer, trained

Make = Callable[..., torch.optim.Optimizer]
NO, YES = torch.tensor(False), torch.tensor(True)


# ---- optimisers ----


def moved(make: Make, flags: list[torch.Tensor]) -> str:
    """All of an optimiser after steps on gradients that are not finite where a flag is set, by hash; state included."""
    weights, random = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))], torch.Generator()
    optimizer = make(weights, lr=0.1)
    for flag in flags:
        for w in weights:
            gradient = torch.randn(w.shape, generator=random.manual_seed(len(optimizer.state)))
            w.grad = gradient * torch.nan if flag else gradient
        sharding.step_unless(optimizer, flag)
    assert not hasattr(optimizer, "found_inf")
    return checkpoint.checksum([weights, optimizer.state_dict()])


@pytest.mark.parametrize("make", [
    lambda p, **more: torch.optim.Adam(p, fused=True, **more),
    lambda p, **more: torch.optim.Adam(p, amsgrad=True, **more),
    lambda p, **more: torch.optim.AdamW(p, fused=True, weight_decay=0.1, amsgrad=True, **more),
    lambda p, **more: torch.optim.SGD(p, fused=True, momentum=0.9, **more),
    lambda p, **more: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, **more),
    lambda p, **more: torch.optim.RMSprop(p, **more)])
def test_an_optimiser_is_as_if_a_skipped_step_had_not_been(make):
    good = moved(make, [NO, NO, NO])
    assert moved(make, [NO, YES, YES, NO, NO, YES]) == moved(make, [YES, NO, NO, YES, NO]) == good
    assert moved(make, [YES]) == moved(make, []) != moved(make, [NO])


# ---- what is kept ----


def net_and_critic(bad: set[int], fused: bool = True) -> Task:
    """Two phases whose forward passes move buffers; the net absorbs what its images were; some steps are not finite."""
    net, critic, calls = Codebook(), Critic(), []
    net.register_buffer("absorbed", torch.zeros(4))

    def net_loss(module, batch: Batch, generators) -> LossOutput:
        calls.append(0)
        x = batch.images * (torch.nan if len(calls) - 1 in bad else 1)
        loss = module(x, x.new_ones(len(x))).square().sum()
        return LossOutput(loss, len(x), {}, totals={"mean": x.mean((0, 1))})

    def critic_loss(module, batch: Batch, generators) -> LossOutput:
        return LossOutput((module(batch.images) - 1).square().sum(), len(batch.images), {})

    def absorb(totals: dict[str, torch.Tensor], nimg: int) -> StepStatistics:
        assert totals["mean"].isfinite().all()
        net.absorbed.lerp_(totals["mean"], 0.5)
        return StepStatistics("net", {"mean": totals["mean"].mean()})

    adam = [make(m.parameters(), lr=1e-2, fused=fused) for make, m in ((torch.optim.Adam, net),
                                                                      (torch.optim.AdamW, critic))]
    phases = [Phase("net", net, adam[0], net_loss, absorb=absorb), Phase("critic", critic, adam[1], critic_loss)]
    return Task(phases, net, BLANK)


SCHEDULE = replace(OPTIONS, lr_schedule="cosine", lr_rampup_kimg=0.1)


def state_among(folder: Path, skipped: int, device: str = "cpu") -> list:
    """What a state holds after seven good steps and a number of bad ones: by hash, progress, what was reported."""
    trainer = make_trainer(folder, replace(SCHEDULE, device=device), task=net_and_critic(set(range(7, 7 + skipped))))
    data = trainer.batches()
    for _ in range(7 + skipped):
        trainer.step(data)
    state = trainer.state()
    stats = Collector()
    stats.load_state(state.stats)
    assert trainer.progress.bad_steps == skipped and state.nimg == 84
    return [learned(state), {name: value for name, value in state.progress.items() if name != "tick_seconds"},
            {name: mean for name, mean in stats.means().items() if not name.startswith("time")}]


def test_a_state_that_is_saved_among_skipped_steps_is_that_of_before_them(tmp_path):
    before, one, three = (state_among(tmp_path / str(skipped), skipped) for skipped in (0, 1, 3))
    assert before == one == three and {"net/mean", "loss/net", "grad_norm/critic"} <= before[2].keys()


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_ends_at_the_limit_before_a_good_step_behind_it_moves_anything(tmp_path, fused):
    trainer = make_trainer(tmp_path, replace(SCHEDULE, max_bad_steps=5), task=net_and_critic(set(range(7, 12)), fused))
    with pytest.raises(ValueError, match="in 5 steps in a row"):
        trainer.run(Stop(tmp_path))
    assert [p.name for p in list_files(tmp_path, "training-state")] == ["training-state-000000.084.pt"]
    before = make_trainer(tmp_path / "before", SCHEDULE, task=net_and_critic(set(), fused))
    data = before.batches()
    for _ in range(7):
        before.step(data)
    wanted, got = before.state(), trainer.state()
    for part in ("modules", "ema", "optimizers"):
        assert checkpoint.checksum(getattr(got, part)) == checkpoint.checksum(getattr(wanted, part)), part


def test_a_run_goes_on_from_among_skipped_steps_as_if_it_had_not_ended(tmp_path):
    bad = {0, 7, 8}
    whole = trained(tmp_path / "whole", SCHEDULE, task=net_and_critic(bad))
    for steps in (1, 8, 9, 10):  # the first of them is bad, the last is behind all
        first = make_trainer(tmp_path / f"first{steps}", SCHEDULE, task=net_and_critic(bad))
        stop = Stop(first.run_dir)
        in_step(first, 2 * steps - 1, lambda stop=stop: stop.ask(signal.SIGTERM, None))
        first.run(stop)
        path, = list_files(first.run_dir, "training-state")
        done = steps
        while done - 1 in bad:
            done -= 1
        again = trained(tmp_path / f"second{steps}", SCHEDULE, resume=path,
                        task=net_and_critic({i - done for i in bad if i >= done}))
        assert learned(again) == learned(whole)


# ---- what nobody waits for ----

READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


class Reads(TorchFunctionMode):
    """Counts what has the host look at values of tensors, in Python."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class ReadsBelow(TorchDispatchMode):
    """The same, of operations that call for it inside of torch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_read() -> Iterator[None]:
    """A context in which the host looks at no tensor's values but those that were sent to it."""
    with Reads() as above, ReadsBelow() as below:
        yield
    assert not above.found + below.found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("two", [False, True])
def test_a_step_reads_nothing_back_but_the_verdict_on_the_step_before(tmp_path, monkeypatch, precision, two):
    net = Toy()
    one = diffusion_task(net, EDMLoss(), torch.optim.Adam(net.parameters(), fused=True), Identity(), BLANK)
    task, options = net_and_critic({3}) if two else one, replace(OPTIONS, precision=precision, grad_clip=1.0)
    task.phases[0].absorb = None  # that of this test looks at values
    trainer, asked = make_trainer(tmp_path, options, task=task), []
    data = trainer.batches()
    trainer.step(data)  # optimisers wait until they have moments
    while not trainer.optimizers[0].state:
        trainer.step(data)
    read = Sent.read

    def ask(sent: Sent) -> list[float]:
        asked.append(trainer.progress.nimg // 12)
        with torch._C.DisableTorchFunction():
            return read(sent)

    monkeypatch.setattr(Sent, "read", ask)
    first = trainer.progress.nimg // 12
    for _ in range(5):
        batch = trainer.stepper.take(data)  # data sets are the host's
        trainer.stepper.take = lambda _, batch=batch: batch
        with nothing_read():
            trainer.step(data)
        del trainer.stepper.take
    assert asked == [*range(first, first + 5)]  # once in each step, behind its gradients


def test_gradients_of_one_rank_are_neither_copied_nor_written_to():
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    weights[0].sum().backward()
    gradient = weights[0].grad
    before = gradient.data_ptr(), gradient._version
    sharding.sum_gradients(weights)
    assert float(sharding.clip_gradients(weights, None)) == pytest.approx(6 ** 0.5)
    assert weights[0].grad is gradient and (gradient.data_ptr(), gradient._version) == before
    assert weights[1].grad.tolist() == [0] * 4
    assert float(sharding.clip_gradients(weights, 0.5)) == pytest.approx(6 ** 0.5)
    assert float(gradient.norm()) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(("checks", "bad"), [([1.0, 2.0], False), ([1.0, float("inf")], True), ([], False),
                                             ([float("inf"), float("-inf")], True), ([float("nan"), 1.0], True)])
def test_a_step_is_bad_where_any_phase_is(checks, bad):
    assert bool(is_bad([PhaseStep(torch.tensor(c), {}, []) for c in checks], torch.device("cpu"))) is bad
