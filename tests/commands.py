"""Running the commands of the scripts in a test."""

from pathlib import Path

from click.testing import CliRunner, Result


def call(command, *arguments: str) -> Result:
    """Run a command of ours in this process."""
    return CliRunner().invoke(command, [*arguments])


def succeed(command, *arguments: str) -> str:
    """Run a command that must work; its output."""
    result = call(command, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def files_below(folder: Path) -> dict[str, int]:
    """Every file with its size, but the logs."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder: Path, command, *arguments: str) -> str:
    """Run a command that must fail with one line, notes aside, leaving no file behind; the line."""
    before = files_below(folder)
    result = call(command, *arguments)
    assert result.exit_code not in (0, None), result.output
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("Note: ")]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
    assert "Traceback" not in result.output
    assert files_below(folder) == before
    return lines[0]
