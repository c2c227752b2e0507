"""Guidance by part: which calls are made and how they count, and Gaussians of a class and an image in closed form."""

from functools import partial
from math import inf, sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from edm3d.formats.facts import Facts
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import sample_meta
from edm3d.inference.guidance import add_guidance, check_moves, described
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition, Part
from edm3d.samplers import Calls, Guided, Strength, edm_sampler, multistep_sampler
from edm3d.utils.schema import Guidance, Sampling
from tests.denoisers import F64
from tests.test_guidance import network

TAKES = {"images": Part(1, 0.1), "class_labels": Part(2, 0.1), "attributes": Part(1, 0.1)}  # in no order
LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
IMAGES = torch.linspace(-1, 1, 12).reshape(3, 1, 4)
TOLD = Condition(class_labels=LABELS, attributes=torch.tensor([[1.0], [2.0], [3.0]]), images=IMAGES)
LATENTS = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(1)).to(F64)
X = torch.ones(3, 1, 4, dtype=F64)


class Stub:
    """A network from a formula of x, sigma [N,1,1] and the condition; keeps what it was told."""

    noise_table, sigma_min, sigma_max = None, 0, inf

    def __init__(self, formula, takes=TAKES):
        self.formula, self.takes, self.calls = formula, takes, []

    def __call__(self, x, sigma, condition=None, augment_labels=None):
        self.calls.append((condition, augment_labels, len(x)))
        return self.formula(x, torch.as_tensor(sigma, dtype=F64).reshape(-1, 1, 1), condition)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def by_parts(x, sigma, condition):
    """10 x + 1 for a class + 10 times the attribute + 1000 for an image, and the class counts twice beside an image."""
    there = condition.class_labels.sum(1).reshape(-1, 1, 1)
    pictured = (condition.images != 0).flatten(1).any(1).reshape(-1, 1, 1)
    return (10 * x + there + 10 * condition.attributes.nan_to_num().reshape(-1, 1, 1) + 1000 * pictured
            + there * pictured)


def told(condition) -> str:
    """The parts that a condition says something of, by their first letters."""
    return "".join(name[0] for name, value in condition.items()
                   if bool((value.nan_to_num() != 0).any()))


# ---- the formula ----


@pytest.mark.parametrize(("strengths", "calls"), [
    ((1, 1, 1), ["cai"]), ((0, 0, 0), [""]), ((2, 2, 2), ["", "cai"]), ((3, 1, 1), ["", "c", "cai"]),
    ((2, 2, 1), ["", "ca", "cai"]), ((1, 3, 3), ["c", "cai"]), ((1, 1, 0), ["ca"]), ((1, 0, 0), ["c"]),
    ((0, 0, 2), ["", "ca", "cai"]), ((2, 3, 4), ["", "c", "ca", "cai"]), ((1, 0, 1), ["c", "ca", "cai"]),
])
def test_parts_are_added_in_their_order_by_no_more_calls_than_count(strengths, calls):
    net = Stub(by_parts)
    w_class, w_attribute, w_image = strengths
    guided = Guided(net, w_image, calls=Calls(together=False), parts={
        "attributes": Strength(w_attribute), "class_labels": Strength(w_class)})
    got = guided(X, torch.tensor(1.0), TOLD)
    wanted = 10 + w_class + 10 * w_attribute * torch.tensor([1, 2, 3], dtype=F64) + 1001 * w_image
    torch.testing.assert_close(got[:, 0, 0], wanted, rtol=1e-12, atol=0)
    assert [told(condition) for condition, _, _ in net.calls] == calls


def test_parts_that_nothing_is_told_of_take_no_call():
    net = Stub(by_parts)
    condition = TOLD.replace(attributes=torch.full((3, 1), torch.nan))
    guided = Guided(net, 2, calls=Calls(together=False), parts={"attributes": Strength(5)})
    torch.testing.assert_close(guided(X, 1.0, condition), X * (10 + 2 * 1002))
    assert [told(condition) for condition, _, _ in net.calls] == ["", "ci"]
    partly = torch.tensor([[torch.nan], [1], [torch.nan]])
    guided(X, 1.0, TOLD.replace(attributes=partly))
    assert [told(condition) for condition, _, _ in net.calls[2:]] == ["", "c", "ca", "cai"]


