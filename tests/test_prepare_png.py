"""PNG as data: read right whatever its bits, palette and order, refused by name where it is no grey and no map."""

import json
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from edm3d.formats.describe import describe
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import spacing_of, write_nifti
from edm3d.formats.png import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, read_png, read_png_map, write_png
from edm3d.formats.prepare import PrepareOptions, prepare
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.check import check
from edm3d.physics.phantoms import echo_phantom
from edm3d.reporting.montages import planes_figure, png_bytes
from edm3d.utils import checks
from tests.commands import succeed

CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def packed(values: np.ndarray, depth: int) -> bytes:
    """Rows of [H,W,C] in bits, each behind filter 0."""
    rows = values.reshape(len(values), -1)
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    bits = (rows[..., None] >> np.arange(depth)[::-1] & 1).reshape(len(rows), -1)
    return b"".join(b"\0" + np.packbits(row).tobytes() for row in bits.astype(np.uint8))


def png(path: Path, values, depth: int = 8, colour: int = GREY, interlaced: bool = False, size=None, **chunks) -> Path:
    """A PNG by the specification: values [H,W] or [H,W,C], further chunks by name; size: what the header claims."""
    values = np.asarray(values)
    values = values.reshape(*values.shape[:2], CHANNELS[colour])
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    data = zlib.compress(b"".join(packed(each, depth) for each in passes if each.size))
    height, width = size or values.shape[:2]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))]
    parts += [(name.encode(), bytes(content)) for name, content in chunks.items()] + [(b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts))
    return path


def random(top: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape or (9, 11))


# ---- one file ----


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth(tmp_path, depth, interlaced):
    values = random(2 ** depth)
    path = png(tmp_path / "a.png", values, depth, interlaced=interlaced)
    factor = {1: 255, 2: 85, 4: 17}.get(depth, 1)  # as the specification spreads them
    image, label = read_png(path), read_png_map(path)
    np.testing.assert_array_equal(image, values * factor)
    np.testing.assert_array_equal(label, values)
    assert image.dtype == label.dtype == (np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_of_greys_is_looked_up_and_a_map_is_its_index(tmp_path, depth):
    values, greys = random(min(2 ** depth, 7)), np.array([200, 10, 30, 50, 0, 255, 8])
    path = png(tmp_path / "a.png", values, depth, PALETTE, PLTE=np.repeat(greys[:2 ** depth], 3).astype(np.uint8))
    np.testing.assert_array_equal(read_png(path), greys[values])
    np.testing.assert_array_equal(read_png_map(path), values)


def test_a_map_may_have_any_colours_and_transparency_in_its_palette(tmp_path):
    values = random(3)
    path = png(tmp_path / "a.png", values, 8, PALETTE, PLTE=bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]), tRNS=bytes([0]))
    np.testing.assert_array_equal(read_png_map(path), values)
    with pytest.raises(ValueError, match="a.png: has transparent pixels"):
        read_png(path)


@pytest.mark.parametrize("colour", [RGB, GREY_ALPHA, RGB_ALPHA])
def test_channels_that_are_alike_and_opaque_are_grey(tmp_path, colour):
    values = np.repeat(random(256)[..., None], CHANNELS[colour], axis=2)
    values[..., 3 if colour == RGB_ALPHA else 1:] = 255 if colour != RGB else values[..., 1:]
    path = png(tmp_path / "a.png", values, 8, colour)
    np.testing.assert_array_equal(read_png(path), values[..., 0])
    np.testing.assert_array_equal(read_png_map(path), values[..., 0])


ODD = np.stack([random(256)] * 3 + [np.full((9, 11), 255)], axis=-1)
TINTED, CLEAR = ODD.copy(), ODD.copy()
TINTED[4, 5, 2] ^= 1
CLEAR[0, 0, 3] = 254
REFUSED = [
    (TINTED[..., :3], 8, RGB, {}, "is in colour, 1 of 99 pixels; "),
    (TINTED, 8, RGB_ALPHA, {}, "is in colour, 1 of 99 pixels; "),
    (CLEAR, 8, RGB_ALPHA, {}, "has transparent pixels; save it without an alpha channel"),
    (CLEAR[..., 2:], 8, GREY_ALPHA, {}, "has transparent pixels; save it without an alpha channel"),
    (ODD[..., :3], 16, RGB, {}, "has 16 bits and colour or alpha channels; save it as 16-bit grey, without alpha"),
    (random(256), 8, GREY, {"acTL": bytes([0, 0, 0, 1, 0, 0, 0, 0])}, r"holds several pictures \(APNG\)"),
]


