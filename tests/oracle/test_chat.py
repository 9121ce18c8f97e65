"""Chat templates against transformers: the same text, the same ids, the same tokens of the assistant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

from minedge.data.conversations import Conversations  # noqa: E402
from minedge.data.tokenizer import Tokenizer  # noqa: E402
from tests.data.test_chat_template import CHATML, INST, MARKED, SPECIAL, TALK, THINKS  # noqa: E402

LOOPS = (
    "{%- set ns = namespace(n=0) %}\n{% for m in messages %}\n    {%- if m.role == 'user' %}\n{% set ns.n = ns.n + 1 %}"
    "  <|im_start|>{{ ns.n }} {{ m | tojson }}{{ m.content | upper | trim }}\n    {% else %}\n"
    "{{- m['content'].split('i')[0] ~ '<|im_end|>' }}{% continue %}never{% endif %}\n{% endfor %}"
    "{{ [1, 2] | join('-') }} {{ tools is none }} {{ messages[-1].content[::-1] }} "
    "{{ {'é<': [1.5, none]} | tojson(indent=2) }}"
)
TEMPLATES = {"chatml": CHATML, "marked": MARKED, "thinks": THINKS, "inst": INST, "loops": LOOPS}


def made(folder: Path, template: str) -> Tokenizer:
    tokenizer = Tokenizer.train_bpe(["four and five it is. user assistant system " * 20], 300, SPECIAL)
    tokenizer.chat_template = template
    tokenizer.save(folder)
    return Tokenizer.load(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_transformers(name: str, tmp_path: Path) -> None:
    ours = made(tmp_path, TEMPLATES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == ours.chat_template
    for messages in (TALK[:1], TALK, [{"role": "system", "content": " Be <brief> & é."}, *TALK]):
        for prompt in (False, True):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.chat.render(messages, prompt) == text
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text) == list(ids)


def test_the_assistants_tokens_are_transformers(tmp_path: Path) -> None:
    ours = made(tmp_path, MARKED)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    packed = Conversations((TALK,)).pack(ours, 256)
    assert packed.rows[0] == list(found["input_ids"])
    assert packed.weights[0] == [float(x) for x in found["assistant_masks"]]


def test_settings_written_by_transformers_survive(tmp_path: Path) -> None:
    made(tmp_path / "a", CHATML)
    theirs = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "a", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    theirs.save_pretrained(tmp_path / "b")
    ours = Tokenizer.load(tmp_path / "b")
    assert ours.chat_template == CHATML and ours.eos_token == "<|im_end|>"
    ours.save(tmp_path / "c")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    assert again.chat_template == CHATML and again.special_tokens_map == theirs.special_tokens_map
