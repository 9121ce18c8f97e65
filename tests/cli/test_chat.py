"""Chat templates at the command line: chat, training on conversations, and what a saved model keeps."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import pytest

import minedge
from minedge.config import Config
from minedge.data.tokenizer import Tokenizer

from .conftest import SENTENCE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def talker(home):
    """A model folder with a template, made as if by others: the template in tokenizer_config.json."""
    tokenizer = Tokenizer.train_bpe([SENTENCE * 20], 300, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    config = Config(
        vocab_size=300, n_layer=1, n_embd=32, n_head=2, n_inner=48, context_length=192, bos_token_id=0, eos_token_id=0
    )
    minedge.init(config, tokenizer, seed=1).save(home / "talker")
    file = home / "talker" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHATML, "model_max_length": 64}))
    return home / "talker"


def prompts(monkeypatch):
    """The prompts that chat generates from, with the model that answers; answers are 'yes'."""
    seen = []

    def answer(model, prompt, console, **settings):
        seen.append((prompt, model.config.eos_ids, settings["stop"]))
        yield "yes"

    monkeypatch.setattr("minedge.cli.chat.stream", answer)
    return seen


def test_chat_goes_through_the_template(talker, cli, monkeypatch):
    seen = prompts(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nand\n"))
    assert cli("chat", "-m", "talker", "--system-prompt", "Be brief.", "--max-tokens", "3").code == 0
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    end = Tokenizer.load(talker).token_id("<|im_end|>")
    assert seen[0] == (start, (0, end), None)
    assert seen[1][0] == start + "yes<|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("words", [("--no-chat-template",), ("--template", "User: {message}\\nAssistant:")])
def test_plain_text_on_request(talker, cli, monkeypatch, words):
    seen = prompts(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nand\n"))
    assert cli("chat", "-m", "talker", *words).code == 0
    assert seen[1] == ("User: hi\nAssistant:yes\nUser: and\nAssistant:", (0,), ["\nUser:"])


def test_a_real_answer_ends_with_its_turn(talker, cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the fox\n" * 6))
    result = cli("chat", "-m", "talker", "--max-tokens", "8", "--json")
    assert result.code == 0 and len(json.loads(result.out)["turns"]) == 6


def test_a_template_that_refuses_is_one_line(talker, cli, monkeypatch):
    (talker / "chat_template.jinja").write_text("{{ raise_exception('no system message please') }}")
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    result = cli("chat", "-m", "talker")
    assert result.code == 2 and "no system message please" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("plain", [False, True])
def test_training_on_conversations(talker, home, cli, plain):
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps over"}]
    (home / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(8)))
    words = ["train", "-m", "talker", "--data", "talk.jsonl", "--iters", "2", "--batch-size", "2", "--out", "run"]
    result = cli(*words, "--method", "full", *(["--no-chat-template"] if plain else []))
    assert result.code == 0, result.err
    kept = Tokenizer.load(home / "run" / "model")
    assert kept.chat_template == CHATML and kept.settings["model_max_length"] == 64
    found = json.loads(cli("eval", "-m", "run", "--data", "talk.jsonl", "--json").out)
    assert found["tokens"] > 0 and found["bytes"] == 8 * len("jumps over")


@pytest.mark.parametrize("plain", [False, True])
def test_what_was_learned_is_answered(talker, home, cli, monkeypatch, plain):
    """Training and chat write the same prompt, and the answer ends where the turn did, not at --max-tokens."""
    words = ["--no-chat-template"] if plain else []
    answers = {"the fox": "jumps over", "the dog": "is lazy"}
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in answers.items()]
    (home / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks * 4))
    train = ["train", "-m", "talker", "--data", "talk.jsonl", "--method", "full", "--iters", "120", "--out", "run"]
    more = ["--batch-size", "8", "--learning-rate", "1e-2", "--eval-every", "0", "--save-every", "0"]
    assert cli(*train, *more, *words).code == 0
    for question, answer in answers.items():
        monkeypatch.setattr("sys.stdin", io.StringIO(question + "\n"))
        found = json.loads(cli("chat", "-m", "run", "--max-tokens", "60", "--json", *words).out)
        assert found["turns"] == [{"message": question, "answer": answer}]


def test_a_new_model_learns_conversations(home, cli):
    talk = [{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": SENTENCE[::-1]}]
    (home / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(8)))
    shape = "n_layer=1,n_embd=32,n_head=2,n_inner=48,context_length=64"
    words = ["train", "--data", "talk.jsonl", "--init-shape", shape, "--iters", "1", "--out", "new"]
    assert cli(*words, "--batch-size", "2", "--vocab-size", "280").code == 0


def test_gguf_carries_the_template(talker, home):
    pytest.importorskip("gguf")
    model = minedge.load(talker)
    model.save_gguf(home / "talker.gguf", dtype="f32")
    back = minedge.load(home / "talker.gguf")
    assert back.tokenizer.chat_template == CHATML
    ask = [{"role": "user", "content": "hi"}]
    texts = {m.tokenizer.chat.render(ask, add_generation_prompt=True) for m in (model, back)}
    assert len(texts) == 1
    back.save(home / "again")
    assert Tokenizer.load(home / "again").chat_template == CHATML


# --- a draft model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [[], ["--no-chat-template"]])
def test_chat_with_a_draft_says_what_the_model_says_alone(talker, cli, monkeypatch, template):
    assert cli("quantize", "-m", "talker", "--bits", "8", "--out", "small").code == 0
    said = {}
    for name, words in (("alone", []), ("drafted", ["--draft-model", "small", "--num-draft-tokens", "3"])):
        monkeypatch.setattr("sys.stdin", io.StringIO("The quick\nbrown fox\n"))
        result = cli("chat", "-m", "talker", "--max-tokens", "20", "--backend", "c", *template, *words, "--json")
        assert result.code == 0, result.err
        said[name] = json.loads(result.out)
    assert said["drafted"]["turns"] == said["alone"]["turns"] and len(said["alone"]["turns"]) == 2
    draft = said["drafted"]["draft"]
    assert draft["passes"] > 0 and draft["accepted_share"] > 0.3 and "draft" not in said["alone"]
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    alone = cli("chat", "-m", "talker", "--num-draft-tokens", "3")
    assert alone.code == 2 and "belongs to --draft-model" in alone.err


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_tells_of_the_template(talker, cli):
    found = json.loads(cli("inspect", "talker", "--json").out)
    assert found["chat_template"].endswith("renders") and found["tokenizer"].startswith("300 tokens")
    (talker / "chat_template.jinja").write_text("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}")
    found = json.loads(cli("inspect", "talker", "--json").out)
    assert "makes more than" in found["chat_template"]
    assert json.loads(cli("inspect", "tiny", "--json").out)["chat_template"] == "none"


def test_inspect_itself_opens_no_tokenizer(talker, home, cli, monkeypatch):
    """Only the child does, a process of its own that these replacements do not reach."""
    pytest.importorskip("gguf")
    from minedge.data.tokenizer import Tokenizer

    minedge.load(talker).save_gguf(home / "talker.gguf", dtype="f32")
    shutil.copytree(talker, home / "wide")
    (home / "wide" / "tokenizer.json").write_text(Tokenizer.train_bpe([SENTENCE * 20], 310).backend.to_str())

    def opened(*_, **__):
        pytest.fail("a tokenizer was opened outside the child")

    monkeypatch.setattr(Tokenizer, "load", opened)
    monkeypatch.setattr(Tokenizer, "__init__", opened)
    for path in ("talker", "talker.gguf"):
        assert "300 tokens" in cli("inspect", path).out
    wide = cli("inspect", "wide")
    assert wide.code == 3 and "ids up to" in wide.err and "vocab_size is 300" in wide.err


def test_inspect_of_any_single_file(talker, home, cli):
    shutil.copy(home / "adapter" / "adapter_config.json", home / "adapter_config.json")
    (home / "empty.bin").write_bytes(b"")
    (home / "cut.json").write_text('{"a": [1,')
    (home / "notes.json").write_text('{"a": 1}')
    (home / "tok9.bin").write_bytes(b"\x01\0\0\0")
    (home / "sub").mkdir()
    (home / "sub" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    index = home / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    for path, code, says in (
        ("talker/tokenizer.json", 0, "300"),
        ("talker/config.json", 0, "llama"),
        ("adapter_config.json", 0, "q_proj"),
        ("notes.json", 0, "JSON object"),
        ("empty.bin", 3, "it is empty"),
        ("cut.json", 3, "not valid JSON"),
        ("tok9.bin", 3, "too short for the 9 tokens"),
        ("sub/adapter_config.json", 3, "'IA3'"),
        (index.name, 3, "not the name of a file in this folder"),
    ):
        result = cli("inspect", path)
        assert result.code == code and says in result.out + result.err, (path, result)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed on it (SIGSEGV)"),
        ("import os; os.abort()", "crashed on it (SIGABRT)"),
        ("\nwhile True: pass", ("processor time", "did not end")),  # a busy machine's clock may run out first
        ("import time; time.sleep(60)", "did not end"),
        ("x = [0] * 10**10", "memory"),
        ("raise BaseException('panicked')", "panicked"),
        ("print('nonsense' * 10**6)", "cannot be opened"),
        ("raise ValueError('bad\\nfile')", "ValueError: bad file"),
    ],
)
def test_whatever_the_library_does_inspect_gives_one_line(talker, cli, monkeypatch, tmp_path, body, says):
    """A tokenizers library that misbehaves stands in for a bug in the real one."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "tokenizers.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(fake))
    monkeypatch.setattr("minedge.cli.limited.SECONDS", 1)
    result = cli("inspect", "talker")
    expected = (says,) if isinstance(says, str) else says
    assert result.code == 3 and any(x in result.err for x in expected) and result.err.count("\n") == 1, result
    assert "talker" in result.err


