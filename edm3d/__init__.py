"""Diffusion models that draw 3D medical volumes with their label maps; see docs/python.md."""

from pathlib import Path

if not Path(__file__).with_name("networks").is_dir():  # a checkout has the folders beside this one, a wheel in it
    __path__ = [*__path__, str(Path(__file__).resolve().parents[1])]
