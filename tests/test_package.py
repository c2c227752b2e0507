"""The wheel: one package, and the whole road from it, outside the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_frame import DIRECT, lines_of, pip_name
from tests.test_imports import LAYERS

DEVELOPMENT = {"pytest", "pytest-xdist", "ruff", "pre-commit", "hatchling"}
TINY = ["training.options.batch_size=4", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.008",
        "training.options.num_threads=1", "training.options.device=cpu", "training.options.min_psnr=null",
        "training.validation.max_items=2"]
NETS = {"echo_vae": ["training.network.channels=[4,4,8]"],
        "echo_edm": ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1]",
                     "training.network.model.attention_levels=[]"]}
DRAW = ["-cn=echo_edm", "sampling.seeds=0-1", "sampling.num_threads=1", "sampling.device=cpu",
        "sampling.sampler.num_steps=2"]
LOOK = """
import numpy, sys, torch
torch.set_num_threads(1)
import edm3d
from edm3d.formats.samples import SamplesFile
samples = edm3d.load("echo_edm", device="cpu").sample(range(2), num_steps=2)
file = SamplesFile("results/echo/samples.h5")
assert all(numpy.array_equal(file.array(name), samples.arrays[name]) for name in file.names)
print(edm3d.__file__, *sorted(name for name in sys.modules if name in NAMES))
""".replace("NAMES", repr(sorted({*LAYERS} - {"edm3d"})))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the commands of a fresh environment into which a wheel of this checkout was installed.

    Its requirements it borrows from the environment of the tests: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-index", "--no-deps"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], folder)
    wheel, = folder.glob("*.whl")
    venv.create(folder / "env")
    python = folder / "env/bin/python"
    run([*pip, "--python", str(python), "install", *offline, str(wheel)], folder)
    site, = (folder / "env/lib").glob("python*/site-packages")
    assert sorted(os.listdir(site)) == ["edm3d", f"edm3d-{version_of_project()}.dist-info"]
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def version_of_project() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def run(words: list[str], folder: Path, code: int = 0) -> str:
    """Run a command in a folder, with nothing of the checkout on its path; what it says."""
    ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
                         env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_the_whole_road_from_a_wheel(installed, tmp_path):
    edm, python = str(installed / "edm3d"), str(installed / "python")
    run([edm, "data", "phantom", "--dest", "data/echo.h5", "--num", "10", "--size", "8"], tmp_path)
    run([edm, "train", "-cn=echo_vae", *NETS["echo_vae"], *TINY], tmp_path)
    run([edm, "data", "encode", "--autoencoder", "echo_vae", "--source", "data/echo.h5", "--dest",
         "data/echo_latents.h5"], tmp_path)
    said = run([python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "edm3d.train",
                "-cn=echo_edm", *NETS["echo_edm"], *TINY], tmp_path)
    assert "Done: results/00001-echo_edm" in said
    run([edm, "generate", *DRAW], tmp_path)
    run([edm, "evaluate", "--real", "data/echo.h5", "--split", "all", "--generated", "results/echo/samples.h5",
         "--dest", "report", "--num-noise", "0"], tmp_path)
    assert (tmp_path / "report/report.html").is_file()
    where, *clashing = run([python, "-c", LOOK], tmp_path).split()
    assert Path(where).parent.parent.name == "site-packages" and clashing == []


def test_the_command_names_its_parts(installed, tmp_path):
    said = run([str(installed / "edm3d"), "--help"], tmp_path)
    names = re.findall(r"^  (\w+) ", said.split("Commands:")[1], re.MULTILINE)
    assert names == ["data", "evaluate", "generate", "train"]
    look = "from edm3d.utils.log import less_memory; print(less_memory())"
    assert "edm3d data plan says how much" in run([str(installed / "python"), "-c", look], tmp_path)
    said = run([str(installed / "edm3d"), "train"], tmp_path, code=2)
    assert "Usage: edm3d train [OPTIONS]" in said and "--config-name" in said


def test_a_wheel_needs_what_runs_need(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {pip_name(re.match(r"[\w.-]+", each)[0]) for each in project["dependencies"]}
    assert names == DIRECT - DEVELOPMENT
    first, second = (root / "requirements.txt").read_text(encoding="utf-8").split("# Development")
    assert {pip_name(line) for line in lines_of(second.partition("\n")[2])} == DEVELOPMENT


def test_a_wheel_holds_every_layer(root):
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    places = build["targets"]["wheel"]["force-include"]
    assert {name.removesuffix(".py") for name in places} == {*LAYERS, "configs"} - {"edm3d"}
    assert all(place == f"edm3d/{name}" for name, place in places.items())


def test_train_stays_a_function_where_the_script_is_imported():
    import edm3d.train
    from edm3d.train import main

    assert callable(edm3d.train) and main.name and not hasattr(edm3d.train, "main")


def test_torch_is_not_imported_before_it_is_needed():
    code = "import sys, edm3d.__main__; print('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], ROOT).strip() == "False"

