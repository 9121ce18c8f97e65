"""Recipes that break a rule of a8, or do not learn: each loses points and is told why."""

from __future__ import annotations

from tests.course.planted import Planted

__all__ = ["HIDDEN", "PLANTED"]

R = "recipe.py"
TRAIN = """    tuned = minedge.train(
        base, data, "full", iters=50, batch_size=8, seq_len=40, learning_rate=2e-3, warmup=5, eval_every=0, seed=seed
    )
"""
RETURN = "    return minedge.quant.int4(tuned, group_size=32, embeddings=True)\n"
ALL = TRAIN + RETURN
SMALL = "    small = minedge.quant.int4(base, embeddings=True)\n"
BRIEF = TRAIN.replace("iters=50", "iters=2").replace("warmup=5", "warmup=0")


def _after(lines: str) -> str:
    """Two steps of training, then these lines, then int4."""
    return BRIEF + lines + RETURN


OWN_LABELS = """    from types import SimpleNamespace

    from minedge.data.task import Example, Labelled, Task

    task = data.task
    mine = {"train": tuple(EXAMPLES)}
    task = Task("mine", task.labels, task.label_words, task.template, mine)
    data = SimpleNamespace(name="mine", task=task, train=Labelled(task, "train"), valid=None, info={})
"""
MIXED = OWN_LABELS.replace("EXAMPLES", 'Example(e.text, (e.label + 1) % 4) for e in task.examples("train")')
ONE = OWN_LABELS.replace("EXAMPLES", 'Example(e.text, 2) for e in task.examples("train")')
PEEK = """    import importlib.util

    from minedge.course.content import root

    spec = importlib.util.spec_from_file_location("lines", root() / "a8" / "lines.py")
    lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lines)
""" + OWN_LABELS.replace("EXAMPLES", "map(Example, *lines.canaries())")

PLANTED = [
    Planted("not_compressed", R, ALL, BRIEF + "    return tuned\n"),
    Planted("embedding_left_in_floats", R, ALL, "    return minedge.quant.int4(base)\n"),
    Planted("over_the_memory_budget", R, ALL, SMALL + '    return minedge.lora.add(small, r=4, target="all")\n'),
    Planted("over_the_size_budget", R, ALL, SMALL + '    return minedge.lora.add(small, r=8, target="all")\n'),
    Planted(
        "wrong_base", R, ALL,
        """    from dataclasses import replace

    return minedge.init(replace(base.config, n_layer=2), tokenizer=base.tokenizer, seed=seed)
""",
    ),
    Planted("not_repeatable", R, ALL, BRIEF.replace("seed=seed", "seed=__import__('time').time_ns() % 2**31") + RETURN),
    Planted(
        "opens_other_data", R, ALL,
        BRIEF.replace("base, data", 'base, "stdlib-task"') + RETURN,
    ),
    Planted("test_data_seen", R, ALL, PEEK + TRAIN.replace("iters=50", "iters=30") + RETURN),
    Planted("returns_no_model", R, ALL, BRIEF + "    minedge.quant.int4(tuned, embeddings=True)\n"),
    Planted("base_written_to", R, ALL, '    base.params["model.norm.weight"][:] *= 2\n    return base\n'),
    Planted(
        "diverged", R, ALL,
        """    params = {k: v * float("nan") if k.endswith("norm.weight") else v for k, v in base.params.items()}
    return base.with_params(params)
""",
    ),
    Planted("too_much_memory_to_build", R, ALL, "    import numpy as np\n\n    return np.ones(1 << 33) and base\n"),
    Planted("nothing_learned", R, ALL, "    return minedge.quant.int4(base, embeddings=True)\n"),
    Planted("one_answer_for_all", R, ALL, ONE + TRAIN.replace("iters=50", "iters=15") + RETURN),
    Planted("labels_mixed_up", R, ALL, MIXED + TRAIN.replace("iters=50", "iters=40") + RETURN),
]  # fmt: skip

# Rules broken in other ways.
HIDDEN = [
    Planted("not_repeatable", R, ALL, _after(
        """    import random

    name = random.choice([n for n in tuned.params if n.endswith("norm.weight")])
    tuned = tuned.with_params({**tuned.params, name: tuned.params[name] * 0.5})
"""
    )),
    Planted("diverged", R, ALL, BRIEF.replace("2e-3", "1e9") + RETURN),
]  # fmt: skip