def test_parts_that_were_never_dropped_stay_in_all_calls():
    net = Stub(by_parts, {**TAKES, "attributes": Part(1)})
    Guided(net, 0)(X, 1.0, TOLD)
    assert told(net.calls[0][0]) == "a"


def test_every_image_has_the_strengths_of_its_own_level_and_parts_their_own_intervals():
    guided = partial(Guided, Stub(by_parts), 3, [0.5, 2], parts={"images": Strength(2, 1, 10)})
    levels = torch.tensor([0.1, 1.5, 5], dtype=F64)  # no guidance; of all; of the image alone
    got = guided()(X, levels, TOLD)
    wanted = [10 + 1 + 10 + 1001, 10 + 3 + 60 + 2002, 10 + 1 + 30 + 2002]
    torch.testing.assert_close(got[:, 0, 0], torch.tensor(wanted, dtype=F64))
    for i in range(3):
        alone = guided()(X[:1], levels[i], Condition({name: value[i:i + 1] for name, value in TOLD.items()}))
        torch.testing.assert_close(got[i:i + 1], alone)


def test_an_image_outside_the_intervals_is_that_of_the_network_to_the_last_bit():
    net, x = network(), LATENTS.float()
    levels = torch.tensor([0.1, 1.0, 10.0])
    got = Guided(net, 4, (0.5, 2), calls=Calls(together=False))(x, levels, Condition(class_labels=LABELS))
    plain = net(x, levels, Condition(class_labels=LABELS))
    assert torch.equal(got[[0, 2]], plain[[0, 2]]) and not torch.equal(got[1], plain[1])


# ---- one call or several ----


def test_one_call_of_a_larger_batch_is_the_same_but_for_rounding():
    net, x, labels = network(), LATENTS.float(), torch.zeros(3, 9)
    for sigma in (torch.tensor(0.7), 0.7, torch.tensor([0.1, 1.0, 10.0])):
        once, apart = (Guided(net, 4, calls=Calls(together))(x, sigma, Condition(class_labels=LABELS))
                       for together in (True, False))
        torch.testing.assert_close(once, apart, rtol=1e-5, atol=1e-5)
    net = Stub(by_parts)
    guided = Guided(net, 2, calls=Calls(True), parts={"images": Strength(3), "attributes": Strength(4)})
    one_for_all = TOLD.replace(attributes=torch.tensor([[7.0]]), class_labels=LABELS[:1])
    got = guided(X, 1.0, one_for_all, labels[:1])
    torch.testing.assert_close(got, X * (10 + 2 + 280 + 3003))
    (condition, augment_labels, images), = net.calls
    assert images == 12 and len(augment_labels) == len(condition.images) == len(condition.class_labels) == 12


@pytest.mark.parametrize(("shape", "together"), [
    ((1, 4, 8, 8, 8), True), ((8, 1, 16, 16), True), ((9, 1, 16, 16), False)])
def test_on_a_cpu_small_batches_go_as_one(shape, together):
    assert Calls().are_together(torch.empty(shape)) is together
    assert Calls().are_together(torch.empty(shape, device="meta"))


def test_a_batch_that_runs_out_of_memory_goes_in_several_calls_from_then_on():
    sizes = []

    def formula(x, sigma, condition):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("of a GPU")
        return by_parts(x, sigma, condition)

    calls = Calls()
    for _ in range(2):  # of two batches of seeds, each with a denoiser of its own
        got = Guided(Stub(formula), 2, calls=calls)(X, 1.0, TOLD)
        torch.testing.assert_close(got[0], X[0] * (10 + 2 + 20 + 2002))
    assert sizes == [6, 3, 3, 3, 3] and calls.together is False
    with pytest.raises(torch.OutOfMemoryError):
        Guided(Stub(formula), 2, calls=calls)(torch.ones(4, 1, 4), 1.0, Condition({
            name: torch.cat([value, value[:1]]) for name, value in TOLD.items()}))


