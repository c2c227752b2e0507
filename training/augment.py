"""Augmentation that does not leak: each image is moved, and the network is told how (Karras et al. 2022, App. F.2).

Points are voxels counted from the centre of the image; vectors and matrices are in the order of the array's axes.
Augmentation labels go x, y, z, where x is the last axis, as in the paper.
"""

from collections.abc import Sequence
from itertools import permutations, product
from math import inf, log, pi, sqrt
from typing import NamedTuple

import torch
from torch.nn.functional import affine_grid, grid_sample, normalize, pad

from edm3d.inference.batch import Batch
from edm3d.networks.parts import PARTS
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.tensors import tensor_on

F64 = torch.float64


class Move(NamedTuple):
    """What happens to each image of a batch; float64 on the CPU.

    First whole voxels change places: turn [N,d,d], a signed permutation, then shift [N,d] voxels. Then one
    interpolation moves what is at point x to matrix x + offset, matrix [N,d,d], offset [N,d] voxels.
    """

    turn: torch.Tensor
    shift: torch.Tensor
    matrix: torch.Tensor
    offset: torch.Tensor

    def apply(self, values: torch.Tensor, fill: torch.Tensor, mode: str) -> torch.Tensor:
        """values [N,C,*S] moved, fill [C] from outside, dtype kept; images that stay where they are keep their bits.

        mode: bilinear (for volumes: trilinear) or nearest. Shrinking does not blur first: scales stay near 1.
        """
        stays = torch.eye(values.ndim - 2, dtype=F64)
        moved = (self.turn != stays).flatten(1).any(1) | (self.shift != 0).any(1)
        bent = (self.matrix != stays).flatten(1).any(1) | (self.offset != 0).any(1)
        out = values.clone()
        for i in moved.nonzero().flatten().tolist():
            out[i] = shift_voxels(turn_voxels(values[i], self.turn[i]), self.shift[i], fill)
        if bent.any():
            rows = bent.nonzero().flatten()
            on_device = rows.to(values.device, non_blocking=True)
            out[on_device] = resample(out[on_device], self.matrix[rows], self.offset[rows], fill, mode)
        return out


def signed_turns(d: int) -> torch.Tensor:
    """The rotations that take a grid of d axes to itself [M,d,d], M = 1, 4, 24 in 1, 2, 3 dimensions; first identity.

    In 2D they are the turns by 0, 90, 180 and 270 degrees.
    """
    signs = [torch.diag(torch.tensor(s, dtype=F64)) for s in product((1.0, -1.0), repeat=d)]
    turns = torch.stack([sign[list(order)] for order in permutations(range(d)) for sign in signs])
    return turns[torch.linalg.det(turns) > 0]


