"""What adapter_config.json may say: the options of PEFT's LoRA that minedge computes, and a clear no to all others.

One adapter may have a rank and an alpha per module: `rank_pattern` and `alpha_pattern` map a module's name, the end of
one, or a small regular expression for either, to a number; the first that fits is taken, else `r` and `lora_alpha`
hold. Patterns come out of a file, so only those are accepted whose matching takes a bounded number of steps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

__all__ = ["MAX_RANK", "Scale", "config_problem", "patterns_of", "scale_of"]

MAX_RANK = 65536
MAX_NAME = 256  # characters of a module name or a pattern
MAX_PATTERNS = 4096

# Options of PEFT that change what an adapter computes and that minedge does not have, with the values that switch them
# off.
_MUST_BE_OFF: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "lora_bias": (None, False),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    # Other initialisations (pissa, olora, corda, loftq) also change the base's weights.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
_WHY = {
    "bias": "; train the adapter with bias='none'",
    "modules_to_save": ": the file holds whole modules beside the adapter; save it without them, or merge it with peft",
}
_MAY_BE_ON = ("use_rslora", "use_dora")
# Settings of initialisations and of training, which do not change what a finished adapter computes.
_HARMLESS_CONFIGS = (
    "corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "velora_config",
)  # fmt: skip

# A character, an escaped dot or digit, or a class of characters, each perhaps repeated; or alternatives. No nesting.
_ATOM = r"(?:[\w.-]|\\[.dw]|\[[\w-]+\])[+*]?"
_CHOICE = r"\((?:\?:)?[\w.-]+(?:\|[\w.-]+)*\)"
_PATTERN = re.compile(rf"\^?(?:{_ATOM}|{_CHOICE})+\$?", re.ASCII)
_MAX_REPEATS = 2


class Scale(NamedTuple):
    """What decides the size of one module's adapter."""

    r: int
    lora_alpha: float


def config_problem(config: Mapping[str, Any]) -> str | None:
    """What is wrong with a configuration, or None."""
    if config.get("peft_type") != "LORA":
        return f"peft_type: expected 'LORA', got {config.get('peft_type')!r}"
    r, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not _is_rank(r):
        return f"r: expected an integer from 1 to {MAX_RANK}, got {r!r}"
    if not _is_alpha(alpha):
        return f"lora_alpha: expected a finite number, got {alpha!r}"
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    ):
        return f"target_modules: expected a list of module names, got {targets!r}"
    for key, good in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        problem = _pattern_problem(key, config.get(key), good)
        if problem:
            return problem
    for key, off in _MUST_BE_OFF.items():
        if config.get(key) not in off:
            return f"{key}: {config[key]!r} is not supported, expected {off[-1]!r}{_WHY.get(key, '')}"
    for key, value in config.items():
        if key in _MAY_BE_ON:
            if value not in (None, False, True):
                return f"{key}: expected true or false, got {value!r}"
        elif key.startswith("use_") and value not in (None, False):
            return f"{key}: {value!r} is not supported, expected False"
        elif key.endswith("_config") and key not in _HARMLESS_CONFIGS and value not in (None, {}):
            return f"{key}: this variant of LoRA is not supported, expected null"
    return None


def scale_of(config: Mapping[str, Any], path: str) -> Scale:
    """Rank and alpha of the module `path`, by a configuration that `config_problem` has passed."""
    return Scale(
        _looked_up(config.get("rank_pattern"), path, config["r"]),
        _looked_up(config.get("alpha_pattern"), path, config["lora_alpha"]),
    )


def patterns_of(scales: Mapping[str, Scale]) -> tuple[Scale, dict[str, int], dict[str, float]]:
    """The commonest rank and alpha, and the patterns for the modules that differ: inverse of `scale_of`.

    A module's last name stands for all of that name where they agree, so the usual patterns stay short.
    """
    default = Counter(scales.values()).most_common(1)[0][0]
    of_leaf: dict[str, set[Scale]] = {}
    for path, scale in scales.items():
        of_leaf.setdefault(path.rsplit(".", 1)[-1], set()).add(scale)
    keys: dict[str, Scale] = {}
    for path, scale in scales.items():
        leaf = path.rsplit(".", 1)[-1]
        key = leaf if len(of_leaf[leaf]) == 1 else path
        if scale != default:
            keys[key] = scale
    # Both patterns name the same modules: older versions of peft look up one name for the two.
    ranks = {key: scale.r for key, scale in keys.items()}
    alphas = {key: scale.lora_alpha for key, scale in keys.items()}
    return default, ranks, alphas


def _looked_up(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _pattern_problem(name: str, pattern: Any, good: Any) -> str | None:
    if pattern in (None, {}):
        return None
    if not isinstance(pattern, dict) or len(pattern) > MAX_PATTERNS:
        return f"{name}: expected an object of at most {MAX_PATTERNS} module names, got {type(pattern).__name__}"
    for key, value in pattern.items():
        simple = len(key) <= MAX_NAME and _PATTERN.fullmatch(key) and sum(key.count(c) for c in "+*") <= _MAX_REPEATS
        try:
            simple = simple and re.compile(key)
        except re.error:
            simple = False
        if not simple:
            return f"{name}: expected module names or simple patterns of them as keys, got {key[:MAX_NAME]!r}"
        if not good(value):
            return f"{name}: {key!r}: expected {'a rank' if good is _is_rank else 'a finite number'}, got {value!r}"
    return None


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
