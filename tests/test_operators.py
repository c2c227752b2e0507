"""Operators against their adjoints and answers known by hand, and the laws of their noise."""

import functools
import math

import pytest
import torch

from edm3d.physics import operators
from edm3d.physics.noise_models import GaussianNoise, PoissonNoise, variance_of
from edm3d.physics.operators import Downsample, GaussianBlur, Inpaint, blur_matrix, check_operator
from edm3d.physics.projector import ParallelBeam, Projector
from edm3d.samplers.noise import GlobalNoise, ImageGenerators

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BEAM = ParallelBeam(12, angles=7, shifts=15, pixel_mm=20.0)
MU = torch.linspace(0, 0.2, 144).reshape(12, 12)


class Deepinv:
    """A double of an operator of deepinv: a circular shift times 2, with a noise model that has sigma alone."""

    class Noise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sigma = torch.tensor(0.3)

        def forward(self, x, **kwargs):
            return x + self.sigma * torch.randn_like(x)

    def __init__(self):
        self.noise_model = self.Noise()

    def A(self, x, **kwargs):
        return 2 * x.roll(1, -1)

    def A_adjoint(self, y, **kwargs):
        return 2 * y.roll(-1, -1)


@functools.cache
def projector(**options):
    return Projector(BEAM, **options)


