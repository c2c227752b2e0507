"""What is proposed, in words: two commented YAMLs, the commands that use them, and a summary."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import yaml

from edm3d.training.descent import FEW
from edm3d.training.patches import KEY
from edm3d.training.plan import StepPlan
from edm3d.training.plan_fit import GIB, gib
from edm3d.training.propose import (
    HEAD,
    MANY,
    STAGE,
    UNET,
    Chosen,
    Computer,
    Proposed,
    flops_of,
    propose,
    steps_of,
    this_machine,
)
from edm3d.utils import locks
from edm3d.utils.commands import command
from edm3d.utils.compose import config_folders
from edm3d.utils.files import check_dest, check_replaced, write_text
from edm3d.utils.names import printable

PROPOSED = "proposed by"  # at the top of a file
WIDTH = 120  # of a line
COMMENT_AT = 44  # column of comments, at most
STAGE_GROUPS = {"dataset": "volumes", "autoencoder": "kl", "augment": "none", "discriminator": "none",
                "loss": "autoencoder", "optimizer": "adam"}
UNET_GROUPS = {"dataset": "latents", "batch_transform": "latents", "network": "adm", "precond": "edm",
               "augment": "none", "loss": "edm_latents", "optimizer": "adam", "sampler": "edm_ode"}


class Setting(NamedTuple):
    """A key whose value goes into the YAML, and why it has that, '' where it needs no word."""

    key: str
    why: str = ""


class Files(NamedTuple):
    """Where the experiments and what they lead to lie. name: of the diffusion experiment."""

    name: str
    folder: Path
    latents: Path

    @property
    def stage(self) -> Path:
        """The YAML of the first stage."""
        return self.folder / f"{self.name}_vae.yaml"

    @property
    def diffusion(self) -> Path:
        """The YAML of the diffusion."""
        return self.folder / f"{self.name}.yaml"


def write(path: Path, dest: Path, memory: float | None = None, device: str | None = None,
          overwrite: bool = False) -> list[str]:
    """Write the experiments for a volumes file, and give what there is to say; dest: of the diffusion experiment.

    ValueError for other files that are there already, and for what fits nothing.
    """
    if dest.suffix != ".yaml" or not re.fullmatch(r"[\w-]+", dest.stem):
        raise ValueError(f"--dest {dest}: wanted a name of letters, digits, - and _ that ends in .yaml, as "
                         "configs/mine.yaml")
    files = Files(dest.stem, dest.parent, path.with_name(f"{dest.stem}_latents.h5"))
    with ExitStack() as stack:
        for place in (files.stage, files.diffusion):
            check_dest(place, ".yaml", {})
            stack.enter_context(locks.output(place))
            check_replaced(place, True, check_proposed)
        made = propose(path, files.latents, this_machine(memory, device))
        wanted = texts(made, files)
        if not overwrite and all(place.exists() and place.read_text(encoding="utf-8") == text
                                 for place, text in wanted.items()):
            there = [f"{files.stage}, {files.diffusion}: just so there already"]
        else:
            there = []
            for place in wanted:
                check_replaced(place, overwrite, check_proposed)
            for place, text in wanted.items():
                write_text(place, text)
    found = files.folder.resolve() in config_folders()
    return [*there, *summary(made, files, found)]


def check_proposed(path: Path) -> None:
    """ValueError for a YAML that does not say at its top that it was proposed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read ({e})") from e
    top = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    if PROPOSED not in top:
        raise ValueError(f"{path}: does not say that it was proposed")


def texts(made: Proposed, files: Files) -> dict[Path, str]:
    """The YAMLs by their paths."""
    patched = bool(made.stage.config["training"]["augment"])
    groups = STAGE_GROUPS | {"augment": "patches"} if patched else STAGE_GROUPS
    made.stage.config["sampling"]["outdir"] = f"results/{files.name}_vae"
    made.diffusion.config["sampling"]["outdir"] = f"results/{files.name}"
    return {files.stage: document(header(made, made.stage, f"First stage of {made.cohort.path}"), groups,
                                  made.stage.config, list(stage_settings(made))),
            files.diffusion: document(header(made, made.diffusion, f"EDM on the latents of {files.name}_vae"),
                                      UNET_GROUPS, made.diffusion.config, list(diffusion_settings(made)))}


