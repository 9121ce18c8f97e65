"""Chat templates: what they make, what of it the assistant said, and what a hostile one may not do."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys

import pytest

from minedge.data import chat_template as chat
from minedge.data.chat_template import ChatTemplate
from minedge.data.conversations import Conversations, answer_spans, plain_text, turn_end
from minedge.data.loaders import load_data
from minedge.data.packing import Pairs
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError, UsageError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{% endfor %}"
)
# Only the last answer shows its thoughts, as in Qwen3: a conversation cut after an earlier answer reads otherwise.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n</think>\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "four"},
    {"role": "assistant", "content": "four"},  # the same words as the question
    {"role": "user", "content": "and five"},
    {"role": "assistant", "content": "Five it is."},
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def talker() -> Tokenizer:
    found = Tokenizer.train_bpe(["four and five it is. user assistant system " * 20], 300, SPECIAL)
    found.chat_template = CHATML
    return found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (CHATML, ["four<|im_end|>", "Five it is.<|im_end|>"]),
        (MARKED, ["four<|im_end|>", "Five it is.<|im_end|>"]),
        (THINKS, ["four<|im_end|>", "<think>\n</think>\nFive it is.<|im_end|>"]),
        (INST, [" four</s>", " Five it is.</s>"]),
    ],
)
def test_answers_are_found(source, said):
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    text, spans = answer_spans(template, TALK, frozenset({"<|im_end|>", "</s>"}))
    assert text == template.render(TALK)
    assert [text[a:b] for a, b in spans] == said
    assert all("user" not in text[a:b] for a, b in spans)


def test_plain_text_without_a_template():
    text, spans = plain_text([{"role": "system", "content": "Be brief."}, *TALK])
    assert text.startswith("Be brief.\nUser: four\nAssistant: four\nUser: and five")
    assert [text[a:b] for a, b in spans] == [" four", " Five it is."]


def test_special_tokens_encode_as_their_ids(talker):
    ids = talker.encode(talker.chat.render(TALK[:1], add_generation_prompt=True))
    start, end = talker.token_id("<|im_start|>"), talker.token_id("<|im_end|>")
    assert ids[0] == start and ids.count(start) == 2 and ids.count(end) == 1
    assert turn_end(talker) == (end, "<|im_end|>")


def test_only_answers_weigh(talker):
    packed = Conversations((TALK,)).pack(talker, 256)
    ((tokens, mask),) = packed.eval_batches(4)
    scored = [int(i) for i, w in zip(tokens[0], mask[0], strict=True) if w]
    end = talker.token_id("<|im_end|>")
    assert scored == [*talker.encode("four"), end, *talker.encode("Five it is."), end]
    assert tokens[0].tolist() == talker.encode(talker.chat.render(TALK))
    assert packed.n_bytes == len("fourFive it is.")


@pytest.mark.parametrize("length", [8, 14, 20])
def test_a_long_conversation_keeps_its_end(talker, length):
    whole = Conversations((TALK,)).pack(talker, 256)
    packed = Conversations((TALK,)).pack(talker, length)
    (row,), (weights,) = packed.rows, packed.weights
    assert len(row) == length == len(weights) and row[0] == whole.rows[0][0]
    joined = ",".join(map(str, whole.rows[0]))
    assert ",".join(map(str, row[1:])) in joined and weights[-1] == 1.0
    answer = [*talker.encode("Five it is."), talker.token_id("<|im_end|>")]
    assert row[1:] == answer[: length - 1] if len(answer) >= length else row[-len(answer) :] == answer


def test_pairs_go_through_the_template_where_there_is_one(talker):
    pairs = (("four", "five"),)
    (row,) = Pairs(pairs).pack(talker, 64).rows
    assert row[0] == talker.token_id("<|im_start|>")
    bare = Tokenizer(talker.backend)
    assert Pairs(pairs).pack(bare, 64) == Pairs(pairs, chat_template=False).pack(talker, 64)
    end = talker.eos_id
    assert Pairs(pairs).pack(bare, 64).rows == [[end, *bare.encode("four"), *bare.encode("five"), end]]


def test_a_model_without_a_template_learns_plain_lines(talker):
    bare = Tokenizer(talker.backend)
    (row,) = Conversations((TALK,)).pack(bare, 256).rows
    assert row == [bare.eos_id, *bare.encode(plain_text(TALK)[0]), bare.eos_id]
    assert Conversations((TALK,), chat_template=False).pack(talker, 256).rows == [row]


def test_jsonl_of_messages(tmp_path, talker):
    file = tmp_path / "a.jsonl"
    records = [{"messages": [*TALK[:3], {"role": "assistant", "content": f"it is {i}"}]} for i in range(200)]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = load_data(file)
    assert sum(len(found.part(p)) for p in ("train", "valid", "test")) == 200
    assert found.pack("train", talker, 64).batch(0, 2, 0)[1].sum() > 0
    assert load_data(file, chat_template=False).train.chat_template is False


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": []}, "list of messages"),
        ({"messages": "hi"}, "list of messages"),
        ({"messages": [{"role": "user"}]}, '"role" and "content"'),
        ({"messages": [3]}, "message 0"),
        ({"messages": TALK[:1]}, "assistant"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "assistant"),
    ],
)
def test_bad_messages_name_the_line(tmp_path, record, says):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(MinedgeFormatError, match=says) as caught:
        load_data(file)
    assert "line 2" in str(caught.value)


def test_kinds_do_not_mix(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"text": "a"}) + "\n")
    with pytest.raises(MinedgeFormatError, match="mixed"):
        load_data(file)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 1000000) * 1000000 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{{ ('a' * 4000000).replace('a', 'a' * 100000) }}",
        "{{ ('a' * 4000000) | replace('a', 'a' * 100000) }}",
        "{{ ('a' * 4000000).join(range(90000) | list) }}",
        "{{ [[1] * 1000000] * 1000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | indent(1000000000) }}",
        "{{ {'a': 1} | tojson(indent=1000000000) }}",
        "{{ 9**9**9**9 }}",
        "{{ range(10**9) | list }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
        "x" * (chat.MAX_SOURCE + 1),
    ],
)
def test_hostile_and_broken_templates_end_in_one_line(source):
    with pytest.raises(MinedgeFormatError, match="chat template") as caught:
        ChatTemplate(source).render(TALK)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_templates_use_is_there():
    source = (
        "{{ bos_token }}{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content | trim }};"
        "{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{{ {'a<': ['é']} | tojson }}"
        "{{ strftime_now('%Y') | length }}{{ 'a' ~ 1 }}{{ 'a,b'.split(',')[-1] }}{{ tools is none }}"
        "{{ 'x'.replace('x', 'y') }}"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(TALK) == '<s>four;and five;{"a<": ["é"]}4a1bTruey'


def test_a_template_can_refuse():
    with pytest.raises(UsageError, match="refuses these messages: only users"):
        ChatTemplate("{{ raise_exception('only users') }}").render(TALK)


def test_without_jinja_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"minedge\[chat\]"):
        ChatTemplate("a template that no other test compiles").render(TALK)


def test_nothing_imports_jinja_before_it_is_used():
    code = "import sys, minedge.data.conversations, minedge.data.loaders; assert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what a tokenizer keeps -------------------------------------------------------------------------------------------


def settings_of(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    "entry",
    [CHATML, [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]],
    ids=["text", "named"],
)
def test_settings_and_template_survive(talker, tmp_path, entry):
    first = tmp_path / "first"
    Tokenizer(talker.backend).save(first)
    settings = {
        "chat_template": entry, "bos_token": None, "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>",
        "model_max_length": 2048, "tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"0": {"special": True}},
    }  # fmt: skip
    (first / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = Tokenizer.load(first)
    assert loaded.chat_template == CHATML and loaded.eos_token == "<|im_end|>"
    assert loaded.chat.tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    loaded.save(tmp_path / "second")
    assert settings_of(tmp_path / "second") == settings
    assert not (tmp_path / "second" / "chat_template.jinja").exists()


def test_a_template_in_a_file_of_its_own(talker, tmp_path):
    talker.save(tmp_path / "first")
    assert (tmp_path / "first" / "chat_template.jinja").read_text() == CHATML
    loaded = Tokenizer.load(tmp_path / "first")
    assert loaded.chat_template == CHATML
    loaded.save(tmp_path / "second")
    assert {f.name: f.read_text() for f in (tmp_path / "second").iterdir()} == {
        f.name: f.read_text() for f in (tmp_path / "first").iterdir()
    }
    (tmp_path / "first" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(MinedgeFormatError, match=r"chat_template\.jinja"):
        Tokenizer.load(tmp_path / "first")


def test_a_changed_end_of_text_token_is_written(talker, tmp_path):
    talker.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.eos_token = "<|im_end|>"
    loaded.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").eos_token == "<|im_end|>"
