"""--config: a JSON or TOML file whose keys are options, turned into words so that one parser checks both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minedge.config import did_you_mean
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["read_options"]

_NOT_IN_FILES = ("--help", "-h", "--config", "-c")


def read_options(parser: argparse.ArgumentParser, file: str) -> list[str]:
    """The file's entries as command-line words. An unknown key is a `UsageError` with the nearest option."""
    path = Path(file).expanduser()
    data = _read(path)
    actions = {
        option: action for action in parser._actions for option in action.option_strings if option not in _NOT_IN_FILES
    }
    known = [option.removeprefix("--") for option in actions if option.startswith("--")]
    words: list[str] = []
    for key, value in data.items():
        option = f"--{key.replace('_', '-')}"
        if option not in actions:
            raise UsageError(
                f"{path}: unknown key {key!r}{did_you_mean(key.replace('_', '-'), known)}; see {parser.prog} --help"
            )
        if actions[option].nargs == 0:
            if not isinstance(value, bool):
                raise UsageError(f"{path}: {key}: expected true or false, got {value!r}")
            words += [option] if value else []
        elif value is not None:
            words.append(f"{option}={_text(path, key, value)}")
    return words


def _text(path: Path, key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={_text(path, key, v)}" for k, v in value.items())
    if isinstance(value, list):
        return ",".join(_text(path, key, item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise UsageError(f"{path}: {key}: expected a number, a text or a list of them, got {value!r}")
    return str(value)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MinedgeFormatError(f"--config: expected a JSON or TOML file, {str(path)!r} does not exist")
    if path.suffix.lower() != ".toml":
        from minedge.io.jsonfile import read_json

        return read_json(path)
    try:
        import tomllib
    except ImportError:
        raise UsageError(f"--config: {path}: TOML needs Python 3.11 or newer; write the same as JSON") from None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise MinedgeFormatError(f"{path}: expected TOML ({error})") from None