def turn_voxels(image: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """image [C,*S] with the voxel at point x moved to turn x; turn [d,d] is a signed permutation that keeps S."""
    axes = turn.abs().argmax(1).tolist()
    flipped = [1 + i for i, reversed_ in enumerate((turn.sum(1) < 0).tolist()) if reversed_]
    return image.permute(0, *[1 + j for j in axes]).flip(flipped)


def shift_voxels(image: torch.Tensor, shift: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """image [C,*S] moved by shift [d] whole voxels, at most its size; fill [C] enters."""
    out = fill.to(image.dtype).reshape(-1, *[1] * len(shift)).expand_as(image).clone()
    steps = list(zip(map(int, shift.tolist()), image.shape[1:], strict=True))
    to = [slice(max(step, 0), size + min(step, 0)) for step, size in steps]
    origin = [slice(max(-step, 0), size - max(step, 0)) for step, size in steps]
    out[:, *to] = image[:, *origin]
    return out


def resample(values: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, fill: torch.Tensor,
             mode: str) -> torch.Tensor:
    """values [N,C,*S] with what is at point x moved to matrix x + offset; dtype kept, interpolated in 32 bits or more.

    Outside lies fill [C], at the voxels next to the image and beyond: a linear edge is one voxel wide.
    """
    if values.ndim == 3:  # torch samples 2 and 3 dimensions; a line is an image of one row
        matrix, offset = pad(matrix, (1, 0, 1, 0)), pad(offset, (1, 0))
        matrix[:, 0, 0] = 1
        return resample(values.unsqueeze(2), matrix, offset, fill, mode).squeeze(2)
    half = torch.tensor(values.shape[2:], dtype=F64) / 2  # points / half lie in [-1,1], edge to edge
    inverse = torch.linalg.inv(matrix)
    linear = inverse * half / half[:, None]
    constant = -(inverse @ offset[..., None]) / half[:, None]
    theta = torch.cat([linear.flip(1, 2), constant.flip(1)], dim=2)
    dtype = torch.promote_types(values.dtype, torch.float32)
    theta = theta.to(values.device, dtype, non_blocking=True)
    grid = affine_grid(theta, list(values.shape), align_corners=False)
    background = fill.to(values.device, dtype, non_blocking=True).reshape(-1, *[1] * len(half))
    moved = grid_sample(values.to(dtype) - background, grid, mode, padding_mode="zeros", align_corners=False)
    return (moved + background).to(values.dtype)


def rotation(angle: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    """Rotations [N,d,d] by angle [N] radians in the plane of two vectors [N,2,d], from the first to the second.

    One dimension has no planes: identity.
    """
    u, w = plane.unbind(1)
    skew = w[:, :, None] * u[:, None] - u[:, :, None] * w[:, None]
    skew = sqrt(2) * normalize(skew.flatten(1)).reshape(skew.shape)
    return torch.linalg.matrix_exp(angle[:, None, None] * skew)


def log_stretch(direction: torch.Tensor) -> torch.Tensor:
    """Logarithm [N,d,d], symmetric with trace 0, of stretching by e along direction [N,d] at constant volume.

    The other directions shrink alike. One dimension cannot: zero.
    """
    d = direction.shape[1]
    u = normalize(direction)
    return (d * u[:, :, None] * u[:, None] - torch.eye(d, dtype=u.dtype)) / max(d - 1, 1)


def rotation_label(matrix: torch.Tensor) -> torch.Tensor:
    """Rows of rotations [N,d,d] minus identity, less the last row, which follows from them: [N,d(d-1)].

    In 2D the paper's (cos a - 1, sin a); continuous in any dimension, unlike angles (Zhou et al. 2019).
    """
    d = matrix.shape[1]
    return (matrix.flip(1, 2) - torch.eye(d, dtype=matrix.dtype))[:, :d - 1].flatten(1)


def stretch_label(matrix: torch.Tensor) -> torch.Tensor:
    """Upper triangles of log-stretches [N,d,d], less the last entry, which follows from trace 0: [N,d(d+1)/2-1]."""
    rows, columns = torch.triu_indices(matrix.shape[1], matrix.shape[1])
    return matrix.flip(1, 2)[:, rows, columns][:, :-1]


class AugmentPipe:
    """Random geometric transforms of images, label maps and conditions alike, with the labels that tell of them.

    A transform is tried with probability min(1, p * its multiplier); 0 leaves it out, with its labels. They act, and
    stand in the label, in the order of the arguments flip to translate_frac; docs/augmentation.md says what each does,
    how it is labelled and how wide. flip is one multiplier, or one per axis of the array; None always tries the last
    axis, the others by 1. translate_int_max and translate_std are shares of the size, rotate_max degrees, scale_std and
    aniso_std powers of 2. spacing gives voxels that are no cubes, per axis of the array. fill and condition_fill, one
    number or one per channel, and label_fill come in from outside. What is missing, a condition image of zeros or a
    semantic map of semantic_dim all over (None: no map), stays so. All labels are 0 for an image left alone.
    ValueError for numbers out of range, and images of other dimensions.
    """

    def __init__(self, spatial_dims: int, p: float = 0.12, flip: float | Sequence[float] | None = None,
                 rotate_int: float = 0, translate_int: float = 0, scale: float = 1, rotate_frac: float = 1,
                 aniso: float = 1, translate_frac: float = 1, translate_int_max: float = 0.125, scale_std: float = 0.2,
                 rotate_max: float = 180, aniso_std: float = 0.2, translate_std: float = 0.125,
                 spacing: Sequence[float] | None = None, fill: float | Sequence[float] = -1, label_fill: int = 0,
                 condition_fill: float | Sequence[float] = -1, semantic_dim: int | None = None):
        d = spatial_dims
        self.spatial_dims, self.p = d, p
        flip = [1.0] * (d - 1) + [1e8] if flip is None else flip
        self.flip = list(flip) if isinstance(flip, Sequence) else [flip] * d
        self.multipliers = {"rotate_int": rotate_int, "translate_int": translate_int, "scale": scale,
                            "rotate_frac": rotate_frac, "aniso": aniso, "translate_frac": translate_frac}
        self.translate_int_max, self.scale_std, self.rotate_max = translate_int_max, scale_std, rotate_max
        self.aniso_std, self.translate_std = aniso_std, translate_std
        self.spacing = [1.0] * d if spacing is None else list(spacing)
        self.fill, self.label_fill, self.condition_fill = fill, label_fill, condition_fill
        self.semantic_dim = semantic_dim
        self._check()

    def _check(self) -> None:
        d = self.spatial_dims
        if d not in (1, 2, 3):
            raise ValueError(f"AugmentPipe: spatial_dims={d}, wanted 1, 2 or 3")
        if not 0 <= self.p <= 1:
            raise ValueError(f"AugmentPipe: p={self.p}, wanted a probability, 0 .. 1")
        for name in ("flip", "spacing"):
            if len(getattr(self, name)) != d:
                raise ValueError(f"AugmentPipe: {name}={getattr(self, name)}, wanted {d} values, one per axis")
        for name, value in {"flip": min(self.flip), **self.multipliers}.items():
            if value < 0:
                raise ValueError(f"AugmentPipe: {name}={value}, wanted a multiplier of p, 0 (never) or more")
        if min(self.spacing) <= 0:
            raise ValueError(f"AugmentPipe: spacing={self.spacing}, wanted positive lengths")
        for name, most in {"translate_int_max": 1, "scale_std": inf, "rotate_max": 180, "aniso_std": inf,
                           "translate_std": inf}.items():
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"AugmentPipe: {name}={getattr(self, name)}, wanted more than 0 and at most {most}; "
                                 "a multiplier of 0 leaves a transform out")

    @property
    def label_widths(self) -> dict[str, int]:
        """Entries of the label per transform, in their order, without those left out."""
        d = self.spatial_dims
        widths = {"rotate_int": d * (d - 1), "translate_int": d, "scale": 1, "rotate_frac": d * (d - 1),
                  "aniso": d * (d + 1) // 2 - 1, "translate_frac": d}
        flips = {"flip": sum(multiplier > 0 for multiplier in self.flip)}
        return {k: v for k, v in {**flips, **widths}.items() if k == "flip" or self.multipliers[k] > 0}

    @property
    def label_dim(self) -> int:
        """Width of the augmentation labels: the network's augment_dim."""
        return sum(self.label_widths.values())

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
        """The batch with everything that lies on the grid moved, and augmentation labels [N,label_dim] float32."""
        size = batch.images.shape[2:]
        if len(size) != self.spatial_dims:
            raise ValueError(f"AugmentPipe: images have {len(size)} spatial dimensions, spatial_dims is "
                             f"{self.spatial_dims}")
        move, labels = self.draw(generators, size)
        return self.moved(move, batch), labels.to(batch.images.device, torch.float32, non_blocking=True)

    def moved(self, move: Move, batch: Batch) -> Batch:
        """A batch with everything that lies on the grid moved."""
        condition = {name: self._move_part(move, name, part) for name, part in batch.condition.items()
                     if PARTS[name].grid}
        return Batch(self._move_images(move, batch.images, "fill"), self._move_map(move, batch.labels),
                     batch.condition.replace(**condition))

    def draw(self, generators: ImageGenerators, size: Sequence[int]) -> tuple[Move, torch.Tensor]:
        """Draw what happens to each image of size [d], and its label [N,label_dim] float64, both on the CPU.

        An image draws the same numbers whichever transforms are left out, so that one can be left out alone.
        """
        d, size = self.spatial_dims, torch.tensor(size, dtype=F64)
        noise = generators.for_purpose("augment").on_host()
        uniform, normal = noise.rand((3 * d + 8,)).to(F64), noise.randn((4 * d + 2,)).to(F64)
        chances, side, which, where, angle = uniform.split([d + 6, d, 1, d, 1], dim=1)
        a_scale, plane, a_aniso, direction, a_translate = normal.split([1, 2 * d, 1, d, d], dim=1)
        limits = self.p * torch.tensor([*self.flip, *self.multipliers.values()], dtype=F64)
        tried = (chances < limits).to(F64)
        turned, shifted, scaled, rotated, stretched, translated = tried[:, d:].split(1, dim=1)

        flips = tried[:, :d] * (side < 0.5)
        turns = self._allowed_turns(size)
        turn = turns[(turned * which * len(turns)).long().flatten()]
        shift = shifted * ((2 * where - 1) * self.translate_int_max * size).round()
        angle = rotated * angle * pi * self.rotate_max / 180  # either way round: the plane has no preferred side
        rotate = rotation(angle.flatten(), plane.unflatten(1, (2, d)))
        stretch = (stretched * a_aniso)[:, :, None] * log_stretch(direction)
        a_scale, a_translate = scaled * a_scale, translated * a_translate
        aniso = torch.linalg.matrix_exp(log(2) * self.aniso_std * stretch)
        matrix = aniso @ rotate * 2 ** (self.scale_std * a_scale)[:, :, None]
        spacing = torch.tensor(self.spacing, dtype=F64)
        matrix = matrix * spacing / spacing[:, None]  # from lengths to voxels

        kept = [i for i in reversed(range(d)) if self.flip[i] > 0]
        labels = {"flip": flips[:, kept], "rotate_int": rotation_label(turn),
                  "translate_int": (shift / (self.translate_int_max * size)).flip(1), "scale": a_scale,
                  "rotate_frac": rotation_label(rotate), "aniso": stretch_label(stretch),
                  "translate_frac": a_translate.flip(1)}
        move = Move(turn @ torch.diag_embed(1 - 2 * flips), shift, matrix, self.translate_std * size * a_translate)
        return move, torch.cat([labels[name] for name in self.label_widths], dim=1)

    def _allowed_turns(self, size: torch.Tensor) -> torch.Tensor:
        """Rotations of the grid [M,d,d] that keep size [d] and the spacing; the first is identity."""
        turns = signed_turns(self.spatial_dims)
        spacing = torch.tensor(self.spacing, dtype=F64)
        return turns[((turns.abs() @ size == size) & (turns.abs() @ spacing == spacing)).all(1)]

    def _move_part(self, move: Move, name: str, part: torch.Tensor) -> torch.Tensor:
        """A part that lies on the grid, moved where an image has it: no background comes into what is missing."""
        is_map = PARTS[name].grid == "map"
        moved = self._move_map(move, part) if is_map else self._move_images(move, part, "condition_fill")
        if is_map and self.semantic_dim is None:
            return moved
        missing = (part == PARTS[name].null(self.semantic_dim)).flatten(1).all(1)
        return torch.where(missing.reshape(-1, *[1] * (part.ndim - 1)), part, moved)

    def _move_images(self, move: Move, images: torch.Tensor, key: str) -> torch.Tensor:
        channels, fill = images.shape[1], torch.as_tensor(getattr(self, key), dtype=F64).flatten()
        if len(fill) not in (1, channels):
            raise ValueError(f"AugmentPipe: {key} has {len(fill)} values, wanted 1 or {channels}, one per channel")
        return move.apply(images, fill.expand(channels).to(images.device, non_blocking=True), "bilinear")

    def _move_map(self, move: Move, labels: torch.Tensor | None) -> torch.Tensor | None:
        if labels is None:
            return None
        fill = tensor_on(labels.device, [self.label_fill], F64)
        return move.apply(labels.unsqueeze(1), fill, "nearest").squeeze(1)
