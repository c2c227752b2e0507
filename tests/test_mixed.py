"""Volumes and samples trained on together: shares, counts and order by hand, what is held against each other, runs."""

import signal
from contextlib import chdir
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import dataset_tool
import train
from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import write_samples
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.batch import collate
from edm3d.training.data_sampler import InfiniteSampler
from edm3d.training.datasets.mixed import MixedDataset, stream
from edm3d.training.datasets.samples import SamplesDataset
from edm3d.training.datasets.volumes import VolumesDataset
from edm3d.training.loader import Rounds
from edm3d.training.plan import find_source
from edm3d.training.private.budget import units_of
from edm3d.training.targets import ClassTarget, VoxelTarget
from edm3d.utils.compose import compose
from tests.commands import call, refused, succeed
from tests.test_ranks import last_state
from tests.test_resume import kill_in_step
from tests.toy import learned

UNIT, BYTES = Intensity(0.0, 1.0, True, "a.u."), Intensity(0.0, 255.0, True, "grey")
LABELS, ATTRIBUTES = ("background", "wall", "cavity"), ("volume", "age")
SPLITS = {"train": 6, "val": 2, "test": 3}


def write_volumes(path: Path, *, labels: tuple[str, ...] = LABELS, classes: tuple[str, ...] = ("ED", "ES"),
                  attributes: tuple[str, ...] = ATTRIBUTES, channels: tuple[str, ...] = ("echo",),
                  maps: tuple[str, ...] = (), shape: tuple[int, ...] = (8, 8), splits: dict[str, int] = SPLITS,
                  spacing: float | tuple[float, float] = 1.0) -> Path:
    """Images whose every voxel is their number by 100, by splits; label maps, and maps that are one more."""
    meta = VolumesMeta(len(shape), channels, ("target",) * len(channels), labels, attributes, ("mL", "a")[
        :len(attributes)], classes, UNIT, maps)
    with VolumesWriter(path, meta, {"kind": "test", "of": path.stem}) as writer:
        for i, split in enumerate(split for split, count in splits.items() for _ in range(count)):
            image = np.full((len(channels), *shape), i / 100, np.float32)
            label = np.full(shape, i % 3, np.uint8)
            writer.add(split, Item(image, label if labels else None, np.float32([i, 40 + i])[:len(attributes)]
                                   if attributes else None, i % 2 if classes else None, f"v{i}", f"v{i}",
                                   np.diag([*np.broadcast_to(spacing, 2), 1.0, 1.0]), full_box(shape),
                                   (label + 1) % 3 if maps else None))
    return path


