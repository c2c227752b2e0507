"""Posterior sampling: a denoiser of what is left possible by a measurement, y = A(image) + noise, of a linear operator.

Both wrappers are denoisers themselves, E[image | x, y] in place of E[image | x], so that every sampler takes them and
no network is trained for it. Where the prior is Gaussian, MMPS with enough iterations says exactly that: mean and
covariance of what is drawn are those of the closed form. DPS is not exact even there (docs/inverse_problems.md says by
how much).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from edm3d.networks.conditioning import Condition
from edm3d.physics.noise_models import variance_of
from edm3d.physics.operators import Operator
from edm3d.samplers.denoiser import Denoiser, Wrapper
from edm3d.utils.checks import check_count, check_positive

SPREAD = 0.5    # standard deviation of what EDM networks see
FLOOR = 1e-6    # least variance of a measured value, as a share of the mean square of all values of its image
INNER = 8       # most steps of the inner solver, which call the operator and never the network
NEAR = 1e-6     # relative residual at which it ends


class Local(NamedTuple):
    """A map at a point: its value, its derivative applied to a direction, and the transpose of that."""

    value: torch.Tensor
    push: Callable[[torch.Tensor], torch.Tensor]
    pull: Callable[[torch.Tensor], torch.Tensor]


class Affine:
    """Images of an operator as gain x + shift of what a network draws: 1 and 0 where they are the same.

    gain and shift: numbers for all images, or one of each [N].
    """

    def __init__(self, gain: float | torch.Tensor = 1, shift: float | torch.Tensor = 0):
        self.gain, self.shift = gain, shift

    def at(self, x: torch.Tensor) -> Local:
        """The map at x [N,C,*S]."""
        def scaled(v: torch.Tensor) -> torch.Tensor:
            return over(self.gain, v) * v

        return Local(scaled(x) + over(self.shift, x), scaled, scaled)


class Smooth:
    """Images of an operator as any function of what a network draws that gradients go through, as a decoder is.

    gain: the unit of what it gives, as that of Affine.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], gain: float | torch.Tensor = 1):
        self.function, self.gain = function, gain

    def at(self, x: torch.Tensor) -> Local:
        """The map at x [N,C,*s]; what is pushed goes twice through the gradient, which any layer has."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self.function(x)
            weights = torch.zeros_like(value, requires_grad=True)
            pulled, = torch.autograd.grad(value, x, weights, create_graph=True)

        def push(v: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(pulled, weights, v.to(pulled.dtype), retain_graph=True)[0]

        def pull(u: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(value, x, u.to(value.dtype), retain_graph=True)[0]

        return Local(value.detach(), push, pull)


class Measured(Wrapper):
    """A denoiser beside what was measured of its images: y [N,...], a row for each image of the batch.

    image says how the operator's images follow from what is drawn. The operator works in the dtype of y, whatever the
    network does. The variance of y is that of the operator's noise model at y itself, of counts, whose variance is
    their mean, no less than that of a single one, and never less than a millionth of the mean square of a row.
    """

    def __init__(self, net: Denoiser, operator: Operator, y: torch.Tensor, image: Affine | Smooth | None = None):
        super().__init__(net)
        self.operator, self.y, self.image = operator, y, Affine() if image is None else image
        floor = FLOOR * per_image(y, y) / y[0].numel()
        gain = getattr(operator.noise_model, "gain", None)
        at = y if gain is None else y.maximum(torch.as_tensor(gain, dtype=y.dtype, device=y.device))
        variance = torch.as_tensor(variance_of(operator.noise_model, at), dtype=y.dtype, device=y.device)
        self.variance = variance.expand_as(y).clamp(min=torch.finfo(y.dtype).tiny).maximum(floor)

    def looked_at(self, denoised: torch.Tensor) -> Local:
        """What would be measured of denoised images [N,C,*S], with its derivative."""
        if len(denoised) != len(self.y):
            raise ValueError(f"posterior: got {len(denoised)} images and {len(self.y)} measurements, wanted one of "
                             "each image")
        image, like = self.image.at(denoised.to(self.y.dtype)), self.y.dtype

        def push(v: torch.Tensor) -> torch.Tensor:
            return self.operator.A(image.push(v).to(like)).to(like)

        def pull(u: torch.Tensor) -> torch.Tensor:
            return image.pull(self.operator.A_adjoint(u).to(like)).to(like)

        return Local(self.operator.A(image.value.to(like)).to(like), push, pull)

    def with_gradient(self, x: torch.Tensor, *told: object) -> tuple[torch.Tensor, Callable]:
        """D of x [N,C,*S], and what multiplies an image by the transpose of its Jacobian."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            denoised = self.net(x, *told)

        def pull(v: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(denoised, x, v.to(denoised.dtype), retain_graph=True)[0]

        return denoised.detach(), pull


class DPS(Measured):
    """Diffusion posterior sampling (Chung et al. 2023): D - step grad |y - A(D(x))|, one call and one gradient.

    The gradient is that in x / sqrt(1 + sigma^2), the variables in which the method was published, whatever the unit of
    y. The norm weighs values by their relative precision, all alike where all are measured equally well. It is a rule
    of thumb: what it draws is not the posterior, also where the prior is Gaussian.
    """

    def __init__(self, net: Denoiser, operator: Operator, y: torch.Tensor, image: Affine | Smooth | None = None,
                 step: float = 1):
        super().__init__(net, operator, y, image)
        check_positive({"step": step})
        self.step = step
        mean = self.variance.flatten(1).mean(1).reshape(-1, *[1] * (y.ndim - 1))
        self.weight = mean / self.variance

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        denoised, gradient = self.with_gradient(x, sigma, condition, augment_labels)
        with exact(self.y):
            seen = self.looked_at(denoised)
            off = self.y - seen.value
            length = per_image(off, self.weight * off).sqrt().clamp(min=torch.finfo(off.dtype).tiny)
            scale = self.step / over(self.image.gain, denoised) * (1 + square_of(sigma, denoised))
            return denoised + scale * gradient(seen.pull(self.weight * off / length))


class MMPS(Measured):
    """Moment-matching posterior sampling (Rozet et al. 2024): D + C A^T (Sy + A C A^T)^-1 (y - A D).

    C = sigma^2 dD/dx is the covariance of the image given x, Sy that of the noise. The system is solved by so many
    conjugate gradients, each one gradient of the network: a call costs one evaluation and `iterations` gradients. They
    are preconditioned by the same system with the covariance of white noise of standard deviation spread, given x,
    which is solved by calls of the operator alone; what C makes of every direction is kept, which saves the last
    gradient of the published method. 0 iterations: C is that of white noise, and there is no gradient at all.

    Of a Gaussian prior it says E[image | x, y] exactly, with as many iterations as there are values measured or fewer,
    so that what a sampler draws is the posterior.
    """

    def __init__(self, net: Denoiser, operator: Operator, y: torch.Tensor, image: Affine | Smooth | None = None,
                 iterations: int = 1, spread: float = SPREAD):
        super().__init__(net, operator, y, image)
        check_count(0, {"iterations": iterations})
        check_positive({"spread": spread})
        self.iterations, self.spread = iterations, spread

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        if not self.iterations:
            denoised, gradient = self.net(x, sigma, condition, augment_labels), None
        else:
            denoised, gradient = self.with_gradient(x, sigma, condition, augment_labels)
        with exact(self.y):
            return denoised + self.moved(self.looked_at(denoised), square_of(sigma, self.y), gradient)

    def moved(self, seen: Local, square: torch.Tensor, gradient: Callable | None) -> torch.Tensor:
        """C A^T v for the v of Sy v + A C A^T v = y - A D, of what is seen of D at squared noise levels.

        A direction along which the network claims a variance below 0, as no covariance has, is not followed.
        """
        guess = over(square * self.spread ** 2 / (square + self.spread ** 2), seen.value)
        off, kept, total = self.y - seen.value, [], 0

        def simple(b: torch.Tensor) -> torch.Tensor:
            return conjugate_gradients(lambda u: self.variance * u + guess * seen.push(seen.pull(u)), b)

        if gradient is None:
            return over(guess, image := seen.pull(simple(off))) * image
        for _ in range(self.iterations):
            direction = simple(off)
            for older in kept:
                direction = direction - quotient(per_image(direction, older.response), older.length) * older.direction
            image = gradient(seen.pull(direction))
            image = over(square, image) * image
            weighed = self.variance * direction
            response = weighed + seen.push(image.to(weighed.dtype))
            length = per_image(direction, response)
            share = torch.where(length > per_image(direction, weighed), quotient(per_image(direction, off), length), 0)
            off = off - share * response
            total = total + over(share, image) * image
            kept.append(Searched(direction, response, length))
        return total


class Searched(NamedTuple):
    """A direction, what the system makes of it, and the scalar product of both [N,1,...]."""

    direction: torch.Tensor
    response: torch.Tensor
    length: torch.Tensor


def conjugate_gradients(system: Callable[[torch.Tensor], torch.Tensor], b: torch.Tensor) -> torch.Tensor:
    """Solution [N,...] of symmetric positive systems, of each image by itself."""
    x, residual = torch.zeros_like(b), b
    direction, square = b, per_image(b, b)
    enough = NEAR ** 2 * square
    for _ in range(INNER):
        if bool((square <= enough).all()):
            break
        applied = system(direction)
        length = torch.where(square > enough, quotient(square, per_image(direction, applied)), 0)
        x, residual = x + length * direction, residual - length * applied
        new = per_image(residual, residual)
        direction, square = residual + quotient(new, square) * direction, new
    return x


def square_of(sigma: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """Squares of noise levels, shaped to multiply images [N,C,*S]."""
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1)) ** 2


def per_image(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Scalar product of each image with its own, [N,1,...]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def quotient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b, 0 where b is."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


def over(scalars: float | torch.Tensor, images: torch.Tensor) -> float | torch.Tensor:
    """One number for each image or all, shaped to multiply images of other dimensions."""
    return scalars if isinstance(scalars, int | float) else scalars.reshape(-1, *[1] * (images.ndim - 1)).to(images)


@contextmanager
def exact(like: torch.Tensor) -> Iterator[None]:
    """Out of any autocast region: operators compute in the dtype they are given."""
    with torch.autocast(like.device.type, enabled=False):
        yield
