"""The doctor passes on a sound machine, and names what is wrong on another."""

import os
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path

import pytest
import torch

import dataset_tool
from edm3d.inference.model import Model
from edm3d.training import doctor, selftest
from tests.commands import call
from tests.conftest import ROOT
from tests.test_frame import pip_name


def findings(said: str) -> dict[str, tuple[str, str]]:
    """Check -> verdict and text."""
    rows = [(line[:4], line[6:18].strip(), line[19:]) for line in said.splitlines()]
    return {name: (verdict, text) for verdict, name, text in rows}


CHECKS = ["packages", "device", "memory", "disk", "convolution", "bf16", "toy road"]
NOBODY = "import pwd\ndef getpwuid(uid): raise KeyError(f'uid not found: {uid}')\npwd.getpwuid = getpwuid\n"


def in_process(folder: Path, *lines: str, code: int = 0) -> str:
    """What a fresh interpreter says in a folder, for a user without a name or a home, as in a container."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(NOBODY)
    (folder / "here").mkdir()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder / "here", env=env, text=True,
                         capture_output=True, timeout=120, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert [*(folder / "here").iterdir()] == []
    return ran.stdout


def test_a_sound_machine_passes_also_for_a_user_whom_it_does_not_know(tmp_path):
    """MONAI asks for a name when it is imported, which is one of the checks."""
    said = in_process(tmp_path, "import dataset_tool", "dataset_tool.main(['doctor', '--device', 'cpu'])")
    found = findings(said)
    assert [*found] == CHECKS
    assert {verdict for verdict, _ in found.values()} == {"pass"}, said
    assert f"torch {torch.__version__}" in found["packages"][1] and "to the last bit" in found["toy road"][1]


def test_packages_are_those_of_the_project(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {pip_name(name) for name in doctor.PACKAGES} == {pip_name(n.split(">")[0]) for n in project["dependencies"]}
    assert f"torch>={'.'.join(map(str, doctor.OLDEST_TORCH))}" in project["dependencies"]


def test_a_library_that_is_missing_hides_no_other_check(tmp_path):
    said = in_process(tmp_path, "import sys", "sys.modules['numpy'] = sys.modules['h5py'] = None",
                      "import dataset_tool", "dataset_tool.main(['doctor', '--device', 'cpu'])", code=1)
    found = findings(said)
    assert [*found] == CHECKS and {verdict for verdict, _ in found.values()} == {"FAIL"}
    assert "numpy cannot be imported (ModuleNotFoundError: " in found["packages"][1]
    assert "h5py cannot be imported" in found["packages"][1] and f"torch {torch.__version__}" in found["packages"][1]


def test_an_error_stays_one_line_and_what_ends_a_run_no_more_than_its_check(monkeypatch, tmp_path):
    def stop(device_type: str) -> str:
        raise SystemExit("asked\nto stop " + "x" * 9999)

    monkeypatch.setattr(doctor, "toy_road", stop)
    monkeypatch.setattr(doctor, "packages", lambda: "left out here")
    *found, last = doctor.examine(Path("/proc/nowhere"), "cpu")
    assert [name for name, passed, _ in found if not passed] == ["disk"]  # nobody writes there
    assert not last.passed and last.text.startswith("SystemExit: asked to stop xxx") and len(last.text) < 1100


def broken(monkeypatch, name: str) -> str:
    """Break one thing; what its check says."""
    if name == "packages":
        monkeypatch.setattr(doctor, "PACKAGES", ("torch", "nothing-like-it"))
    elif name == "disk":
        monkeypatch.setattr(doctor, "LEAST_DISK", 2 ** 80)
    elif name == "convolution":
        wrong = lambda *inputs, padding: torch.nn.functional.conv3d(*inputs, padding=padding) * (  # noqa: E731
            1 + 1e-3 * (inputs[0].dtype == torch.float32))
        monkeypatch.setattr(selftest, "CONVOLUTIONS", {**selftest.CONVOLUTIONS, 3: wrong})
    elif name == "bf16":
        monkeypatch.setattr(selftest, "bf16_warnings", lambda dims, device: [f"Warning: {dims}D is off by 7%"])
    else:
        load = Model.load

        def other(*arguments, run_root: str, **options) -> Model:
            model = load(*arguments, run_root=run_root, **options)
            if run_root.endswith("twice"):
                next(iter(model.snapshot.weights.values())).view(-1)[0] += 1e-6
            return model

        monkeypatch.setattr(Model, "load", other)
    result = call(dataset_tool.main, "doctor", "--device", "cpu")
    assert result.exit_code == 1
    found = findings(result.stdout)
    assert [each for each, (verdict, _) in found.items() if verdict == "FAIL"] == [name]
    return found[name][1]


@pytest.mark.parametrize(("name", "said"), [
    ("packages", "nothing-like-it is not installed; found Python"), ("disk", "a run takes more than"),
    ("convolution", "a 3D float32 convolution on cpu is off by"), ("bf16", "2D is off by 7%; 3D is off by 7%"),
    ("toy road", "does not end with the weights of one that was not")])
def test_what_is_wrong_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, name, said):
    if name != "packages":
        monkeypatch.setattr(doctor, "packages", lambda: "left out here")
    if name != "toy road":
        monkeypatch.setattr(doctor, "toy_road", lambda device_type: "left out here")
    with chdir(tmp_path):
        assert said in broken(monkeypatch, name)
