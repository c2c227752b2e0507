"""Private runs: the ledger through kills and over ranks, what is written with it, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant

from dataset_tool import main
from edm3d.formats.describe import describe
from edm3d.formats.facts import AttributeStatistics, Facts, LatentFacts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.training_state import TrainingState
from edm3d.inference.private_samples import said_of_samples
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.latent_codec import shift_and_gain
from edm3d.training import training_loop
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.phases import Task
from edm3d.training.preview import Preview, Shown
from edm3d.training.private.budget import open_budget
from edm3d.training.private.checks import check_config, check_task
from edm3d.training.private.release import Release, needed
from edm3d.training.private.start import asked_privacy, said_of
from edm3d.training.private.step import PrivateStep
from edm3d.training.resume import RunRecord, overtaken, read_state
from edm3d.training.tasks.diffusion import diffusion_task
from edm3d.training.training_loop import Trainer
from edm3d.training.validation import Held
from edm3d.utils import checkpoint, distributed
from edm3d.utils.compose import compose
from edm3d.utils.log import RunLog, write_status
from edm3d.utils.runs import list_files
from edm3d.utils.schema import Options, Privacy
from edm3d.utils.stats import StatsFiles
from edm3d.utils.stop import Stop
from tests.commands import refused, succeed
from tests.ranks import on_ranks
from tests.toy import BLANK, OPTIONS, Critic, Points, Toy, make_trainer, ticks, two_phases

PRIVACY = Privacy(5, 1e-3, noise_multiplier=4.0)
RECORD = RunRecord({"training": {"options": {"seed": 0}}}, Facts("points", "data"))
RATE = 12 / 31


class Killed(BaseException):
    """The process is gone."""


def make_private(run_dir: Path, options: Options = OPTIONS, privacy: Privacy = PRIVACY, *, state: Path | None = None,
                 held: Held | None = None, preview: Preview | None = None, task: Task | None = None) -> Trainer:
    """A private trainer of a toy, going on from a state where one is given."""
    run_dir.mkdir(parents=True, exist_ok=True)
    net = Toy()
    task = task or diffusion_task(net, EDMLoss(), torch.optim.Adam(net.parameters(), lr=3e-2), Identity(), BLANK)
    found = read_state(state, RECORD) if state else None
    budget = open_budget(privacy, options, Points(), found.ledger if found else None)
    trainer = Trainer(task, Points(), options, run_dir=run_dir, device=torch.device("cpu"), log=RunLog(False),
                      record=RECORD, held=held, preview=preview, private=Release(budget, measures=held is not None))
    if found:
        trainer.restore(found)
    return trainer


def direct(steps: int, noise: float = 4.0, rate: float = RATE, delta: float = 1e-3) -> float:
    """What the accountant says, asked directly."""
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    return accountant.get_epsilon(delta)


# ---- the ledger ----


def test_a_run_says_what_it_has_spent(tmp_path):
    trainer = make_private(tmp_path)
    trainer.run(Stop(tmp_path))
    state = TrainingState.read(list_files(tmp_path, "training-state")[-1])
    snapshot = Snapshot.read(list_files(tmp_path, "network-snapshot")[-1])
    statement = PrivacyStatement.read(tmp_path / "privacy.json")
    assert state.ledger.steps == 20 and state.nimg == 240
    assert any("epsilon" in line and "per record, of 31" in line for line in privacy_lines_of(tmp_path))
    assert snapshot.privacy == statement and statement.ledger == state.ledger
    assert statement.epsilon == pytest.approx(direct(20), abs=1e-6)
    assert json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])["privacy/epsilon"] == statement.epsilon
    assert any("epsilon" in line and "per record, of 31" in line for line in describe(snapshot.path))


def privacy_lines_of(run_dir: Path) -> list[str]:
    """What info says of a run folder's privacy."""
    write_status(run_dir, "done")
    return [line for line in describe(run_dir) if "Privacy" in line]


