"""Files in, datasets out; everything unusable is refused in one line that says where and what to do."""

from __future__ import annotations

import json

import pytest

from minedge.data.loaders import load_data
from minedge.data.packing import Pairs, Texts
from minedge.errors import MinedgeError, MinedgeFormatError, UsageError


def jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    file = tmp_path / "notes.txt"
    text = "".join(f"Line {i} of the notes, with \u00e9.\n" for i in range(200))
    file.write_bytes(text.encode())
    found = load_data(file)
    parts = [found.part(p).texts[0] for p in ("train", "valid", "test")]
    assert "".join(parts) == text
    assert 0.88 < len(parts[0]) / len(text) < 0.92 and all(p.endswith("\n") for p in parts)


def test_a_short_text_is_all_training(tmp_path):
    (tmp_path / "a.txt").write_text("one line")
    found = load_data(tmp_path / "a.txt")
    assert found.train.texts == ("one line",) and found.valid is None and found.test is None


def test_jsonl_texts_are_divided_by_content(tmp_path, tokenizer):
    records = [{"text": f"record {i % 150}"} for i in range(300)]
    found = load_data(jsonl(tmp_path / "a.jsonl", records))
    parts = {p: found.part(p).texts for p in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 300
    assert not set(parts["train"]) & set(parts["test"]) and not set(parts["train"]) & set(parts["valid"])
    again = load_data(jsonl(tmp_path / "b.jsonl", records[::-1]))
    assert set(again.train.texts) == set(parts["train"])
    assert found.pack("train", tokenizer, 16).batch(0, 2, 0)[0].shape == (2, 16)


def test_prompt_and_completion(tmp_path):
    found = load_data(jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "id": 3}]))
    assert isinstance(found.train, Pairs) and found.train.pairs == (("q", "a"),)


def test_a_folder_of_parts(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    jsonl(tmp_path / "valid.jsonl", [{"text": "b"}])
    jsonl(tmp_path / "test.jsonl", [{"text": "c\u2028d"}])
    (tmp_path / "README.md").write_text("not data")
    found = load_data(tmp_path)
    assert [found.part(p) for p in ("train", "valid", "test")] == [Texts(("a",)), Texts(("b",)), Texts(("c\u2028d",))]


def test_labelled_lines_as_sst2_has_them(tmp_path, tokenizer):
    (tmp_path / "stsa.binary.train").write_text("1 a fine film\n0 no movement , no yuks\n1 stirring\n")
    (tmp_path / "stsa.binary.dev").write_text("0\tdull\n")
    (tmp_path / "stsa.binary.test").write_text("1 good\n")
    (tmp_path / "LICENSE").write_text("not data")
    found = load_data(tmp_path, label_words={"0": "bad", "1": "good"})
    assert found.task.labels == ("0", "1") and found.task.label_words == ("bad", "good")
    assert [(e.text, e.label) for e in found.task.examples("train")][:2] == [
        ("a fine film", 1),
        ("no movement , no yuks", 0),
    ]
    assert [e.text for e in found.task.examples("valid")] == ["dull"]
    ((tokens, mask),) = found.pack("test", tokenizer, 32).eval_batches(4)
    assert tokenizer.decode(tokens[0]) == "good\nLabel: good"
    assert tokenizer.decode(tokens[mask > 0]) == " good"
    (tmp_path / "labels.json").write_text('{"0": "terrible", "1": "great"}')
    assert load_data(tmp_path).task.label_words == ("terrible", "great")


def test_built_in_sets():
    found = load_data("stdlib")
    assert len(found.train) > 3000 and len(str(found.info["corpus_sha256"])) == 64
    assert load_data("stdlib-task").task.labels[0] == "window"


LINES = {
    "no such file": ("nowhere.txt", None, UsageError, "no file or folder"),
    "empty": ("a.txt", b"", UsageError, "empty"),
    "blank": ("a.jsonl", b" \n\n", UsageError, "empty"),
    "not UTF-8": ("a.txt", b"abc\xff\xfe", MinedgeFormatError, "byte 3"),
    "bad JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": ', MinedgeFormatError, "line 3"),
    "deep JSON": ("a.jsonl", b"[" * 100000, MinedgeFormatError, "line 1"),
    "not an object": ("a.jsonl", b'"text"', MinedgeFormatError, "got str"),
    "list": ("a.jsonl", b"[1]", MinedgeFormatError, "got list"),
    "foreign keys": ("a.jsonl", b'{"content": "x"}', MinedgeFormatError, "got content"),
    "no keys": ("a.jsonl", b"{}", MinedgeFormatError, "got nothing"),
    "not a string": ("a.jsonl", b'{"text": 3}', MinedgeFormatError, "line 1"),
    "no completion": ("a.jsonl", b'{"prompt": "x"}', MinedgeFormatError, "completion"),
    "empty completion": ("a.jsonl", b'{"prompt": "x", "completion": " "}', MinedgeFormatError, "empty"),
    "mixed": ("a.jsonl", b'{"text": "x"}\n{"prompt": "x", "completion": "y"}', MinedgeFormatError, "line 2.*mixed"),
    "one class": ("a.tsv", b"1 a\n1 b\n", UsageError, "at least two labels, got only '1'"),
    "no text": ("a.tsv", b"1 a\n0\n", MinedgeFormatError, "line 2"),
    "not labels": ("a.csv", "\n".join(f"w{i} text" for i in range(200)).encode(), UsageError, "different first words"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_files_are_refused(tmp_path, case):
    name, content, error, message = LINES[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        load_data(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (3 if error is MinedgeFormatError else 2)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="found none"):
        load_data(tmp_path)
    (tmp_path / "train.txt").write_text("text")
    jsonl(tmp_path / "valid.jsonl", [{"text": "a"}])
    with pytest.raises(UsageError, match="one format"):
        load_data(tmp_path)
    jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(UsageError, match="one train file"):
        load_data(tmp_path)


def test_parts_of_different_kinds_are_refused(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    jsonl(tmp_path / "test.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(MinedgeFormatError, match="one kind"):
        load_data(tmp_path)


def test_missing_words_parts_and_formats_are_refused(tmp_path, tokenizer):
    file = tmp_path / "a.tsv"
    file.write_text("yes a\nno b\n")
    with pytest.raises(UsageError, match="none for yes"):
        load_data(file, label_words={"no": "no"})
    with pytest.raises(UsageError, match="one different word per label"):
        load_data(file, label_words={"no": "x", "yes": "x"})
    with pytest.raises(UsageError, match="template"):
        load_data(file, template="{text}")
    with pytest.raises(UsageError, match="format"):
        load_data(file, format="xml")
    with pytest.raises(UsageError, match="no valid part"):
        load_data(file).pack("valid", tokenizer, 16)
    for bad in ("[1]", "{", '{"no": 3}'):
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / "train.tsv").write_text("yes a\nno b\n")
        (folder / "labels.json").write_text(bad)
        with pytest.raises(MinedgeError, match=r"labels\.json"):
            load_data(folder)
