"""Pairs of phases: every seed makes a sample of each class from one noise, by id and attribute; and the report."""

from contextlib import chdir
from dataclasses import replace
from math import nan
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import edm3d
import generate
from edm3d.formats.asked_words import captions, table
from edm3d.formats.facts import AttributeStatistics, Facts
from edm3d.formats.phases import phase_of
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile, write_samples
from edm3d.inference.asking import Asker
from edm3d.inference.compared import sample_case
from edm3d.inference.quality import make_ranges
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Part
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.section import walk
from edm3d.reporting.sections.ejection import Ejection
from edm3d.reporting.sections.structures import Structures
from edm3d.utils.schema import Quality, Sampling
from tests.commands import refused, succeed

SIZE = (4, 3, 3)
NAMES, UNITS = ("LVEDV", "ESED", "AGE"), ("mL", "", "y")
KNOWN = AttributeStatistics([150, 0.5, 60], [30, 0.5, 8], [80, 0, 40], [250, 1, 80], [0, 0, 0], 10)
AFFINE = ((10.0, 0.0, 0.0, 0.0), (0.0, 1.8, 0.0, 0.0), (0.0, 0.0, 1.8, 0.0), (0.0, 0.0, 0.0, 1.0))
FACTS = Facts("v.h5", "", ("mr",), ("background", "lv"), ("ED", "ES"), spatial_shape=SIZE, affine=AFFINE,
              attribute_names=NAMES, attribute_units=UNITS, attribute_statistics=KNOWN)
CLASSES, ATTRIBUTES = {"class_labels": Part(2, 0.1)}, {"attributes": Part(3, 0.1, 0.1)}


def ask(takes: dict, seeds=range(4), facts: Facts = FACTS, **options):
    """What is asked of a network that takes these parts."""
    return Asker(takes, facts, SIZE)(Sampling(outdir="", pairs=True, **options), seeds)


