"""Draw volumes: torchrun --standalone --nproc_per_node=N generate.py -cn=NAME [key=value ...]"""

from pathlib import Path

import click

from edm3d.utils.command_line import Script


@click.command(cls=Script, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-cn", "--config-name", required=True, help="Experiment: the name of a YAML in configs/.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of experiments and groups of your own, "
              "searched first; then configs/ in the working folder, then the shipped ones.")
@click.argument("overrides", nargs=-1)
def main(config_name: str, config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Draw volumes from the newest trained network of an experiment.

    Overrides are key=value pairs: sampling.seeds=0-63 sampling.outdir=results/mine, or groups such as sampler=edm_sde.
    """
    from edm3d.utils.log import run_main
    debug = any(o.lower() == "training.options.debug=true" for o in overrides)
    run_main(lambda: run(config_name, config_dir, overrides), debug)


def run(config_name: str, config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Compose the experiment and draw the seeds it asks for."""
    from edm3d.utils.compose import compose
    config = compose(config_name, overrides, config_dir)
    from edm3d.inference.generation import generate
    from edm3d.training.tasks import TASKS
    name = config["training"]["task"]
    if name not in TASKS or not TASKS[name].draws:
        raise ValueError(f"-cn={config_name}: task {name} draws nothing; choose a diffusion experiment")
    generate(config_name, config)


if __name__ == "__main__":
    main()