# ---- Gaussians of a class and an image ----

MEAN, GAIN, SD, SPREAD = 0.8, 0.6, 0.3, 0.7  # x = +-MEAN by class + GAIN y + SD eps; y of standard deviation SPREAD


def gaussians(widths: tuple[float, float, float]) -> Stub:
    """D of Gaussians of these variances without a part, with one (the class), and with two, the class and the image y.

    Their means are 0, +-MEAN and +-MEAN + GAIN y.
    """
    def formula(x, sigma, condition):
        labels, images = condition.class_labels.to(F64), condition.images.to(F64)
        number = labels.any(1).long() + (images != 0).flatten(1).any(1)
        variance = torch.tensor(widths, dtype=F64)[number].reshape(-1, 1, 1)
        mean = MEAN * (labels[:, :1] - labels[:, 1:])[..., None] + GAIN * images
        return mean + (x - mean) * variance / (variance + sigma ** 2)

    return Stub(formula, {"class_labels": Part(2, 0.1), "images": Part(1, 0.1)})


ASKED = TOLD.only(("class_labels", "images"))
CLASSED = MEAN * torch.tensor([1, -1, -1], dtype=F64).reshape(3, 1, 1).expand(3, 1, 4)
PICTURED = GAIN * IMAGES.to(F64)
ONE_WIDTH = (SD ** 2,) * 3
WIDTHS = (SD ** 2 + (GAIN * SPREAD) ** 2 + MEAN ** 2, SD ** 2 + (GAIN * SPREAD) ** 2, SD ** 2)


def guided_by(net: Stub, w_class: float, w_image: float) -> Guided:
    return Guided(net, parts={"class_labels": Strength(w_class), "images": Strength(w_image)})


@pytest.mark.parametrize("w_class", [0, 1, 2.5])
@pytest.mark.parametrize("w_image", [0, 1, 3])
def test_each_strength_moves_the_mean_as_the_formula_says(w_class, w_image):
    guided, centre = guided_by(gaussians(ONE_WIDTH), w_class, w_image), w_class * CLASSED + w_image * PICTURED
    sigma = 1.3
    wanted = centre + (LATENTS - centre) * SD ** 2 / (SD ** 2 + sigma ** 2)
    torch.testing.assert_close(guided(LATENTS, sigma, ASKED), wanted, rtol=1e-12, atol=1e-12)
    x = edm_sampler(guided, LATENTS, condition=ASKED, num_steps=200)
    end = centre + (80 * LATENTS - centre) * SD / sqrt(SD ** 2 + 80 ** 2)
    torch.testing.assert_close(x, end, rtol=0, atol=1e-3)


@pytest.mark.parametrize("strengths", [(1, 1), (0, 0), (2, 1), (0.5, 3), (1, 0), (3, 3)])
def test_the_whole_solution_for_gaussians_of_three_widths(strengths):
    """dx/dsigma = sigma sum_k c_k (x - m_k) / (v_k + sigma^2), solved by an integrating factor and quadrature."""
    w_class, w_image = strengths
    shares, (m_class, m_image) = (1 - w_class, w_class - w_image, w_image), (CLASSED, CLASSED + PICTURED)
    x = multistep_sampler(guided_by(gaussians(WIDTHS), w_class, w_image), LATENTS, condition=ASKED, num_steps=300,
                          sigma_min=0.0005)

    def factor(sigma: float) -> float:
        return float(np.prod([(v + sigma ** 2) ** (c / 2) for c, v in zip(shares, WIDTHS)]))

    weights = [quad(lambda sigma, c=c, v=v: sigma * c / (v + sigma ** 2) / factor(sigma), 0, 80, limit=500,
                    points=[0.1, 1, 10])[0] for c, v in zip(shares, WIDTHS)]
    wanted = factor(0) * (80 * LATENTS / factor(80) + weights[1] * m_class + weights[2] * m_image)
    torch.testing.assert_close(x, wanted, rtol=0, atol=2e-5)


