"""What goes wrong with a recipe: the rules it can break, and habits that show in the answers. properties.py "
"names them."""

from __future__ import annotations

from minedge.course.properties import Misconception

CALL = "build"

MISCONCEPTIONS = [
    Misconception(
        "not_compressed", CALL,
        "The weights are still float32, 4 bytes each: quantize what you return (minedge.quant.int4, about 0.14 of "
        "the bytes).",
    ),
    Misconception(
        "embedding_left_in_floats", CALL,
        "The matrices are packed, the embedding is not, and it is half of what is left: embeddings=True covers it.",
    ),
    Misconception(
        "over_the_memory_budget", CALL,
        "What lies in memory is counted, from real buffers: adapters on top are float32 (merge them), a pruned "
        "matrix is as large "
        "as before plus its mask.",
    ),
    Misconception(
        "over_the_size_budget", CALL,
        "The saved files are too large. Look at what model.save writes: packed weights stay packed, adapters are "
        "written beside.",
    ),
    Misconception(
        "wrong_base", CALL,
        "The model has another shape than the bundled one. Everybody starts from `base`, the model that build is "
        "given.",
    ),
    Misconception(
        "not_repeatable", CALL,
        "Two runs with one seed differ: a result nobody can repeat is no result. Take every random choice from "
        "`seed`; look at "
        "default_rng() without a seed, the clock, set order, and anything that goes by time.",
    ),
    Misconception(
        "opens_other_data", CALL,
        "The recipe opens data of its own. Only what `data` holds may be used: whose test lines might they contain?",
    ),
    Misconception(
        "test_data_seen", CALL,
        "Some test lines have wrong labels on purpose. The model gives those wrong labels, so it was trained on "
        "the test lines; its "
        "accuracy says nothing. Train on data.train, choose on data.valid.",
    ),
    Misconception(
        "returns_no_model", CALL,
        "build must return the Model to be measured (functions of minedge return a new one; did you return it?).",
    ),
    Misconception(
        "base_written_to", CALL,
        "The base's arrays are read-only, since models share them: work on base.trainable() or let minedge.train copy.",
    ),
    Misconception(
        "diverged", CALL,
        "Weights are not finite: training has diverged. A lower learning rate, a warm-up, clipping.",
    ),
    Misconception(
        "too_much_memory_to_build", CALL,
        "The recipe itself takes more memory than its process may have (assignment.json: limits).",
    ),
    Misconception(
        "nothing_learned", CALL,
        "The accuracy is about the base's: nothing was learned. Is anything trainable (int4 codes are not), is "
        "the learning rate "
        "large enough, is it the trained model that you return?",
    ),
    Misconception(
        "one_answer_for_all", CALL,
        "The model gives one and the same label to almost every line: the learning rate may be far too high, or "
        "it saw one label only.",
    ),
    Misconception(
        "labels_mixed_up", CALL,
        "The topics are told apart, and the labels belong to others of them: are lines and labels still in one "
        "order where you "
        "build your own examples?",
    ),
]  # fmt: skip
