"""Parallel-beam tomography: where lines lie, the exact lengths of pixels along them, and projection of batches."""

import copy
import hashlib
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, kron

from edm3d.physics.noise_models import NoiseModel, PoissonNoise
from edm3d.physics.operators import blur_matrix, check_blur
from edm3d.utils.checks import check_count, check_finite, is_whole

_LAW = 1  # of the matrix; in the key, so that one made by an earlier law is not taken for one of this
_PIECES = 2**21  # of lines that are cut at once, to bound the memory
_PARALLEL = 1e-12  # cosines below are those of lines along the grid


@dataclass(frozen=True)
class ParallelBeam:
    """Lines x cos(angle) + y sin(angle) = shift across an image of size x size pixels, row 0 at the top.

    angles: how many, evenly on [0, pi); 2 size where None. shifts: lines of an angle, at the centres of bins about the
    centre of the image; size where None. bin_pixels: width of a bin in pixels; where None the bins span the width of
    the image. pixel_mm: edge of a pixel; lengths along lines are in pixels, attenuation needs it.
    """

    size: int = 64
    angles: int | None = None
    shifts: int | None = None
    pixel_mm: float = 1.0
    bin_pixels: float | None = None

    def __post_init__(self):
        check_count(1, {"size": self.size})
        for name, default in (("angles", 2 * self.size), ("shifts", self.size)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check_count(1, {"angles": self.angles, "shifts": self.shifts})
        if self.bin_pixels is None:
            object.__setattr__(self, "bin_pixels", self.size / self.shifts)
        for name in ("pixel_mm", "bin_pixels"):
            check_finite(name, getattr(self, name), above=0)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.size, self.size

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        """Angles and shifts; line (a, s) is row a * shifts + s of the system matrix."""
        return self.angles, self.shifts

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Lines and pixels."""
        return self.angles * self.shifts, self.size**2

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of every angle, exact along the grid."""
        angles = np.arange(self.angles) * (math.pi / self.angles)
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.where(abs(cosines) < _PARALLEL, 0.0, cosines), np.where(abs(sines) < _PARALLEL, 0.0, sines)

    def positions(self) -> np.ndarray:
        """Shift of every line of an angle from the centre, in pixels."""
        return (np.arange(self.shifts) - (self.shifts - 1) / 2) * self.bin_pixels

    def key(self) -> str:
        """sha256 of all that the system matrix depends on, which the size of a pixel in mm is not."""
        text = f"parallel beam {_LAW} {self.size} {self.angles} {self.shifts} {float(self.bin_pixels)!r}"
        return hashlib.sha256(text.encode()).hexdigest()


def system_matrix(geometry: ParallelBeam) -> csr_array:
    """Length in pixels of every pixel along every line [angles*shifts, size*size], float64, exact but for rounding.

    A line is cut where it crosses the grid (Siddon 1985); each piece lies in one pixel, told by its middle. A line
    along an edge of pixels gives half its length to those on either side. Pixels are in row-major order.
    """
    cosines, sines = geometry.directions()
    along_grid = (cosines == 0) | (sines == 0)
    step = max(1, _PIECES // (geometry.shifts * 2 * (geometry.size + 1)))
    parts = []
    for start in range(0, geometry.angles, step):
        angles = np.arange(start, min(start + step, geometry.angles))
        parts.append(_pieces(geometry, angles, np.where(along_grid[angles], 0.5, 1.0), 1))
        if len(angles := angles[along_grid[angles]]):  # once more, moved a little to the other side
            parts.append(_pieces(geometry, angles, np.full(len(angles), 0.5), -1))
    lengths, rows, pixels = (np.concatenate(part) for part in zip(*parts, strict=True))
    matrix = coo_array((lengths, (rows, pixels)), shape=geometry.matrix_shape).tocsr()
    matrix.sort_indices()
    return matrix


def _pieces(geometry: ParallelBeam, angles: np.ndarray, weights: np.ndarray, side: int) -> tuple[np.ndarray, ...]:
    """Lengths times weights, lines and pixels of the pieces of the lines of some angles."""
    cosines, sines = (values[angles, None, None] for values in geometry.directions())
    shifts, size = geometry.positions()[None, :, None], geometry.size
    edges = np.arange(size + 1) - size / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        cuts = np.concatenate([(shifts * cosines - edges) / sines, (edges - shifts * sines) / cosines], axis=-1)
    far = 2.0 * (size + geometry.shifts * geometry.bin_pixels)  # beyond the image, where nothing is counted
    cuts = np.clip(np.nan_to_num(cuts, copy=False, nan=far, posinf=far, neginf=-far), -far, far)
    cuts.sort(axis=-1)
    lengths, middles = np.diff(cuts), (cuts[..., 1:] + cuts[..., :-1]) / 2
    shifts = shifts + np.where((cosines == 0) | (sines == 0), side * 1e-9 * size, 0.0)
    columns = np.floor(shifts * cosines - middles * sines + size / 2).astype(np.int32)
    rows = np.floor(size / 2 - shifts * sines - middles * cosines).astype(np.int32)
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size) & (lengths > 1e-12 * size)
    lines = np.broadcast_to((angles[:, None] * geometry.shifts + np.arange(geometry.shifts))[..., None], lengths.shape)
    return (lengths * weights[:, None, None])[inside], lines[inside], (rows * size + columns)[inside]


class Projector:
    """Expected counts along lines of images [N,C,S,S] -> [N,C,angles,shifts]; of stacks [N,C,D,S,S] slice by slice.

    y = blur(factors * P x). P: the lengths of system_matrix, where `normalised` divided by the sum of each pixel over
    all lines, so that it is the chance that what decays there is counted on a line. factors: exp(-line integral) of
    `attenuation`, in 1/cm, [S,S] or what broadcasts to the images. blur: of the detector, standard deviation in bins
    along shifts. matrix: system_matrix(geometry), where it is there already.

    float32 and float64, on the device of what is projected; gradients pass. ValueError for images, sinograms and
    matrices of another geometry.
    """

    def __init__(self, geometry: ParallelBeam, normalised: bool = True, attenuation: torch.Tensor | None = None,
                 blur: float = 0.0, noise_model: NoiseModel | None = None, matrix: csr_array | None = None):
        check_finite("blur", blur, least=0)
        check_blur("blur", blur, geometry.shifts, "the shifts")
        matrix = system_matrix(geometry) if matrix is None else matrix
        if matrix.shape != geometry.matrix_shape:
            raise ValueError(f"system matrix {list(matrix.shape)} of another geometry, wanted "
                             f"{list(geometry.matrix_shape)} for {geometry}")
        self.geometry, self.noise_model = geometry, noise_model or PoissonNoise()
        self.sinogram_shape = geometry.sinogram_shape
        sums = np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()
        weights = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0) if normalised else np.ones_like(sums)
        self.lines = SparseMap(csr_array(matrix @ diags_array(weights)))
        self.lengths = torch.from_numpy(sums if normalised else np.ones_like(sums))  # per what is in `lines`
        self.blur = SparseMap(_blur_of_lines(geometry, blur)) if blur > 0 else None
        self._maps: dict[int, list] = {}  # of sets of angles, by how many there are
        self.factors = None
        if attenuation is not None:
            self.factors = self.attenuation_factors(torch.as_tensor(attenuation))

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Expected counts of images."""
        self._check(x, self.geometry.image_shape, "images")
        leading = x.shape[:-2]
        return batch_of(self.project(columns_of(x), leading), (*leading, *self.sinogram_shape))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Back-projection of sinograms."""
        self.check_sinograms(y)
        leading = y.shape[:-2]
        return batch_of(self.back_project(columns_of(y), leading), (*leading, *self.geometry.image_shape))

    def sensitivity(self, like: torch.Tensor) -> torch.Tensor:
        """Share of what decays in each pixel that is counted, for sinograms `like`: 1 where nothing is lost."""
        return self.A_adjoint(torch.ones_like(like))

    def project(self, columns: torch.Tensor, leading: tuple[int, ...]) -> torch.Tensor:
        """The same in the layout that is fast, [pixels, M] -> [lines, M], of M = prod(leading) images in a batch."""
        lines = self.lines(columns)
        factors = self._factors(lines, leading)
        lines = lines if factors is None else lines * factors
        return lines if self.blur is None else self.blur(lines)

    def back_project(self, lines: torch.Tensor, leading: tuple[int, ...]) -> torch.Tensor:
        """The adjoint of `project`, [lines, M] -> [pixels, M]."""
        lines = lines if self.blur is None else self.blur(lines, adjoint=True)
        factors = self._factors(lines, leading)
        return self.lines(lines if factors is None else lines * factors, adjoint=True)

    def attenuation_factors(self, mu: torch.Tensor) -> torch.Tensor:
        """exp(-line integral) of maps [*,S,S] in 1/cm: [*,angles,shifts]; ValueError for values below 0."""
        shape = self.geometry.image_shape
        if tuple(mu.shape[-2:]) != shape or not bool((mu >= 0).all() and mu.isfinite().all()):
            raise ValueError(f"attenuation: a map {list(mu.shape)}, wanted [...,{shape[0]},{shape[1]}] of finite "
                             "numbers of 0 or more, in 1/cm")
        lengths = columns_of(mu) * (self.lengths.to(mu) * self.geometry.pixel_mm / 10)[:, None]
        return batch_of(torch.exp(-self.lines(lengths)), (*mu.shape[:-2], *self.geometry.sinogram_shape))

    def with_factors(self, factors: torch.Tensor | None) -> "Projector":
        """The same with other attenuation factors, what broadcasts to the sinograms, or without."""
        other = copy.copy(self)
        other.factors = factors
        return other

    def of_images(self, images: slice, batch: torch.Tensor) -> "Projector":
        """The same for some images of a batch of sinograms, of which each may have attenuation factors of its own."""
        if self.factors is None or self.factors.ndim < batch.ndim or len(self.factors) != len(batch):
            return self
        return self.with_factors(self.factors[images])

    def subsets(self, count: int) -> list[tuple[slice, "Projector"]]:
        """Every count-th angle and its projector, first those far apart; ValueError for more than there are."""
        if not is_whole(count) or not 1 <= count <= self.geometry.angles:
            raise ValueError(f"subsets={count!r}: wanted a whole number of 1 to {self.geometry.angles}, the angles")
        if count == 1:
            return [(slice(None), self)]
        digits = (count - 1).bit_length()
        order = sorted(range(count), key=lambda first: f"{first:0{digits}b}"[::-1])  # bits reversed
        if count not in self._maps:
            self._maps[count] = [self._maps_of(slice(first, None, count)) for first in order]
        return [(angles := slice(first, None, count), self._of_angles(angles, *maps))
                for first, maps in zip(order, self._maps[count], strict=True)]

    def _maps_of(self, angles: slice) -> tuple["SparseMap", "SparseMap | None"]:
        rows = np.arange(self.geometry.matrix_shape[0]).reshape(self.sinogram_shape)[angles].ravel()
        blur = None if self.blur is None else SparseMap(self.blur.matrix[rows][:, rows])
        return SparseMap(self.lines.matrix[rows]), blur

    def _of_angles(self, angles: slice, lines: "SparseMap", blur: "SparseMap | None") -> "Projector":
        other = copy.copy(self)
        other.lines, other.blur, other._maps = lines, blur, {}
        other.sinogram_shape = len(range(self.geometry.angles)[angles]), self.geometry.shifts
        other.factors = None if self.factors is None else self.factors[..., angles, :]
        return other

    def check_sinograms(self, y: torch.Tensor) -> None:
        """ValueError unless these are sinograms of the geometry."""
        self._check(y, self.sinogram_shape, "sinograms")

    def _check(self, batch: torch.Tensor, shape: tuple[int, int], what: str) -> None:
        if batch.ndim not in (4, 5) or tuple(batch.shape[-2:]) != shape:
            raise ValueError(f"{what} {list(batch.shape)} of another geometry: wanted [N,C,{shape[0]},{shape[1]}], or "
                             f"[N,C,D,{shape[0]},{shape[1]}] of stacks, for {self.geometry}")

    def _factors(self, lines: torch.Tensor, leading: tuple[int, ...]) -> torch.Tensor | None:
        if self.factors is None or self.factors.ndim == 2:
            return None if self.factors is None else self.factors.to(lines).reshape(-1, 1)
        return columns_of(self.factors.to(lines).expand(*leading, *self.sinogram_shape))


