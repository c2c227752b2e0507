"""Switches of speed: what each of them leaves alone, and what a state keeps of it."""

import gzip
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edm3d.formats.training_state import Progress, TrainingState
from edm3d.inference.batch import Batch
from edm3d.networks.unet import ADMUNet
from edm3d.training.build import check_training
from edm3d.training.loss_scale import next_scale
from edm3d.training.machine import place
from edm3d.training.pending import known_scale
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.profile_plan import planned
from edm3d.training.profiling import Planned, Profile, by_part
from edm3d.training.resume import changes, read_state
from edm3d.training.run import check_options, of_cuda_alone
from edm3d.training.step import PlainStep
from edm3d.training.training_loop import Trainer
from edm3d.utils import checkpoint, distributed
from edm3d.utils.compiled import CACHE, keep_compiled
from edm3d.utils.compose import compose
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Options
from edm3d.utils.stop import Stop
from tests.toy import BLANK, OPTIONS, Toy, in_step, learned, make_trainer, stopped, ticks, trained

FP16 = replace(OPTIONS, precision="fp16")


# ---- fp16 ----


def test_the_loss_scale_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(()))
    scaler, optimizer = torch.amp.GradScaler("cpu", growth_interval=2000), torch.optim.SGD([weight], lr=0.1)
    found, random = [], torch.Generator().manual_seed(0)
    state = known_scale(Progress(), torch.device("cpu"))
    for step in range(9000):
        bad = step in (0, 1, 2005) or (step > 7000 and float(torch.rand((), generator=random)) < 0.01)
        scaler.scale(weight * float("inf" if bad else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state = next_scale(*state, torch.tensor(bad))
        found.append(tuple(map(float, state)))
        assert found[-1] == (scaler.get_scale(), scaler._get_growth_tracker())
    assert len({scale for scale, _ in found}) > 3


def test_fp16_skips_what_overflows_until_the_scale_fits_and_resumes_bit_for_bit(tmp_path):
    def start(folder: str) -> Trainer:
        trainer = make_trainer(tmp_path / folder, FP16)
        trainer.progress.loss_scale = 2.0 ** 21
        return trainer

    whole, lines = start("whole"), []
    whole.log = lines.append
    whole.run(Stop(tmp_path / "whole"))
    bad = [line for line in lines if "not finite" in line]
    assert len(bad) == 21 - round(torch.tensor(whole.progress.loss_scale).log2().item()) > 1
    assert bad[0].endswith("; loss scale 2.09715e+06 -> 1.04858e+06")
    state = TrainingState.read(list_files(tmp_path / "whole", "training-state")[-1])
    for steps in (0, 5):  # among the steps that were skipped, and after them
        first, stop = start(f"first{steps}"), Stop(tmp_path / f"first{steps}")
        in_step(first, steps, lambda stop=stop: stop.ask(signal.SIGTERM, None))
        first.run(stop)
        path = list_files(first.run_dir, "training-state")[-1]
        second = make_trainer(tmp_path / f"second{steps}", FP16)
        second.restore(read_state(path, second.record))
        second.run(Stop(second.run_dir))
        assert learned(second.state()) == learned(state)
        scales = [(p["loss_scale"], p["scale_steps"]) for p in (second.state().progress, state.progress)]
        assert scales[0] == scales[1] and scales[0][0] < 2.0 ** 20


def test_the_scale_keeps_small_gradients_and_leaves_them_their_size(tmp_path):
    def gradient(precision: str, scale: float) -> torch.Tensor:
        net = Toy()
        task = Task([Phase("toy", net, torch.optim.SGD(net.parameters(), lr=0.1), small_loss)], net, BLANK)
        trainer = make_trainer(tmp_path, replace(OPTIONS, precision=precision), task=task)
        trainer.progress.loss_scale = scale
        trainer.step(trainer.batches())
        return torch.nn.utils.parameters_to_vector([p.grad for p in net.parameters()])

    def small_loss(module: torch.nn.Module, batch: Batch, generators: object) -> LossOutput:
        loss = module(batch.images, torch.ones(len(batch.images))).float().square().sum() * 1e-7
        return LossOutput(loss, len(batch.images), {})

    exact = gradient("fp32", 1)
    assert (gradient("fp16", 65536) - exact).norm() < 0.01 * exact.norm()
    assert (gradient("fp16", 1) - exact).norm() > 0.5 * exact.norm()


def test_fp16_goes_on_from_a_state_that_knows_no_scale(tmp_path):
    path = stopped(tmp_path / "old", 7)
    content = checkpoint.load(path, "state").content
    content["progress"] = {k: v for k, v in content["progress"].items() if k not in ("loss_scale", "scale_steps")}
    checkpoint.save(path, "state", content)
    trainer = make_trainer(tmp_path / "new", FP16)
    trainer.restore(read_state(path, trainer.record))
    assert (trainer.progress.loss_scale, trainer.progress.nimg) == (65536, 96)
    content["progress"]["loss_scale"] = 0.0
    checkpoint.save(path, "state", content)
    with pytest.raises(ValueError, match=r"progress\.loss_scale is 0"):
        TrainingState.read(path)


# ---- TF32 and cuDNN's search ----


@pytest.fixture
def as_before() -> Iterator[None]:
    """What torch begins with, also afterwards."""
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(("tf32", "search"), [(False, False), (True, False), (False, True)])
def test_cuda_arithmetic_is_set_where_ranks_begin_and_stands_in_the_state(tmp_path, monkeypatch, as_before, tf32,
                                                                          search):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed, "choose_device", lambda kind: torch.device("cuda", 0))
    distributed.init(tf32=tf32, cudnn_benchmark=search)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    environment = make_trainer(tmp_path).environment()
    assert (environment["tf32"], environment["cudnn_benchmark"]) == (tf32, search)
    before = {k: v for k, v in environment.items() if k not in ("tf32", "cudnn_benchmark")}
    assert [line.split(":")[1] for line in changes(before, environment)] == [
        f" {name} was False, is True" for name, on in (("tf32", tf32), ("cudnn_benchmark", search)) if on]


def test_what_only_cuda_has_is_noted_on_a_cpu():
    options = replace(OPTIONS, tf32=True, cudnn_benchmark=True, graphs=True)
    assert of_cuda_alone(options, torch.device("cpu")) == [
        "Note: training.options.tf32, training.options.cudnn_benchmark, training.options.graphs: of CUDA alone, "
        "nothing changes on the CPU"]
    assert of_cuda_alone(options, torch.device("cuda")) == of_cuda_alone(OPTIONS, torch.device("cpu")) == []


# ---- layouts ----


class LayoutCopies(TorchDispatchMode):
    """Shapes of what is copied into another layout while the block lasts."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default and out.ndim > 2 and out.stride() != args[0].stride():
            self.shapes.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_and_moments_lie_as_weights_do_and_attention_alone_copies(channels_last):
    net = ADMUNet(4, 4, 3, model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,),
                  channels_per_head=16)
    place(net.train(), None, Options(channels_last=channels_last), torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    with LayoutCopies() as copies:
        net(torch.randn(2, 4, 8, 8, 8), torch.ones(2)).square().mean().backward()
    optimizer.step()
    kernels = [p for p in net.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels) == channels_last
    for p in net.parameters():
        assert p.stride() == p.grad.stride() == optimizer.state[p]["exp_avg"].stride()
    if not channels_last:  # norms give gradients of images in the plain layout, whatever that of the image
        assert copies.shapes and all(4 ** 3 in shape for shape in copies.shapes)  # its positions


# ---- what is compiled ----


def test_what_is_compiled_is_kept_in_the_home_unless_the_user_says_where(tmp_path, monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # where torch.compile looks
    monkeypatch.setenv(CACHE, "")
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    (tmp_path / "file").touch()
    assert keep_compiled().endswith("a folder of torch") and CACHE not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert keep_compiled().endswith(cache_dir()) and cache_dir() == str(tmp_path / "cache/edm3d/compiled")
    monkeypatch.setenv(CACHE, str(tmp_path / "own"))
    assert keep_compiled().endswith(cache_dir()) and cache_dir() == str(tmp_path / "own")


@pytest.mark.parametrize(("given", "device", "mode"), [
    ({}, "cuda", "plain"), ({"compile": True}, "cuda", None), ({"compile": True, "graphs": True}, "cpu", None),
    ({"compile": True, "graphs": True}, "cuda", "reduce-overhead")])
def test_graphs_are_replayed_of_what_is_compiled_on_cuda(monkeypatch, given, device, mode):
    monkeypatch.setattr(torch, "compile", lambda module, mode: (module, mode))
    net, marks = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append("mark"))
    options = Options(batch_size=4, **given)
    step = PlainStep(Task([Phase("net", net, torch.optim.SGD(net.parameters()), None)], net, None), [], options,
                     precision="fp32", device=torch.device(device))
    assert step.modules == [net if mode == "plain" else (net, mode)]
    assert step.take(iter(["round"])) == ["round"] and marks == ["mark"] * (mode == "reduce-overhead")


@pytest.mark.parametrize(("given", "said"), [
    ({}, "set training.options.compile=true as well"),
    ({"compile": True, "tune": True}, "does not go with training.options.tune=true"),
    ({"compile": True, "parallel": "fsdp"}, "does not go with training.options.parallel=fsdp"),
    ({"compile": True, "batch_gpu": 2}, "2 adds up those of 3; set training.options.batch_gpu=null, or graphs=false")])
def test_graphs_are_refused_where_they_have_nothing_to_replay_or_would_be_wrong(given, said):
    options = Options(batch_size=6, total_kimg=1, graphs=True, **given)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_options(options, torch.device("cpu"))
    check_options(replace(options, compile=True, tune=False, parallel="ddp", batch_gpu=None), torch.device("cpu"))


def test_graphs_are_refused_beside_an_adversary():
    given = ["discriminator=patch", "training.options.compile=true"]
    check_training(compose("echo64_vae", given)["training"])
    with pytest.raises(ValueError, match="graphs=true: .* training.discriminator, adds up those of two"):
        check_training(compose("echo64_vae", [*given, "training.options.graphs=true"])["training"])


# ---- the profile ----


def test_parts_of_the_median_step_by_hand():
    step = [("data", 1.0), ("forward", 2.0), ("forward", 3.0), ("step", 10.0)]
    longer, shorter = [("data", 9.0), ("step", 30.0)], [("data", 0.5), ("step", 1.0)]
    assert by_part([*longer, *step, *shorter]) == {"data": 1, "forward": 5, "the rest": 4, "step": 10}


def test_a_profile_changes_no_bit(tmp_path):
    options, lines = replace(OPTIONS, batch_gpu=6), []
    plain = trained(tmp_path / "plain", options)
    watched = make_trainer(tmp_path / "watched", options)
    watched.watch(Profile(tmp_path / "profile", watched.device, "fp32", 12, Planned(10 ** 9, {"peak": 2 ** 20}),
                          lines.append))
    watched.run(Stop(watched.run_dir))
    assert learned(watched.state()) == learned(plain) and ticks(watched.run_dir) == ticks(tmp_path / "plain")
    assert sorted(p.name for p in (tmp_path / "profile").iterdir()) == ["profile.txt", "trace.json.gz"] and lines
    page = (tmp_path / "profile/profile.txt").read_text()
    for part in ("data ", "forward ", "backward ", "norm, sums over ranks", "optimiser", "averages", "the rest",
                 "1 GFLOP by the plan", "1.0 MiB", "aten::"):
        assert part in page, part
    with gzip.open(tmp_path / "profile/trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert [names.count(f"[{part}]") for part in ("step", "forward", "backward", "optimiser")] == [3, 6, 6, 3]


def test_the_step_is_planned_for_a_profile_on_rank_0_alone(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 1, 16)).astype(np.float32))
    training = compose("voxels_edm", ["dataset=arrays", f"training.dataset.path={tmp_path}/x.npy",
                                      "training.network.model.model_channels=8", "training.options.batch_size=4",
                                      "training.network.model.channel_mult=[1,1]",
                                      "training.network.model.attention_levels=[]"])["training"]
    options = Options(**{**training["options"], "batch_gpu": 2, "device": "cpu", "precision": "fp32"})
    whole = planned(training, options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    half = planned(training, options)
    assert whole.flops == 2 * half.flops > 0 and whole.memory["weights"] == half.memory["weights"] > 0
    monkeypatch.setenv("RANK", "1")
    assert planned(training, options) is None
    monkeypatch.setenv("RANK", "0")
    assert planned({**training, "dataset": {**training["dataset"], "path": "none"}}, options) is None
