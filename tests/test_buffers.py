"""Buffers that forward passes move: part of a state, copied into averages, left alone by a step that is skipped."""

from dataclasses import replace

import pytest
import torch

from edm3d.formats.training_state import TrainingState
from edm3d.utils import checkpoint
from edm3d.utils.runs import list_files
from edm3d.utils.stop import Stop
from tests.toy import OPTIONS, in_step, learned, make_trainer, trained, two_phases


def test_two_phases_with_moving_buffers_go_on_bit_for_bit(tmp_path):
    options = replace(OPTIONS, state_ticks=1, batch_gpu=6)
    whole = trained(tmp_path / "whole", options, task=two_phases())
    killed = make_trainer(tmp_path / "killed", options, task=two_phases())
    in_step(killed, 2 * 13, lambda: 1 / 0)  # with work since the last state, which is lost
    with pytest.raises(ZeroDivisionError):
        killed.run(Stop(tmp_path / "killed"))
    state = list_files(tmp_path / "killed", "training-state")[-1]
    assert state.name == "training-state-000000.120.pt"
    before = TrainingState.read(state)
    again = trained(tmp_path / "killed", options, task=two_phases(), resume=state)
    assert learned(again) == learned(whole)
    for part, key in (("net", "entries"), ("critic", "norm.running_var")):
        assert not torch.equal(before.modules[part][key], again.modules[part][key])
    assert torch.equal(again.ema["entries"], again.modules["net"]["entries"])


def test_skipped_step_leaves_buffers_as_they_were(tmp_path):
    trainer = make_trainer(tmp_path, task=two_phases({2, 3}))
    data, seen = trainer.batches(), []
    for _ in range(5):
        trainer.step(data)
        seen.append(checkpoint.checksum([[p.module.state_dict() for p in trainer.task.phases],
                                         dict(trainer.ema.named_buffers())]))
    assert seen[1] == seen[2] == seen[3] and len(set(seen)) == 3
