"""The report of a comparison: report.json, report.html (one file, works offline), figures/*.png, cases.csv.

Keys of report.json; a number that does not exist is null, a part that could not be had is
{"available": false, "reason": "..."}:
  title, date, command, versions.{python,torch,numpy,scipy,monai}, definitions.NAME
  real.{path, content_hash, reference, num}         what generated volumes are held against
  generated.{path, sha256, num, seeds, snapshot, snapshot_hash, sampling, labels}
  noise.{available, num, seed}                      the yardstick: decoded N(0, sigma_data^2) latents
  metrics.NAME.{unit, real_mean, real_std, real_undefined, ... generated_*, noise_*,
                ks, floor_median, floor_p95, floor_p99, noise}       noise = KS distance of the yardstick to real
  shares.NAME.{real, generated, generated_low, generated_high, noise}                    shares of cases, 0 to 1
  intensity.CHANNEL, spectrum.CHANNEL.{distance, floor_median, floor_p95, floor_p99, noise, *_curve}
  ms_ssim.CHANNEL.{available, real_mean, real_std, generated_mean, generated_std, generated_max, volumes, pairs, scales}
  first_stage.{available, split, num, dice.CLASS, dice_min.CLASS, psnr_db, ceiling.{available, psnr_db, gap_db}}
NAME of metrics: lv_volume, la_volume, CLASS_volume, wall_thickness, intensity_mean, intensity_std (with the channel's
name in front if there are several); NAME of shares: cavity_enclosed.
"""

import base64
import json
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from reporting import charts
from reporting.features import Layout, Measured
from reporting.montages import png_bytes
from reporting.tables import number, percent, plus_minus
from utils.files import atomic_path, write_text

TELLING = 0.5  # a 99 % floor above this passes almost anything

TITLES = {
    "lv_volume": "LV volume", "la_volume": "LA volume", "wall_thickness": "wall thickness",
    "cavity_enclosed": "cavity is one piece, enclosed by myocardium",
}
DEFINITIONS = {
    "KS": "Kolmogorov-Smirnov distance between generated and real cases, 0 to 1. A case without a defined value "
          "(no wall, say) counts as lying beyond all others.",
    "floor": "The same distance between two samples of one distribution at the same numbers, by simulation: median, "
             "95 % and 99 % points. Below the 99 % point the two sets cannot be told apart by this scalar.",
    "noise": "The yardstick: standard normal latents times sigma_data, decoded by the first stage of the snapshot. "
             "What a diffusion model that learned nothing would score.",
    "structure volume": "Voxels of the class times the voxel size (mL; in 2D the area).",
    "wall thickness": "Estimated from the label map, in mm, by one estimator for all sets (metrics/clinical.py).",
    "cavity_enclosed": "The cavity is one component and, mitral plane aside, touches nothing but myocardium "
                       "(metrics/clinical.py). Interval: Wilson, 95 %.",
    "intensity distance": "Wasserstein-1 distance between mean histograms, as a share of the intensity range; its "
                          "floor by resampling the real set.",
    "spectrum distance": "Root mean square over frequencies of the difference in mean log radial power, in dB; its "
                         "floor by resampling the real set.",
    "MS-SSIM": "Multi-scale structural similarity of random pairs of one set (3 scales, 2 for sides under 28; windows "
               "of 7 voxels). Generated far above real: too little variety; 1 = copies.",
    "PSNR": "10 log10(range^2 / mean square error), mean over held-out cases. The ceiling is the PSNR of the image "
            "without speckle against the speckled one: no first stage can know the speckle.",
    "Dice": "Mean over held-out cases of the overlap between given and decoded labels, per class.",
}


def write_report(dest: Path, report: dict, figures: dict[str, bytes], cases: str) -> None:
    """Write all files of a report into a folder, each whole or not at all; the page last.

    ValueError, with nothing written, for a number that does not exist and is not null.
    """
    write_files(dest, report, html_page, figures, cases)


