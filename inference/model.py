"""A trained network from Python: it draws, denoises, encodes and decodes; docs/python.md shows how."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike

from edm3d.formats.facts import Facts
from edm3d.formats.samples import Samples
from edm3d.inference.asking import in_memory
from edm3d.inference.asking_scans import asker_for, in_units
from edm3d.inference.drawing import complete, draw_all, make_drawer, sample_meta
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.generation import check_options
from edm3d.inference.guidance import add_guidance
from edm3d.inference.measurements import rows_measured
from edm3d.inference.network_files import check_size
from edm3d.inference.predictor import Predictor
from edm3d.inference.refiner import check_draws_alone
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.starts import NOISE, started
from edm3d.inference.told import in_words, used_by
from edm3d.inference.tuned_levels import with_tuned_levels
from edm3d.networks.autoencoder import Autoencoder
from edm3d.networks.conditioning import Condition
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice
from edm3d.utils.compose import shipped_configs
from edm3d.utils.compose_errors import known_as
from edm3d.utils.config import check_from_file, no_such, read_yaml
from edm3d.utils.log import note
from edm3d.utils.plain import from_plain, taken
from edm3d.utils.precision import PRECISIONS, autocast, resolve_precision
from edm3d.utils.runs import find_file
from edm3d.utils.schema import Guidance, Quality, Sampling
from edm3d.utils.trusted import SAMPLERS

OWN = ("sampler", "guidance", "start", "start_sigma", "scan", "classes", "attributes", "batch_size", "tile",
       "tile_overlap", "tile_mode", "decode", "precision", "noise")
SAMPLER_GROUP = shipped_configs() / "sampler"


class Model:
    """A snapshot at work on a device.

    facts: what is known of its volumes (channels, label classes, intensities, spacing); shape [C,*S]: of what the
    network sees, latents or voxels; net: D(x; sigma) itself, an autoencoder where the snapshot is a first stage.
    """

    def __init__(self, snapshot: Snapshot, *, run_root: str = "results", device: str = "auto",
                 precision: str | None = None, trust: bool = False):
        check_no_prediction(snapshot)
        self.snapshot, self.run_root, self.trust = snapshot, run_root, trust
        self.device = distributed.choose_device(device)
        self.precision = resolve_precision(precision or own_sampling(snapshot).get("precision", "fp32"), self.device)
        self.net = snapshot.build(trust).to(self.device)

    @classmethod
    def load(cls, name: str | Path, *, run_root: str = "results", **options: Any) -> "Model":
        """The newest snapshot of an experiment's name or a run folder, a snapshot file, or a published folder.

        Options are those of the class. ValueError when there is none, or it is damaged.
        """
        path = find_file(str(name), "network-snapshot", Path(run_root), "name")
        return cls(Snapshot.read(path), run_root=run_root, **options)

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.net.parameters()) / 1e6
        sees = f"{list(self.shape)} {self.snapshot.space}"
        return f"Model({type(self.net).__name__}, {weights:.2f} M weights, {sees}, {self.snapshot.path}, {self.device})"

    @property
    def facts(self) -> Facts:
        """What is known of the volumes that it was trained on."""
        return self.snapshot.facts

    @property
    def shape(self) -> tuple[int, ...]:
        """[C,*S] of what the network sees."""
        return self.snapshot.shape

    @cached_property
    def first_stage(self) -> FirstStage:
        """The first stage that it carries, or that it is; ValueError for a network of voxels."""
        if isinstance(self.net, Autoencoder):
            return FirstStage(self.net, self.facts, precision=self.precision)
        if self.snapshot.first_stage is None:
            raise ValueError(f"{self.snapshot.path}: works on voxels, there is no first stage")
        return self.snapshot.open_first_stage(self.trust, self.precision).to(self.device)

    def sample(self, seeds: Sequence[int] | str | None = None, *, sampler: str | None = None,
               classes: Sequence[str] | None = None, guidance: float | Mapping[str, Any] | None = None,
               start: str | None = None, batch_size: int | None = None, decode: bool | None = None,
               autoencoder: str | None = None, refiner: str | None = None, tile: Sequence[int] | None = None,
               trajectory: bool = False, attributes: Mapping[str, Any] | None = None,
               sweep: Mapping[str, Sequence[float]] | None = None,
               conditions: str | Path | None = None, maps: ArrayLike | None = None, images: ArrayLike | None = None,
               start_sigma: float | None = None, samples_per_condition: int | None = None,
               antithetic: bool | None = None, noise: str | None = None, pairs: bool | None = None,
               scan: Mapping[str, Any] | None = None, posterior: Mapping[str, Any] | None = None,
               quality: Mapping[str, Any] | None = None, **sampler_options: Any) -> Samples:
        """Draw seeds, as generate does by the experiment that trained the network; what is None is as it says there.

        The same numbers, given the same batch size, precision and CPU threads. seeds: numbers, or text as in "0-7,12";
        samples come in rising order. sampler: a shipped file of configs/sampler/, sampler_options its parameters, such
        as num_steps. guidance: its strength, or a mapping of strength, interval, parts and network. maps [N,*S] and
        images [N,C,*S] in stored units, or lists of them, stand for the file `conditions`, whose rows seeds go through
        in turn; of a network of PET images are low-dose scans in units of their own. The others are those of
        `sampling`. All samples are held in memory.
        """
        self.check_draws()
        check_draws_alone(self.snapshot)
        options = self.options(sampler, sampler_options, batch_size=batch_size, decode=decode, trajectory=trajectory,
                               autoencoder=autoencoder, start=start, start_sigma=start_sigma, refiner=refiner,
                               posterior=None if posterior is None else dict(posterior),
                               quality=None if quality is None else from_plain(Quality, quality, "sample", "quality"),
                               guidance=None if guidance is None else guidance_of(guidance), **asked_of(
                                   tile=tile, classes=classes, attributes=attributes, sweep=sweep, scan=scan,
                                   samples_per_condition=samples_per_condition, antithetic=antithetic,
                                   noise=noise, pairs=pairs,
                                   conditions=str(conditions) if isinstance(conditions, Path) else conditions))
        guided, record = add_guidance(self.net, self.snapshot, options, Path(self.run_root), self.device)
        whole = complete(self.snapshot, options, self.run_root)
        if (given := in_memory(maps, images)) and conditions is not None:
            raise ValueError(f"conditions={conditions}: maps and images are given, too; wanted the file or the arrays")
        asker = asker_for(self.net, whole, options, given, str(self.run_root))
        numbers = asker.seeds(seeds if isinstance(seeds, str | None) else ",".join(map(str, np.atleast_1d(seeds))),
                              partial(rows_measured, options.posterior, whole, self.device, self.run_root))
        asked = asker(options, numbers, given)
        whole = in_units(whole, asked)
        for line in asked.notes:
            if line.startswith("Warning"):
                note(line)
        with errors_of_own(self.snapshot, is_own=sampler is None and not sampler_options):
            drawer = make_drawer(self.net, whole, options, self.device, asked, guided, run_root=str(self.run_root))
        numbers = asked.numbers(numbers)
        return Samples(numbers, draw_all(drawer, numbers, options.batch_size),
                       sample_meta(self.snapshot, whole, options, record, asked.record, drawer.refiner,
                                   drawer.measured, drawer.quality, drawer.noise))

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """D(x; sigma): the expected image behind x [N,C,*S] at noise level sigma (one, or one for each), float32.

        In the network's units: voxels in [-1,1], or latents as `first_stage.encode` gives them. Gradients go to x.
        """
        self.check_draws()
        if x.shape[1:] != self.shape:
            raise ValueError(f"x is {list(x.shape)}, wanted [N, {', '.join(map(str, self.shape))}]")
        x = x.to(self.device, torch.float32)
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        condition = condition.to(self.device) if condition else None
        with autocast(self.precision, self.device):
            return self.net(x, levels, condition=condition).float()

    def options(self, sampler: str | None, sampler_options: Mapping[str, Any], **options: Any) -> Sampling:
        """Sampling options of a call, checked as those of a command; what is None is as in the experiment."""
        own = own_sampling(self.snapshot)
        if sampler is None and "sampler" in own:  # it comes out of a file
            check_from_file(own["sampler"], str(self.snapshot.path), self.trust, SAMPLERS)
        node = sampler_group(sampler or "edm_ode") if sampler or "sampler" not in own else own["sampler"]
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("start") == NOISE:
            own.pop("start_sigma", None)
        made = replace(Sampling(outdir=""), **own | given | {
            "sampler": {**node, **sampler_options}, "trust": self.trust, "precision": self.precision})
        with errors_of_own(self.snapshot, is_own=sampler is None and not sampler_options):
            check_options(made)
            return with_tuned_levels(started(made), self.snapshot)

    def check_draws(self) -> None:
        """ValueError for a network that knows no noise levels, such as a first stage."""
        if not hasattr(self.net, "sigma_min"):
            raise ValueError(f"{self.snapshot.path}: a snapshot of task {self.snapshot.task} draws nothing; wanted one "
                             "of a diffusion experiment")


def load(name: str | Path, *, run_root: str = "results", device: str = "auto", precision: str | None = None,
         trust: bool = False) -> Model | Predictor:
    """A trained network, found as Model.load does: a Predictor where it is a segmenter or classifier, else a Model."""
    snapshot = Snapshot.read(find_file(str(name), "network-snapshot", Path(run_root), "name"))
    if snapshot.predicts is None:
        return Model(snapshot, run_root=run_root, device=device, precision=precision, trust=trust)
    own = distributed.choose_device(device)
    return Predictor(snapshot, snapshot.build(trust).to(own), resolve_precision(precision or PRECISIONS[0], own))


def check_no_prediction(snapshot: Snapshot) -> None:
    """ValueError for a segmenter or classifier, which neither draws nor encodes."""
    if snapshot.predicts is not None:
        raise ValueError(f"{snapshot.path}: a snapshot of task {snapshot.task} draws nothing, it "
                         f"{in_words(snapshot.predicts)}; {used_by(snapshot.predicts)}")


def own_sampling(snapshot: Snapshot) -> dict[str, Any]:
    """How the experiment of a snapshot draws, as far as it matters here; ValueError for what no experiment says."""
    half = snapshot.config.get("sampling") or {}
    own = {name: half[name] for name in OWN if half.get(name) not in (None, {})}
    hints = {**get_type_hints(Sampling), "guidance": Guidance}
    made = {name: taken(value, hints[name], snapshot.path, f"config.sampling.{name}")
            for name, value in own.items()}
    check_choice(f"{snapshot.path}: config.sampling.precision", made.get("precision", PRECISIONS[0]), PRECISIONS)
    if "sampler" in made:
        check_size(made["sampler"], f"{snapshot.path}: sampling.sampler")
    return made


@contextmanager
def errors_of_own(snapshot: Snapshot, is_own: bool) -> Iterator[None]:
    """Have errors of a sampler that the snapshot's own experiment names say so."""
    try:
        yield
    except ValueError as e:
        if is_own and str(e).startswith("sampling.sampler"):
            raise ValueError(f"{snapshot.path}: its experiment has {e}") from e
        raise