def test_a_folder_never_says_less_than_lies_in_it(tmp_path):
    """Gone on with after its end and killed: the statement is that of the newest state, and privacy-ledger's too."""
    make_private(tmp_path, replace(OPTIONS, total_kimg=0.024)).run(Stop(tmp_path))
    options, privacy = replace(OPTIONS, state_ticks=1, kimg_per_tick=0.024), replace(PRIVACY, target_epsilon=50)
    trainer = make_private(tmp_path, options, privacy, state=list_files(tmp_path, "training-state")[-1])
    monkey = trainer.tick

    def tick() -> None:
        monkey()
        if trainer.progress.nimg == 72:
            raise Killed

    trainer.tick = tick
    with pytest.raises(Killed):
        trainer.run(Stop(tmp_path))
    assert PrivacyStatement.read(tmp_path / "privacy.json").ledger.steps == 6
    assert "6 steps on 31 records" in succeed(main, "privacy-ledger", str(tmp_path))
    (tmp_path / "privacy.json").unlink()  # a run of before, stopped early
    assert "6 steps on 31 records" in succeed(main, "privacy-ledger", str(tmp_path), "--delta", "1e-3")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no privacy.json and no training state" in refused(tmp_path, main, "privacy-ledger", str(empty))


@pytest.mark.parametrize(("state", "snapshots", "found"), [
    ("000012", [], False), ("000012", ["000006", "000012"], False), ("000012", ["000012", "000024"], True),
    ("000012.500", ["000012.500"], False), ("000012", ["000012.500"], True), ("000100", ["000099.999"], False)])
def test_later_snapshots_tell_that_newer_states_are_gone(tmp_path, state, snapshots, found):
    for name in snapshots:
        (tmp_path / f"network-snapshot-{name}.pt").touch()
    assert overtaken(tmp_path / f"training-state-{state}.pt") == found


