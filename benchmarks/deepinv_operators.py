"""Claim: operators of the real deepinv serve as ours do: MMPS with them says what the closed form says.

The prior is a Gaussian over 12x12 pixels, whose denoiser is exact. For a noisy image x and a measurement y by each of
deepinv's operators, MMPS with as many inner iterations as it takes gives E[image | x, y]; the closed form of it is made
of the operator's own matrix. Wanted: a relative difference of at most 1e-3 (float32), and an adjoint that is exact to
1e-5.

deepinv, which needs torchvision, goes into an environment of its own, beside what edm3d needs:
python -m pip install deepinv. Run from the top of the checkout: python -m benchmarks.deepinv_operators [--seed N]
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version

import torch

from benchmarks.common import json_line
from edm3d.physics.operators import check_operator
from edm3d.samplers.denoiser import Wrapper
from edm3d.samplers.posterior import MMPS

SIZE, NOISE, SIGMA = 12, 0.1, 0.7  # pixels a side; standard deviations of the measurement, and of x


class GaussianPrior(Wrapper):
    """The exact denoiser of N(0, C) over images, C falling with the distance of pixels."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self):
        super().__init__(self)
        at = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
        self.covariance = 0.25 * torch.exp(-torch.cdist(at, at) / 3)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: None = None,
                 augment_labels: None = None) -> torch.Tensor:
        variance = float(torch.as_tensor(sigma).flatten()[0]) ** 2
        noisy = self.covariance + variance * torch.eye(SIZE ** 2, dtype=torch.float64)
        return (x.flatten(1).double() @ torch.linalg.solve(noisy, self.covariance)).reshape(x.shape).to(x.dtype)


def operators() -> dict[str, Callable]:
    """deepinv's, by name."""
    from deepinv.physics import BlurFFT, Downsampling, GaussianNoise, Inpainting, Tomography
    from deepinv.physics.functional.blur import gaussian_blur
    shape, noise = (1, SIZE, SIZE), GaussianNoise(NOISE)
    return {"inpainting": lambda: Inpainting(img_size=shape, mask=0.5, noise_model=noise),
            "downsampling": lambda: Downsampling(img_size=shape, factor=2, filter="gaussian", noise_model=noise),
            "blur": lambda: BlurFFT(img_size=shape, filter=gaussian_blur(sigma=(1, 1)), noise_model=noise),
            "tomography": lambda: Tomography(angles=8, img_width=SIZE, normalize=True, noise_model=noise)}


def differences(operator: object, prior: GaussianPrior) -> tuple[float, float]:
    """Of one operator: how far MMPS is from the closed form, and how far A_adjoint is from the adjoint, relative."""
    check_operator(operator)
    matrix = torch.cat([operator.A(row.reshape(1, 1, SIZE, SIZE)).flatten()[:, None]
                        for row in torch.eye(SIZE ** 2)], dim=1).double()
    truth = (torch.linalg.cholesky(prior.covariance) @ torch.randn(SIZE ** 2, 1).double()).reshape(1, 1, SIZE, SIZE)
    y = operator(truth.float())
    x = (truth + SIGMA * torch.randn_like(truth)).float()
    found = MMPS(prior, operator, y, iterations=SIZE ** 2)(x, torch.tensor(SIGMA)).flatten().double()
    mean = prior(x, SIGMA).flatten().double()
    left = torch.linalg.inv(torch.linalg.inv(prior.covariance) + torch.eye(SIZE ** 2) / SIGMA ** 2)
    innovation = y.flatten().double() - matrix @ mean
    gain = left @ matrix.T @ torch.linalg.inv(matrix @ left @ matrix.T + NOISE ** 2 * torch.eye(len(matrix)))
    wanted = mean + gain @ innovation
    u = torch.randn_like(y)
    there, back = (operator.A(x) * u).sum(), (x * operator.A_adjoint(u)).sum()
    return (float((found - wanted).norm() / wanted.norm()), float((there - back).abs() / (
        operator.A(x).norm() * u.norm())))


def main() -> None:
    """Print the claim's line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    torch.manual_seed(parser.parse_args().seed)
    found = {name: differences(make(), GaussianPrior()) for name, make in operators().items()}
    print(json_line("MMPS with deepinv's operators says what the closed form says", deepinv=version("deepinv"),
                    limit=1e-3, limit_adjoint=1e-5, holds=all(off <= 1e-3 and adjoint <= 1e-5
                                                              for off, adjoint in found.values()),
                    **{f"{name}_off": off for name, (off, _) in found.items()},
                    **{f"{name}_adjoint": adjoint for name, (_, adjoint) in found.items()}))


if __name__ == "__main__":
    main()
