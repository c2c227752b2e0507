"""Good files of every kind that a command reads, small, made once by the commands themselves: what is attacked."""

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import nibabel
import numpy as np
import torch

import dataset_tool
import evaluate
import generate
import train
from edm3d.formats.nifti import write_nifti
from edm3d.inference.parts import Parts
from edm3d.networks.edm_import import edm_network_node
from edm3d.utils.config import build
from tests.test_edm_pickle import official_file
from tests.test_encode import TINY, write_snapshot, write_volumes
from tests.test_import_edm import CONFIG

LATENT_RUN = [*TINY, "training.dataset.path=lat.h5", "training.validation.preview_ticks=null"]
VOXEL_RUN = [*LATENT_RUN[:-2], "dataset=volumes", "batch_transform=voxels", "training.dataset.path=vols.h5",
             "training.validation.preview_ticks=null"]
ALONE = ["--num-threads", "1"]
TOOL, TRAIN, GENERATE, EVALUATE = dataset_tool.main, train.main, generate.main, evaluate.main
CASES = 5  # of the cohort that is prepared
TABLE = "id,group,class,age [y],split\n" + "".join(
    f"case{n},patient{n},{'ES' if n % 2 else 'ED'},{40 + n},{'val' if n == 4 else 'train'}\n" for n in range(CASES))
EXPERIMENT = """defaults:
  - experiment_schema
  - dataset: volumes
  - batch_transform: voxels
  - network: adm
  - precond: edm
  - augment: none
  - loss: edm
  - optimizer: adam
  - sampler: edm_ode
  - _self_

training:
  task: diffusion
  dataset:
    path: vols.h5
  network:
    model: {model_channels: 4, channel_mult: [1], num_blocks: 1, attention_levels: []}
  validation:
    max_items: 0
  options: {batch_size: 4, total_kimg: 0.008, kimg_per_tick: 0.008, num_threads: 1, device: cpu, precision: fp32}
sampling:
  outdir: results/mine
"""


def call(command: Callable, *words: object) -> None:
    """Run a command of ours as from a shell; SystemExit where it does not end by 0.

    color: as on a terminal, click takes no escapes out of what is printed.
    """
    try:
        command.main([*map(str, words)], prog_name=command.name, color=True)
    except SystemExit as end:
        if end.code:
            raise


def make_world(folder: Path) -> None:
    """Fill a folder with good files, and further ones to splice them with."""
    folder.mkdir(parents=True)
    with chdir(folder):
        for number, (volumes, stage, latents) in enumerate([("vols.h5", "stage.pt", "lat.h5"),
                                                            ("vols2.h5", "stage2.pt", "lat2.h5")]):
            write_volumes(Path(volumes), seed=number)
            write_snapshot(Path(stage), Path(volumes), seed=number)
            call(TOOL, "encode", "--autoencoder", stage, "--source", volumes, "--dest", latents, *ALONE)
        make_runs()
        for seed, end in enumerate(("", "2")):
            for kind in ("h5", "npz"):
                draw("latent.pt", f"drawn-{kind}{end}", f"sampling.format={kind}", f"sampling.seeds={seed}-{seed + 1}")
                Path(f"samples{end}.{kind}").write_bytes(Path(f"drawn-{kind}{end}/samples.{kind}").read_bytes())
        call(TOOL, "publish", "latent.pt", "--dest", "published", "--licence", "other")
        for end in ("", "2"):
            call(TOOL, "decode", "--latents", f"samples{end}.h5", "--dest", f"decoded{end}", *ALONE)
        make_parts()
        make_cohorts()
        make_pickle()
        Path("conf").mkdir()
        Path("conf/mine.yaml").write_text(EXPERIMENT)


def draw(network: str, outdir: str, *more: str) -> None:
    """Samples of two seeds."""
    call(GENERATE, *LATENT_RUN, f"sampling.network={network}", f"sampling.outdir={outdir}", *more)


def make_runs() -> None:
    """Run folders of two seeds each, on latents and on voxels, and what they leave under short names."""
    for name, words in (("latent", LATENT_RUN), ("voxel", VOXEL_RUN)):
        for number, end in enumerate(("", "2")):
            call(TRAIN, *words, f"training.options.run_root={name}-runs{end}", f"training.options.seed={number}")
            for kind, short in (("network-snapshot", f"{name}{end}.pt"), ("training-state", f"{name}-state{end}.pt")):
                found, = Path(f"{name}-runs{end}").glob(f"*/{kind}-*.pt")
                Path(short).write_bytes(found.read_bytes())


def make_parts() -> None:
    """Parts that an encoding left behind when it was stopped."""
    remove, Parts.remove = Parts.remove, lambda parts: None
    try:
        call(TOOL, "encode", "--autoencoder", "stage.pt", "--source", "vols.h5", "--dest", "lat3.h5", *ALONE)
    finally:
        Parts.remove = remove
    Path("lat3.h5").unlink()


def make_cohorts() -> None:
    """Folders of images and label maps of every format, a table, and a task of the Medical Decathlon."""
    random = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    for n in range(CASES):
        image = random.random((6, 5, 4), np.float32)
        label = (image > 0.5).astype(np.uint8)
        for folder in ("gz", "task"):
            end = "Tr" if folder == "task" else ""
            for name, array in (("images", image), ("labels", label)):
                write_nifti(Path(folder, f"{name}{end}", f"case{n}.nii.gz"), array, affine)
        for folder in ("nii/images", "npy/images", "npz/images", "npz/labels"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(image, affine), f"nii/images/case{n}.nii")
        np.save(f"npy/images/case{n}.npy", image)
        np.savez(f"npz/images/case{n}.npz", image=image)
        np.savez_compressed(f"npz/labels/case{n}.npz", label=label)
    Path("gz/table.csv").write_text(TABLE)
    Path("task/dataset.json").write_text(json.dumps({
        "name": "Toy", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "target"}, "test": [], "training": [
            {"image": f"./imagesTr/case{n}.nii.gz", "label": f"./labelsTr/case{n}.nii.gz"} for n in range(CASES)]}))


def make_pickle() -> None:
    """An official EDM network."""
    for number, end in enumerate(("", "2")):
        torch.manual_seed(number)
        weights = build(edm_network_node(CONFIG)).state_dict()
        named = {key.replace("level0", "8x8").replace("level1", "4x4"): weight for key, weight in weights.items()}
        official_file(Path(f"official{end}.pkl"), CONFIG, named)