# ---- why ----


def header(made: Proposed, chosen: Chosen, what: str) -> str:
    """What stands at the top of a file."""
    step, steps = chosen.step, steps_of(chosen.config)
    return (f"{what}, {PROPOSED} {command('data', 'propose')} for {machine_line(made)}, of which a tenth stays "
            f"free, and {cohort_line(made)}. Planned: "
            f"{step.parameters / 1e6:.2f} M parameters, {gib(step.peak)} at the peak of a step, {steps:,} steps of "
            f"{step.flops / 1e12:.3g} TFLOP: {flops_of(chosen.config, step) / 1e15:.3g} PFLOP.")


def cohort_line(made: Proposed) -> str:
    """The data in words."""
    cohort, facts = made.cohort, made.cohort.facts
    spacing = " x ".join(f"{s:.3g}" for s in cohort.spacing)
    classes = f", {len(facts.label_classes)} label classes" if facts.label_classes else ""
    classes += f", classes {', '.join(facts.class_names)}" if facts.class_names else ""
    return (f"{cohort.num} training volumes of {len(facts.channels)} x {cross(cohort.size)}, voxels of {spacing} mm"
            f"{classes}")


def machine_line(made: Proposed) -> str:
    """The machine in words."""
    machine = made.machine
    return f"{'a card' if machine.device == 'cuda' else 'a processor'} with {machine.gib:.3g} GiB"


def within(made: Proposed, step: StepPlan) -> str:
    """The peak of a step beside what there is."""
    return f"{gib(step.peak)} of {made.machine.room / GIB:.3g}"


def stage_settings(made: Proposed) -> Iterator[Setting]:
    """What the first stage sets, in the order of the file."""
    stage, scale = made.stage, made.machine.scale
    training, low = stage.config["training"], made.diffusion.source.shape
    yield Setting("training.task")
    yield Setting("training.dataset.path")
    if made.size:
        yield Setting("training.dataset.size", f"padded from {cross(made.cohort.size)}, so that the strides of both "
                      "networks divide it; encode and evaluate do the same")
    if not training["dataset"]["cache"]:
        yield Setting("training.dataset.cache", "all volumes would fill more than half of this machine's memory")
    yield Setting("training.network.latent_channels", "4 for one image channel, 8 for more")
    yield Setting(STAGE, f"{widest(scale.stage_widths)}: {within(made, stage.step)}")
    slices = " whose voxels are not far longer than the others" if any(made.cohort.slices) else ""
    yield Setting("training.network.strides", f"{cross(stage.source.shape[1:])} -> {cross(low[1:])}; two halvings, a "
                  f"third above {scale.positions} positions, of axes of {FEW} or more{slices}")
    if training["network"]["kernel_size"] != 3:
        yield Setting("training.network.kernel_size", "1 across slices, until voxels are more like cubes")
    yield Setting("training.network.num_blocks", "per level; 2 on a card, 1 on a processor")
    yield Setting("training.network.num_blocks_decoder")
    if training["augment"]:
        yield Setting(f"{KEY}.size", "crops: of whole volumes a step does not fit")
        yield Setting(f"{KEY}.flip", "left and right may mean something")
        yield Setting(f"{KEY}.intensity", "latents are to hold the intensities that there are")
    labels = "so that the image counts beside the label map" if made.cohort.facts.label_classes else ""
    yield Setting("training.loss.l1_weight", labels)
    yield Setting("training.loss.kl_reduction", "holds its meaning over sizes")
    yield Setting("training.loss.kl_weight", "the demo's 1e-6 per volume of 32^3")
    yield from run_settings(made, stage, "0.016 / width, 0.002 at most", "crops do fit, whole volumes to validate on "
                            f"do not: {command('evaluate', '--autoencoder', '--tile')} measures them")


