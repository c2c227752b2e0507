"""Configuration: everything in configs/ composes and builds, and what does not fit is said by path."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from edm3d.formats.facts import Facts, LatentFacts
from edm3d.formats.refinement import told_facts
from edm3d.formats.seeds import requested_seeds
from edm3d.inference.generation import check_options
from edm3d.networks.conditioning import blank, takes_of
from edm3d.networks.unet import ADMUNet
from edm3d.training.build import check_training
from edm3d.training.tasks.base import fill_network
from edm3d.utils.compose import compose, readable, shipped_configs
from edm3d.utils.config import build, build_from_file, check_targets, differences, said_at
from edm3d.utils.config_hash import config_hash
from edm3d.utils.plain import describe, fits
from edm3d.utils.schema import sampling_options

CONFIGS = shipped_configs()
PRECONDS = {p.stem for p in (CONFIGS / "precond").glob("*.yaml")}
EXPERIMENTS = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
# What the data of an experiment would say, at full size: shape of an item, label classes, classes.
ECHO, ECHO_LATENTS, BRATS, BRATS_LATENTS = (
    ((1, 160, 160, 128), 3, 0), ((4, 20, 20, 16), 3, 0), ((1, 168, 192, 144), 0, 0), ((8, 36, 44, 28), 0, 0))
RECIPES = {"diff3_vae_100": ECHO, "diff3_vae_200": ECHO, "diff3_vae_xent": ECHO, "diff3_ldm": ECHO_LATENTS,
           "diff3_edm": ECHO_LATENTS, "brats_vae_16g": BRATS, "brats_vae_32g": BRATS, "brats_ldm_16g": BRATS_LATENTS,
           "brats_ldm_32g": BRATS_LATENTS, "brats_edm_32g": BRATS_LATENTS}
DATA = {**RECIPES, "echo_vae": ((1, 32, 32, 32), 4, 0), "echo64_vae": ((1, 64, 64, 64), 4, 0),
        "echo_edm": ((4, 8, 8, 8), 4, 0), "brainweb2d_edm": ((1, 64, 64), 0, 0),
        "voxels_edm": ((1, 32, 32, 32), 4, 0), "echo3d_semantic_edm": ((4, 8, 8, 8), 4, 0),
        **{f"echo2d_{name}": ((1, 256, 256), 4, 0) for name in ("vae64", "vae128", "edm", "ve", "vp")},
        **{f"echo2d_edm_l{n}": ((1, n, n), 4, 0) for n in (64, 128)},
        "echo_refine": ((1, 32, 32, 32), 4, 0), "echo64_refine": ((1, 64, 64, 64), 4, 0),
        "diff3_refine": ((1, 64, 64, 64), 3, 0), "brats_refine": ((1, 64, 64, 64), 0, 0),
        "echo3d_segmentation": ((1, 64, 64, 64), 4, 0), "echo2d_segmentation": ((1, 256, 256), 4, 0),
        "echo2d_classification": ((1, 256, 256), 4, 2), "pet_phantoms": ((1, 64, 64), 0, 0),
        **{f"cardiac_{name}": ((1, 13, 96, 96), 4, 0) for name in ("kl2x", "kl4x", "vq2x", "vq4x")},
        **{f"cardiac_ldm_{name}": ((1, 13, 24, 24), 4, 0) for name in ("kl4x", "vq4x")},
        "cardiac_classifier": ((1, 13, 96, 96), 4, 2),
        "cardiac_demo_kl4x": ((1, 13, 32, 32), 4, 0), "cardiac_demo_ldm": ((4, 13, 8, 8), 4, 0),
        "private_demo_kl4x": ((1, 13, 24, 24), 4, 0), "private_demo_ldm": ((4, 13, 6, 6), 4, 0)}
TOLD = {"echo_edm": ("a", "b"), **dict.fromkeys(("cardiac_ldm_kl4x", "cardiac_ldm_vq4x", "cardiac_demo_ldm"),
                                                     tuple("abcdefghijklmn"))}
VOLUMES = {"echo3d_semantic_edm": (32, 32, 32), "echo2d_edm_l64": (256, 256), "echo2d_edm_l128": (256, 256)}


def checked(name: str, *overrides: str) -> dict:
    """Compose an experiment and hold all of it against its targets, as the scripts do."""
    config = compose(name, overrides)
    check_training(config["training"])
    if config["sampling"]["sampler"]:
        check_options(sampling_options(config))
    return config


def outputs(name: str, task: str) -> int | None:
    """How many classes a downstream network tells apart, None for all others."""
    place = {"segmentation": 1, "classification": 2}.get(task)
    return DATA[name][place] if place else None


def dataset_like(name: str) -> SimpleNamespace:
    """What a network asks of an experiment's dataset."""
    shape, labels, classes = DATA[name]
    labels, classes, maps = (tuple(f"{of}{i}" for i in range(count)) for of, count in (
        ("x", labels), ("y", classes), ("z", 10 * name.startswith("echo2d_"))))
    facts = Facts("", "", ("a",) * shape[0] if shape[0] == 1 else (), labels, classes,
                  spatial_shape=VOLUMES.get(name, shape[1:]), map_classes=maps,
                  attribute_names=TOLD.get(name),
                  condition_channels=("low dose",) if name.startswith("pet_") else None,
                  latents=LatentFacts("latents.h5", "") if name in VOLUMES else None)
    return SimpleNamespace(shape=shape, facts=told_facts(facts, 1, bool(labels)) if name.endswith("_refine") else facts)


