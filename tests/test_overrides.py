"""Overrides as they are typed: quotes that give exactly the text, and what is said where they are missing."""

import random
import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from edm3d.utils.compose import compose, readable, shipped_configs
from edm3d.utils.overrides import quoted, to_type

FOLDERS = [shipped_configs()]
NASTY = ['a=b.h5', 'run[1].h5', 'copy(1).h5', 'hash#1.h5', '数据.h5', 'été.h5', '~old.h5', 'a,b.h5', '$HOME', '${x}',
         '${', '\\${x}', '\\\\${x', ' x', 'x ', 'a b', '', '007', '1_000', '1e3', 'true', 'null', '@x', 'a@b',
         'a\\b', 'a\\', '\\\\', "'x", "x'", '"x', "it's", '"\'', "\\'", '\\"', '\'\\"\\', '{a}', '{a:b}', '[a]',
         'a:b', 'a&b', 'a!b', 'a;b|c', '`ls`', '$(ls)', '%x', '-x', '<>', '*?', 'é\'"', "\\${'}", 'a\tb',
         'choice(a,b)', 'a\'b\'${"c\\']


def value_of(override: str) -> object:
    """What a key is in the end when an override is given."""
    parsed = OverridesParser.create().parse_override(override)
    config = OmegaConf.create({"k": None})
    OmegaConf.update(config, "k", parsed.value(), merge=True)
    return OmegaConf.to_container(config, resolve=True)["k"]


def test_what_is_suggested_gives_the_text_through_a_shell():
    words = " ".join(to_type("k", text) for text in NASTY)
    typed = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True).stdout
    assert [value_of(word) for word in typed.decode().split("\0")[:-1]] == NASTY


def test_quotes_give_any_text():
    letters, generator = "ab'\"\\${}=[](),# \t\n~é:.!`", random.Random(0)
    for text in NASTY + ["".join(generator.choices(letters, k=generator.randint(1, 10))) for _ in range(100)]:
        assert value_of(f"k={quoted(text)}") == text


@pytest.mark.parametrize("value", ["a=b.h5", "run[1].h5", "copy(1).h5", "hash#1.h5", "数据.h5", "~old.h5", "a,b.h5",
                                   "it's", "a{b}", "a!b"])
def test_the_override_at_fault_is_named_with_what_to_write(value):
    with pytest.raises(ValueError) as error:
        readable(["training.options.seed=1", f"training.dataset.path={value}"], FOLDERS)
    message = str(error.value)
    assert message.startswith(f"training.dataset.path={value}: ") and "-cn" not in message and "hydra" not in message
    written, = readable(shlex.split(message.rpartition("write ")[2].rpartition(" or ")[2]), FOLDERS)
    assert value_of(written) == value


@pytest.mark.parametrize(("override", "wanted"), [
    ("é=1", "'é' is no key"), ("training.options.seed =1", "no blank before '='"), ("=", "'' is no key"),
    ("training.options.seed", "wanted key=value"), ("", "wanted key=value"), ("~", "wanted key=value"),
    ("training.options.seed=3=4", "wanted int"), ("dataset=é", "no such dataset; there are arrays"),
    ("dataset=[volumes]", "no such dataset"), ("training.dataset.path=a=b" + "x" * 5000, "(5025 letters)"),
    ("training.network.model.channel_mult=[1", "brackets come in pairs"),
    ("training.dataset.path=a\nb", r"a\nb: the value"),
    ("training.dataset.path=${", "cannot stand in this value"), ("training.dataset.path=\udcff", "not UTF-8"),
    ("a=" + "[" * 1000, "no such key"), ("training.dataset.path=" + "[" * 1000, "brackets"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(override, wanted):
    with pytest.raises(ValueError) as error:
        compose("voxels_edm", ["training.options.seed=1", override])
    assert wanted in str(error.value) and "\n" not in str(error.value) and "-cn" not in str(error.value)


@pytest.mark.parametrize("override", ["+dataset=volumes", "++dataset=volumes", "dataset@x=volumes", "a@b=1", "~hydra",
                                      "hydra/job_logging=x", "dataset=null"])
def test_an_override_that_does_not_compose_is_named(override):
    with pytest.raises(ValueError) as error:
        compose("voxels_edm", ["training.options.seed=1", override])
    assert str(error.value).startswith(f"{override}: ") and "\n" not in str(error.value)
