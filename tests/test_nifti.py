"""Single volumes of others: what is whole is read as nibabel and numpy read it, what is damaged is named."""

import gzip
import os
import random
import struct
import tracemalloc
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from edm3d.formats.nifti import npz_names, read_volume
from edm3d.formats.prepare import PrepareOptions, prepare
from edm3d.inference.check import check

VOXELS = np.random.default_rng(0).normal(100, 20, (12, 11, 10)).astype(np.int16)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def nifti(voxels: np.ndarray = VOXELS, kind: type = nibabel.Nifti1Image) -> bytes:
    return kind(voxels, AFFINE).to_bytes()


def patched(content: bytes, place: int, layout: str, *values: float) -> bytes:
    """The content with some values packed into it at a place."""
    new = struct.pack(layout, *values)
    return content[:place] + new + content[place + len(new):]


def refusal(path: Path, content: bytes | None = None) -> str:
    """Why a file is not read, without its name, which is there but once."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_volume(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


# ---- what is whole ----


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.1, 3), (np.nan, 0), (0, 7)])
def test_voxels_types_and_places_are_those_of_nibabel(tmp_path, kind, suffix, scaling):
    path = tmp_path / f"a{suffix}"
    for number, name in enumerate(("u1", "i2", "<i4", ">i2", "u8", ">f4", "f8")):
        header = kind.header_class(endianness=">" if name[0] == ">" else "<")
        header.set_data_dtype(name)
        header.set_data_shape(VOXELS.shape)
        header.set_sform(AFFINE, number % 2)
        header.set_qform(AFFINE @ np.diag([1, -1, 1, 1]), 2 * (number % 3))
        header.set_xyzt_units(("mm", "meter")[number % 2])
        header["scl_slope"], header["scl_inter"] = scaling
        header["vox_offset"] = header.sizeof_hdr + 4 + 16 * number
        content = header.binaryblock.ljust(int(header["vox_offset"]), b"\0") + VOXELS.astype(name).tobytes("F")
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        wanted, found = nibabel.load(path), read_volume(path)
        values = np.asanyarray(wanted.dataobj)
        assert found.data.dtype == values.dtype and found.data[0].tobytes() == values.tobytes()
        mm = np.diag([1, 1, 1, 1]) if number % 2 == 0 else np.diag([1e3, 1e3, 1e3, 1])
        np.testing.assert_array_equal(found.affine, mm @ wanted.affine)


def test_arrays_are_those_of_numpy(tmp_path):
    for array in (VOXELS, np.asfortranarray(VOXELS), VOXELS > 100, VOXELS.astype(">f8"), VOXELS.astype(np.float16)):
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", image=array, label=array > 0, affine=AFFINE)
        for name in ("a.npy", "a.npz"):
            found = read_volume(tmp_path / name)
            assert found.data.dtype == array.dtype
            np.testing.assert_array_equal(found.data[0], array)
        np.testing.assert_array_equal(found.affine, AFFINE)
    assert npz_names(tmp_path / "a.npz") == ["image", "label", "affine"]


# ---- checksums ----


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz"])
def test_no_flipped_bit_changes_a_number(tmp_path, name):
    path, chance, found = tmp_path / name, random.Random(0), Counter()
    if name == "a.npz":
        np.savez_compressed(path, image=VOXELS, affine=AFFINE)
    else:
        path.write_bytes(gzip.compress(nifti()))
    whole = path.read_bytes()
    for _ in range(150):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            volume = read_volume(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            found["refused"] += 1
        else:  # of the date in the header, say
            np.testing.assert_array_equal(volume.data[0], VOXELS)
            np.testing.assert_array_equal(volume.affine, AFFINE)
    assert found["refused"] > 120


def test_a_gz_is_read_to_its_end(tmp_path):
    path, content = tmp_path / "a.nii.gz", nifti()
    whole = gzip.compress(content)
    assert "CRC" in refusal(path, whole[:-8] + b"\0" * 4 + whole[-4:])
    assert "length" in refusal(path, whole[:-1] + b"\1")
    assert "ended before" in refusal(path, whole[:-3])
    assert "Not a gzipped file" in refusal(path, whole + b"more")
    assert "it goes on behind the 12x11x10 voxels of int16" in refusal(path, whole + whole * 4)
    several = gzip.compress(content[:1000]) + gzip.compress(content[1000:]) + b"\0" * 64  # as bgzip and tar make them
    for well in (several, gzip.compress(content + b"\0" * 512)):
        path.write_bytes(well)
        np.testing.assert_array_equal(read_volume(path).data[0], VOXELS)


# ---- headers ----


DAMAGE = [  # byte, layout and values of what is put there; what is said of it, None where it does not matter
    (70, "<h", (26996,), "data code 26996 not recognized"), (70, "<h", (128,), "values of type RGB are not numbers"),
    (70, "<h", (32,), "values of type complex64 are not numbers"), (42, "<h", (-5,), "claims the shape"),
    (42, "<hhh", (32767,) * 3, "32767x32767x32767 values of int16, 65530.00 GiB, and the"), (40, "<h", (4,), None),
    (42, "<h", (0,), "holds no values"), (40, "<hhhhh", (4, 12, 11, 10, 0), "holds no values"),
    (40, "<h", (0,), "0 axes (dim[0])"), (40, "<h", (9,), "axes (dim[0])"), (42, "<h", (3,), "on behind the 3x11x10"),
    (108, "<f", (np.nan,), "at byte nan (vox_offset)"), (108, "<f", (-16,), "vox offset -16 too low"),
    (108, "<f", (0,), "at byte 0"), (108, "<f", (1e30,), "at byte 1e+30"), (108, "<f", (1e6,), "cannot"),
    (112, "<ff", (1, np.inf), "invalid intercept"), (254, "<h", (77,), "sform_code in its header is 77"),
    (280, "<f", (np.nan,), "its affine has values that are not finite"), (280, "<f", (0,), "cannot be inverted"),
    (280, "<f", (3e38,), "3e+38x2x3 mm"), (292, "<f", (1e12,), "begin at [99999999"),
    (344, "<4s", (b"ni1\0",), None), (344, "<4s", (b"n+9\0",), "no kind that is read here, or damaged"),
]  # fmt: skip
NO_SFORM = [
    (80, "<f", (0,), "voxels of 0x2x3 (pixdim)"), (84, "<f", (np.nan,), "2xnanx3 (pixdim)"), (80, "<f", (-2,), None),
    (80, "<f", (np.inf,), "infx2x3"), (256, "<f", (1.5,), "its qform is no rotation"), (76, "<f", (np.nan,), None),
    (256, "<f", (np.nan,), "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("place", "layout", "values", "wanted", "has_sform"),
                         [(*d, True) for d in DAMAGE] + [(*d, False) for d in NO_SFORM])
def test_damaged_headers_are_named_or_mean_what_they_say(tmp_path, caplog, suffix, place, layout, values, wanted,
                                                         has_sform):
    content = nifti() if has_sform else patched(patched(nifti(), 254, "<h", 0), 252, "<h", 1)
    content, path = patched(content, place, layout, *values), tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if wanted is None:
            np.testing.assert_array_equal(read_volume(path).data[0], VOXELS)
            np.testing.assert_allclose(read_volume(path).affine, AFFINE)
        else:
            assert wanted in refusal(path)
    assert not caplog.records  # nor does nibabel say, between our lines, what it found


@pytest.mark.parametrize(("head", "wanted"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a Git LFS pointer, not a volume"),
    (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"), (b"\x89HDF\r\n\x1a\n" + b"\0" * 999, "HDF5"),
    (b"", "it is empty"), (b"\0" * 5000, "zeros"), (b"id,age\n1,2\n", "text"), (bytes([128] * 99), "after 99 bytes"),
    (b"\0" * 128 + b"DICM" + b"\1" * 999, "DICOM"), (gzip.compress(nifti(), mtime=0), "name it .nii.gz"),
])  # fmt: skip
def test_what_is_no_volume_is_called_what_it_looks_like(tmp_path, head, wanted):
    assert wanted in refusal(tmp_path / "a.nii", head)
    if not head.startswith(b"\x1f"):
        assert wanted in refusal(tmp_path / "a.nii.gz", gzip.compress(head))
        assert "cannot be read" in refusal(tmp_path / "a.nii.gz", head)
    assert "that is not compressed: name it .nii" in refusal(tmp_path / "b.nii.gz", nifti())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npz", ".npy"])
def test_what_is_no_file_is_not_waited_for(tmp_path, suffix):
    pipe, folder, lost, device = (tmp_path / f"{name}{suffix}" for name in ("pipe", "folder", "lost", "device"))
    os.mkfifo(pipe)
    folder.mkdir()
    lost.symlink_to(tmp_path / "gone")
    device.symlink_to("/dev/zero")
    for path, wanted in ((pipe, "a pipe or a device"), (folder, "a folder"), (lost, "a link to"), (device, "a pipe or"),
                         (tmp_path / f"none{suffix}", "no such file")):
        assert wanted in refusal(path)
        if suffix == ".npz":
            with pytest.raises(ValueError, match="pipe|folder|link|no such file"):
                npz_names(path)


# ---- sizes that are claimed ----


def test_claims_take_no_memory(tmp_path, monkeypatch):
    tracemalloc.start()
    try:
        flood = nifti() + b"\0" * (64 << 20)  # 66 kB, compressed
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        assert "it goes on behind" in refusal(tmp_path / "a.nii.gz", gzip.compress(flood))
        assert "and has 0: it is cut off" in refusal(tmp_path / "a.npy", npy("(1000000, 1000, 1000)"))
        assert "10000 at most" in refusal(tmp_path / "a.npy", b"\x93NUMPY\2\0\xff\xff\xff\x7f")
        del flood
        assert tracemalloc.get_traced_memory()[1] - start < 16 << 20
    finally:
        tracemalloc.stop()
    free = type("Free", (), {"available": 2000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert "values of int16 takes 2,640 bytes of memory, and 2,000 are free" in refusal(tmp_path / "a.nii", nifti())


def npy(shape: str, kind: str = "<f8", values: bytes = b"", order: str = "False") -> bytes:
    """A .npy whose header says so."""
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + values


@pytest.mark.parametrize(("content", "wanted"), [
    (npy("(2, 2, 2)", "|O", b"x" * 64), "Python objects"), (npy("(2, 2, 2)", "<c16", b"\0" * 128), "complex128"),
    (npy("(2, 2, 2)", "<M8[ns]", b"\0" * 64), "datetime64"), (npy("()", values=b"\0" * 8), "shape ()"),
    (npy("(4, 0, 4)"), "holds no values"), (npy("(-2, -2, 2)", values=b"\0" * 64), "claims the shape"),
    (npy("(2, 2, 2)", values=b"\0" * 63), "64 bytes, as float64 (2, 2, 2), and has 63"),
    (npy("(2, 2, 1)", values=b"\0" * 64), "32 bytes, as float64 (2, 2, 1), and has 64"),
    (npy("(2, 2, 2"), "not one that numpy writes"), (npy("(" * 90), "not one that numpy writes"),
    (b"\x93NUMPY\7\0aa", "versions 1 to 3"), (b"\x93NUM", "damaged"), (b"\x80\4K\1.", "damaged"), (b"", "it is empty"),
])  # fmt: skip
def test_arrays_that_are_no_volume_are_named(tmp_path, content, wanted):
    assert wanted in refusal(tmp_path / "a.npy", content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", content)
    refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(("affine", "wanted"), [
    (np.full((4, 4), np.nan), "its affine has values that are not finite"), (np.eye(3), "its affine is (3, 3), wanted"),
    (np.zeros((4, 4)), "affine"),
    (np.eye(4) * 1e30, "affine"), (np.array(["a"] * 16).reshape(4, 4), "not numbers"),
    (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "cannot be inverted"),
])  # fmt: skip
def test_affines_that_give_no_place_are_named(tmp_path, affine, wanted):
    np.savez(tmp_path / "a.npz", image=VOXELS, affine=affine)
    assert wanted in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", image=VOXELS, affine=AFFINE * [1e-3, 1e-3, 1e-3, 1])  # microscopy
    np.testing.assert_allclose(read_volume(tmp_path / "a.npz").affine, np.diag([2e-3, 2e-3, 3e-3, 1]))


# ---- all at once ----


def test_random_damage_is_named_in_check_and_prepare(tmp_path):
    chance, images = random.Random(0), tmp_path / "images"
    images.mkdir()
    np.save(tmp_path / "a.npy", VOXELS)
    np.savez(tmp_path / "a.npz", image=VOXELS, affine=AFFINE)
    sources = {".nii": nifti(), ".nii.gz": nifti(kind=nibabel.Nifti2Image), ".npy": (tmp_path / "a.npy").read_bytes(),
               ".npz": (tmp_path / "a.npz").read_bytes()}
    special = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\0" * 4, b"\xff\x7f\xff\x7f", b"\xff\xff\x7f\x7f")
    for number in range(200):
        suffix = list(sources)[number % 4]
        content = bytearray(sources[suffix])
        place = chance.randrange(min(len(content), 352) - 4 if number % 8 < 6 else len(content) - 4)
        if number % 3 == 0:
            content = content[:place]
        elif number % 3 == 1:
            content[place] ^= 1 << chance.randrange(8)
        else:
            content[place:place + 4] = chance.choice(special)
        (images / f"c{number:03d}{suffix}").write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    report = check(images)
    bad = {problem.split(": ")[0] for problem in report.problems}
    assert 90 < len(bad) < 200 and all("\n" not in problem for problem in report.problems)
    with pytest.raises(ValueError) as caught:
        prepare(images, None, tmp_path / "v.h5", PrepareOptions(split=(1.0,)))
    named = {line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:]}
    assert bad <= named and all(Path(path).is_file() for path in named)