def group_files() -> list[tuple[str, Path]]:
    """Every group file but presets, with an experiment that uses its group: one composed from it if there is one."""
    found = []
    for path in sorted(set(CONFIGS.glob("*/*.yaml")) - set(CONFIGS.glob("preset/*"))):
        defaults = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["defaults"] for name in EXPERIMENTS}
        groups = {path.parent.name} | ({"precond"} if path.parent.name == "loss" and path.stem in PRECONDS else set())
        using = [name for name, entries in defaults.items() if groups <= {key for entry in entries for key in entry}]
        if path.parent.name == "network" and "training.network\n" in path.read_text():  # and no model within another
            using = [name for name in using if not any("precond" in entry for entry in defaults[name])]
        exact = [name for name in using if {path.parent.name: path.stem} in defaults[name]]
        assert using, f"no experiment uses {path}"
        found.append(((exact or using)[-1], path))
    return found


# ---- what is shipped ----


def test_every_experiment_is_known_to_these_tests():
    assert sorted(DATA) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_its_network_runs_on_the_meta_device(name):
    training = checked(name)["training"]
    dataset = dataset_like(name)
    with torch.device("meta"):
        net = build(fill_network(training, dataset, outputs=outputs(name, training["task"])))
        x = torch.zeros(2, *dataset.shape)
        if classes := outputs(name, training["task"]):
            assert net(x).shape == (2, classes, *(dataset.shape[1:] if training["task"] == "segmentation" else ()))
        elif training["task"] == "autoencoder":
            labels = DATA[name][1]
            out = net(x, torch.zeros(2, *dataset.shape[1:], dtype=torch.uint8) if labels else None)
            assert out.image.shape == x.shape and (out.logits.shape[1] if labels else 0) == labels
        elif training["task"] == "diffusion":
            told = blank(takes_of(net), dataset.facts.spatial_shape, 2)
            assert net(x, torch.ones(2), told).shape == x.shape
        optimizer = build({**training["optimizer"], "_partial_": True})(net.parameters())
    assert optimizer.param_groups[0]["lr"] == training["optimizer"]["lr"]


@pytest.mark.parametrize(("name", "path"), group_files())
def test_every_group_file_composes(name, path):
    group, text = path.parent.name, path.read_text()
    overrides = [f"{group}={path.stem}"] + ["training.dataset.path=some-file"] * (group == "dataset")
    overrides += [f"precond={path.stem}"] * (group == "loss" and path.stem in PRECONDS)
    overrides += ["training.batch_transform.autoencoder=some-run"] * (path.stem in ("encode", "refine"))
    config = compose(name, overrides)
    package = re.match(r"# @package ((training|sampling)\.(\w+)(?:\.(\w+))?)\n", text)
    assert package, f"{path}: the first line says no package"
    node = config[package[2]][package[3]]
    node = node[package[4]] if package[4] else node
    if group == "codec":  # sets a key of the network
        assert node["codec"] == path.stem
    else:
        assert node.get("_target_") == (yaml.safe_load(text) or {}).get("_target_")
    check_targets(node, package[1], ("in_channels", "out_channels", "channel_mean", "channel_std", "params", "net",
                                     "latents", "spatial_dims"))


