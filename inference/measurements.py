"""Measurements as they are asked for (sampling.posterior): read, held against the network, and put around it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.measured import read_measured
from edm3d.inference.conditions import Conditions
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.scans import kept_matrix
from edm3d.inference.snapshot import Snapshot
from edm3d.physics.operators import Operator, check_operator
from edm3d.physics.projector import ParallelBeam, Projector
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.noise import ImageGenerators, mix_seed
from edm3d.samplers.posterior import Affine, Smooth, over
from edm3d.utils.config import BESIDE, build, check_targets, find_target, said_at
from edm3d.utils.files import arrays_hash, first_line
from edm3d.utils.log import is_lack_of_memory, note
from edm3d.utils.plain import shown

KEY = "sampling.posterior"
FILES = BESIDE[KEY]  # keys that name a file, and are no arguments of the method
PURPOSE = "measurement"  # of the noise of measurements that are simulated


class Measurements(NamedTuple):
    """What was measured of what is drawn, in rows that seeds go through in turn.

    method: posterior.MMPS or the like, but for its denoiser, operator and measurement. rows: measurements [M,...], or,
    where simulated, images [M,C,*S] in stored units that they are made of, with noise of each seed. to_image: what the
    operator's image is of what is drawn for seeds. record: what samples files say of it. source: the file.
    """

    method: Callable[..., Denoiser]
    operator: Operator
    rows: torch.Tensor
    simulated: bool
    to_image: Callable[[Sequence[int]], Affine | Smooth]
    seeds_of: Callable[[Sequence[int]], list[int]]
    device: torch.device
    record: dict[str, Any]
    source: str

    def __call__(self, net: Denoiser, numbers: Sequence[int]) -> Denoiser:
        """The denoiser of a batch of samples, by their numbers, given their measurements."""
        return self.method(net, self.operator, self.of(self.seeds_of(numbers)), self.to_image(numbers))

    def notes(self, seeds: Sequence[int]) -> Iterator[str]:
        """A line where seeds leave rows out, or take rows again."""
        count, used = len(self.rows), len({seed % len(self.rows) for seed in seeds})
        if used < count:
            yield (f"Note      {self.source}: has {count} rows, and the seeds leave out {count - used} of "
                   f"them; sampling.seeds=0-{count - 1} takes them all")
        elif 1 < count < len(seeds):
            yield f"Note      {self.source}: has {count} rows, which {len(seeds)} seeds go through in turn"

    def of(self, seeds: Sequence[int]) -> torch.Tensor:
        """The measurement [N,...] of each seed, float32 on the device."""
        rows = self.rows[[seed % len(self.rows) for seed in seeds]]
        if self.simulated:
            rows = torch.cat([self.simulate(row[None], seed) for row, seed in zip(rows, seeds, strict=True)])
        return rows.to(self.device)

    @torch.no_grad()
    def simulate(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """What is measured of an image [1,C,*S], with the noise of a seed, on the CPU."""
        clean = self.operator.A(image.to(self.device)).float().cpu()
        return noisy(self.operator, clean, seed)


def noisy(operator: Operator, clean: torch.Tensor, seed: int) -> torch.Tensor:
    """A measurement [1,...] with noise that follows from a seed: from generators of its own where the model takes any,
    else, as deepinv's, from torch's global one, which is left as it was.
    """
    if hasattr(operator.noise_model, "variance"):
        return operator.noise_model(clean, ImageGenerators([seed], purpose=PURPOSE)).float()
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed(0, PURPOSE, seed))
        return operator.noise_model(clean).float()


def check_posterior(node: Mapping[str, Any]) -> None:
    """ValueError for what of sampling.posterior can be seen to be wrong without network and files."""
    if not node:
        return
    if "_target_" not in node:
        raise ValueError(f"{KEY}._target_: no value; choose a group, posterior=mmps or posterior=dps")
    given = [key for key in FILES if node.get(key) is not None]
    if len(given) != 1 or not isinstance(node[given[0]], str):
        raise ValueError(f"{KEY}: measurement={shown(node.get('measurement'))}, simulate={shown(node.get('simulate'))};"
                         " wanted the file of one: measurement=FILE of what was measured, or simulate=FILE of images")
    operator = node.get("operator")
    if not (isinstance(operator, Mapping) and "_target_" in operator):
        raise ValueError(f"{KEY}.operator: got {shown(operator)}, wanted a target, as "
                         f"{KEY}.operator._target_=physics.operators.Downsample")
    check_targets(node, KEY)


def bare(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without the keys that name files."""
    return {key: value for key, value in node.items() if key not in FILES}


