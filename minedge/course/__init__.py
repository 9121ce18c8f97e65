"""Assignments: what a course hands out, checks and grades.

The blanks are cut from the library's own sources (cut.py), so solution and library cannot drift apart. A student's code
runs in a process of its own (sandbox.py, worker.py) that only answers calls; inputs are drawn, answers compared and
points counted outside it (properties.py, check.py), so nothing the code prints, patches or breaks changes a verdict on
anything but its own answers.
"""

from minedge.course.check import CheckResult, check_folder, check_task
from minedge.course.content import Assignment, assignments, load
from minedge.course.grade import grade
from minedge.course.properties import Check, Gradient, Misconception, Outcome, Property
from minedge.course.start import reset, start
from minedge.course.submit import submit

__all__ = [
    "Assignment",
    "Check",
    "CheckResult",
    "Gradient",
    "Misconception",
    "Outcome",
    "Property",
    "assignments",
    "check_folder",
    "check_task",
    "grade",
    "load",
    "reset",
    "start",
    "submit",
]
