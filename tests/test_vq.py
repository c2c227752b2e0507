"""The vector-quantised autoencoder by hand: nearest codes, gradients, and how the codebook learns."""

import math

import pytest
import torch

from edm3d.networks.vq import AutoencoderVQ
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.tasks.codes import code_totals

TINY = {"spatial_dims": 1, "channels": (4, 4), "num_blocks": 1, "num_blocks_decoder": 1}


def small(**changes: object) -> AutoencoderVQ:
    """A 1D network of four codes of two numbers at the corners of a square, or of more, which come at random."""
    torch.manual_seed(0)
    net = AutoencoderVQ(1, **{**TINY, "latent_channels": 2, "codebook_size": 4, "restart_below": 0, **changes})
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    with torch.no_grad():
        net.table().copy_(corners if net.codebook_size == 4 else torch.rand(net.codebook_size, 2))
    return net


def started(**changes: object) -> AutoencoderVQ:
    """The same with a codebook that has been in use: equally often, at its own places."""
    net = small(**changes)
    net.usage.fill_(10)
    if not net.learns_by_loss:
        net.sums.copy_(net.codebook * 10)
    return net


VECTORS = torch.tensor([[[0.1, 0.9, 0.8], [0.2, 0.1, 0.6]]])  # (0.1, 0.2), (0.9, 0.1), (0.8, 0.6)


# ---- quantisation ----


def test_vectors_go_to_the_nearest_code_and_the_first_of_equals():
    net = small()
    assert net.nearest(VECTORS).tolist() == [[0, 2, 3]]
    assert net.nearest(torch.full((1, 2, 1), 0.5)).tolist() == [[0]]
    quantised, codes = net.quantise(VECTORS)
    assert quantised.tolist() == [[[0, 1, 1], [0, 0, 1]]]
    assert codes.indices.dtype == torch.int64 and torch.equal(codes.vectors, VECTORS)
    # squared distances 0.05, 0.02, 0.2 over 2 numbers each
    torch.testing.assert_close(codes.commitment, torch.tensor([0.27 / 6]))
    assert codes.codebook is None


def test_codes_are_found_far_from_the_origin_and_in_chunks(monkeypatch):
    torch.manual_seed(0)
    net = small(codebook_size=64)
    net.codebook.copy_(1000 + 1e-3 * torch.arange(128).reshape(64, 2))
    indices = torch.randperm(64).reshape(2, 32)
    whole = net.nearest(net.look_up(indices))
    monkeypatch.setattr("edm3d.networks.vq.CHUNK", 64 * 5)
    assert torch.equal(whole, indices) and torch.equal(net.nearest(net.look_up(indices)), indices)


def test_gradients_pass_through_as_if_nothing_were_quantised():
    net, vectors = small(), VECTORS.clone().requires_grad_()
    weight = torch.randn(1, 2, 3)
    (net.quantise(vectors)[0] * weight).sum().backward()
    assert torch.equal(vectors.grad, weight)
    vectors.grad = None
    net.quantise(vectors)[1].commitment.sum().backward()  # 2 (v - e) / 6
    torch.testing.assert_close(vectors.grad, (VECTORS - torch.tensor([[[0.0, 1, 1], [0, 0, 1]]])) / 3)


