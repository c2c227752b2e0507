"""What commands are called where people read of them, in a checkout and installed."""

import pytest

from edm3d.utils import commands
from edm3d.utils.commands import command


@pytest.mark.parametrize(("folder", "lines"), [
    ("edm3d", ["python train.py -cn=mine", "python dataset_tool.py encode --dest 'a b.h5'", "python generate.py",
               "python evaluate.py"]),
    ("utils", ["edm3d train -cn=mine", "edm3d data encode --dest 'a b.h5'", "edm3d generate", "edm3d evaluate"])])
def test_commands_are_scripts_in_a_checkout_and_parts_of_edm3d_elsewhere(tmp_path, monkeypatch, folder, lines):
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [command("train", "-cn=mine"), command("data", "encode", "--dest", "a b.h5"), command("generate"),
            command("evaluate")] == lines


def test_from_another_folder_a_script_goes_by_its_path(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "-cn=mine") == f"python {root / 'train.py'} -cn=mine"


def test_this_is_a_checkout_whose_scripts_are_there(root, monkeypatch):
    monkeypatch.chdir(root)
    assert command("data", "plan") == "python dataset_tool.py plan"
    assert all((root / script).is_file() for script in commands.SCRIPTS.values())
