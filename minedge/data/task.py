"""Classification with real labels: from which of eight families of modules does this docstring come?

The label is where the text was found, so nobody had to annotate anything. The question is put the way MeZO puts it
(arXiv:2305.17333, Sec. 2 and App. E.2): the text in a template, and one word per label that the language model should
say next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minedge.data.corpus import Passage
from minedge.data.overlap import SeenFilter
from minedge.data.packing import PackedRows, pad_rows
from minedge.data.splits import evaluation_passages, module_unit, stdlib_splits
from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError

__all__ = [
    "FAMILIES",
    "Candidates",
    "Example",
    "Labelled",
    "Task",
    "candidates",
    "encode",
    "family_of",
    "label_loss_batch",
    "label_rows",
    "stdlib_task",
]

# Label word -> modules. The longest matching prefix decides ('tkinter' covers 'tkinter.ttk').
FAMILIES: dict[str, tuple[str, ...]] = {
    label: tuple(modules.split())
    for label, modules in {
        "window": "curses idlelib repl rlcompleter tkinter turtle",
        "server": """
            asynchat asyncore cgi cgitb email ftplib http imaplib ipaddress mailbox mailcap mimetypes netrc
            nntplib poplib smtpd smtplib socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc
        """,
        "thread": "asyncio concurrent multiprocessing queue sched selectors signal subprocess threading",
        "file": """
            bz2 compression dbm filecmp fileinput fnmatch genericpath glob gzip io linecache lzma ntpath os
            pathlib posixpath shelve shutil stat tarfile tempfile zipapp zipfile
        """,
        "test": """
            bdb cProfile doctest faulthandler inspect logging pdb profile pstats timeit trace traceback
            tracemalloc unittest warnings
        """,
        "number": """
            bisect calendar collections collections_abc colorsys datetime decimal fractions graphlib hashlib
            heapq hmac numbers random secrets statistics strptime uuid zoneinfo
        """,
        "module": """
            compileall distutils imp importlib modulefinder pkgutil py_compile pyclbr runpy site sysconfig venv
            zipimport
        """,
        "string": """
            ast base64 codecs configparser csv difflib dis gettext html json lib2to3 locale markupbase pickle
            pickletools plistlib pprint quopri re shlex string symtable textwrap tokenize tomllib xdrlib xml
        """,
    }.items()
}

_TRAIN_PER_LABEL = 400  # large families would otherwise fill the training part
_MODULE_LABEL = {module: label for label, modules in FAMILIES.items() for module in modules}


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the index of its label in `Task.labels`."""

    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification task in prompt-and-label-word form.

    `template` holds {text} and ends with {label}; what stands between them is the cue. `label_words` says which word
    stands for which label. `parts` maps 'train', 'valid', 'test' to examples.
    """

    name: str
    labels: tuple[str, ...]
    label_words: tuple[str, ...]
    template: str = "{text}\nTopic: {label}"
    parts: Mapping[str, tuple[Example, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise UsageError(f"task {self.name!r}: expected at least two labels, got {list(self.labels)}")
        if len(self.label_words) != len(self.labels) or len(set(self.label_words)) != len(self.labels):
            raise UsageError(f"task {self.name!r}: expected one different word per label, got {list(self.label_words)}")
        if (
            self.template.count("{text}") != 1
            or not self.template.endswith("{label}")
            or self.template.count("{label}") != 1
        ):
            raise UsageError(
                f"template: expected '...{{text}}...{{label}}' ending with the label, got {self.template!r}"
            )

    def examples(self, part: str) -> tuple[Example, ...]:
        """The examples of 'train', 'valid' or 'test', in a fixed shuffled order."""
        if part not in ("train", "valid", "test"):
            raise ValueError(f"part: expected 'train', 'valid' or 'test', got {part!r}")
        return self.parts.get(part, ())

    def pieces(self) -> tuple[str, str, tuple[str, ...]]:
        """(what precedes the text, cue after it, label strings). A space before a word belongs to it, as in BPE."""
        before, rest = self.template.split("{text}")
        cue = rest[: -len("{label}")]
        space = " " if cue.endswith(" ") else ""
        return before, cue[: len(cue) - len(space)], tuple(space + word for word in self.label_words)


def family_of(module: str) -> str | None:
    """The family (label word) a module belongs to, None for the many that belong to none.

    >>> family_of("email.mime.text"), family_of("_pydecimal"), family_of("typing")
    ('server', 'number', None)
    """
    parts = module_unit(module).split(".")
    found = (_MODULE_LABEL.get(".".join(parts[:i])) for i in range(len(parts), 0, -1))
    return next((label for label in found if label), None)


def stdlib_task(seen: SeenFilter | None = None) -> Task:
    """The built-in task, from the running interpreter. Its parts are those of the language-modelling corpus.

    `seen` takes out of evaluation what a model trained on another Python has met.
    """
    labels = tuple(FAMILIES)
    parts = {"train": _labelled(stdlib_splits().train, labels, _TRAIN_PER_LABEL)}
    for part in ("valid", "test"):
        parts[part] = _labelled(evaluation_passages(part, seen), labels, None)
    return Task("stdlib-task", labels, labels, parts=parts)


def _labelled(found: Sequence[Passage], labels: tuple[str, ...], per_label: int | None) -> tuple[Example, ...]:
    """First parts of docstrings of the families, in the order of a hash of the text, at most `per_label` of each."""
    ranked = []
    for passage in found:
        label = None if passage.kind == "topic" else family_of(passage.module)
        _, mark, part_number = passage.qualname.partition("#")
        if label and (not mark or part_number == "0"):
            ranked.append((hashlib.sha256(passage.text.encode()).digest(), Example(passage.text, labels.index(label))))
    ranked.sort(key=lambda pair: pair[0])
    taken = [0] * len(labels)
    chosen = []
    for _, example in ranked:
        if per_label is None or taken[example.label] < per_label:
            taken[example.label] += 1
            chosen.append(example)
    return tuple(chosen)


def encode(task: Task, tokenizer: Tokenizer, example: Example, max_len: int) -> tuple[list[int], list[list[int]]]:
    """(prompt ids, ids of each label's word). A long text loses its end, so that both fit in `max_len` tokens."""
    return _encode_all(task, tokenizer, [example], max_len)[0], _label_ids(task, tokenizer)


def _label_ids(task: Task, tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_continuation(task.pieces()[2])


def _encode_all(task: Task, tokenizer: Tokenizer, examples: Sequence[Example], max_len: int) -> list[list[int]]:
    before, cue, _ = task.pieces()
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    head, tail = start + tokenizer.encode(before), tokenizer.encode_continuation([cue])[0]
    room = max_len - len(head) - len(tail) - max(map(len, _label_ids(task, tokenizer)))
    if room < 1:
        raise UsageError(
            f"max_len: expected more than {max_len - room} tokens for template and label word, got {max_len}"
        )
    read = tokenizer.encode_continuation if before else tokenizer.encode_batch
    return [head + ids[:room] + tail for ids in read([e.text for e in examples])]


def label_loss_batch(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """tokens (B,T) int64 padded on the right, loss_mask (B,T) float32: 1 on the true label's word, else 0."""
    return _pad(*label_rows(task, tokenizer, examples, max_len), tokenizer)


def label_rows(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], max_len: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Rows (prompt + true label's word) and their weights, not yet padded."""
    words = _label_ids(task, tokenizer)
    prompts = _encode_all(task, tokenizer, examples, max_len)
    rows = [prompt + words[e.label] for prompt, e in zip(prompts, examples, strict=True)]
    weights = [[0.0] * len(p) + [1.0] * len(words[e.label]) for p, e in zip(prompts, examples, strict=True)]
    return rows, weights


def _pad(rows: list[list[int]], weights: list[list[float]], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    return pad_rows(rows, weights, tokenizer.eos_id or 0)


@dataclass(frozen=True)
class Candidates:
    """A batch laid out for choosing a label. `gold` (B,) is the index of the true label.

    Where every label word is one token, a row per example is enough: `label_ids` (K,) are compared at position `last`
    (B,), the prompt's last token. (The row also holds the true word, which that position cannot see, so one forward
    pass gives accuracy and label loss.) Otherwise both are None and row b*K + k is example b with word k.
    """

    tokens: np.ndarray  # (rows,T) int64
    loss_mask: np.ndarray  # (rows,T) float32
    gold: np.ndarray  # (B,) int64
    label_ids: np.ndarray | None = None
    last: np.ndarray | None = None

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """(B,K): log-probability of each label's word, up to a constant per example. logits (rows,T,V) of `tokens`."""
        if self.label_ids is not None:
            return logits[np.arange(len(self.gold)), self.last][:, self.label_ids].astype(np.float64)
        x = logits[:, :-1].astype(np.float64)
        top = x.max(-1, keepdims=True)
        log_sum = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
        chosen = np.take_along_axis(x, self.tokens[:, 1:, None], axis=-1)[..., 0]
        return ((chosen - log_sum) * self.loss_mask[:, 1:]).sum(-1).reshape(len(self.gold), -1)

    def correct(self, logits: np.ndarray) -> np.ndarray:
        """(B,) bool: is the likeliest word the true one?"""
        return self.scores(logits).argmax(-1) == self.gold


def candidates(task: Task, tokenizer: Tokenizer, examples: Sequence[Example], max_len: int) -> Candidates:
    """Lay examples out for choosing among all labels."""
    words = _label_ids(task, tokenizer)
    gold = np.array([e.label for e in examples], np.int64)
    if all(len(word) == 1 for word in words) and len({word[0] for word in words}) == len(words):
        rows, weights = label_rows(task, tokenizer, examples, max_len)
        tokens, mask = _pad(rows, weights, tokenizer)
        return Candidates(
            tokens, mask, gold, np.array([w[0] for w in words], np.int64), np.array([len(r) - 2 for r in rows])
        )
    prompts = _encode_all(task, tokenizer, examples, max_len)
    rows = [prompt + word for prompt in prompts for word in words]
    weights = [[0.0] * len(prompt) + [1.0] * len(word) for prompt in prompts for word in words]
    return Candidates(*_pad(rows, weights, tokenizer), gold)


@dataclass(frozen=True)
class Labelled:
    """One part of a task as training data: the loss is on the true label's word alone."""

    task: Task
    part: str

    def __len__(self) -> int:
        return len(self.task.examples(self.part))

    def pack(self, tokenizer: Tokenizer, seq_len: int) -> PackedRows:
        """One example to a row."""
        examples = self.task.examples(self.part)
        words = self.task.pieces()[2]
        rows, weights = label_rows(self.task, tokenizer, examples, seq_len)
        return PackedRows(rows, weights, tokenizer.eos_id or 0, sum(len(words[e.label].encode()) for e in examples))
