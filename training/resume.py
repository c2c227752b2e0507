"""What a run goes on from: which training state that is, whether it fits, and what has changed around it."""

import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.training_state import TrainingState
from edm3d.samplers.noise import GENERATORS, SCHEMES, scheme_on
from edm3d.utils.checks import check_choice, listed
from edm3d.utils.config import differences, in_short, read_yaml
from edm3d.utils.config_hash import config_hash, hashed_part
from edm3d.utils.log import read_status
from edm3d.utils.runs import attempt, find_file, launch, list_files, odd_runs, runs_of, without_status
from edm3d.utils.schema import Options

KEY = "training.options.resume"
NOTES = 3    # runs that were passed over: so many are named
# what states of before, which do not say so, were made under
LATER = {"tf32": False, "cudnn_benchmark": False, "graphs": False, "noise": GENERATORS}


class RunRecord(NamedTuple):
    """What states and snapshots say of a run: its whole config, and what is known of its data."""

    config: dict
    facts: Facts


class Start(NamedTuple):
    """The training state to go on from (None: from nothing), and what to say of the choice."""

    state: Path | None
    notes: list[str]


def choose_start(options: Options, experiment: str, training: dict) -> Start:
    """The training state that `resume` means; after torchrun's own restart, that of the run that broke off."""
    root, restarted = Path(options.run_root), attempt() > 0
    if restarted and (state := broken_off(root, experiment, training)):
        return Start(state, ["Restarted by torchrun"])
    if options.resume is None:
        return Start(None, ["Restarted by torchrun, but there is no training state yet: starting fresh"] * restarted)
    if meant := {"true": "latest", "false": "null"}.get(options.resume.lower()):
        raise ValueError(f"{KEY}={options.resume}: wanted latest, a training-state file or a run folder; did you mean "
                         f"'{meant}'?")
    if options.resume == "latest":
        return latest(root, experiment, training)
    return Start(find_file(options.resume, "training-state", root, KEY), [])


def is_newest(state: Path) -> bool:
    """Whether a training state is the last of a run folder: an older or loose one is continued in a new folder."""
    return (state.parent / "status.json").is_file() and list_files(state.parent, "training-state")[-1:] == [state]


def overtaken(state: Path) -> bool:
    """Whether the newest snapshot beside a training state is of later weights: newer states are gone."""
    newest, = list_files(state.parent, "network-snapshot")[-1:] or [state]
    return float(newest.stem.rpartition("-")[2]) > float(state.stem.rpartition("-")[2])


def broken_off(root: Path, experiment: str, training: dict) -> Path | None:
    """The newest training state of the run that this launch of torchrun was at; None when it left none."""
    for folder in runs_of(root, experiment):
        status = read_status(folder)
        if status.get("launch") == launch() and status.get("config_hash") == config_hash(training):
            return next(reversed(list_files(folder, "training-state")), None)
    return None


def latest(root: Path, experiment: str, training: dict) -> Start:
    """The newest state of the newest run of this configuration, and why newer runs were passed over.

    ValueError for a run with states whose status.json does not say of which configuration it is.
    """
    passed = [f"Note: {what}; it is another run's" for what in odd_runs(root, experiment)[:NOTES]]
    for folder in runs_of(root, experiment):
        states = list_files(folder, "training-state")
        said = read_status(folder).get("config_hash")
        same = said == config_hash(training)
        if same and states:
            return Start(states[-1], passed[:NOTES])
        own, how = own_config(folder)
        if states and not same and (said is None or (own and config_hash(own) != said)):
            raise ValueError(f"{folder}/status.json: config_hash is {said!r:.60}, not that of the config.yaml "
                             "beside it, so whether the run is of this configuration is not known; "
                             f"{KEY}={states[-1]} goes on from it, or move the folder away to start anew")
        how = f" ({keys})" if own and (keys := different_settings({"training": own}, {"training": training})) else how
        why = "it has no training state" if same else f"it is of another configuration{how}"
        passed.append(f"{KEY}=latest: passed over {folder}, {why}")
    strays = [f"{KEY}=latest: passed over {folder}, it has states but no status.json; {KEY}={folder} goes on from them"
              for folder in without_status(root, experiment)]
    return Start(None, [f"{KEY}=latest: no training state of this configuration, starting fresh", *strays[:NOTES],
                        *passed[:NOTES]])


def own_config(folder: Path) -> tuple[dict | None, str]:
    """The training half of a run folder's config.yaml; None where there is none, and what is wrong with it."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None, ""
    try:
        training = read_yaml(path).get("training")
        config_hash(training)
    except ValueError as e:
        return None, f"; {e}"
    except (AttributeError, KeyError, TypeError):  # of what is no training half
        return None, f"; {path} holds no configuration of a run"
    return training, ""


def read_state(path: Path, record: RunRecord) -> TrainingState:
    """A training state; ValueError when it is damaged or of another network, data set or loss, with keys and values."""
    try:
        state = TrainingState.read(path)
    except ValueError as e:
        raise ValueError(f"{KEY}: {e}{one_before(path)}") from e
    for what, keys in (("configuration", different_settings(state.config, record.config)),
                       ("data set", listed_differences(state.facts.identity(), record.facts.identity()))):
        if keys:
            raise ValueError(f"{KEY}={path}: the state is of another {what} ({keys}); use the same, leave resume away "
                             f"to start anew{from_weights(path)}")
    return state


def with_noise(options: Options, state: TrainingState | None, device: torch.device) -> Options:
    """Options with the scheme by which a run draws its noise: that of the state, or as is asked for a new run.

    ValueError where another one than that of the state is asked for.
    """
    if state is None:
        return replace(options, noise=options.noise or scheme_on(device))
    began = state.environment.get("noise", LATER["noise"])
    check_choice(f"{state.path}: environment.noise", began, SCHEMES)
    if options.noise not in (None, began):
        raise ValueError(f"training.options.noise={options.noise}: the noise of {state.path} is drawn by {began}, and "
                         "stays so; leave noise away to go on, or resume to start anew")
    return replace(options, noise=began)


def one_before(path: Path) -> str:
    """What a user may choose by name instead of a damaged state: an older one, or a snapshot's weights."""
    states = list_files(path.parent, "training-state")
    older = states[:states.index(path)] if path in states else []
    if older:
        return f"; the one before it is {KEY}={older[-1]}"
    return f"; there is none before it: leave resume away to start anew{from_weights(path)}"


def from_weights(path: Path) -> str:
    """How to start anew from the weights that a snapshot beside a state holds; '' where there is none."""
    snapshots = list_files(path.parent, "network-snapshot")
    return f", or from weights by training.options.init_from={snapshots[-1]}" if snapshots else ""


def different_settings(old: dict, new: dict) -> str:
    """How two configs differ in what decides on what a training computes."""
    return listed_differences({"training": hashed_part(old["training"])}, {"training": hashed_part(new["training"])})


def listed_differences(old: object, new: object) -> str:
    """Paths at which two trees of plain data differ, with the values of both: `a.b: 1 -> 2, c: none -> x`."""
    return listed(sorted(f"{path}: {in_short(a)} -> {in_short(b)}" for path, a, b in differences(old, new)))


def changes(old: dict, new: dict) -> list[str]:
    """Warnings of what changes the last digits of a result: threads, ranks, precision, processor and the like."""
    old = {**LATER, **old}
    return [f"Warning: {name} was {old.get(name)}, is {value}: results will differ in the last digits"
            for name, value in new.items() if old.get(name) != value]


def processor(device: torch.device) -> str:
    """The type of the processor that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.is_file() else None
    return f"{model[1] if model else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"
