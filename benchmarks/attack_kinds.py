"""The kinds of files that are attacked: where a good one lies, what carries a checksum, and which commands read it."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

import edm3d
from benchmarks.attack_watch import Command
from benchmarks.attack_world import ALONE, EVALUATE, GENERATE, LATENT_RUN, TOOL, TRAIN, VOXEL_RUN, call
from edm3d.formats.latents import LatentsFile
from edm3d.formats.samples import SamplesFile
from edm3d.formats.training_state import TrainingState
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.snapshot import Snapshot
from edm3d.utils.files import TEMPORARY


class Target(NamedTuple):
    """path: of a good file in the world; twin: another good one. checked: whether it carries a checksum.

    names: what a message may call it besides its own name.
    """

    name: str
    path: str
    twin: str
    commands: tuple[Command, ...]
    checked: bool = True
    names: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Kinds of one family may stand in for each other: that is no damage."""
        word = self.name.split()[0]
        return {"label": "image", "decoded": "image", "autoencoder": "snapshot"}.get(word, word)

    @property
    def said_as(self) -> tuple[str, ...]:
        """What a message may call it."""
        return (Path(self.path).name, *self.names)


# ---- what commands give ----


def samples_in(path: str = "out/samples.h5") -> object:
    """All numbers of a samples file."""
    file = SamplesFile(path)
    return [file.seeds, file.affine, {name: file.array(name) for name in file.names}]


def latents_in(path: str) -> object:
    """All numbers of a latents file, but those of how it was made."""
    file = LatentsFile(Path(path))
    return [file.facts.latents.statistics, file.first_stage_hash, {s: file.read(s)._asdict() for s in file.splits}]


def volumes_in(path: str) -> object:
    """All numbers and names of a volumes file."""
    file = VolumesFile(path)
    return [repr(file.meta), {s: [item._asdict() for item in (file.read(s, i) for i in range(file.length(s)))]
                              for s in file.splits}]


def niftis_in(folder: str) -> object:
    """All NIfTI below a folder, but files that were never finished."""
    files = sorted(path for path in Path(folder).rglob("*.nii.gz") if not TEMPORARY.match(path.name))
    found = {str(path.relative_to(folder)): nibabel.load(path) for path in files}
    return {name: [np.asarray(image.dataobj), image.affine] for name, image in found.items()}


def state_in(root: str = "out") -> object:
    """What the last training state below a folder has learned."""
    state = TrainingState.read(max(Path(root).rglob("training-state-*.pt"), key=lambda p: p.stat().st_mtime_ns))
    return [state.modules, state.ema, state.nimg]


def report_in(folder: str = "out") -> object:
    """The numbers of a report."""
    report = json.loads(Path(folder, "report.json").read_text())
    return {name: report.get(name) for name in ("metrics", "shares", "decoded", "noise", "round_trip")}


def snapshot_in(path: str) -> object:
    """Network, weights and facts of a snapshot."""
    found = Snapshot.read(Path(path))
    return [found.network, found.weights, found.facts.plain(), found.shape]


def published_in(folder: str) -> object:
    """Everything in a published network."""
    return [json.loads(Path(folder, "config.json").read_text())["checksum"], snapshot_in(folder)]


# ---- commands ----


def command(name: str, run: Callable[[], None], read: Callable[[], object] = lambda: None, *more_writes: str
            ) -> Command:
    """A command, and what is compared of its result."""
    def both() -> object:
        run()
        return read()

    return Command(name, both, ("out", *more_writes))


def tool(name: str, *words: str, read: Callable[[], object] = lambda: None, writes: tuple[str, ...] = ()) -> Command:
    """A command of dataset_tool.py; name: what it is called here, without its number the command itself."""
    return command(name, partial(call, TOOL, name.split(":")[0], *words), read, *writes)


def info(path: str) -> Command:
    return tool("info", path)


def check(path: str) -> Command:
    """What it prints is what it gives."""
    return tool("check", path, read=lambda: Path("../said/check.1").read_text())


def train(name: str, run: list[str], *words: str, root: str = "out") -> Command:
    """Train, or go on; what was learned."""
    return command(name, partial(call, TRAIN, *run, f"training.options.run_root={root}", *words),
                   partial(state_in, root), root)


def generate(name: str, *words: str, outdir: str = "out") -> Command:
    """Draw two seeds."""
    return command(name, partial(call, GENERATE, *LATENT_RUN, f"sampling.outdir={outdir}", *words),
                   partial(samples_in, f"{outdir}/samples.h5"))


def load(path: str) -> Command:
    """edm3d.load and a sample, or what it is."""
    def run() -> object:
        try:
            model = edm3d.load(path, device="cpu")
            return dict(model.net.state_dict())
        except (ValueError, OSError) as error:  # what a program in Python would see
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1) from error

    return Command("edm3d.load", run)


