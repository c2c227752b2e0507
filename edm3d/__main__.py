"""The command `edm3d`, also `python -m edm3d`: the four scripts under one name."""

import click

from edm3d import dataset_tool, evaluate, generate
from edm3d.train import main as train
from edm3d.utils.command_line import Scripts


@click.group(cls=Scripts, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Diffusion models that draw 3D medical volumes with their label maps.

    On several GPUs: torchrun -m edm3d.train, -m edm3d.generate, -m edm3d.dataset_tool take the same words.
    """


for name, command in {"train": train, "generate": generate.main, "data": dataset_tool.main,
                      "evaluate": evaluate.main}.items():
    main.add_command(command, name)

if __name__ == "__main__":
    main(prog_name="edm3d")
