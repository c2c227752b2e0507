"""The audit of samples: copies of training volumes among them, and whether the network's loss gives members away."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from edm3d.formats.samples import SamplesFile
from edm3d.inference.decoded import best_device
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.membership import attack, find_snapshot
from edm3d.metrics import copies as maths
from edm3d.metrics.copies import AxisMove, Nearest, Reference
from edm3d.reporting.audit import Audit, ClosePair, Copies, Distances, Membership, Planted, limit_of
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.reference import Cases
from edm3d.utils.log import progress


class AuditOptions(Protocol):
    """What the audit asks of the options of a comparison."""

    snapshot: Path | None
    seed: int
    trust: bool
    train: Path | None
    train_split: str
    planted: int
    members: int
    private: bool
    show_private: bool


Seer = Callable[[Case, AxisMove], tuple[np.ndarray, np.ndarray]]  # latents of a volume as it lies and after a move
PAIRS = 10
THROUGH = "through the first stage"
LATENT_NUMBERS = 4096
USUAL = 512  # training volumes that are held against the others, and held-out ones that are by latents
ROUND_TRIPS, LEAST_MOVED = 32, 0.05  # volumes that say how far latents are moved, and the least, in their own spread


def audit(samples: SamplesFile, context: Comparison, stage: FirstStage | str, options: AuditOptions) -> Audit:
    """Both parts; stage: the first stage that decoded the samples, or why there is none."""
    found = find_copies(context.generated, context.train, context.real, context.layout, stage, options.planted,
                        options.seed)
    return Audit(found, membership(samples, context, stage, found, options), options.private,
                 options.show_private or not options.private)


def membership(samples: SamplesFile, context: Comparison, stage: FirstStage | str, copies: Copies | str,
               options: AuditOptions) -> Membership | str:
    """The attack on the snapshot's loss, on volumes that are spread over all of both sets."""
    if isinstance(copies, str):
        return copies
    if not options.members:
        return "--members is 0"
    snapshot = find_snapshot(samples, options.snapshot, context.train, options.train_split, options.private)
    if isinstance(snapshot, str):
        return snapshot
    numbers = {"train": range(len(context.train)), "held out": copies.held}
    count = min(options.members, *map(len, numbers.values()))
    chosen = {name: [each[int(k)] for k in np.linspace(0, len(each) - 1, count)] if count else []
              for name, each in numbers.items()}
    sets = {"train": [context.train.case(i) for i in bar("members")(chosen["train"])],
            "held out": [context.real.case(i) for i in bar("held out")(chosen["held out"])]}
    found = attack(snapshot, None if isinstance(stage, str) else stage, sets, options.seed, options.trust,
                   best_device())
    return found if isinstance(found, str) else found._replace(by_word=snapshot.hides_its_data)


def find_copies(generated: Cases, train: Cases, real: Cases, layout: Layout, stage: FirstStage | str, num_planted: int,
                seed: int) -> Copies | str:
    """The nearest training volume of each sample beside those of held-out volumes and planted copies, or why not.

    stage: the first stage, or why there is none.
    """
    start = time.perf_counter()
    try:
        reference = Reference(lambda i: train.case(i).image, len(train), layout.data_range, progress=bar("training"))
    except ValueError as e:
        return f"--train: {e}"
    reference.calibrate(bar("training among itself"))
    known = {digest(train.case(i).image) for i in range(len(train))}
    ids = {train.case(i).id for i in range(len(train))} if same_source(train, real) else set()
    held = [i for i in range(len(real)) if not is_training(real.case(i), known, ids)]
    made, see, rng = as_it_is, None, np.random.default_rng([seed, 4])
    if not (reason := no_latents(stage, generated, train, real)):
        see = partial(both_ways, stage)
        made = partial(through, stage, rng=rng)  # of volumes that are no samples: they then lack what samples lack
    some = [held[k] for k in spread(len(held), USUAL)]
    of_held = searched(reference, real, held, "held out", made, see, some)
    nearest = searched(reference, generated, range(len(generated)), "samples", see=see)
    usual = usual_in_training(reference, train, made, see)
    distances, others = (np.array([each.distance for each in seen.nearest]) for seen in (of_held, usual.seen))
    planted, absent = plant(reference, train, layout, stage, see, num_planted, seed)
    digests = [digest(generated.case(i).image) for i in range(len(generated))]
    among = twins(reference, generated, range(len(generated)), layout)
    floor = twins(reference, real, held[:len(generated)], layout) or ()
    return Copies([train.case(i).id for i in range(len(train))], nearest.nearest, held, distances, others,
                  len(real) - len(held), limit_of(distances, others),
                  {kind: planted_of(*each) for kind, each in planted.items()}, absent,
                  sum(each in known for each in digests), among, len(digests) - len(set(digests)),
                  np.array([each.distance for each in floor]),
                  reason or latent_distances(stage, train, nearest, of_held, usual, planted, seed),
                  closest(nearest.nearest, generated, train), time.perf_counter() - start)


