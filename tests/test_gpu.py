"""What only a CUDA device can show: python -m pytest -m gpu."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import generate
import train
from edm3d.formats.facts import Facts
from edm3d.formats.samples import SamplesFile
from edm3d.inference.batch import Sample
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.samplers.noise import COUNTERS, SCHEMES, ImageGenerators
from edm3d.samplers.philox import has_kernels
from edm3d.training.augment import AugmentPipe
from edm3d.training.batch_transforms import DrawLatents
from edm3d.training.loss import EDMLoss
from edm3d.training.resume import RunRecord
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.training_loop import Trainer
from edm3d.utils.log import RunLog
from edm3d.utils.schema import Options
from tests.test_pending import state_among

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OPTIONS = ["training.options.batch_size=4", "training.options.total_kimg=0.016", "training.options.kimg_per_tick=0.008",
           "training.options.min_psnr=null"]
VAE = ["-cn=echo_vae", "training.network.channels=[8,16]", *OPTIONS]
EDM = ["-cn=echo_edm", "training.network.model.model_channels=16", "training.network.model.channel_mult=[1,2]",
       "training.network.model.attention_levels=[1]", "training.network.model.channels_per_head=32", *OPTIONS]


def succeed(command, *arguments: str) -> None:
    result = CliRunner().invoke(command, [*arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("switches", [[], ["training.options.precision=bf16", "training.options.channels_last=true"],
                                      ["training.options.compile=true"], ["training.options.precision=fp16"],
                                      ["training.options.compile=true", "training.options.graphs=true"]])
def test_road_on_a_gpu(tmp_path, switches):
    """The road trains on CUDA with each switch, and draws on CUDA what the CPU draws from the same weights."""
    with chdir(tmp_path):
        succeed(dataset_tool.main, "phantom", "--dest", "data/echo.h5", "--num", "20", "--size", "16")
        succeed(train.main, *VAE, *switches)
        succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
                "data/echo_latents.h5")
        succeed(train.main, *EDM, *switches)
        for noise in SCHEMES:
            for device in ("cuda", "cpu"):
                succeed(generate.main, "-cn=echo_edm", "sampling.seeds=0-1", f"sampling.device={device}",
                        f"sampling.noise={noise}", f"sampling.outdir=results/{noise}/{device}", "sampling.montage=0",
                        "sampling.nifti=false")
            gpu, cpu = (SamplesFile(f"results/{noise}/{device}/samples.h5").array("latents")
                        for device in ("cuda", "cpu"))
            np.testing.assert_allclose(gpu, cpu, atol=1e-2)
        succeed(generate.main, "-cn=echo_edm", "sampling.seeds=0-1", "sampling.device=cuda", "sampling.compile=true",
                f"sampling.noise={noise}", "sampling.outdir=results/compiled", "sampling.montage=0",
                "sampling.nifti=false")
        np.testing.assert_allclose(SamplesFile("results/compiled/samples.h5").array("latents"), gpu, atol=1e-2)


def test_counters_give_the_same_numbers_by_a_kernel_of_torch():
    assert has_kernels(torch.device("cuda"))
    for dtype in (torch.float32, torch.float64):
        gpu, cpu = (ImageGenerators([5, 2 ** 40, "7.draw1"], device=device, scheme=COUNTERS)
                    for device in ("cuda", "cpu"))
        for _ in range(2):
            assert torch.equal(gpu.rand((33,), dtype).cpu(), cpu.rand((33,), dtype))
            found, wanted = gpu.randn((4, 4099), dtype).cpu(), cpu.randn((4, 4099), dtype)
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)


class SmallLatents:
    """24 latents [2,8,8,8], mean and standard deviation, of two classes."""

    shape, facts = (2, 8, 8, 8), Facts("latents", "data")

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Sample:
        mean = np.random.default_rng(index).normal(size=(1, 8, 8, 8))
        label = np.eye(2, dtype=np.float32)[index % 2]
        return Sample(np.concatenate([mean, np.full_like(mean, 0.1)]).astype(np.float32),
                      condition=Condition(class_labels=label))


def latent_trainer(folder: Path, device: str, precision: str, batch_gpu: int | None, *, self_condition: bool = False,
                   **switches: bool) -> Trainer:
    """Diffusion on drawn latents, told their class, augmented, at stratified noise levels."""
    pipe = AugmentPipe(3, 0.5, fill=[0.0, 0.1])
    unet = ADMUNet(1, 1, spatial_dims=3, label_dim=2, model_channels=8, channel_mult=(1, 2), num_blocks=1,
                   attention_levels=(1,), channels_per_head=8, augment_dim=pipe.label_dim,
                   self_condition=self_condition)
    net = EDMPrecond(unet, label_dropout=0.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    task = diffusion_task(net, EDMLoss(strata=8), optimizer, DrawLatents([0.0], [1.0]), Snapshot(
        "diffusion", {}, SmallLatents.facts, (1, 8, 8, 8)), pipe)
    options = Options(batch_size=8, batch_gpu=batch_gpu, total_kimg=1, precision=precision, grad_clip=1.0,
                      **switches)
    return Trainer(task, SmallLatents(), options, run_dir=folder, device=torch.device(device), log=RunLog(False),
                   record=RunRecord({"training": {"options": {"seed": 0}}}, SmallLatents.facts))


@pytest.mark.parametrize(("precision", "batch_gpu"), [("fp32", 8), ("bf16", 4), ("fp16", 8)])
def test_the_host_waits_for_nothing_in_a_step(tmp_path, precision, batch_gpu):
    """torch raises an error where it would; what comes late is read from an event of its own."""
    trainer = latent_trainer(tmp_path, "cuda", precision, batch_gpu)
    data = trainer.batches()
    while not trainer.optimizers[0].state:  # until there are moments, it does wait
        trainer.step(data)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(4):
            trainer.step(data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.settle()
    assert trainer.progress.bad_steps == 0 and trainer.stats.means()["loss/diffusion"] > 0


def test_what_is_skipped_on_a_gpu_leaves_no_trace_in_a_state(tmp_path):
    before, one, three = (state_among(tmp_path / str(skipped), skipped, "cuda") for skipped in (0, 1, 3))
    assert before == one == three


@pytest.mark.parametrize(("precision", "more"), [("fp32", {}), ("fp16", {}), ("fp32", {"self_condition": True}),
                                                 ("fp32", {"checkpointing": True})])
def test_graphs_make_the_steps_that_are_made_without(tmp_path, precision, more):
    """Weights, their averages and gradients after six steps: as replayed, as compiled, and as written."""
    def after_steps(**switches: bool) -> tuple[list[torch.Tensor], ...]:
        torch.manual_seed(0)
        trainer = latent_trainer(tmp_path / "-".join(["run", *switches]), "cuda", precision, None, **more, **switches)
        trainer.progress.loss_scale = 128.0  # nothing overflows
        data = trainer.batches()
        for _ in range(6):
            trainer.step(data)
        trainer.settle()
        net = trainer.task.net
        assert trainer.progress.bad_steps == 0
        return [*net.parameters()], [*trainer.ema.parameters()], [p.grad.clone() for p in net.parameters()]

    written, compiled = after_steps(), after_steps(compile=True)
    replayed = after_steps(compile=True, graphs=True)
    for found, same, plain in zip(replayed, compiled, written, strict=True):
        torch.testing.assert_close(found, same, rtol=1e-3, atol=5e-4)  # six steps of Adam move a weight by 6e-3 at most
        torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-3)
