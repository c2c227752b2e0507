"""Layers: imports only go down, and the modules of pure mathematics see no rank, path, config or logger."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

LAYERS = {
    "utils": 0,
    "formats": 1, "physics": 1, "metrics": 1, "networks": 1,
    "samplers": 2, "reporting": 2,
    "inference": 3,
    "training": 4,
    "train": 5, "generate": 5, "dataset_tool": 5, "evaluate": 5,
    "edm3d": 6,
}  # fmt: skip
FREE = {"tests", "benchmarks", "docs"}  # may import anything of ours; nothing in a layer may import them
PURE = {"physics", "metrics", "networks", "samplers"}
IMPURE = ("os", "pathlib", "logging", "hydra", "omegaconf", "torch.distributed")
ONLY_IN = {
    "hydra": {"edm3d.utils.compose"},
    "torch.distributed": {"edm3d.utils.distributed", "edm3d.utils.sharding"},
}


class Import(NamedTuple):
    """One name that a file imports, dotted, with the line it stands on."""

    name: str
    line: int


def module_name(path: Path) -> str:
    """networks/unet.py -> edm3d.networks.unet; networks/__init__.py -> edm3d.networks; edm3d/__init__.py -> edm3d."""
    parts = ("edm3d", *path.with_suffix("").parts[path.parts[0] == "edm3d":])
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of(name: str) -> str:
    """The folder or script of a module of ours: edm3d.networks.unet -> networks; edm3d itself for what is in edm3d/."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else parts[0]