def test_strength_1_is_the_network_and_0_the_unconditional_one_to_the_last_bit():
    net, x = network(), LATENTS.float()
    condition = Condition(class_labels=LABELS)
    for strength, plain in ((1, condition), (0, condition.null("class_labels"))):
        wanted = edm_sampler(net, x, condition=plain, num_steps=5)
        assert torch.equal(edm_sampler(Guided(net, strength), x, condition=condition, num_steps=5), wanted)
        by_part = Guided(net, 7, parts={"class_labels": Strength(strength)})
        assert torch.equal(edm_sampler(by_part, x, condition=condition, num_steps=5), wanted)
    net = gaussians(WIDTHS)
    for strengths, names in (((1, 1), ("class_labels", "images")), ((0, 0), ()), ((1, 0), ("class_labels",))):
        plain = ASKED
        for name in set(ASKED) - set(names):
            plain = plain.null(name)
        assert torch.equal(edm_sampler(guided_by(net, *strengths), LATENTS, condition=ASKED),
                           edm_sampler(net, LATENTS, condition=plain))


# ---- what is asked for ----

FACTS = Facts("v.h5", "", class_names=("ED", "ES"))
SNAPSHOT = Snapshot("diffusion", {}, FACTS, (1, 4))


def added(net=None, takes=None, **asked):
    """The guidance of these options around a network, and its record."""
    options = Sampling(outdir="", guidance=Guidance(**asked))
    return add_guidance(net or Stub(by_parts, TAKES if takes is None else takes), SNAPSHOT, options, None,
                        torch.device("cpu"))


def test_strengths_of_parts_stand_in_place_of_that_of_all_and_are_recorded():
    net = Stub(by_parts)
    guided, record = added(net, strength=2, interval=[1, 5], parts={
        "images": 3, "attributes": {"strength": 4, "interval": [0.1, 10]}})
    assert list(guided(net).strengths.items()) == [
        ("class_labels", Strength(2, 1, 5)), ("attributes", Strength(4, 0.1, 10)), ("images", Strength(3, 1, 5))]
    assert record == {"strength": 2, "interval": [1, 5], "parts": {
        "images": {"strength": 3, "interval": None}, "attributes": {"strength": 4, "interval": [0.1, 10]}}}
    other = added(net, strength=2, interval=[1, 5], parts={"images": 3})[1]
    metas = [sample_meta(SNAPSHOT, SNAPSHOT, Sampling(outdir=""), each).sampling for each in (record, other)]
    assert metas[0] != metas[1] and metas[0]["guidance"] == record
    assert "parts" not in added(net, strength=2)[1]


def test_strengths_of_1_are_no_guidance():
    assert added(parts={"images": 1, "class_labels": {"strength": 1}}) == (None, {})
    assert added(takes={"images": Part(1)}, parts={"images": 1}) == (None, {})


