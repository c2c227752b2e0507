"""Experiments and groups of the user's own, other targets than those of a YAML, and keys typed at a wrong place."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import dataset_tool
import generate
import train
from edm3d.training.build import check_training
from edm3d.training.from_python import train_from
from edm3d.utils.compose import added_where_new, compose, config_folders, shipped_configs
from edm3d.utils.compose_errors import config_groups, known_as, paths_of
from edm3d.utils.config import find_target
from edm3d.utils.config_hash import config_hash
from edm3d.utils.retarget import Layer, leaves, writers
from tests.commands import refused

SGD = "training.optimizer._target_=torch.optim.SGD"
NETWORK = "# @package training.network.model\n_target_: mynet_configs.Net\nwidth: 8\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a module, which every test may import."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet_configs.py").write_text(
        "class Net:\n    def __init__(self, in_channels: int, out_channels: int, width: int = 4):\n        pass\n\n"
        "class Data:\n    def __init__(self, folder: str, split: str = 'train'):\n        pass\n\n"
        "class Any:\n    def __init__(self, **rest: object):\n        pass\n")
    return tmp_path


def write(folder: Path, **texts: str) -> None:
    """YAMLs by name, __ for a folder."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def own(below: str, parent: str = "voxels_edm") -> str:
    """An experiment that starts from another."""
    return f"defaults:\n  - {parent}\n  - _self_\n{below}"


def error_of(*overrides: str, name: str = "echo_edm", config_dir: Path | None = None) -> str:
    """What is said of overrides that do not fit."""
    with pytest.raises(ValueError) as error:
        check_training(compose(name, overrides, config_dir)["training"])
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- folders ----


def test_folders_are_searched_in_the_order_given_working_shipped(here):
    assert config_folders() == [shipped_configs()]
    (here / "configs").mkdir()
    (here / "more").mkdir()
    assert config_folders(Path("more")) == [here / "more", here / "configs", shipped_configs()]
    assert config_folders(Path("configs")) == [here / "configs", shipped_configs()]


def test_the_shipped_folder_is_one_where_it_is_that_of_the_working_folder(monkeypatch):
    monkeypatch.chdir(shipped_configs().parent)
    assert config_folders() == config_folders(Path("configs")) == [shipped_configs()]


def test_own_experiments_and_groups_go_together_with_shipped_ones(here):
    write(here / "configs", mine=own("training:\n  options:\n    seed: 5\n"), network__mine=NETWORK,
          optimizer__adam="# @package training.optimizer\n_target_: torch.optim.Adam\nlr: 7\n")
    write(here / "it's 1, more", mine=own("training:\n  options:\n    seed: 6\n"))
    assert compose("mine")["training"]["options"]["seed"] == 5
    assert compose("mine", (), here / "it's 1, more")["training"]["options"]["seed"] == 6
    training = compose("mine", ["network=mine"], here / "it's 1, more")["training"]
    assert training["network"]["model"] == {"_target_": "mynet_configs.Net", "width": 8}
    for given in (None, here / "it's 1, more"):  # optimizer/adam.yaml of the working folder, before ours
        assert "eps" not in compose("voxels_edm", (), given)["training"]["optimizer"]


def test_errors_list_what_all_folders_have(here):
    write(here / "configs", heart=own(""), network__mine=NETWORK)
    write(here / "more", lung=own(""), network__other=NETWORK)
    assert "no such experiment in more/ or configs/ or the shipped configs/; did you mean 'heart'?" in error_of(
        name="hearts", config_dir=Path("more"))
    for typed in ("configs/heart.yaml", "heart.yaml", "configs/heart"):
        said = error_of(name=typed)
        assert said.startswith(f"-cn={typed}: no such") and said.endswith("did you mean 'heart'?")
    assert all(name in error_of(name="zzz", config_dir=Path("more")) for name in ("heart", "lung", "echo_vae"))
    said = error_of("network=zzz", config_dir=Path("more"))
    assert all(name in said for name in ("adm", "mine", "other"))
    assert "--config-dir nowhere: no such folder" in error_of(config_dir=Path("nowhere"))


def test_a_group_file_that_does_not_say_what_it_fills_is_named(here):
    write(here / "configs", network__mine="_target_: mynet_configs.Net\n", odd__x="a: 1\n")
    assert error_of("network=mine") == (f"{here}/configs/network/mine.yaml: does not say what it fills; wanted its "
                                        "first line to be '# @package training.network.model'")
    assert "odd" not in config_groups(config_folders())
    write(here / "configs", network__mine=f"# why\n\n{NETWORK}")
    assert config_groups(config_folders())["network"].without == []


