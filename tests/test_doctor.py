"""The doctor passes on a sound machine, and names what is wrong on another."""

import tomllib
from contextlib import chdir

import pytest
import torch

import dataset_tool
from edm3d.training import doctor
from tests.commands import call, succeed
from tests.test_frame import pip_name


def findings(said: str) -> dict[str, tuple[str, str]]:
    """Check -> verdict and text."""
    rows = [(line[:4], line[6:18].strip(), line[19:]) for line in said.splitlines()]
    return {name: (verdict, text) for verdict, name, text in rows}


def test_a_sound_machine_passes(tmp_path):
    with chdir(tmp_path):
        found = findings(succeed(dataset_tool.main, "doctor", "--device", "cpu"))
        assert [*tmp_path.iterdir()] == []
    assert [*found] == ["packages", "device", "memory", "disk", "convolution", "bf16", "toy road"]
    assert {verdict for verdict, _ in found.values()} == {"pass"}
    assert f"torch {torch.__version__}" in found["packages"][1] and "to the last bit" in found["toy road"][1]


def test_packages_are_those_of_the_project(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {pip_name(name) for name in doctor.PACKAGES} == {pip_name(n.split(">")[0]) for n in project["dependencies"]}
    assert f"torch>={'.'.join(map(str, doctor.OLDEST_TORCH))}" in project["dependencies"]


def broken(monkeypatch, name: str) -> str:
    """Break one thing; what its check says."""
    if name == "packages":
        monkeypatch.setattr(doctor, "PACKAGES", ("torch", "nothing-like-it"))
    elif name == "disk":
        monkeypatch.setattr(doctor, "LEAST_DISK", 2 ** 80)
    elif name == "convolution":
        wrong = lambda *inputs, padding: torch.nn.functional.conv3d(*inputs, padding=padding) * (  # noqa: E731
            1 + 1e-3 * (inputs[0].dtype == torch.float32))
        monkeypatch.setattr(doctor, "CONVOLUTIONS", {3: wrong})
    elif name == "bf16":
        monkeypatch.setattr(doctor, "bf16_warnings", lambda dims, device: [f"Warning: {dims}D is off by 7%"])
    else:
        load = doctor.Model.load

        def other(*arguments, run_root: str, **options) -> doctor.Model:
            model = load(*arguments, run_root=run_root, **options)
            if run_root.endswith("twice"):
                next(iter(model.snapshot.weights.values())).view(-1)[0] += 1e-6
            return model

        monkeypatch.setattr(doctor.Model, "load", other)
    result = call(dataset_tool.main, "doctor", "--device", "cpu")
    assert result.exit_code == 1
    found = findings(result.stdout)
    assert [each for each, (verdict, _) in found.items() if verdict == "FAIL"] == [name]
    return found[name][1]


@pytest.mark.parametrize(("name", "said"), [
    ("packages", "not installed: nothing-like-it"), ("disk", "a run takes more than"),
    ("convolution", "a 3D float32 convolution on cpu is off by"), ("bf16", "2D is off by 7%; 3D is off by 7%"),
    ("toy road", "does not end with the weights of one that was not")])
def test_what_is_wrong_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, name, said):
    if name != "toy road":
        monkeypatch.setattr(doctor, "toy_road", lambda device_type: "left out here")
    with chdir(tmp_path):
        assert said in broken(monkeypatch, name)
