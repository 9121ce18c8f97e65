"""What the command line prints: results on stdout, progress on stderr.

With --json stdout holds one JSON document and nothing else. Without a terminal there are plain lines and no control
characters.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from minedge.cli.text import duration, json_value, plain_table, printable

__all__ = ["Console", "Progress"]


def _is_terminal(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"


class Console:
    """Where a verb says things. `json_mode` and `quiet` are the options --json and --quiet."""

    def __init__(self, json_mode: bool = False, quiet: bool = False):
        self.json_mode, self.quiet = json_mode, quiet

    def out(self, text: str = "") -> None:
        """A line of the result: on stdout, left out with --json, where `result` carries it."""
        if not self.json_mode:
            print(printable(text), flush=True)

    def note(self, text: str = "") -> None:
        """A line about what is going on: beside the result, on stderr with --json, nowhere with --quiet."""
        if not self.quiet:
            print(printable(text), file=sys.stderr if self.json_mode else sys.stdout, flush=True)

    def status(self, text: str) -> None:
        """A line on stderr in every mode but --quiet."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def piece(self, text: str) -> None:
        """A piece of generated text, at once and without a newline."""
        if not self.json_mode:
            sys.stdout.write(printable(text))
            sys.stdout.flush()

    def result(self, value: Any) -> None:
        """The JSON document of --json."""
        if self.json_mode:
            print(json.dumps(json_value(value), indent=2, allow_nan=False), flush=True)

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1, title: str = "", note: bool = False
    ) -> None:
        """Rows under headers, the first `left` columns flush left, the others right. `note` prints it as a note."""
        text = [[printable(str(cell)) for cell in row] for row in rows]
        if self.quiet if note else self.json_mode:
            return
        stream = sys.stderr if self.json_mode else sys.stdout
        if not _is_terminal(stream):
            right = frozenset(range(left, len(headers)))
            print((f"{title}\n" if title else "") + plain_table(headers, text, right), file=stream, flush=True)
            return
        import rich.box
        import rich.console
        import rich.table

        table = rich.table.Table(title=title or None, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for i, header in enumerate(headers):
            table.add_column(header, justify="left" if i < left else "right", overflow="fold")
        for row in text:
            table.add_row(*[rich.text.Text(cell) for cell in row])
        rich.console.Console(file=stream, highlight=False).print(table)

    def progress(self, total: int, every: int = 0) -> Progress:
        """A bar, or a plain line each `every` steps (0: about twenty lines in all)."""
        return Progress(total, every, self.quiet)


class Progress:
    """Steps of a run on stderr, with loss, tokens/s and the time left. A context manager; `update` at each step."""

    def __init__(self, total: int, every: int = 0, quiet: bool = False):
        self.total, self.every = total, every or max(1, total // 20)
        self.quiet, self.terminal = quiet, _is_terminal(sys.stderr)
        self.started, self.first = 0.0, 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        if self.terminal and not self.quiet:
            import rich.console
            import rich.progress as rp

            self._bar = rp.Progress(
                rp.TextColumn("step {task.completed}/{task.total}"),
                rp.BarColumn(),
                rp.TextColumn("{task.fields[facts]}"),
                console=rich.console.Console(file=sys.stderr, highlight=False),
                refresh_per_second=8,
            )
            self._task = self._bar.add_task("", total=self.total, facts="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def start_at(self, step: int) -> None:
        """A resumed run begins here; the time left counts from it."""
        self.first, self.started = step, time.monotonic()

    def eta(self, step: int) -> float:
        """Seconds left at the pace so far."""
        done = step - self.first
        return (time.monotonic() - self.started) / done * (self.total - step) if done > 0 else float("nan")

    def update(self, step: int, facts: str) -> None:
        """`step` steps are done; `facts` is a short text such as 'loss 3.2100  12,300 tokens/s'."""
        text = printable(f"{facts}  eta {duration(self.eta(step))}" if step < self.total else facts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=text.replace("[", "\\["))
        elif not self.quiet and (step % self.every == 0 or step == self.total or step == self.first + 1):
            print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """A line that stays, such as a validation loss, above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False)
        else:
            print(printable(text), file=sys.stderr, flush=True)