def _blur_of_lines(geometry: ParallelBeam, std: float) -> csr_array:
    """The blur along shifts of every angle, sparse: products with dense matrices depend on the size of the batch."""
    return csr_array(kron(eye_array(geometry.angles), csr_array(blur_matrix(geometry.shifts, std).numpy())))


def columns_of(batch: torch.Tensor) -> torch.Tensor:
    """[*,H,W] -> [H*W, M], the layout in which sparse matrices are fast."""
    return batch.reshape(-1, batch.shape[-2] * batch.shape[-1]).T.contiguous()


def batch_of(columns: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[H*W, M] -> [*,H,W]."""
    return columns.T.contiguous().reshape(shape)


class SparseMap:
    """A sparse matrix and its transpose at work on columns [n, M] of any floating type and device, with gradients."""

    def __init__(self, matrix: csr_array):
        self.matrix, self._stored = csr_array(matrix), {}

    def __getstate__(self) -> dict:
        """Without what torch keeps of it, which cannot be copied or sent to other processes."""
        return {"matrix": self.matrix, "_stored": {}}

    def __call__(self, columns: torch.Tensor, adjoint: bool = False) -> torch.Tensor:
        """The product with columns, or that of the transpose."""
        pair = self.pair(columns.dtype, columns.device)
        return _Product.apply(columns, *(pair[::-1] if adjoint else pair))

    def pair(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix and transpose as torch has them, made once."""
        if (dtype, device) not in self._stored:
            pair = (self.matrix, csr_array(self.matrix.T))
            self._stored[dtype, device] = tuple(_torch_csr(matrix).to(dtype).to(device) for matrix in pair)
        return self._stored[dtype, device]


class _Product(torch.autograd.Function):
    """matrix @ columns, whose gradient is by the transpose that is there already."""

    @staticmethod
    def forward(ctx, columns: torch.Tensor, matrix: torch.Tensor, transpose: torch.Tensor) -> torch.Tensor:
        ctx.pair = transpose, matrix
        return matrix @ columns

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return _Product.apply(gradient.contiguous(), *ctx.pair), None, None


def _torch_csr(matrix: csr_array) -> torch.Tensor:
    parts = torch.from_numpy(matrix.indptr.astype(np.int32)), torch.from_numpy(matrix.indices.astype(np.int32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # that CSR is in beta, and how it could be checked
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), matrix.shape)
