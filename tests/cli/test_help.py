"""Help, names and versions: what a reader meets first."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys

import pytest

import minedge
from minedge.cli import VERBS
from minedge.cli.parser import Parser
from tests.python import PYTHON

# The tour has a file of its own with tests of its own.
OWN = [verb for verb in VERBS if verb != "tour"]


@pytest.mark.parametrize("verb", OWN)
def test_help_describes_the_verb_and_shows_examples(cli, verb):
    result = cli(verb, "--help")
    assert result.code == 0
    assert result.err == ""
    assert f"usage: minedge {verb}" in result.out
    module = importlib.import_module(f"minedge.cli.{verb}")
    assert 2 <= len(module.EXAMPLES) <= 6
    assert all(example in result.out for example in module.EXAMPLES)
    assert " ".join(module.DESCRIPTION.split())[:40] in result.out
    for option in ("--json", "--quiet", "--debug", "--threads"):
        assert option in result.out


@pytest.mark.parametrize("verb", OWN)
def test_every_example_is_a_command_that_parses(verb):
    for example in importlib.import_module(f"minedge.cli.{verb}").EXAMPLES:
        words = shlex.split(re.split(r"[<>]", example.split("|")[-1])[0])
        start = words.index("minedge")
        other = importlib.import_module(f"minedge.cli.{words[start + 1]}")
        rest = words[start + 2 :]
        if hasattr(other, "parser"):
            parser = other.parser(rest)
        else:
            parser = Parser(words[start + 1], other.DESCRIPTION, other.EXAMPLES)
            other.add_options(parser)
        if "--config" not in rest:  # the file would bring the required options
            parser.read(rest)


def test_overview_lists_every_verb(cli):
    for words in (["--help"], ["-h"], ["help"]):
        result = cli(*words)
        assert result.code == 0
        assert all(f"  {verb} " in result.out for verb in VERBS)
    assert cli().code == 2
    assert cli("help", "eval").out.startswith("usage: minedge eval")


def test_version(cli):
    assert cli("--version").out == f"minedge {minedge.__version__}\n"


def test_overview_and_verb_help_import_no_numerics():
    code = (
        "import sys; from minedge.cli import main; main(['--help']); main(['train', '--help']);"
        "heavy = {'numpy', 'numba', 'tokenizers', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_verbs_and_options_name_the_nearest(cli):
    for words, near in (
        (["trian"], "'train'"),
        (["--hlep"], "'--help'"),
        (["generate", "--promt", "x"], "'--prompt'"),
        (["train", "--itres=3"], "'--iters'"),
        (["train", "--data", "x", "--out", "y", "--method", "lorra"], "'lora'"),
        (["generate", "-p", "x", "--backend", "nunpy"], "'numpy'"),
    ):
        result = cli(*words)
        assert result.code == 2, words
        assert f"did you mean {near}" in result.err
        assert result.err.count("\n") == 1
        assert result.out == ""


def test_an_option_before_the_verb_is_told_its_place(cli):
    for words in (["--json", "tutorial", "list"], ["--threads=2", "tutorial"]):
        result = cli(*words)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"option {words[0]!r} belongs after the verb: minedge tutorial ... {words[0]};" in result.err


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_module('minedge', run_name='__main__')",
        "from minedge.__main__ import main; sys.exit(main())",
    ],
)
@pytest.mark.parametrize("module", ["minedge.cli", "minedge.cli.console", "numpy", "minedge.ops", "minedge.api"])
def test_ctrl_c_while_importing(start, module):
    """Whatever module is being imported when it comes: one line, exit code 130."""
    code = f"""
import runpy, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
sys.argv = ["minedge", "generate", "--prompt", "x", "--max-tokens", "1"]
{start}
"""
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr in ("minedge: interrupted\n", "minedge generate: interrupted\n")
