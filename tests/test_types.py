"""What travels between rooms is typed: no string keys on what loaders return, no comparison with a task's name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm3d.training.tasks import TASKS

# what loaders return, by the names of variables and attributes that hold it, and by the calls that give it
HOLDERS = {"snapshot", "state", "facts", "meta", "stage", "first_stage", "scaling", "record", "codec", "latents_file"}
LOADERS = {"Snapshot.read", "TrainingState.read", "Facts.from_plain", "CarriedStage.from_plain", "SamplesFile",
           "LatentsFile", "VolumesFile", "open_latents", "read_state", "load_network", "checkpoint.load"}
MAY = ("formats/", "inference/snapshot.py")  # where files are taken apart
REGISTRY = "training/tasks/"


def last_name(node: ast.expr) -> str:
    """The name of a variable or attribute, `` for other expressions."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def is_loaded(node: ast.expr) -> bool:
    """Whether an expression is what a loader returns: by its name, or a call of one, or the content of that."""
    if isinstance(node, ast.Attribute) and node.attr == "content":
        return is_loaded(node.value)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        return any(called == name or called.endswith(f".{name}") for name in LOADERS)
    return last_name(node).removesuffix("s") in HOLDERS or last_name(node) in HOLDERS


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a string in quotes."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def keyed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines at which a string key is asked of what a loader returns, and how."""
    for node in ast.walk(tree):
        subscript = isinstance(node, ast.Subscript) and is_text(node.slice) and is_loaded(node.value)
        get = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop") \
            and node.args and is_text(node.args[0]) and is_loaded(node.func.value)
        if subscript or get:
            yield node.lineno, ast.unparse(node)


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines at which something is compared with a task's name, and how."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            sides = [part.value for part in ast.walk(node.pattern) if isinstance(part, ast.MatchValue)]
        else:
            continue
        named = [part for side in sides for part in ([side] if not isinstance(side, (ast.List, ast.Tuple, ast.Set))
                                                     else side.elts)]
        if any(is_text(part) and part.value in TASKS for part in named):
            line = sides[0].lineno if sides else 0
            yield line, ast.unparse(node).splitlines()[0]


def type_faults(root: Path, files: list[Path]) -> list[str]:
    """Every breach in the Python files among files (relative to root), tests aside, as 'file:line: what'."""
    faults = []
    for path in files:
        name = path.as_posix()
        if path.suffix != ".py" or path.parts[0] == "tests":
            continue
        tree = ast.parse((root / path).read_text(encoding="utf-8"), name)
        if not name.startswith(MAY):
            faults += [f"{name}:{line}: a string key of what a loader returns: {what}" for line, what in keyed(tree)]
        if not name.startswith(REGISTRY):
            faults += [f"{name}:{line}: compares with a task's name: {what}" for line, what in compared(tree)]
    return faults


def test_what_loaders_return_has_no_string_keys_and_tasks_are_asked(root, own_files):
    assert {"training", "inference", "benchmarks"} <= {path.parts[0] for path in own_files}, "the walk missed the house"
    assert type_faults(root, own_files) == []


def test_no_two_classes_are_named_alike(root, own_files):
    homes: dict[str, list[str]] = {}
    for path in own_files:
        if path.suffix == ".py" and path.parts[0] != "tests":
            for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name, []).append(path.as_posix())
    assert len(homes) > 100, "the walk missed the house"
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


@pytest.mark.parametrize(("name", "source", "wanted"), [
    ("training/a.py", "x = 1\ny = snapshot['task']\n", ["training/a.py:2: a string key of what a loader returns: s"]),
    ("training/a.py", "self.state['ema']", ["training/a.py:1"]),
    ("evaluate.py", "x = task.snapshot.facts.get('channels')", ["evaluate.py:1"]),
    ("inference/a.py", "samples.meta['sampling']['precision']", ["inference/a.py:1"]),
    ("inference/a.py", "for s in snapshots:\n    snapshots[0]['a']\nstates['a']", ["inference/a.py:3"]),
    ("inference/a.py", "net = build(Snapshot.read(path, 'diffusion')['network'])", ["inference/a.py:1"]),
    ("inference/a.py", "checkpoint.load(path, 'state').content['ema']", ["inference/a.py:1"]),
    ("reporting/a.py", "training.resume.read_state(path, record).pop('ema')", ["reporting/a.py:1"]),
    ("utils/a.py", "stage['network'] = None", ["utils/a.py:1"]),
    ("training/a.py", "if training['task'] == 'diffusion':\n    pass", ["training/a.py:1: compares"]),
    ("training/a.py", "x = 'autoencoder' != name", ["training/a.py:1"]),
    ("training/a.py", "x = name in ('diffusion', 'other')", ["training/a.py:1"]),
    ("benchmarks/a.py", "match task:\n    case 'diffusion' | 'other':\n        pass", ["benchmarks/a.py:2"]),
    ("inference/snapshot.py", "snapshot['task'] == 'diffusion'", ["inference/snapshot.py:1: compares"]),
])
def test_breaches_are_named(tmp_path, name, source, wanted):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(source, encoding="utf-8")
    faults = type_faults(tmp_path, [Path(name)])
    assert len(faults) == len(wanted) and all(f.startswith(w) for f, w in zip(faults, wanted)), faults


@pytest.mark.parametrize(("name", "source"), [
    ("formats/a.py", "state['ema']; meta.get('sampling')"),
    ("inference/snapshot.py", "found = checkpoint.load(path, 'snapshot').content['task']"),
    ("training/tasks/a.py", "x = name == 'diffusion'"),
    ("training/a.py", "snapshot.config['training']; state.modules[phase.name]; facts[0]; status['status']"),
    ("training/a.py", "x = Snapshot.read(path, 'diffusion'); y = name == 'edm'; record.append('autoencoder')"),
    ("tests/a.py", "snapshot['task'] == 'diffusion'"),
])
def test_what_is_allowed_passes(tmp_path, name, source):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(source, encoding="utf-8")
    assert type_faults(tmp_path, [Path(name)]) == []