def decode(*words: str) -> Command:
    return tool("decode", "--dest", "out/d.h5", "--montage", "0", *ALONE, *words, read=partial(volumes_in, "out/d.h5"))


def encode(*words: str) -> Command:
    return tool("encode", "--dest", "out/l.h5", "--round-trip", "1", *ALONE, *words,
                read=partial(latents_in, "out/l.h5"))


def prepare(*words: str) -> Command:
    return tool("prepare", "--dest", "out/p.h5", *words, read=partial(volumes_in, "out/p.h5"))


def evaluate(*words: str) -> Command:
    return command("evaluate", partial(call, EVALUATE, "--dest", "out", "--run-root", "out/results", *words), report_in)


def publish(path: str) -> Command:
    return tool("publish", path, "--dest", "out/pub", "--licence", "other", read=partial(published_in, "out/pub"))


def export(path: str) -> Command:
    return tool("export", path, "--format", "nifti", "--dest", "out", read=partial(niftis_in, "out"))


def plan(*words: str) -> Command:
    return tool("plan", *words, read=lambda: Path("../said/plan.1").read_text())


# ---- the registry ----


RUN = "{}-runs/00000-echo_edm"
MORE = ("training.options.total_kimg=0.016",)
VOLUMES = ("--source", "vols.h5")
REAL = ("--real", "vols.h5", "--num-noise", "4", "--snapshot", "latent.pt")
KEYS = ("training.", "sampling.")  # what a configuration may be called by
PART = "lat3.h5.parts/*/0000000002.npz"


def network_kinds() -> list[Target]:
    """Snapshots, states and what is published."""
    start = [train("train init_from", VOXEL_RUN, "training.options.init_from=voxel.pt")]
    latent_start = train("train init_from", LATENT_RUN, "training.options.init_from=published")
    published = (generate("generate", "sampling.network=published"), load("published"), latent_start)
    return [
        Target("snapshot of voxels", "voxel.pt", "voxel2.pt", (
            info("voxel.pt"), generate("generate", "sampling.network=voxel.pt"), *start, load("voxel.pt"),
            publish("voxel.pt"))),
        Target("snapshot with first stage", "latent.pt", "latent2.pt", (
            info("latent.pt"), generate("generate", "sampling.network=latent.pt"), load("latent.pt"),
            decode("--latents", "samples.h5", "--network", "latent.pt"), publish("latent.pt"),
            evaluate("--generated", "samples.h5", *REAL))),
        Target("autoencoder", "stage.pt", "stage2.pt", (
            info("stage.pt"), encode("--autoencoder", "stage.pt", *VOLUMES), load("stage.pt"),
            decode("--latents", "lat.h5", "--autoencoder", "stage.pt"),
            evaluate("--real", "vols.h5", "--autoencoder", "stage.pt", "--num", "2", "--min-psnr", "0"))),
        Target("training state", "voxel-state.pt", "voxel-state2.pt", (
            info("voxel-state.pt"), train("train resume", VOXEL_RUN, *MORE, "training.options.resume=voxel-state.pt"))),
        *(Target(f"published {name}", f"published/{name}", twin, published, names=("published",))
          for name, twin in (("config.json", "published/preprocessing.json"),
                             ("model.safetensors", "published/first_stage.safetensors"),
                             ("first_stage.safetensors", "published/model.safetensors"))),
        Target("official pickle", "official.pkl", "official2.pkl", (
            tool("import-edm", "official.pkl", "--dest", "out/s.pt", read=partial(snapshot_in, "out/s.pt")),),
            checked=False)]


def data_kinds() -> list[Target]:
    """Volumes, latents and samples."""
    sample_commands = {kind: (
        check(f"samples.{kind}"), info(f"samples.{kind}"), evaluate("--generated", f"samples.{kind}", *REAL),
        export(f"samples.{kind}"), decode("--latents", f"samples.{kind}", "--network", "latent.pt"),
        command("generate more", partial(call, GENERATE, *LATENT_RUN, "sampling.network=latent.pt",
                                         f"sampling.outdir=drawn-{kind}", f"sampling.format={kind}",
                                         "sampling.seeds=0-2"),
                partial(samples_in, f"drawn-{kind}/samples.{kind}"), f"drawn-{kind}"))
        for kind in ("h5", "npz")}
    return [
        Target("volumes", "vols.h5", "vols2.h5", (
            check("vols.h5"), info("vols.h5"), train("train", VOXEL_RUN), export("vols.h5"),
            encode("--autoencoder", "stage.pt", *VOLUMES), plan(*VOXEL_RUN),
            evaluate("--generated", "samples.h5", *REAL))),
        Target("latents", "lat.h5", "lat2.h5", (
            check("lat.h5"), info("lat.h5"), train("train", LATENT_RUN), decode("--latents", "lat.h5"),
            plan(*LATENT_RUN))),
        *(Target(f"samples {kind}", f"samples.{kind}", f"samples2.{kind}", sample_commands[kind][:-1])
          for kind in ("h5", "npz")),
        *(Target(f"samples {kind} to add to", f"drawn-{kind}/samples.{kind}", f"samples2.{kind}",
               sample_commands[kind][-1:]) for kind in ("h5", "npz"))]


