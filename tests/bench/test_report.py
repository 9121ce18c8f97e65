"""Tables, sentences, JSON and the picture, from results made by hand."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from minedge.bench import report as reports
from minedge.bench.busy import Load
from minedge.bench.machine import Limit, limits_of
from minedge.bench.markdown import markdown_table
from minedge.bench.measure import Run
from minedge.bench.roofline import roofline_svg
from minedge.bench.run import PartResult, Report
from minedge.bench.tasks_context import EMPTY
from minedge.bench.tasks_text import ADAPTED
from minedge.cli.text import json_value
from tests.bench.conftest import job

LIMITS = {1: Limit(read=4e9, float_macs=1e9, int8_macs=8e9)}
MACHINE = {
    "processor": "A <processor> & more", "cpus": 2, "wide": ["avx2"], "memory_bytes": 8e9, "system": "Linux x86_64",
    "minedge": "0", "python": "3", "numpy": "2", "date": "2026-01-01",
}  # fmt: skip


def machine_run(kind: str, amount: float, seconds: float) -> Run:
    return Run(job(), facts={"amount": amount, "unit": "GB/s", "limit": kind}, seconds=[seconds], check="right")


@pytest.fixture
def report(result) -> Report:
    runs = [machine_run("read", 8.0, 2.0), machine_run("read", 6.0, 2.0), machine_run("float", 2.0, 1.0)]
    return Report(MACHINE, Load(0.0, 0.0, 0.0), {"onnxruntime": "not installed: pip install onnxruntime"},
                  [PartResult("machine", "limits", "", 1, runs), result])  # fmt: skip


def test_the_fastest_of_each_kind_is_the_limit(report):
    """GFLOP/s are two per multiply-add; the int8 limit is the fastest int8 product of any part."""
    assert report.limits == {1: Limit(4e9, 1e9, 4e9)}


def test_limits_come_from_runs_that_count_only():
    wrong = replace(machine_run("read", 100.0, 1.0), wrong=True)
    assert limits_of([wrong]) == {}


def test_rates_ratios_and_shares(result):
    ours, peer, *_ = result.runs
    assert reports.rate_of(ours).median == 10.0
    assert reports.ratio_of(ours, result) is None
    assert reports.ratio_of(peer, result).median == 2.0  # of 2, 3, 2
    # 1e9 bytes at 4e9 a second take 0.25 s, 4e9 multiply-adds at 8e9 take 0.5 s: the larger one is the limit.
    assert reports.share_of(ours, LIMITS) == pytest.approx(0.5)
    assert reports.share_of(ours, {}) is None


def test_seconds_are_shown_as_they_are(result):
    run = replace(result.runs[0], facts={"amount": 1.0, "unit": "s", "seconds": True})
    assert reports.rate_of(run).median == 1.0


def test_rows_say_what_does_not_count(result):
    rows = reports.rows_of(result, LIMITS)
    assert all(len(row) == len(reports.HEADERS) for row in rows)
    assert rows[0][2:6] == ["10 tokens/s", "16.7%", "50%", "200 MB"]
    assert rows[1][6] == "2.00 x (2.00 to 2.50)"
    assert rows[2][2] == "failed" and rows[3][2] == "outputs are wrong"
    assert rows[3][6] == ""  # a figure whose outputs are wrong gives no ratio


def test_ratios_need_our_own_outputs_to_be_right(result):
    result.runs[0].wrong = True
    assert all(row[6] == "" for row in reports.rows_of(result, LIMITS))


def test_lines_say_set_up_check_and_trouble(result):
    lines = "\n".join(reports.lines_of(result))
    assert "minedge: c; checked: equal" in lines
    assert "peft: no such thing" in lines
    assert "llama.cpp: Q4_0; WRONG, does not count: far away" in lines
    assert "others used" not in lines
    result.runs[1].others = [0.5, 0.6, 0.0]
    result.runs[0].cpu_seconds, result.runs[1].cpu_seconds = [1.0, 1.0, 1.0], [3.0, 3.0, 4.0]
    assert "others used 50%" in "\n".join(reports.lines_of(result))
    assert "in processor time minedge is 3.00 x torch" in "\n".join(reports.lines_of(result))
    result.threads = 2
    assert "processor time" not in "\n".join(reports.lines_of(result))


def test_a_busy_machine_is_warned_of(report):
    assert not any("busy" in line for line in reports.headline(report))
    report.load = Load(0.4, 0.0, 3.0)
    assert any("warning: the machine is busy: others use 40%" in line for line in reports.headline(report))
    report.load = Load(0.0, 0.2, 3.0)
    assert any("its host takes 20%" in line for line in reports.headline(report))


def test_shares_and_steps_in_other_steps(report):
    facts = {"amount": 1.0, "unit": "tokens/s"}
    ours = job()

    def add(part: str, seconds: float, label: str = "minedge", peak: int = 0) -> None:
        run = Run(replace(ours, label=label), facts=facts, seconds=[seconds], peak_bytes=peak)
        report.results.append(PartResult(part, "", "s", 1, [run]))

    facts |= {"bytes": 8e6, "past": 4096}
    add("context", 1.0)
    facts = {**facts, "bytes": 6e6, "past": 8}
    add("context", 0.75, f"minedge, {EMPTY}")
    facts = {**facts, "bytes": 16e6, "past": 0}
    add("decode", 1.6)
    add("decode", 1.68, f"minedge, {ADAPTED}")
    add("mezo", 2.2, peak=110)
    add("mezo", 1.0, "minedge, forward alone", peak=100)
    add("mezo", 0.5, "minedge, generator alone")
    report.results.remove(next(result for result in report.results if result.shape == "a-shape"))
    text = "\n".join(reports.derived(report))
    assert (
        "attention over 4,096 tokens takes 25% (25% to 25%) of a token's 1e+03 ms; of the bytes that it reads 25%"
        in text
    )
    assert "not merged (LoRA r=8), a token takes +5.0% (+5.0% to +5.0%)" in text
    assert (
        "from s behind 8 tokens to s the bytes a token are 2.67 x, its time is 2.13 x (6 MB at 0.008 GB/s, 8 MB" in text
    )
    assert "2.20 forward passes of 1 s" in text
    assert "would take 3.15 s" in text
    assert "+10.0% of the forward pass's" in text


def test_json_holds_every_turn_and_no_nan(report):
    text = json.dumps(json_value(reports.to_json(report)), allow_nan=False)
    back = json.loads(text)
    decode = back["results"][1]
    assert decode["runs"][0]["seconds"] == [1.0, 1.0, 2.0]
    assert decode["runs"][1]["ratio"]["median"] == 2.0
    assert decode["runs"][3]["counts"] is False and decode["runs"][3]["rate"] is None
    assert back["not_installed"]["onnxruntime"].startswith("not installed")


def test_a_markdown_table_has_a_row_for_each_peer_that_counts(report, result):
    result.runs[1].others = [0.5, 0.6, 0.0]
    head, rule, *rows, blank, machine, end = markdown_table(report).split("\n")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(len(row) == len(head.strip("|").split("|")) == rule.count("---") for row in cells)
    decode = [row for row in cells if row[0].startswith("decode")]
    assert len(decode) == 1 and decode[0][2:5] == ["10 tokens/s", "100%", "200 MB"]  # two peers of four do not count
    assert decode[0][-1] == "2.00 x (2.00 to 2.50), others used 50%"
    assert (blank, end) == ("", "") and machine.startswith("- A <processor>")


def test_the_picture_is_xml_and_places_points_under_the_roofs(report):
    svg = roofline_svg(report)
    root = ET.fromstring(svg)
    text = " ".join("".join(e.itertext()) for e in root.iter())
    assert "A <processor> & more" in text and "read 4.0 GB/s" in text and "decode a-shape" in text
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2 + 2  # two that count, two in the legend
    for e in circles:
        assert 0 <= float(e.get("cx")) <= 720 and 0 <= float(e.get("cy")) <= 460
        assert math.isfinite(float(e.get("cx")))
    ours, peer = circles[0], circles[1]  # the same work in twice the time lies lower, at the same intensity
    assert ours.get("cx") == peer.get("cx") and float(ours.get("cy")) < float(peer.get("cy"))


def test_the_picture_without_a_machine_says_so(report):
    report.results = report.results[1:]
    assert "the machine was not measured" in roofline_svg(report)