def open_measurements(node: Mapping[str, Any], snapshot: Snapshot, stage: FirstStage | None, conditions: Conditions,
                      device: torch.device, run_root: str | Path = "results") -> Measurements | None:
    """Measurements that are asked for, None where none are; stage decodes as a whole, None where voxels are drawn.

    run_root: below which the matrices of large projectors are kept.

    ValueError for an operator that is none, for a file that does not fit it, and for values that it cannot have.
    """
    if not node:
        return None
    size = snapshot.shape[1:] if stage is None else stage.size_of(snapshot.shape[1:])
    operator, rows = opened(node, channels_of(snapshot, stage), size, device, run_root)
    key = key_of(node)
    to_image = partial(image_map, snapshot, stage, conditions, device)
    record = {**bare(node), "source": node[key], "hash": arrays_hash({"rows": rows.numpy()}),
              "simulated": key == "simulate"}
    method = {name: value for name, value in bare(node).items() if name != "operator"}
    made = Measurements(partial_of(method), operator, rows, key == "simulate", to_image, conditions.seeds, device,
                        record, node[key])
    try:
        made.method(None, operator, made.of([0]), None)  # which refuses arguments and noise models that it cannot use
    except ValueError as e:
        raise ValueError(said_at(KEY, bare(node), str(e))) from e
    return made


def built_operator(node: Mapping[str, Any], run_root: str | Path) -> Operator:
    """What a node says, of a projector of large images with the matrix that is kept, so that it is made but once."""
    path, geometry = f"{KEY}.operator", node.get("geometry")
    if find_target(node["_target_"], path) is Projector and isinstance(geometry, Mapping) and "_target_" in geometry:
        beam = build(geometry, path=f"{path}.geometry")
        if node.get("matrix") is None and isinstance(beam, ParallelBeam) and (found := kept_matrix(beam, run_root)):
            if found.note:
                note(f"Note      {found.note}")
            node = {**node, "matrix": found.matrix}
    return build(node, path=path)


def rows_measured(node: Mapping[str, Any], snapshot: Snapshot, device: torch.device, run_root: str | Path) -> int:
    """How many rows the file of a measurement has; 1 where none is asked for, or where opening it will say why not."""
    if not node:
        return 1
    latent = snapshot.first_stage is not None
    channels = len(snapshot.facts.channels) or 1 if latent else channels_of(snapshot, None)
    try:
        return len(opened(node, channels, snapshot.volume_shape, device, run_root)[1])
    except ValueError:
        return 1


def opened(node: Mapping[str, Any], channels: int, size: Sequence[int], device: torch.device,
           run_root: str | Path) -> tuple[Operator, torch.Tensor]:
    """The operator, and the rows of the file; size [*S]: of the images that the operator sees.

    ValueError for an operator that is none, and for a file that does not fit it.
    """
    operator, key = built_operator(node["operator"], run_root), key_of(node)
    with errors_said_at(f"{KEY}.operator"):
        check_operator(operator)
        if isinstance(operator, torch.nn.Module):
            operator = operator.to(device)
        wanted = measured_shape(operator, (channels, *size), device)
    array = read_measured(node[key], f"{KEY}.{key}")
    return operator, torch.from_numpy(as_rows(array, (channels, *size) if key == "simulate" else wanted,
                                              f"{KEY}.{key}={node[key]}", key))


