"""What only a CUDA device can show: python -m pytest -m gpu."""

from contextlib import chdir

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import generate
import train
from edm3d.formats.samples import SamplesFile

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
                                      ["training.options.compile=true"], ["training.options.precision=fp16"]])
def test_road_on_a_gpu(tmp_path, switches):
    """The road trains on CUDA with each switch, and draws on CUDA what the CPU draws from the same weights."""
    with chdir(tmp_path):
        succeed(dataset_tool.main, "phantom", "--dest", "data/echo.h5", "--num", "20", "--size", "16")
        succeed(train.main, *VAE, *switches)
        succeed(dataset_tool.main, "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
                "data/echo_latents.h5")
        succeed(train.main, *EDM, *switches)
        for device in ("cuda", "cpu"):
            succeed(generate.main, "-cn=echo_edm", "sampling.seeds=0-1", f"sampling.device={device}",
                    f"sampling.outdir=results/{device}", "sampling.montage=0", "sampling.nifti=false")
        gpu, cpu = (SamplesFile(f"results/{device}/samples.h5").array("latents") for device in ("cuda", "cpu"))
        np.testing.assert_allclose(gpu, cpu, atol=1e-2)