def write_table(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


# ---- what is told ----


def test_every_seed_makes_both_phases_from_one_noise():
    found = ask(CLASSES, [2, 5])
    numbers = found.numbers([2, 5])
    assert numbers == [4, 5, 10, 11] and found.seeds(numbers) == [2, 2, 5, 5] and found.keys(numbers) == [2, 2, 5, 5]
    assert found(numbers).class_labels.argmax(1).tolist() == [0, 1, 0, 1] and found.tells("class_labels")
    noise = found.generators(numbers).randn((1, *SIZE))
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert found.record == {"pairs": {"classes": ["ED", "ES"], "numbers": [0, 1]}}
    turned = ask(CLASSES, classes=["ES", "0"])
    assert turned([0, 1]).class_labels.argmax(1).tolist() == [1, 0]
    assert turned.record["pairs"]["classes"] == ["ES", "ED"]


def test_the_attribute_of_the_phase_goes_with_the_class_and_all_others_stay():
    found = ask(CLASSES | ATTRIBUTES, attributes={"LVEDV": 150})
    told = found([6, 7])
    np.testing.assert_array_equal(told.attributes, [[150, 1, nan], [150, 0, nan]])
    assert told.class_labels.argmax(1).tolist() == [0, 1]
    assert found.record["pairs"] == {"classes": ["ED", "ES"], "numbers": [0, 1], "column": 1, "values": [1.0, 0.0]}
    np.testing.assert_array_equal(ask(CLASSES | ATTRIBUTES)([0, 1]).attributes, [[nan, 1, nan], [nan, 0, nan]])


def test_where_no_attribute_is_known_alone_and_none_asked_for_the_class_says_the_phase():
    takes = CLASSES | {"attributes": Part(3, 0.1)}
    assert ask(takes)([0, 1]).attributes.isnan().all() and "column" not in ask(takes).record["pairs"]
    told = ask(takes, attributes={"LVEDV": 150, "AGE": 50})([0, 1]).attributes
    np.testing.assert_array_equal(told, [[150, 1, 50], [150, 0, 50]])


def test_a_network_that_is_told_the_attribute_alone_makes_pairs():
    found = ask(ATTRIBUTES)
    np.testing.assert_array_equal(found([0, 1]).attributes[:, 1], [1, 0])
    assert "class_labels" not in found([0, 1]) and found.tells("attributes")


def test_a_row_of_a_file_gives_both_phases(tmp_path):
    path = write_table(tmp_path / "p.csv", "id,class,LVEDV,ESED", "a,ED,120,1", "b,ED,160,1")
    found = ask(CLASSES | ATTRIBUTES, conditions=path)
    told = found([0, 1, 2, 3, 4])
    np.testing.assert_array_equal(told.attributes, [[120, 1, nan], [120, 0, nan], [160, 1, nan], [160, 0, nan],
                                                    [120, 1, nan]])
    assert told.class_labels.argmax(1).tolist() == [0, 1, 0, 1, 0]
    assert any("sampling.pairs=true stands in place of the classes and the values of ESED of" in n for n in found.notes)


REFUSED = [
    ({}, {}, "the network is told no class, and no attribute ESED; train one with training.network.model.label_dim=2"),
    ({"attributes": Part(3, 0.1, 0.1)}, {"facts": replace(FACTS, attribute_names=("a", "b", "c"))}, "told no class"),
    (CLASSES, {"classes": ["ED"]}, "wanted two classes or more, each once, there are ED"),
    (CLASSES, {"classes": ["ED", "0"]}, "each once, there are ED, ED"),
    (CLASSES, {"classes": ["ED", "XX"]}, "sampling.classes: 'XX' is not one of ED, ES"),
    (CLASSES, {"samples_per_condition": 2}, "sampling.samples_per_condition makes several samples of a seed, too"),
    (CLASSES | ATTRIBUTES, {"sweep": {"LVEDV": [1, 2, 3]}}, "sampling.sweep makes several samples of a seed, too"),
    (CLASSES | ATTRIBUTES, {"attributes": {"ESED": 1}}, "sampling.attributes.ESED: goes with the class"),
    (ATTRIBUTES, {"facts": replace(FACTS, class_names=("ED", "x"))}, "ESED alone tells the network ED and ES"),
    (CLASSES, {"seeds": [2 ** 62]}, "sampling.pairs: seed 4611686018427387904 times 2 classes is more than"),
    (CLASSES | {"attributes": Part(3, 0.1)}, {"attributes": {"LVEDV": 150}}, "AGE: no value, and the network was"),
]


@pytest.mark.parametrize(("takes", "options", "message"), REFUSED)
def test_pairs_that_cannot_be_are_refused(takes, options, message):
    with pytest.raises(ValueError) as error:
        ask(takes, **options)
    assert message in str(error.value)


def test_pairs_are_not_drawn_again_one_by_one():
    with pytest.raises(ValueError, match="sampling.quality: sampling.pairs draws all classes of a seed from one noise"):
        make_ranges(Quality(attempts=2), None, None, ask(CLASSES))


# ---- what is kept ----


def meta_of(ids: list[str] | None = None, **pairs) -> SampleMeta:
    asked = {"conditions": {"source": "p.csv", "hash": "", "ids": ids}} if ids else {}
    return SampleMeta(FACTS, "n.pt", "", asked | {"pairs": {"classes": ["ED", "ES"], "numbers": [0, 1], **pairs}})


def test_names_are_those_of_ids_with_the_phase():
    assert meta_of(["p1", "p2"]).file_names(range(5)) == ["p1_ED", "p1_ES", "p2_ED", "p2_ES", "p1_seed000002_ED"]
    assert meta_of().file_names([24, 25]) == ["seed000012_ED", "seed000012_ES"]
    odd = meta_of(["a", "a_seed000002"]).file_names(range(8))
    assert len({*odd}) == 8 and odd[0] == "a_seed000000_ED"
    assert meta_of().noise_of(25) == 12 and meta_of().paired_class(25) == "ES"


WRONG = [({"classes": ["ED"], "numbers": [0]}, "is of classes"), ({"numbers": [1, 0]}, "classes are"),
         ({"numbers": [0, 7]}, "classes are"), ({"column": 1}, "values are"),
         ({"column": 9, "values": [1., 0.]}, "column"),
         ({"classes": ["ED", "ED"], "numbers": [0, 0]}, "two or more that differ"), ({"values": [1.]}, "values are")]


@pytest.mark.parametrize(("pairs", "message"), WRONG)
def test_files_that_say_what_no_pairs_are_are_refused(pairs, message):
    with pytest.raises(ValueError, match=f"f: sampling.pairs.*{message}"):
        SampleMeta.from_plain(meta_of(**pairs).plain(), "f")
    SampleMeta.from_plain(meta_of(column=1, values=[1.0, 0.0]).plain(), "f")


@pytest.mark.parametrize(("changed", "message"), [
    ({"classes": np.array([0, 0, 0, 1])}, "classes of sample 1 are 0, wanted 1 by sampling.pairs"),
    ({"attributes": np.float32([[1, 1, 1]] * 4)}, "attributes of sample 1 are 1, wanted 0 by sampling.pairs"),
    ({"attributes": None}, "there are no attributes"), ({"classes": None}, None)])
def test_rows_must_be_of_their_classes(tmp_path, changed, message):
    arrays = {"images": np.zeros((4, 1, *SIZE), np.float32), "classes": np.array([0, 1, 0, 1]),
              "attributes": np.float32([[1, 1, 1], [1, 0, 1]] * 2), **changed}
    write_samples(tmp_path / "s.h5", range(4), {k: v for k, v in arrays.items() if v is not None}, np.eye(4),
                  meta_of(column=1, values=[1.0, 0.0]))
    if message is None:
        found = SamplesFile(tmp_path / "s.h5")
        assert sample_case(found, 3, Layout(("mr",), (), (1.0,) * 3, 0.0, 1.0, "")).class_name == "ES"
        assert captions(found.meta, [3])[0].startswith("class ES\nseed 1")
        assert table(found).splitlines()[0].startswith("name,number,seed,class,LVEDV [mL]")
        return
    with pytest.raises(ValueError) as error:
        SamplesFile(tmp_path / "s.h5")
    assert message in str(error.value)


# ---- drawing ----


class Phased(torch.nn.Module):
    """The perfect denoiser of N(m, 0.01), where m is 1 at ED and 0 at ES, and of label maps 1 where x is above 0.5."""

    sigma_min, sigma_max, self_condition, noise_table = 0.0, float("inf"), False, None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.takes = {"class_labels": Part(2, 0.1), "attributes": Part(3, 0.1, 0.1)}

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, condition=None, augment_labels=None):
        level = torch.as_tensor(sigma, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        mean = condition.class_labels[:, :1, None, None, None] + 0 * x
        return (mean + (x - mean) * 0.01 / (0.01 + level ** 2)).to(x.dtype) * self.weight


DRAW = ["-cn=voxels_edm", "sampling.network=net.pt", "sampling.num_threads=1", "sampling.device=cpu",
        "sampling.trust=true", "sampling.sampler.num_steps=4", "sampling.outdir=out", "sampling.pairs=true"]


@pytest.fixture
def at(tmp_path):
    """Work in a folder with a snapshot of it."""
    threads = torch.get_num_threads()
    with chdir(tmp_path):
        Snapshot("diffusion", {"_target_": "tests.test_pairs.Phased"}, replace(FACTS, label_classes=()), (1, *SIZE),
                 weights={"weight": torch.ones(1)}).save(Path("net.pt"))
        yield tmp_path
    torch.set_num_threads(threads)


def test_pairs_are_drawn_named_by_id_and_known_again(at):
    write_table(Path("p.csv"), "id,LVEDV,AGE", "p1,120,50", "p2,160,")
    said = succeed(generate.main, *DRAW, "sampling.conditions=p.csv", "sampling.seeds=0-1")
    assert "2 asked for, 2 samples of each (numbers 0 to 3), 0 there already" in said
    names = {path.name for path in Path("out/nifti").iterdir()}
    assert names == {f"{id_}_{phase}_image.nii.gz" for id_ in ("p1", "p2") for phase in ("ED", "ES")}
    np.testing.assert_allclose(nibabel.load("out/nifti/p2_ES_image.nii.gz").affine, AFFINE, rtol=1e-6)
    samples = SamplesFile("out/samples.h5")
    assert samples.array("classes").tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(samples.array("attributes"), [[120, 1, 50], [120, 0, 50], [160, 1, nan],
                                                                [160, 0, nan]])
    images = samples.array("images")
    assert images[0::2].mean() > images[1::2].mean() + 0.2
    rows = Path("out/asked.csv").read_text().splitlines()
    assert rows[0] == "name,id,number,seed,class,LVEDV [mL],ESED,AGE [y]"
    assert rows[4].startswith("p2_ES,p2,3,1,ES,160.0")
    more = succeed(generate.main, *DRAW, "sampling.conditions=p.csv", "sampling.seeds=0-2")
    assert "(numbers 0 to 5), 4 there already" in more and Path("out/nifti/p1_seed000002_ES_image.nii.gz").is_file()
    assert "was drawn with another sampling" in refused(at, generate.main, *DRAW[:-1], "sampling.conditions=p.csv",
                                                        "sampling.seeds=0-2")


def test_from_python_the_same_pairs_are_drawn(at):
    model = edm3d.load("net.pt", device="cpu", trust=True)
    pairs = model.sample([3], pairs=True, num_steps=2)
    alone = model.sample([3], classes=["ES"], attributes={"ESED": 0}, num_steps=2)
    assert pairs.seeds == [6, 7] and pairs.meta.paired_class(7) == "ES"
    np.testing.assert_allclose(pairs.images[1], alone.images[0], atol=1e-5)


# ---- the report ----


def test_the_report_says_in_how_many_pairs_the_ventricle_is_smaller_at_systole(tmp_path):
    assert [phase_of(name) for name in ("End-Diastole", "es", "x", None)] == [0, 1, None, None]
    sizes = {"ED": (8, 8, 4), "ES": (2, 9, 0)}  # voxels of three pairs, of which the second grows
    labels = np.zeros((6, *SIZE), np.uint8)
    for i in range(3):
        for k, phase in enumerate(("ED", "ES")):
            labels[2 * i + k].flat[:sizes[phase][i]] = 1
    arrays = {"images": np.zeros((6, 1, *SIZE), np.float32), "labels": labels, "classes": np.arange(6) % 2}
    write_samples(tmp_path / "s.h5", range(6), arrays, np.eye(4), meta_of())
    samples = SamplesFile(tmp_path / "s.h5")
    layout = Layout(("mr",), ("background", "lv"), (1.0,) * 3, 0.0, 1.0, "", class_names=("ED", "ES"))
    drawn = [sample_case(samples, i, layout) for i in range(6)]
    assert [case.group for case in drawn] == ["noise 0", "noise 0", "noise 1", "noise 1", "noise 2", "noise 2"]
    real = [Case(str(i), each.image, labels[i % 2], each.class_name, group=str(i // 2)) for i, each in enumerate(drawn)]
    section = Ejection([Structures()])
    context = Comparison(layout=layout, provenance={}, real=None, generated=None)
    found = walk([section], context, {"real": real, "generated": drawn}).found[0]
    report = section.compute(found, context)
    row = report["ejection"]["ventricles"]["lv"]
    assert report["ejection"]["pairs"] == {"real": 3, "generated": 3} and row["smaller"] == {"real": 3, "generated": 2}
    assert row["generated_mean"] == pytest.approx((75 - 12.5 + 100) / 3)
    assert section.lines(report) == ["Pairs: lv is smaller at ES than at ED in 2 of 3 generated ones, in 3 of 3 real "
                                     "ones"]
    page = section.page(report, {f"ejection_{name}": b"" for name in ("lv",)})
    assert "2 of 3" in page and "ES &lt; ED, generated" in page
