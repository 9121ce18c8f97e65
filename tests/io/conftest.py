"""Shared by the tests of files: a way to run code that gets killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program text in a new interpreter, with extra environment variables."""

    def run(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
