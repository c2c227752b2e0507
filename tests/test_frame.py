"""What stands around the code holds together: pins, commands, paths and the map of the project."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

DIRECT = {
    "torch", "hydra-core", "omegaconf", "numpy", "scipy", "h5py", "click", "psutil", "monai", "einops", "opacus",
    "nibabel", "matplotlib", "safetensors", "tensorboard", "tqdm", "pytest", "pytest-xdist", "ruff", "pre-commit",
    "hatchling",
}  # fmt: skip
DEMO_SCRIPTS = ["dataset_tool.py", "train.py", "dataset_tool.py", "train.py", "train.py", "generate.py",
                "evaluate.py"]
MACHINE_PATH = re.compile(rb"(^|[^A-Za-z0-9_.])/(work|farm|root|tmp/lab)/")
NO_MAP_NEEDED = {"data", "results"}  # made by the commands, in no fresh clone
README_LINES = 115  # two screens of text
CASES = {"echo", "BraTS", "semantic", "private", "PET", "EDM weights", "several GPUs", "resume"}


def lines_of(text: str) -> list[str]:
    """Lines without comments and blanks."""
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def pip_name(name: str) -> str:
    """PyPI's own normal form: pre_commit and Pre.Commit are pre-commit."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(text: str) -> dict[str, str]:
    """Name -> version of every line of a constraints file."""
    return {pip_name(name): version for name, version in (line.split("==") for line in lines_of(text))}


def demo_commands(makefile: str) -> list[str]:
    """The commands that `make demo` shows and runs."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    return [line.strip() for line in recipe.splitlines() if not line.strip().startswith("@")]


def fenced_blocks(markdown: str) -> list[list[str]]:
    """The commands of each fenced block, comments and prompts taken off."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [[re.sub(r"\s+#.*$|^#.*$|^\$ ", "", line).strip() for line in block.splitlines()] for block in blocks]


def pages(root: Path) -> list[Path]:
    """All pages of text."""
    return [root / name for name in ("README.md", "CONTRIBUTING.md")] + sorted(
        path for folder in ("docs", "benchmarks") for path in (root / folder).glob("*.md"))


