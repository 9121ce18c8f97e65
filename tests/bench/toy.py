"""A competitor for the protocol's tests: sleeps, fails, chatters or dies as its sizes say."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from minedge.bench.worker import Clock, Subject


def imports(job: Mapping[str, Any]) -> None:
    if job["sizes"].get("imports_mb"):
        KEPT.append(np.ones(job["sizes"]["imports_mb"] << 17))


KEPT: list[Any] = []


class Toy(Subject):
    def __init__(self, job: Mapping[str, Any]):
        self.sizes = job["sizes"]
        if self.sizes.get("fails"):
            raise ValueError("this toy\nfails")
        if self.sizes.get("dies"):
            os._exit(7)
        if self.sizes.get("hangs"):
            time.sleep(60)
        print("chatter on stdout")  # must not reach the protocol
        os.system("echo chatter of a child")
        self.settings = "a toy"
        self.facts = {"amount": 1.0, "unit": "turns/s"}
        self.outputs = {"number": self.sizes.get("number", 1), "given": dict(job["given"])}
        self.order = self.sizes.get("order")

    def run(self, units: int, clock: Clock) -> None:
        if self.sizes.get("breaks"):
            raise RuntimeError("broken in a turn")
        time.sleep(self.sizes.get("unmeasured", 0.0))
        extra = np.ones(self.sizes.get("work_mb", 0) << 17)  # touched, so it counts
        with clock.running():
            time.sleep(units * self.sizes.get("seconds", 0.01))
        del extra
        if self.order:
            with open(self.order, "a") as file:
                file.write(self.sizes["name"])


def make(job: Mapping[str, Any]) -> Subject:
    return Toy(job)