@pytest.mark.parametrize(("asked", "words"), [
    ({"parts": {"image": 2}}, "sampling.guidance.parts.image: no such part of a condition; did you mean 'images'"),
    ({"parts": {"semantic": 2}}, r"semantic=2: the network takes no semantic map \(semantic_dim=0\), only images, cl"),
    ({"parts": {"images": -1}}, "sampling.guidance.parts.images: guidance strength=-1"),
    ({"parts": {"images": {"strength": 2, "interval": [2, 1]}}}, "parts.images: guidance interval="),
    ({"parts": {"images": {"strength": 2, "interval": [1]}}}, "parts.images: guidance interval="),
    ({"parts": {"images": {"strength": 1, "interval": [1, 2]}}}, "parts.images.interval=.* nothing at strength 1"),
    ({"parts": {"images": {"strenght": 2}}}, "sampling.guidance.parts.images: 'strenght' is unknown, wanted strength"),
    ({"parts": {"images": {"interval": [1, 2]}}}, "sampling.guidance.parts.images: strength missing"),
    ({"parts": {"images": "much"}}, "sampling.guidance.parts.images: strength is 'much', wanted float"),
    ({"parts": {"images": None}}, "sampling.guidance.parts.images: strength is None, wanted float"),
    ({"parts": {"images": True}}, "sampling.guidance.parts.images: strength is True, wanted float"),
    ({"parts": {"images": inf}}, "sampling.guidance.parts.images: strength is inf, wanted float"),
    ({"parts": 3}, "sampling.guidance.parts=3: wanted strengths of parts by name"),
    ({"interval": [1, 2]}, r"sampling.guidance.interval=\[1, 2\]: does nothing at"),
    ({"interval": [1, 2], "parts": {"images": {"strength": 2, "interval": [3, 4]}}}, "guidance.interval=.*nothing at"),
    ({"strength": 2, "parts": dict.fromkeys(TAKES, 3)}, "strength=2: does nothing, as sampling.guidance.parts has"),
    ({"network": "other.pt", "parts": {"images": 2}}, "sampling.guidance.network=other.pt: another network as guide"),
])
def test_what_cannot_be_is_refused_by_its_key(asked, words):
    with pytest.raises(ValueError, match=words):
        added(**asked)


@pytest.mark.parametrize(("name", "key"), [
    ("class_labels", r"\(label_dropout=0\).*: train with training.network.label_dropout=0.1"),
    ("images", r"\(image_dropout=0\).*: train with training.network.model.image_dropout=0.1"),
    ("attributes", r"\(attribute_dropout=0\).*: train with training.network.model.attribute_dropout=0.1, or name")])
def test_a_part_that_was_never_dropped_is_refused_with_the_key_to_train_with(name, key):
    with pytest.raises(ValueError, match=key):
        added(takes={**TAKES, name: TAKES[name]._replace(dropout=0)}, parts={name: 0})


def test_a_network_that_takes_nothing_is_refused_with_the_key_of_a_guide():
    with pytest.raises(ValueError, match=r"label_dim=0.*another network as guide: name one by sampling.guidance.netw"):
        added(takes={}, strength=2)


def test_a_network_that_is_shown_its_estimate_is_refused():
    net = Stub(by_parts)
    net.self_condition = True
    with pytest.raises(ValueError, match="sampling.guidance.parts.images=2: the network is shown its own last"):
        added(net, parts={"attributes": 1, "images": 2})


def test_guidance_of_what_nothing_is_asked_of_is_refused():
    net = Stub(by_parts)
    images = Conditions(TAKES, {"images": [None, IMAGES[0].numpy()]}, (4,))  # and all classes, as none is asked for
    nothing = Conditions({"attributes": Part(1, 0.1)}, {"attributes": [[np.nan]]}, (4,))
    assert [name for name in TAKES if images.tells(name)] == ["images", "class_labels"]
    check_moves(Guidance(parts={"images": 2}), Guided(net, parts={"images": Strength(2)}), images)
    check_moves(Guidance(2), Guided(net, 2), images)
    with pytest.raises(ValueError, match="parts.attributes=2: moves nothing, as no attribute is asked for"):
        check_moves(Guidance(parts={"attributes": 2, "images": 2}), Guided(net, 2), images)
    only = Stub(by_parts, {"attributes": Part(1, 0.1)})
    with pytest.raises(ValueError, match=r"strength=2: moves nothing, as nothing is asked for .* \(attribute\)"):
        check_moves(Guidance(2), Guided(only, 2), nothing)
    check_moves(Guidance(2), only, nothing)  # a preview, which draws without


def test_guidance_is_said_in_a_few_words():
    assert described(Guidance()) == described(Guidance(parts={"images": 1})) == ""
    asked = Guidance(2, [0.2, 5.0], parts={"images": 3, "attributes": {"strength": 0, "interval": [1, 2]}})
    assert described(asked) == ", guidance 2 in [0.2, 5.0], images 3, attributes 0 in [1.0, 2.0]"
