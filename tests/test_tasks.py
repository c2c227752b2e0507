"""Tasks as the loop sees them: what phases hand on, what is measured and kept as the best, and names in the log."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch

from edm3d.formats.training_state import TrainingState
from edm3d.inference.batch import Batch
from edm3d.training.phases import Best, ByLevel, LossOutput, Phase, StepStatistics, Sum, Task
from edm3d.training.validation import Held
from edm3d.utils import checkpoint
from edm3d.utils.runs import list_files
from edm3d.utils.stop import Stop
from tests.toy import BLANK, OPTIONS, Points, Toy, make_trainer, ticks


def phase(name: str, loss, start_kimg: float = 0, absorb=None) -> Phase:
    """A phase of a network of its own."""
    net = Toy()
    return Phase(name, net, torch.optim.SGD(net.parameters(), lr=1e-3), loss, start_kimg, absorb)


def squares(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return module(batch.images, torch.ones(len(batch.images))).square().sum()


def test_a_phase_gets_what_the_one_before_it_handed_for_the_same_round(tmp_path):
    seen: list[tuple] = []

    def giver(module, batch, generators) -> LossOutput:
        seen.append(("giver", generators.keys))
        return LossOutput(squares(module, batch), len(batch.images), {}, handed=(generators.keys, batch.images))

    def late(module, batch, generators, handed) -> LossOutput:
        keys, images = handed
        assert torch.equal(images, batch.images)
        seen.append(("late", generators.keys, keys))
        return LossOutput(squares(module, batch), len(batch.images), {}, handed="from late")

    def taker(module, batch, generators, handed) -> LossOutput:
        seen.append(("taker", generators.keys, handed if handed == "from late" else handed[0]))
        return LossOutput(squares(module, batch), len(batch.images), {})

    def alone(module, batch, generators) -> LossOutput:  # nothing is handed to it, and it takes nothing
        seen.append(("alone", generators.keys))
        return LossOutput(squares(module, batch), len(batch.images), {})

    phases = [phase("giver", giver), phase("late", late, start_kimg=0.012), phase("taker", taker),
              phase("alone", alone)]
    trainer = make_trainer(tmp_path, replace(OPTIONS, batch_gpu=6), task=Task(phases, phases[0].module, BLANK))
    data, rounds = trainer.batches(), [[*range(6)], [*range(6, 12)]]
    trainer.step(data)
    assert seen == [("giver", keys) for keys in rounds] + [("taker", keys, keys) for keys in rounds] + [
        ("alone", keys) for keys in rounds]
    seen.clear()
    trainer.step(data)
    rounds = [[*range(12, 18)], [*range(18, 24)]]
    assert seen == [("giver", keys) for keys in rounds] + [("late", keys, keys) for keys in rounds] + [
        ("taker", keys, "from late") for keys in rounds] + [("alone", keys) for keys in rounds]


def test_numbers_have_the_names_that_the_log_knows(tmp_path):
    def loss(module, batch, generators) -> LossOutput:
        count = len(batch.images)
        per_image = module(batch.images, torch.ones(count)).square().flatten(1).mean(1)
        return LossOutput(per_image.sum(), count, {"half": per_image.sum() / 2}, {"half": torch.tensor(count / 2)},
                          {"mean": torch.tensor(2.0 * count)}, ByLevel(per_image, torch.full((count,), 2.0)),
                          totals={"number": torch.tensor(3.0)})

    def absorb(totals, nimg) -> StepStatistics:
        return StepStatistics("step", {"total": totals["number"]})

    made = phase("toy", loss, absorb=absorb)
    lines: list[str] = []
    trainer = make_trainer(tmp_path, task=Task([made], made.module, BLANK), held=Held(Points(), 1))
    trainer.log = lines.append
    trainer.run(Stop(tmp_path))
    first = ticks(tmp_path)[0]
    training = {"loss/toy", "loss/half", "loss/data_mean", "loss/sigma_1-3", "share/half", "step/total"}
    assert training | {"val/loss", "val/half", "val/data_mean", "val/sigma_1-3"} == {n for n in first if "/" in n}
    assert first["loss/half"] == pytest.approx(first["loss/toy"] / 2) and first["loss/data_mean"] == 2
    assert first["loss/sigma_1-3"] == pytest.approx(first["loss/toy"]) and first["share/half"] == 0.5
    assert first["step/total"] == 3
    line = next(line for line in lines if line.startswith("tick"))
    assert line.endswith(f"loss: half {first['loss/half']:.4g}, toy {first['loss/toy']:.4g}, "
                         f"validation {first['val/loss']:.4g}")


# ---- what is measured, and the best of it ----


def measuring(found: dict[int, list[Sum]], best: Best) -> Task:
    """A task whose n-th validation of three items, one at a time, measures such sums as `dice`, beside an error."""
    made, calls = phase("toy", lambda module, batch, generators: LossOutput(squares(module, batch), 12, {})), []

    def measured(net, batch, generators) -> dict[str, Sum]:
        calls.append(0)
        validation, item = divmod(len(calls) - 1, 3)
        return {"error": Sum(torch.tensor(1.0), 1), "dice": found[validation][item]}

    return Task([made], made.module, BLANK, measured=measured, best=best)


def dice(total: float, count: int) -> Sum:
    """A sum of Dice over so many classes that are there."""
    return Sum(torch.tensor(total), torch.tensor(count))


DICE = {0: [dice(1, 2), dice(0, 0), dice(0.8, 1)], 1: [dice(0, 0)] * 3, 2: [dice(2.7, 3)] * 3,
        3: [dice(0.1, 1), dice(np.nan, 1), dice(0, 0)]}  # means 0.6, none, 0.9, not a number


@pytest.mark.parametrize(("best", "kept", "score"), [
    (Best("dice", higher=True), [(12, 0.6), (12, 0.6), (36, 0.9), (36, 0.9)], -0.9),
    (Best("dice"), [(12, 0.6)] * 4, 0.6),
    (Best("error"), [(12, 1.0)] * 4, 1.0),
])
def test_each_number_has_its_own_count_and_the_task_says_which_is_best(tmp_path, best, kept, score):
    options = replace(OPTIONS, total_kimg=0.048, kimg_per_tick=0.012, batch_gpu=1)
    data = torch.utils.data.Subset(Points(), range(3))
    trainer = make_trainer(tmp_path, options, task=measuring(DICE, best), held=Held(data, 1))
    tick, found = trainer.tick, []

    def watch() -> None:
        tick()
        content = checkpoint.load(tmp_path / "network-best.pt", "snapshot").content
        found.append((content["nimg"], content[f"val_{best.name}"]))

    trainer.tick = watch
    trainer.run(Stop(tmp_path))
    assert [nimg for nimg, _ in found] == [nimg for nimg, _ in kept]
    assert [value for _, value in found] == pytest.approx([value for _, value in kept])
    means = [tick.get("val/dice") for tick in ticks(tmp_path)]
    assert means == [pytest.approx(0.6), None, pytest.approx(0.9), None] and "val/dice" not in ticks(tmp_path)[1]
    assert TrainingState.read(list_files(tmp_path, "training-state")[-1]).progress["best"] == pytest.approx(score)
    assert trainer.progress.best < inf


def test_a_best_that_is_not_measured_is_a_fault_of_the_program(tmp_path):
    trainer = make_trainer(tmp_path, replace(OPTIONS, batch_gpu=1), task=measuring(DICE, Best("iou")),
                           held=Held(torch.utils.data.Subset(Points(), range(3)), 1))
    with pytest.raises(AssertionError, match="goes by iou, measured are error, dice"):
        trainer.validate()