@pytest.mark.parametrize("values, depth, colour, chunks, message", REFUSED)
def test_neither_grey_nor_map_is_refused_by_name(tmp_path, values, depth, colour, chunks, message):
    path = png(tmp_path / "a.png", values, depth, colour, **chunks)
    for read in (read_png, read_png_map):
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            read(path)


@pytest.mark.parametrize("colour, chunks, message", [
    (PALETTE, {"PLTE": bytes([0, 0, 0, 1, 1, 2])}, "has colours in its palette; save it as grey"),
    (PALETTE, {"PLTE": bytes(3)}, "has colours in its palette"),  # which lacks an index
    (GREY, {"tRNS": bytes([0, 1])}, "has transparent pixels"),
])
def test_no_grey_of_an_image_is_guessed(tmp_path, colour, chunks, message):
    path = png(tmp_path / "a.png", random(2), 8, colour, **chunks)
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        read_png(path)
    assert read_png_map(path).max() == 1
    unused = {"tRNS": bytes([0, 7])} if colour == GREY else {"PLTE": bytes([9, 9, 9, 8, 8, 8, 1, 2, 3])}
    read_png(png(path, random(2), 8, colour, **unused))  # a colour that no pixel has is none


def test_what_write_png_writes_is_read_back(tmp_path):
    values = random(256).astype(np.uint8)
    write_png(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), values)
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "b.png")  # by somebody else
    np.testing.assert_array_equal(read_png(tmp_path / "b.png"), values.astype(np.uint16) * 257)


def test_damage_and_false_claims_are_named(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png", random(256, 40, 40))
    whole = path.read_bytes()
    for content, message in [
            (whole[:-12], "cut off"), (whole[:200], "cut off"), (whole[:30], "cut off"), (whole[:8], "cut off"),
            (whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], "the checksum of its chunk IDAT at byte 33 differs"),
            (b"\xff\xd8\xff\xe0" + whole, "it looks like a JPEG picture"), (b"", "it is empty")]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: not readable as PNG \\(.*{message}"):
            read_png(path)
    with pytest.raises(ValueError, match="header claims 100000x100000 pixels of 8 bits, 9.31 GiB"):
        read_png(png(path, random(256), size=(100_000, 100_000)))
    with pytest.raises(ValueError, match="not readable as PNG"):  # fewer rows than claimed, within what could be
        read_png(png(path, random(256), size=(20, 11)))
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 900}))
    with pytest.raises(ValueError, match="a picture of 40x40 pixels of 8 bits takes 6,400 bytes of memory"):
        read_png(png(path, np.zeros((40, 40), int)))
    with pytest.raises(ValueError, match="no such file"):
        read_png(tmp_path / "b.png")


# ---- folders ----

SPLITS = {"training": "train", "validation": "val", "testing": "test"}
NAMES = {"training": ["p1_4CH", "p2_2CH"], "validation": ["p3_2CH"], "testing": ["p4_4CH"]}
PHANTOMS = {name: echo_phantom(i, seed=0, size=16, spatial_dims=2)
            for i, name in enumerate(name for names in NAMES.values() for name in names)}
ONE = PrepareOptions(value_range=(0, 255))


def layout(root: Path, splits=tuple(SPLITS), suffix: str = ".png") -> Path:
    """Echo data as they lie: images, sector_annotations (maps) and annotations (labels), each by split."""
    for split, folder in zip(SPLITS, splits):
        for name in NAMES[split]:
            drawn = PHANTOMS[name]
            for kind, pixels in (("images", np.rint(drawn.image * 255)), ("annotations", drawn.label),
                                 ("sector_annotations", drawn.clean > 0)):
                (root / kind / folder).mkdir(parents=True, exist_ok=True)
                write_png(root / kind / folder / f"{name}{suffix}", pixels.astype(np.uint8))
    return root


