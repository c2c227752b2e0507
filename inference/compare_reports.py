"""evaluate.py --compare: reports of generated volumes side by side, on the terminal and, where asked for, as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edm3d.reporting import side_by_side_page
from edm3d.reporting.report import opening
from edm3d.reporting.side_by_side import compared, read_reports
from edm3d.utils import locks
from edm3d.utils.files import check_folder


def compare_reports(paths: Sequence[Path], dest: Path | None, overwrite: bool = False) -> dict[str, Any]:
    """Show reports (report.json, or their folders) beside each other; writes compare.json and compare.html into dest.

    What compare.json holds. ValueError for what is no report of generated volumes.
    """
    reports = read_reports(paths)
    result = {**opening("reports side by side", ()), **compared(reports)}
    content = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if dest is not None:
        check_folder(dest, f"--dest {dest}")
        with locks.output(dest, is_folder=True):
            side_by_side_page.check_dest(dest, [each.sha256 for each in reports], overwrite)
            side_by_side_page.write(dest, result, content)
    click.echo(side_by_side_page.text(result))
    if dest is not None:
        click.echo(f"Page      {dest / side_by_side_page.PAGE}")
    return result
