"""minedge generate: continue a prompt."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from minedge.cli.common import check_utf8, flags, load_model, model_facts, need_tokenizer, read_prompt
from minedge.cli.console import Console
from minedge.cli.parser import fraction, integer, model_options, real
from minedge.errors import Interrupted, MinedgeFormatError, UsageError
from minedge.model.generate import Sampling, generate_texts
from minedge.model.kvcache import default_kv_dtype

__all__ = [
    "DESCRIPTION", "EXAMPLES", "Meter", "add_options", "draft_of", "draft_options", "kv_option", "run",
    "sampling_options", "sampling_values", "stream",
]  # fmt: skip

DESCRIPTION = """Continue a prompt and print the text as it comes. Temperature 0, the default, always takes the
likeliest token; above 0 it draws, and the same seed draws the same text. Speed goes to stderr, so the text can be
piped."""
EXAMPLES = (
    'minedge generate --prompt "Return the" --temp 0.8 --top-p 0.95 --seed 7 --max-tokens 200',
    "minedge generate --model my-model --adapter-path my-adapter --prompt - --prompt-cache long.cache < long.txt",
    "minedge generate --prompts questions.txt --max-tokens 40",
    'minedge generate --model my-model --draft-model my-small-model --prompt "import" --stop "\\n\\n" --json',
)

WHY = {"length": "--max-tokens reached", "context": "the context is full", "stop": "end of text or stop text"}


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    add = parser.add_argument
    add(
        "--prompt", "-p", action="append", metavar="TEXT",
        help="text to continue; - reads stdin; repeated ones are continued side by side",
    )  # fmt: skip
    add("--prompts", metavar="FILE", help="a prompt per line (\\n in it is a newline), continued side by side")
    add(
        "--prompt-cache", metavar="FILE",
        help="keep what was read of the prompt here; a run with the same beginning starts from it",
    )  # fmt: skip
    kv_option(parser)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help=r"end before this text (\n is a newline); repeatable"
    )
    draft_options(parser)
    sampling_options(parser, max_tokens=100)


def kv_option(parser: argparse.ArgumentParser) -> None:
    """--kv-dtype, of generate and chat."""
    parser.add_argument(
        "--kv-dtype", choices=("float32", "float16", "int8"),
        help="what keys and values of the past are kept in (default: float16 for int4 and int8 models, else float32)",
    )  # fmt: skip


def draft_options(parser: argparse.ArgumentParser) -> None:
    """Options of generate and chat."""
    parser.add_argument(
        "--draft-model", metavar="NAME_OR_DIR",
        help="smaller model of the same vocabulary that guesses tokens ahead: the same greedy text, often sooner",
    )  # fmt: skip
    parser.add_argument(
        "--num-draft-tokens", type=integer(1, 64), metavar="N", help="tokens to guess at a time (default: 4)"
    )


def sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Options of generate and chat."""
    add = parser.add_argument
    add(
        "--max-tokens", type=integer(0), default=max_tokens, metavar="N", help=f"tokens at most (default: {max_tokens})"
    )
    add("--temp", type=real(), default=0.0, metavar="T", help="temperature; 0 takes the likeliest token (default: 0)")
    add("--top-p", type=fraction(low_open=True), metavar="P", help="keep the likeliest tokens whose mass reaches P")
    add("--top-k", type=integer(1), metavar="K", help="keep the K likeliest tokens")
    add("--min-p", type=fraction(high_open=True), metavar="P", help="drop tokens below P times the likeliest")
    add("--repetition-penalty", type=real(0, above=True), default=1.0, metavar="R", help="above 1 discourages repeats")
    add("--seed", type=integer(0), default=0, metavar="N", help="seed of the draws (default: 0)")