def write_files(dest: Path, report: dict, make_page: Callable[[dict, dict[str, bytes]], str],
                figures: dict[str, bytes], cases: str) -> None:
    """Write report.json, the page, the figures and the table of cases into a folder, as `write_report` says."""
    text, page = json.dumps(report, indent=2, allow_nan=False) + "\n", make_page(report, figures)
    (dest / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        with atomic_path(dest / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    write_text(dest / "cases.csv", cases)
    write_text(dest / "report.json", text)
    write_text(dest / "report.html", page)


def comparison_figures(report: dict, sets: dict[str, Measured | None], layout: Layout) -> dict[str, Figure]:
    """Charts of everything compared, by the name of their file; sets: real, generated, noise."""
    metrics = report["metrics"]
    figures = {"overview": charts.overview_chart(metrics, {name: title(name) for name in metrics})}
    for name, row in metrics.items():
        values = {key: measured and measured.scalars[name] for key, measured in sets.items()}
        figures[f"distribution_{name}"] = charts.distribution_chart(values, title(name), row["unit"])
    for channel in layout.channels:
        row, name = report["intensity"][channel], f"intensity of {channel}"
        figures[f"histogram_{channel}"] = charts.histogram_chart(row, name, layout.unit)
        figures[f"spectrum_{channel}"] = charts.spectrum_chart(report["spectrum"][channel])
    return figures


def title(name: str) -> str:
    """A scalar's name for people."""
    return TITLES.get(name, name.replace("_", " "))


def html_page(report: dict, figures: dict[str, bytes]) -> str:
    """The page, with style and figures inside it."""
    return html_frame(report["title"], [
        _head(report), _comparison(report, figures), _pictures(figures), _texture(report, figures),
        _variety(report, figures), _first_stage(report, figures), _origin(report)])


def html_frame(title: str, sections: list[str]) -> str:
    """A page of sections, with its style."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(sections))


# ---- sections ----


def _head(report: dict) -> str:
    real, generated = report["real"], report["generated"]
    facts = [(str(generated["num"]), "generated volumes"), (str(real["num"]), "real volumes")]
    if report["metrics"]:
        rows = report["metrics"].values()
        within = sum(row["ks"] <= row["floor_p99"] for row in rows)
        telling = all(row["floor_p99"] < TELLING for row in rows)
        facts.append((f"{within} of {len(rows)}", "scalars within the 99 % floor") if telling else
                     ("too few", "volumes to tell the sets apart by a scalar"))
    facts += [(percent(row["generated"]), title(name)) for name, row in report["shares"].items()]
    dice = [value for value in report["first_stage"].get("dice", {}).values() if value is not None]
    if dice:
        facts.append((number(min(dice)), "least Dice of the first stage"))
    return (f"<h1>Real against generated</h1>\n<p class=\"lead\">{escape(report['title'])}, {escape(report['date'])}. "
            f"Held against: {escape(real['reference'])}.</p>\n{html_facts(facts)}")


def _comparison(report: dict, figures: dict[str, bytes]) -> str:
    rows = [
        [title(name) + (f" [{row['unit']}]" if row["unit"] else ""), plus_minus(row, "real"),
         plus_minus(row, "generated"), plus_minus(row, "noise"), number(row["ks"]), number(row["floor_median"]),
         number(row["floor_p99"]), number(row["noise"])]
        for name, row in report["metrics"].items()
    ]
    head = ["", "real", "generated", "noise", "KS", "floor, median", "floor, 99 %", "KS of noise"]
    body = "<h2>Scalars</h2>" + html_table(head, rows, main=4)
    undefined = [f"{title(name)}: {row['real_undefined']} real, {row['generated_undefined']} generated"
                 for name, row in report["metrics"].items() if row["real_undefined"] or row["generated_undefined"]]
    if undefined:
        body += f"<p class=note>Undefined cases, counted as beyond all others: {escape('; '.join(undefined))}.</p>"
    body += _noise_note(report["noise"]) + _labels_note(report["generated"])
    if report["shares"]:
        rows = [[title(name), percent(row["real"]), percent(row["generated"]),
                 f"{percent(row['generated_low'])} to {percent(row['generated_high'])}", percent(row["noise"])]
                for name, row in report["shares"].items()]
        body += html_table(["share of cases", "real", "generated", "95 % interval", "noise"], rows, main=2)
    overview = html_figure("overview", figures, "Left is better; on the grey band the sets look alike.")
    body += f'<div class="wide">{overview}</div>'
    names = [name for name in figures if name.startswith("distribution_")]
    return body + html_grid(names, figures)


def _pictures(figures: dict[str, bytes]) -> str:
    return ("<h2>Pictures</h2><p class=note>The first cases of each set, not a choice. Slices through the middle of "
            "what is labelled, interpolated for display. Black is the minimum and white the 99.8 % point of the real "
            "images shown, for all alike.</p>" + html_dark("samples", figures))


def _texture(report: dict, figures: dict[str, bytes]) -> str:
    rows = [
        [f"{text}, {channel}", number(row["distance"], digits), number(row["floor_median"], digits),
         number(row["floor_p99"], digits), number(row["noise"], digits)]
        for key, text, digits in (("intensity", "histogram", 4), ("spectrum", "spectrum [dB]", 2))
        for channel, row in report[key].items()
    ]
    names = [name for name in figures if name.startswith(("histogram_", "spectrum_"))]
    head = ["distance", "generated", "floor, median", "floor, 99 %", "noise"]
    return "<h2>Intensity and texture</h2>" + html_table(head, rows, main=1) + html_grid(names, figures)


def _variety(report: dict, figures: dict[str, bytes]) -> str:
    body = "<h2>Variety</h2>"
    for channel, row in report["ms_ssim"].items():
        if row["available"]:
            cells = [channel, plus_minus(row, "real"), plus_minus(row, "generated"), number(row["generated_max"]),
                     str(row["pairs"])]
            head = ["MS-SSIM of pairs", "real", "generated", "largest, generated", "pairs"]
            body += html_table(head, [cells], main=2)
            body += html_grid([f"ms_ssim_{channel}"], figures)
        else:
            body += html_missing(f"MS-SSIM of {channel}", row["reason"])
    return body


def _first_stage(report: dict, figures: dict[str, bytes]) -> str:
    part = report["first_stage"]
    body = "<h2>First stage</h2>"
    if not part["available"]:
        return body + html_missing("First stage", part["reason"])
    body += f"<p>Decoded again from their latents: {part['num']} volumes of split {escape(repr(part['split']))}.</p>"
    if part["dice"]:
        rows = [[name, number(part["dice"][name]), number(part["dice_min"][name])] for name in part["dice"]]
        body += html_table(["Dice", "mean", "worst case"], rows, main=1)
    ceiling = part["ceiling"]
    rows = [["reconstruction", f"{part['psnr_db']:.2f}"]]
    if ceiling["available"]:
        rows += [["image without speckle (ceiling)", f"{ceiling['psnr_db']:.2f}"], ["gap", f"{ceiling['gap_db']:.2f}"]]
    body += html_table(["PSNR", "dB"], rows, main=1)
    if not ceiling["available"]:
        body += html_missing("Ceiling of the PSNR", ceiling["reason"])
    return body + html_dark("first_stage", figures)


def _origin(report: dict) -> str:
    real, generated = report["real"], report["generated"]
    rows = [
        ["real", f"{real['path']} (content {real['content_hash'][:16]})"],
        ["held against", real["reference"]],
        ["generated", f"{generated['path']} (sha256 {generated['sha256'][:16]})"],
        ["seeds", generated["seeds"]],
        ["snapshot", f"{generated['snapshot']} ({generated['snapshot_hash'][:16]})"],
        ["sampling", json.dumps(generated["sampling"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())],
        ["command", report["command"]],
    ]
    what = [[name, text] for name, text in report["definitions"].items()]
    return (f"<h2>Where this comes from</h2>{html_table(None, rows, kind='plain')}"
            f"<h2>What the words mean</h2>{html_table(None, what, kind='plain')}")


# ---- parts ----


def _noise_note(noise: dict) -> str:
    return "" if noise["available"] else html_missing("Decoded noise", noise["reason"])


def _labels_note(generated: dict) -> str:
    return "" if generated["labels"]["available"] else html_missing("Label maps", generated["labels"]["reason"])


def html_facts(facts: list[tuple[str, str]]) -> str:
    """Figures to see first, each with what it is."""
    cards = "".join(f'<div class="fact"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
                    for value, text in facts)
    return f'<div class="facts">{cards}</div>'


def html_missing(what: str, reason: str) -> str:
    return f"<p class=missing>{escape(what)}: not available: {escape(reason)}</p>"


def html_table(head: list[str] | None, rows: Iterable[list[str]], main: int | None = None, kind: str = "") -> str:
    """An HTML table; column `main` holds the figure to look at."""
    top = "" if head is None else "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    lines = []
    for row in rows:
        cells = [f'<td class="main">{escape(cell)}</td>' if i == main else f"<td>{escape(cell)}</td>"
                 for i, cell in enumerate(row)]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll"><table class="{kind}">{top}{"".join(lines)}</table></div>'


def html_figure(name: str, figures: dict[str, bytes], caption: str = "") -> str:
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name]).decode()
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(name.replace("_", " "))}" src="data:image/png;base64,{data}">{note}</figure>'


def html_grid(names: list[str], figures: dict[str, bytes]) -> str:
    return f'<div class="charts">{"".join(html_figure(name, figures) for name in names)}</div>'


def html_dark(name: str, figures: dict[str, bytes]) -> str:
    return f'<div class="dark">{html_figure(name, figures)}</div>' if name in figures else ""


def figure_pngs(figures: dict[str, Figure]) -> dict[str, bytes]:
    """PNG bytes of named figures."""
    return {name: png_bytes(figure) for name, figure in figures.items()}
