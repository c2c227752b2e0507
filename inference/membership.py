"""Membership inference: whether the loss of a denoiser tells its training volumes from held-out ones."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm3d.formats.privacy import UNITS, Ledger
from edm3d.formats.samples import SamplesFile
from edm3d.inference.conditions import stacked
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.trained_on import TrainingFiles, sources_of
from edm3d.metrics.bootstrap import bootstrap
from edm3d.metrics.classification import auroc
from edm3d.networks.conditioning import Condition, Part, takes_of
from edm3d.reporting.audit import Attack, Membership
from edm3d.reporting.cases import Case
from edm3d.reporting.reference import Cases
from edm3d.utils.runs import find_file

SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)  # of sigma_data
DRAWS, AT_ONCE, FEWEST = 4, 8, 8
Denoise = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]


def find_snapshot(samples: SamplesFile, override: Path | None, train: Cases, split: str, by_word: bool
                  ) -> Snapshot | str:
    """The snapshot that drew samples, or why the attack cannot be: it is not there, is another, draws no volumes by
    itself, or learnt from others than are called its training volumes.

    by_word: whether the user says that the volumes of train are those of a private training, which does not say.
    """
    path = Path(samples.meta.snapshot)
    if override is not None:
        path = find_file(str(override), "network-snapshot", Path("results"), "--snapshot")
    elif not path.exists():
        return f"the snapshot that the samples name, {path}, is not there; point --snapshot to it"
    snapshot = Snapshot.read(path)
    if snapshot.hash != samples.meta.snapshot_hash:
        return f"{path} is not the snapshot that drew the samples: its hash differs from the one they record"
    if snapshot.refines is not None or snapshot.dose is not None or snapshot.predicts is not None:
        return f"{path} does not draw volumes by itself: its loss is not one of a volume alone"
    if not snapshot.network:
        return f"{path} holds no network"
    if snapshot.hides_its_data:
        if not by_word:
            return f"{path} was trained privately and does not say on what; --private says that it was on --train"
        if odd := more_than_counted(train, snapshot.privacy.ledger):
            return f"{path} was trained privately on {odd}"
    elif train.source not in {snapshot.facts.content_hash, *(source.hash for source in sources_of(snapshot))}:
        return f"{path} was not trained on the content of --train, as far as it says"
    if (learnt := TrainingFiles.by(snapshot).split) != split:
        return f"{path} was trained on split {learnt!r}, --train-split is {split!r}"
    return snapshot


def more_than_counted(train: Cases, ledger: Ledger) -> str:
    """How many units a private training had where the volumes called its own are of more, '' where they are not."""
    units = len(train)
    if ledger.unit == "group":
        groups = [train.case(i).group for i in range(len(train))]
        units = len({*groups} - {None}) + groups.count(None)
    return f"{ledger.count} {UNITS[ledger.unit]}, --train has {units}" if units > ledger.count else ""


def attack(snapshot: Snapshot, stage: FirstStage | None, sets: Mapping[str, Sequence[Case]], seed: int, trust: bool,
           device: torch.device) -> Membership | str:
    """The attack on volumes of the sets `train` and `held out`, the same number of each; or why it cannot be."""
    start = time.perf_counter()
    if snapshot.first_stage is not None and stage is None:
        return "the network draws latents, and their first stage is not there"
    count = min(map(len, sets.values()))
    if count < FEWEST:
        return f"there are {count} volumes of the training or the held-out ones, wanted {FEWEST} or more of each"
    net = snapshot.build(trust).to(device)
    takes = takes_of(net)
    cases = [*sets["train"], *sets["held out"]]
    hidden = [name for name in takes if any(all(value(name, case, snapshot) is None for case in each)
                                            for each in sets.values())]
    x = torch.cat([seen(snapshot, stage, case, device).cpu() for case in cases])
    condition = told(cases, takes, hidden, snapshot)
    sigma_data = float(getattr(net, "sigma_data", 0.5))
    sigmas = np.clip(np.array(SIGMAS) * sigma_data, getattr(net, "sigma_min", 0), getattr(net, "sigma_max", np.inf))
    losses = denoising_losses(net, x, condition, sigmas, seed, device)
    is_member = np.arange(len(cases)) < len(sets["train"])
    return judged(losses, x, is_member, [float(sigma) for sigma in sigmas], hidden, seed, start)


def judged(losses: np.ndarray, x: torch.Tensor, is_member: np.ndarray, sigmas: Sequence[float], hidden: Sequence[str],
           seed: int, start: float) -> Membership:
    """What losses [N,L] of volumes x at noise levels tell of who is a member."""
    shares = losses / np.maximum(losses.mean(0), 1e-30)
    far = ((x - x.mean(0)) ** 2).flatten(1).mean(1).numpy()
    relative = np.log(np.maximum(shares.mean(1), 1e-30)) - np.log(np.maximum(far, 1e-30))
    scores = [-shares.mean(1), -relative, *(-shares[:, i] for i in range(len(sigmas)))]
    found = [auc_of(score, is_member, seed) for score in scores]
    members = int(is_member.sum())
    return Membership(found[0], found[1], dict(zip(sigmas, found[2:], strict=True)), members, len(x) - members, DRAWS,
                      tuple(hidden), time.perf_counter() - start)


def denoising_losses(net: Denoise, x: torch.Tensor, condition: Condition, sigmas: Sequence[float], seed: int,
                     device: torch.device) -> np.ndarray:
    """Mean squared error [N,L] of D(x + n; sigma) over DRAWS draws of noise, which are the same for all volumes."""
    found = []
    for level, sigma in enumerate(sigmas):
        rows = np.zeros(len(x))
        for draw in range(DRAWS):
            rng = np.random.default_rng([seed, level, draw])
            noise = float(sigma) * torch.from_numpy(rng.standard_normal(x.shape[1:], dtype=np.float32))
            for first in range(0, len(x), AT_ONCE):
                part = x[first:first + AT_ONCE]
                told_ = Condition({name: each[first:first + AT_ONCE] for name, each in condition.items()})
                with torch.no_grad():
                    given = net((part + noise).to(device), torch.full((len(part),), float(sigma), device=device),
                                told_.to(device)).float().cpu()
                rows[first:first + len(part)] += ((given - part) ** 2).flatten(1).mean(1).numpy() / DRAWS
        found.append(rows)
    return np.stack(found, axis=1)


def auc_of(scores: np.ndarray, is_member: np.ndarray, seed: int) -> Attack:
    """AUC of scores, higher for members, and its interval over volumes."""
    interval = bootstrap(lambda weights: auroc(scores, is_member, weights)[:, None], range(len(scores)), seed)
    return Attack(float(auroc(scores, is_member)[0]), float(interval.low[0]), float(interval.high[0]))


def seen(snapshot: Snapshot, stage: FirstStage | None, case: Case, device: torch.device) -> torch.Tensor:
    """What the network sees of a volume [1,C,*s]: its scaled latents, or the voxels with what is coded beside them."""
    image, label, semantic = (None if array is None else torch.from_numpy(np.ascontiguousarray(array))[None].to(device)
                              for array in (case.image, case.label, case.semantic))
    if stage is not None:
        return stage.encode(image, label, semantic)
    x = snapshot.facts.intensity.to_network(image)
    return x if snapshot.label_coding is None else snapshot.label_coding.join(x, label)


def value(name: str, case: Case, snapshot: Snapshot) -> Any:
    """What a volume has of a part of the condition, None for nothing."""
    if name == "class_labels":
        names = snapshot.facts.class_names
        return names.index(case.class_name) if case.class_name in names else None
    return {"attributes": case.attributes, "semantic": case.semantic}.get(name)


def told(cases: Sequence[Case], takes: Mapping[str, Part], hidden: Sequence[str], snapshot: Snapshot) -> Condition:
    """The volumes' own conditions, but for the hidden parts."""
    rows = {name: [None if name in hidden else value(name, case, snapshot) for case in cases] for name in takes}
    return stacked(rows, takes, snapshot.volume_shape)
