"""Errors planted in the solution of a5: each loses points and is named."""

from __future__ import annotations

from tests.course.planted import Planted

__all__ = ["HIDDEN", "PLANTED"]

BITS = '    return np.packbits(mask.ravel(), bitorder="little")'
UNPACK = '    return np.unpackbits(bits, count=n, bitorder="little").reshape(shape).astype(bool)'
CHOOSE = "    return np.where(_unpack(bits, weight.shape), weight, weight.dtype.type(0))"
IN_PLACE = "    weight[~_unpack(bits, weight.shape)] = 0"
SIZE = "    size = np.concatenate([np.abs(weight).ravel() for weight in weights])"
REMOVE = "    remove = round(sparsity * size.size)"
TIES = """        keep[size < threshold] = False
        ties = np.flatnonzero(size == threshold)
        keep[ties[: remove - np.count_nonzero(~keep)]] = False
"""
PARTS = "    parts = np.split(keep, np.cumsum([weight.size for weight in weights])[:-1])"
LAYERS = "        masks = [_without_smallest([weight], sparsity)[0] for weight in weights.values()]"
GLOBAL = "        masks = _without_smallest(list(weights.values()), sparsity)"
ORDER = '        order = np.argsort(groups, axis=-1, kind="stable")  # stable: equals stay in order of index'
GROUPS = "        groups = np.abs(weight).reshape(-1, m)"
SMALLEST = "order[:, : m - n]"
PUT = "        np.put_along_axis(mask, order[:, : m - n], False, axis=-1)"
GROUPED = """        groups = np.abs(weight).reshape(-1, m)
        order = np.argsort(groups, axis=-1, kind="stable")  # stable: equals stay in order of index
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, order[:, : m - n], False, axis=-1)
        masks.append(mask.reshape(weight.shape))
"""
BY_COLUMN = """        groups = np.abs(weight.T).reshape(-1, m)
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, np.argsort(groups, axis=-1, kind="stable")[:, : m - n], False, axis=-1)
        masks.append(mask.reshape(weight.T.shape).T)
"""
STRIDED = """        groups = np.abs(weight).reshape(len(weight), m, -1)
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, np.argsort(groups, axis=1, kind="stable")[:, : m - n], False, axis=1)
        masks.append(mask.reshape(weight.shape))
"""
FORWARD = "        return ops.linear_forward(x, self.dense(params, name, ops))[0], (x,)"
DENSE = '        return ops.mask_apply(params[f"{name}.weight"], params[f"{name}.mask"])'
DWEIGHT = '        return dx, {key: ops.mask_apply(dweight, params[f"{name}.mask"])}  # inverts keep * weight'
DX = "ops.linear_backward(dout, (x, self.dense(params, name, ops)), need_dweight=key in wanted)"
UNWANTED = """need_dweight=key in wanted)
        if dweight is None:
            return dx, {}
"""
ROWS = '        return {key: ops.mask_apply(grad, params[f"{name}.mask"]) for key, grad in grads.items()}'
WRITEABLE = "        if weight.flags.writeable:  # read-only: it was not trained, so there is nothing to put back"
CONSTRAIN = '            ops.mask_apply_(weight, params[f"{name}.mask"])'
PACK = "    return weight[_unpack(bits, weight.shape)]"
PLACE = "    out[mask] = values"
KEPT = """kept, size = int(np.unpackbits(bits, count=math.prod(shape), bitorder="little").sum()), math.prod(shape)"""