def imports_of(source: str, path: Path) -> list[Import]:
    """Everything a file imports, at any depth in it.

    Import statements, importlib and __import__ with a literal name, and torch.distributed used as an attribute.
    """
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join(base + (node.module.split(".") if node.module else []))
            found += [Import(f"{prefix}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [Import(arg.value, node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            found.append(Import("torch.distributed", node.lineno))
    return found


def is_within(name: str, package: str) -> bool:
    """Whether the dotted name is the package or something inside it."""
    return name == package or name.startswith(package + ".")


def resolve(name: str, modules: set[str]) -> str | None:
    """The module of ours that holds a dotted name, None if it is not ours."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in modules), None)


def layer_faults(path: Path, imports: list[Import]) -> list[str]:
    """Imports of one file that go up, sideways or where only others may go."""
    here = module_name(path)
    place, faults = path.parts[0].removesuffix(".py"), []
    if place not in LAYERS:
        return [f"{path}:1: '{place}' has no layer; give it one in LAYERS"]
    for name, line in imports:
        first = name.split(".")[0]
        if first in FREE:
            faults.append(f"{path}:{line}: {place} imports {name}, which is no part of the project")
        if first in LAYERS and first != "edm3d":
            faults.append(f"{path}:{line}: {place} imports {name}; ours is edm3d.{name}")
        there = place_of(name)
        if first == "edm3d" and there != place and LAYERS[there] >= LAYERS[place]:
            faults.append(f"{path}:{line}: {place} (layer {LAYERS[place]}) imports {name} (layer {LAYERS[there]})")
        for package, allowed in ONLY_IN.items():
            if is_within(name, package) and here not in allowed:
                faults.append(f"{path}:{line}: {here} imports {name}; only {', '.join(sorted(allowed))} may")
        if place in PURE and any(is_within(name, package) for package in IMPURE):
            faults.append(f"{path}:{line}: {place} is pure mathematics and imports {name}")
    return faults


def purity_faults(paths: dict[str, Path], imports: dict[str, list[Import]]) -> list[str]:
    """Imports of pure modules from modules of ours outside them that deal, near or far, with what they must not see."""
    modules = set(paths)
    impure = {m for m in modules for name, _ in imports[m] if any(is_within(name, package) for package in IMPURE)}
    while grown := {m for m in modules - impure for name, _ in imports[m] if resolve(name, modules) in impure}:
        impure |= grown
    return [
        f"{paths[here]}:{line}: {here} is pure mathematics and imports {name}, which sees paths, ranks or configs"
        for here in modules if place_of(here) in PURE
        for name, line in imports[here]
        if (there := resolve(name, modules)) in impure and place_of(there) not in PURE
    ]  # fmt: skip


def cycle_faults(paths: dict[str, Path], imports: dict[str, list[Import]]) -> list[str]:
    """The first cycle among our modules, each step with the line that takes it."""
    steps = {
        here: {there: line for name, line in imports[here] if (there := resolve(name, set(paths))) not in (None, here)}
        for here in paths
    }
    try:
        TopologicalSorter(steps).prepare()
    except CycleError as error:
        ring = error.args[1][::-1]  # graphlib walks from the imported to the importer
        places = [f"{paths[a]}:{steps[a][b]}" for a, b in pairwise(ring)]
        return [f"{places[0]}: imports go in a circle: {' -> '.join(places)} -> {paths[ring[-1]]}"]
    return []


def import_faults(root: Path, files: list[Path]) -> list[str]:
    """Every import against the layers in the Python files among files (relative to root), as 'file:line: what'."""
    ours = [path for path in files if path.suffix == ".py" and path.parts[0] not in FREE]
    paths = {module_name(path): path for path in ours}
    imports = {name: imports_of((root / path).read_text(encoding="utf-8"), path) for name, path in paths.items()}
    faults = [fault for name, path in paths.items() for fault in layer_faults(path, imports[name])]
    return sorted(set(faults + purity_faults(paths, imports) + cycle_faults(paths, imports)))


def test_own_imports_go_down(root, own_files):
    assert {"networks", "training", "utils"} <= {path.parts[0] for path in own_files}, "the walk missed the project"
    assert import_faults(root, own_files) == []


def test_mathematics_names_no_keys_of_configs(root, own_files):
    """Whose words are those of the layers that read them."""
    texts = {path: [node.value for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)]
             for path in own_files if path.suffix == ".py" and path.parts[0] in PURE - {"networks"}}
    assert Path("samplers/guidance.py") in texts
    assert {path: key for path, found in texts.items() for text in found
            for key in re.findall(r"\b(?:sampling|training)\.[a-z_]+", text)} == {}


HOUSE = {
    "utils/compose.py": "import hydra\n",
    "utils/config.py": "from pathlib import Path\n",
    "utils/distributed.py": "import torch.distributed as dist\n",
    "utils/sharding.py": "from torch.distributed.fsdp import fully_shard\nfrom edm3d.utils import distributed\n",
    "utils/shapes.py": "import math\n",
    "physics/phantoms.py": "import numpy as np\nfrom edm3d.utils.shapes import pad\n",
    "metrics/image.py": "import numpy as np\n",
    "networks/__init__.py": "from .unet import UNet\n",
    "networks/layers.py": "import torch\n",
    "networks/unet.py": "from edm3d.networks import layers\nfrom edm3d.networks.layers import Linear\n",
    "samplers/edm.py": "from edm3d.networks.unet import UNet\n",
    "reporting/tables.py": "from pathlib import Path\nfrom edm3d.metrics import image\n",
    "training/loop.py": "import edm3d.utils.distributed\nfrom edm3d.samplers.edm import sample\n",
    "train.py": "import click\nfrom edm3d.training import loop\n",
    "tests/test_loop.py": "import train, networks, hydra, torch.distributed\n",
}


def build_project(folder: Path, changes: dict[str, str]) -> list[str]:
    """Faults of the small project above with some files added or replaced."""
    for name, source in (HOUSE | changes).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")
    return import_faults(folder, [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))])


def test_sound_project_has_no_fault(tmp_path):
    assert build_project(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("name", "source", "place"),
    [
        ("utils/stats.py", "import math\nimport edm3d.networks.unet\n", "utils/stats.py:2: utils (layer 0) imports"),
        ("networks/vae.py", "from edm3d.physics.phantoms import x\n", "networks/vae.py:1: networks (layer 1) imports"),
        ("networks/vae.py", "from ..physics import phantoms\n", "networks/vae.py:1: networks (layer 1) imports"),
        ("samplers/ode.py", "import edm3d.reporting.tables\n", "samplers/ode.py:1: samplers (layer 2)"),
        ("samplers/ode.py", "def f():\n    from edm3d.training import loop\n", "samplers/ode.py:2: samplers (layer 2)"),
        ("training/ema.py", "import importlib\nm = importlib.import_module('edm3d.train')\n", "training/ema.py:2"),
        ("generate.py", "from edm3d import train\n", "generate.py:1: generate (layer 5) imports edm3d.train"),
        ("training/ema.py", "from tests.conftest import x\n", "training/ema.py:1: training imports tests"),
        ("training/ema.py", "import hydra.utils\n", "training/ema.py:1: edm3d.training.ema imports hydra.util"),
        ("training/ema.py", "from hydra import compose\n", "training/ema.py:1: edm3d.training.ema imports hydra"),
        ("training/ema.py", "from torch import distributed\n", "training/ema.py:1: edm3d.training.ema imports"),
        ("training/ema.py", "import torch\n\ntorch.distributed.barrier()\n", "training/ema.py:3: edm3d.training.ema"),
        ("networks/vae.py", "import os.path\n", "networks/vae.py:1: networks is pure mathematics and imports os.path"),
        ("metrics/table.py", "from pathlib import Path\n", "metrics/table.py:1: metrics is pure mathematics"),
        ("physics/pet.py", "import logging\n", "physics/pet.py:1: physics is pure mathematics and imports logging"),
        ("samplers/ode.py", "import omegaconf\n", "samplers/ode.py:1: samplers is pure mathematics"),
        ("physics/pet.py", "from edm3d.utils import config\n", "physics/pet.py:1: edm3d.physics.pet is pure"),
        ("training/ema.py", "from utils import stats\n", "training/ema.py:1: training imports utils.stats; ours is"),
        ("cooking/pan.py", "import math\n", "cooking/pan.py:1: 'cooking' has no layer"),
        ("help.py", "import math\n", "help.py:1: 'help' has no layer"),
    ],
)
def test_wrong_import_is_named_with_file_and_line(tmp_path, name, source, place):
    faults = build_project(tmp_path, {name: source})
    assert any(fault.startswith(place) for fault in faults), faults


def test_pure_module_may_not_reach_a_path_through_another_module(tmp_path):
    faults = build_project(tmp_path, {"utils/shapes.py": "import edm3d.utils.disk\n", "utils/disk.py": "import os\n"})
    assert [fault.split(": ")[0] for fault in faults] == ["physics/phantoms.py:2"]


def test_circle_is_named_in_the_order_it_is_walked(tmp_path):
    circle = {
        "training/a.py": "\nimport edm3d.training.b\n",
        "training/b.py": "def f():\n\n    from . import c\n",
        "training/c.py": "from edm3d.training.a import x\n",
    }
    (fault,) = build_project(tmp_path, circle)
    ring = ["training/a.py:2", "training/b.py:3", "training/c.py:1"]
    walks = [" -> ".join([*ring[i:], *ring[:i], ring[i].split(":")[0]]) for i in range(3)]  # it may start anywhere
    assert any(fault.endswith(walk) for walk in walks), fault
