"""The report of a first stage: what its sections may ask for, and what stands around them.

Keys of its report.json, besides those of reporting.report and of its sections:
  real.{path, content_hash, split, num}, autoencoder.{path, hash, network, posterior, latent_shape, reduction, tile}
  refiner.{path, hash, sampler}    where one refined what comes back
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from torch import nn

from edm3d.reporting.cases import DecodedCase
from edm3d.reporting.html import html_facts
from edm3d.reporting.report import Frame
from edm3d.reporting.section import DECODED, Context, Section


@dataclass(frozen=True, kw_only=True)
class RoundTrip(Context):
    """The autoencoder, and volumes taken through it by number; min_psnr in dB that it must reach, if any is asked for.
    """

    net: nn.Module
    decoded: Callable[[Sequence[int]], Iterable[DecodedCase]]
    min_psnr: float | None = None


def verdict_line(found: dict) -> str:
    """Whether a first stage reaches the PSNR that diffusion asks for, in words."""
    if found["passed"] is None:
        return f"PSNR {found['psnr_db']:.2f} dB; none was asked for"
    said = "passes" if found["passed"] else "fails"
    return f"{said}: PSNR {found['psnr_db']:.2f} dB, min_psnr {found['wanted']:g} dB"


def head(report: dict, facts: list[tuple[str, str]]) -> str:
    """Top of the page."""
    real = report["real"]
    number = (str(real["num"]), f"volumes of split {real['split']!r}")
    return (f"<h1>First stage</h1>\n<p class=\"lead\">{escape(report['title'])}, {escape(report['date'])}.</p>\n"
            f"<p>Verdict: <b>{escape(verdict_line(report['verdict']))}</b></p>\n{html_facts([*facts, number])}")


def origin(report: dict) -> list[list[str]]:
    """What was measured."""
    real, coder = report["real"], report["autoencoder"]
    return [["real", f"{real['path']} (content {real['content_hash'][:16]}), split {real['split']}"],
            ["autoencoder", f"{coder['path']} ({coder['hash'][:16]}), {coder['network']}"],
            ["decoded", f"in tiles of {coder['tile']}" if coder["tile"] else "whole"]]


def text(sections: Sequence[Section], report: dict) -> str:
    """What all sections say, and the verdict, for the terminal."""
    lines = (line for section in sections for line in section.lines(report))
    return "\n".join([
        f"First stage {report['autoencoder']['path']} on {report['real']['num']} volumes of split "
        f"{report['real']['split']!r}", *lines, f"Verdict     {verdict_line(report['verdict'])}"])


FRAME = Frame(DECODED, lambda context, name, ids: {"id": ids}, head, origin)