def test_every_experiment_that_draws_may_be_given_a_measurement():
    """Those that name a sampler name the group too, and all others stand on them."""
    naming = {name for name in EXPERIMENTS if "  - posterior: none\n" in (CONFIGS / f"{name}.yaml").read_text()}
    assert naming == {name for name in EXPERIMENTS if "  - sampler: " in (CONFIGS / f"{name}.yaml").read_text()}
    for name in naming:
        node = compose(name, ["posterior=dps", "sampling.posterior.measurement=y.npy"])["sampling"]["posterior"]
        assert node["measurement"] == "y.npy", name


def test_keys_beside_arguments_are_known_at_their_place_alone():
    node = compose("voxels_edm", ["posterior=mmps", "sampling.posterior.simulate=x.npy"])["sampling"]["posterior"]
    check_targets(node, "sampling.posterior")
    with pytest.raises(ValueError, match=r"sampling\.posterior\.simulated: no such .*'simulate'"):
        check_targets({**node, "simulated": "x.npy"}, "sampling.posterior")
    with pytest.raises(ValueError, match=r"elsewhere\.measurement: no such"):
        check_targets(node, "elsewhere")


def test_a_codec_is_refused_by_networks_that_have_none():
    with pytest.raises(ValueError, match=r"training\.network\.model\.codec: no such parameter of networks\.monai_unet"):
        checked("brats_edm_32g", "+training.network.model.codec=haar")


def test_a_preset_is_typed_without_a_plus_and_what_is_typed_beside_it_holds():
    before, preset = (compose("brainweb2d_edm", more)["training"] for more in ([], ["preset=small_data"]))
    assert preset["augment"]["_target_"] == "training.augment.AugmentPipe" and before["augment"] == {}
    assert preset["optimizer"] == {**before["optimizer"], "_target_": "torch.optim.AdamW", "weight_decay": 0.05}
    assert preset["network"]["model"]["dropout"] > before["network"]["model"]["dropout"]
    assert preset["options"]["ema_halflife_kimg"] < before["options"]["ema_halflife_kimg"]
    typed = compose("brainweb2d_edm", ["training.network.model.dropout=0.3", "preset=small_data", "augment=none"])
    assert typed["training"]["network"]["model"]["dropout"] == 0.3 and typed["training"]["augment"] == {}


def test_latent_scale_follows_the_network():
    training = checked("echo_edm", "training.network.sigma_data=0.7")["training"]
    assert training["loss"]["sigma_data"] == training["batch_transform"]["sigma_data"] == 0.7


def test_latents_have_unit_variance_where_the_network_has_no_scale_of_its_own():
    training = checked("echo_edm", "precond=vp", "loss=vp")["training"]
    assert training["batch_transform"]["sigma_data"] == 1
    training = checked("echo_edm", "precond=vp")["training"]
    assert training["batch_transform"]["sigma_data"] == training["loss"]["sigma_data"] == 1


@pytest.mark.parametrize("setting", ["C_2=0.008", "C_2=0.05", "C_1=0.5", "M=10"])
def test_loss_of_iddpm_draws_the_levels_of_its_network(setting):
    training = checked("echo_edm", "precond=iddpm", "loss=iddpm", f"training.network.{setting}")["training"]
    net = build({**training["network"], "model": {"_target_": "torch.nn.Identity"}})
    levels = build(training["loss"]).law.levels
    assert torch.equal(levels.flip(0).double(), net.noise_table)


@pytest.mark.parametrize(("choice", "wanted"), [
    ("loss=vp", {"beta_d": 19.9, "beta_min": 0.1, "epsilon_t": 1e-5}),
    ("loss=ve", {"sigma_min": 0.02, "sigma_max": 100}),
    ("loss=iddpm", {"M": 1000, "C_1": 0.001, "C_2": 0.008}),
])
def test_losses_of_the_paper_go_with_edm_preconditioning_by_their_own_defaults(choice, wanted):
    loss = checked("echo_edm", choice)["training"]["loss"]
    assert wanted.items() <= {**loss, **loss.get("law", {})}.items()
    build(loss)