def sampling_values(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `sampling_options` as arguments of `Model.generate`."""
    return dict(
        max_tokens=args.max_tokens,
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )


def run(args: argparse.Namespace, console: Console) -> int:
    prompts = _prompts(args)
    draft, counts = draft_of(args)
    model = load_model(args)
    stops = [check_utf8("--stop", text).replace("\\n", "\n").replace("\\t", "\t") for text in args.stop or []]
    settings = {**sampling_values(args), "kv_dtype": args.kv_dtype or default_kv_dtype(model.linears)}
    if draft:
        del settings["kv_dtype"]
    if len(prompts) > 1:
        with flags(prompt="--prompt" if args.prompt else "--prompts"):
            return _run_many(model, prompts, stops, {**settings, **draft}, console)
    session = _session(model, args)
    meter = Meter(need_tokenizer(model))
    pieces: list[str] = []
    meter.start()
    for piece in replace(model, tokenizer=meter).generate(
        prompts[0], stop=stops, stream=True, session=session, **settings, **draft
    ):
        pieces.append(piece)
        console.piece(piece)
    if args.prompt != ["-"] or sys.stdout.isatty():
        console.out()  # in a pipe the text goes out as it came in, without a newline that is not the model's
    facts = meter.facts(model.config.context_length, args.max_tokens)
    if session is not None:
        facts["prompt_tokens_read"] = session.reads[0] if session.reads else 0
        _keep(session, args.prompt_cache, facts["prompt_tokens"], facts["prompt_tokens_read"])
    if not console.json_mode:
        share = f"; {counts.accepted_share:.0%} of the guesses accepted" if counts.proposed else ""
        if session is not None:
            share += f"; {facts['prompt_tokens'] - facts['prompt_tokens_read']} prompt tokens came from the cache"
        console.status(f"{summary(facts)} ({model.ops.spec}){share}")
    if draft:
        settings["num_draft_tokens"] = draft["n_draft"]
        facts["draft"] = {
            "model": model_facts(draft["draft_model"]), **asdict(counts), "accepted_share": counts.accepted_share
        }  # fmt: skip
    console.result(
        {"text": "".join(pieces), **facts, "settings": {**settings, "stop": stops}, "model": model_facts(model)}
    )
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    """All prompts: those of --prompt, then the lines of --prompts."""
    prompts = [read_prompt(text) for text in args.prompt or []]
    if args.prompts is not None:
        try:
            lines = Path(args.prompts).expanduser().read_text(encoding="utf-8-sig").split("\n")  # a BOM is no text
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts: {args.prompts!r} cannot be read: {error}") from None
        found = [line.replace("\\n", "\n").replace("\\t", "\t") for line in lines if line.strip()]
        if not found:
            raise UsageError(f"--prompts: {args.prompts!r}: expected a prompt per line, every line is blank")
        prompts += found
    if not prompts:
        raise UsageError("--prompt: expected at least one text to continue; give --prompt TEXT or --prompts FILE")
    if len(prompts) > 1 and args.prompt_cache is not None:
        raise UsageError(f"--prompt-cache: expected one prompt, since it holds one text, got {len(prompts)}")
    if args.prompt_cache is not None:
        folder = Path(args.prompt_cache).expanduser().parent
        if not folder.is_dir():
            raise UsageError(
                f"--prompt-cache: {args.prompt_cache!r}: expected a folder at {str(folder)!r}; make it first"
            )
    if args.draft_model is not None and (args.prompt_cache or args.kv_dtype):
        raise UsageError("--draft-model: cannot be combined with --prompt-cache or --kv-dtype")
    return prompts


def _run_many(model: Any, prompts: list[str], stops: list[str], settings: dict[str, Any], console: Console) -> int:
    """Several prompts: each text under its prompt, in their order, as soon as it and those before it are done. Ctrl-C
    keeps those that are finished.
    """
    need_tokenizer(model)
    texts: dict[int, str] = {}
    counts: dict[int, dict[str, Any]] = {}
    shown: set[int] = set()
    started = time.perf_counter()

    def show(which: Iterable[int]) -> None:
        for i in which:
            shown.add(i)
            console.out(f"{prompts[i]}{texts[i]}\n")
            if "ended" in counts[i] and not console.json_mode:
                tokens = f"prompt {counts[i]['prompt_tokens']} tokens, generated {counts[i]['generated_tokens']} tokens"
                console.status(f"{tokens}; {WHY[counts[i]['ended']]}")

    def done(i: int, text: str, row: dict[str, Any]) -> None:
        texts[i], counts[i] = text, row
        show(takewhile(texts.__contains__, range(len(shown), len(prompts))))

    try:
        _continue(model, prompts, stops, settings, done)
    except KeyboardInterrupt:
        show(i for i in sorted(texts) if i not in shown)
        interrupted = True
    else:
        interrupted = False
    seconds = time.perf_counter() - started
    count = sum(row["generated_tokens"] for row in counts.values())
    if not console.json_mode:
        console.status(f"{len(texts)} texts, {count} tokens at {count / seconds:,.0f} tokens/s ({model.ops.spec})")
    settings = {key: value for key, value in settings.items() if not key.startswith("draft_")}
    numbers = range(len(prompts))
    console.result({
        "texts": [texts.get(i) for i in numbers], "prompts": prompts, "per_text": [counts.get(i) for i in numbers],
        "generated_tokens": count, "seconds": seconds, "interrupted": interrupted,
        "settings": {**settings, "stop": stops}, "model": model_facts(model),
    })  # fmt: skip
    if interrupted:
        raise Interrupted(f"interrupted; {len(texts)} of {len(prompts)} texts were finished")
    return 0


def _continue(
    model: Any,
    prompts: list[str],
    stops: list[str],
    settings: dict[str, Any],
    done: Callable[[int, str, dict[str, Any]], None],
) -> None:
    """Continue all prompts; `done` is told each text, as `generate_texts` says."""
    if "draft_model" in settings:
        for i, prompt in enumerate(prompts):
            text = model.generate(prompt, stop=stops, **settings)
            done(i, text, {"generated_tokens": len(model.tokenizer.encode(text))})  # about: joins may differ
        return
    sampling = Sampling(**{key: value for key, value in settings.items() if key not in ("max_tokens", "kv_dtype")})
    generate_texts(model, prompts, settings["max_tokens"], sampling, stops, settings["kv_dtype"], done)


def _session(model: Any, args: argparse.Namespace) -> Any:
    """The session of --prompt-cache, from its file where there is one; None without the option."""
    if args.prompt_cache is None:
        return None
    from minedge.io.prompt_cache import load_session
    from minedge.model.engine import Engine
    from minedge.model.session import Session

    if reason := Engine.why_not(model):
        raise UsageError(f"--prompt-cache: it needs the engine; {reason}")
    path = Path(args.prompt_cache).expanduser()
    if path.exists():
        try:
            return load_session(model, path, kv_dtype=args.kv_dtype)
        except MinedgeFormatError as error:
            raise MinedgeFormatError(f"--prompt-cache: expected a file that this option wrote: {error}") from error
    return Session(model, kv_dtype=args.kv_dtype)


def _keep(session: Any, path: str, prompt_tokens: int, read: int) -> None:
    """Write the prompt's part of a session, unless the file had all of it (its last token is read in any case)."""
    from minedge.io.prompt_cache import save_session

    target = Path(path).expanduser()
    if target.exists() and read <= 1:
        return
    session.forget(prompt_tokens)
    save_session(session, target)


def draft_of(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Arguments of `Model.generate` for --draft-model, none without it; and where its guesses are counted."""
    from minedge.model.speculative import DraftCounts

    counts = DraftCounts()
    if args.draft_model is None:
        if args.num_draft_tokens is not None:
            raise UsageError("--num-draft-tokens: belongs to --draft-model, which is missing")
        return {}, counts
    with flags(**dict.fromkeys(("model", "--model"), "--draft-model")):
        model = load_model(argparse.Namespace(model=args.draft_model, backend=args.backend))
    need_tokenizer(model)
    return {"draft_model": model, "n_draft": args.num_draft_tokens or 4, "draft_counts": counts}, counts


class Meter:
    """A tokenizer that counts and times: the loop (model/pieces.py) calls `decode_after` once for each token."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def start(self) -> None:
        self.prompt = self.generated = 0
        self.started = self.first = self.last = time.perf_counter()

    def encode_prompt(self, text: str) -> list[int]:
        ids = self._tokenizer.encode_prompt(text)
        self.prompt, self.started = len(ids), time.perf_counter()
        return ids

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        self.last, self.generated = time.perf_counter(), self.generated + 1
        if self.generated == 1:
            self.first = self.last
        return self._tokenizer.decode_after(before, ids)

    def facts(self, context: int, max_tokens: int) -> dict[str, Any]:
        """Counts, speeds in tokens/s (None where too little happened to time) and why the text ended."""
        prefill, decode = self.first - self.started, self.last - self.first
        if self.generated == max_tokens:
            ended = "length"
        else:
            ended = "context" if self.prompt + self.generated >= context else "stop"
        return {
            "prompt_tokens": self.prompt,
            "generated_tokens": self.generated,
            "prompt_tokens_per_s": self.prompt / prefill if self.generated and prefill > 0 else None,
            "tokens_per_s": (self.generated - 1) / decode if self.generated > 1 and decode > 0 else None,
            "ended": ended,
        }


def summary(facts: dict[str, Any]) -> str:
    """One line of speeds."""
    parts = []
    for what, speed in (("prompt_tokens", "prompt_tokens_per_s"), ("generated_tokens", "tokens_per_s")):
        rate = f" at {facts[speed]:,.0f} tokens/s" if facts[speed] else ""
        parts.append(f"{what.split('_')[0]} {facts[what]} tokens{rate}")
    return f"{', '.join(parts)}; {WHY[facts['ended']]}"


def stream(model: Any, prompt: str, console: Console, **settings: Any) -> Iterator[str]:
    """Pieces of the continuation, shown as they come."""
    for piece in model.generate(prompt, stream=True, **settings):
        console.piece(piece)
        yield piece