OPERATORS = {
    "downsample": (lambda: Downsample(3), (12, 12)),
    "downsample by axis": (lambda: Downsample([3, 2]), (12, 12)),
    "downsample 3D": (lambda: Downsample([1, 2, 4], 3), (3, 4, 8)),
    "inpaint box": (lambda: Inpaint(box=[[2, 5], [0, 12]]), (12, 12)),
    "inpaint share": (lambda: Inpaint(keep=0.4), (5, 6, 7)),
    "inpaint mask": (lambda: Inpaint(mask=torch.arange(144).reshape(12, 12) % 3), (12, 12)),
    "inpaint mask of channels": (lambda: Inpaint(mask=torch.arange(48).reshape(2, 4, 6) % 5), (4, 6)),
    "blur": (lambda: GaussianBlur(1.5), (12, 9)),
    "blur 3D": (lambda: GaussianBlur([0.0, 2.0, 5.0], 3), (4, 5, 6)),
    "projector": (lambda: projector(), (12, 12)),
    "projector in lengths": (lambda: projector(normalised=False), (12, 12)),
    "projector of stacks": (lambda: projector(), (3, 12, 12)),
    "projector with blur": (lambda: projector(blur=1.2), (12, 12)),
    "projector with both": (lambda: Projector(BEAM, attenuation=MU, blur=0.7), (12, 12)),
    "projector with maps": (lambda: Projector(BEAM, attenuation=MU * torch.rand(3, 1, 4, 1, 1)), (4, 12, 12)),
    "a set of angles": (lambda: Projector(BEAM, attenuation=MU, blur=0.7).subsets(3)[1][1], (12, 12)),
    "deepinv": (Deepinv, (12, 12)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint(name, dtype):
    make, shape = OPERATORS[name]
    operator, generator = make(), torch.Generator().manual_seed(0)
    check_operator(operator)
    x = torch.randn((3, 2, *shape), dtype=dtype, generator=generator)
    image = operator.A(x)
    y = torch.randn(image.shape, dtype=dtype, generator=generator)
    back = operator.A_adjoint(y)
    assert (image.dtype, back.dtype, back.shape) == (dtype, dtype, x.shape)
    gap = abs((image.double() * y.double()).sum() - (x.double() * back.double()).sum())
    assert gap <= TOLERANCE[dtype] * image.double().norm() * y.double().norm()
    assert image.norm() > 0


@pytest.mark.parametrize("name", ["downsample", "inpaint box", "blur", "projector with both"])
def test_gradient_is_the_adjoint(name):
    make, shape = OPERATORS[name]
    operator = make()
    x = torch.randn((2, 1, *shape), dtype=torch.float64, requires_grad=True)
    y = operator.A(x)
    weight = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert torch.allclose(gradient, operator.A_adjoint(weight), atol=1e-12)


def test_downsample_is_the_mean_of_blocks():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Downsample(2).A(x).ravel().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Downsample(2).A_adjoint(torch.full((1, 1, 2, 2), 4.0)).unique().tolist() == [1.0]


def test_inpaint_loses_the_box_keeps_the_share_and_is_the_same_for_a_seed():
    ones = torch.ones(2, 1, 40, 50)
    seen = Inpaint(box=[[3, 10], [20, 50]]).A(ones)
    assert seen[:, :, 3:10, 20:].sum() == 0
    assert seen.sum() == 2 * (2000 - 7 * 30)
    assert Inpaint(keep=0.3).A(ones).mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(Inpaint(keep=0.3).A(ones), Inpaint(keep=0.3).A(ones))
    assert not torch.equal(Inpaint(keep=0.3).A(ones), Inpaint(keep=0.3, seed=1).A(ones))


def test_masks_and_matrices_are_made_once_for_each_size_and_dtype(monkeypatch):
    made = []
    blur, mask_of = operators.blur_matrix, Inpaint.mask_of
    monkeypatch.setattr(operators, "blur_matrix", lambda *of: made.append(of) or blur(*of))
    monkeypatch.setattr(Inpaint, "mask_of", lambda self, x: made.append(x.dtype) or mask_of(self, x))
    x = torch.rand(2, 1, 6, 9)
    for operator, sizes in ((GaussianBlur(1.5), 2), (Inpaint(keep=0.4), 1), (Inpaint(mask=torch.eye(9)[:6]), 1)):
        made.clear()
        first = operator.A(x)
        assert torch.equal(operator.A(x), first) and torch.equal(operator.A_adjoint(x), first)
        assert len(made) == sizes
        torch.testing.assert_close(operator.A(x.double()).float(), first)
        assert len(made) == 2 * sizes and operator.A(x.double()).dtype == torch.float64
        if not (isinstance(operator, Inpaint) and operator.seen is not None):
            assert operator.A(x[..., :5]).shape == (2, 1, 6, 5)


def test_blur_keeps_sums_inside_and_has_its_standard_deviation():
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    y = GaussianBlur([2.0, 0.0]).A(x)[0, 0]
    assert y.sum().item() == pytest.approx(1)
    assert y[:, 20].sum().item() == pytest.approx(1)
    assert math.sqrt((y[:, 20] * (torch.arange(41) - 20.0) ** 2).sum()) == pytest.approx(2, rel=0.01)
    assert blur_matrix(5, 1.0).sum(0)[0] < 0.75  # beyond the border all is lost


def test_a_blur_beyond_the_size_is_refused_before_it_takes_memory():
    wide = torch.zeros(1, 1, 8, 41)
    assert GaussianBlur([8.0, 41.0]).A(wide).shape == wide.shape
    with pytest.raises(ValueError, match=r"^GaussianBlur: std=1e\+18: wanted at most 8, along .* of \[8, 41\] voxels"):
        GaussianBlur([1e18, 1.0]).A(wide)
    with pytest.raises(ValueError, match=r"^std=41.5: wanted at most 41"):
        blur_matrix(41, 41.5)


def test_what_an_operator_lacks_is_named():
    class Half:
        noise_model = "gaussian"

        def A(self, x):
            return x

    with pytest.raises(ValueError, match=r"Half: has no A_adjoint\(y\), noise_model; wanted"):
        check_operator(Half())


X2, X3 = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, 4)


@pytest.mark.parametrize(("work", "said"), [
    (lambda: Downsample(3).A(X2), r"factor \[3, 3\] does not divide images of \[4, 4\]"),
    (lambda: Downsample(2).A(X3), "change spatial_dims"),
    (lambda: Downsample(0), "factor=.*1 or more"),
    (lambda: Downsample(1.5), "factor=.*whole number"),
    (lambda: Downsample([2, 2], 3), r"factor=\[2, 2\]: wanted one number, or 3"),
    (lambda: Downsample(2, 4), "spatial_dims=4: wanted 2 or 3"),
    (lambda: Inpaint(), "exactly one"),
    (lambda: Inpaint(keep=0.5, box=[[0, 1]]), "exactly one"),
    (lambda: Inpaint(keep=1.5), "keep=1.5"),
    (lambda: Inpaint(box=[[2, 2], [0, 1]]), "box="),
    (lambda: Inpaint(box=[[0.5, 2], [0, 1]]), "box=.*whole numbers"),
    (lambda: Inpaint(box=[3, 4]), "box="),
    (lambda: Inpaint(box=[[0, 2]]).A(X2), "does not lie in images"),
    (lambda: Inpaint(box=[[0, 2], [0, 5]]).A(X2), "does not lie in images"),
    (lambda: Inpaint(mask=[[1, 0]]).A(X2), r"mask \[1, 2\] for images of \[4, 4\]"),
    (lambda: Inpaint(mask=torch.ones(5, 1, 4, 4)).A(X2), "mask"),
    (lambda: GaussianBlur(-1), "std=-1"),
    (lambda: GaussianBlur(math.inf), "std=inf"),
    (lambda: GaussianBlur(1.0, sigma=-1), "sigma=-1"),
    (lambda: GaussianNoise(math.nan), "sigma=nan"),
    (lambda: PoissonNoise(0), "gain=0"),
    (lambda: variance_of(object(), X2), r"object: has no variance\(y\), sigma or gain"),
])
def test_wrong_arguments_are_named(work, said):
    with pytest.raises(ValueError, match=said):
        work()


@pytest.mark.parametrize("model", [GaussianNoise(0.7), PoissonNoise(0.5)])
def test_noise_has_its_variance(model):
    y = torch.tensor([1.0, 4.0, 30.0]).reshape(3, 1, 1).expand(3, 100, 200)
    for noise in (None, ImageGenerators(range(3)), GlobalNoise(y)):
        drawn = model(y, noise)
        assert (drawn.mean((1, 2)) - y[:, 0, 0]).abs().max() < 0.15
        assert (drawn.var((1, 2)) / model.variance(y)[:, 0, 0]).sub(1).abs().max() < 0.06


def test_variance_of_models_of_others():
    class Both:
        sigma, gain = torch.tensor([1.0, 2.0]), 0.5

    y = torch.full((2, 1, 3), 4.0)
    assert variance_of(Both(), y)[:, 0, 0].tolist() == [3.0, 6.0]
    assert variance_of(Deepinv().noise_model, y).unique().item() == pytest.approx(0.09)
    assert torch.equal(variance_of(PoissonNoise(2), y), 2 * y)


def test_counts_of_an_image_hang_on_its_own_key_alone():
    rate = torch.full((3, 5, 5), 20.0)
    every, one = ImageGenerators([1, 2, 3]), ImageGenerators([2])
    assert torch.equal(every.poisson(rate)[1], one.poisson(rate[:1])[0])
    counts = torch.full((3, 50, 50), 40.0, dtype=torch.float64)
    kept = every.binomial(counts, 0.25)
    assert kept.dtype == torch.float64
    assert torch.equal(kept[1], one.binomial(counts[:1], 0.25)[0])
    assert kept.mean().item() == pytest.approx(10, abs=0.15)
    assert kept.var().item() == pytest.approx(7.5, abs=0.4)
    assert GlobalNoise(counts).binomial(counts, 0.25).mean().item() == pytest.approx(10, abs=0.15)