def test_modules_in_the_models_folder_are_not_run(talker, cli, monkeypatch):
    (talker / "tokenizers.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(talker)
    assert cli("inspect", ".").code == 0


def test_inspect_of_a_gguf_file_outlives_its_tokenizer(talker, home, cli, monkeypatch, tmp_path):
    pytest.importorskip("gguf")
    minedge.load(talker).save_gguf(home / "talker.gguf", dtype="f32")
    found = json.loads(cli("inspect", "talker.gguf", "--json").out)
    assert found["opened"].startswith("300 tokens") and found["chat_template"].endswith("renders")
    (tmp_path / "tokenizers.py").write_text("import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = json.loads(cli("inspect", "talker.gguf", "--json").out)
    assert "SIGABRT" in found["opened"] and found["tokens"] == 300


# --- label words ------------------------------------------------------------------------------------------------------


def test_eval_scores_label_words_on_sst2_style_files(home, cli):
    """Lines of '0 text' and '1 text'; labels.json names the words. The figures are those of the model's own logits."""
    folder = home / "sst"
    folder.mkdir()
    texts = [f"the fox is {'nice' if i % 3 else 'awful'} {i}" for i in range(12)]
    lines = [f"{int(i % 3 > 0)} {text}\n" for i, text in enumerate(texts)]
    for name in ("stsa.binary.train", "stsa.binary.dev", "stsa.binary.test"):
        (folder / name).write_text("".join(lines))
    (folder / "labels.json").write_text(json.dumps({"0": "terrible", "1": "great"}))
    template = "{text}\\nIt was {label}"
    found = json.loads(cli("eval", "-m", "tiny", "--data", "sst", "--task", "--template", template, "--json").out)
    assert found["part"] == "test" and found["examples"] == 12 and found["labels"] == 2
    model = replace(minedge.load("tiny"), backend="numpy")
    right = 0
    for i, text in enumerate(texts):
        prompt = model.tokenizer.encode(f"{text}\nIt was")
        scores = []
        for word in (" terrible", " great"):
            row = [model.tokenizer.eos_id, *prompt, *model.tokenizer.encode(word)]
            mask = [[float(j > len(prompt)) for j in range(len(row))]]
            scores.append(-model.loss_sum([row], mask)[0])
        right += scores.index(max(scores)) == int(i % 3 > 0)
    assert found["accuracy"] == pytest.approx(right / 12)
    assert cli("eval", "-m", "tiny", "--data", "text.txt", "--task").code == 2
    (folder / "labels.json").unlink()
    words = ["eval", "-m", "tiny", "--data", "sst", "--template", template]
    same = json.loads(cli(*words, "--label-words", "0=terrible,1=great", "--json").out)
    assert (same["accuracy"], same["label_loss"]) == (found["accuracy"], found["label_loss"])
    other = json.loads(cli(*words, "--json").out)  # the labels themselves
    assert other["label_loss"] != found["label_loss"]
    for bad in ("0=a", "0=a,1=a", "0:a", "0=a,0=b"):
        assert cli(*words, "--label-words", bad).code == 2
    assert cli("eval", "-m", "tiny", "--data", "text.txt", "--label-words", "0=a,1=b").code == 2
