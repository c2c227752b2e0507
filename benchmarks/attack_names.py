"""Hostile names, ids, units and paths put wherever a file has some, and what commands make of them on disk."""

import csv
import io
import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import torch

from benchmarks.attack_files import Ground, trial
from benchmarks.attack_judge import Verdict
from benchmarks.attack_kinds import Target, check, info, prepare, published_in, train
from benchmarks.attack_watch import CANARY, Command, Fault
from benchmarks.attack_world import ALONE, CASES, EVALUATE, GENERATE, LATENT_RUN, TABLE, TOOL, VOXEL_RUN, call
from edm3d.formats import h5
from edm3d.formats.volumes import VolumesFile
from edm3d.utils.checkpoint import checksum

E_ACUTE = "é"
HOSTILE = (
    "../up", "../../up", "/tmp/" + CANARY, "a/b", "a\\b", "..", ".", "", " ", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07",
    "two\nlines", "bell\x07", "nul\0byte", "${oc.env:HOME}", "${oc.create:{_target_:os.mkdir,path:" + CANARY + "}}",
    "${.x}", "${", "{a:1}", "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "x" * 240, "é" * 120,
    unicodedata.normalize("NFC", E_ACUTE), unicodedata.normalize("NFD", E_ACUTE), "Case", "cASE", ".tmp-1-x",
    ".tmp-1-0123456789abcdef-x", ".hidden", "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "$\\frac{",
    "$x^", "%s%n{0}", "CON", "a:b", "null", "~", "-rf", "‮evil", "　", "'; drop", "__proto__", "../decode.json",
    "seed000001", "a\r\nb")  # fmt: skip
PATHS = ("../secret.nii.gz", "/etc/passwd", "/dev/zero", "./imagesTr/../../gz/images/case1.nii.gz", "", "\0", "a\nb",
         "./imagesTr", "~/x.nii.gz", "${oc.env:HOME}/x.nii.gz", "http://localhost:9/x.nii.gz", "x" * 300)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
Put = Callable[[Path, Sequence[str], random.Random], None]


class Spot(NamedTuple):
    """Where names are put, and who reads them there."""

    name: str
    put: Put
    commands: tuple[Command, ...]


# ---- what must hold of what was written ----


def count_in(folder: str, wanted: int) -> None:
    """As many NIfTI images as there are items: no two ids fell together."""
    found = len(list(Path(folder, "images").glob("*.nii.gz"))) if Path(folder, "images").is_dir() else 0
    if found != wanted:
        raise Fault("lost_outputs", f"{folder}/images holds {found} of {wanted} volumes")


def all_items(path: str) -> int:
    """How many volumes a file holds."""
    file = VolumesFile(path)
    return sum(map(file.length, file.splits))


def check_tables(folder: str = "out") -> None:
    """No cell that a spreadsheet computes, no markup out of a file in a page, no escape in a text."""
    for path in Path(folder).rglob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
            if bad := [text for text in row if text.startswith(FORMULA) and not is_number(text)]:
                raise Fault("code_run", f"{path} has the cell {bad[0]!r}")
    for path in Path(folder).rglob("*.html"):
        if bad := [word for word in ("<script>alert", "<img src=x") if word in path.read_text()]:
            raise Fault("code_run", f"{path} has {bad[0]!r}")


def is_number(text: str) -> bool:
    """Whether a cell is a number, which may begin with a sign."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def then(name: str, run: Callable[[], None], check: Callable[[], None]) -> Command:
    """A command, and what must hold of what it wrote."""
    def both() -> None:
        run()
        check()

    return Command(name, both)


EXPORT = tuple(then(f"export {kind} {path}", partial(call, TOOL, "export", path, "--format", kind, "--dest", "out"),
                    (lambda path=path: count_in("out", all_items(path))) if kind == "nifti" else lambda: None)
               for path in ("vols.h5",) for kind in ("nifti", "png"))
DECODE = then("decode to a folder", partial(call, TOOL, "decode", "--latents", "lat.h5", "--dest", "out/d", *ALONE),
              lambda: count_in("out/d", all_items("vols.h5")))
SCORE = then("evaluate", partial(call, EVALUATE, "--dest", "out", "--run-root", "out/results", "--real", "vols.h5",
                                 "--generated", "samples.h5", "--num-noise", "0"), check_tables)
STAGE = then("evaluate first stage", partial(call, EVALUATE, "--dest", "out", "--real", "vols.h5", "--autoencoder",
                                             "stage.pt", "--num", "3", "--min-psnr", "0"), check_tables)
DRAW = then("generate", partial(call, GENERATE, *LATENT_RUN, "sampling.network=latent.pt", "sampling.outdir=out",
                                "sampling.nifti=true", "sampling.montage=2"), lambda: None)
ENCODE = Command("encode", partial(call, TOOL, "encode", "--autoencoder", "stage.pt", "--source", "vols.h5", "--dest",
                                   "out/l.h5", "--round-trip", "1", *ALONE))
PUBLISH = then("publish", partial(call, TOOL, "publish", "latent.pt", "--dest", "out/p", "--licence", "other"),
               lambda: published_in("out/p"))
START = (train("train latents", LATENT_RUN), train("train voxels", VOXEL_RUN))


# ---- where names are put ----


def put_ids(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As ids (every other time as groups, too) of volumes and of their latents."""
    also_groups = chance.random() < 0.5
    for path in ("vols.h5", "lat.h5"):
        with h5py.File(folder / path, "r+") as file:
            for name in ("ids", "groups") if also_groups else ("ids",):
                old = h5.read_strings(file["train"][name])
                fresh = [*names, *old[len(names):]]
                del file["train"][name]
                h5.write_strings(file["train"], name, fresh)
            h5.seal(file)


def put_facts(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As names of channels and classes, and as unit, the same in volumes, latents, samples and snapshots."""
    how = chance.choice(["channels", "label_classes", "class_names", "unit"])

    def change(told: dict) -> None:
        if how == "unit":
            told["intensity"]["unit"] = names[0]
        elif told.get(how):
            told[how] = list(names[:len(told[how])])

    edit_h5(folder / "vols.h5", {how if how != "unit" else "intensity": lambda old: (
        {**old, "unit": names[0]} if how == "unit" else list(names[:len(old)]))})
    for path in ("lat.h5", "samples.h5"):
        edit_h5(folder / path, {"data": lambda old: change(old) or old})
    for path in ("stage.pt", "latent.pt"):
        edit_torch(folder / path, lambda data: change(data["data"]))


def put_sources(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As paths that files name: of data, latents, snapshots, and as words that describe latents."""
    name = chance.choice([*names, "/etc/passwd", "/dev/zero", "../vols.h5"])
    word = chance.choice(["scaling", "posterior", "provenance"])
    edit_h5(folder / "lat.h5", {"data": lambda old: {**old, "source": name},
                                word: lambda old: {"kind": name} if word == "provenance" else name})
    edit_h5(folder / "samples.h5", {"snapshot": lambda old: name})
    for path in ("stage.pt", "latent.pt"):
        def change(data: dict) -> None:
            data["data"]["source"] = name
            data["config"]["training"]["dataset"]["path"] = name
        edit_torch(folder / path, change)


def put_split(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As the name of a split, as far as HDF5 takes it for one."""
    for path in ("vols.h5", "lat.h5"):
        with h5py.File(folder / path, "r+") as file:
            name = next((n for n in names if n and "\0" not in n and "/" not in n and n != "."), "sp lit")
            file.move("val", name)
            h5.seal(file)


def put_targets(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As arguments and targets of networks and samplers that a snapshot names."""
    value = chance.choice([{"_target_": "os.system", "command": f"touch {CANARY}"}, names[0],
                           {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://localhost:9/x"},
                           {"_target_": "subprocess.Popen", "args": ["touch", CANARY]},
                           {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"},
                           {"_target_": "torch.load", "f": names[0]}, {"_target_": "builtins.eval", "source": "1"}])

    def change(data: dict) -> None:
        node = data["network"] if chance.random() < 0.5 or not data["first_stage"] else data["first_stage"]["network"]
        key = chance.choice(["_target_", chance.choice(sorted(node))])
        node[key] = value["_target_"] if key == "_target_" and isinstance(value, dict) else value
        half = data["config"].get("sampling")
        if half and chance.random() < 0.3:
            half["sampler"] = value

    for path in ("latent.pt", "stage.pt"):
        edit_torch(folder / path, change)


def put_table(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As ids, groups, classes and columns of a table; files of the ids are called so where a file can be."""
    rows = [line.split(",") for line in TABLE.splitlines()]
    column = chance.randrange(4)
    for row, name in zip(rows[chance.choice([0, 1]):], names):
        if column == 0 and row is not rows[0]:
            rename(folder / "gz", row[0], name)
        row[column] = name
    with open(folder / "gz/table.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)


def put_files(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As names of image files, which no table lists; some are not UTF-8."""
    (folder / "gz/table.csv").write_text("id,age [y]\n")
    for number, name in enumerate(names[:CASES]):
        rename(folder / "gz", f"case{number}", name)
    if chance.random() < 0.3:
        rename(folder / "gz", f"case{CASES - 1}", "odd\udcff\udcfe")
    if chance.random() < 0.3:
        (folder / "gz/images/link.nii.gz").symlink_to(chance.choice(["/etc/passwd", "case0.nii.gz", "nowhere", "."]))


def put_task(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    """As names and paths in a dataset.json."""
    path = folder / "task/dataset.json"
    task = json.loads(path.read_text())
    how = chance.choice(["modality", "labels", "paths", "paths", "keys"])
    if how == "modality":
        task["modality"] = {"0": names[0]}
    elif how == "labels":
        task["labels"] = {"0": names[0], "1": names[1]}
    elif how == "keys":
        task["labels"] = {names[0]: "background", names[1]: "x"}
    else:
        task["training"][1][chance.choice(["image", "label"])] = chance.choice(PATHS)
    path.write_text(json.dumps(task))


def rename(folder: Path, old: str, new: str) -> None:
    """Call image and label map of a case by another name, where a file can have it."""
    for kind in ("images", "labels"):
        if "/" not in new and "\0" not in new and new not in (".", "..") and len(new.encode(errors="ignore")) < 245:
            target = folder / kind / f"{new}.nii.gz"
            if not target.exists():
                (folder / kind / f"{old}.nii.gz").rename(target)


def edit_h5(path: Path, changes: dict[str, Callable]) -> None:
    """Change JSON attributes of the root under a hash made anew."""
    with h5py.File(path, "r+") as file:
        for name, change in changes.items():
            h5.put_json(file, name, change(h5.get_json(file, name)))
        h5.seal(file)


def edit_torch(path: Path, change: Callable[[dict], object]) -> None:
    """Change a snapshot under a checksum made anew."""
    data = torch.load(path, weights_only=True)
    del data["checksum"]
    change(data)
    torch.save({**data, "checksum": checksum(data)}, path)


FILES = tuple(map(check, ("vols.h5",))) + tuple(map(info, ("lat.h5",)))
COHORT = (prepare("--images", "gz/images", "--labels", "gz/labels", "--table", "gz/table.csv"), check("gz"))
PLACES = (
    Spot("ids", put_ids, (*FILES, *EXPORT, DECODE, ENCODE, SCORE, STAGE)),
    Spot("facts", put_facts, (*FILES, *EXPORT, DECODE, ENCODE, SCORE, STAGE, DRAW, PUBLISH, *START)),
    Spot("table", put_table, COHORT),
    Spot("sources", put_sources, (*FILES, DECODE, SCORE, DRAW, PUBLISH, *START)),
    Spot("file names", put_files, COHORT),
    Spot("targets", put_targets, (DRAW, ENCODE, PUBLISH)),
    Spot("task", put_task, (prepare("--decathlon", "task"),)),
    Spot("splits", put_split, (*FILES, *EXPORT, DECODE, ENCODE, SCORE, *START)),
)
SAID = ("/etc/passwd", "/dev/zero",
        ".h5", ".pt", "table.csv", "dataset.json", "gz/", "task", "--dest", "training.", "sampling.", "--split")


def name_trial(ground: Ground, number: int) -> Verdict:
    """Hostile names number N, in place N mod places."""
    place, chance = PLACES[number % len(PLACES)], ground.chance("names", number)
    names = chance.sample(HOSTILE, 4)
    said_as = (*SAID, *filter(None, (name.strip() for name in names)))
    kind = Target(place.name, "vols.h5", "vols2.h5", place.commands, False, said_as)
    return trial(ground, "names", number, kind, f"{place.name}: {names!r:.300}",
                 lambda folder: place.put(folder, names, chance), False)