def run(root: Path, options: PrepareOptions = ONE, labels: bool = True, maps: bool = True, **more):
    """What came of it, and the volumes file."""
    made = prepare(root / "images", root / "annotations" if labels else None, root / "v.h5", options,
                   maps=root / "sector_annotations" if maps else None, overwrite=True, **more)
    return made, VolumesFile(root / "v.h5")


def refused(root: Path, message: str, options: PrepareOptions = ONE, **more) -> None:
    with pytest.raises(ValueError, match=message):
        run(root, options, **more)
    assert not (root / "v.h5").exists()


def test_folders_of_echo_data_come_in_as_they_were_drawn(tmp_path):
    root = layout(tmp_path / "train" / "images_val")  # words that say nothing there
    made, file = run(root)
    assert made.counts == {"train": 2, "val": 1, "test": 1} and file.splits == ["train", "val", "test"]
    assert file.meta.spatial_dims == 2 and file.meta.intensity == Intensity(0, 255, True, "a.u.")
    assert file.meta.label_classes == tuple(f"class_{k}" for k in range(4))
    assert file.meta.map_classes == ("class_0", "class_1")
    for folder, split in SPLITS.items():
        assert file.ids(split) == NAMES[folder]
        for index, name in enumerate(file.ids(split)):
            item, drawn = file.read(split, index), PHANTOMS[name]
            np.testing.assert_array_equal(item.image[0], np.rint(drawn.image * 255))  # rows first, none upside down
            np.testing.assert_array_equal(item.label, drawn.label)
            np.testing.assert_array_equal(item.map, drawn.clean > 0)
            np.testing.assert_array_equal(item.affine, np.eye(4))
    assert "splits: by the folders of the images; --split is not used" in made.notes
    again = prepare(root / "images", root / "annotations", root / "v.h5", ONE, maps=root / "sector_annotations")
    assert not again.written


def test_a_picture_hangs_upright_with_and_without_pixel_spacing(tmp_path):
    root = layout(tmp_path)
    for options in (ONE, replace(ONE, pixel_spacing=(0.5, 0.8))):
        item = run(root, options)[1].read("val", 0)
        np.testing.assert_allclose(spacing_of(item.affine)[:2], options.pixel_spacing or (1, 1))
        assert np.linalg.det(item.affine) > 0
        image = np.zeros((16, 16), np.float32)
        image[10:, :4] = 1  # low, and on the left
        for window, place in ((image, (1, 0)), (image.T, (0, 1)), (image[::-1], (0, 0))):
            shown = png_bytes(planes_figure(window, None, spacing_of(item.affine)[:2], affine=item.affine))
            pixels = np.asarray(Image.open(BytesIO(shown)).convert("L"), np.float64)
            bright = np.argwhere(pixels > 250).mean(0) > np.array(pixels.shape) / 2
            assert tuple(bright) == place


def test_pixel_spacing_makes_geometry_and_is_for_pictures_alone(tmp_path):
    root = layout(tmp_path)
    item = run(root, replace(ONE, pixel_spacing=(2, 1), spacing=(4, 4)))[1].read("val", 0)
    assert item.image.shape == (1, 8, 4)
    refused(layout(tmp_path / "b"), "has no affine, which --spacing and --orientation need; give --pixel-spacing",
            replace(ONE, spacing=(2, 2)))
    refused(tmp_path / "b", "--pixel-spacing 1 1: it says no directions for --orientation",
            replace(ONE, pixel_spacing=(1, 1), orientation="RAS"))
    refused(tmp_path / "b", "--pixel-spacing 1e-09 1: wanted 1e-06 to", replace(ONE, pixel_spacing=(1e-9, 1)))
    refused(tmp_path / "b", "--pixel-spacing 1: one number", replace(ONE, pixel_spacing=(1,)))
    for path in (tmp_path / "b").rglob("*.png"):
        write_nifti(path.with_suffix(".nii"), np.eye(16), np.eye(4), spatial_dims=2)
    refused(tmp_path / "b", "has an affine, which says its voxel size", replace(ONE, pixel_spacing=(1, 1)))


