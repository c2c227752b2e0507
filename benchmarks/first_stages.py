"""Claims: what the first stages of 64^3 phantoms keep, trained on patches by the shipped configuration.

KL: PSNR within 3 dB of the image without speckle, every Dice 0.95 or more. VQ: within 1 dB of KL, perplexity of the
codes a quarter of the codebook or more. Adversary: after 2,000 steps with it sharper than KL (gradient energy nearer
to that of real volumes), at most 1 dB lower. Each training at most 60 minutes of CPU time. Numbers are those of
evaluate.py --autoencoder on the test split.

Run from the top of the checkout: python -m benchmarks.first_stages [--only kl vq adversary] [--folder FOLDER]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import json_line

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "kl": [],
    "vq": ["autoencoder=vq"],
    "adversary": ["discriminator=patch", "training.discriminator.network.num_layers_d=2",
                  "training.discriminator.start_kimg=2"],
}
CPU_MINUTES, GAP_DB, DICE, VQ_DB, PERPLEXITY, ADVERSARY_DB = 60, 3, 0.95, 1, 0.25, 1


def command(folder: Path, script: str, *arguments: str) -> float:
    """Run one of our commands in a folder; minutes of CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=folder, check=True, stdout=sys.stderr,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def measured(folder: Path, name: str) -> dict:
    """Train a first stage and measure it on held-out volumes: its report, with the minutes that training took."""
    minutes = command(folder, "train.py", "-cn=echo64_vae", *STAGES[name], f"training.options.run_root={name}")
    command(folder, "evaluate.py", "--autoencoder", f"{name}/00000-echo64_vae", "--real", "data/echo64.h5", "--dest",
            f"{name}/report")
    return {**json.loads((folder / name / "report/report.json").read_text()), "minutes": minutes}


def numbers(found: dict) -> dict:
    """What every line says of a first stage."""
    row = found["channels"]["echo"]
    return {"psnr_db": round(row["psnr_db"], 2), "ssim": round(row["ssim"], 4), "sharpness": round(row["sharpness"], 3),
            "dice": {name: round(value, 4) for name, value in found["dice"].items()},
            "cpu_minutes": round(found["minutes"], 1), "limit_cpu_minutes": CPU_MINUTES,
            "volumes": found["real"]["num"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data/echo64.h5").exists():
            command(folder, "dataset_tool.py", "phantom", "--dest", "data/echo64.h5", "--num", "320", "--size", "64")
        kl = measured(folder, "kl")
        gap, psnr = kl["ceiling"]["gap_db"], kl["channels"]["echo"]["psnr_db"]
        print(json_line("KL first stage of 64^3 phantoms: dB below the image without speckle", ours=round(gap, 2),
                        limit=GAP_DB, limit_dice=DICE, **numbers(kl)), flush=True)
        if "vq" in given.only:
            vq = measured(folder, "vq")
            codes = vq["codes"]
            print(json_line("VQ first stage: dB below KL", ours=round(psnr - vq["channels"]["echo"]["psnr_db"], 2),
                            limit=VQ_DB, codebook=codes["size"], perplexity=round(codes["perplexity"], 1),
                            least_perplexity=PERPLEXITY * codes["size"], used=round(codes["used"], 3), **numbers(vq)),
                  flush=True)
        if "adversary" in given.only:
            sharp = measured(folder, "adversary")
            print(json_line("KL with an adversary for 2,000 steps: dB below KL",
                            ours=round(psnr - sharp["channels"]["echo"]["psnr_db"], 2), limit=ADVERSARY_DB,
                            sharpness_without=round(kl["channels"]["echo"]["sharpness"], 3), **numbers(sharp)))


if __name__ == "__main__":
    main()
