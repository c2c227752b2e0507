"""The first stage that decoded samples, and volumes that it decodes beside them: noise, and held-out ones."""

from collections.abc import Iterator
from pathlib import Path

import torch

from edm3d.formats.samples import SamplesFile
from edm3d.inference.first_stage import FirstStage, tiles_of
from edm3d.inference.labelling import Labeller
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.reference import Cases
from edm3d.utils.checks import listed
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import find_file

DRAWN = 8  # volumes of noise drawn at a time


def best_device() -> torch.device:
    """Where networks run: cuda where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_first_stage(samples: SamplesFile, override: Path | None, trust: bool, device: torch.device,
                     run_root: Path = Path("results")) -> tuple[FirstStage | None, str]:
    """The first stage as it decoded the samples, tiles and all, or None and the reason why there is none."""
    path = Path(samples.meta.snapshot)
    if override is not None:
        path = find_file(str(override), "network-snapshot", run_root, "--snapshot")
    elif not path.exists():
        return None, f"the snapshot that the samples name, {path}, is not there; point --snapshot to it"
    snapshot = Snapshot.read(path)
    if snapshot.hash != samples.meta.snapshot_hash:
        return None, f"{path} is not the snapshot that drew the samples: its hash differs from the one they record"
    if snapshot.first_stage is None:
        return None, "the network draws voxels, it has no first stage"
    if snapshot.first_stage.network is None:
        return None, f"{path} does not carry the first stage of its latents"
    had, wanted = samples.meta.facts.label_classes, snapshot.facts.label_classes
    if had != wanted and samples.meta.labelling and wanted:
        return None, f"{path} was trained with other label classes than the samples' segmenter: {listed(wanted)}"
    if had != wanted and not samples.meta.labelling:
        raise ValueError(f"{samples.path}: label_classes are {listed(had) or 'none'}, those of {path}, which drew "
                         f"them, are {listed(wanted) or 'none'}")
    stage = snapshot.open_first_stage(trust, resolve_precision(samples.meta.precision, device)).to(device)
    return stage.in_parts(tiles_of(samples.meta.sampling)), ""


def noise_cases(stage: FirstStage, count: int, seed: int, layout: Layout, labeller: Labeller | None = None
                ) -> Iterator[Case]:
    """Decoded noise: volumes decoded from normal latents with the standard deviation of true ones."""
    generator, shape = torch.Generator().manual_seed(seed), stage.net.latent_shape(stage.facts.spatial_shape)
    for start in range(0, count, DRAWN):
        noise = torch.randn(min(DRAWN, count - start), *shape, generator=generator)
        for i, normal in enumerate(noise.to(stage.device).split(1), start):
            yield decoded_case(stage, f"noise-{i:06d}", stage.noise(normal), layout, None, labeller)


def reconstruct(stage: FirstStage, held: Cases, count: int, layout: Layout) -> Iterator[DecodedCase]:
    """decode(encode(x)) of the first volumes."""
    for case in map(held.case, range(count)):
        arrays = case.image, case.label if layout.label_classes else None, case.semantic
        image, label, semantic = (None if array is None else torch.from_numpy(array)[None].to(stage.device)
                                  for array in arrays)
        latents = stage.encode(image, label, semantic)
        yield DecodedCase(case, decoded_case(stage, case.id, latents, layout, semantic))


def decoded_case(stage: FirstStage, name: str, latents: torch.Tensor, layout: Layout,
                 semantic: torch.Tensor | None = None, labeller: Labeller | None = None) -> Case:
    """The volume of latents [1,z,*s]; its label map that of the first stage, or what the labeller gives."""
    image, label = stage.decode(latents, semantic)
    image = image[0].cpu().numpy()
    if not layout.label_classes:
        return Case(name, image, None)
    return Case(name, image, labeller(image) if labeller else label[0].cpu().numpy())