@pytest.mark.parametrize(("command", "words"), [
    (train.main, ["training.options.dry_run=true"]), (generate.main, []),
    (dataset_tool.main, ["--shape", "1", "8", "8"]),
])  # fmt: skip
def test_commands_take_a_folder(here, command, words):
    write(here / "more", mine=own("training:\n  task: dance\n"))
    first = ["plan"] * (command is dataset_tool.main)
    said = CliRunner().invoke(command, [*first, "-cn=mine", "--config-dir", "more", *words])
    assert "dance" in said.output + str(said.exception) and "no such experiment" not in said.output
    assert "no such folder" in refused(here, command, *first, "-cn=mine", "--config-dir", "less", *words)


# ---- another target ----


def composed(capsys, name: str, *overrides: str) -> tuple[dict, list[str]]:
    """An experiment with overrides, held against its targets, and the notes on it."""
    config = compose(name, overrides)
    check_training(config["training"])
    return config["training"], capsys.readouterr().err.splitlines()


def test_keys_of_the_old_target_are_left_out_with_a_note(capsys):
    training, notes = composed(capsys, "echo_edm", SGD, "training.optimizer.momentum=0.9")
    assert training["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 2e-3, "fused": True, "momentum": 0.9}
    assert notes == ["Note: training.optimizer: torch.optim.SGD does not take betas, eps of torch.optim.Adam; left out"]
    as_one = compose("echo_edm", ["training.optimizer={_target_:torch.optim.SGD,momentum:0.9}"])["training"]
    assert as_one["optimizer"] == training["optimizer"]


def test_what_an_experiment_sets_goes_with_a_target_that_is_taken_away(capsys):
    training, notes = composed(capsys, "cardiac_kl4x", "discriminator=none")
    assert training["discriminator"] == {} and notes == [
        "Note: training.discriminator: none, which is chosen, does not take start_kimg, warmup_kimg, slice_axes, "
        "slice_share of training.adversarial.Adversary; left out"]
    with pytest.raises(ValueError, match=r"training\.discriminator\._target_: no value"):
        composed(capsys, "cardiac_kl4x", "discriminator=none", "training.discriminator.start_kimg=3")


def test_nested_targets_too(capsys):
    training, notes = composed(capsys, "echo_edm", "training.network.model._target_=mynet_configs.Net",
                               "training.network.model.width=2")
    assert training["network"]["model"] == {"_target_": "mynet_configs.Net", "width": 2}
    assert len(notes) == 1 and "mynet_configs.Net does not take " in notes[0] and "of networks.unet.ADMUNet" in notes[0]
    training, notes = composed(capsys, "echo_edm", "training.network._target_=networks.precond.VPPrecond", "loss=vp")
    assert "sigma_data" not in training["network"] and training["network"]["model"]["model_channels"] == 32
    assert notes == ["Note: training.network: networks.precond.VPPrecond does not take sigma_data of "
                     "networks.precond.EDMPrecond; left out"]


def test_what_was_typed_is_refused_not_left_out(here):
    assert error_of(SGD, "training.optimizer.eps=1").startswith(
        "training.optimizer.eps: no such parameter of torch.optim.SGD")
    assert "'momentum'" in error_of(SGD, "training.optimizer.momentm=1")
    assert "training.optimizer.eps" in error_of("training.optimizer={_target_:torch.optim.SGD,eps:1}")


def test_a_missing_value_of_the_old_target_is_not_asked_for(capsys):
    with pytest.raises(ValueError, match=r"training\.dataset\.path: no value"):
        compose("voxels_edm", ["training.dataset.path=???"])
    training, notes = composed(capsys, "voxels_edm", "training.dataset._target_=mynet_configs.Data",
                               "training.dataset.folder=x")
    assert training["dataset"] == {"_target_": "mynet_configs.Data", "split": "train", "folder": "x"}
    assert notes == ["Note: training.dataset: mynet_configs.Data does not take path, cache, size of "
                     "training.datasets.volumes.VolumesDataset; left out"]


def test_an_own_experiment_changes_a_target_over_a_group_and_over_its_parent(here, capsys):
    below = "training:\n  dataset:\n    _target_: mynet_configs.Data\n    folder: x\n"
    write(here / "configs", mine=own(below), child=own("training:\n  options:\n    seed: 1\n", "mine"),
          wrong=own(below + "    foldr: y\n"))
    for name in ("mine", "child"):
        training, notes = composed(capsys, name)
        assert training["dataset"] == {"_target_": "mynet_configs.Data", "split": "train", "folder": "x"}
        assert len(notes) == 1
    assert error_of(name="wrong").startswith("training.dataset.foldr: no such parameter of mynet_configs.Data")


def test_an_own_group_leaves_out_what_the_experiment_sets_for_its_own_network(here, capsys):
    write(here / "configs", network__mine=NETWORK, network__typo=NETWORK + "depth: 3\n")
    training, notes = composed(capsys, "echo_edm", "network=mine")
    assert training["network"]["model"] == {"_target_": "mynet_configs.Net", "width": 8}
    assert notes == ["Note: training.network.model: mynet_configs.Net does not take model_channels, channel_mult, "
                     "num_blocks, attention_levels, dropout of networks.unet.ADMUNet; left out"]
    assert "training.network.model.depth: no such parameter" in error_of("network=typo")
    assert "training.network.model.model_channels: no such" in error_of("network=monai")  # ours: as ever


def test_a_target_that_takes_anything_keeps_all(capsys):
    training, notes = composed(capsys, "voxels_edm", "training.dataset._target_=mynet_configs.Any")
    assert training["dataset"]["path"] == "data/volumes.h5" and training["dataset"]["cache"] is True and not notes


def test_the_same_target_again_changes_nothing(capsys):
    plain, said = composed(capsys, "echo_edm", "training.optimizer._target_=torch.optim.Adam")
    assert plain == compose("echo_edm")["training"] and said == []
    assert config_hash(plain) == config_hash(compose("echo_edm")["training"])


def test_other_ranks_say_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert composed(capsys, "echo_edm", SGD)[1] == []


def test_keys_beside_a_new_target_may_be_new():
    given = ["a.b._target_=x", "a.b.c=1", "a.b.c.d=1", "+a.b.e=1", "a.bc=1", "a.c=1", "~a.b.f", "g={_target_:x,h:1}",
             "g.i=2"]
    assert added_where_new(given) == ["++a.b._target_=x", "++a.b.c=1", "++a.b.c.d=1", "+a.b.e=1", "a.bc=1", "a.c=1",
                                      "~a.b.f", "++g={_target_:x,h:1}", "++g.i=2"]


def test_who_wrote_a_key_is_the_last_that_sets_it():
    layers = [Layer("group/a", {"x": {"_target_": "A", "p": 1, "q": 1}}), Layer("group/size", {"x": {"s": 1}}),
              Layer("parent", {"x": {"q": 2, "r": 2}}), Layer("mine", {"x": {"_target_": "B", "t": 3}, "y": {"p": 3}})]
    alone = {"parent": {"x": "P"}}
    assert writers("x", layers, lambda name: alone.get(name, {})) == {"p": "A", "q": "P", "r": "P", "s": None, "t": "B"}
    assert list(leaves({"a": 1, "b": {"c": 2, "d": {}}}, "x")) == ["x.a", "x.b.c", "x.b.d"]


# ---- keys and names that are elsewhere ----


@pytest.mark.parametrize(("override", "wanted"), [
    ("lr=1e-3", "lr: no such key here; write training.optimizer.lr"),
    ("model_channels=16", "model_channels: no such key here; write training.network.model.model_channels"),
    ("batch_size=4", "batch_size: no such key here; write training.options.batch_size or sampling.batch_size"),
    ("seeds=0-3", "seeds: no such key here; write sampling.seeds"),
    ("seeds=0,3", "seeds: no such key here; write sampling.seeds"),
    ("num_steps=9", "num_steps: no such key here; write sampling.sampler.num_steps"),
    ("+lr=1e-3", "lr: no such key here; write training.optimizer.lr"),
    ("augment_dim=3", "augment_dim: no such key here; write +training.network.model.augment_dim"),
    ("precision=bf16", "precision: no such key here; write training.options.precision or sampling.precision"),
    ("training.lr=1e-3", "training.lr: no such key here; write training.optimizer.lr"),
    ("training.batch_size=4", "training.batch_size: no such key here; write training.options.batch_size"),
    ("options.batch_size=8", "options.batch_size: no such key here; write training.options.batch_size"),
    ("model.dropout=0", "model.dropout: no such key here; write training.network.model.dropout"),
    ("+training.options.lr=1", "training.options.lr: no such key here; write training.optimizer.lr"),
    ("training.network.dropout=0", "training.network.dropout: no such key here; write training.network.model.dropout"),
    ("network.dropout=0", "network is a group: to choose another network write network=NAME; its keys are under "
                          "training.network.model, as in training.network.model.dropout=..."),
    ("training.optoins.seed=1", "training.optoins: no such key; did you mean 'options'?"),  # the nearest first
])  # fmt: skip
def test_a_key_at_a_wrong_place_is_told_its_own(override, wanted):
    assert error_of(override) == wanted


def test_paths_are_those_that_end_alike_in_most_parts():
    tree = {"training": {"a": {"x": 1, "y": {"x": 2}}, "b": {"x": 3}}, "sampling": {"a": {"x": 4}}}
    assert paths_of("x", tree) == ["training.a.x", "training.a.y.x", "training.b.x", "sampling.a.x"]
    assert paths_of("a.x", tree) == ["training.a.x", "sampling.a.x"]
    assert paths_of("training.x", tree) == ["training.a.x", "training.a.y.x", "training.b.x"]
    assert paths_of("b.c.x", tree) == paths_of("x", tree) and paths_of("z", tree) == []
    assert paths_of("training.a.x", tree) == ["training.a.y.x", "training.b.x"]


@pytest.mark.parametrize(("choice", "wanted"), [
    ("sampler=heun", "sampler=edm_ode"), ("sampler=edm", "sampler=edm_ode"), ("sampler=ode", "sampler=edm_ode"),
    ("sampler=sde", "sampler=edm_sde"), ("sampler=euler", "sampler=ddim sampling.sampler.grid=polynomial"),
    ("sampler=euler_a", "sampler=ddpm"), ("sampler=dpm", "sampler=multistep sampling.sampler.order=2"),
    ("sampler=dpmpp_2m", "sampler=multistep sampling.sampler.order=2"), ("sampler=deis", "sampler=multistep"),
    ("sampler=DPM++", "sampler=multistep sampling.sampler.order=2"),
    ("sampler=midpoint", "sampler=ablation sampling.sampler.solver=heun sampling.sampler.alpha=0.5"),
    ("sampler=ve", "sampler=ablation sampling.sampler.discretization=ve sampling.sampler.schedule=ve "
                   "sampling.sampler.scaling=none"),
    ("network=unet", "network=adm"), ("autoencoder=vae", "autoencoder=kl"), ("autoencoder=vqgan", "autoencoder=vq"),
    ("optimizer=radam", "training.optimizer._target_=torch.optim.RAdam"),
])  # fmt: skip
def test_names_of_the_field_are_told_what_they_are_here(choice, wanted):
    group, _, name = choice.partition("=")
    said = known_as(group, name)
    assert said.partition(" (")[0] == wanted
    experiment = "echo_vae" if group == "autoencoder" else "echo_edm"
    if "+" not in choice:  # which Hydra reads in its own way
        text = error_of(choice, name=experiment)
        assert text.startswith(f"{choice}: no such {group}; here that is {said}; there are ")
    compose(experiment, wanted.split())  # what is advised works


def test_every_optimiser_that_is_named_is_there():
    for name in ("SGD", "RAdam", "NAdam", "RMSprop"):
        assert known_as("optimizer", name) == f"training.optimizer._target_=torch.optim.{name}"
        find_target(f"torch.optim.{name}", "x")


@pytest.mark.parametrize(("override", "meant"), [("seeds=1,2", "sampling.seeds"), ("outdir=a=b", "sampling.outdir")])
def test_an_odd_value_does_not_hide_that_the_key_is_not_there(override, meant):
    with pytest.raises(ValueError, match=f"no such key here; write {meant}"):
        compose("echo_edm", [override])


def test_defaults_that_refer_to_nothing_are_said_of_their_experiment(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: ${.seed}\ntraining: {task: diffusion}\n")
    with pytest.raises(ValueError, match=r"^-cn=mine: defaults takes seed, which is not there$"):
        compose("mine", [], tmp_path)


def test_a_folder_that_is_called_like_an_experiment_is_named(tmp_path):
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(ValueError, match=rf"{tmp_path}/mine.yaml: no file, wanted the YAML of an experiment"):
        compose("mine", [], tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "status: done\nnimg: 3\n"])
def test_a_file_that_is_no_experiment_is_named(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    found = "its keys are status, nimg" if text.startswith("s") else "it is empty"
    with pytest.raises(ValueError, match=rf"{tmp_path}/mine.yaml: no experiment, {found}; wanted a list 'defaults'"):
        compose("mine", ["training.options.seed=3"], tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/mine.yaml: no experiment, {found}"):
        train_from(tmp_path / "mine.yaml", [], None)


def test_a_sampler_chosen_by_its_group_leaves_out_what_the_experiment_sets_for_its_own(capsys):
    sampler = compose("echo2d_edm", ["sampler=multistep"])["sampling"]["sampler"]
    assert sampler["_target_"] == "samplers.multistep_sampler" and "S_min" not in sampler
    assert sampler["num_steps"] == 50  # of the experiment, as both have it
    assert "does not take S_min, S_max of samplers.edm_sampler; left out" in capsys.readouterr().err