def write_drawn(path: Path, count: int = 20, *, held: tuple[str, ...] = ("images", "labels", "classes", "attributes"),
                labels: tuple[str, ...] = LABELS, maps: tuple[str, ...] | None = None, intensity: Intensity = UNIT,
                shape: tuple[int, ...] = (8, 8), channels: tuple[str, ...] = ("echo",), seed: int = 0) -> Path:
    """Samples whose every voxel is (50 + their number) by 100 of the range of the contract."""
    numbers = np.arange(count)
    on_grid = np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (count, *shape))
    images = np.repeat((intensity.lo + (50 + on_grid) / 100 * (intensity.hi - intensity.lo))[:, None], len(channels), 1)
    arrays = {"images": images, "latents": images, "labels": on_grid % 3, "maps": (on_grid + 1) % 3,
              "classes": numbers % 2, "attributes": np.stack([100.0 + numbers, np.full(count, np.nan)], 1)}
    facts = Facts("elsewhere.h5", "", channels, labels, ("ED", "ES"), intensity, shape, map_classes=maps,
                  attribute_names=ATTRIBUTES, attribute_units=("mL", "a"))
    meta = SampleMeta(facts, f"net-{seed}.pt", "ab12", {"num_steps": 18})
    write_samples(path, numbers + seed, {name: arrays[name] for name in held}, np.eye(4), meta)
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with volumes v.h5 and samples s.h5, s.npz that fit each other, and files that do not."""
    folder = tmp_path_factory.mktemp("mixed")
    write_volumes(folder / "v.h5")
    write_drawn(folder / "s.h5")
    return folder


def number(sample) -> int:
    """What number an item is, by its image in network units."""
    return round((float(sample.image.mean()) + 1) * 50)


def numbers(data) -> list[int]:
    return [number(data[i]) for i in range(len(data))]


# ---- samples alone ----


@pytest.mark.parametrize("kind", ("h5", "npz"))
def test_samples_are_items_with_all_that_was_drawn_and_asked_for(tmp_path, kind):
    path = write_drawn(tmp_path / f"s.{kind}", held=("images", "labels", "maps", "classes", "attributes"),
                       maps=("out", "fan", "wall"), intensity=BYTES)
    data = SamplesDataset(str(path))
    assert len(data) == 18 and data.shape == (1, 8, 8)
    item = data[5]
    np.testing.assert_allclose(item.image, 0.1, atol=1e-6)  # 55 % of the range
    assert item.label.tolist() == np.full((8, 8), 2).tolist() and item.label.dtype == np.uint8
    assert (item.condition.semantic == 0).all() and item.condition.semantic.dtype == np.int16
    assert item.condition.class_labels.tolist() == [0, 1] and item.condition.attributes[0] == 105
    assert np.isnan(item.condition.attributes[1]) and data.facts.source == str(path)
    assert data.facts.label_classes == LABELS and data.facts.map_classes == ("out", "fan", "wall")
    assert data.facts.attribute_statistics.lo[0] == 100 and data.facts.attribute_statistics.hi[0] == 117
    assert collate([data[0], data[1]]).labels.shape == (2, 8, 8)


def test_splits_of_samples_go_by_position(tmp_path):
    path = str(write_drawn(tmp_path / "s.h5", 20))
    assert numbers(SamplesDataset(path, "train")) == [*range(50, 68)]
    assert numbers(SamplesDataset(path, "val")) == [68, 69]
    assert numbers(SamplesDataset(path, "all")) == [*range(50, 70)]
    assert SamplesDataset(path, "val")[0].condition.attributes[0] == 118  # tables follow
    one = str(write_drawn(tmp_path / "one.h5", 1))
    assert numbers(SamplesDataset(one, "val")) == [50]
    for file, split in ((one, "train"), (path, "test")):
        with pytest.raises(ValueError, match=f"{file}: split '{split}' has no items"):
            SamplesDataset(file, split)


def test_a_map_that_was_asked_for_is_the_label_map_where_none_was_drawn(tmp_path):
    """Of data without maps of their own; else it is a map, and the label map is not known."""
    held = ("images", "maps")
    data = SamplesDataset(str(write_drawn(tmp_path / "a.h5", held=held)))
    assert data.facts.semantic_classes == data.facts.label_classes == LABELS and data.facts.map_classes is None
    assert data.facts.class_names == () and data.facts.attribute_names == ()
    assert (data[0].label == 1).all() and (data[0].condition.semantic == 1).all()
    data = SamplesDataset(str(write_drawn(tmp_path / "b.h5", held=held, maps=("out", "fan", "wall"))))
    assert data.facts.label_classes == () and data.facts.map_classes == ("out", "fan", "wall")
    assert data[0].label is None and (data[0].condition.semantic == 1).all()


def test_samples_are_padded_as_volumes_are(tmp_path):
    data = SamplesDataset(str(write_drawn(tmp_path / "s.h5", intensity=BYTES)), size=[10, 4])
    item = data[1]
    assert data.shape == (1, 10, 4) == item.image.shape and data.facts.spatial_shape == (10, 4)
    assert item.image[0, :, 0].tolist() == pytest.approx([-1, *[0.02] * 8, -1], abs=1e-6)
    assert item.label[:, 0].tolist() == [0, *[1] * 8, 0]
    assert np.asarray(data.facts.affine)[:2, 3].tolist() == [-1, 2]


def test_latents_that_nothing_decoded_are_refused(tmp_path):
    path = write_drawn(tmp_path / "s.h5", held=("latents",))
    for make in SamplesDataset, MixedDataset:
        with pytest.raises(ValueError, match=r"s\.h5: holds latents that nothing decoded.* decode "):
            make(str(path))


# ---- shares and counts ----


def test_shares_by_hand():
    """6 and 18 items: alike in the stream by shares 1 to 1, all of both by none, 36 to 18 by 2 to 1."""
    for shares, counts in (((None, None), (6, 18)), ((1, 1), (18, 18)), ((2, 1), (36, 18)), ((1, 3), (6, 18)),
                           ((1, 5), (6, 30)), ((0.3, 0.7), (8, 18))):
        entries = stream((6, 18), shares, repeats=True)
        for file, count in enumerate(counts):
            items = np.bincount(entries[entries[:, 0] == file, 1], minlength=(6, 18)[file])
            assert items.sum() == count and items.min() >= 1 and items.max() - items.min() <= 1
    assert stream((2, 4), (1, 1), repeats=True).tolist() == [
        [0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 2], [0, 1], [1, 3]]
    assert stream((2, 4), (None, None), repeats=True)[:, 0].tolist() == [1, 0, 1, 1, 0, 1]
    assert stream((2, 4), (1, 1), repeats=False).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [1, 2], [1, 3]]


def test_a_record_that_is_repeated_is_one_unit_of_privacy(at):
    """By shares 2 to 1 the 6 volumes come six times each, the 18 samples once."""
    data = MixedDataset(["v.h5", "s.h5"], shares=[2, 1])
    units = units_of(data, "record")
    assert sorted(map(len, units)) == [1] * 18 + [6] * 6 and sorted(chain(*units)) == list(range(len(data)))
    for unit in units:
        images = [data[i].image for i in unit]
        assert all(np.array_equal(image, images[0]) for image in images)
    with pytest.raises(ValueError, match="does not say which items are of one patient"):
        units_of(data, "group")
    alone = MixedDataset(["v.h5"], shares=[1.0])
    assert [[alone.groups[i] for i in unit] for unit in units_of(alone, "group")] == [[name] for name in alone.groups]
    assert sorted(alone.groups) == [f"v{i}" for i in range(6)]


def test_the_stream_of_training_meets_the_shares(at):
    data = MixedDataset(["v.h5", "s.h5"], [3, 1])
    assert len(data) == 72
    order = iter(InfiniteSampler(data, seed=1))
    drawn = [number(data[next(order)]) for _ in range(len(data))]
    assert sum(n < 50 for n in drawn) == pytest.approx(54, abs=8) and set(numbers(data)) == {
        *range(6), *range(50, 68)}


def test_a_file_of_share_0_is_left_out_and_not_opened(at):
    assert numbers(MixedDataset(["v.h5", "none.h5"], [1, 0])) == pytest.approx(numbers(MixedDataset(["v.h5"], [1])))


def test_one_file_is_that_file(at):
    for path, alone in (("v.h5", VolumesDataset), ("s.h5", SamplesDataset)):
        mixed, data = MixedDataset(path), alone(path)
        assert mixed.facts == data.facts and mixed.notes == [] and numbers(mixed) == numbers(data)
        assert mixed[3].condition.keys() == data[3].condition.keys() and (mixed[3].label == data[3].label).all()


def test_fewer_items_are_a_part_of_more_also_beside_other_files(at):
    few, more, beside = ({n for n in numbers(MixedDataset(path, num=num)) if n >= 50} for path, num in (
        ("s.h5", 4), ("s.h5", 9), (["v.h5", "s.h5"], [None, 4])))
    assert len(few) == 4 and few == beside and few < more and len(more) == 9 and few != {50, 51, 52, 53}
    assert {*numbers(MixedDataset("s.h5", num=4, seed=1))} != few
    assert [len(MixedDataset(["v.h5", "s.h5"], num=3, split=split)) for split in ("train", "val", "test")] == [
        6, 4, 3]  # what is measured is there whole


def test_splits_that_a_file_does_not_have_leave_it_out(at):
    assert numbers(MixedDataset(["s.h5", "v.h5"], split="test")) == [8, 9, 10]
    assert numbers(MixedDataset(["s.h5", "v.h5"], [1, 3], split="val")) == [6, 68, 7, 69]  # each once
    with pytest.raises(ValueError, match=r"s\.h5: split 'fold1' has no items.*v\.h5: split 'fold1' has no items"):
        MixedDataset(["s.h5", "v.h5"], split="fold1")
    assert len(MixedDataset("s.h5", split="all")) == 20
    with pytest.raises(ValueError, match=r"split=all: is of samples alone, and v\.h5 holds volumes"):
        MixedDataset(["s.h5", "v.h5"], split="all")
    write_drawn(Path("one.h5"), 1)
    data = MixedDataset(["v.h5", "one.h5"])
    assert numbers(data) == [*range(6)] and any("one.h5: split 'train' has no items" in note for note in data.notes)


def test_the_hash_hangs_on_files_shares_counts_and_seed_and_not_on_the_split(at):
    write_drawn(Path("t.h5"), 21)
    ways = [(["v.h5", "s.h5"],), (["s.h5", "v.h5"],), (["v.h5", "t.h5"],), (["v.h5", "s.h5"], [1, 1]),
            (["v.h5", "s.h5"], [1, 2]), (["v.h5", "s.h5"], None, 4), (["v.h5", "s.h5"], None, [4, None]), ("v.h5",),
            ("v.h5", None, 4)]
    hashes = [MixedDataset(*way).facts.content_hash for way in ways]
    assert len({*hashes, MixedDataset(["v.h5", "s.h5"], num=4, seed=1).facts.content_hash}) == len(ways) + 1
    assert hashes == [MixedDataset(*way, split="val").facts.content_hash for way in ways]
    assert hashes[0] == MixedDataset(["v.h5", "s.h5"], None, [None, None], cache=False).facts.content_hash


def test_the_hash_hangs_on_the_seed_where_an_order_is_drawn_alone(at):
    def content(paths, **more) -> str:
        return MixedDataset(paths, **more).facts.content_hash

    both = ["v.h5", "s.h5"]
    assert content("v.h5") == VolumesDataset("v.h5").facts.content_hash == content("v.h5", seed=1)
    assert content(both) == content(both, seed=1)
    assert content("v.h5", shares=[1.0]) not in (content("v.h5"), content("v.h5", shares=[1.0], seed=1))


def test_classes_are_known_without_images_and_what_is_not_told_is_not_read(at, monkeypatch):
    data = MixedDataset(["v.h5", "s.h5"])
    wanted = [data[i].condition.class_labels.argmax() for i in range(len(data))]
    data.conditions.told = {"class_labels"}
    assert all("semantic" not in data[i].condition and "attributes" not in data[i].condition for i in (0, 7))
    for source in data.sources:
        monkeypatch.setattr(type(source), "__getitem__", lambda self, i: pytest.fail("an image is read"))
    assert [data.conditions(i).class_labels.argmax() for i in range(len(data))] == wanted


def test_statistics_of_attributes_are_of_the_items_that_are_taken(at):
    wanted = AttributeStatistics.of(np.array([[i, 40 + i] for i in range(6)] + [[100 + i, np.nan] for i in range(18)]))
    facts = MixedDataset(["v.h5", "s.h5"], [5, 1]).facts
    assert facts.attribute_statistics == wanted and facts.attribute_units == ("mL", "a")
    assert Facts.from_plain(facts.plain(), "here") == facts


@pytest.mark.parametrize("shares, num, words", (
    ([1], None, r"shares=\[1\]: 1 for 2 file\(s\), v\.h5, s\.h5"), ([1, -1], None, r"shares=\[1, -1\]: wanted numbers"),
    ([0, 0], None, "not all of them 0"), ([1, float("nan")], None, "wanted numbers"), ([1, 10 ** 400], None, "wanted"),
    ([1e-9, 1e9], None, "wanted 10,000,000 or fewer"), (None, [4], r"num=\[4\]: 1 for 2 file"), (None, 0, "num=0: "),
    (None, [7, None], r"num=7: v\.h5 has 6 items in split 'train'"), (None, 19, r"num=19: v\.h5 has 6 items"),
))
def test_shares_and_counts_that_cannot_be_are_named(at, shares, num, words):
    with pytest.raises(ValueError, match=words):
        MixedDataset(["v.h5", "s.h5"], shares, num)


# ---- files ----


def test_files_that_are_none_or_there_twice_are_named(at):
    Path("notes.txt").touch()
    Path("folder").mkdir()
    Path("copy.h5").write_bytes(Path("v.h5").read_bytes())
    Path("link.h5").symlink_to("v.h5")
    for path, words in (([], "path=\\[\\]: wanted"), (["v.h5", "v.h5"], "v.h5 is there twice;"),
                        (["v.h5", "./v.h5"], "./v.h5 is there twice, also as v.h5"), (["v.h5", "link.h5"], "twice"),
                        (["v.h5", "copy.h5"], "v.h5 and copy.h5 hold the same"), (["v.h5", "no.h5"], "no.h5: no such"),
                        ("notes.txt", "path=notes.txt: wanted a volumes file"), ("folder", "folder: a folder")):
        with pytest.raises(ValueError, match=words):
            MixedDataset(path)


def test_damage_is_named(at):
    for name, damaged in (("v.h5", "v_damaged.h5"), ("s.h5", "s_damaged.h5")):
        content = bytearray(Path(name).read_bytes())
        Path("cut.h5").write_bytes(content[:len(content) // 2])
        with pytest.raises(ValueError, match="cut.h5"):
            MixedDataset(["v.h5", "cut.h5"])
        place = content.index(np.full(64, 0.03 if name == "v.h5" else 0.53, np.float32).tobytes())
        content[place + 5] ^= 255
        Path(damaged).write_bytes(content)
        data = MixedDataset([damaged, "s.h5" if name == "v.h5" else "v.h5"], cache=False)
        with pytest.raises(ValueError, match=rf"{damaged}.*damaged"):
            numbers(data)


def test_other_processes_read_the_same(at):
    data = MixedDataset(["v.h5", "s.h5"], [1, 1], cache=False)
    rounds = [Rounds(data, InfiniteSampler(data), 9, workers, torch.device("cpu")) for workers in (0, 2)]
    try:
        for _ in range(3):
            (mine, batch), (theirs, other) = map(next, rounds)
            assert mine == theirs and torch.equal(batch.images, other.images)
            assert torch.equal(batch.condition.semantic, other.condition.semantic)
    finally:
        for each in rounds:
            each.close()
    assert all(source.cache is None for source in data.sources)


# ---- held against each other ----


@pytest.mark.parametrize("other, words", (
    ({"labels": ("background", "cavity", "wall")},
     r"differ in their label maps \(v\.h5: background, wall, cavity; o\.h5: background, cavity, wall\)"),
    ({"classes": ("A2C", "A4C")}, r"differ in their classes \(v\.h5: ED, ES; o\.h5: A2C, A4C\)"),
    ({"attributes": ("volume",)}, r"their attributes \(v\.h5: volume \[mL\], age \[a\]; o\.h5: volume \[mL\]"),
    ({"channels": ("mri",)}, r"differ in their channels \(v\.h5: echo; o\.h5: mri\)"),
    ({"channels": ("echo", "two")}, r"differ in their channels"),
    ({"shape": (8, 16)}, r"differ in their sizes \(v\.h5: 8x8; o\.h5: 8x16\); training\.dataset\.size="),
    ({"shape": (8, 8, 8)}, r"differ in their numbers of axes \(v\.h5: 2; o\.h5: 3\)"),
))
def test_what_differs_between_files_is_named_with_the_files(at, other, words):
    write_volumes(Path("o.h5"), **other)
    with pytest.raises(ValueError, match=words):
        MixedDataset(["v.h5", "o.h5"])


def test_maps_of_other_classes_are_named_and_sizes_can_be_made_one(at):
    write_volumes(Path("o.h5"), maps=("out", "fan", "wall"))
    write_drawn(Path("d.h5"), held=("images", "maps"), maps=("out", "fan"))
    with pytest.raises(ValueError, match=r"their maps \(o\.h5: out, fan, wall; d\.h5: out, fan\)"):
        MixedDataset(["o.h5", "d.h5"])
    write_volumes(Path("o.h5"), shape=(8, 16))
    data = MixedDataset(["v.h5", "o.h5"], size=[8, 12])
    assert data.shape == (1, 8, 12) and {data[i].label.shape for i in range(len(data))} == {(8, 12)}


def test_samples_of_another_contract_are_scaled_by_it_and_it_is_said_once(at):
    write_drawn(Path("d.h5"), intensity=BYTES)
    data = MixedDataset(["v.h5", "d.h5"])
    assert sorted(numbers(data)) == [*range(6), *range(50, 68)]
    assert [note for note in data.notes if "intensities" in note] == [
        "Note: intensities differ (v.h5: 0 to 1 a.u.; d.h5: 0 to 255 grey): the images of each file are scaled to "
        "[-1, 1] by its own"]
    write_volumes(Path("o.h5"), spacing=0.5)
    assert [note for note in MixedDataset(["v.h5", "o.h5"]).notes if "voxel sizes" in note] == [
        "Note: voxel sizes differ (v.h5: 1x1 mm; o.h5: 0.5x0.5 mm): images are taken voxel by voxel, as they are"]
    write_volumes(Path("l.h5"), spacing=(-0.5, 0.5))
    assert [note for note in MixedDataset(["v.h5", "o.h5", "l.h5"]).notes if "axes" in note] == [
        "Note: axes differ (o.h5: RA; l.h5: LA): images are taken as they are stored, and not turned; prepare the "
        "files alike"]  # of v.h5 they are not known
    assert not [note for note in MixedDataset(["v.h5", "o.h5"]).notes if "axes" in note]


def test_what_a_file_lacks_is_left_aside_and_named_to_who_would_learn_it(at):
    write_drawn(Path("d.h5"), held=("images",))
    data = MixedDataset(["v.h5", "d.h5"])
    assert data[0].label is data[1].label is None and not data[0].condition and not data[1].condition
    assert "Note: d.h5 has no label maps, so that those of v.h5 are left aside" in data.notes
    collate([data[i] for i in range(len(data))])
    for target, words in ((VoxelTarget(), "of=labels: d.h5 has no label maps to learn, and other files"),
                          (VoxelTarget("maps"), "of=maps: d.h5 has no maps to learn"),
                          (ClassTarget(), "d.h5 has no classes to learn"),
                          (ClassTarget("volume", 3.0), "d.h5 has no attributes to learn")):
        with pytest.raises(ValueError, match=words):
            target.prediction(data.facts)


def test_label_maps_of_some_and_maps_of_the_same_classes_of_others_are_maps(at):
    write_drawn(Path("d.h5"), held=("images", "maps"), labels=(), maps=LABELS)
    data = MixedDataset(["v.h5", "d.h5"])
    assert data.facts.map_classes == LABELS and data.facts.label_classes == ()
    assert VoxelTarget("maps").prediction(data.facts).names == LABELS
    with pytest.raises(ValueError, match=r"d\.h5 has no label maps.*of=maps"):
        VoxelTarget().prediction(data.facts)
    for i in range(len(data)):
        wanted = (number(data[i]) - 50 + 1 if number(data[i]) >= 50 else number(data[i])) % 3
        assert (data[i].condition.semantic == wanted).all()


def test_maps_that_only_some_have_leave_the_label_maps_of_all(at):
    """Also as what a network would be told."""
    write_volumes(Path("o.h5"), maps=("out", "fan", "wall"))
    data = MixedDataset(["o.h5", "s.h5"])
    assert data.facts.semantic_classes == LABELS and data.facts.lacking == {"map_classes": ("s.h5",)}
    for i in range(len(data)):
        assert (data[i].condition.semantic == data[i].label).all() and data[i].condition.semantic.dtype == np.int16
    assert VoxelTarget().prediction(data.facts).names == LABELS
    with pytest.raises(ValueError, match=r"of=maps: s\.h5 has no maps to learn.*of=labels"):
        VoxelTarget("maps").prediction(data.facts)


# ---- runs ----


NET = [f"training.network.{key}" for key in ("kernel_size=[3,3,3]", "strides=[1,2,2]", "filters=[4,8,8]",
                                             "upsample_kernel_size=[2,2]", "res_block=false")]
TRAIN = ["-cn=echo3d_segmentation", "dataset=mixed", "augment=none", *NET, "training.dataset.path=[v.h5,s.h5]",
         "training.dataset.shares=[1,1]", *(f"training.options.{key}" for key in (
             "batch_size=6", "total_kimg=0.036", "kimg_per_tick=0.018", "state_ticks=1", "lr_schedule=constant",
             "lr_rampup_kimg=0", "num_threads=1", "device=cpu", "precision=fp32"))]


def test_a_segmenter_of_volumes_and_samples_goes_on_bit_for_bit(at, monkeypatch):
    said = succeed(train.main, *TRAIN, "training.options.run_root=whole")
    assert "Data        v.h5 + s.h5: 36 items of [1, 8, 8]" in said
    assert "Data from   v.h5: 6 of 6 items, 50 % of the stream, each 3 times a round" in said
    with monkeypatch.context() as patch:
        kill_in_step(patch, 3, signal.SIGTERM)
        assert call(train.main, *TRAIN, "training.options.run_root=broken").exit_code == 75
    succeed(train.main, *TRAIN, "training.options.run_root=broken", "training.options.resume=latest")
    whole, broken = (last_state(Path(root, "00000-echo3d_segmentation")) for root in ("whole", "broken"))
    assert broken.progress["nimg"] == 36 and learned(broken) == learned(whole)
    resume = f"training.options.resume={Path('whole', '00000-echo3d_segmentation').absolute()}"
    Path("s.h5").rename("kept.h5")
    try:
        write_drawn(Path("s.h5"), 20, seed=1)
        line = refused(Path("whole"), train.main, *TRAIN, resume)
    finally:
        Path("kept.h5").rename("s.h5")
    assert "the state is of another data set (content_hash: " in line


def test_commands_that_name_the_data_take_a_list(at, tmp_path):
    succeed(train.main, *TRAIN, "training.options.dry_run=true")
    planned = find_source(compose("echo3d_segmentation", TRAIN[1:])["training"], None, 0)
    assert planned.shape == (1, 8, 8) and planned.facts.source == "v.h5 + s.h5"
    line = refused(tmp_path, dataset_tool.main, "plan", *TRAIN, "training.dataset.path=[v.h5,gone.h5]")
    assert "training.dataset.path=gone.h5: not there" in line
    with chdir(tmp_path):
        write_volumes(Path("v.h5"))
        write_drawn(Path("s.h5"), held=("images",))
        line = refused(tmp_path, train.main, *TRAIN)
        assert "training.batch_transform.of=labels: s.h5 has no label maps to learn" in line
        write_drawn(Path("s.h5"), labels=("background", "cavity"))
        line = refused(tmp_path, train.main, *TRAIN)
        assert "training.dataset.path: the files differ in their label maps (v.h5: " in line
