"""What an assignment tests: properties with random cases, and misconceptions recognised by what they compute.

A property asks the student's code for its answer on a case, small cases first, and compares it with the reference. A
misconception is a function that computes what a certain wrong idea gives. Where the student's answer differs from the
reference and equals the misconception's, its hint is given. So it does not matter how the code is written, only what it
does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from minedge.course.compare import difference, shapes
from minedge.course.sandbox import CallError, Student
from minedge.gradcheck import check_backward

__all__ = ["Check", "Gradient", "Misconception", "Outcome", "Property", "TestedProperty", "explain"]

Case = Mapping[str, Any]
Values = dict[str, Any]
MAX_HINTS = 3


@dataclass(frozen=True)
class Misconception:
    """A wrong idea. `wrong` takes the call's arguments and returns what code with this idea would return; or `change`
    replaces texts in the solved `file`, which then computes it; or `raises` names the exception such code raises.
    """

    name: str
    call: str | tuple[str, ...]
    hint: str
    wrong: Callable[..., Values] | None = None
    raises: str = ""
    file: str = ""
    change: tuple[tuple[str, str], ...] = ()
    changed: Callable[[str, Case], Values] | None = None  # made from `file` and `change` by the assignment

    def answer(self, call: str, case: Case) -> Values:
        """What code with this idea returns; may raise where it cannot."""
        if self.changed is not None:
            return self.changed(call, case)
        return {} if self.wrong is None else self.wrong(**case)

    def belongs_to(self, call: str) -> bool:
        return call == self.call or call in self.call if isinstance(self.call, tuple) else call == self.call


@dataclass(frozen=True)
class Outcome:
    """What became of a property. `case` tells the failing shapes, `detail` expected against got, `share` partial credit
    (0 to 1, for `ok` 1), `note` a line for the report such as a leaderboard's.
    """

    ok: bool
    case: str = ""
    detail: str = ""
    misconceptions: tuple[str, ...] = ()
    share: float | None = None
    note: str = ""
    kind: str = ""  # of the CallError, where there was one

    @property
    def credit(self) -> float:
        share = float(self.ok) if self.share is None else self.share
        return min(1.0, max(0.0, share)) if share == share else 0.0


class TestedProperty(Protocol):
    """What check runs: it belongs to a task, has a name, and comes to an outcome."""

    task: str
    name: str
    says: str

    def run(self, student: Student, rng: np.random.Generator, misconceptions: Sequence[Misconception]) -> Outcome: ...


@dataclass(frozen=True)
class Property:
    """The call's outputs equal those of `expected`, to `tolerance` times the largest magnitude in each output.

    cases(rng) yields dicts of arguments, smallest first; expected(**case) returns the outputs by name.
    """

    task: str
    call: str
    cases: Callable[[np.random.Generator], Iterable[Values]]
    expected: Callable[..., Values]
    says: str = ""
    tolerance: float = 1e-9
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.call

    def run(self, student: Student, rng: np.random.Generator, misconceptions: Sequence[Misconception]) -> Outcome:
        def outcomes() -> Iterator[Outcome]:
            for case in self.cases(rng):
                expected = self.expected(**case)
                yield _compared(student, self.call, case, expected, self.tolerance, misconceptions)

        return _first_failure(outcomes())


@dataclass(frozen=True)
class Gradient:
    """The call is the backward of `forward`: the vector-Jacobian check of minedge.gradcheck, in float64.

    cases yield forward's arguments in order; the call gets {"dout", "cache"} and returns a gradient per name in `wrt`.
    `expected(dout, cache)` shows what should have come, and tells misconceptions apart.
    """

    task: str
    call: str
    cases: Callable[[np.random.Generator], Iterable[Values]]
    forward: Callable[..., tuple[Any, Any]]
    expected: Callable[..., Values]
    wrt: tuple[str, ...] = ("x",)
    says: str = ""
    tolerance: float = 1e-6
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.call

    def run(self, student: Student, rng: np.random.Generator, misconceptions: Sequence[Misconception]) -> Outcome:
        return _first_failure(self._on(case, student, rng, misconceptions) for case in self.cases(rng))

    def _on(
        self, case: Values, student: Student, rng: np.random.Generator, misconceptions: Sequence[Misconception]
    ) -> Outcome:
        names = list(case)

        def forward(*args: Any) -> tuple[Any, Any]:
            return self.forward(**dict(zip(names, args, strict=True)))

        def backward(dout: Any, cache: Any) -> tuple[Any, ...]:
            got = student.call(self.call, dout=dout, cache=list(cache))
            return tuple(got[f"d{name}"] for name in self.wrt)

        out, cache = forward(*case.values())
        dout = rng.standard_normal(np.shape(out)) if np.ndim(out) else float(rng.standard_normal())
        arguments = {"dout": dout, "cache": list(cache)}
        expected = self.expected(**arguments)
        outcome = _compared(student, self.call, arguments, expected, 1e-7, misconceptions, shown=case)
        if not outcome.ok:
            return outcome
        wrt = [names.index(name) for name in self.wrt]
        try:
            report = check_backward(
                forward, backward, list(case.values()), wrt=wrt, rng=rng, n_directions=1, tolerance=self.tolerance
            )
        except CallError as error:
            return Outcome(False, shapes(case), str(error), kind=error.kind)
        except (KeyError, TypeError, ValueError) as error:
            return Outcome(False, shapes(case), f"{self.call}: {error}")
        if report.ok:
            return Outcome(True)
        return Outcome(False, shapes(case), f"{self.call} is not the derivative of its forward: {report}")


@dataclass(frozen=True)
class Check:
    """Anything else: function(student, rng) -> Outcome. It may name misconceptions itself."""

    task: str
    name: str
    function: Callable[[Student, np.random.Generator], Outcome]
    says: str = ""

    def run(self, student: Student, rng: np.random.Generator, misconceptions: Sequence[Misconception]) -> Outcome:
        return self.function(student, rng)


def _first_failure(outcomes: Iterator[Outcome]) -> Outcome:
    """The first failing case. Where it names several misconceptions or none, up to three more failing cases tell them
    apart: what explains the small case by accident does not explain the others.
    """
    failed = next((outcome for outcome in outcomes if not outcome.ok), None)
    if failed is None:
        return Outcome(True)
    if failed.kind or len(failed.misconceptions) == 1:
        return failed
    names = failed.misconceptions
    more = (outcome for outcome in outcomes if not outcome.ok)
    for outcome in itertools.islice(more, 3):
        if outcome.kind:
            break
        both = tuple(name for name in names if name in outcome.misconceptions)
        names = (both or names) if names else outcome.misconceptions
        if len(names) == 1:
            break
    return replace(failed, misconceptions=names[:MAX_HINTS])


def _compared(
    student: Student,
    call: str,
    case: Case,
    expected: Values,
    tolerance: float,
    misconceptions: Sequence[Misconception],
    shown: Case | None = None,
) -> Outcome:
    where = shapes(shown if shown is not None else case)
    known = [m for m in misconceptions if m.belongs_to(call)]
    try:
        got = student.call(call, **case)
    except CallError as error:
        names = tuple(m.name for m in known if m.raises and m.raises == error.type)
        return Outcome(False, where, str(error), names, kind=error.kind)
    lines = [
        difference(key, value, got[key], tolerance) if key in got else f"{key}: missing in the answer"
        for key, value in expected.items()
    ]
    lines = [line for line in lines if line]
    if not lines:
        if student.changed:
            changed = ", ".join(student.changed)
            return Outcome(False, where, f"{call} changed its argument {changed} in place; leave arguments as they are")
        return Outcome(True)
    return Outcome(False, where, "; ".join(lines[:2]), explain(known, call, case, expected, got, tolerance))


def explain(
    misconceptions: Sequence[Misconception], call: str, case: Case, expected: Values, got: Values, tolerance: float
) -> tuple[str, ...]:
    """Names of the misconceptions that give what was got, in every output where they differ from what is expected."""
    names: list[str] = []
    for m in misconceptions:
        try:
            with np.errstate(all="ignore"):
                wrong = m.answer(call, case)
            telling = [k for k in expected if k in wrong and difference(k, expected[k], wrong[k], tolerance)]
            if telling and all(k in got and not difference(k, wrong[k], got[k], tolerance) for k in telling):
                names += [] if m.name in names else [m.name]
        except Exception:
            continue  # it says nothing about this case
    return tuple(names)
