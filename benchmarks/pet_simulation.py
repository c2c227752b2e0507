"""Claim: a simulated pair of doses (MLEM-50, 64 x 64, 128 angles) costs a quarter or less of what it does by a dense
matrix in torch.

Counted is all of `DoseSimulation.pair`: projection, counts of both doses, and their reconstruction. Dense and sparse
take turns in one run, and their images are held against each other. One JSON line per size of the batch; one more says
how long the matrices of 64 x 64 and 128 x 128 pixels take, and how far chords of a disc are off.

Run from the top of the checkout: python -m benchmarks.pet_simulation
"""

import copy
import math
import statistics
import time

import numpy as np
import torch

from benchmarks.common import json_line
from edm3d.physics.dose import DosePair, DoseSimulation
from edm3d.physics.pet_phantoms import pet_phantom
from edm3d.physics.projector import ParallelBeam, SparseMap, system_matrix
from edm3d.samplers.noise import ImageGenerators

LIMIT = 0.25
BATCHES, REPEATS = (8, 16, 32), 5


class DenseMap:
    """The matrix of a SparseMap, dense, at the same work."""

    def __init__(self, lines: SparseMap):
        self.matrix = torch.from_numpy(lines.matrix.toarray()).float()
        self.transpose = self.matrix.T.contiguous()

    def pair(self, dtype: torch.dtype, device: torch.device) -> None:
        """There is nothing to prepare."""

    def __call__(self, columns: torch.Tensor, adjoint: bool = False) -> torch.Tensor:
        return (self.transpose if adjoint else self.matrix) @ columns


def dense_twin(simulation: DoseSimulation) -> DoseSimulation:
    """The same simulation by a dense matrix."""
    twin = DoseSimulation()
    twin._projector = copy.copy(simulation.projector)
    twin._projector.lines = DenseMap(simulation.projector.lines)
    return twin


def timed(simulation: DoseSimulation, activity: torch.Tensor) -> tuple[float, DosePair]:
    """Milliseconds per pair, and the pairs."""
    start = time.perf_counter()
    pair = simulation.pair(activity, ImageGenerators(range(len(activity))))
    return 1e3 * (time.perf_counter() - start) / len(activity), pair


def measure_pairs(batch: int, sparse: DoseSimulation, dense: DoseSimulation) -> None:
    """Print the line of one size of the batch."""
    activity = torch.stack([torch.from_numpy(pet_phantom(i).activity)[None] for i in range(batch)])
    ours, theirs = [], []
    for repeat in range(REPEATS + 1):  # the first warms up
        for simulation, times in ((sparse, ours), (dense, theirs)):
            milliseconds, pair = timed(simulation, activity)
            times += [milliseconds] if repeat else []
            if simulation is sparse:
                made = pair
    difference = float((made.high - pair.high).norm() / pair.high.norm())
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(json_line("a simulated pair costs a quarter or less of a dense matrix", batch=batch,
                    threads=torch.get_num_threads(), ms_per_pair=round(statistics.median(ours), 2),
                    dense_ms_per_pair=round(statistics.median(theirs), 2), ratio=round(ratio, 4), limit=LIMIT,
                    difference=round(difference, 7), holds=ratio <= LIMIT), flush=True)


def build_seconds(size: int) -> float:
    """Of a matrix of 2 size angles."""
    start = time.perf_counter()
    system_matrix(ParallelBeam(size))
    return time.perf_counter() - start


def disc_error(geometry: ParallelBeam, radius: float) -> float:
    """Root mean square of sinogram - chords, in pixels, of a disc whose pixels are 1 where their centre is inside."""
    middles = np.arange(geometry.size) - (geometry.size - 1) / 2
    disc = (middles[None] ** 2 + middles[:, None] ** 2 < radius**2).astype(float)
    lines = (system_matrix(geometry) @ disc.ravel()).reshape(geometry.sinogram_shape)
    chords = 2 * np.sqrt((radius**2 - geometry.positions() ** 2).clip(0))
    return math.sqrt(((lines - chords) ** 2).mean())


def main() -> None:
    seconds = {f"seconds_{size}": round(build_seconds(size), 2) for size in (64, 128)}
    error = max(disc_error(ParallelBeam(64), radius) for radius in (10, 16, 20, 25, 30))
    print(json_line("matrices take under 2 and 20 seconds, chords of discs are 0.6 pixels off or less", **seconds,
                    disc_rms_pixels=round(error, 3),
                    holds=seconds["seconds_64"] < 2 and seconds["seconds_128"] < 20 and error <= 0.6), flush=True)
    sparse = DoseSimulation()
    dense = dense_twin(sparse)
    for batch in BATCHES:
        measure_pairs(batch, sparse, dense)


if __name__ == "__main__":
    main()
