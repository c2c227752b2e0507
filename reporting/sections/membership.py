"""Whether the network's loss gives away what it was trained on."""

from collections.abc import Mapping
from html import escape
from typing import Any

from edm3d.reporting.audit import Attack
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.copies import NO_TRAIN

BY_WORD = ("It rests on your word (--private) that --train is what the network learnt from: a privately trained "
           "snapshot does not say what it saw.")


class MembershipAttack(Section):
    """The AUC of attacks by the loss of the denoiser.

    membership.{available, members, held_out, draws, hidden, seconds, by_word}     by_word: that --train is what a
                                                                     private training saw is the user's word alone
    membership.mean.{auc, low, high}, membership.relative.{...}, membership.levels[].{sigma, auc, low, high}
    """

    words = {"membership": "AUC of telling training from held-out volumes by the loss of the network that drew the "
                           "samples, with the same noise for all: 0.5 nothing is given away, 1 all. Relative: the loss "
                           "beside how far a volume is from the mean of all."}
    sets = ()

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        part = NO_TRAIN if context.audit is None else context.audit.membership
        if isinstance(part, str):
            return {"membership": missing(part)}
        return {"membership": {
            "available": True, "members": part.members, "held_out": part.held_out, "draws": part.draws,
            "hidden": list(part.hidden), "seconds": part.seconds, "by_word": part.by_word, "mean": part.mean._asdict(),
            "relative": part.relative._asdict(),
            "levels": [{"sigma": sigma, **attack._asdict()} for sigma, attack in part.by_sigma.items()]}}

    def lines(self, report: dict) -> list[str]:
        part = report["membership"]
        if not part["available"]:
            return [f"Membership: not available: {part['reason']}"]
        return [f"Membership: AUC {in_words(part['mean'])}, relative {in_words(part['relative'])}, {part['members']} "
                f"training and {part['held_out']} held-out volumes ({part['seconds']:.0f} s)"
                + f". {BY_WORD}" * part["by_word"]]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part = report["membership"]
        if not part["available"]:
            return "<h2>Membership</h2>" + html_missing("Membership", part)
        rows = [["mean of all levels", in_words(part["mean"])], ["relative", in_words(part["relative"])],
                *([f"sigma {row['sigma']:g}", in_words(row)] for row in part["levels"])]
        hidden = f" The network was not told: {escape(', '.join(part['hidden']))}." if part["hidden"] else ""
        said = f"<p class=note>{escape(BY_WORD)}</p>" if part["by_word"] else ""
        return (f"<h2>Membership</h2>{said}<p>{part['members']} training and {part['held_out']} held-out volumes, "
                f"{part['draws']} draws of noise at each level, {part['seconds']:.0f} s.{hidden}</p>"
                + html_table(["attack by the loss", "AUC (95 %)"], rows, main=1))


def in_words(attack: Attack | Mapping[str, float]) -> str:
    """AUC with its interval."""
    row = attack if isinstance(attack, Mapping) else attack._asdict()
    return f"{row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
