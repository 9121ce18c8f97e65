"""doctor where something is wrong: what is wrong in one line, and the rest all the same."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.python import PYTHON


def doctor(*words: str, **env: str) -> dict:
    """The report of a process with these variables."""
    command = [*PYTHON, "-m", "minedge", "doctor", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MINEDGE_ISA", "foo", "MINEDGE_ISA: expected one of scalar, "),
        ("MINEDGE_ISA", "neon-or-avx2", "MINEDGE_ISA: expected one of scalar, "),
        ("MINEDGE_THREADS", "many", "MINEDGE_THREADS: expected a number in 1..256, got 'many'"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--backend", "numpy")])
def test_a_variable_that_chooses_nonsense_is_named(name, value, says, words):
    report = doctor(*words, **{name: value})
    assert report["advice"].startswith(says) and report["advice"].endswith(f"got {value!r}; unset it")
    assert report["backends"]["c"].startswith(says) and report["engine"]["why_not"].startswith(says)
    assert report["backends"]["numpy"] == "" and report["ops"]["rms_norm_forward"]["numpy"] == "native"
    assert report["environment"][name] == value
    if name == "MINEDGE_ISA":  # what was not asked for runs
        assert report["backends"]["c:scalar"] == "" and report["kernels"]["isas"]["scalar"]
        assert report["kernels"]["chosen"] is None
