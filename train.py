"""Train an experiment: torchrun --standalone --nproc_per_node=N train.py -cn=NAME [key=value ...]"""

from pathlib import Path

import click

from edm3d.utils.command_line import Script


@click.command(cls=Script, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-cn", "--config-name", required=True, help="Experiment: the name of a YAML in configs/.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of experiments and groups of your own, "
              "searched first; then configs/ in the working folder, then the shipped ones.")
@click.argument("overrides", nargs=-1)
def main(config_name: str, config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Train the autoencoder or diffusion model of an experiment.

    Overrides are key=value pairs: training.options.batch_size=32 training.options.resume=latest, or groups such as
    network=adm.
    """
    from edm3d.utils.log import run_main
    debug = any(o.lower() == "training.options.debug=true" for o in overrides)
    run_main(lambda: run(config_name, config_dir, overrides), debug)


def run(config_name: str, config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Compose the experiment and train it."""
    from edm3d.utils.compose import compose
    config = compose(config_name, overrides, config_dir)
    from edm3d.training.run import train
    train(config_name, config)


if __name__ == "__main__":
    main()