def test_capitals_and_short_names_of_splits(tmp_path):
    made, file = run(layout(tmp_path, ("train", "val", "test"), ".PNG"))
    assert made.counts == {"train": 2, "val": 1, "test": 1}
    assert check(tmp_path / "images").lines[-1] == "4 files, 0 bad"


def test_pictures_beside_volumes_are_none_of_them(tmp_path):
    (tmp_path / "i").mkdir()
    np.save(tmp_path / "i" / "a.npy", random(9, 4, 4, 4))
    write_png(tmp_path / "i" / "a.png", random(9, 4, 4).astype(np.uint8))
    made = prepare(tmp_path / "i", None, tmp_path / "v.h5", PrepareOptions(split=(1.0,)))
    assert made.counts == {"train": 1} and "1 picture(s) beside volumes of other formats (a.png)" in made.notes[0]


SPLIT_ERRORS = [
    (("training", "validaton", "testing"), r"meant for splits: validaton \(val or validation\); rename"),
    (("Train", "Validation", "Test"), r"meant for splits: Test \(test or testing\), Train \(train or training\), Val"),
    (("training", "other", "testing"), r"its folders testing, training are splits, and 1 file\(s\) lie beside them: "
     r"other/p3_2CH\.png"),
    (("training", ".", "testing"), r"are splits, and 1 file\(s\) lie beside them: p3_2CH\.png; move them"),
    (("training", "test", "testing"), "of its folders test, testing, training two are one split"),
]


@pytest.mark.parametrize("folders, message", SPLIT_ERRORS)
def test_folders_that_are_no_splits_are_named(tmp_path, folders, message):
    refused(layout(tmp_path, folders), f"{tmp_path / 'images'}: .*{message}")


def test_empty_splits_two_splits_and_a_split_of_the_table(tmp_path):
    root = layout(tmp_path)
    (root / "annotations/testing/p4_4CH.png").rename(root / "annotations/training/p4_4CH.png")
    (root / "annotations/training/p1_4CH.png").rename(root / "annotations/testing/p1_4CH.png")
    refused(root, "files of one volume lie in folders of two splits: .*testing/p4_4CH.png and .*training/p4_4CH.png")
    (root / "t.csv").write_text("id,split\n" + "".join(f"{name},train\n" for name in PHANTOMS))
    made, _ = run(root, labels=False, table=root / "t.csv")
    assert made.counts == {"train": 4} and "has a column split, which is taken" in " ".join(made.notes)
    (root / "v.h5").unlink()
    (root / "images/testing/p4_4CH.png").unlink()
    refused(root, r"no file in its folder\(s\) testing, which stand for splits", labels=False, maps=False)


def test_names_that_recur_in_two_splits_are_two_volumes(tmp_path):
    root = layout(tmp_path)
    for kind in ("images", "annotations", "sector_annotations"):
        (root / kind / "testing/p4_4CH.png").rename(root / kind / "testing/p3_2CH.png")
    file = run(root)[1]
    assert file.ids("test") == ["testing_p3_2CH"] and file.ids("val") == ["validation_p3_2CH"]
    np.testing.assert_array_equal(file.read("test", 0).map, PHANTOMS["p4_4CH"].clean > 0)


def test_folders_of_label_maps_are_not_taken_for_images(tmp_path):
    layout(tmp_path)
    with pytest.raises(ValueError, match="its folders annotations, sector_annotations hold label maps"):
        prepare(tmp_path, None, tmp_path / "v.h5", ONE)


# ---- maps ----


def path_of(root: Path, kind: str = "sector_annotations") -> Path:
    return root / kind / "training" / "p1_4CH.png"


def test_bad_maps_are_named(tmp_path):
    root = layout(tmp_path)
    path, options = path_of(root), replace(ONE, map_classes=("outside", "sector"))
    for make, message in [
            (lambda: write_png(path, np.full((16, 16), 7, np.uint8)),
             r"label values 7 are outside 0\.\.1; name all classes with --map-classes"),
            (lambda: write_png(path, np.zeros((8, 16), np.uint8)), r"is on another grid than its image \(\(8, 16, 1\)"),
            (lambda: png(path, np.full((16, 16), 300), 16), "label values 300 are outside 0..1; a label map has 256"),
            (lambda: write_png(path, np.full((16, 16, 3), (1, 0, 0), np.uint8)), "is in colour, 256 of 256 pixels"),
            (lambda: path.write_bytes(b"\xff\xd8\xff\xe0 and so on"), r"not readable as PNG \(it looks like a JPEG"),
            (path.unlink, r"1 image\(s\) without a map: p1_4CH.png. They are paired by name, --images with --maps"),
            (lambda: write_png(path.with_name("more.png"), np.zeros((16, 16), np.uint8)),
             r"1 image\(s\) without a map: p1_4CH.png; 1 map\(s\) without an image: more.png")]:
        make()
        refused(root, message, options)
    refused(root, "--map-classes outside sector: there are no maps; give --maps", options, maps=False)


