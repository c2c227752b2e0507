"""The picture of a sweep: a row for each seed, a column for each value of the attribute."""

from collections.abc import Iterator
from pathlib import Path

from edm3d.formats.nifti import spacing_of
from edm3d.formats.samples import SamplesFile
from edm3d.utils.names import one_line

MOST_COLUMNS = 24


def write_sweep(outdir: Path, samples: SamplesFile, most: int) -> Iterator[str]:
    """Write sweep.png of the first seeds, so many at most, where samples are of a sweep and have images; a line on it.

    Of very many values some are shown, from the first to the last.
    """
    sweep = samples.meta.sweep
    if sweep is None or not most or "images" not in samples.names:
        return
    from edm3d.reporting.montages import montage, save_png
    from edm3d.reporting.strips import evenly
    count, facts = len(sweep.values), samples.meta.facts
    columns = evenly(count, MOST_COLUMNS)
    seeds = [seed for seed in dict.fromkeys(map(samples.meta.noise_of, samples.seeds.tolist()))
             if all(seed * count + k in samples.rows for k in columns)][:most]
    blocks = [(f"Seed {seed}", [(samples.row("images", row), samples.row("labels", row))
                                for row in (samples.rows[seed * count + k] for k in columns)]) for seed in seeds]
    captions = [f"{one_line(sweep.name)}\n{sweep.values[k]:g} {one_line(sweep.unit)}".rstrip() for k in columns]
    dims = len(samples.shape("images")) - 2
    save_png(montage(blocks, spacing_of(samples.affine)[:dims], label_classes=facts.label_classes,
                     channels=facts.channels, affine=samples.affine, captions=captions), outdir / "sweep.png")
    yield f"Sweep     {outdir / 'sweep.png'}: {len(columns)} values of {one_line(sweep.name)}, {len(seeds)} seeds"
