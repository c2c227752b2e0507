"""The report says what a private network says of itself, in a part of its own."""

from edm3d.formats.privacy import Earlier, Ledger, PrivacyStatement
from edm3d.reporting.html import html_contents
from edm3d.reporting.sections.private_training import PrivateTraining

LEDGER = Ledger("group", 320, 1.0, "prv", "1.6.0").after(0.75, 0.25, 40)
SAID = PrivacyStatement(9.98, 1e-5, LEDGER, 4, "none", "of public.pt, taken as public",
                        ["the <form> of the data", "the choice of settings"], "5 of 9 weights",
                        [Earlier("first stage", 2.0, 1e-5, LEDGER)])


def test_the_page_has_the_statement_item_by_item():
    report, section = {"generated": {"privacy": {"available": True, **SAID.plain()}}}, PrivateTraining()
    contents, page = html_contents(section.page(report, {}))
    assert ">Differential privacy</a>" in contents
    for key, value in (("epsilon", "9.98"), ("delta", "1e-05"), ("steps", "40"),
                       ("unit whose presence is hidden", "group, of 320 groups (patients)"),
                       ("noise multiplier", "0.75, in 40 steps"), ("sampling rate", "0.25 of the groups (patients)"),
                       ("noise levels per image", "4"), ("trained", "5 of 9 weights"),
                       ("with what it stands on", "epsilon 11.98 at delta 2e-05 per group"),
                       ("weights at the start", "of public.pt, taken as public")):
        assert f"<td>{key}</td><td>{value}" in page, key
    missed = page.partition("What is not covered")[2]
    assert "<li>the &lt;form&gt; of the data</li><li>the choice of settings</li>" in missed
    assert section.facts(report) == [("9.98", "epsilon at delta 1e-05 per group")]
    score, = section.scores(report)["compliance"]
    assert score.value == 9.98


def test_a_network_without_privacy_has_no_such_part():
    for generated in ({}, {"privacy": {"available": False, "reason": "trained without"}}):
        report, section = {"generated": generated}, PrivateTraining()
        assert section.page(report, {}) == "" and not section.facts(report) and not section.scores(report)
        assert not section.lines(report)