def test_a_codebook_trained_by_loss_gets_its_gradients_from_its_own_term_alone():
    net, vectors = small(codebook="loss"), VECTORS.clone().requires_grad_()
    quantised, codes = net.quantise(vectors)
    (quantised.sum() + codes.commitment.sum()).backward(retain_graph=True)
    assert net.codebook.weight.grad is None or not net.codebook.weight.grad.any()
    torch.testing.assert_close(codes.codebook, codes.commitment)
    vectors.grad = None
    codes.codebook.sum().backward()
    assert vectors.grad is None or not vectors.grad.any()
    wanted = torch.tensor([[-0.1, -0.2], [0, 0], [0.1, -0.1], [0.2, 0.4]]) / 3  # 2 (e - v) / 6
    torch.testing.assert_close(net.codebook.weight.grad, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_indices_under_autocast_are_those_in_float32(dtype):
    net = small(latent_channels=3, code_dim=2, codebook_size=256)
    h = torch.randn(2, 3, 40)
    wanted = net.quantise(h)[1]
    with torch.autocast("cpu", dtype):
        codes = net.quantise(h)[1]
    assert torch.equal(codes.indices, wanted.indices) and codes.vectors.dtype == torch.float32
    assert len(wanted.indices.unique()) > 20


# ---- which latent ----


@pytest.mark.parametrize("latent", ["before", "after"])
@pytest.mark.parametrize("code_dim", [None, 5])
def test_decoding_the_latent_gives_the_reconstruction(latent, code_dim):
    net = AutoencoderVQ(1, **TINY, latent=latent, code_dim=code_dim).eval()
    image = torch.randn(2, 1, 8)
    out = net(image)
    assert torch.equal(out.z, net.encode(image).mean) and out.z.shape == (2, 4, 4)
    assert torch.equal(net.decode(out.z)[0], out.image)
    assert out.codes.vectors.shape == (2, code_dim or 4, 4) and out.codes.indices.shape == (2, 4)
    distinct = len(out.z.movedim(1, -1).flatten(0, 1).unique(dim=0))
    assert (distinct == len(out.codes.indices.unique())) == (latent == "after") or distinct == 8


@pytest.mark.parametrize(("latent", "code_dim"), [("before", None), ("after", None), ("after", 5)])
def test_indices_are_what_their_latents_decode_by(latent, code_dim):
    net = AutoencoderVQ(1, **TINY, latent=latent, code_dim=code_dim, codebook_size=64).eval()
    indices = torch.randint(0, 64, (2, 6))
    z = net.codes_to_latent(indices)
    assert z.shape == (2, 4, 6) and torch.equal(net.nearest(net.look_up(indices)), indices)
    assert torch.equal(net.decode(z)[0], net.decoder(net.from_code(net.look_up(indices))))
    if latent == "before":
        assert torch.equal(net.quantise(z)[1].indices, indices) and torch.equal(net.prepare(z), z)


def test_codes_of_other_width_have_no_latent_before_quantisation():
    with pytest.raises(ValueError, match="codes of 5 numbers have no latents of 4 channels.*latent=after"):
        AutoencoderVQ(1, **TINY, code_dim=5).codes_to_latent(torch.zeros(1, 4, dtype=torch.int64))


# ---- how the codebook learns ----


def test_running_means_are_the_formula():
    net = started(decay=0.9)
    counts, sums = torch.tensor([20.0, 0, 5, 10]), torch.tensor([[4.0, 2], [0, 0], [6, 1], [9, 9]])
    net.absorb(counts, sums, torch.full((4, 2), 9.0), key=0)
    usage = [0.9 * 10 + 0.1 * n for n in (20, 0, 5, 10)]
    torch.testing.assert_close(net.usage, torch.tensor(usage))
    old = [[0, 0], [0, 1], [1, 0], [1, 1]]
    wanted = [[(0.9 * 10 * e + 0.1 * s) / n for e, s in zip(es, ss)] for es, ss, n in zip(old, sums.tolist(), usage)]
    torch.testing.assert_close(net.codebook, torch.tensor(wanted))


def test_running_means_end_at_the_mean_of_what_chose_a_code():
    net = started(decay=0.5)
    for key in range(60):
        net.absorb(torch.full((4,), 2.0), torch.tensor([[1.0, 3]]).expand(4, 2), torch.zeros(4, 2), key)
    torch.testing.assert_close(net.codebook, torch.tensor([[0.5, 1.5]]).expand(4, 2))


def test_unused_codes_stay_where_restarts_are_off():
    net = started(decay=0.0)
    net.absorb(torch.tensor([4.0, 0, 0, 0]), torch.tensor([[4.0, 8]] + [[0, 0]] * 3), torch.full((4, 2), 9.0), key=0)
    assert net.codebook.tolist() == [[1, 2], [0, 1], [1, 0], [1, 1]]


def test_totals_of_rounds_added_up_move_the_codebook_as_one_round_does():
    nets = [small(codebook_size=8), small(codebook_size=8)]
    for net in nets:
        net.usage.fill_(1)
        net.sums.copy_(net.codebook)
    vectors = torch.rand(4, 2, 6)

    def totals(rows: slice) -> dict[str, torch.Tensor]:
        codes = nets[0].quantise(vectors[rows])[1]
        return code_totals(nets[0], codes, ImageGenerators(range(4)[rows]), batch_size=4)

    whole, halves = totals(slice(0, 4)), [totals(slice(0, 2)), totals(slice(2, 4))]
    nets[0].absorb(**whole, key=4)
    nets[1].absorb(**{name: halves[0][name] + halves[1][name] for name in whole}, key=4)
    torch.testing.assert_close(nets[0].codebook, nets[1].codebook)
    assert torch.equal(nets[0].usage, nets[1].usage) and nets[0].usage.std() > 0


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_all_codes_start_at_vectors_of_the_first_step(codebook):
    net = small(codebook=codebook)
    candidates = torch.randn(6, 2)
    net.absorb(torch.tensor([9.0, 0, 0, 0]), torch.zeros(4, 2), candidates, key=3)
    rows = [(candidates == code).all(1).nonzero().item() for code in net.table()]
    assert len(set(rows)) == 4 and net.usage.min() == net.usage.max() > 0
    again, other = small(codebook=codebook), small(codebook=codebook)
    again.absorb(torch.tensor([9.0, 0, 0, 0]), torch.zeros(4, 2), candidates, key=3)
    other.absorb(torch.tensor([9.0, 0, 0, 0]), torch.zeros(4, 2), candidates, key=4)
    assert torch.equal(again.table(), net.table()) and not torch.equal(other.table(), net.table())


def test_no_code_starts_again_in_a_step_that_is_skipped():
    """Buffers are put back then; codes that gradients move are none."""
    net = started(codebook="loss", restart_below=0.5)
    net.usage[1] = 0
    before = net.table().detach().clone()
    net.absorb(torch.zeros(4), torch.zeros(4, 2), torch.zeros(5, 2), key=1)
    assert torch.equal(net.table(), before)


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_dead_codes_start_again_at_live_vectors_and_are_given_time(codebook):
    net = started(codebook=codebook, restart_below=0.5, decay=0.9)
    net.usage[1] = 1
    candidates = torch.tensor([[5.0, 6], [7, 8], [9, 10], [11, 12], [13, 14]])
    before = net.table().detach().clone()
    counts = torch.tensor([10.0, 0, 10, 10])
    net.absorb(counts, before * counts[:, None], candidates, key=1)
    assert net.table()[1].tolist() in candidates.tolist()
    torch.testing.assert_close(net.table()[[0, 2, 3]], before[[0, 2, 3]])
    assert net.usage[1].item() == pytest.approx(1.3 * 0.5 * (0.9 + 30) / 4)  # of the mean of 0.9 and three times 10
    net.absorb(counts, before * counts[:, None], -candidates, key=2)
    assert (net.table()[1] > 0).all()  # not again at once, but when its time is over
    net.absorb(counts, before * counts[:, None], -candidates, key=3)
    assert net.table()[1].tolist() in (-candidates).tolist()


def test_a_codebook_fed_its_own_choices_comes_to_use_all_codes():
    torch.manual_seed(0)
    net = AutoencoderVQ(1, **TINY, latent_channels=2, codebook_size=32)
    net.codebook.zero_()
    for key in range(30):
        h = torch.randn(4, 2, 64) * torch.tensor([1.0, 3.0]).reshape(1, 2, 1) + 5
        totals = code_totals(net, net.quantise(h)[1], ImageGenerators(range(4 * key, 4 * key + 4)), batch_size=4)
        net.absorb(**totals, key=4 * key)
    used, perplexity = net.codebook_usage(totals["counts"])
    assert used == 1 and perplexity > 16


def test_usage_by_hand():
    net = small()
    assert net.codebook_usage(torch.full((4,), 7.0)) == (1, pytest.approx(4))
    assert net.codebook_usage(torch.tensor([5.0, 0, 0, 0])) == (0.25, pytest.approx(1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert net.codebook_usage(torch.tensor([3.0, 0, 1, 0])) == (0.5, pytest.approx(math.exp(entropy)))
    assert net.codebook_usage(torch.zeros(4)) == (0, pytest.approx(1))


def test_the_codebook_travels_in_the_state_and_only_that_by_loss_has_gradients():
    assert {"codebook", "sums", "usage"} <= small().state_dict().keys() - dict(small().named_parameters()).keys()
    by_loss = small(codebook="loss")
    assert "codebook.weight" in dict(by_loss.named_parameters()) and "usage" in by_loss.state_dict()


def test_wrong_arguments_are_refused_by_name():
    for arguments, message in [({"latent": "during"}, "latent='during': wanted one of before, after"),
                               ({"codebook": "sgd"}, "codebook='sgd': wanted one of ema, loss"),
                               ({"decay": 1}, "decay=1: wanted what a step keeps"),
                               ({"codebook_size": 0}, "codebook_size=0"),
                               ({"code_dim": 0}, "code_dim=0"), ({"restart_below": -1}, "restart_below=-1")]:
        with pytest.raises(ValueError, match=message):
            AutoencoderVQ(1, **{**TINY, **arguments})