def folder_kinds() -> list[Target]:
    """What lies in folders of unfinished or finished work."""
    again = tool("decode", "--latents", "samples.h5", "--dest", "decoded", "--montage", "0", *ALONE,
                 read=partial(niftis_in, "decoded"), writes=("decoded",))
    parts = tool("encode", "--autoencoder", "stage.pt", *VOLUMES, "--dest", "lat3.h5", *ALONE,
                 read=partial(latents_in, "lat3.h5"), writes=("lat3.h5", ".lock-lat3.h5"))
    by_name = command("generate by name", partial(call, GENERATE, *LATENT_RUN, "sampling.outdir=out",
                                                  "training.options.run_root=latent-runs"), samples_in)
    runs = (train("train resume", LATENT_RUN, *MORE, "training.options.resume=latest", root="latent-runs"), by_name)
    python = Command("edm3d.train", lambda: _train_again(RUN.format("latent") + "/config.yaml"), ("out", "latent-runs"))
    return [
        Target("decode.json", "decoded/decode.json", "decoded2/decode.json", (again,), names=("decoded",)),
        Target("decoded image", "decoded/images/seed000001.nii.gz", "decoded2/images/seed000002.nii.gz", (again,),
             names=("decoded",)),
        Target("part", PART, "lat3.h5.parts/*/0000000003.npz", (parts,), names=("lat3.h5",)),
        Target("status.json", RUN.format("latent") + "/status.json", RUN.format("voxel") + "/status.json", runs, False),
        Target("config.yaml", RUN.format("latent") + "/config.yaml", RUN.format("voxel") + "/config.yaml",
             (*runs, python), False, names=KEYS),
        Target("stats.jsonl", RUN.format("latent") + "/stats.jsonl", RUN.format("voxel") + "/stats.jsonl", runs, False),
        Target("training state in its run", RUN.format("latent") + "/training-state-000000.008.pt", "latent-state2.pt",
             runs[:1]),
        Target("experiment", "conf/mine.yaml", RUN.format("voxel") + "/config.yaml", (
            command("train", partial(call, TRAIN, "--config-dir", "conf", "-cn=mine",
                                     "training.options.run_root=out"), state_in),
            plan("--config-dir", "conf", "-cn=mine")), False, names=("mine", "experiment_schema", *KEYS))]


def _train_again(path: str) -> object:
    try:
        edm3d.train(path, "training.options.run_root=out")
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    return state_in()


def cohort_kinds() -> list[Target]:
    """What users bring."""
    gz = ("--images", "gz/images", "--labels", "gz/labels", "--table", "gz/table.csv")
    task = (prepare("--decathlon", "task"),)
    nii, npy, npz = (("--images", f"{name}/images") for name in ("nii", "npy", "npz"))
    both = (*npz, "--labels", "npz/labels")

    def kind(name: str, path: str, number: int, commands: tuple[Command, ...], checked: bool) -> Target:
        return Target(name, path.format(number), path.format(number + 1), (
            info(path.format(number)), check(str(Path(path).parent)), *commands), checked)

    return [
        kind("image .nii.gz", "gz/images/case{}.nii.gz", 1, (prepare(*gz),), True),
        kind("label .nii.gz", "gz/labels/case{}.nii.gz", 1, (prepare(*gz),), True),
        kind("image .nii", "nii/images/case{}.nii", 1, (prepare(*nii),), False),
        kind("image .npy", "npy/images/case{}.npy", 1, (prepare(*npy),), False),
        kind("image .npz", "npz/images/case{}.npz", 1, (prepare(*npz),), True),
        kind("label .npz", "npz/labels/case{}.npz", 1, (prepare(*both),), True),
        Target("table", "gz/table.csv", "task/dataset.json", (prepare(*gz),), False),
        Target("dataset.json", "task/dataset.json", "decoded/decode.json", task, False),
        Target("image of a task", "task/imagesTr/case2.nii.gz", "task/imagesTr/case3.nii.gz", task)]


def all_kinds() -> list[Target]:
    """Every kind that is attacked."""
    return [*network_kinds(), *data_kinds(), *folder_kinds(), *cohort_kinds()]