M, P = "masks.py", "prune.py"
PLANTED = [
    Planted("bits_high_first", P, BITS, "    return np.packbits(mask.ravel())"),
    Planted(
        "bits_high_first_reading", M, UNPACK,
        "    return np.unpackbits(bits, count=n).reshape(shape).astype(bool)",
    ),
    Planted("bits_by_column", P, BITS, '    return np.packbits(mask.ravel("F"), bitorder="little")'),
    Planted("bits_of_pruned", P, BITS, '    return np.packbits(~mask.ravel(), bitorder="little")'),
    Planted("a_byte_a_weight", P, BITS, "    return mask.ravel().astype(np.uint8)"),
    Planted("bits_row_by_row", P, BITS, '    return np.packbits(mask, axis=1, bitorder="little").ravel()'),
    Planted("times_the_mask", M, CHOOSE, "    return weight * _unpack(bits, weight.shape)"),
    Planted("times_the_mask", M, IN_PLACE, "    weight *= _unpack(bits, weight.shape)"),
    Planted("kept_and_pruned_swapped", M, CHOOSE, CHOOSE.replace("_unpack", "~_unpack")),
    Planted("kept_and_pruned_swapped", M, IN_PLACE, "    weight[_unpack(bits, weight.shape)] = 0"),
    Planted("in_place_on_a_copy", M, IN_PLACE, "    weight = np.where(_unpack(bits, weight.shape), weight, 0)"),
    Planted("threshold_takes_all_ties", P, TIES, "        keep[size <= threshold] = False\n"),
    Planted("threshold_leaves_all_ties", P, TIES, "        keep[size < np.sort(size)[remove]] = False\n"),
    Planted("threshold_from_a_quantile", P, TIES, "        keep[size < np.quantile(size, sparsity)] = False\n"),
    Planted("threshold_off_by_one", P, REMOVE, "    remove = max(0, round(sparsity * size.size) - 1)"),
    Planted("one_too_many", P, REMOVE, "    remove = round(sparsity * size.size) + 1"),
    Planted("count_rounded_down", P, REMOVE, "    remove = int(sparsity * size.size)"),
    Planted("count_rounded_up", P, REMOVE, "    remove = math.ceil(sparsity * size.size)"),
    Planted("count_half_up", P, REMOVE, "    remove = int(sparsity * size.size + 0.5)"),
    Planted("sparsity_is_what_stays", P, REMOVE, "    remove = round((1 - sparsity) * size.size)"),
    Planted(
        "each_row_alone", P, SIZE,
        """    if len(weights[0]) > 1:
        alone = [[_without_smallest([row[None]], sparsity)[0] for row in w] for w in weights]
        return [np.concatenate(rows) for rows in alone]
"""
        + SIZE,
    ),
    Planted("sign_not_dropped", P, SIZE, "    size = np.concatenate([weight.ravel() for weight in weights])"),
    Planted("largest_removed", P, SIZE, "    size = np.concatenate([-np.abs(weight).ravel() for weight in weights])"),
    Planted("mask_means_pruned", P, PARTS, PARTS.replace("(keep,", "(~keep,")),
    Planted("ties_from_the_end", P, "ties[: remove - np", "ties[::-1][: remove - np"),
    Planted(
        "each_matrix_alone", P, SIZE,
        "    if len(weights) > 1:\n        return [_without_smallest([w], sparsity)[0] for w in weights]\n" + SIZE,
    ),
    Planted("zeros_not_counted", P, REMOVE, "    remove = round(sparsity * np.count_nonzero(size))"),
    Planted("scopes_swapped", P, 'if scope == "global":', 'if scope == "layer":'),
    Planted("scope_ignored", P, GLOBAL, LAYERS),
    Planted("scope_always_global", P, LAYERS, GLOBAL),
    Planted("groups_down_the_columns", P, GROUPED, BY_COLUMN),
    Planted("n_counts_the_removed", P, SMALLEST, "order[:, :n]"),
    Planted("nm_keeps_the_smallest", P, SMALLEST, "order[:, n:]"),
    Planted("nm_sign_not_dropped", P, GROUPS, "        groups = weight.reshape(-1, m)"),
    Planted(
        "nm_ties_from_the_end", P, ORDER,
        "        order = m - 1 - np.argsort(groups[:, ::-1], axis=-1, kind='stable')",
    ),
    Planted("nm_by_threshold", P, PUT, "        mask = groups >= np.sort(groups, axis=-1)[:, m - n, None]"),
    Planted(
        "nm_over_the_whole_row", P, PUT,
        "        mask = np.stack([_without_smallest([w], 1 - n / m)[0] for w in weight])",
    ),
    Planted("groups_are_strided", P, GROUPED, STRIDED),
    Planted("forward_unmasked", P, DENSE, '        return params[f"{name}.weight"]'),
    Planted("only_out_unmasked", P, FORWARD, '        return ops.linear_forward(x, params[f"{name}.weight"])[0], (x,)'),
    Planted("masked_after_the_update_only", P, DWEIGHT, "        return dx, {key: dweight}"),
    Planted("dx_through_pruned_weights", P, DX, DX.replace("self.dense(params, name, ops)", "params[key]")),
    Planted("gradient_though_unwanted", P, UNWANTED, "need_dweight=True)\n"),
    Planted("rows_gradient_unmasked", P, ROWS, "        return grads"),
    Planted("not_constrained", P, CONSTRAIN, "            pass"),
    Planted(
        "times_the_mask", P, CONSTRAIN,
        '            weight *= ops.mask_apply(np.ones_like(weight), params[f"{name}.mask"])',
    ),
    Planted("constrains_read_only", P, WRITEABLE, "        if True:"),
    Planted("packs_what_is_not_zero", M, PACK, "    return weight[(weight != 0) & _unpack(bits, weight.shape)]"),
    Planted("packs_the_pruned", M, PACK, "    return weight[~_unpack(bits, weight.shape)]"),
    Planted("packs_by_column", M, PACK, "    return weight.T[_unpack(bits, weight.shape).T]"),
    Planted("packs_zeros_too", M, PACK, "    return mask_apply(weight, bits).ravel()"),
    Planted("unpacks_to_the_front", M, PLACE, "    out.ravel()[: values.size] = values"),
    Planted(
        "report_counts_nonzero", P, KEPT,
        """kept, size = int(np.count_nonzero(NUMPY.mask_apply(weight, bits))), math.prod(shape)""".replace(
            "NUMPY.", "__import__('minedge').ops.get('numpy')."
        ),
    ),
    Planted("mask_bytes_forgotten", P, KEPT, KEPT + "\n        bits = bits[:0]"),
    Planted(
        "resident_as_if_packed", P, '"resident_bytes": weight.nbytes + bits.nbytes',
        '"resident_bytes": kept * weight.itemsize + bits.nbytes',
    ),
    Planted("density_is_sparsity", P, '"density": kept / size', '"density": 1 - kept / size'),
]  # fmt: skip

