"""Code of the user's own in his working folder: which module a name means, what fails, and the example of the docs."""

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from edm3d.formats.facts import Facts
from edm3d.inference.batch import Sample
from edm3d.inference.real_pictures import real_pictures
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.unet import ADMUNet
from edm3d.training.build import check_dataset
from edm3d.utils.config import build, build_from_file, find_target

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^`([\w./]+)`[^\n]*\n(?:[^`\n][^\n]*\n)*\n```(?:python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = ["training.network.model.model_channels=8", "training.network.model.channel_mult=[1]",
         "training.network.model.num_blocks=1", "training.network.model.attention_levels=[]",
         "training.options.batch_size=4", "training.options.kimg_per_tick=0.008", "training.options.num_threads=1",
         "training.options.num_workers=1", "training.options.device=cpu", "training.options.precision=fp32",
         "training.validation.max_items=2"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty working folder; paths and modules are put back when a test is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "networks"]:  # that of a checkout
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__spec__", "")):
            del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Python files by name, __ for a folder."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def error_of(name: str) -> str:
    """What is said of a target that cannot be had."""
    with pytest.raises(ValueError) as error:
        find_target(name, "training.dataset")
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- which module a name means ----


def test_a_module_of_the_working_folder_is_found_and_built(own):
    write(own, mydata_a="class X:\n    def __init__(self, size: int):\n        self.size = size\n")
    assert build({"_target_": "mydata_a.X", "size": 3}).size == 3
    assert sys.path.index(str(own)) > sys.path.index(sysconfig.get_path("purelib"))


def test_ours_come_first_and_the_users_networks_beside_them(own):
    write(own, networks__unet="class ADMUNet:\n    pass\n", networks__mine="class Net:\n    pass\n")
    assert find_target("networks.unet.ADMUNet", "x") is ADMUNet
    assert find_target("networks.mine.Net", "x").__module__ == "networks.mine"
    assert type(build({"_target_": "networks.mine.Net"})).__module__ == "networks.mine"
    assert str(ROOT) in [str(Path(place).resolve()) for place in sys.path]  # hidden only meanwhile


def test_nothing_of_the_user_stands_before_a_library_or_ours(own, monkeypatch):
    write(own, colorsys="raise OSError('shadow')\n", textwrap="raise OSError('shadow')\n", utils="MINE = 1\n",
          mydata_b="import colorsys, utils\ncolorsys.rgb_to_hsv\nX = lambda: utils.MINE\n")
    for name in ("colorsys", "textwrap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert find_target("mydata_b.X", "x")() == 1  # his utils.py, not the folder of the checkout
    assert find_target("textwrap.dedent", "x").__module__ == "textwrap"
    from edm3d.utils import files
    assert Path(files.__file__).parent == ROOT / "utils"


def test_scripts_started_from_elsewhere_find_it_too(own):
    write(own, mydata_c="class X:\n    pass\n", networks__mine="class Net:\n    pass\n")
    look = "import sys; sys.path[0] = {!r}\nfrom edm3d.utils.config import find_target\n" \
        "print(find_target('mydata_c.X', ''), find_target('networks.mine.Net', ''))"
    for place in (str(ROOT), "/nowhere"):  # python CHECKOUT/train.py, and an installed command
        ran = subprocess.run([sys.executable, "-c", look.format(place)], cwd=own, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert ran.stdout == "<class 'mydata_c.X'> <class 'networks.mine.Net'>\n", ran.stderr


# ---- what fails ----


@pytest.mark.parametrize(("text", "wanted"), [
    ("import numpy\n\nnumpy.nothing\n", "mydata_d.py, line 3: AttributeError"),
    ("a = 1\nx = = 2\n", "mydata_d.py, line 2: SyntaxError"),
    ("def f():\n    return 1 / 0\n\nf()\n", "mydata_d.py, line 2: ZeroDivisionError"),
    ("\nimport no_such_library\n", "mydata_d.py, line 2: ModuleNotFoundError: No module named 'no_such_library'"),
    ("import json\njson.loads('{')\n", "mydata_d.py, line 2: JSONDecodeError"),  # raised in a library
    ("from helper_d import a\n", "helper_d.py, line 4: NameError"),
])
def test_an_import_that_fails_in_the_users_module_is_said_with_file_and_line(own, text, wanted):
    write(own, mydata_d=text, helper_d="\n\n\nb\n")
    said = error_of("mydata_d.X")
    assert said.startswith("training.dataset._target_=mydata_d.X: cannot be imported (")
    assert str(own) in said and wanted in said


def test_an_error_of_ours_is_said_at_the_line_of_the_user_that_led_to_it(own):
    write(own, mydata_h="from edm3d.formats.intensity import Intensity\n\nINTENSITY = Intensity(1.0, 0.0, True, '')\n")
    assert "mydata_h.py, line 3: ValueError: intensity range [1.0, 0.0]" in error_of("mydata_h.X")


def test_real_items_of_an_own_data_set_are_shown_where_it_is_trusted(own):
    write(own, mydata_i="import numpy as np\nfrom edm3d.inference.batch import Sample\n\n\nclass X:\n"
          "    def __init__(self, path: str, split: str = 'train'):\n        assert split == 'val'\n\n"
          "    def __len__(self):\n        return 3\n\n"
          "    def __getitem__(self, index):\n        return Sample(np.full((1, 2, 2), index / 2, np.float32))\n")
    with h5py.File("own.h5", "w") as file:  # of a format of the user's
        file["x"] = 1
    node = {"_target_": "mydata_i.X", "path": "own.h5", "split": "train"}
    facts = Facts("own.h5", "hash", spatial_shape=(2, 2))
    config = {"training": {"dataset": node, "validation": {"split": "val"}}}
    snapshot = Snapshot("diffusion", {}, facts, (1, 2, 2), config=config)
    shown, why = real_pictures(snapshot, None, 2, trust=False)
    assert shown == [] and why == "mydata_i.X is a class of your own, which may read them by sampling.trust=true"
    shown, why = real_pictures(snapshot, None, 2, trust=True)
    assert why == ""
    assert [float(image.mean()) for image, _ in shown] == [0.5, 1]  # 0 and 1 as stored, from 0 to 1
    assert real_pictures(replace(snapshot, shape=(2, 2, 2)), None, 2, trust=True) == (
        [], "own.h5 holds images of 1 channels, the network was trained on 2")


def test_what_is_not_there_is_said_with_where_it_was_looked_for(own):
    write(own, mydata_e="class CardiacDataset:\n    pass\n")
    assert error_of("mydata_f.X").endswith(f"(no module 'mydata_f', installed or in the working folder {own})")
    assert error_of("mydata_e.CardiacDatset").endswith("has no 'CardiacDatset'; did you mean 'CardiacDataset'?)")
    assert str(own / "mydata_e.py") in error_of("mydata_e.Y")
    assert error_of("networks.unet.UNetx").endswith("unet.py has no 'UNetx'; did you mean 'UNet'?)")


def test_files_name_the_users_classes_only_where_they_are_trusted(own):
    text = "open('ran', 'w')\nclass Net:\n    pass\n"
    write(own, mynet_g=text, networks__mine=text)
    for name in ("mynet_g.Net", "networks.mine.Net"):
        with pytest.raises(ValueError, match=rf"net\.pt: .*_target_={name} is not on the list .*sampling\.trust=true"):
            build_from_file({"_target_": name}, "net.pt")
        assert not Path("ran").exists()  # it was not even imported
    assert type(build_from_file({"_target_": "mynet_g.Net"}, "net.pt", trust=True)).__name__ == "Net"


class Items:
    """Data sets that lack something, by what is changed of a good one."""

    def __init__(self, **changes: object):
        self.shape, self.facts = (1, 4, 6), Facts("here", "hash", ("image",), spatial_shape=(4, 6))
        self.item = Sample(np.zeros((1, 4, 6), np.float32), np.zeros((4, 6), np.uint8))
        vars(self).update(changes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.item


@pytest.mark.parametrize(("dataset", "wanted"), [
    ([], "has no shape, facts"),
    (Items(facts={}), "its facts are a dict"),
    (Items(item=np.zeros(3)), "its items ndarray"),
    (Items(facts=Facts("here", "hash")), "facts.spatial_shape is [], wanted [4, 6]"),
    (Items(item=Sample(np.zeros((1, 6, 4)))), "the shape of item 0 without channels is [6, 4], wanted [4, 6]"),
    (Items(item=Sample(np.zeros((1, 4, 6)), np.zeros((1, 4, 6)))), "the shape of its label map is [1, 4, 6]"),
])
def test_a_data_set_that_lacks_something_is_refused_before_it_is_used(dataset, wanted):
    check_dataset(Items(), "mydata.X")
    check_dataset(Items(item=Items().item._replace(label=None)), "mydata.X")
    with pytest.raises(ValueError) as error:
        check_dataset(dataset, "mydata.X")
    assert str(error.value).startswith("training.dataset._target_=mydata.X: ") and wanted in str(error.value)


# ---- the example of docs/own_code.md ----


@pytest.fixture
def example(tmp_path) -> Path:
    """A working folder with the files that the page shows, and twenty hearts."""
    text = (ROOT / "docs/own_code.md").read_text(encoding="utf-8")
    files = dict(BLOCK.findall(text))
    assert set(files) == {"mydata.py", "configs/mine.yaml"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "data/hearts").mkdir(parents=True)
    for i in range(20):
        image = np.full((8, 8, 6), -200 + 40 * i, np.int16)
        np.savez(tmp_path / f"data/hearts/{i:02}.npz", image=image, mask=np.full((8, 8, 6), i % 3, np.uint8))
    return tmp_path


def shown_commands() -> list[list[str]]:
    """The commands of the page, as words after `edm3d`."""
    text = (ROOT / "docs/own_code.md").read_text(encoding="utf-8")
    return [line.split()[1:] for line in text.splitlines() if line.startswith("edm3d ")]


def run(folder: Path, script: str, *words: str) -> str:
    """What a script of the checkout says in a folder."""
    ran = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *words], cwd=folder, capture_output=True,
                         text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_the_example_trains_and_draws_in_a_folder_of_its_own(example):
    train, generate, first_stage = shown_commands()
    said = run(example, *train, *SMALL, "training.options.total_kimg=0.016")
    assert "Note: training.dataset: mydata.CardiacDataset does not take path, cache, size of " \
        "training.datasets.volumes.VolumesDataset; left out" in said
    assert "18 items of [1, 8, 8, 6]" in said and "Done: results/00000-mine" in said
    said = run(example, *generate, "sampling.seeds=0-1", "sampling.sampler.num_steps=2", "sampling.device=cpu")
    assert {path.name for path in (example / "results/mine").iterdir()} == {
        "samples.h5", "samples.png", "nifti", "nifti.json"}
    shown = run(example, *first_stage, "training.options.dry_run=true")
    assert "_target_: mydata.CardiacDataset" in shown and "folder: data/hearts" in shown and "cache" not in \
        shown.partition("training:")[2].partition("network:")[0]


def test_what_the_example_knows_of_its_data_goes_into_samples(example, monkeypatch):
    monkeypatch.chdir(example)
    names: dict = {"__name__": "mydata"}
    exec((example / "mydata.py").read_text(), names)
    dataset = names["CardiacDataset"]("data/hearts", "val")
    check_dataset(dataset, "mydata.CardiacDataset")
    assert [float(dataset[i].image.max()) for i in range(len(dataset))] == pytest.approx([-0.1, 0.9])  # 160 and 560 HU
    assert dataset.facts.intensity.from_network(np.float32(0.9)) == pytest.approx(560)
    assert dataset.facts.spacing.tolist() == [1.5, 1.5, 1.5] and dataset[1].label.max() == 1  # item 19