def link_targets(markdown: str) -> list[str]:
    """What links and images outside of code lead to, anchors included; web addresses left out."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"""\]\(<?([^)\s>]+)|(?:src|href)=["']([^"']+)|^\[[^\]]+\]:\s*(\S+)""", prose, re.MULTILINE)
    return [target for target in map("".join, targets) if not re.match(r"[a-z]+:", target)]


def relative_links(markdown: str) -> list[str]:
    """Files and folders that links and images lead to, without their anchors."""
    return [link for link in (target.split("#")[0] for target in link_targets(markdown)) if link]


def anchors(markdown: str) -> set[str]:
    """The headings of a page as links name them: lower case, hyphens for blanks, no punctuation."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def cases(readme: str) -> dict[str, tuple[str, str]]:
    """Case -> page and what is said of it, of the rows `| [case: more](page) | command |`."""
    rows = re.findall(r"^\| \[([^\]:]+)[^\]]*\]\((\S+)\) \| (.+) \|$", readme, re.MULTILINE)
    return {case: (page, said) for case, page, said in rows}


def places_named(architecture: str) -> set[str]:
    """Backticked folders (`name/`) and Python files (`name.py`) in the section 'Where things are'."""
    section = re.search(r"^## Where things are\n(.*?)(?=^## |\Z)", architecture, re.MULTILINE | re.DOTALL)
    assert section, "docs/architecture.md has no section '## Where things are'"
    return set(re.findall(r"`([\w./-]+/|[\w./-]+\.py)`", section.group(1)))


def map_faults(named: set[str], files: list[Path]) -> list[str]:
    """What the map names that is not there, and top-level folders and scripts that it leaves out."""
    folders = {f"{parent.as_posix()}/" for path in files for parent in path.parents if parent != Path(".")}
    scripts = {path.as_posix() for path in files if path.suffix == ".py"}
    wanted = {p for p in folders | scripts if p.rstrip("/").count("/") == 0 and not p.startswith(".")}
    known = folders | scripts | {f"{name}/" for name in NO_MAP_NEEDED}
    return [f"named but not there: {p}" for p in sorted(named - known)] + [
        f"there but not named: {p}" for p in sorted(wanted - named)
    ]


def test_requirements_are_the_agreed_names(root):
    names = [pip_name(line) for line in lines_of((root / "requirements.txt").read_text())]
    assert len(names) == len(set(names)) and set(names) == DIRECT


def test_every_requirement_has_an_exact_pin(root):
    pins = pins_of((root / "constraints.txt").read_text())
    assert sorted(DIRECT - set(pins)) == []
    assert pins["torch"] == "2.13.0"
    assert [name for name, version in pins.items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "environment.yml"])
def test_no_index_and_no_package_the_project_avoids(root, name):
    text = (root / name).read_text()
    assert re.findall(r"https?:|--(?:extra-)?index-url|--find-links", text) == []
    assert re.findall(r"^\W*(?:torchvision|lightning|pytorch-lightning|lpips)\b", text, re.MULTILINE) == []


def test_conda_users_get_the_same_packages(root):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert packages == {"pip": ["-r requirements.txt", "-c constraints.txt"]}
    requires = tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (python, requires) == ("python=3.11", ">=3.11")


def test_make_installs_what_the_files_say(root):
    assert "pip install --no-input --disable-pip-version-check -r requirements.txt -c constraints.txt" in (
        root / "Makefile"
    ).read_text()


def test_demo_is_the_seven_commands_of_the_readme(root):
    commands = demo_commands((root / "Makefile").read_text())
    assert [next(word for word in command.split() if word.endswith(".py")) for command in commands] == DEMO_SCRIPTS
    blocks = [[line for line in block if line] for block in fenced_blocks((root / "README.md").read_text())]
    assert commands in blocks, "no fenced block of README.md holds exactly the commands of `make demo`, in order"


def test_ci_runs_make_test(root):
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert [line for line in lines_of(script.read_text()) if line.startswith("make ")] == ["make test </dev/null"]


def test_no_file_names_a_place_on_somebodys_machine(root, own_files):
    assert len(own_files) > 20, "the walk found next to nothing"
    faults = [
        f"{path}:{number}"
        for path in own_files
        for number, line in enumerate((root / path).read_bytes().split(b"\n"), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert faults == []


@pytest.mark.parametrize(("line", "found"), [("cd /" + "work/x", True), ("see ../work/x and a/root/b", False)])
def test_machine_paths_are_recognised(line, found):
    assert bool(MACHINE_PATH.search(line.encode())) is found


def test_architecture_names_what_is_there(root, own_files):
    assert map_faults(places_named((root / "docs" / "architecture.md").read_text()), own_files) == []


def test_map_faults_are_named_both_ways():
    text = "# A\n## Where things are\n| `networks/` | `networks/unet.py` | `gone.py` | `data/` |\n## More\n`other/`\n"
    files = [Path("networks/unet.py"), Path("train.py"), Path(".ci/run"), Path("Makefile")]
    assert map_faults(places_named(text), files) == ["named but not there: gone.py", "there but not named: train.py"]


def test_links_lead_somewhere(root):
    links = [(page.relative_to(root), link) for page in pages(root) for link in relative_links(page.read_text())]
    assert any(page.name == "README.md" for page, _ in links), "the search found no link in README.md"
    assert [f"{page}: {link}" for page, link in links if not (root / page.parent / link).exists()] == []


def test_anchors_are_headings(root):
    targets = [(page, *target.split("#")) for page in pages(root) for target in link_targets(page.read_text())
               if "#" in target]
    assert len(targets) > 10, "the search found next to no anchor"
    assert [f"{page.name}: {link}#{anchor}" for page, link, anchor in targets
            if anchor not in anchors((page.parent / link if link else page).read_text())] == []


def test_anchors_are_made_as_links_name_them():
    text = "# DIFF-3: echo `volumes`\n```\n# no\n```\n### MONAI's way, a_b\n"
    assert anchors(text) == {"diff-3-echo-volumes", "monais-way-a_b"}


def test_readme_is_two_screens(root):
    lines = (root / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES, "what a stranger does not need at first goes to docs/"
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []


def test_every_case_has_one_command_and_one_page(root):
    readme = (root / "README.md").read_text()
    found = cases(readme)
    assert sorted(CASES - set(found)) == []
    assert [case for case, (_, said) in found.items()
            if not re.fullmatch(r"`(python|torchrun) [^`]+`(, or `make [a-z-]+`)?", said)
            and "planned, not there yet" not in said] == []
    own, = re.findall(r"^## Your own data\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    assert "docs/own_data.md" in relative_links(own)


def test_links_are_recognised():
    text = "![a](docs/a.png) [b](b.md#part) [c](#here) [d](https://x.org/e.md)\n```\n[f](f.md)\n```\n" \
        "`[g](g.md)` <img src=\"h.png\"> [i](../i.md \"title\")\n[j]: j.md\n"
    assert relative_links(text) == ["docs/a.png", "b.md", "h.png", "../i.md", "j.md"]


def test_licence_is_apache_2(root):
    text = (root / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"] and "END OF TERMS AND CONDITIONS" in text