def bar(name: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """A progress bar over volumes."""
    return partial(progress, desc=name, unit="volume")


def digest(image: np.ndarray) -> bytes:
    """By which images that are equal are known."""
    return sha256(np.ascontiguousarray(image, np.float32).tobytes()).digest()


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below a count, over all of them."""
    return [] if not count else [int(i) for i in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))]


def same_source(train: Cases, real: Cases) -> bool:
    """Whether ids of both mean the same volumes: those of one file."""
    return bool(train.source) and train.source == real.source


def is_training(case: Case, known: set[bytes], ids: set[str]) -> bool:
    """Whether a real volume is one of the training volumes: by its content, in one file by its id."""
    return case.id in ids or digest(case.image) in known


def as_it_is(case: Case) -> Case:
    """The volume, of which nothing is made."""
    return case


class HeldToTraining(NamedTuple):
    """Volumes held against the training volumes: of each the nearest by pixels, and of all or some the latents as they
    lie and as they are moved by their nearest [S,n].
    """

    nearest: Sequence[Nearest]
    still: Sequence[np.ndarray] = ()
    moved: Sequence[np.ndarray] = ()


def searched(reference: Reference, cases: Cases, numbers: Sequence[int], name: str,
             made: Callable[[Case], Case] = as_it_is, see: Seer | None = None,
             some: Sequence[int] | None = None,
             without: Callable[[int], Collection[int]] = lambda number: ()) -> HeldToTraining:
    """The nearest of each volume, after what is `made` of it, but for those `without` its number.

    see: latents of it as it lies and moved; some: the numbers of those that are seen, None: all.
    """
    seen, wanted = HeldToTraining([], [], []), set(numbers if some is None else some)
    for i in bar(name)(numbers):
        case = made(cases.case(i))
        seen.nearest.append(reference.nearest(case.image, without(i)))
        if see is not None and i in wanted:
            for rows, row in zip(seen[1:], see(case, seen.nearest[-1].move), strict=True):
                rows.append(row)
    return seen


class Usual(NamedTuple):
    """Training volumes held against the others, as held-out ones are against all: numbers [U], of each the training
    volumes that it is not held against, as they are of its group or equal to it, and what is seen of it.
    """

    numbers: Sequence[int]
    without: Sequence[Collection[int]]
    seen: HeldToTraining


def usual_in_training(reference: Reference, train: Cases, made: Callable[[Case], Case] = as_it_is,
                      see: Seer | None = None) -> Usual:
    """Of at most USUAL training volumes, spread over all, that have another to be held against; see `searched`."""
    same: dict[object, set[int]] = {}
    keys = []
    for i in range(len(train)):
        case = train.case(i)
        keys.append([digest(case.image), *([] if case.group is None else [("group", case.group)])])
        for key in keys[-1]:
            same.setdefault(key, set()).add(i)
    own = [set().union(*(same[key] for key in each)) for each in keys]
    numbers = [i for i in spread(len(train), USUAL) if len(own[i]) < len(train)]
    return Usual(numbers, [own[i] for i in numbers], searched(reference, train, numbers, "training, one by one", made,
                                                              see, without=own.__getitem__))


def twins(reference: Reference, cases: Cases, numbers: Sequence[int], layout: Layout) -> list[Nearest] | None:
    """The nearest other of each volume of a set, None for fewer than 2; what is usual is what it is in training."""
    if len(numbers) < 2:
        return None
    among = Reference(lambda k: cases.case(numbers[k]).image, len(numbers), layout.data_range, reference)
    return [among.nearest(cases.case(i).image, {k}) for k, i in enumerate(bar("among themselves")(numbers))]


class Plantation(NamedTuple):
    """Copies of a kind: of which training volumes [P], and what is found of them."""

    chosen: np.ndarray
    seen: HeldToTraining


def plant(reference: Reference, train: Cases, layout: Layout, stage: FirstStage | str, see: Seer | None, count: int,
          seed: int) -> tuple[dict[str, Plantation], dict[str, str]]:
    """Copies of each kind of so many training volumes, held against them; kinds that cannot be had, and why."""
    if not count:
        return {}, dict.fromkeys((*maths.PLANTED, THROUGH), "--planted is 0")
    rng, again, found = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2]), {}
    makers = {kind: (rng, partial(planted_case, kind, layout=layout, rng=rng)) for kind in maths.PLANTED}
    if not isinstance(stage, str):
        makers[THROUGH] = again, partial(through, stage, rng=again)
    for kind, (numbers, made) in makers.items():
        chosen = numbers.permutation(len(train))[:count]
        found[kind] = Plantation(chosen, searched(reference, train, chosen.tolist(), f"planted, {kind}", made, see))
    return found, {THROUGH: stage} if isinstance(stage, str) else {}


def planted_case(kind: str, case: Case, layout: Layout, rng: np.random.Generator) -> Case:
    """A copy of a kind; the label map goes where the image goes."""
    if kind == maths.MOVED:
        return moved_case(case, maths.random_move(case.image.ndim - 1, rng))
    return case._replace(image=maths.planted(kind, case.image, rng, layout.lo, layout.hi))


def planted_of(chosen: np.ndarray, seen: HeldToTraining) -> Planted:
    """How near copies of chosen training volumes are found by pixels."""
    return Planted(np.array([row.distance for row in seen.nearest]),
                   np.array([row.index for row in seen.nearest]) == chosen)


def through(stage: FirstStage, case: Case, rng: np.random.Generator) -> Case:
    """A volume decoded of a draw of its posterior."""
    image, label, semantic = on_device(stage, case)
    posterior = stage.posterior(stage.facts.intensity.to_network(image), label if stage.net.num_classes else None,
                                semantic)
    noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(stage.device)
    made, map_ = stage.decode(stage.scaled(posterior.mean + posterior.std * noise), semantic)
    return case._replace(image=made[0].cpu().numpy(), label=None if map_ is None else map_[0].cpu().numpy())


def on_device(stage: FirstStage, case: Case) -> list[torch.Tensor | None]:
    """Image, label map and semantic map of a volume as a batch of one."""
    return [None if array is None else torch.from_numpy(np.ascontiguousarray(array))[None].to(stage.device)
            for array in (case.image, case.label, case.semantic)]


def no_latents(stage: FirstStage | str, *sets: Cases) -> str:
    """Why volumes cannot be held against each other by latents, '' where they can."""
    if isinstance(stage, str):
        return stage
    if stage.net.num_classes and any(cases.case(0).label is None for cases in sets):
        return "the first stage encodes label maps with the images, and some of the volumes have none"
    return "the first stage is masked by maps, which moved volumes do not have" if stage.masked else ""


def latent_distances(stage: FirstStage, train: Cases, samples: HeldToTraining, held: HeldToTraining, usual: Usual,
                     planted: Mapping[str, Plantation], seed: int) -> Distances:
    """By latents, 1: as far as the first stage moves a volume; a volume counts as it lies and moved as its nearest by
    pixels asks for, whichever is nearer.
    """
    theirs = np.stack([latents(stage, train.case(i)) for i in bar("latents of training")(range(len(train)))])
    scale = moved_by_trips(stage, train, theirs, seed) * np.sqrt(theirs.shape[1])

    def near(seen: HeldToTraining, without: Sequence[Collection[int]] | None = None) -> tuple[np.ndarray, np.ndarray]:
        if not seen.still:
            return np.zeros(0, int), np.zeros(0)
        (index, distance), (other, nearer) = (maths.nearest_features(np.stack(rows), theirs, scale, without)
                                              for rows in (seen.still, seen.moved))
        return np.where(nearer < distance, other, index), np.minimum(nearer, distance)

    copies = {}
    for kind, (chosen, seen) in planted.items():
        index, distance = near(seen)
        copies[kind] = Planted(distance, index == chosen)
    return Distances(*near(samples), near(held)[1], near(usual.seen, usual.without)[1], copies)


def moved_by_trips(stage: FirstStage, train: Cases, theirs: np.ndarray, seed: int) -> np.ndarray:
    """By how much each latent [n] of training volumes, `theirs` [M,n], changes where they are decoded of a draw of
    their posterior and encoded again: root mean square over ROUND_TRIPS of them, and LEAST_MOVED of its spread.

    So what the first stage gives back as it was counts most, and what it loses or makes up counts little.
    """
    rng = np.random.default_rng([seed, 3])
    chosen = rng.permutation(len(train))[:ROUND_TRIPS]
    changes = [latents(stage, through(stage, train.case(int(i)), rng)) - theirs[i] for i in bar("round trips")(chosen)]
    return np.sqrt(np.mean(np.square(changes), axis=0) + (LEAST_MOVED * theirs.std(0))**2)


def both_ways(stage: FirstStage, case: Case, move: AxisMove) -> tuple[np.ndarray, np.ndarray]:
    """Latents of a volume as it lies and after a move."""
    still = latents(stage, case)
    return still, latents(stage, moved_case(case, move)) if any(move.flips) or any(move.shifts) else still


def moved_case(case: Case, move: AxisMove) -> Case:
    """A volume and its label map after a move."""
    label = None if case.label is None else maths.moved(case.label[None], move)[0]
    return case._replace(image=maths.moved(case.image, move), label=label)


def latents(stage: FirstStage, case: Case) -> np.ndarray:
    """Posterior means, averaged to at most LATENT_NUMBERS where there are more."""
    image, label, _ = on_device(stage, case)
    found = stage.encode(image, label if stage.net.num_classes else None)[0].float().cpu().numpy()
    grid = maths.SearchGrid(found.shape, LATENT_NUMBERS)
    return grid.taken(grid.blurred(found)).ravel()


def closest(nearest: Sequence[Nearest], generated: Cases, train: Cases) -> list[ClosePair]:
    """The pairs of the least distances, training volumes moved to where the samples are."""
    order = sorted(range(len(nearest)), key=lambda i: nearest[i].distance)[:PAIRS]
    return [ClosePair(generated.case(i).image, maths.moved_back(train.case(nearest[i].index).image, nearest[i].move), i,
                 nearest[i].index, nearest[i].distance) for i in order]
