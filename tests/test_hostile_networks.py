"""Snapshots and states of right checksum and wrong content are refused by file and key; nothing is allocated for it."""

import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.inference import drawing
from edm3d.inference.check import check
from edm3d.inference.model import Model
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.training.resume import read_state
from edm3d.utils import checkpoint
from edm3d.utils.config import build
from tests.toy import make_trainer, trained

STAGE = {"_target_": "networks.autoencoder.AutoencoderKL", "in_channels": 1, "latent_channels": 2, "channels": [4, 8],
         "spatial_dims": 2, "num_blocks": 1, "num_blocks_decoder": 1}
NODE = {"_target_": "networks.precond.EDMPrecond", "model": {
    "_target_": "networks.unet.ADMUNet", "in_channels": 2, "out_channels": 2, "spatial_dims": 2, "model_channels": 8,
    "channel_mult": [1], "num_blocks": 1, "attention_levels": []}}
CONFIG = {"training": {"dataset": {"size": [8, 8]}, "options": {"batch_size": 2}},
          "sampling": {"guidance": {"strength": 1}, "batch_size": 2}}
VALUES = (None, [], {}, "x", -1, float("nan"), 10 ** 30, True, [1, 2, 3, 4, 5, 6, 7], {"a": {"b": [1]}}, [[1]])
TENSORS = (lambda w: w * float("nan"), lambda w: w / 0, torch.Tensor.long, torch.Tensor.bool, torch.Tensor.double,
           lambda w: w.to(torch.complex64), lambda w: w.reshape(-1)[:1], lambda w: w[None], lambda w: "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the snapshots of a first stage and of a network on its latents, and with a training state."""
    folder, facts = tmp_path_factory.mktemp("whole"), Facts("x.h5", "ab", ("echo",), spatial_shape=(8, 8))
    torch.manual_seed(0)
    stage = Snapshot("autoencoder", STAGE, facts, (1, 8, 8), weights=build(STAGE).state_dict(), config=CONFIG)
    stage.save(folder / "stage.pt")
    carried = CarriedStage.from_record(stage.record, LatentScaling([0.0, 1.0], [1.0, 2.0]), {
        "psnr_db": 30.0, "num": 2, "split": "val", "dice": {}})
    Snapshot("diffusion", NODE, facts, (2, 4, 4), carried, build(NODE).state_dict(), CONFIG).save(folder / "net.pt")
    trained(folder / "run")
    (folder / "run/training-state-000000.240.pt").rename(folder / "state.pt")
    return folder


def write(path: Path, content: dict) -> Path:
    """A file of that content, with the checksum that goes with it."""
    content["checksum"] = checkpoint.checksum({k: v for k, v in content.items() if k != "checksum"})
    torch.save(content, path)
    return path


def content_of(path: Path) -> dict:
    """All that a file holds."""
    return torch.load(path, weights_only=True)


def places(tree: object) -> Iterator[tuple[dict | list, object]]:
    """Every container of a tree with each of its keys."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def mutate(chance: random.Random, tree: dict) -> str:
    """Delete or replace something in a tree; what was done."""
    node, key = chance.choice([(node, key) for node, key in places(tree) if key not in ("format", "checksum")])
    value = node[key]
    if isinstance(node, dict) and chance.random() < 0.3:
        del node[key]
        return f"{key} deleted"
    node[key] = chance.choice(TENSORS)(value) if isinstance(value, torch.Tensor) else chance.choice(VALUES)
    return f"{key}: {str(node[key])[:40]}"


def use_stage(path: Path) -> None:
    stage = Model.load(path, device="cpu").first_stage
    stage.decode(stage.encode(torch.rand(1, 1, 8, 8)))


def use_network(path: Path) -> None:
    Model.load(path, device="cpu").sample([0], sampler="edm_ode", num_steps=2)


def use_state(path: Path) -> None:
    trainer = make_trainer(path.parent / "trainer")
    before = checkpoint.checksum(trainer.state().plain())
    try:
        trainer.restore(read_state(path, trainer.record))
    except ValueError:
        assert checkpoint.checksum(trainer.state().plain()) == before, "what is refused must change nothing"
        raise
    batches = trainer.batches()
    trainer.step(batches)
    batches.close()


@pytest.mark.parametrize(("name", "use", "count"), [
    ("stage.pt", use_stage, 15), ("net.pt", use_network, 20), ("state.pt", use_state, 50)])
def test_wrong_content_under_a_right_checksum_is_refused_by_file_or_works(folder, tmp_path, name, use, count):
    whole, found = content_of(folder / name), Counter()
    use(folder / name)
    for seed in range(count):
        content = deepcopy(whole)
        what = mutate(random.Random(seed), content)
        path = write(tmp_path / name, content)
        for act in (use, check):
            try:
                act(path)
            except ValueError as error:
                assert "\n" not in str(error), what
                assert str(path) in str(error) or "sampling." in str(error), f"{what}: {error}"
                found["refused"] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, {what}: {error!r}") from error
    assert found["refused"] > count / 4


def changed(folder: Path, tmp_path: Path, name: str, change: Callable[[dict], object]) -> Path:
    """A file of the folder with a change."""
    content = content_of(folder / name)
    change(content)
    return write(tmp_path / name, content)


@pytest.mark.parametrize(("name", "use", "change", "said"), [
    ("net.pt", use_network, lambda c: c["ema"]["model.out_conv.bias"].fill_(float("nan")),
     "ema.model.out_conv.bias has values that are not finite"),
    ("net.pt", use_network, lambda c: c["first_stage"]["weights"]["encoder.0.bias"].fill_(float("inf")),
     "first_stage.weights.encoder.0.bias has values that are not finite"),
    ("net.pt", use_network, lambda c: c["ema"].update({"model.out_conv.bias": torch.zeros(2, dtype=torch.long)}),
     "ema.model.out_conv.bias has type torch.int64, wanted torch.float32"),
    ("net.pt", use_network, lambda c: c["ema"].pop("model.out_conv.bias"), "ema lacks model.out_conv.bias"),
    ("net.pt", use_network, lambda c: c.update(shape=[3, 4, 4]), "channel_mean has 2 values, wanted one for each of 3"),
    ("net.pt", use_network, lambda c: c["first_stage"].update(scaling="other"), "first_stage: scaling='other'"),
    ("net.pt", use_network, lambda c: c.update(nimg=-1), "nimg is -1"),
    ("net.pt", use_network, lambda c: c.pop("config"), "config missing"),
    ("net.pt", use_network, lambda c: c["data"].update(spatial_shape=[8, 8, 8]), "data.spatial_shape is .*, wanted 2"),
    ("net.pt", use_network, lambda c: c["config"]["sampling"].update(batch_size="x"), "config.sampling.batch_size is"),
    ("state.pt", use_state, lambda c: c["progress"].update(nimg="x"), "progress.nimg is 'x', wanted int"),
    ("state.pt", use_state, lambda c: c["stats"].update(ranks=torch.zeros(1, 1, 2)), "stats.ranks is torch.float32"),
    ("state.pt", use_state, lambda c: c["stats"].update(groups=[["a"]], ranks=torch.ones(1, 1, 2).double() * torch.nan),
     "stats.ranks has values that are not finite"),
    ("state.pt", use_state, lambda c: c["modules"]["diffusion"]["layers.0.bias"].fill_(float("nan")),
     "modules.diffusion.layers.0.bias has values that are not finite"),
    ("state.pt", use_state, lambda c: c["optimizers"]["diffusion"]["state"][1].pop("exp_avg"),
     r"optimizers.diffusion.state.1 has exp_avg_sq, step, wanted exp_avg, exp_avg_sq, step"),
    ("state.pt", use_state, lambda c: c["optimizers"]["diffusion"]["state"].clear(), "state is of 0 weights, wanted 4"),
    ("state.pt", use_state, lambda c: c["optimizers"]["diffusion"]["param_groups"][0].pop("eps"), "param_groups.0. is"),
    ("state.pt", use_state, lambda c: c["optimizers"]["diffusion"]["param_groups"][0].update(eps="x"), "eps is 'x'"),
    ("state.pt", use_state, lambda c: c["modules"].update(other=c["modules"].pop("diffusion")), "modules are of other"),
    ("state.pt", use_state, lambda c: c["more_emas"].append(c["ema"]), "more_emas has 1 averages, wanted 0"),
])  # fmt: skip
def test_what_is_wrong_is_named(folder, tmp_path, name, use, change, said):
    with pytest.raises(ValueError, match=said) as error:
        use(changed(folder, tmp_path, name, change))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(("key", "value"), [
    ("model_channels", 10 ** 9), ("model_channels", 2 ** 19), ("num_blocks", 2 ** 19), ("channel_mult", [1] * 10 ** 5),
    ("channel_mult", [2 ** 19]), ("label_dim", 2 ** 19), ("model_channels", 8 * 10 ** 30)])
def test_a_network_that_is_larger_than_its_file_takes_no_memory_and_no_time(folder, tmp_path, key, value):
    def grow(content: dict) -> None:
        content["network"]["model"][key] = value

    path, start = changed(folder, tmp_path, "net.pt", grow), time.monotonic()
    with pytest.raises(ValueError, match=r"net\.pt"):
        use_network(path)
    assert time.monotonic() - start < 5


def test_an_item_that_memory_does_not_hold_is_refused_before_it_is_drawn_or_decoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 ** 20))
    use_network(folder / "net.pt")
    large = changed(folder, tmp_path, "net.pt", lambda content: content.update(shape=[2, 256, 256]))
    with pytest.raises(ValueError, match=r"net\.pt: drawing 2 x \[2, 256, 256\] takes 10,485,760 bytes of memory"):
        use_network(large)
    monkeypatch.setattr(drawing, "DRAWING", 1)
    large = changed(folder, tmp_path, "net.pt", lambda content: content.update(shape=[2, 512, 256]))
    with pytest.raises(ValueError, match=r"net\.pt: decoding 2 x \[1024, 512\] takes 8,388,608 bytes of memory"):
        use_network(large)


# ---- what torch files may hold ----


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> Path:
    """A torch file after a change of its members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def in_structure(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    """A change of data.pkl."""
    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("data.pkl"))
        assert old in members[name]
        members[name] = members[name].replace(old, new)
    return change


def laughs(levels: int, kind: type) -> object:
    """A list or tuple that holds ten times itself, level by level."""
    made = kind([1] * 10)
    for _ in range(levels):
        made = kind([made] * 10)
    return made


@pytest.mark.parametrize(("content", "said"), [
    ({"a": laughs(12, list)}, "holds too much"), ({"a": laughs(12, tuple)}, "a tuple of .* parts"),
    ({"a": torch.zeros(1).expand(10 ** 12)}, "claims .* values, more than the file holds"),
    ({"a": [torch.zeros(2 ** 20)] * 10}, "claim more values than the file holds"),
    ({"a": torch.zeros(2).to_sparse()}, "_rebuild_sparse_tensor"), ({"a": torch.zeros(2, device="meta")}, "meta"),
    ({"a": bytearray(5)}, "it names .*bytearray"), ({"a": {1, 2}}, "it names"), ({"a": complex(1, 2)}, "it names"),
    ({(1, 2): 3}, r"a name that is a tuple"), ({"a": torch.nn.Parameter(torch.zeros(2))}, "it names"),
])
def test_what_no_file_of_ours_holds_is_refused_before_it_costs_anything(tmp_path, content, said):
    torch.save(content, tmp_path / "odd.pt")
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"odd\.pt: .*{said}") as error:
        checkpoint.read_plain(tmp_path / "odd.pt")
    assert time.monotonic() - start < 5 and "weights_only" not in str(error.value)


def test_deep_nests_compressed_and_doubled_archives_are_refused(tmp_path):
    path, deep = tmp_path / "odd.pt", []
    for _ in range(300):
        deep = [deep]
    torch.save({"a": deep}, path)
    with pytest.raises(ValueError, match="nested too deeply"):
        checkpoint.read_plain(path)
    torch.save({"a": torch.zeros(10 ** 6)}, path)
    with pytest.raises(ValueError, match="no archive as this program writes them"):
        checkpoint.read_plain(rewritten(path, lambda members: None, zipfile.ZIP_DEFLATED))
    torch.save({"a": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match="no archive as this program writes them"):
        checkpoint.read_plain(rewritten(path, lambda members: members.update({"other/data.pkl": b"N."})))


def test_torchs_advice_to_run_what_a_file_holds_reaches_nobody(tmp_path):
    path = tmp_path / "odd.pt"
    torch.save({"a": torch.zeros(4)}, path)
    rewritten(path, in_structure(b"collections\nOrderedDict", b"builtins\nprint"))
    for read in (checkpoint.read_plain, check):
        try:
            said = "".join(read(path).problems)
        except ValueError as error:
            said = str(error)
        assert "it names 'builtins.print'" in said and "weights_only" not in said and "trust" not in said