def test_losses_of_vp_and_ve_take_their_networks_range():
    loss = checked("echo_edm", "precond=vp", "loss=vp", "training.network.beta_d=5", "training.network.epsilon_t=0.1",
                   "training.network.beta_min=2")["training"]["loss"]
    assert (loss["beta_d"], loss["beta_min"], loss["epsilon_t"]) == (5, 2, 0.1)
    loss = checked("echo_edm", "precond=ve", "loss=ve", "training.network.sigma_min=1",
                   "training.network.sigma_max=9")["training"]["loss"]
    assert (loss["sigma_min"], loss["sigma_max"]) == (1, 9)


def test_composing_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked("echo_edm")
    assert os.listdir(tmp_path) == []


# ---- what does not fit ----


@pytest.mark.parametrize(("override", "wanted"), [
    # a typo at each depth
    ("trainig.task=x", ["trainig", "'training'"]),
    ("+extra=1", ["extra", "training, sampling"]),
    ("training.optoins.seed=1", ["training.optoins", "'options'"]),
    ("+training.x=1", ["training.x", "dataset"]),
    ("training.options.batch_sise=1", ["training.options.batch_sise", "'batch_size'"]),
    ("+training.options.batch_sise=1", ["training.options.batch_sise", "'batch_size'"]),
    ("training.network.sigma_dta=1", ["training.network.sigma_dta", "'sigma_data'"]),
    ("+training.network.sigma_dta=1", ["training.network.sigma_dta", "EDMPrecond", "'sigma_data'"]),
    ("training.network.model.model_chanels=1", ["training.network.model.model_chanels", "'model_channels'"]),
    ("+training.network.model.model_chanels=1", ["training.network.model.model_chanels", "'model_channels'"]),
    ("+training.optimizer.beta=1", ["training.optimizer.beta", "'betas'"]),
    ("+training.loss.P_men=1", ["training.loss.P_men", "'P_mean'"]),
    ("+training.dataset.splt=x", ["training.dataset.splt", "'split'"]),
    ("+training.batch_transform.sigma_dat=1", ["training.batch_transform.sigma_dat", "'sigma_data'"]),
    ("+training.validation.max_item=1", ["training.validation.max_item", "'max_items'"]),
    ("sampling.seds=1", ["sampling.seds", "'seeds'"]),
    ("sampling.sampler.num_stps=1", ["sampling.sampler.num_stps", "'num_steps'"]),
    ("+sampling.sampler.qq=1", ["sampling.sampler.qq: no such parameter of samplers.edm_sampler; it has num_steps, s"]),
    ("sampling.sampler.qq=1", ["sampling.sampler.qq: no such key; there are _target_, num_steps, "]),
    ("+sampling.sampler.S_chrn=1", ["sampling.sampler.S_chrn", "'S_churn'"]),
    # a right key that the YAML leaves out
    ("training.network.model.augment_dim=3", ["training.network.model.augment_dim",
                                              "+training.network.model.augment_dim="]),
    # a wrong type
    ("training.options.batch_size=many", ["training.options.batch_size", "many"]),
    ("training.options.batch_size=1.5", ["training.options.batch_size", "1.5"]),
    ("training.options.total_kimg=null", ["training.options.total_kimg"]),
    ("training.network.model.model_channels=wide", ["training.network.model.model_channels='wide'", "int"]),
    ("training.network.model.channel_mult=[1,b]", ["training.network.model.channel_mult", "wanted a list of int"]),
    ("training.network.model.dropout=true", ["training.network.model.dropout=True", "float"]),
    ("training.optimizer.lr=fast", ["training.optimizer.lr='fast'", "float"]),
    ("sampling.sampler.num_steps=1.5", ["sampling.sampler.num_steps=1.5", "int"]),
    ("training.options=3", ["training.options", "3"]),
    ("training.loss.strata=[1]", ["training.loss.strata=[1]", "wanted int or null"]),
    # arguments that are not the user's
    ("+sampling.sampler.randn_like=null", ["sampling.sampler.randn_like", "the program gives this itself"]),
    ("+training.optimizer.params=[]", ["training.optimizer.params", "the program gives this itself"]),
    # values taken from where there is none
    ("loss=ddpm", ["training.loss.", " takes training.network.", ", which is not there", "precond=ddpm loss=ddpm"]),
    # groups and targets
    ("training.augment.p=1", [
        "training.augment.p: nothing is chosen here; choose augment=NAME first (activities, edm, mild"]),
    ("+training.augment.p=1", ["training.augment._target_"]),
    ("smpler=edm_ode", ["smpler", "'sampler'"]),
    ("sampler=edm_odd", ["sampler=edm_odd: no such sampler; there are", "edm_ode"]),
    ("training.dataset=volumes", ["training.dataset", "dataset=NAME"]),
    ("training.network.model._target_=networks.unet.Unet", ["training.network.model._target_", "networks.unet.Unet"]),
    ("training.network._target_=no.such.thing", ["training.network._target_", "no.such.thing"]),
    ("training.loss._target_=math.pi", ["training.loss._target_=math.pi"]),
    ("training.task=dance", ["training.task='dance'", "autoencoder, diffusion"]),
    ("training.optimizer.lr=???", ["training.optimizer.lr", "no value"]),
    ("network.model.channel_mult=[1]", ["network is a group", "network=NAME", "training.network"]),
    ("sampler.num_steps=3", ["sampler is a group", "sampler=NAME", "sampling.sampler"]),
    # several values for one key
    ("training.network.model.channel_mult=1,2", ["channel_mult=1,2: ", "channel_mult='1,2'", "channel_mult=[1,2]"]),
    ("sampler=edm_ode,edm_sde", ["sampler=edm_ode,edm_sde", "sweep"]),
    ("training.optimizer.lr=choice(1,2)", ["training.optimizer.lr=choice(1,2)", "sweep"]),
    # not an override at all
    ("nonsense", ["nonsense"]),
])  # fmt: skip
def test_what_does_not_fit_is_said_by_path(override, wanted):
    with pytest.raises(ValueError) as error:
        checked("echo_edm", override)
    message = str(error.value)
    assert all(text in message for text in wanted), message
    assert "\n" not in message and str(CONFIGS) not in message and "--multirun" not in message


