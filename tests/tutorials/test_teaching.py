"""What the cells use: stated figures, shown source, plots."""

from __future__ import annotations

import pytest

import minedge
from minedge import teaching
from minedge.ops import numpy_ops


def test_a_figure_inside_its_range_is_printed_with_it(capsys):
    expect = teaching.Expected({"loss": (2.9, 3.3), "share": (0, 1)})
    expect("loss", 3.14159)
    expect("share", 1)  # the ends belong to the range
    expect.report()
    assert "loss: 3.142 (stated: 2.9 to 3.3)" in capsys.readouterr().out
    assert expect.found == {"loss": 3.142, "share": 1.0}


@pytest.mark.parametrize("value", [2.8999, 3.3001, float("nan"), float("inf")])
def test_a_figure_outside_its_range_stops_the_run(value):
    with pytest.raises(AssertionError, match=r"loss: .* lies outside the stated range 2\.9 to 3\.3"):
        teaching.Expected({"loss": (2.9, 3.3)})("loss", value)


def test_figures_never_measured_or_never_stated_are_errors():
    expect = teaching.Expected({"a": (0, 1), "b": (0, 1)})
    expect("a", 0.5)
    with pytest.raises(AssertionError, match="not measured in this run: b"):
        expect.report()
    with pytest.raises(KeyError, match="not among the stated"):
        expect("c", 0.5)


def test_the_seed_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("MINEDGE_TUTORIAL_SEED", raising=False)
    assert teaching.seed() == 0
    monkeypatch.setenv("MINEDGE_TUTORIAL_SEED", "7")
    assert teaching.seed() == 7


def test_source_is_shown_from_the_package_without_course_markers(capsys):
    teaching.show(numpy_ops.int4_dequantize, numpy_ops.rms_norm_forward, doc=False)
    text = capsys.readouterr().out
    assert text.startswith("# minedge/ops/numpy_ops/int4.py\ndef int4_dequantize(")
    assert "# minedge/ops/numpy_ops/layers.py" in text
    assert "SOLUTION" not in text
    assert '"""' not in text
    teaching.show(minedge.lora.count)
    assert '"""Number of trained parameters' in capsys.readouterr().out


def test_docstrings_are_left_out_and_the_rest_stays_runnable():
    text = 'def f(x):\n    """One.\n\n    More.\n    """\n\n    y = """kept"""\n    return x + y\n'
    stripped = teaching._without_docstrings(text)
    assert "More" not in stripped
    space: dict = {}
    exec(stripped, space)
    assert space["f"]("a") == "akept"


def test_one_c_function_is_shown(capsys):
    teaching.show_c("ladder/int4_ladder.c", "void product_scalar")
    text = capsys.readouterr().out
    assert text.startswith("// kernels/ladder/int4_ladder.c\n/* Step 1, scalar")
    assert text.rstrip().endswith("}")
    assert "product_unrolled" not in text
    with pytest.raises(ValueError, match=r"no line of kernels/ladder/int4_ladder\.c begins with 'nothing'"):
        teaching.show_c("ladder/int4_ladder.c", "nothing")


def test_the_same_plot_gives_the_same_bytes(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    shown: list[dict] = []
    monkeypatch.setattr(teaching, "_display", shown.append)
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2], label="a")
        axis.legend()
        teaching.plot(figure, "Figure 1. Two points.")
    assert shown[0] == shown[2]
    assert shown[0]["image/svg+xml"].startswith('<svg style="max-width: 100%')
    assert "<text" in shown[0]["image/svg+xml"]
    assert shown[1]["text/markdown"] == "*Figure 1. Two points.*"
