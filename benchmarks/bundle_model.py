"""Turn a training run into the checkpoint that comes with the package: weights, tokenizer, training record, card.

    minedge train --data stdlib --init small ... --out runs/bundled      (the card says the exact command)
    python benchmarks/bundle_model.py runs/bundled minedge/assets/bundled

Every figure on the card is computed here, from the float16 model as it will be shipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from pathlib import Path

import numpy as np
from text_baselines import measure as measure_baselines  # beside this file

from minedge import load
from minedge.cli.doctor import examine
from minedge.data.loaders import load_data
from minedge.data.overlap import SeenFilter
from minedge.data.splits import stdlib_splits
from minedge.data.task import stdlib_task
from minedge.finetune.evaluate import evaluate_task, evaluate_text

SAMPLES, SAMPLE_TOKENS, TEMPERATURE, TOP_P = 100, 120, 1.0, 1.0
COPY_LIMIT = 40
PROMPTS = ("Return", "The", "This", "Create a", "If the", "Raise", "A class", "Convert", "Get the", "Note")


def longest_copy(text: str, corpus: str) -> str:
    """The longest run of characters of `text` that stands in `corpus`, found by growing a window along the text."""
    best, start, end = "", 0, 1
    while end <= len(text):
        if text[start:end] in corpus:
            if end - start > len(best):
                best = text[start:end]
            end += 1
        else:
            start += 1
            end = max(end, start + 1)
    return best


def sample_copies(model, corpus: str) -> tuple[list[str], list[str]]:
    """-> samples, and for each the longest run it copies from the training text (the prompt counts as copied too)."""
    texts = [
        prompt + model.generate(prompt, max_tokens=SAMPLE_TOKENS, temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
        for seed in range(SAMPLES // len(PROMPTS))
        for prompt in PROMPTS
    ]
    return texts, [longest_copy(text, corpus) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `minedge train` wrote")
    parser.add_argument("out", type=Path, help="folder of the bundled model, replaced")
    parser.add_argument("--command", required=True, help="the training command, for the card")
    args = parser.parse_args()

    if args.out.exists():
        shutil.rmtree(args.out)
    load(args.run / "model").save(args.out, dtype="float16")
    model = load(args.out)
    splits = stdlib_splits()
    SeenFilter.of(splits.texts("train")).save(args.out / "seen.npy")

    data = load_data("stdlib")
    results = {
        part: evaluate_text(model, data.pack(part, model.tokenizer, model.config.context_length))
        for part in ("train", "valid", "test")
    }
    task = stdlib_task()
    accuracy = evaluate_task(model, task, task.examples("test"), 96)
    found = measure_baselines(model.tokenizer)
    baselines = {
        "xz, test text alone": found["xz_test_alone"],
        "xz, test text after the training text": found["xz_test_after_train"],
        "interpolated 5-gram over bytes": found["byte_5gram"]["test"],
        "interpolated 5-gram over this model's tokens": found["token_5gram"]["test"],
    }
    corpus = "\n\n".join(splits.texts("train"))
    texts, copies = sample_copies(model, corpus)
    lengths = np.array([len(c) for c in copies])
    records = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    shutil.copy(args.run / "loss.svg", args.out / "loss.svg")

    figures = {
        "parameters": model.n_params(),
        "bits_per_byte": {part: round(r.bits_per_byte, 4) for part, r in results.items()},
        "loss": {part: round(r.loss, 4) for part, r in results.items()},
        "baselines_bits_per_byte": baselines,
        "zero_shot_accuracy": accuracy.accuracy,
        "samples": len(texts),
        "longest_copied_run": int(lengths.max()),
        "samples_over_limit": int((lengths > COPY_LIMIT).sum()),
        "steps": max((r["step"] for r in records if "step" in r), default=0),
        "python": splits.python,
        "corpus_sha256": splits.sha256,
        "machine": examine()["machine"]["processor"],
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(figures, indent=2))
    print("longest copies:", sorted(copies, key=len)[-5:])
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (args.out / "README.md").write_text(card(figures, model, splits, args.command, texts))


def card(f: dict, model, splits, command: str, texts: list[str]) -> str:
    b, base, c = f["bits_per_byte"], f["baselines_bits_per_byte"], model.config
    rows = "\n".join(f"| {name} | {value:.3f} | {value - b['test']:+.3f} |" for name, value in base.items())
    shown = "\n\n".join(f"> {' '.join(t.split())}" for t in texts[:3])
    return f"""# The bundled model

A {f["parameters"]:,}-parameter Llama-style decoder ({c.n_layer} layers, width {c.n_embd}, {c.n_head} query and
{c.n_kv_head} key/value heads, SwiGLU {c.n_inner}, context {c.context_length}) over a byte-level BPE of {c.vocab_size}
tokens, stored in float16. It was trained from random weights on text that every Python carries: the language-reference
topics and the docstrings of the standard library of CPython {f["python"]} (PSF-2.0 licensed text; corpus hash
`{f["corpus_sha256"][:16]}`). It is for learning and for trying methods out; it writes text that looks like docstrings
and knows nothing else.

## Train it again

```sh
{command}
python benchmarks/bundle_model.py runs/bundled minedge/assets/bundled --command "THE COMMAND ABOVE"
```

Trained on {splits.n_bytes("train"):,} bytes with seed 0; the state with the best validation loss is kept (the curve is
`loss.svg`). {f["machine"]}, {f["date"]}, Python {platform.python_version()}. Modules are split by path, and passages of
validation and test that repeat training text are dropped, so that no passage stands on both sides; the salt of that
split was chosen, before any training, for balanced sizes on Python 3.10 to 3.13. `seen.npy` is a fingerprint of the
training text: on other Python versions minedge drops test passages that this model has met.

## Figures

Bits per UTF-8 byte on the test split ({splits.n_bytes("test"):,} bytes): **{b["test"]:.3f}**
(validation {b["valid"]:.3f}, training {b["train"]:.3f}).

| on the same test text | bits per byte | above the model |
|---|---|---|
{rows}

{f["samples"]} samples of {SAMPLE_TOKENS} tokens (temperature {TEMPERATURE}, top-p {TOP_P}, ten prompts, fixed seeds):
the longest run of characters copied from the training text is {f["longest_copied_run"]} characters, and
{f["samples_over_limit"]} samples hold one of more than {COPY_LIMIT}. Zero-shot accuracy on the built-in task:
{f["zero_shot_accuracy"]:.1%} of 8 classes. `figures.json` holds all of this.

## What it writes

{shown}
"""


if __name__ == "__main__":
    main()