def diffusion_settings(made: Proposed) -> Iterator[Setting]:
    """What the diffusion sets, in the order of the file."""
    chosen, scale, facts = made.diffusion, made.machine.scale, made.cohort.facts
    levels, model = chosen.levels, chosen.config["training"]["network"]["model"]
    yield Setting("training.task")
    yield Setting("training.dataset.path", "written by encode")
    if facts.class_names:
        yield Setting("training.network.label_dropout", "share of images without their class, so that guidance works")
        yield Setting("training.network.model.label_dim", f"classes {', '.join(facts.class_names)}")
    yield Setting(UNET, f"{widest(scale.unet_widths)}: {within(made, chosen.step)}")
    sizes = sizes_down(chosen.source.shape[1:], levels.strides)
    yield Setting("training.network.model.channel_mult", f"levels of {', '.join(map(cross, sizes))}")
    yield Setting("training.network.model.strides")
    if model["kernel_size"] != 3:
        yield Setting("training.network.model.kernel_size", "1 across slices, until voxels are more like cubes")
    yield Setting("training.network.model.num_blocks", "per level; 2 on a card, 1 on a processor")
    yield Setting("training.network.model.attention_levels", f"those of {scale.attended} positions or fewer; the "
                  "lowest always does once")
    yield Setting("training.network.model.channels_per_head", f"{HEAD}, or the width of the first level")
    yield Setting("training.network.model.dropout", f"0.1 below {MANY} training volumes, against learning by heart")
    yield from run_settings(made, chosen, "0.064 / width", "")
    decode = made.decode
    yield Setting("sampling.batch_size", f"decoding {decode.batch} takes {gib(decode.peak)}")
    if decode.tile:
        yield Setting("sampling.tile", "a whole volume does not fit")


def run_settings(made: Proposed, chosen: Chosen, lr: str, unfit: str) -> Iterator[Setting]:
    """What both say of optimiser, validation and the run; unfit: why nothing is validated where some are held out."""
    training, steps = chosen.config["training"], steps_of(chosen.config)
    options, validation = training["options"], training["validation"]
    yield Setting("training.optimizer.lr", lr)
    yield Setting("training.optimizer.betas")
    if not validation["max_items"]:
        yield Setting("training.validation.max_items", unfit if made.cohort.held else "there is no split val")
    yield Setting("training.validation.preview_ticks", "pictures of held-out volumes" if validation["preview_ticks"]
                  else "as nothing is validated")
    epochs = options["total_kimg"] * 1000 / made.cohort.num
    yield Setting("training.options.batch_size", "images per step")
    if options["batch_gpu"]:
        yield Setting("training.options.batch_gpu", "at a time: more do not fit")
    yield Setting("training.options.total_kimg", f"{steps:,} steps, {epochs:,.0f} times through the "
                  f"{made.cohort.num} training volumes")
    yield Setting("training.options.kimg_per_tick", "40 lines in the log")
    yield Setting("training.options.lr_rampup_kimg", "a twentieth")
    yield Setting("training.options.lr_schedule")
    yield Setting("training.options.ema_halflife_kimg", "a thirtieth")
    yield Setting("training.options.precision", precision_reason(made.machine, options["precision"]))
    if options["checkpointing"]:
        yield Setting("training.options.checkpointing", "without it a step does not fit; it takes a third longer")
    yield Setting("sampling.outdir")


def precision_reason(machine: Computer, precision: str) -> str:
    """Why in this number format."""
    there = "card" if machine.device == "cuda" else "processor"
    if precision != machine.precision:
        return "half the memory, without which a step does not fit"
    return f"half the memory, and a {there} multiplies it fast" if precision == "bf16" else \
        f"this {there} multiplies bf16 no faster"


def widest(widths: Sequence[int]) -> str:
    """How a width was chosen."""
    return f"of {', '.join(map(str, widths))} the widest that fits, in memory and in time"


