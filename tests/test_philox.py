"""Numbers out of counters: known answers, statistics, and rows that depend on their own key alone."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.noise import WorkCounter
from edm3d.samplers import philox
from edm3d.samplers.noise import COUNTERS, GENERATORS, ImageGenerators, mix_seed, scheme_on

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
ZERO = 0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8  # of the counter 0 and the key 0


@pytest.mark.parametrize("counter, key, wanted", [
    ((0,) * 4, (0,) * 2, ZERO),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_words_are_the_known_answers_of_random123(counter, key, wanted):
    found = philox.philox(tuple(torch.tensor([word]) for word in counter), tuple(torch.tensor([w]) for w in key))
    assert tuple(word.item() for word in found) == wanted


def test_numbers_are_made_of_words_by_hand():
    a, b, c, d = ZERO
    assert philox.uniform([0], 0, (4,), F32, CPU)[0].tolist() == [word % 2 ** 24 / 2 ** 24 for word in ZERO]
    pairs = [(high * 2 ** 32 + low) % 2 ** 53 / 2 ** 53 for high, low in ((a, b), (c, d))]
    assert philox.uniform([0], 0, (2,), F64, CPU)[0].tolist() == pairs
    units = [(word + 0.5) / 2 ** 32 for word in ZERO]
    wanted = [math.sqrt(-2 * math.log(units[i])) * turn(2 * math.pi * units[i + 1])
              for i in (0, 2) for turn in (math.cos, math.sin)]
    np.testing.assert_allclose(philox.normal([0], 0, (4,), F32, CPU)[0], wanted, atol=1e-6)
    radius, angle = math.sqrt(-2 * math.log((a + b / 2 ** 32) / 2 ** 32)), 2 * math.pi * (c + d / 2 ** 32) / 2 ** 32
    np.testing.assert_allclose(philox.normal([0], 0, (2,), F64, CPU)[0],
                               [radius * math.cos(angle), radius * math.sin(angle)], atol=1e-14)
    assert philox.normal([0], 0, (), torch.bfloat16, CPU).item() == pytest.approx(wanted[0], rel=1e-2)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_ends_of_what_words_can_be_give_finite_numbers(dtype):
    for word in (0, 0xFFFFFFFF):
        words = (torch.tensor([word]),) * 4
        assert torch.stack(philox._normal(words, dtype)).isfinite().all()
        assert all(0 <= u.item() < 1 for u in philox._uniform(words, dtype))


@pytest.mark.parametrize("draw", ["rand", "randn"])
def test_a_row_depends_on_its_own_key_alone(draw, monkeypatch):
    def drawn(*keys, shape=(3, 7)):
        return getattr(ImageGenerators(keys, seed=3, purpose="a", scheme=COUNTERS), draw)(shape)

    whole = drawn(4, 9, 10**15, "9.draw1")
    for row, key in enumerate([4, 9, 10**15, "9.draw1"]):
        assert torch.equal(whole[row:row + 1], drawn(key))
    assert torch.equal(whole[1::2], drawn(9, "9.draw1"))  # as a second rank draws them
    monkeypatch.setattr(philox, "AT_A_TIME", 8)
    assert torch.equal(whole, drawn(4, 9, 10**15, "9.draw1"))


def test_a_second_draw_goes_on_where_the_first_ended():
    noise, whole = (ImageGenerators([1, 2], scheme=COUNTERS) for _ in range(2))
    first, second, third = noise.randn((5,)), noise.rand((2,)), noise.rand((4,))
    assert torch.equal(first, whole.randn((8,))[:, :5])
    assert torch.equal(second, whole.rand((2,))) and torch.equal(third, whole.rand((4,)))
    assert not torch.equal(ImageGenerators([1, 2], scheme=COUNTERS).randn((4,)), noise.randn((4,)))
    exact = ImageGenerators([1, 2], scheme=COUNTERS)
    assert torch.equal(torch.cat([exact.rand((2, 2), F64).flatten(1), exact.rand((2,), F64)], 1),
                       ImageGenerators([1, 2], scheme=COUNTERS).rand((6,), F64))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_statistics_of_many_keys_and_of_long_rows(dtype):
    for keys, count in ((range(20_000), 4), ((5,), 80_000)):
        noise = ImageGenerators(keys, scheme=COUNTERS)
        u = noise.for_purpose("u").rand((count,), dtype).numpy()
        x = noise.for_purpose("x").randn((count,), dtype).numpy()
        assert stats.kstest(u.ravel(), "uniform").pvalue > 0.001 and stats.kstest(x.ravel(), "norm").pvalue > 0.001
        off = np.array([(x ** power).mean() for power in (1, 2, 3, 4)]) - [0, 1, 0, 3]
        assert (abs(off) < 4 * np.sqrt(np.array([1, 2, 15, 96]) / 80_000)).all()  # the variances of x, x^2, x^3, x^4
        if len(keys) > 1:  # numbers of a row do not go together, nor do their squares
            seen = np.concatenate([np.corrcoef(x, rowvar=False)[np.triu_indices(4, 1)],
                                   np.corrcoef(x ** 2, rowvar=False)[np.triu_indices(4, 1)]])
            assert abs(seen).max() < 0.03


def test_keys_and_purposes_do_not_go_together():
    noise = ImageGenerators(range(40), scheme=COUNTERS)
    rows = torch.cat([noise.for_purpose(name).randn((4000,)) for name in ("a", "b")]).numpy()
    between = np.corrcoef(rows)[np.triu_indices(80, 1)]
    assert abs(between).max() < 5 / math.sqrt(4000) and between.std() == pytest.approx(1 / math.sqrt(4000), rel=0.05)


def test_generators_are_the_default_and_what_they_were():
    noise = ImageGenerators([3, 8], seed=2, purpose="p")
    assert noise.scheme == GENERATORS == scheme_on(CPU)
    for row, key in zip(noise.randn((3,)), (3, 8), strict=True):
        assert torch.equal(row, torch.randn(3, generator=torch.Generator().manual_seed(mix_seed(2, "p", key))))


def test_counts_and_what_the_host_goes_by_are_of_generators_in_both_schemes():
    by, plain = (ImageGenerators([3, 8], seed=2, scheme=scheme) for scheme in (COUNTERS, GENERATORS))
    rate = torch.full((2, 50), 4.0)
    for draw in ("gamma", "poisson"):
        assert torch.equal(getattr(by.for_purpose("n"), draw)(rate), getattr(plain.for_purpose("n"), draw)(rate))
    assert torch.equal(by.for_purpose("host").on_host().randn((5,)), plain.for_purpose("host").randn((5,)))
    signed = ImageGenerators([3, 3], scheme=COUNTERS, signs=[1, -1]).for_purpose("x").randn((2, 4))
    assert torch.equal(signed[0], -signed[1])


def test_torch_s_kernels_are_used_where_they_give_these_numbers_and_nowhere_else(monkeypatch):
    with WorkCounter() as counted:
        meta = philox._by_kernel("_philox_normal_", [1, 2], 0, (3, 4), F32, torch.device("meta"))
    assert meta.shape == (2, 3, 4) and counted.count == 2  # a call that torch takes, and a copy of the keys
    by_words = {"_philox_uniform_": philox._uniform, "_philox_normal_": philox._normal}
    has, cuda = philox.has_kernels.__wrapped__, torch.device("cuda")
    for there, wanted in ((True, COUNTERS), (False, GENERATORS)):
        monkeypatch.setattr(philox, "has_kernels", lambda device, there=there: there)
        assert scheme_on(cuda) == wanted
    monkeypatch.setattr(philox, "_by_kernel", lambda name, *of: philox._by_words(by_words[name], *of) + 1e-6)
    assert has(CPU)
    monkeypatch.setattr(philox, "_by_kernel", lambda name, *of: philox._by_words(by_words[name], *of).flip(1))
    assert not has(CPU)
    monkeypatch.setattr(philox, "_by_kernel", lambda *of: torch.no_such_kernel)
    assert not has(CPU)
