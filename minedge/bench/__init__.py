"""Measurements on the machine at hand: what it can do, what minedge does on it, what other libraries do beside it.

`minedge bench` is the front end. A part (parts.py) is a piece of work that several competitors do on the same numbers;
each competitor is a process of its own (worker.py) that the parent lets run in turns (measure.py), the others stopped
meanwhile. Outputs are compared in the same run with the NumPy specification and between competitors, and a figure
whose outputs are wrong does not count.
"""

from __future__ import annotations

__all__: list[str] = []
