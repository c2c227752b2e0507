"""Conditions: what is refused by name, what each part's null is, and how items become batches."""

import copy
import pickle
from math import nan

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition, Part, stack, takes_of, with_dropout
from edm3d.networks.parts import PARTS
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet

WHOLE = Condition(class_labels=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), attributes=torch.ones(2, 3),
                  semantic=torch.ones(2, 2, 2, dtype=torch.int64), images=torch.ones(2, 1, 2, 2))
NULLS = {"class_labels": 0, "attributes": nan, "semantic": 4, "images": 0}
WIDTHS = {"class_labels": 2, "attributes": 3, "semantic": 4, "images": 1}


def test_parts_are_read_by_name_and_those_that_are_there_as_a_mapping():
    labels = torch.ones(2, 3)
    condition = Condition(attributes=torch.ones(2, 1), class_labels=labels)
    assert condition.class_labels is labels and condition["class_labels"] is labels and condition.images is None
    assert list(condition) == ["class_labels", "attributes"] and len(condition) == 2 and "images" not in condition
    assert list(WHOLE) == list(PARTS) and not Condition()
    with pytest.raises(KeyError):
        condition["images"]
    with pytest.raises(KeyError):
        condition["drop"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Condition(class_label=torch.ones(1)), "Condition: 'class_label' is no part of a condition, wanted some of "
                                                   "class_labels, attributes, semantic, images"),
    (lambda: WHOLE.replace(label=None), "'label' is no part"),
    (lambda: Condition(torch.ones(1)), r"got a Tensor, wanted parts by name, as in Condition\(class_labels=...\)"),
    (lambda: Condition().drop("attributes", torch.ones(1)), "no part 'attributes' to drop, it has none"),
    (lambda: Condition(images=torch.ones(1)).null("semantic", 3), "no part 'semantic' to drop, it has images"),
    (lambda: WHOLE.drop("semantic", torch.tensor([True, False])), "semantic map needs its width"),
])
def test_what_is_no_part_or_not_there_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_condition_is_replaced_and_never_changed():
    with pytest.raises(AttributeError, match="make another by replace"):
        WHOLE.images = None
    other = WHOLE.replace(images=None, attributes=torch.zeros(2, 1))
    assert list(other) == [name for name in PARTS if name != "images"] and other.attributes.sum() == 0
    assert WHOLE.images is not None and WHOLE.attributes.sum() == 6


def test_the_parts_of_some_names_are_those_of_them_that_are_there():
    kept = WHOLE.replace(images=None).only({"images": Part(1), "semantic": Part(4)})
    assert kept == Condition(semantic=WHOLE.semantic)


@pytest.mark.parametrize("name", PARTS)
def test_drop_puts_each_parts_null_where_the_mask_says_and_null_everywhere(name):
    dropped = WHOLE.drop(name, torch.tensor([False, True]), WIDTHS[name])
    gone = WHOLE.null(name, WIDTHS[name])
    null = np.full(WHOLE[name][0].shape, NULLS[name])
    assert torch.equal(dropped[name][0], WHOLE[name][0]) and dropped[name].dtype == WHOLE[name].dtype
    for row in (dropped[name][1], *gone[name]):
        np.testing.assert_array_equal(row.numpy(), null)
    assert all(each[other] is WHOLE[other] for each in (dropped, gone) for other in PARTS if other != name)


def test_conditions_are_moved_pickled_and_copied_whole():
    assert all(part.is_meta for part in WHOLE.to(torch.device("meta")).values())
    for again in (pickle.loads(pickle.dumps(WHOLE)), copy.deepcopy(WHOLE), type(WHOLE)(dict(WHOLE.items()))):
        assert list(again) == list(WHOLE) and all(torch.equal(again[name], WHOLE[name]) for name in WHOLE)


# ---- kinds ----


def test_classes_are_one_hot_and_zeros_where_missing():
    kind = PARTS["class_labels"]
    rows = [kind.row(value, 3) for value in (2, np.int64(0), -1, None)]
    assert [row.tolist() for row in rows] == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert all(row.dtype == np.float32 for row in rows) and [kind.value(row) for row in rows] == [2, 0, -1, -1]


@pytest.mark.parametrize(("name", "width", "shape"), [
    ("class_labels", 3, (3,)), ("attributes", 2, (2,)), ("semantic", 4, (5, 6)), ("images", 2, (2, 5, 6))])
