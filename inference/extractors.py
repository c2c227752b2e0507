"""What makes features of volumes and slices: a first stage, a TorchScript file, a network that has learnt nothing."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from edm3d.inference.first_stage import FirstStage
from edm3d.networks.random_features import RandomFeatures
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.features import VOLUME, ExtractorRecord
from edm3d.utils.checks import listed
from edm3d.utils.files import arrays_hash, file_hash, first_line, plain_hash
from edm3d.utils.names import one_line

AUTOENCODER, RANDOM, SCRIPT = "autoencoder", "random", "torchscript"
WIDEST = 512  # features of the first stage: as much of a grid as fits
GRIDS = (4, 3, 2, 1)  # cells per axis
POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
FAILURES = (RuntimeError, torch.jit.Error)
Network = Callable[[torch.Tensor], torch.Tensor]  # images [N,C,*S] in [-1,1] to features [N,d]


@dataclass(frozen=True)
class Extractor:
    """Features [1,d] of a volume and its image [1,C,*S] in [-1,1]; features [K,d] of slices [K,C,h,w] of a plane.

    Either is None where it takes none. What a network gives is looked at here: ValueError for another width than that
    of the record, and for numbers that are not finite.
    """

    record: ExtractorRecord
    of_volume: Callable[[Case, torch.Tensor], torch.Tensor] | None = None
    of_slices: Network | None = None

    def __call__(self, case: Case, image: torch.Tensor, view: str) -> np.ndarray:
        """Features float32 of a view; image: the volume's or the slices'."""
        name = one_line(self.record.name)
        try:
            with torch.no_grad():
                found = self.of_volume(case, image) if view == VOLUME else self.of_slices(image)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as e:
            raise ValueError(f"--features {name}: fails on {case.id} ({script_error(e)})") from e
        if list(found.shape) != [len(image), self.record.width]:
            raise ValueError(f"--features {name}: gives features {list(found.shape)} for {case.id}, wanted "
                             f"{[len(image), self.record.width]} as before; an extractor has one width")
        if not found.isfinite().all():
            culprit = "whose own values are not finite" if not image.isfinite().all() else "of sound values"
            raise ValueError(f"--features {name}: gives NaN or infinite features for {case.id}, {culprit}")
        return found.float().cpu().numpy()


def check_words(words: Sequence[str]) -> None:
    """ValueError for words of --features that name no extractor, or one twice."""
    for word in words:
        kind, _, path = word.partition(":")
        if word not in (AUTOENCODER, RANDOM) and not (kind == SCRIPT and path):
            raise ValueError(f"--features {one_line(word)}: wanted {AUTOENCODER}, {SCRIPT}:PATH or {RANDOM}")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise ValueError(f"--features: {listed(twice)} twice; name each extractor once")
    if not words:
        raise ValueError(f"--features: wanted one or more of {AUTOENCODER}, {SCRIPT}:PATH and {RANDOM}")


def seen_as(layout: Layout, size: Sequence[int]) -> str:
    """How all extractors see volumes, in words."""
    return (f"intensities {layout.lo:g} to {layout.hi:g} as -1 to 1; {' x '.join(map(str, size))} voxels as they are, "
            "not resampled")


def weights_hash(*networks: nn.Module) -> str:
    """sha256 of the weights of networks."""
    return arrays_hash({f"{n}.{i:06d}": value.detach().float().cpu().numpy() for n, network in enumerate(networks)
                        for i, value in enumerate(network.state_dict().values())})


# ---- a network that has learnt nothing ----


def random_extractor(layout: Layout, size: Sequence[int], device: torch.device) -> Extractor:
    """Fixed random convolutions, of volumes and of slices."""
    nets = {dims: RandomFeatures(len(layout.channels), dims).to(device).eval() for dims in {len(size), 2}}
    net = nets[len(size)]
    width = net(torch.zeros(1, len(layout.channels), *[8] * len(size), device=device)).shape[1]
    record = ExtractorRecord(RANDOM, RANDOM, "fixed random convolutions (networks/random_features.py)",
                             weights_hash(*(nets[dims] for dims in sorted(nets))), seen_as(layout, size), True, width)
    return Extractor(record, lambda _, image: net(image), nets[2])


# ---- the first stage that decoded the samples ----


def autoencoder_extractor(stage: FirstStage, layout: Layout, size: Sequence[int], held: tuple[int, int] | None = None
                          ) -> Extractor:
    """Posterior means of the first stage: mean and standard deviation of each channel over space, and means over the
    cells of a grid, as fine as WIDEST features allow.

    held: slices along the first axis that count, None: all; latents count that lie in them whole, where there are some.
    """
    channels, dims = stage.net.latent_shape(size)[0], len(size)
    kept = slice(*latents_held(held, size[0], stage.net.latent_shape(size)[1])) if held else slice(None)
    grid = next((n for n in GRIDS if channels * (n**dims + 2) <= WIDEST), 1)

    def features(case: Case, image: torch.Tensor) -> torch.Tensor:
        arrays = (case.image, case.label if stage.net.num_classes else None, case.semantic if stage.masked else None)
        whole, label, semantic = (None if array is None else torch.from_numpy(np.ascontiguousarray(array))[None]
                                  .to(stage.device) for array in arrays)
        return pooled(stage.encode(whole.float(), label, semantic).float()[:, :, kept], grid)

    seen = (f"{seen_as(layout, size)}; posterior means of {channels} channels: mean and standard deviation over space, "
            f"and means over a grid of {grid} per axis" + ("" if stage.whole else "; in the tiles of the samples")
            + (f"; of latents {kept.start} to {kept.stop - 1} along the first axis" if held else ""))
    of_stage = plain_hash([weights_hash(stage.net), stage.scaling, stage.precision, stage.tiles])
    record = ExtractorRecord(AUTOENCODER, AUTOENCODER, "the first stage that decoded the samples", of_stage, seen,
                             False, channels * (grid**dims + 2))
    return Extractor(record, features)


def latents_held(held: tuple[int, int], size: int, latents: int) -> tuple[int, int]:
    """First and past-last of so many latents that lie whole within slices, of so many; all where none does."""
    first, last = -(-held[0] * latents // size), held[1] * latents // size
    return (first, last) if first < last else (0, latents)


def pooled(latents: torch.Tensor, grid: int) -> torch.Tensor:
    """Features [N,z*(2+grid^dims)] of latents [N,z,*s]."""
    flat = latents.flatten(2)
    cells = POOLS[latents.ndim - 2](latents, grid)
    return torch.cat([flat.mean(2), flat.std(2, correction=0), cells.flatten(1)], dim=1)


# ---- a TorchScript file ----


def script_extractor(path: Path, name: str, layout: Layout, size: Sequence[int], device: torch.device) -> Extractor:
    """The network of a TorchScript file, which runs code of the file's own: [N,C,*S] to [N,d], or to [N,d,*], of which
    means over space are taken. What it takes is found by trying: volumes, else slices; an only channel as it is, else
    three times.
    """
    key = f"--features {SCRIPT}:{one_line(str(path))}"
    if not path.is_file():
        raise ValueError(f"{key}: {'a folder, wanted a file' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated is no news to a user
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, AttributeError) as e:
        raise ValueError(f"{key}: cannot be read as TorchScript ({first_line(e)}); save it by "
                         "torch.jit.script(network).save(PATH)") from e
    dims, copies, width = what_it_takes(network, key, len(layout.channels), size, device)
    net = scripted(network, copies, key)
    seen = seen_as(layout, size) + (f"; the channel {copies} times" if copies > 1 else "")
    record = ExtractorRecord(name, SCRIPT, one_line(str(path)), file_hash(path), seen, False, width)
    return Extractor(record, None, net) if dims < len(size) else \
        Extractor(record, lambda _, image: net(image), net if len(size) == 2 else None)


def what_it_takes(network: nn.Module, key: str, channels: int, size: Sequence[int], device: torch.device
                  ) -> tuple[int, int, int]:
    """Axes, copies of the channel and width of features; ValueError for a network that takes nothing of ours, gives no
    features, or others for the same images, by themselves or beside others.
    """
    why = ""
    for shape in [tuple(size), *([tuple(size[1:])] if len(size) == 3 else [])]:
        for copies in (1, 3) if channels == 1 else (1,):
            noise = torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(0)).clip(-1, 1).to(device)
            net = scripted(network, copies, key)
            try:
                with torch.no_grad():
                    found, again, alone = net(noise), net(noise), net(noise[:1])
            except torch.OutOfMemoryError:
                raise
            except FAILURES as e:
                why = why or f"{[2, channels * copies, *shape]}: {script_error(e)}"
                continue
            if len(found) != 2 or len(alone) != 1 or alone.shape[1:] != found.shape[1:]:
                raise ValueError(f"{key}: gives {list(found.shape)} for 2 images and {list(alone.shape)} for 1, wanted "
                                 "[N,d] of one width d")
            slack = 1e-3 * float(found.abs().mean()) + 1e-6
            if found.isfinite().all() and max(float((found - again).abs().max()),
                                              float((found[:1] - alone).abs().max())) > slack:
                raise ValueError(f"{key}: gives other features for the same image, by itself and beside others or from "
                                 "call to call; save the network in eval mode")
            return len(shape), copies, found.shape[1]
    raise ValueError(f"{key}: takes no images of {channels} channels, neither volumes of {list(size)} nor slices "
                     f"({why})")


def scripted(network: nn.Module, copies: int, key: str) -> Network:
    """Features [N,d] float32 by a network of a file; ValueError where it gives none."""

    def features(images: torch.Tensor) -> torch.Tensor:
        found = network(images.repeat(1, copies, *[1] * (images.ndim - 2)))
        if not isinstance(found, torch.Tensor) or found.ndim < 2 or found.shape[1] == 0:
            got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"{key}: gives {got}, wanted features [N,d] or [N,d,*S]")
        return found.float() if found.ndim == 2 else found.float().flatten(2).mean(2)

    return features


def script_error(error: Exception) -> str:
    """What went wrong within TorchScript: its last line, below the traceback that it gives."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[-1].strip())[:200]