SMALLEST_BODY = """    size = np.concatenate([np.abs(weight).ravel() for weight in weights])
    remove = round(sparsity * size.size)
    keep = np.ones(size.size, bool)
    if remove:
        threshold = np.partition(size, remove - 1)[remove - 1]  # the largest magnitude that goes
        keep[size < threshold] = False
        ties = np.flatnonzero(size == threshold)
        keep[ties[: remove - np.count_nonzero(~keep)]] = False
    parts = np.split(keep, np.cumsum([weight.size for weight in weights])[:-1])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
"""
SORTED = """    entries = sorted((LOOK, a, i) for a, w in enumerate(weights) for i, v in enumerate(w.flat))
    gone = set((a, i) for _, a, i in entries[:COUNT])
    found = []
    for a, w in enumerate(weights):
        flat = [(a, i) not in gone for i in range(w.size)]
        found.append(np.array(flat).reshape(w.shape))
    return found
"""


def _sorted(look: str = "abs(float(v))", count: str = "round(sparsity * len(entries))") -> str:
    return SORTED.replace("LOOK", look).replace("COUNT", count)


# The same errors in another style: a sort of tuples, loops, other names.
HIDDEN = [
    Planted("sign_not_dropped", P, SMALLEST_BODY, _sorted(look="float(v)")),
    Planted("largest_removed", P, SMALLEST_BODY, _sorted(look="-abs(float(v))")),
    Planted("threshold_off_by_one", P, SMALLEST_BODY, _sorted(count="max(round(sparsity * len(entries)) - 1, 0)")),
    Planted("count_rounded_down", P, SMALLEST_BODY, _sorted(count="int(sparsity * len(entries))")),
    Planted(
        "threshold_takes_all_ties", P, SMALLEST_BODY,
        """    ranked = sorted(abs(float(v)) for w in weights for v in w.flat)
    k = round(len(ranked) * sparsity)
    limit = ranked[k - 1] if k else -1.0
    return [~(np.abs(w) <= limit) for w in weights]
""",
    ),
    Planted(
        "masked_after_the_update_only", P, DWEIGHT,
        """        flat_out, flat_x = dout.reshape(-1, dout.shape[-1]), x.reshape(-1, x.shape[-1])
        return dx, {key: np.einsum("no,ni->oi", flat_out, flat_x)}""",
    ),
    Planted(
        "bits_high_first", P, BITS,
        """    flat = [bool(v) for row in mask for v in row] + [False] * (-mask.size % 8)
    return np.array([int("".join("01"[v] for v in flat[i : i + 8]), 2) for i in range(0, len(flat), 8)], np.uint8)""",
    ),
]  # fmt: skip