def test_the_null_of_a_kind_has_the_shape_of_its_rows(name, width, shape):
    kind = PARTS[name]
    values = kind.unasked(width, (5, 6))
    if name == "class_labels":
        assert list(values) == [0, 1, 2] and kind.shape(width, (5, 6)) == shape
        return
    null, = values
    assert null.shape == kind.shape(width, (5, 6)) == shape and null.dtype == kind.dtype
    np.testing.assert_array_equal(null, np.full(shape, kind.null(width)))
    np.testing.assert_array_equal(kind.row(null, width), null)


def test_a_missing_attribute_is_not_a_number():
    kind = PARTS["attributes"]
    assert np.isnan(kind.row(None, 2)).tolist() == [True, True]
    np.testing.assert_array_equal(kind.row(np.array([1, nan], np.float32), 2), [1, nan])


# ---- batches ----


def test_items_are_stacked_part_by_part():
    items = [Condition(class_labels=np.eye(2, dtype=np.float32)[i], semantic=np.full((2, 2), i)) for i in (1, 0)]
    batch = stack(items)
    assert list(batch) == ["class_labels", "semantic"]
    assert batch.class_labels.tolist() == [[0, 1], [1, 0]] and batch.class_labels.dtype == torch.float32
    assert batch.semantic[:, 0, 0].tolist() == [1, 0] and batch.semantic.dtype == torch.int64


def test_items_with_other_parts_do_not_stack():
    with_class = Condition(class_labels=np.zeros(2, np.float32))
    for items in ([with_class, Condition()], [Condition(), with_class]):
        with pytest.raises(ValueError, match="class_labels.*none|none.*class_labels"):
            stack(items)


# ---- what a network takes ----


def test_a_network_takes_what_it_says_and_nothing_where_it_does_not():
    net = torch.nn.Linear(1, 1)
    assert takes_of(net) == {} and EDMPrecond(net).takes == {}
    net.takes = {"attributes": Part(3)}
    assert EDMPrecond(net).takes == {"attributes": Part(3, dropout=0)}
    net.takes = {"class_labels": Part(2), "attributes": Part(3, dropout=0.2)}
    assert EDMPrecond(net, label_dropout=0.1).takes == {"class_labels": Part(2, 0.1), "attributes": Part(3, 0.2)}
    net.takes = {"atributes": Part(3)}
    with pytest.raises(ValueError, match=r"Linear\.takes: 'atributes' is no part"):
        EDMPrecond(net)


def test_the_dropout_of_a_part_is_added_to_what_is_taken():
    takes = {"class_labels": Part(2), "attributes": Part(3)}
    assert with_dropout(takes, attributes=0.25) == {"class_labels": Part(2, 0), "attributes": Part(3, 0.25)}
    own = {"class_labels": Part(2), "attributes": Part(3, 0.5)}  # said by the network itself
    assert with_dropout(own, class_labels=0.1) == {"class_labels": Part(2, 0.1), "attributes": Part(3, 0.5)}
    with pytest.raises(ValueError, match="attribute_dropout=-1: wanted a probability"):
        with_dropout({"attributes": Part(3, -1)})
    with pytest.raises(ValueError, match="image_dropout=0.5: there is no condition image to drop, image_dim of the"):
        with_dropout(takes, images=0.5)
    with pytest.raises(ValueError, match="attribute_dropout=1: wanted a probability, 0..1 without 1"):
        with_dropout(takes, attributes=1)


@pytest.fixture
def compiler():
    """The compiler, which has compiled nothing: it gives up on code that it has compiled eight times."""
    torch.compiler.reset()
    yield torch.compile
    torch.compiler.reset()


@pytest.mark.slow
def test_a_network_compiles_into_one_graph_for_all_conditions_of_a_kind(compiler):
    net = EDMPrecond(ADMUNet(1, 1, spatial_dims=2, label_dim=3, model_channels=8, channel_mult=(1,), num_blocks=1,
                             attention_levels=[]), label_dropout=0.1).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled, x, sigma = compiler(net, backend=backend, fullgraph=True), torch.randn(3, 1, 4, 4), torch.rand(3)
    seen = []
    for turn in range(3):
        condition = Condition(class_labels=torch.eye(3).roll(turn, 0))
        seen.append(compiled(x, sigma, condition))
        torch.testing.assert_close(seen[-1], net(x, sigma, condition))
    assert len(graphs) == 1 and (seen[0] - seen[1]).abs().max() > 1e-3
    torch.testing.assert_close(compiled(x, sigma, Condition()), net(x, sigma))