def test_wandb_is_not_told_where_private_data_lie(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(training_loop, "start_wandb", lambda project, run_dir, config: told.append(config))
    config = {"training": {"dataset": {"path": "/home/x/patients.h5"}, "options": {"seed": 0}}}
    options = replace(OPTIONS, wandb="project", total_kimg=0.012)
    for trainer in (make_private(tmp_path / "private", options), make_trainer(tmp_path / "plain", options)):
        trainer.record = RunRecord(config, trainer.record.facts)
        trainer.run(Stop(tmp_path))
    assert ["/home/x" in str(each) for each in told] == [False, True]


def test_a_run_ends_when_its_budget_is_spent(tmp_path):
    trainer = make_private(tmp_path, privacy=replace(PRIVACY, target_epsilon=1.0))
    trainer.run(Stop(tmp_path))
    steps = trainer.private.budget.ledger.steps
    assert direct(steps) <= 1 < direct(steps + 1) and trainer.progress.nimg == 12 * steps < 240
    assert Snapshot.read(list_files(tmp_path, "network-snapshot")[-1]).privacy.ledger.steps == steps


def test_the_ledger_is_that_of_the_weights_after_twenty_kills(tmp_path, monkeypatch):
    """Killed before and after every kind of write and move, each time from the newest state on."""
    calls, at = [0], [0]

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def around(*given, **named):
            calls[0] += 1
            if calls[0] == at[0]:
                raise Killed
            found = original(*given, **named)
            calls[0] += 1
            if calls[0] == at[0]:
                raise Killed
            return found

        monkeypatch.setattr(owner, name, around)

    for owner, name in ((checkpoint, "save"), (PrivateStep, "applied"), (Trainer, "apply"), (StatsFiles, "write"),
                        (PrivateStep, "add_noise")):
        watch(owner, name)
    options, kills, state = replace(OPTIONS, snapshot_ticks=1, kimg_per_tick=0.024, total_kimg=0.72), 0, None
    privacy = replace(PRIVACY, target_epsilon=50)
    for stop_at in [1, 2, 3, 5, 7, 9, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 29, 34, 38, 10 ** 6]:
        calls[0], at[0] = 0, stop_at
        trainer = make_private(tmp_path, options, privacy, state=state)
        try:
            trainer.run(Stop(tmp_path))
        except Killed:
            kills += 1
        states = list_files(tmp_path, "training-state")
        state = states[-1] if states else None
        written = [Snapshot.read(path) for path in list_files(tmp_path, "network-snapshot")]
        newest = TrainingState.read(state).nimg if state else 0
        assert all(snapshot.nimg <= newest for snapshot in written)  # nothing left without a state of its steps
        assert all(snapshot.privacy.ledger.steps * 12 == snapshot.nimg for snapshot in written)
    assert kills == 20
    found = TrainingState.read(state)
    assert found.nimg == 720 == written[-1].nimg and found.ledger.steps == 60
    assert PrivacyStatement.read(tmp_path / "privacy.json").epsilon == pytest.approx(direct(60), abs=1e-6)


def on_rank(folder: Path) -> None:
    """One of two processes: a whole run, and steps of noise alone."""
    trainer = make_private(folder, replace(OPTIONS, batch_gpu=2))
    trainer.run(Stop(folder))
    privacy = replace(PRIVACY, max_grad_norm=1e-6, noise_multiplier=5.0)
    trainer, drawn = make_private(folder / "noise", replace(OPTIONS, batch_gpu=1), privacy), []
    data = trainer.batches()
    for _ in range(40):
        trainer.step(data)
        drawn.append(torch.cat([p.grad.reshape(-1) for p in trainer.task.net.parameters()]))
    drawn = torch.stack(drawn)
    both = distributed.gather(drawn)
    assert torch.equal(both[0], both[1])
    assert float(drawn.std()) == pytest.approx(5e-6 / 12, rel=0.05)


def test_two_ranks_spend_what_one_does_and_add_noise_once(tmp_path):
    on_ranks(on_rank, tmp_path)
    state = TrainingState.read(list_files(tmp_path, "training-state")[-1])
    assert state.ledger.steps == 20
    assert PrivacyStatement.read(tmp_path / "privacy.json").epsilon == pytest.approx(direct(20), abs=1e-6)


def test_states_that_do_not_go_together_are_refused(tmp_path):
    trainer = make_private(tmp_path, replace(OPTIONS, total_kimg=0.024))
    trainer.run(Stop(tmp_path))
    path = list_files(tmp_path, "training-state")[-1]
    state = TrainingState.read(path)
    for other, said in ((replace(state, ledger=None), "no privacy ledger"),
                        (replace(state, ledger=state.ledger.after(4.0, RATE)), "of 3 steps, its weights have made 2"),
                        (replace(state, ledger=state.ledger._replace(max_grad_norm=2.0)), "max_grad_norm: 2.0 -> 1")):
        with pytest.raises(ValueError, match=said):
            make_private(tmp_path).restore(other)
    assert "2 steps are spent" in "\n".join(said_of(make_private(tmp_path, state=path).private.budget))


# ---- what leaves ----


def test_ticks_without_a_state_write_nothing_and_losses_are_nowhere(tmp_path, monkeypatch):
    order = []
    for owner, name in ((Trainer, "save_state"), (Trainer, "validate"), (StatsFiles, "write"), (Trainer, "show"),
                        (Trainer, "save_average")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, _of=original, _name=name, **named: (
            order.append(_name), _of(*given, **named))[1])
    trainer = make_private(tmp_path, replace(OPTIONS, kimg_per_tick=0.024), held=Held(Points(), 2),
                           preview=Preview(lambda net: Shown([("Generated", [(np.zeros((4, 4)), None)])],
                                                              {"spacing": [1, 1]}), 3))
    trainer.run(Stop(tmp_path))
    told = [t for t in ticks(tmp_path)]
    assert [t["tick"] for t in told] == [2, 3, 4, 6, 8, 9, 10]
    allowed = {"tick", "kimg", "bad_steps", "lr", "privacy/epsilon", "val/loss"}
    assert all({key for key in t if not key.startswith("val/")} <= allowed for t in told)
    assert not any(key.startswith(("loss", "grad", "data")) for t in told for key in t)
    since = [i for i, name in enumerate(order) if name == "save_state"]
    assert order[0] == "save_state" and len(since) >= 7
    statement = PrivacyStatement.read(tmp_path / "privacy.json")
    assert any("held-out items" in text for text in statement.not_covered)


FACTS = Facts("/home/x/patients.h5", "0123abcd", ("mr",), ("bg", "lv"), intensity=Intensity(-3.0, 812.5, False, "HU"),
              spatial_shape=(4, 4, 4),
              affine=((0.0, 2.0, 0, 17.5), (2.0, 0.0, 0, -3.25), (0, 0, 3.0, 9.0), (0, 0, 0, 1)),
              attribute_names=("age",), attribute_units=("y",),
              attribute_statistics=AttributeStatistics([61.5], [7.25], [41.125], [83.0], [2], 31),
              latents=LatentFacts("/home/x/latents.h5", "beef", [0.125], [0.875]))


def private_snapshot(tmp_path: Path, public: Snapshot | None = None) -> Snapshot:
    """A snapshot of private latents, read again."""
    budget = open_budget(PRIVACY, OPTIONS, Points())
    budget.spend()
    scaling = LatentScaling([0.125], [0.875], [-4.375, 6.0625])
    config = {"training": {"dataset": {"_target_": "x", "path": ["/home/x/latents.h5"], "split": "train", "num": 7,
                                       "only": {"sites": [["/home/x"]]}}, "options": {}},
              "sampling": {"real": "/home/x/patients.h5", "quality": {"reference": "/home/x/patients.h5"},
                           "posterior": {"measured": "/home/x/scan.npy"}}}
    network = {"_target_": "x", "model": {"attribute_mean": [61.5], "attribute_std": [7.25]}}
    snapshot = Snapshot("diffusion", network, FACTS, (1, 2, 2, 2), CarriedStage(scaling, round_trip={"psnr_db": 31.5}),
                        {"w": torch.zeros(2)}, config, 12)
    Release(budget, public).snapshot(snapshot).save(tmp_path / "network-snapshot-000000.pt")
    return Snapshot.read(tmp_path / "network-snapshot-000000.pt")


def test_facts_of_a_private_snapshot_say_nothing_that_was_measured(tmp_path):
    snapshot = private_snapshot(tmp_path)
    text = str(snapshot.plain() | {"privacy": None})
    assert snapshot.config["training"]["dataset"] == {"_target_": "x", "split": "train", "num": 7}
    for found in ("/home", "patients", "0123abcd", "beef", "17.5", "3.25", "41.125", "83.0", "31.5", "4.375",
                  "6.0625"):
        assert found not in text, found
    assert snapshot.facts.channels == ("mr",) and snapshot.facts.attribute_names == ("age",)
    assert np.allclose(snapshot.facts.spacing, (2, 2, 3)) and snapshot.facts.attribute_statistics is None
    said = "\n".join(snapshot.privacy.not_covered)
    for named in ("intensity range, -3 to 812.5 HU", "of the attributes", "of the latents"):
        assert named in said


def test_of_latents_a_snapshot_has_what_scales_them_alone():
    known = LatentScaling([0.125], [0.875], [-4.375, 6.0625])
    assert needed(known) == LatentScaling([0.125], [0.875], None)
    for scaling in (known, known._replace(scaling="minmax"), known._replace(scaling="scale_factor")):
        assert shift_and_gain(*needed(scaling)) == shift_and_gain(*scaling)


def test_what_public_weights_knew_is_public(tmp_path):
    first = private_snapshot(tmp_path)
    public = replace(first, facts=FACTS, privacy=None, path=Path("public.pt"))
    snapshot = private_snapshot(tmp_path, public)
    said = "\n".join(snapshot.privacy.not_covered)
    assert not any(named in said for named in ("intensity", "mean and standard"))
    assert snapshot.facts.attribute_statistics == FACTS.attribute_statistics
    assert snapshot.privacy.start == f"of public.pt ({first.hash[:12]}), taken as public"
    from_private = private_snapshot(tmp_path, first).privacy
    assert "privately trained: epsilon" in from_private.start and len(from_private.earlier) == 1


def test_samples_carry_the_statement(tmp_path):
    statement = private_snapshot(tmp_path).privacy
    meta = SampleMeta(Facts("f", "h"), "s.pt", "hash", {}, privacy=statement)
    assert SampleMeta.from_plain(json.loads(json.dumps(meta.plain())), "file") == meta
    assert "privacy" not in SampleMeta(Facts("f", "h"), "s.pt", "hash", {}).plain()["data"]


def test_samples_name_what_else_they_are_made_of(tmp_path):
    snapshot = private_snapshot(tmp_path)
    said = snapshot.privacy
    assert said_of_samples(said, {"sampler": {}, "guidance": {"strength": 2}}) == said
    found = said_of_samples(said, {"conditions": {}, "posterior": {}, "quality": {}, "guidance": {"guide": "d" * 64}},
                            replace(snapshot, privacy=None, hash="e" * 64))
    assert found.not_covered[-len(said.not_covered):] == said.not_covered and found.earlier == said.earlier
    for part, text in zip(("row by row of a file", "measurement", "drawn again", "refiner eeeeeeeeeeee has",
                           "guided them dddddddddddd has"), found.not_covered, strict=False):
        assert part in text
    other = said._replace(ledger=said.ledger._replace(key="another"))
    refined = said_of_samples(said, {"refiner": {}}, replace(snapshot, privacy=other))
    assert refined.not_covered == said.not_covered
    assert [(each.what, each.ledger) for each in refined.earlier] == [
        (f"refiner {snapshot.hash[:12]}", other.ledger)]


def test_ledgers_compose(tmp_path):
    """Two runs are one history; samples, snapshots, states and run folders all say it."""
    for name, steps in (("a", 0.024), ("b", 0.036)):
        make_private(tmp_path / name, replace(OPTIONS, total_kimg=steps)).run(Stop(tmp_path / name))
    a, b = (list_files(tmp_path / name, "network-snapshot")[-1] for name in "ab")
    state = list_files(tmp_path / "b", "training-state")[-1]
    for other in (b, tmp_path / "b", tmp_path / "b/privacy.json", state):
        lines = succeed(main, "privacy-ledger", str(a), str(other)).splitlines()
        assert f"epsilon {direct(2):.4g} at delta 0.001 per record, 2 steps on 31 records" in lines[0]
        assert f"Together: epsilon {direct(5):.4g} at delta 0.001" in lines[2]
    assert f"epsilon {direct(3, delta=1e-4):.4g}" in succeed(main, "privacy-ledger", str(b), "--delta", "1e-4")
    assert "give one by --delta" in refused(tmp_path, main, "privacy-ledger", str(state))
    plain = tmp_path / "plain.pt"
    replace(Snapshot.read(a), privacy=None).save(plain)
    assert "holds no privacy ledger" in refused(tmp_path, main, "privacy-ledger", str(plain))
    other = Snapshot.read(a)
    grouped = other.privacy._replace(ledger=other.privacy.ledger._replace(unit="group", key="another"))
    replace(other, privacy=grouped).save(plain)
    assert "different units (group, record)" in refused(tmp_path, main, "privacy-ledger", str(a), str(plain))


# ---- what is refused ----


@pytest.mark.parametrize(("overrides", "said"), [
    (["training.options.checkpointing=true"], "checkpointing=true"),
    (["training.options.compile=true"], "compile=true"),
    (["training.options.profile=true"], "profile=true"), (["training.options.tune=true"], "tune=true"),
    (["training.options.precision=fp16"], "precision=fp16"),
    (["training.options.parallel=fsdp"], "parallel=fsdp"), (["training.loss.strata=16"], "strata"),
])
def test_what_breaks_the_proof_is_refused(overrides, said):
    training = compose("echo_edm", ["privacy=eps10", *overrides])["training"]
    with pytest.raises(ValueError, match=f"{said}: .*target_epsilon is set, and"):
        asked_privacy(training, Options(**training["options"]))


def test_what_breaks_the_proof_of_a_first_stage_is_refused():
    for override, said in (("discriminator=patch", "training.discriminator"),
                           ("training.loss.perceptual_weight=1", "perceptual_weight")):
        training = compose("echo_vae", ["privacy=eps1", override])["training"]
        with pytest.raises(ValueError, match=said):
            check_config(training, Options(**training["options"]))
    training = compose("echo2d_segmentation", ["privacy=eps1"])["training"]
    with pytest.raises(ValueError, match="task=segmentation"):
        check_config(training, Options(**training["options"]))


def test_networks_that_see_other_images_are_refused():
    with pytest.raises(ValueError, match="2 networks that learn"):
        check_task(two_phases())
    task = two_phases()
    task.phases[1].module = Critic()
    with pytest.raises(ValueError, match="norm is a BatchNorm1d"):
        check_task(replace(task, phases=task.phases[1:]))
    task.phases[0].absorb = lambda totals, nimg: None
    with pytest.raises(ValueError, match="codebook moves"):
        check_task(replace(task, phases=task.phases[:1]))


def test_privacy_is_asked_for_by_its_epsilon():
    training = compose("echo_edm", [])["training"]
    assert asked_privacy(training, Options(**training["options"])) is None
    training = compose("echo_edm", ["training.privacy.target_delta=1e-5"])["training"]
    with pytest.raises(ValueError, match="target_epsilon is null"):
        asked_privacy(training, Options(**training["options"]))
    training = compose("echo_edm", ["training.privacy.target_epsilon=3", "training.privacy.target_delta=1e-5"])
    privacy = asked_privacy(training["training"], Options(**training["training"]["options"]))
    assert privacy == Privacy(3, 1e-5)
