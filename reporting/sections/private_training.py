"""What the network that drew the volumes says of the privacy of its training data."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edm3d.formats.privacy import UNITS, PrivacyStatement
from edm3d.reporting.html import html_table
from edm3d.reporting.section import Score, Section

TITLE = "Differential privacy"
PROMISED = ("Whatever is made of the network alone, the presence of one unit in the training data changes the odds of "
            "it by a factor of exp(epsilon) at most, but for a probability of delta. Epsilon is what training steps "
            "have spent in all; what else was taken from the data is listed as not covered.")


class PrivateTraining(Section):
    """The statement that samples carry, item by item; nothing where their network was trained without.

    It is report.json's generated.privacy, as the frame has it.
    """

    words = {"differential privacy": PROMISED}
    sets = ()

    def facts(self, report: dict) -> list[tuple[str, str]]:
        said = stated(report)
        return [] if said is None else [(f"{said.epsilon:.3g}", f"epsilon at delta {said.delta:g} per "
                                                               f"{said.ledger.unit}")]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        said = stated(report)
        return {} if said is None else {"compliance": [Score(
            "epsilon of the training", said.epsilon, said=f"at delta {said.delta:g} per {said.ledger.unit}")]}

    def lines(self, report: dict) -> list[str]:
        said = stated(report)
        return [] if said is None else [f"Privacy: epsilon {said.epsilon:.4g} at delta {said.delta:g} per "
                                        f"{said.ledger.unit}, {said.ledger.steps} steps"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        said = stated(report)
        if said is None:
            return ""
        missed = "".join(f"<li>{escape(text)}</li>" for text in said.not_covered)
        return (f"<h2>{TITLE}</h2>{html_table(None, rows_of(said), kind='plain')}"
                f"<h3>What is not covered</h3><ul>{missed}</ul>")


def stated(report: Mapping[str, Any]) -> PrivacyStatement | None:
    """The statement of the network that drew the volumes of a report, None where it was trained without privacy."""
    found = report["generated"].get("privacy", {})
    return PrivacyStatement.from_plain({key: value for key, value in found.items() if key != "available"},
                                       "the report") if found.get("available") else None


def rows_of(said: PrivacyStatement) -> list[list[str]]:
    """What a statement covers, item by item."""
    ledger = said.ledger
    return [["epsilon", f"{said.epsilon:.4g}"],
            ["delta", f"{said.delta:g}"],
            ["unit whose presence is hidden", f"{ledger.unit}, of {ledger.count} {UNITS[ledger.unit]}"],
            ["steps", str(ledger.steps)],
            *(row for spent in ledger.history for row in (
                ["noise multiplier", f"{spent.noise_multiplier:.6g}, in {spent.steps} steps"],
                ["sampling rate", f"{spent.sampling_rate:.6g} of the {UNITS[ledger.unit]} in a step"])),
            ["gradients clipped to", f"{ledger.max_grad_norm:g} (L2 norm, of each {ledger.unit})"],
            ["noise levels per image", str(said.noise_multiplicity)],
            ["accountant", f"{ledger.accountant}, {ledger.version}"],
            ["first stage", said.first_stage],
            ["weights at the start", said.start],
            *([["trained", said.trained]] if said.trained else []),
            *(["with what it stands on", line] for line in said.together())]
