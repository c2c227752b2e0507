"""A ventricle dilated by 3 %: seen by the test on LV volume, and by the Frechet distance? And how exact is anatomy?

Draws of N against N fresh phantoms of 32^3. `same`: two sets of phantoms; `ventricle`: the cavity of the second set is
3 % larger, 9 % in volume, in a wall as thick as before; `heart`: its wall and atrium are 3 % larger as well. They are
drawn anew from the analytic anatomy: sector, speckle and scanner are as they were. Nothing is interpolated, since that
blurs speckle, which features see (a zoom of the image by splines is 3 to 7 times as far from real as real is from
real), and at 32^3 a zoom of 3 % moves no label. LV volumes are measured on label maps, features are those of the random
network. A JSON line for each: how often the tests reject at p < 0.01 (of `same`: false alarms, 1 in 100 is wanted),
alone and by Holm over the tests of so many numbers; and how often the Frechet distance lies in the middle 95 %, and
below the 99 % point, of that of `same`.
Last lines: volumes and wall thickness of phantoms of 64^3, and of short-axis stacks of 13x96x96 and 13x32x32 with their
angles, against their exact attributes, and CPU seconds a stack. Run from the checkout's top:
python -m benchmarks.anatomy [--draws 100] [--num 256] [--gain 1.03] [--seed 0] [--exact 100]
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from time import process_time
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats

from benchmarks.common import json_line
from edm3d.metrics import clinical, two_sets
from edm3d.metrics.frechet import frechet_distance
from edm3d.networks.random_features import RandomFeatures
from edm3d.physics import phantoms
from edm3d.physics.cardiac_anatomy import spacing_of
from edm3d.physics.phantom_kinds import CardiacPhantoms
from edm3d.physics.phantoms import EXTENT, LABEL_CLASSES, Phantom, echo_phantom

SIZE, ALPHA, NUMBERS, BATCH = 32, 0.01, 8, 64
TESTS = {
    "welch": two_sets.welch,
    "mann_whitney": lambda a, b: stats.mannwhitneyu(a, b).pvalue,
    "cramer_von_mises": lambda a, b: stats.cramervonmises_2samp(a, b).pvalue,
    "kolmogorov_smirnov": two_sets.kolmogorov_smirnov,
    "brown_forsythe": two_sets.brown_forsythe,
}


def hearts(seed: int, num: int, gain: float, what: str) -> Iterator[Phantom]:
    """Phantoms whose ventricle or whole heart is larger by `gain`."""
    draw = phantoms._draw_heart

    def larger(*arguments: object) -> phantoms.Heart:
        heart = draw(*arguments)
        shape = replace(heart.shape, axes=heart.shape.axes * gain)
        if what == "heart":
            wall = replace(shape.wall, mean=shape.wall.mean * gain)
            shape = replace(shape, wall=wall, atrium=shape.atrium * gain)
        return replace(heart, shape=shape)

    with patch.object(phantoms, "_draw_heart", larger):
        for i in range(num):
            yield echo_phantom(i, seed=seed, size=SIZE)


def measured(seed: int, num: int, gain: float, what: str, net: RandomFeatures) -> tuple[np.ndarray, np.ndarray]:
    """LV volumes [N] and features [N,d]."""
    drawn = list(hearts(seed, num, gain, what))
    spacing = (EXTENT / SIZE,) * 3
    volumes = [clinical.structure_volumes(p.label, spacing, len(LABEL_CLASSES))[1] for p in drawn]
    images = torch.from_numpy(np.stack([p.image[None] for p in drawn])) * 2 - 1
    with torch.no_grad():
        features = torch.cat([net(part) for part in images.split(BATCH)])
    return np.array(volumes), features.numpy()


def rejected(pairs: list[tuple[np.ndarray, np.ndarray]], level: float) -> dict[str, int]:
    """How many of pairs of sets each test tells apart."""
    return {name: int(sum(test(a, b) < level for a, b in pairs)) for name, test in TESTS.items()}


def power(draws: int, num: int, gain: float, seed: int) -> Iterator[str]:
    """The lines of the tests and the Frechet distance."""
    net = RandomFeatures(1, 3)
    volumes: dict[str, list] = {name: [] for name in ("same", "ventricle", "heart")}
    distances: dict[str, list[float]] = {name: [] for name in volumes}
    for draw in range(draws):
        first = 10_000 * (seed + 1) + 4 * draw
        real = measured(first, num, 1.0, "same", net)
        for k, name in enumerate(volumes, 1):
            other = measured(first + k, num, 1.0 if name == "same" else gain, name, net)
            volumes[name].append((real[0], other[0]))
            distances[name].append(frechet_distance(real[1], other[1]))
    low, high, p99 = (float(x) for x in np.quantile(distances["same"], [0.025, 0.975, 0.99]))
    for name, pairs in volumes.items():
        found = np.array(distances[name])
        inside, seen = (low <= found) & (found <= high), np.array([two_sets.welch(a, b) < ALPHA for a, b in pairs])
        yield json_line(f"{name}: LV volume by Welch's test, and the Frechet distance", draws=draws, num=num,
                        gain=1.0 if name == "same" else gain, alpha=ALPHA, **rejected(pairs, ALPHA),
                        welch_holm=rejected(pairs, ALPHA / (3 * NUMBERS))["welch"], holm_tests=3 * NUMBERS,
                        frechet_median=float(np.median(found)), real_low=low, real_high=high, real_p99=p99,
                        frechet_inside=int(inside.sum()), frechet_below_p99=int((found <= p99).sum()),
                        seen_and_inside=int((seen & inside).sum()), features="random network, 224 numbers",
                        limit=None if name == "same" else 95, ours=int(seen.sum()))


def exactness(num: int, size: int = 64) -> str:
    """The line of volumes and wall thickness against exact attributes, at end-diastole and end-systole."""
    errors: dict[str, list[float]] = {"lv_percent": [], "la_percent": [], "wall_voxels": []}
    spacing = (EXTENT / size,) * 3
    for i in range(num):
        phantom = echo_phantom(i, seed=77, size=size, pairs=True)
        lv, wall, la, _ = phantom.attributes
        volumes = clinical.structure_volumes(phantom.label, spacing, len(LABEL_CLASSES))
        thickness = clinical.wall_thickness(phantom.label, spacing)
        for name, error in zip(errors, (100 * (volumes[1] / lv - 1), 100 * (volumes[3] / la - 1),
                                        (thickness - wall) / spacing[0])):
            errors[name].append(float(error))
    return json_line("volumes and wall thickness of phantoms are their exact attributes", num=num, size=size,
                     **summed(errors))


def stacks(num: int, size: tuple[int, int, int]) -> str:
    """The same line of short-axis stacks, thickness in pixels of the plane."""
    errors: dict[str, list[float]] = {"lv_percent": [], "rv_percent": [], "wall_pixels": [], "angle_degrees": []}
    source, start = CardiacPhantoms(size), process_time()
    drawn = [source.draw(i, 77) for i in range(num)]
    seconds = (process_time() - start) / num
    spacing = spacing_of(size)
    for phantom in drawn:
        known = dict(zip((name for name, _ in source.attributes), phantom.attributes))
        volumes = clinical.structure_volumes(phantom.label, spacing, len(source.label_classes))
        for name, error in zip(errors, (
                100 * (volumes[1] / known[f"LV{phantom.phase}V"] - 1),
                100 * (volumes[3] / known[f"RV{phantom.phase}V"] - 1),
                (clinical.stack_thickness(phantom.label, spacing) - known[f"MYO{phantom.phase}THICK"]) / spacing[2],
                clinical.ventricle_angle(phantom.label, spacing) - known["ANGLE"])):
            errors[name].append(float(error))
    return json_line("volumes and wall thickness of stacks are their exact attributes", num=num, size=list(size),
                     seconds=round(seconds, 4), **summed(errors))


def summed(errors: dict[str, list[float]]) -> dict[str, float]:
    """Bias, mean, 95 % point and largest of the absolute errors, by name."""
    return {f"{name}_{key}": round(float(value(np.array(values))), 4) for name, values in errors.items()
            for key, value in (("bias", np.mean), ("mean_abs", lambda x: abs(x).mean()),
                               ("p95_abs", lambda x: np.quantile(abs(x), 0.95)), ("max_abs", lambda x: abs(x).max()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("draws", 100), ("num", 256), ("seed", 0), ("exact", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gain", type=float, default=1.03)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.draws:
        for line in power(asked.draws, asked.num, asked.gain, asked.seed):
            print(line, flush=True)
    if asked.exact:
        print(exactness(asked.exact), flush=True)
        for size in ((13, 96, 96), (13, 32, 32)):
            print(stacks(asked.exact, size), flush=True)


if __name__ == "__main__":
    main()
