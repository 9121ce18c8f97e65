"""How a test starts Python again: through the emulator where the tests run on an emulated CPU (MINEDGE_EMULATOR)."""

from __future__ import annotations

import os
import shlex
import sys

__all__ = ["PYTHON"]

PYTHON = [*shlex.split(os.environ.get("MINEDGE_EMULATOR", "")), sys.executable]