def test_coloured_palettes_and_few_bits_of_maps_are_classes(tmp_path):
    root = layout(tmp_path)
    for kind, bits, colours in (("annotations", 8, (0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255)),
                                ("sector_annotations", 1, (9, 8, 7, 0, 1, 2))):
        for path in (root / kind).rglob("*.png"):
            png(path, read_png(path), bits, PALETTE, PLTE=bytes(colours))
    item = run(root)[1].read("test", 0)
    np.testing.assert_array_equal(item.label, PHANTOMS["p4_4CH"].label)
    np.testing.assert_array_equal(item.map, PHANTOMS["p4_4CH"].clean > 0)


def test_colour_and_damage_of_all_images_are_named_at_once(tmp_path):
    root = layout(tmp_path)
    write_png(path_of(root, "images"), np.full((16, 16, 3), (1, 0, 0), np.uint8))
    other = root / "images/testing/p4_4CH.png"
    other.write_bytes(other.read_bytes()[:-20])
    refused(root, r"(?s)2 of 4 volumes cannot be used:.*p1_4CH\.png: is in colour.*p4_4CH\.png: not readable .*cut off")


def test_sixteen_bits_are_scaled_by_the_range_and_a_mix_is_said(tmp_path):
    root = layout(tmp_path)
    values = np.arange(256).reshape(16, 16) * 257
    png(path_of(root, "images"), values, 16)
    made, file = run(root, PrepareOptions(value_range=(0, 65535)))
    np.testing.assert_array_equal(file.read("train", 0).image[0], values)
    assert file.meta.intensity.to_network(file.read("train", 0).image).max() == 1
    assert any("some images have 8 bits and some 16 (p2_2CH and p1_4CH)" in note for note in made.notes)


@pytest.mark.parametrize("suffix", [".nii.gz", ".npy", ".npz"])
def test_maps_of_every_format_are_cropped_with_the_volume(tmp_path, suffix):
    rng = np.random.default_rng(0)
    image, label, sector = rng.random((6, 5, 4)), rng.integers(0, 3, (6, 5, 4)), rng.integers(0, 9, (6, 5, 4))
    folders = {"i": image, "l": label.astype(np.uint8), "m": sector.astype(np.uint8)}
    for folder, array in folders.items():
        (tmp_path / folder).mkdir()
        if suffix == ".nii.gz":
            write_nifti(tmp_path / folder / "a.nii.gz", array, np.eye(4))
        elif suffix == ".npy":
            np.save(tmp_path / folder / "a.npy", array)
    given = [tmp_path / name for name in "lm"]
    if suffix == ".npz":
        np.savez(tmp_path / "i" / "a.npz", image=image, label=folders["l"], map=folders["m"])
        given = [None, None]
    prepare(tmp_path / "i", given[0], tmp_path / "v.h5", PrepareOptions(size=(4, 5, 6), split=(1.0,)), maps=given[1])
    file = VolumesFile(tmp_path / "v.h5")
    item = file.read("train", 0)
    assert len(file.meta.label_classes) == 3 and len(file.meta.map_classes) == 9
    np.testing.assert_array_equal(item.map[..., 1:5], sector[1:5])
    np.testing.assert_array_equal(item.label[..., 1:5], label[1:5])
    assert not item.map[..., [0, 5]].any()


