"""What several verbs need: the model that the options name, output folders, sizes on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minedge.cli.parser import argument_of
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.atomic import os_errors
from minedge.io.owned import read_by_loading, why_file_kept, why_kept

__all__ = [
    "adapter_folder",
    "check_apart",
    "check_file",
    "check_output",
    "check_replaced",
    "check_utf8",
    "disk_bytes",
    "find",
    "flags",
    "load_model",
    "lora_target",
    "model_facts",
    "model_path",
    "read_prompt",
]
NOT_UTF8 = "expected text in UTF-8, got bytes that are not; convert it with iconv -f latin1 -t utf-8"


def find(name: str) -> Path:
    """The folder or file that a name stands for: the bundled model, a path, or a hub id in the local cache."""
    from minedge.api import BUNDLED, bundled_path

    path = Path(name).expanduser()
    if name in BUNDLED:
        return bundled_path()
    if not path.exists():
        from minedge.io.sources import in_hub_cache

        return in_hub_cache(name) or path
    return path


def model_path(name: str, adapter: bool = True) -> Path:
    """`find`, and of a training run's folder the model in it. `adapter` says whether the verb has --adapter-path."""
    path = find(name)
    if not _is_run(path):
        return path
    if (path / "model").is_dir():
        return path / "model"
    if (path / "adapter").is_dir():
        how = "give its base, and" if adapter else "merge it into its base first: minedge fuse"
        raise UsageError(f"--model: {name!r} is a run that trained an adapter; {how} --adapter-path {name}/adapter")
    raise UsageError(
        f"--model: {name!r} is a run that has no model yet; finish it with minedge train ... --resume auto"
    )


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() and not (path / "config.json").exists()


def load_model(args: argparse.Namespace, **more: Any) -> Any:
    """The model of --model on --backend, with the adapter of --adapter-path where the verb has that option. `more` is
    for `minedge.load`.
    """
    import minedge

    path = model_path(args.model)
    model = minedge.load(path if _is_run(path.parent) else args.model, backend=args.backend, **more)
    if getattr(args, "adapter_path", None):
        model = minedge.lora.load_adapter(model, adapter_folder(args.adapter_path))
    return model


def adapter_folder(name: str) -> Path:
    """The folder that --adapter-path means: of a training run the adapter in it."""
    adapter = Path(name).expanduser()
    if not adapter.exists():
        raise UsageError(f"--adapter-path: expected a folder with adapter_config.json, {str(adapter)!r} does not exist")
    return adapter / "adapter" if (adapter / "run.json").is_file() and (adapter / "adapter").is_dir() else adapter


def lora_target(config: Any) -> list[str]:
    """The matrices that an adapter goes on where nobody says: queries and values, or the matrix that holds both."""
    names = [role.rsplit(".", 1)[-1] for role in config.arch.attn_in]
    return names if len(names) == 1 else [names[0], names[2]]


@contextmanager
def flags(**options: str) -> Iterator[None]:
    """Errors about these arguments name the options that the user typed, where that is not the option that the parser
    has for such an argument: flags(model="--draft-model").
    """
    try:
        yield
    except UsageError as error:
        name = argument_of(str(error))
        if name not in options:
            raise
        raise UsageError(options[name] + str(error)[len(name) :]) from error


def need_tokenizer(model: Any) -> Any:
    """The model's tokenizer; `MinedgeFormatError` where its folder has none."""
    if model.tokenizer is None:
        raise MinedgeFormatError(
            f"{model.name}: no tokenizer.json in the model folder; copy the one the model was trained with"
        )
    return model.tokenizer


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Refuse an output folder that exists before any work is done; with `overwrite`, one that minedge did not write or
    in which other things lie.
    """
    path = Path(path).expanduser()
    if not path.exists() and not path.is_symlink():
        return path
    if not overwrite:
        raise UsageError(f"--out: {str(path)!r} exists already; choose another name, or replace it with --overwrite")
    check_replaced(path)
    return path


def check_apart(out: str | Path, *sources: Path) -> None:
    """Refuse to replace what is read: an `out` that exists and is a source, lies in one or holds one."""
    path = Path(out).expanduser()
    if not path.exists():
        return
    target = path.resolve()
    for source in (source.resolve() for source in sources):
        if target == source or target in source.parents or source in target.parents:
            what = "is" if target == source else "holds" if target in source.parents else "lies in"
            raise UsageError(
                f"--out: {str(path)!r} {what} what is read ({source}), so it is not replaced; choose another name"
            )


def check_file(option: str, path: Path, kind: str, overwrite: bool) -> None:
    """Refuse to write a single file where a folder is, or a file; with `overwrite`, where a file is that is not of the
    `kind` that would take its place (io/owned.py).
    """
    if path.is_dir():
        raise UsageError(f"{option}: {str(path)!r} is a folder, expected a file's name")
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(f"{option}: {str(path)!r} exists already; choose another name, or replace it with --overwrite")
    with os_errors(path, "read"):
        reason = why_file_kept(path, kind)
    if reason:
        raise UsageError(f"{option}: {str(path)!r} {reason}, so --overwrite does not replace it; choose another name")


def check_replaced(path: Path) -> None:
    """Refuse to replace what minedge did not write, or a folder of ours in which other things lie."""
    reason = why_kept(path)
    if reason:
        raise UsageError(
            f"--out: {str(path)!r} {reason}, so --overwrite does not replace it; choose another name, or move what is "
            "yours away"
        )


def disk_bytes(path: Path) -> int:
    """Bytes of one file, of what loading reads in a model's or an adapter's folder, or of all files in another one."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in read_by_loading(path)) if path.is_dir() else 0


def read_prompt(text: str) -> str:
    """--prompt, where '-' stands for all of stdin; `UsageError` for what is not UTF-8."""
    if text != "-":
        return check_utf8("--prompt", text)
    if sys.stdin is None:
        raise UsageError("--prompt: expected a text on stdin, there is no stdin")
    try:
        return check_utf8("--prompt: stdin", sys.stdin.read())
    except UnicodeDecodeError:
        raise UsageError(f"--prompt: stdin: {NOT_UTF8}") from None


def check_utf8(name: str, text: str) -> str:
    """`text`; `UsageError` where bytes in it were not UTF-8, which Python keeps as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{name}: {NOT_UTF8}") from None
    return text


def model_facts(model: Any) -> dict[str, Any]:
    """What reports say about any model."""
    return {
        "name": model.name,
        "architecture": model.config.architecture,
        "parameters": model.n_params(),
        "backend": model.ops.spec,
        "resident_bytes": model.nbytes()["total"],
    }
