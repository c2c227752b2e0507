"""A PNG for each 2D image and label map that was drawn, pixel by pixel, beside the samples it is made from."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.png import write_png
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.inference.sample_files import check_png, check_records, write_pngs
from edm3d.inference.snapshot import Snapshot

CT = Intensity(lo=-100.0, hi=155.0, clip=False, unit="HU")  # a step of the grey is 1 HU
IMAGE = np.array([[-100, 0, 155], [300, -300, 27.4]], np.float32)
GREY = [[0, 100, 255], [255, 0, 127]]


def samples_of(folder: Path, channels: tuple[str, ...], **arrays: np.ndarray) -> SamplesFile:
    """A samples file of seeds 3, 5, ..., one for each row."""
    seeds = [3 + 2 * i for i in range(len(arrays["images"]))]
    write_samples(folder / "samples.h5", seeds, arrays, np.eye(4),
                  SampleMeta(Facts("x.h5", "", channels, intensity=CT), "net.pt", "", {}))
    return SamplesFile(folder / "samples.h5")


def pixels_of(path: Path, mode: str) -> list:
    """Pixels as another program reads them, rows first."""
    with Image.open(path) as image:
        assert image.mode == mode
        return np.asarray(image).tolist()


def test_an_image_spans_lo_to_hi_and_a_label_map_keeps_its_numbers(tmp_path):
    label = np.array([[0, 1, 2], [255, 0, 3]], np.uint8)
    samples = samples_of(tmp_path, ("ct",), images=IMAGE[None, None], labels=label[None])
    assert write_pngs(tmp_path, samples) == []
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [
        "seed000003.png", *(f"seed000003_{kind}.png" for kind in ("contour", "label", "overlay", "visible"))]
    assert pixels_of(tmp_path / "png/seed000003.png", "L") == GREY  # two rows of three, as the array's
    assert pixels_of(tmp_path / "png/seed000003_label.png", "L") == label.tolist()


@pytest.mark.parametrize(("channels", "names"), [
    (("ct", "pet"), ["seed000003_ct.png", "seed000003_pet.png"]), ((), ["seed000003_0.png", "seed000003_1.png"])])
def test_channels_are_files_of_their_own(tmp_path, channels, names):
    write_pngs(tmp_path, samples_of(tmp_path, channels, images=np.stack([IMAGE, -IMAGE])[None]))
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == names
    assert [pixels_of(tmp_path / "png" / name, "L") for name in names] == [GREY, [[200, 100, 0], [0, 255, 73]]]


def test_red_green_and_blue_are_one_file(tmp_path):
    image = np.stack([np.full((1, 2), value, np.float32) for value in (155, -100, -99)])
    write_pngs(tmp_path, samples_of(tmp_path, ("red", "green", "blue"), images=image[None]))
    path, = tmp_path.glob("png/*")
    assert path.name == "seed000003.png" and pixels_of(path, "RGB") == [[[255, 0, 1], [255, 0, 1]]]


def paths_of(folder: Path) -> dict[str, bytes]:
    """Content of the PNGs by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "png").iterdir())}


def test_what_is_missing_changed_or_of_another_row_is_written_whatever_its_date(tmp_path):
    samples = samples_of(tmp_path, ("ct",), images=np.stack([IMAGE[None]] * 4))
    write_pngs(tmp_path, samples)
    whole = paths_of(tmp_path)
    paths = [tmp_path / "png" / name for name in whole]
    assert write_pngs(tmp_path, samples) == [] and list(whole) == [f"seed{s:06d}.png" for s in (3, 5, 7, 9)]
    for path in paths:  # as a copy of the folder has them
        os.utime(path, (1, 1))
    write_png(paths[1], np.zeros((2, 3), np.uint8))
    paths[2].unlink()
    note, = write_pngs(tmp_path, samples)
    assert "2 files are not as they were written" in note and paths_of(tmp_path) == whole
    assert [path.stat().st_mtime == 1 for path in paths] == [True, False, False, True]
    moved = samples_of(tmp_path, ("ct",), images=np.stack([IMAGE[None]] * 3 + [-IMAGE[None]]))
    assert write_pngs(tmp_path, moved) == [] and pixels_of(paths[3], "L") == [[200, 100, 0], [0, 255, 73]]
    assert paths[0].stat().st_mtime == 1


def test_nothing_of_another_network_stays_but_what_somebody_changed(tmp_path):
    samples = samples_of(tmp_path, ("ct",), images=np.stack([IMAGE[None]] * 4))
    write_pngs(tmp_path, samples)
    mine = tmp_path / "png/seed000009.png"
    mine.write_bytes(b"mine")
    (tmp_path / "png/notes.txt").write_text("mine")
    write_samples(tmp_path / "samples.h5", [3], {"images": -IMAGE[None, None]}, np.eye(4),
                  samples.meta._replace(snapshot_hash="another"))
    assert "seed000009.png: changed since" in " ".join(write_pngs(tmp_path, SamplesFile(tmp_path / "samples.h5")))
    assert list(paths_of(tmp_path)) == ["notes.txt", "seed000003.png", "seed000009.png"]
    assert pixels_of(tmp_path / "png/seed000003.png", "L") == [[200, 100, 0], [0, 255, 73]]


def test_nothing_goes_unasked_beside_samples_of_another_format(tmp_path):
    samples = samples_of(tmp_path, ("ct",), images=IMAGE[None, None])
    write_pngs(tmp_path, samples)
    check_records(tmp_path, samples.meta, overwrite=False)
    other = samples.meta._replace(snapshot_hash="other")  # as where samples.npz is to lie beside samples.h5
    with pytest.raises(ValueError, match="png.json is of samples that were drawn with another snapshot_hash"):
        check_records(tmp_path, other, overwrite=False)
    check_records(tmp_path, other, overwrite=True)


def test_names_of_channels_stay_in_the_folder(tmp_path):
    write_pngs(tmp_path, samples_of(tmp_path, ("../../out", "a/b"), images=np.stack([IMAGE, IMAGE])[None]))
    assert len(paths_of(tmp_path)) == 2 and sorted(p.name for p in tmp_path.iterdir()) == \
        ["png", "png.json", "samples.h5"]


@pytest.mark.parametrize(("shape", "wanted"), [((1, 8), "in 1D; wanted h5 or npz"),
                                               ((1, 8, 8, 8), "in 3D; .*sampling.nifti=true.* export --format png")])
def test_networks_of_other_dimensions_are_refused(shape, wanted):
    with pytest.raises(ValueError, match=f"sampling.format=png: .*{wanted}"):
        check_png(Snapshot("diffusion", {}, Facts("x.h5", ""), shape), decode=True)