@pytest.mark.parametrize(("override", "wanted"), [
    ("sampling.seeds=1,2,5-10", "sampling.seeds='1,2,5-10'"),
    ("+sampling.seeds=1,2", "+sampling.seeds='1,2'"),
    ("sampling.seeds=[1,2]", "sampling.seeds='[1,2]'"),
    ("sampling.seeds='1,2'", "sampling.seeds='1,2'"),
    ('sampling.seeds="1,2"', 'sampling.seeds="1,2"'),
    ("sampling.seeds=0-63", "sampling.seeds=0-63"),
    ("sampling.outdir=a=b(1)#2[é]", "sampling.outdir='a=b(1)#2[é]'"),
    ("training.options.desc=2024_01", "training.options.desc='2024_01'"),  # for Hydra a number, 202401
    ("training.options.desc=null", "training.options.desc=null"),
    (r"sampling.outdir=a\,b", r"sampling.outdir=a\,b"),  # quoted already, in Hydra's way
    ("training.options.seed=1_0", "training.options.seed=1_0"),
])  # fmt: skip
def test_text_where_text_alone_is_taken_needs_no_quotes(override, wanted):
    assert readable([override], [CONFIGS]) == [wanted]


@pytest.mark.parametrize("text", ["1,2,5-7", "'1,2,5-7'", "[1,2,5-7]"])
def test_seeds_are_understood_with_and_without_quotes(text):
    config = compose("echo_edm", [f"sampling.seeds={text}"])
    assert requested_seeds(config["sampling"]["seeds"]) == [1, 2, 5, 6, 7]


@pytest.mark.parametrize("text", ["range(1,5)", "1,,2", "1,2,"])
def test_odd_lists_of_seeds_get_the_error_of_seeds(text):
    with pytest.raises(ValueError, match=r"sampling\.seeds=.* is neither a number nor a range"):
        requested_seeds(compose("echo_edm", [f"sampling.seeds={text}"])["sampling"]["seeds"])