def key_of(node: Mapping[str, Any]) -> str:
    """The key of a node that names its file."""
    return next(key for key in FILES if node.get(key) is not None)


def partial_of(node: Mapping[str, Any]) -> Callable[..., Denoiser]:
    """A method with its arguments but for denoiser, operator, measurement and image."""
    return build({**node, "_partial_": True})


def channels_of(snapshot: Snapshot, stage: FirstStage | None) -> int:
    """Channels of the images that an operator sees."""
    if stage is not None:
        return len(stage.facts.channels) or 1
    return snapshot.shape[0] - (snapshot.label_coding.channels if snapshot.label_coding else 0)


@torch.no_grad()
def measured_shape(operator: Operator, image: Sequence[int], device: torch.device) -> tuple[int, ...]:
    """Shape of what is measured of one image [C,*S]; ValueError unless the adjoint leads back."""
    x = torch.zeros(1, *image, device=device)
    y = operator.A(x)
    back = operator.A_adjoint(y)
    if len(y) != 1 or back.shape != x.shape:
        raise ValueError(f"operator {type(operator).__name__}: A makes {list(y.shape)} of images {list(x.shape)}, and "
                         f"A_adjoint {list(back.shape)} of that; wanted [1,...], and {list(x.shape)} again")
    return tuple(y.shape[1:])


def as_rows(array: np.ndarray, wanted: Sequence[int], said: str, key: str) -> np.ndarray:
    """An array as rows [M,*wanted]: of many or of one, an axis of length 1 for one channel may be left out.

    ValueError, begun by `said`, for another shape.
    """
    wanted, shape = tuple(wanted), array.shape
    forms = {wanted: (1, *wanted)} | ({wanted[1:]: (1, *wanted)} if wanted[:1] == (1,) else {})
    if shape in forms:
        return array.reshape(forms[shape])
    if shape[1:] in forms:
        return array.reshape(-1, *wanted)
    what = "images" if key == "simulate" else "what the operator makes of an image"
    raise ValueError(f"{said}: holds an array {list(shape)}; {what} is {list(wanted)}, wanted that or "
                     f"{['rows', *wanted]}")


def image_map(snapshot: Snapshot, stage: FirstStage | None, conditions: Conditions, device: torch.device,
              numbers: Sequence[int]) -> Affine | Smooth:
    """What the operator's images, in stored units and never clipped, are of what is drawn for samples.

    Facts say the unit of all of them, but for networks that are told scans, which draw in the scale of each.
    """
    intensity, channels = snapshot.facts.intensity, channels_of(snapshot, stage)
    gain = (intensity.hi - intensity.lo) / 2
    shift = intensity.lo + gain
    if conditions.scans is not None:
        gain = shift = conditions.scans(conditions.seeds(numbers)).scale.to(device) / 2
    if stage is not None:
        semantic = conditions(numbers).to(device).semantic if stage.masked else None
        return Smooth(lambda z: stage.decode_soft(z, semantic)[0], gain)
    if channels == snapshot.shape[0]:
        return Affine(gain, shift)
    return Smooth(lambda x: over(gain, x) * x[:, :channels] + over(shift, x), gain)


@contextmanager
def errors_said_at(key: str) -> Iterator[None]:
    """Have what an operator or a method raises on its first use say by which key it came."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{key}: {str(e).removeprefix(f'{key}: ')}") from e
    except Exception as e:
        if is_lack_of_memory(e):
            raise
        raise ValueError(f"{key}: cannot be used on what is drawn ({type(e).__name__}: {first_line(e)})") from e


def given_in_words(node: Mapping[str, Any]) -> str:
    """What is drawn given, for a line on what draws."""
    method, operator = (part["_target_"].rpartition(".")[2] for part in (node, node["operator"]))
    arguments = " ".join(f"{key}={value}" for key, value in node["operator"].items() if key != "_target_")
    source = node.get("measurement") or f"{node['simulate']}, simulated"
    return f"{source} by {method} with {operator} {arguments}".rstrip()
