"""minedge chat: talk with a model, line by line."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from typing import Any

from minedge.cli.common import check_utf8, load_model, need_tokenizer
from minedge.cli.console import Console
from minedge.cli.generate import draft_of, draft_options, kv_option, sampling_options, sampling_values, stream
from minedge.cli.parser import model_options
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "Chat", "add_options", "run"]

DESCRIPTION = """Talk with a model. The conversation so far goes through the model's chat template where it has one
(needs the extra minedge[chat]), else into the prompt as plain text; its oldest turns fall out when the context is full.
A model that was never taught to answer continues the text instead. Without a terminal each line of stdin is a
message."""
EXAMPLES = (
    "minedge chat",
    'printf "What is a list?\\n" | minedge chat --max-tokens 40',
    "minedge chat --model my-model --draft-model my-small-model --temp 0.7 --seed 1",
    'minedge chat --template "{message}" --stop "\\n"',
)
HELP = "/help shows this, /reset forgets the conversation, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer"
TEMPLATE = "User: {message}\\nAssistant:"


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    parser.add_argument("--system-prompt", default="", metavar="TEXT", help="text before the conversation")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help=f"a turn as plain text; holds {{message}} (default: the model's chat template, else {TEMPLATE})",
    )
    parser.add_argument("--no-chat-template", action="store_true", help="plain text, also where the model has one")
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="an answer ends before this (default: where the template ends it)",
    )
    kv_option(parser)
    draft_options(parser)
    sampling_options(parser, max_tokens=100)


def run(args: argparse.Namespace, console: Console) -> int:
    chat = Chat(load_model(args), args, console)
    if sys.stdin is None:
        raise UsageError("stdin: expected a terminal or lines of text, there is none")
    interactive = sys.stdin.isatty() and not console.json_mode
    if interactive:
        console.note(f"{chat.model!r}\n{HELP}")
    turns: list[dict[str, str]] = []
    while (line := _read_line(interactive)) is not None:
        message = line.strip()
        if message in ("/exit", "/quit"):
            break
        if message == "/reset":
            chat.history.clear()
            console.note("the conversation is forgotten")
        elif message.startswith("/"):
            console.note(HELP if message == "/help" else f"unknown command {message!r}; {HELP}")
        elif message:
            answer = chat.answer(message)
            turns.append({"message": message.encode(errors="replace").decode(), "answer": answer})
    report: dict[str, Any] = {"turns": turns, "refused": chat.refused}
    if args.draft_model:
        report["draft"] = {**asdict(chat.counts), "accepted_share": chat.counts.accepted_share}
    console.result(report)
    return 2 if chat.refused and not interactive else 0  # who talks through a pipe sees no error but this


class Chat:
    """A conversation: the turns so far, and how they become a prompt."""

    def __init__(self, model: Any, args: argparse.Namespace, console: Console):
        from minedge.data.conversations import turn_end  # brings NumPy, which --help does without

        tokenizer = need_tokenizer(model)
        self.model, self.console = model, console
        for option in ("system_prompt", "template"):
            check_utf8(f"--{option.replace('_', '-')}", getattr(args, option) or "")
        self.template = (args.template or TEMPLATE).replace("\\n", "\n")
        if self.template.count("{message}") != 1:
            raise UsageError(f"--template: expected {{message}} in it once, got {args.template!r}")
        self.system = args.system_prompt.replace("\\n", "\n")
        self.chat = None if args.template or args.no_chat_template else tokenizer.chat
        if self.chat is None:
            end = self.template.partition("{message}")[0].strip()
            end = f"\n{end}" if end else ""
        else:
            token, end = turn_end(tokenizer)
            if token is not None:  # a special token decodes to nothing, so it ends the answer as a token
                self.model, end = _ending_with(model, token), ""
        self.stops = [check_utf8("--stop", text).replace("\\n", "\n") for text in args.stop or []] or (
            [end] if end else []
        )
        if args.draft_model is not None and args.kv_dtype:
            raise UsageError("--draft-model: cannot be combined with --kv-dtype")
        self.kv_dtype = args.kv_dtype
        draft, self.counts = draft_of(args)
        self.settings = {**sampling_values(args), **draft}
        self.refused = 0  # messages that were too long, or not UTF-8
        self.history: list[tuple[str, str]] = []
        self.session: Any = None  # what was read of the conversation, so that a turn reads only what is new

    def text(self, message: str) -> str:
        """The prompt of the whole history and a new message."""
        if self.chat is None:
            turns = [self.template.replace("{message}", asked) + said for asked, said in (*self.history, (message, ""))]
            return "\n".join([*([self.system] if self.system else []), *turns])
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, said in self.history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said.strip()}]
        return self.chat.render([*messages, {"role": "user", "content": message}], add_generation_prompt=True)

    def prompt(self, message: str) -> str:
        """System text, the turns that fit, and the new message; raises `UsageError` where that alone is too long."""
        context = self.model.config.context_length
        # Half of a small context is kept for the answer, however many tokens were asked for.
        room = context - min(self.settings["max_tokens"], context // 2)
        while True:
            text = self.text(message)
            length = len(self.model.tokenizer.encode_prompt(text))
            if length <= room:
                return text
            if not self.history:
                raise UsageError(f"message: {length} tokens, the context leaves room for {room}; shorten it")
            del self.history[0]

    def answer(self, message: str) -> str:
        """Answer a message, showing it as it comes; Ctrl-C keeps what has come so far."""
        pieces: list[str] = []
        try:
            prompt = self.prompt(check_utf8("message", message))
        except UsageError as error:
            self.console.status(f"minedge chat: error: {error}")
            self.refused += 1
            return ""
        if self.session is None and "draft_model" not in self.settings:
            from minedge.model.session import Session

            self.session = Session(self.model, kv_dtype=self.kv_dtype)
        try:
            for piece in stream(
                self.model, prompt, self.console, stop=self.stops or None, session=self.session, **self.settings
            ):
                pieces.append(piece)
        except KeyboardInterrupt:
            self.console.piece(" [stopped]")
        self.console.out()
        text = "".join(pieces)
        self.history.append((message, text.rstrip("\n")))
        return text.strip()


def _ending_with(model: Any, token: int) -> Any:
    """The model, for which this token too ends a text."""
    ends = (*(i for i in model.config.eos_ids if i != token), token)
    return replace(model, config=replace(model.config, eos_token_id=ends))


def _read_line(interactive: bool) -> str | None:
    """The next message, None at the end."""
    if interactive:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
    stdin = getattr(sys.stdin, "buffer", None)  # bytes that are not UTF-8 must not end the conversation
    line = sys.stdin.readline() if stdin is None else stdin.readline().decode(sys.stdin.encoding, "surrogateescape")
    return line or None