def test_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'echo_edm'"):
        compose("echo_edmm", [])
    with pytest.raises(ValueError, match="echo_vae"):
        compose("zzz", [])


def test_missing_value_is_named():
    with pytest.raises(ValueError, match=r"training\.dataset\.path"):
        compose("echo_edm", ["training.dataset.path=???"])


def test_types_are_held_against_hints():
    from collections.abc import Sequence
    yes = [(1, int), (1, float), (1.5, float), ([1, 2], Sequence[int]), ([1, [1, 2]], Sequence), (None, int | None),
           ([0.9, 0.99], tuple[float, float]), ("a", str), ({"_target_": "x"}, torch.nn.Module), (2, int | Sequence)]
    no = [(1.0, int), (True, int), (True, float), ("1", int), (1, Sequence[int]), ([1, "a"], Sequence[int]),
          (None, int), ("a", float | torch.Tensor), (1, str), (1, bool), ("ab", Sequence[str])]
    assert [(value, hint) for value, hint in yes if not fits(value, hint)] == []
    assert [(value, hint) for value, hint in no if fits(value, hint)] == []


def test_types_are_named_as_people_do():
    from collections.abc import Sequence
    said = {int: "int", float | torch.Tensor: "float", int | Sequence | None: "int or a list or null",
            Sequence[int]: "a list of int", tuple[float, float]: "a list of float", tuple[int | None, ...]:
            "a list of int or null", torch.nn.Module: "Module"}
    assert {hint: describe(hint) for hint in said} == said


def test_differences_have_path_and_both_values():
    old, new = {"a": 1, "b": {"c": [1], "d": 3}, "e": 0}, {"a": 1, "b": {"c": [2], "d": 3}, "e": False, "f": {"g": 5}}
    assert list(differences(old, new)) == [("b.c", [1], [2]), ("f.g", None, 5)]
    assert list(differences({"a": {"b": 1}}, {"a": 2})) == [("a", {"b": 1}, 2)]
    assert list(differences({"a": {}}, {"a": None})) == []


def test_errors_of_targets_say_where_they_stand():
    node = {"_target_": "networks.precond.EDMPrecond", "sigma_data": 0, "model": {"_target_": "torch.nn.Identity"}}
    law = {"_target_": "training.noise_laws.LogNormal", "P_std": 0}
    for wrong, path, message in [
        (node, "training.network", "training.network.sigma_data=0: wanted more than 0"),
        ({"_target_": "training.loss.DenoisingLoss", "law": law}, "training.loss",
         "training.loss.law.P_std=0: wanted more than 0"),
        (node, "", "sigma_data=0: wanted more than 0"), (node, "sigma", "sigma_data=0: wanted more than 0"),
    ]:
        with pytest.raises(ValueError) as error:
            build(wrong, path=path)
        assert str(error.value) == message
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "operator.truediv"}, 1, 0, path="training.network")


@pytest.mark.parametrize(("message", "wanted"), [
    ("sigma_data=0: wanted more than 0", "a.sigma_data=0: wanted more than 0"),
    ("sigma_data, label_dropout: odd", "a: sigma_data, label_dropout: odd"),
    ("sigma_data (of all): odd", "a.sigma_data (of all): odd"), ("other=3: odd", "a: other=3: odd"),
    ("Invalid value: 3", "a.model.in_features=3: Invalid value: 3"),  # below it
    ("Invalid value: 0.25", "a.label_dropout=0.25: Invalid value: 0.25"),
    ("Invalid value: 7", "a: Invalid value: 7"), ("Invalid value: 4", "a: Invalid value: 4"),  # of none, of two
])
def test_errors_of_targets_name_the_key_that_they_speak_of(message, wanted):
    node = {"_target_": "networks.precond.EDMPrecond", "sigma_data": 4, "label_dropout": 0.25,
            "model": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4}}
    assert said_at("a", node, message) == wanted


