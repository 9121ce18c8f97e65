"""The errors minedge raises on purpose; everything else is a bug. Each carries the command line's exit code."""

from __future__ import annotations

__all__ = ["BackendError", "DivergedError", "Interrupted", "MinedgeError", "MinedgeFormatError", "UsageError"]


class MinedgeError(Exception):
    """Base of all errors that come from outside the program: arguments, files, machines, data."""

    exit_code = 2


class UsageError(MinedgeError, ValueError):
    """An argument that cannot be used; the message names it, what was expected, and what came."""

    exit_code = 2


class MinedgeFormatError(MinedgeError, ValueError):
    """A file that is missing, truncated, foreign or contradicts itself; the message names the file and the key or
    offset.
    """

    exit_code = 3


class BackendError(MinedgeError, RuntimeError):
    """A backend or instruction set that was asked for and is not available here; the message says why."""

    exit_code = 2


class DivergedError(MinedgeError, ArithmeticError):
    """Training produced a value that is not finite; the message names step and layer."""

    exit_code = 4


class Interrupted(MinedgeError):  # noqa: N818 - it is not an error that something was stopped
    """Work that was asked to stop (Ctrl-C, SIGTERM) and did, keeping what was done; the message says what that is, or
    how to go on.
    """

    exit_code = 130
