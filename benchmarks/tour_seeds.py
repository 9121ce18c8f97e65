"""The tour's claims on five seeds: accuracy and label-word loss against the base, in paired standard errors.

python benchmarks/tour_seeds.py [SEEDS]       about a minute and a half a seed on two cores
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from minedge import load
from minedge.cli.console import Console
from minedge.cli.tour_stages import Tour

CLAIMS = (("lora", "accuracy"), ("mezo", "label_loss"), ("mezo_int4", "label_loss"))


def main(seeds: int = 5) -> None:
    """Print a line a seed, then how many seeds pass three standard errors."""
    passed = dict.fromkeys((stage for stage, _ in CLAIMS), 0)
    base = load("bundled")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            quiet = Console(quiet=True)
            tour = Tour(base, Path(folder), seed, lambda text: None, quiet.progress, [base.ops.name])
            for stage in (tour.read_data, tour.base_stage, tour.lora_stage, tour.mezo_stage, tour.mezo_int4_stage):
                stage()
        found = {s.stage: s.to_dict() for s in tour.stages}
        line = []
        for stage, what in CLAIMS:
            change, se = found[stage][f"{what}_change"], found[stage][f"{what}_change_se"]
            passed[stage] += (change if what == "accuracy" else -change) > 3 * se
            line.append(f"{stage} {what} {change:+.3f} ± {se:.3f} ({change / se:+.1f} SE)")
        print(f"seed {seed}: {'; '.join(line)}", flush=True)
    print("seeds above three standard errors:", ", ".join(f"{stage} {n} of {seeds}" for stage, n in passed.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