def test_maps_by_pattern_lie_among_the_images_and_are_resampled_nearest(tmp_path):
    sector = np.zeros((8, 8, 8), np.uint8)
    sector[:4] = 5
    for name, array in {"a": np.arange(512.0).reshape(8, 8, 8), "a_seg": sector // 5, "a_sector": sector}.items():
        write_nifti(tmp_path / "i" / f"{name}.nii", array, np.eye(4))
    options = PrepareOptions(spacing=(2, 2, 2), split=(1.0,), label_pattern="{id}_seg", map_pattern="{id}_sector",
                             map_classes=tuple("abcdef"))
    prepare(tmp_path / "i", None, tmp_path / "v.h5", options)
    item = VolumesFile(tmp_path / "v.h5").read("train", 0)
    np.testing.assert_array_equal(item.map, np.repeat([5, 5, 0, 0], 16).reshape(4, 4, 4))
    np.testing.assert_array_equal(item.label, item.map // 5)


# ---- channels, classes, spacing ----


def channels(root: Path) -> Path:
    for n in range(3):
        for name in ("t1", "t2"):
            (root / "i").mkdir(exist_ok=True)
            np.save(root / "i" / f"p{n}_{name}.npy", np.random.default_rng(n).random((4, 4, 4)))
    return root / "i"


@pytest.mark.parametrize("given, roles", [(("t1",), ("condition", "target")), (("1",), ("target", "condition"))])
def test_condition_channels_by_name_or_number(tmp_path, given, roles):
    options = PrepareOptions(image_pattern="{id}_{channel}", condition_channels=given)
    prepare(channels(tmp_path), None, tmp_path / "v.h5", options)
    assert VolumesFile(tmp_path / "v.h5").meta.channel_roles == roles
    role = "t1" if roles[0] == "condition" else "t2"
    assert f"(conditions: {role})" in check(tmp_path / "v.h5").lines[0]


@pytest.mark.parametrize("given, message", [
    (("t3",), "--condition-channels t3: no such channel; there are t1, t2, or by number 0, 1"),
    (("t1", "1"), "these are all channels"), (("t1", "0"), "names a channel twice")])
def test_condition_channels_that_cannot_be(tmp_path, given, message):
    options = PrepareOptions(image_pattern="{id}_{channel}", condition_channels=given)
    with pytest.raises(ValueError, match=message):
        prepare(channels(tmp_path), None, tmp_path / "v.h5", options)


LISTED = [["images/training/p1_4CH.png", 1], ["images/training/p2_2CH.png", 0], ["validation/p3_2CH.png", None],
          ["images/testing/p4_4CH.png", 2], ["images/gone.png", 7]]


def test_classes_of_a_dataset_json(tmp_path):
    root = layout(tmp_path)
    for place, labels, names in [
            (root, LISTED, ()), (root, dict(LISTED), ("a", "b", "c")),
            (root / "images", [[name.removeprefix("images/"), number] for name, number in LISTED], ())]:
        (place / "dataset.json").write_text(json.dumps({"labels": labels}))
        made, file = run(root, replace(ONE, class_names=names))
        assert file.meta.class_names == (names or ("class_0", "class_1", "class_2"))
        assert [file.read(s, i).class_index for s in file.splits for i in range(file.length(s))] == [1, 0, None, 2]
        assert "1 listed files are none of them and are left out" in " ".join(made.notes)
        (place / "dataset.json").unlink()
    for text in ('{"labels": null}', '{"labels": {"background": 0}, "channel_names": {}}', "[]"):  # none, and nnU-Net's
        (root / "dataset.json").write_text(text)
        assert run(root)[1].meta.class_names == ()
    (root / "t.csv").write_text("id,class\n" + "".join(f"{name},x\n" for name in PHANTOMS))
    (root / "dataset.json").write_text(json.dumps({"labels": LISTED}))
    assert run(root, table=root / "t.csv")[1].meta.class_names == ("x",)


@pytest.mark.parametrize("labels, names, message", [
    (LISTED[1:], (), r"lists no class for 1 of 4 image\(s\): .*p1_4CH\.png; list them, with null for no class"),
    ([["images/training/p1_4CH.png", 1.5]], (), "p1_4CH.png' is 1.5, wanted a whole number from 0 to 65535, or null"),
    ([["images/training/p1_4CH.png", True]], (), "is True, wanted a whole number"),
    ([["images/training/p1_4CH.png", -1]], (), "is -1, wanted a whole number"),
    ([["images/training/p1_4CH.png", [0, 1]]], (), "is a list, wanted a whole number"),
    ([*LISTED, LISTED[0]], (), "labels has files twice: images/training/p1_4CH.png"),
    ([["a"]], (), r"labels has a list, wanted \[\[file, class number\], ...\]"), ("x", (), "labels is 'x', wanted"),
    ([[1, 1]], (), "names a file 1"),
    (LISTED, ("a", "b"), "class number 2, and --class-names has 2: a, b"),
    (None, ("a", "b"), "--class-names a b: they name the numbers of a dataset.json, and there is none"),
])
def test_class_files_that_cannot_be(tmp_path, labels, names, message):
    root = layout(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    refused(root, message, replace(ONE, class_names=names))


def test_spacing_and_extent_as_attributes_of_each_volume(tmp_path):
    for n, mm in enumerate([1.0, 2.0]):
        image = np.random.default_rng(n).random((6, 6, 4))
        write_nifti(tmp_path / "i" / f"a{n}.nii", image, np.diag([mm, mm, 3 * mm, 1]))
    (tmp_path / "t.csv").write_text("id,age [y]\na0,60\na1,\n")
    options = PrepareOptions(size=(8, 4, 4), split=(1.0,), spacing_attributes=True)
    prepare(tmp_path / "i", None, tmp_path / "v.h5", options, table=tmp_path / "t.csv")
    file = VolumesFile(tmp_path / "v.h5")
    assert file.meta.attribute_names == ("age", "spacing_0", "spacing_1", "spacing_2", "extent_0", "extent_1",
                                         "extent_2")
    assert set(file.meta.attribute_units[1:]) == {"mm"}
    np.testing.assert_allclose(file.table("train", "attributes"), [
        [60, 1, 1, 3, 6, 4, 12], [np.nan, 2, 2, 6, 12, 8, 24]])  # padding does not count, what was cropped neither
    said = check(tmp_path / "v.h5").lines
    assert "  attribute age [y]: 60..60, missing in 1 of 2" in said and "  attribute extent_1 [mm]: 4..8" in said
    assert set(said[-7:]) <= set(describe(tmp_path / "v.h5"))
    prepare(tmp_path / "i", None, tmp_path / "w.h5", replace(options, size=None, fit=(3, 3, 2)))
    shrunk = VolumesFile(tmp_path / "w.h5").table("train", "attributes")
    np.testing.assert_allclose(shrunk[:, [0, 3]], [[2, 6], [4, 12]])
    (tmp_path / "t.csv").write_text("id,extent_0\na0,60\na1,\n")
    with pytest.raises(ValueError, match="--spacing-attributes: the table has columns extent_0 too"):
        prepare(tmp_path / "i", None, tmp_path / "x.h5", options, table=tmp_path / "t.csv")
    with pytest.raises(ValueError, match="the cases differ in voxel size.* or --spacing-attributes"):
        prepare(tmp_path / "i", None, tmp_path / "x.h5", replace(options, spacing_attributes=False))
    refused(layout(tmp_path / "png"), "says no voxel size, which --spacing-attributes writes; give --pixel-spacing",
            replace(ONE, spacing_attributes=True))


def test_check_and_info_say_maps_and_their_classes(tmp_path):
    run(layout(tmp_path), replace(ONE, map_classes=("outside", "sector")))
    lines = check(tmp_path / "v.h5").lines
    assert "maps 0 outside, 1 sector" in lines[0] and "maps [0, 1]" in lines[1]
    assert any("maps 0 outside, 1 sector" in line for line in describe(tmp_path / "v.h5"))


def test_the_command_takes_all_of_it(tmp_path):
    root = layout(tmp_path)
    said = succeed(dataset_tool.main, "prepare", "--images", str(root / "images"), "--maps",
                   str(root / "sector_annotations"), "--map-classes", "outside", "sector", "--pixel-spacing", "1", "2",
                   "--spacing-attributes", "--dest", str(root / "v.h5"), "--range", "0", "255")
    assert f"{root / 'v.h5'}: train 2, val 1, test 1" in said
    assert VolumesFile(root / "v.h5").meta.attribute_names == ("spacing_0", "spacing_1", "extent_0", "extent_1")
