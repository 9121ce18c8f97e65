"""Hold `minedge tour --json` to what the README says of it. Time is printed, not judged: CI machines are shared."""

from __future__ import annotations

import json
import sys

STAGES = ["base", "lora", "mezo", "mezo_int4", "prune", "prune_recovered", "int4"]


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    stages = {s["stage"]: s for s in document["stages"]}
    assert list(stages) == STAGES, list(stages)
    base = stages["base"]
    checks = {
        "LoRA trains under 2% of the parameters": 0 < stages["lora"]["trained_share"] < 0.02,
        "LoRA beats the base's accuracy by 3 SE": in_se(stages["lora"], "accuracy") > 3,
        "MeZO lowers the label loss by 3 SE": in_se(stages["mezo"], "label_loss") < -3,
        "MeZO on int4 lowers the label loss by 3 SE": in_se(stages["mezo_int4"], "label_loss") < -3,
        "int4 takes at most 0.15 of float32": stages["int4"]["notes"]["linear_ratio"] <= 0.15,
        "int4's loss is within 3%": abs(stages["int4"]["loss"] / base["loss"] - 1) <= 0.03,
        "pruned tensors take at most 0.57": stages["prune"]["notes"]["stored_ratio"] <= 0.57,
        "recovery lowers the pruned loss": stages["prune_recovered"]["loss"] < stages["prune"]["loss"],
        "a run replays bit for bit everywhere": all(stages["mezo"]["notes"]["replay_bit_identical"].values()),
        "the log is under 8 KB": stages["mezo"]["notes"]["log_bytes"] < 8192,
        "three backends were measured": set(base["tokens_per_s_by_backend"]) == {"numpy", "numba", "c"},
        "peak memory stays under 1 GB": document["peak_bytes"] < 1 << 30,
    }
    for text, ok in checks.items():
        print(f"{'ok  ' if ok else 'FAIL'} {text}")
    print(f"tour: {document['seconds']:.0f} s, peak {document['peak_bytes'] / 1e6:.0f} MB")
    sys.exit(0 if all(checks.values()) else 1)


def in_se(stage: dict, what: str) -> float:
    return stage[f"{what}_change"] / stage[f"{what}_change_se"]


if __name__ == "__main__":
    main(sys.argv[1])
