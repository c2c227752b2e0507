"""Epsilon and noise by Opacus' accountant, the ledger, and how far a budget reaches."""

import pytest

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant

from edm3d.formats.privacy import Ledger, PrivacyStatement, Spent
from edm3d.training.private.accounting import epsilon, noise_multiplier, steps_within
from edm3d.training.private.budget import check_privacy, open_budget, units_of, warnings_of
from edm3d.utils.schema import Options, Privacy

OPTIONS = Options(batch_size=10, total_kimg=1)
LEDGER = Ledger("record", 100, 1.0, "prv", "opacus 1.6.0")


def direct(*history: tuple[float, float, int], delta: float = 1e-5) -> float:
    """The accountant, told step by step."""
    accountant = PRVAccountant()
    for noise, rate, steps in history:
        for _ in range(steps):
            accountant.step(noise_multiplier=noise, sample_rate=rate)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("history", [[(1.1, 0.02, 300)], [(2.0, 1.0, 3)], [(1.5, 0.1, 20), (2.5, 0.1, 30)]])
def test_epsilon_is_the_accountants(history):
    assert epsilon([Spent(*each) for each in history], 1e-5) == pytest.approx(direct(*history), abs=1e-6)


def test_no_steps_cost_nothing():
    assert epsilon([], 1e-5) == 0 == epsilon([Spent(1.0, 0.1, 0)], 1e-5)


@pytest.mark.parametrize(("target", "rate", "steps"), [(3, 0.03, 100), (0.1, 0.1, 50)])
def test_noise_spends_the_budget_and_no_more(target, rate, steps):
    noise = noise_multiplier(target, 1e-5, rate, steps)
    assert target * 0.994 - 0.01 <= direct((noise, rate, steps)) <= target


def test_a_budget_that_no_noise_keeps_is_refused():
    with pytest.raises(ValueError, match=r"target_epsilon=0\.0001: no noise keeps 50 steps"):
        noise_multiplier(0.0001, 1e-5, 0.1, 50)


def test_a_ledger_counts_like_steps_together():
    ledger = LEDGER
    for _ in range(3):
        ledger = ledger.after(1.0, 0.1)
    ledger = ledger.after(2.0, 0.1, 4).after(2.0, 0.1)
    assert ledger.history == [Spent(1.0, 0.1, 3), Spent(2.0, 0.1, 5)] and ledger.steps == 8
    assert Ledger.from_plain(ledger.plain(), "file") == ledger
    assert LEDGER.history == []


@pytest.mark.parametrize(("key", "value"), [("unit", "planet"), ("max_grad_norm", 0.0), ("history", [
    {"noise_multiplier": -1.0, "sampling_rate": 0.1, "steps": 1}]), ("history", [
        {"noise_multiplier": 1.0, "sampling_rate": 1.1, "steps": 1}]), ("count", "many")])
def test_odd_ledgers_are_refused_with_file_and_key(key, value):
    with pytest.raises(ValueError, match=r"file: ledger\."):
        Ledger.from_plain({**LEDGER.plain(), key: value}, "file")


def test_a_statement_comes_back_and_says_all():
    statement = PrivacyStatement(2.5, 1e-5, LEDGER.after(1.5, 0.1, 7), 2, "none", "random", ["the moon"])
    assert PrivacyStatement.from_plain(statement.plain(), "file") == statement
    text = "\n".join(statement.lines())
    for part in ("epsilon 2.5 at delta 1e-05 per record", "100 records", "7 steps at sampling rate 0.1", "1.5",
                 "clipped to 1", "2 noise levels", "prv, opacus 1.6.0", "random", "not covered: the moon"):
        assert part in text
    with pytest.raises(ValueError, match="file: privacy has epsilon -1"):
        PrivacyStatement.from_plain({**statement.plain(), "epsilon": -1.0}, "file")


# ---- budgets ----


def test_steps_within_a_budget_are_the_most_that_fit():
    steps = steps_within(0.5, 1e-5, LEDGER, 4.0, 0.1, 60)
    assert direct((4.0, 0.1, steps)) <= 0.5 < direct((4.0, 0.1, steps + 1))
    assert steps_within(0.5, 1e-5, LEDGER.after(4.0, 0.1, 5), 4.0, 0.1, 60) == steps - 5
    assert steps_within(0.5, 1e-5, LEDGER, 4.0, 0.1, 4) == 4


def test_a_budget_goes_on_with_the_noise_of_its_ledger():
    first = open_budget(Privacy(1, 1e-5), OPTIONS, range(100))
    assert first.steps == 100 and first.sampling_rate == 0.1
    for _ in range(3):
        first.spend()
    longer = open_budget(Privacy(1, 1e-5), Options(batch_size=10, total_kimg=1.2), range(100), first.ledger)
    assert longer.noise_multiplier == first.noise_multiplier and longer.ledger == first.ledger
    assert 100 <= longer.steps < 105  # what the search for the noise has left over
    assert direct((longer.noise_multiplier, 0.1, longer.steps)) <= 1


@pytest.mark.parametrize(("change", "said"), [({"unit": "group"}, "unit: group -> record"),
                                              ({"max_grad_norm": 2.0}, "max_grad_norm: 2.0 -> 1"),
                                              ({"count": 99}, "number of units: 99 -> 100"),
                                              ({"history": [Spent(1.0, 0.2, 3)]}, "sampling rate: 0.2 -> 0.1")])
def test_a_ledger_of_another_kind_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        open_budget(Privacy(10, 1e-5), OPTIONS, range(100), LEDGER._replace(**change))


def test_budgets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a single step with noise multiplier 0.5 costs"):
        open_budget(Privacy(0.5, 1e-5, noise_multiplier=0.5), OPTIONS, range(100))
    with pytest.raises(ValueError, match="batch_size=10: there are 9 records"):
        open_budget(Privacy(10, 1e-5), OPTIONS, range(9))
    with pytest.raises(ValueError, match="does not say which items are of one patient"):
        units_of(range(4), "group")
    for privacy in (Privacy(10), Privacy(10, 1.0), Privacy(-1, 1e-5), Privacy(1, 1e-5, max_grad_norm=0),
                    Privacy(float("inf"), 1e-5), Privacy(1, 1e-5, max_grad_norm=float("inf")),
                    Privacy(1, 1e-5, noise_multiplier=float("inf")), Privacy(1, 1e-5, noise_multiplier=0),
                    Privacy(1, 1e-5, unit="slice"), Privacy(1, 1e-5, noise_multiplicity=0)):
        with pytest.raises(ValueError, match=r"training\.privacy\."):
            check_privacy(privacy)


def test_groups_are_units_and_a_large_delta_is_warned_of():
    class Grouped(list):
        groups = ("b", "a", "b", "c")

    assert units_of(Grouped(range(4)), "group") == [[0, 2], [1], [3]]
    assert units_of(Grouped(range(4)), "record") == [[0], [1], [2], [3]]
    budget = open_budget(Privacy(10, 0.05, noise_multiplier=3.0), OPTIONS, range(100))
    assert "target_delta=0.05 is above 1 / 100" in warnings_of(budget)[0]
    assert warnings_of(open_budget(Privacy(10, 0.005, noise_multiplier=3.0), OPTIONS, range(100))) == []