def sizes_down(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Sizes of the levels."""
    sizes = [tuple(size)]
    for stride in strides:
        sizes.append(tuple(n // s for n, s in zip(sizes[-1], stride, strict=True)))
    return sizes


def cross(size: Sequence[int]) -> str:
    """A size as people write it."""
    return "x".join(map(str, size))


# ---- YAML ----


def document(title: str, groups: dict[str, str], config: dict, settings: Sequence[Setting]) -> str:
    """The YAML of an experiment: groups, and the keys of the settings with their values and comments."""
    lines = [*comment(title, ""), "defaults:", "  - experiment_schema",
             *(f"  - {group}: {choice}" for group, choice in groups.items()), "  - _self_", ""]
    rows, before = [], []
    for key, why in ((key, " ".join(printable(why).split())) for key, why in settings):
        *path, last = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(path, before)) if a != b), min(len(path), len(before)))
        rows += [("  " * depth + f"{part}:", "") for depth, part in enumerate(path) if depth >= shared]
        rows.append(("  " * len(path) + f"{last}: {plain(value_at(config, key))}", why))
        before = path
    column = min(max(len(text) for text, why in rows if why), COMMENT_AT) + 2
    for text, why in rows:
        line = f"{text:<{column}}# {why}" if len(text) + 2 <= column else f"{text}  # {why}"
        indent = " " * (len(text) - len(text.lstrip()))
        lines += [text] if not why else [line] if len(line) <= WIDTH else [*comment(why, indent), text]
    return "\n".join(lines) + "\n"


def comment(text: str, indent: str) -> list[str]:
    """A comment in lines of WIDTH."""
    lines, words = [], printable(text).split()
    while words:
        line = f"{indent}#"
        while words and (len(line) + 1 + len(words[0]) <= WIDTH or line == f"{indent}#"):
            line += f" {words.pop(0)}"
        lines.append(line)
    return lines


def plain(value: object) -> str:
    """A value as YAML, in one line; ValueError for text that a configuration would fill something into."""
    if "${" in str(value):
        raise ValueError(f"{value}: holds ${{, which means something in a configuration; rename the file")
    return yaml.safe_dump(value, default_flow_style=True, width=10 ** 6, allow_unicode=True).removesuffix(
        "\n").removesuffix("\n...")


def value_at(config: dict, key: str) -> object:
    """The value of a key of a plain config."""
    for part in key.split("."):
        config = config[part]
    return config


# ---- what to do next ----


def commands(made: Proposed, files: Files, found: bool) -> list[str]:
    """The commands from here to a report; found: whether the files lie where experiments are looked for."""
    cohort, encode = made.cohort, made.encode
    where = [] if found else ["--config-dir", str(files.folder)]
    tile = ["--tile", *map(str, encode.tile)] if encode.tile else []
    batch = ["--batch-size", str(encode.batch)] if encode.batch != 8 else []
    name, results = files.name, f"results/{files.name}"
    return [command("train", *where, f"-cn={name}_vae"),
            command("data", "encode", "--autoencoder", f"{name}_vae", "--source", str(cohort.path), "--dest",
                    str(files.latents), *batch, *tile),
            command("train", *where, f"-cn={name}"),
            command("generate", *where, f"-cn={name}", "sampling.seeds=0-63"),
            command("evaluate", "--real", str(cohort.path), "--generated", f"{results}/samples.h5", "--dest", results)]


def summary(made: Proposed, files: Files, found: bool) -> Iterator[str]:
    """What is said at the end."""
    yield f"{made.cohort.path}: {cohort_line(made)}"
    yield f"Planned for {machine_line(made)}, of which a tenth stays free"
    low = made.diffusion.source.shape
    padded = f", padded to {cross(made.size)}" if made.size else ""
    for path, chosen, what in ((files.stage, made.stage, f"{cross(made.cohort.size)}{padded} -> {low[0]} x "
                                f"{cross(low[1:])}, channels {value_at(made.stage.config, STAGE)}"),
                               (files.diffusion, made.diffusion, f"width {value_at(made.diffusion.config, UNET)}")):
        step = chosen.step
        yield (f"{path}: {what}, {step.parameters / 1e6:.2f} M parameters, {gib(step.peak)}, "
               f"{steps_of(chosen.config):,} steps, {flops_of(chosen.config, step) / 1e15:.3g} PFLOP")
    yield "Next:"
    yield from (f"  {line}" for line in commands(made, files, found))
