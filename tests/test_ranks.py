"""Networks as they are trained in earnest, small: one rank against two, and a first stage with its adversary at three.
"""

import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import generate
import train
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.utils.log import read_status
from edm3d.utils.runs import list_files
from tests.commands import succeed
from tests.toy import learned

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ["training.dataset.path=echo.h5", "training.options.batch_size=6", "training.options.total_kimg=0.12",
           "training.options.kimg_per_tick=0.024", "training.options.state_ticks=1", "training.options.keep_states=9",
           "training.options.lr_rampup_kimg=0", "training.options.lr_schedule=constant",
           "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
           "training.validation.max_items=2", "training.validation.preview_ticks=null"]
UNET = ["-cn=echo_edm", "dataset=volumes", "batch_transform=voxels", "training.network.model.model_channels=8",
        "training.network.model.channel_mult=[1,2]", "training.network.model.attention_levels=[1]",
        "training.network.model.channels_per_head=8", "training.network.model.dropout=0", *OPTIONS]
VAE = ["-cn=echo_vae", "training.network.channels=[4,8]", *OPTIONS]
ADVERSARY = ["discriminator=patch", "training.discriminator.network.num_layers_d=1",
             "training.discriminator.network.channels=4", "training.discriminator.start_kimg=0.036"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Work in a folder with labelled volumes."""
    with chdir(tmp_path_factory.mktemp("ranks")):
        succeed(dataset_tool.main, "phantom", "--dest", "echo.h5", "--num", "30", "--size", "16")
        yield


def run(ranks: int, root: str, *arguments: str) -> Path:
    """Train by so many ranks, in a folder for runs; the run folder."""
    arguments = (*arguments, f"training.options.run_root={root}")
    if ranks == 1:
        succeed(train.main, *arguments)
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run([*start, str(ROOT / "train.py"), *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return next(Path(root).glob("0*"))


def last_state(run_dir: Path) -> TrainingState:
    """The last training state of a run."""
    return TrainingState.read(list_files(run_dir, "training-state")[-1])


def apart(one: dict, two: dict) -> float:
    """Norm of the difference of two sets of weights, relative to that of the weights."""
    norm = lambda tensors: torch.stack([t.double().norm() for t in tensors]).norm()  # noqa: E731
    return float(norm(one[k] - two[k] for k in one) / norm(one.values()))


@pytest.mark.parametrize("experiment", [UNET, VAE, [*VAE, *ADVERSARY]], ids=["unet", "autoencoder", "adversary"])
def test_two_ranks_end_in_the_weights_of_one(at, request, experiment):
    name = request.node.callspec.id
    one, two = (last_state(run(ranks, f"{name}-{ranks}", *experiment)) for ranks in (1, 2))
    assert one.progress["nimg"] == two.progress["nimg"] == 120 and two.environment["ranks"] == 2
    found = {part: apart(weights, two.modules[part]) for part, weights in one.modules.items()}
    assert max(*found.values(), apart(one.ema, two.ema)) < 1e-5, found


def test_networks_of_one_and_two_ranks_draw_the_same_volumes(at):
    drawn = []
    for ranks in (1, 2):
        run_dir = next(Path(f"unet-{ranks}").glob("0*"), None) or run(ranks, f"unet-{ranks}", *UNET)
        succeed(generate.main, "-cn=echo_edm", f"sampling.network={run_dir}", "sampling.seeds=0-3",
                f"sampling.outdir=drawn-{ranks}", "sampling.num_threads=1", "sampling.device=cpu",
                "sampling.montage=0", "sampling.nifti=false")
        drawn.append(SamplesFile(f"drawn-{ranks}/samples.h5").array("images"))
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-4)
    assert drawn[0].std() > 0.05  # and not for being clipped to one value


def test_first_stage_and_adversary_resume_bit_for_bit_at_three_ranks(at):
    """Stopped in the middle of a tick, before the adversary sets in and after it."""
    experiment = [*VAE, *ADVERSARY, "training.options.total_kimg=0.18"]
    whole = last_state(run(3, "three", *experiment))
    again = [*experiment, "training.options.resume=latest"]
    for kimg, nimg in ((0.024, 30), (0.096, 102)):
        run_dir = run(3, "broken", *again, f"training.options.total_kimg={kimg}")
        (run_dir / "STOP").touch()  # is obeyed after a step
        run(3, "broken", *again)
        assert read_status(run_dir)["nimg"] == last_state(run_dir).progress["nimg"] == nimg
    broken = last_state(run(3, "broken", *again))
    assert set(broken.modules) == {"autoencoder", "discriminator"}
    assert learned(broken) == learned(whole)
