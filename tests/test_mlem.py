"""MLEM keeps counts, never lowers the likelihood and never makes what is not a number; OSEM is faster to the same."""

import math

import pytest
import torch

from edm3d.physics.mlem import mlem, osem
from edm3d.physics.pet_phantoms import pet_phantom
from edm3d.physics.projector import ParallelBeam, Projector

BEAM = ParallelBeam(24)
PROJECTOR = Projector(BEAM)


def counts_of(total, number=3, projector=PROJECTOR, dtype=torch.float32, seed=0):
    """Poisson counts of some phantoms, about so many each."""
    x = torch.stack([torch.from_numpy(pet_phantom(i, size=24).activity)[None] for i in range(number)]).double()
    lines = projector.A(x)
    rate = lines * total / lines.sum((1, 2, 3), keepdim=True)
    return torch.poisson(rate, torch.Generator().manual_seed(seed)).to(dtype)


def likelihood(counts, expected):
    """Of Poisson counts, per image, but for what hangs on the counts alone."""
    counts, expected = counts.double(), expected.double()
    return (torch.special.xlogy(counts, expected) - expected).sum((-2, -1)).ravel()


@pytest.mark.parametrize("projector", [
    PROJECTOR, Projector(BEAM, normalised=False), Projector(BEAM, attenuation=torch.full((24, 24), 0.3), blur=0.8),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_kept_and_the_likelihood_never_falls(projector, dtype):
    counts, seen, reached = counts_of(2e4, projector=projector, dtype=dtype), [], []

    def look(iteration, x):
        seen.append(iteration)
        total = (x * projector.sensitivity(counts)).sum((1, 2, 3))
        assert (total / counts.sum((1, 2, 3)) - 1).abs().max() < 1e-5
        reached.append(likelihood(counts, projector.A(x)))

    mlem(projector, counts, 40, callback=look)
    assert seen == list(range(1, 41))
    steps = torch.stack(reached).diff(dim=0)
    assert steps.min() > (-1e-6 if dtype == torch.float64 else -0.05)  # rounding: the likelihoods are some 1e5
    assert steps[0].min() > 10


def test_first_iteration_by_hand():
    counts = counts_of(1e4, dtype=torch.float64)
    start = torch.rand(3, 1, 24, 24, dtype=torch.float64)
    expected = start * PROJECTOR.A_adjoint(counts / PROJECTOR.A(start))
    assert torch.allclose(mlem(PROJECTOR, counts, 1, start=start), expected)
    background = torch.rand(3, 1, 48, 24, dtype=torch.float64)
    expected = start * PROJECTOR.A_adjoint(counts / (PROJECTOR.A(start) + background))
    assert torch.allclose(mlem(PROJECTOR, counts, 1, background, start), expected)


def test_background_is_known_and_not_drawn():
    clean = counts_of(1e6, dtype=torch.float64)
    background = torch.full_like(clean, clean.mean().item())
    with_it = mlem(PROJECTOR, clean + background, 100, background)
    assert with_it.sum((1, 2, 3)) == pytest.approx(clean.sum((1, 2, 3)), rel=0.02)
    assert mlem(PROJECTOR, clean + background, 100).sum() > 1.9 * with_it.sum()


def awkward():
    """Counts that are easily divided by zero."""
    none, one, sparse = torch.zeros(1, 1, 48, 24), torch.zeros(1, 1, 48, 24), counts_of(200, 1)
    one[0, 0, 3, 5] = 1
    corner = torch.zeros(1, 1, 48, 24)
    corner[0, 0, 12, :2] = 1e6
    return torch.cat([none, one, sparse, corner, 1e-20 * sparse, 1e20 * sparse, counts_of(1e6, 1)])


@pytest.mark.parametrize("projector", [
    PROJECTOR, Projector(ParallelBeam(48, 48, 24, bin_pixels=0.2)),  # many pixels are seen by no line
    Projector(ParallelBeam(24, shifts=24, bin_pixels=4.0)),  # most lines miss the image
    Projector(BEAM, attenuation=torch.linspace(0, 60, 576).reshape(24, 24)),  # nothing comes through
])
@pytest.mark.parametrize("subsets", [1, 6])
def test_nothing_is_ever_nan(projector, subsets):
    x = osem(projector, awkward(), 500 if subsets == 1 else 60, subsets)
    assert x.isfinite().all()
    assert (x >= 0).all()
    assert (x[0] == 0).all()


def test_zeros_stay_zero_with_a_background_and_a_start():
    counts = counts_of(1e4)
    counts[1] = 0
    x = mlem(PROJECTOR, counts, 5, background=torch.zeros(1), start=torch.zeros(3, 1, 24, 24))
    assert (x == 0).all()
    assert (mlem(PROJECTOR, counts, 5, background=torch.ones(1))[1] == 0).all()


def test_osem_is_as_likely_in_fewer_iterations():
    counts = counts_of(1e5, dtype=torch.float64)
    slow, fast = mlem(PROJECTOR, counts, 32), osem(PROJECTOR, counts, 4, 8)
    start = likelihood(counts, PROJECTOR.A(mlem(PROJECTOR, counts, 4)))
    gained = [likelihood(counts, PROJECTOR.A(x)) - start for x in (slow, fast)]
    assert (gained[1] > 0.9 * gained[0]).all()
    assert torch.equal(osem(PROJECTOR, counts, 3, 1), mlem(PROJECTOR, counts, 3))


@pytest.mark.parametrize("total", [30, 100])
@pytest.mark.parametrize("background", [None, torch.ones(1) * 1e-3])
def test_osem_of_few_counts_in_many_sets_is_never_empty(total, background):
    counts = counts_of(total, number=24)
    for iterations in (1, 2, 30):
        x = osem(PROJECTOR, counts, iterations, 24, background)
        assert x.isfinite().all()
        assert ((x > 0).flatten(1).all(1) == (counts > 0).flatten(1).any(1)).all()


def test_a_set_of_angles_without_counts_leaves_a_slice_as_it_is():
    counts = counts_of(1e4)
    counts[1, :, 1::2], counts[2] = 0, 0
    seen, start = [], torch.rand(3, 1, 24, 24)
    osem(PROJECTOR, counts, 1, 2, start=start, callback=lambda _, x: seen.append(x))
    begun, first, kept = start[1:2], PROJECTOR.subsets(2)[0][1], counts[1:2, :, ::2]
    expected = begun * first.A_adjoint(kept / first.A(begun)) / first.sensitivity(kept)
    assert torch.allclose(seen[0][1:2], expected.maximum(1e-6 * begun), rtol=1e-4)
    assert (seen[0][2] == 0).all()


def test_pixels_that_a_set_of_angles_does_not_see_stay():
    projector = Projector(ParallelBeam(16, angles=2, shifts=2, bin_pixels=1.0))  # two columns, then two rows
    counts = torch.full((1, 1, 2, 2), 100.0)
    x = osem(projector, counts, 3, 2)[0, 0]
    assert (x[0, 7:9] > 0).all()  # of the columns alone
    assert (x[7:9, 0] > 0).all()  # of the rows alone
    assert x[0, 0] == 0


def test_an_image_hangs_on_no_other_of_the_batch():
    counts = counts_of(1e4)
    assert torch.equal(mlem(PROJECTOR, counts, 20)[1:2], mlem(PROJECTOR, counts[1:2], 20))


def test_stacks_are_slices():
    counts = counts_of(1e4)
    stack = counts[:, 0][None, None]
    assert torch.equal(mlem(PROJECTOR, stack, 5)[0, 0], mlem(PROJECTOR, counts, 5)[:, 0])


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c[2].fill_(-1), "counts: image 2 of the batch has -1"),
    (lambda c: c[1, 0, 0, 0].fill_(math.nan), "image 1 of the batch has a number that is not finite"),
    (lambda c: c[1, 0, 0, 0].fill_(math.inf), "not finite"),
])
def test_wrong_counts_are_named(change, said):
    counts = counts_of(1e3)
    change(counts)
    with pytest.raises(ValueError, match=said):
        mlem(PROJECTOR, counts, 5)


@pytest.mark.parametrize(("work", "said"), [
    (lambda c: mlem(PROJECTOR, c[..., :20], 5), "sinograms .* of another geometry"),
    (lambda c: mlem(PROJECTOR, c.int(), 5), "wanted floating numbers"),
    (lambda c: mlem(PROJECTOR, c, 0), "iterations=0"),
    (lambda c: osem(PROJECTOR, c, 1, 0), "subsets=0"),
    (lambda c: osem(PROJECTOR, c, 1, 49), "subsets=49"),
    (lambda c: mlem(PROJECTOR, c, 1, start=-torch.ones(3, 1, 24, 24)), "start"),
    (lambda c: mlem(PROJECTOR, c, 1, start=torch.ones(2, 1, 24, 24)), r"start: images \[2, 1, 24, 24\]"),
    (lambda c: mlem(PROJECTOR, c, 1, background=-torch.ones(1)), "background: image 0"),
    (lambda c: mlem(PROJECTOR, c, 1, background=torch.ones(5, 1, 1, 1)), r"background: \[5, 1, 1, 1\]"),
])
def test_wrong_arguments_are_named(work, said):
    with pytest.raises(ValueError, match=said):
        work(counts_of(1e3))