def asked_of(**given: Any) -> dict[str, Any]:
    """Options of a call that are lists, names with values, or text; ValueError naming one that is not.

    Classes may be numbers.
    """
    lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple | np.ndarray)}
    if isinstance(classes := lists.get("classes", given["classes"]), list):
        lists["classes"] = list(map(str, classes))
    hints = get_type_hints(Sampling)
    return {name: taken(value, hints[name], "sample", name) for name, value in {**given, **lists}.items()
            if value is not None}


def guidance_of(asked: float | Mapping[str, Any]) -> Guidance:
    """Guidance of a strength, or of its parts by name; ValueError for other names, and values that are none of it."""
    if not isinstance(asked, Mapping):
        asked = {"strength": float(asked) if isinstance(asked, np.number) else asked}
    known = [f.name for f in fields(Guidance)]
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"guidance: {no_such('part', str(unknown[0]), known)}")
    return from_plain(Guidance, asked, "sample", "guidance")


def sampler_group(name: str) -> dict[str, Any]:
    """A file of configs/sampler/; ValueError when there is none of that name."""
    known = sorted(path.stem for path in SAMPLER_GROUP.glob("*.yaml"))
    if name not in known:
        meant = known_as("sampler", name)
        raise ValueError(f"sampler={name!r}: " + (f"no such sampler; here that is {meant}" if meant else
                                                  no_such("sampler", name, known)))
    return read_yaml(SAMPLER_GROUP / f"{name}.yaml")