def test_config_hash_leaves_length_logging_and_the_machine_aside():
    def hash_of(*overrides: str) -> str:
        return config_hash(compose("echo_edm", overrides)["training"])

    base = hash_of()
    for same in ("training.options.total_kimg=99", "training.options.desc=x", "training.options.keep_states=9",
                 "training.validation.every_ticks=1", "training.options.resume=latest", "sampling.seeds=1",
                 *(f"training.options.{o}" for o in (
                     "device=cpu", "num_threads=3", "num_workers=1", "batch_gpu=2", "precision=bf16", "compile=true",
                     "graphs=true",
                     "tf32=true", "cudnn_benchmark=true", "channels_last=true", "max_bad_steps=3"))):
        assert hash_of(same) == base, same
    for other in ("training.options.seed=1", "training.options.batch_size=8", "training.network.model.dropout=0.5",
                  "training.optimizer.lr=1", "training.dataset.path=x", "training.options.ema_halflife_kimg=1",
                  "training.options.init_from=x", "augment=edm"):
        assert hash_of(other) != base, other


def test_config_hash_of_no_augmentation_is_that_of_a_config_that_knows_none():
    training = compose("echo_edm", [])["training"]
    before = {k: v for k, v in training.items() if k != "augment"}
    assert training["augment"] == {} and config_hash(training) == config_hash(before)
    assert config_hash({**before, "augment": {"_target_": "training.augment.AugmentPipe"}}) != config_hash(before)


# ---- what a file may name ----

SMALL = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_levels": []}
GOOD = {"_target_": "networks.precond.EDMPrecond", "sigma_data": 0.5,
        "model": {"_target_": "networks.unet.ADMUNet", "in_channels": 1, "out_channels": 1, **SMALL}}


def test_networks_of_ours_and_torchs_come_out_of_files():
    assert isinstance(build_from_file(GOOD, "net.pt").model, ADMUNet)
    assert isinstance(build_from_file({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, "net.pt"),
                      torch.nn.Linear)


@pytest.mark.parametrize("target", [
    "os.system", "builtins.eval", "subprocess.run", "torch.load", "utils.checkpoint.load", "networks.unet.torch.load",
    "networks.unet.torch.hub.load", "networks.latent_codec.torch", "samplers.noise.hashlib.new",
    "networks.layers.math.prod",
    "networks.unet.prod",           # imported, not defined there
    "networks.unet.check_divides",  # a function
    "networks.conditioning.NamedTuple", "torch.nn.modules.module.warnings.warn", "torch.nn.functional.os.system",
    "networksevil.Net", "networks", "networks.", ".", "", "training.run.train", "training.loss.NamedTuple",
    "monai.bundle.ConfigParser", "monai.networks.utils.convert_to_onnx",
])
def test_targets_off_the_allow_list_do_not_come_out_of_files(target):
    for node in ({"_target_": target}, {**GOOD, "model": {"_target_": target, "command": "true"}},
                 {**GOOD, "model": [{"_target_": target}]}, {**GOOD, "model": ({"_target_": target},)}):
        with pytest.raises(ValueError, match=r"net\.pt|config.*_target_"):
            build_from_file(node, "net.pt")


def test_text_that_would_become_a_target_does_not_come_out_of_files(tmp_path):
    proof = tmp_path / "code-has-run"
    hidden = f"${{oc.create:{{_target_: os.mkdir, path: {proof}}}}}"
    with pytest.raises(ValueError, match=r"net\.pt"):
        build_from_file({**GOOD, "model": hidden}, "net.pt")
    with pytest.raises(ValueError, match=r"training\.loss: holds \$\{...\}"):
        build({"_target_": "builtins.dict", "model": [hidden]}, path="training.loss")
    assert build({"_target_": "builtins.dict", "model": [hidden]}, trust=True) == {"model": [hidden]}
    assert not proof.exists()  # whether trusted or not: text is never resolved again
    resolve = OmegaConf.create({"_target_": "builtins.dict", "model": hidden})
    hydra.utils.instantiate(resolve)  # as it would be here
    assert proof.is_dir()


def test_trust_lets_a_file_name_anything_but_still_checks_keys():
    assert build_from_file({"_target_": "collections.Counter"}, "net.pt", trust=True) == {}
    with pytest.raises(ValueError, match="sigma_dat"):
        build_from_file({**GOOD, "sigma_dat": 1}, "net.pt", trust=True)
