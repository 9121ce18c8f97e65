"""Wrong ideas about pruning, each as the function that computes what it gives."""

from __future__ import annotations

import math

import numpy as np

from minedge.course.properties import Misconception


def _values(bits, shape):
    n = math.prod(shape)
    return np.unpackbits(bits, count=n, bitorder="little").astype(bool).reshape(tuple(shape))


def _by_columns(bits, shape):
    n = math.prod(shape)
    return np.unpackbits(bits, count=n, bitorder="little").astype(bool).reshape(tuple(shape), order="F")


def _high_first(bits, shape):
    return np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(tuple(shape))


def _chosen(weights, sparsity, size=np.abs, count=round, last=False, smallest=True, of=None):
    """Masks as `_without_smallest` makes them, with one idea changed."""
    sizes = np.concatenate([size(w).ravel().astype(np.float64) for w in weights])
    remove = count(sparsity * (sizes.size if of is None else of(sizes)))
    key = sizes if smallest else -sizes
    index = np.arange(sizes.size)
    order = np.lexsort((-index if last else index, key))
    keep = np.ones(sizes.size, bool)
    keep[order[:remove]] = False
    return _split(keep, weights)


def _split(keep, weights):
    ends = np.cumsum([w.size for w in weights])[:-1]
    found = [part.reshape(w.shape) for part, w in zip(np.split(keep, ends), weights, strict=True)]
    return {"masks": found, "removed": int(np.count_nonzero(~keep))}


def _threshold(weights, sparsity, inclusive):
    sizes = np.concatenate([np.abs(w).ravel() for w in weights])
    remove = round(sparsity * sizes.size)
    if not remove:
        return _split(np.ones(sizes.size, bool), weights)
    ordered = np.sort(sizes)  # "everything up to the last that goes", or "everything below the first that stays"
    return _split(sizes > ordered[remove - 1] if inclusive else sizes >= ordered[remove], weights)


def _quantile(weights, sparsity):
    sizes = np.concatenate([np.abs(w).ravel() for w in weights])
    return _split(sizes >= np.quantile(sizes, sparsity), weights)


def _each_alone(weights, sparsity):
    return {"masks": [_chosen([w], sparsity)["masks"][0] for w in weights]}


def _scopes(layer, everywhere):
    """`magnitude` whose two scopes are the functions given."""

    def wrong(weights, sparsity):
        return {"layer": layer(weights, sparsity)["masks"], "global": everywhere(weights, sparsity)["masks"]}

    return wrong


def _groups(weight, n, m, size=np.abs, largest=True, last=False, remove=None):
    """A mask as `nm` makes it, with one idea changed."""
    groups = size(weight).reshape(-1, m).astype(np.float64)
    key = groups if largest else -groups
    index = np.broadcast_to(np.arange(m), key.shape)
    order = np.lexsort((-index if last else index, key), axis=-1)
    mask = np.ones(groups.shape, bool)
    np.put_along_axis(mask, order[:, : m - n if remove is None else remove], False, axis=-1)
    return {"mask": mask.reshape(weight.shape)}


def _columns(weight, n, m):
    return {"mask": np.ascontiguousarray(_groups(np.ascontiguousarray(weight.T), n, m)["mask"].T)}


def _strided(weight, n, m):
    out, width = weight.shape
    moved = np.ascontiguousarray(weight.reshape(out, m, width // m).transpose(0, 2, 1))
    mask = _groups(moved.reshape(out, width), n, m)["mask"].reshape(out, width // m, m)
    return {"mask": np.ascontiguousarray(mask.transpose(0, 2, 1)).reshape(out, width)}


def _group_threshold(weight, n, m):
    groups = np.abs(weight).reshape(-1, m)
    least = np.sort(groups, axis=-1)[:, m - n][:, None]
    return {"mask": (groups >= least).reshape(weight.shape)}


def _whole_row(weight, n, m):
    return {"mask": np.stack([_chosen([row], 1 - n / m)["masks"][0] for row in weight])}


def _dense(weight, bits):
    return np.where(_values(bits, weight.shape), weight, 0)


def _layer_backward(dout, cache, weight_mask=True, grad_mask=True):
    x, weight, bits = cache
    dweight = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return {
        "dx": dout @ (_dense(weight, bits) if weight_mask else weight),
        "dweight": np.where(_values(bits, weight.shape), dweight, 0) if grad_mask else dweight,
    }


def _rows_backward(dout, ids, weight, bits):
    dweight = np.zeros_like(weight)
    np.add.at(dweight, ids, dout)
    return {"w.weight": dweight}


def _gradient_all_the_same(dout, x, weight, bits):
    return {"grads": {"w.weight": _layer_backward(dout, (x, weight, bits))["dweight"]}}


def _report(weight, bits, **changed):
    kept = int(_values(bits, weight.shape).sum())
    row = {"kept": kept, "density": kept / weight.size, "resident": weight.nbytes + bits.nbytes}
    row["stored"] = kept * weight.itemsize + bits.nbytes
    row.update(changed)
    return {
        "report": {
            "weights": weight.size, "kept": row["kept"], "density": row["density"],
            "pattern": row["pattern"], "dense_bytes": weight.nbytes, "resident_bytes": row["resident"],
            "stored_bytes": row["stored"],
        }
    }  # fmt: skip


def _scatter(values, bits, shape):
    out = np.zeros(math.prod(shape), values.dtype)
    out[: values.size] = values
    return {"out": out.reshape(tuple(shape))}


MISCONCEPTIONS = [
    Misconception(
        "bits_high_first", "bits_of_mask",
        "The first weight of a byte is its LOWEST bit; yours is the highest. NumPy's bit functions take "
        'bitorder="big" unless told otherwise.',
        lambda mask: {"bits": np.packbits(mask.ravel())},
    ),
    Misconception(
        "bits_high_first_reading", "mask_of_bits",
        "The first weight of a byte is its LOWEST bit; you read the highest first. NumPy's bit functions take "
        'bitorder="big" unless told otherwise.',
        lambda bits, shape: {"mask": _high_first(bits, shape)},
    ),
    Misconception(
        "bits_by_column", "bits_of_mask",
        "The mask is read row by row (C order); your bits go down the columns.",
        lambda mask: {"bits": np.packbits(mask.ravel(order="F"), bitorder="little")},
    ),
    Misconception(
        "bits_of_pruned", "bits_of_mask",
        "A set bit means KEPT; yours marks what is removed.",
        lambda mask: {"bits": np.packbits(~mask.ravel(), bitorder="little")},
    ),
    Misconception(
        "a_byte_a_weight", "bits_of_mask",
        "Each weight takes one BIT, eight weights to a byte; yours takes a whole byte each, which is as much as "
        "an int8 weight.",
        lambda mask: {"bits": mask.ravel().astype(np.uint8)},
    ),
    Misconception(
        "bits_row_by_row", "bits_of_mask",
        "The whole mask is one run of bits; you start a new byte at each row. (np.packbits has an axis; it wants "
        "none here.)",
        lambda mask: {"bits": np.packbits(mask, axis=-1, bitorder="little").ravel()},
    ),
    Misconception(
        "times_the_mask", ("mask_apply", "mask_apply_", "constrain"),
        "You multiply by the mask. NaN times 0 is NaN and infinity times 0 is NaN: choose (np.where), do not multiply.",
        lambda weight, bits, **rest: dict.fromkeys(("out", "weight"), weight * _values(bits, weight.shape)),
    ),
    Misconception(
        "kept_and_pruned_swapped", ("mask_apply", "mask_apply_"),
        "A set bit means kept: you set to zero what should stay, and keep what should go.",
        lambda weight, bits: dict.fromkeys(("out", "weight"), np.where(_values(bits, weight.shape), 0, weight)),
    ),
    Misconception(
        "in_place_on_a_copy", "mask_apply_",
        "mask_apply_ must change the array it is given; yours leaves it as it was (a new array does not reach the "
        "caller).",
        lambda weight, bits: {"weight": weight},
    ),
    Misconception(
        "ties_from_the_end", "without_smallest",
        "Among equal magnitudes the LOWEST index goes first; yours takes the highest.",
        lambda weights, sparsity: _chosen(weights, sparsity, last=True),
    ),
    Misconception(
        "threshold_takes_all_ties", "without_smallest",
        "`<=` a threshold removes every weight that ties with it, so the count is too high. Remove those below, "
        "then only as "
        "many of the equal ones as are still missing, lowest index first.",
        lambda weights, sparsity: _threshold(weights, sparsity, True),
    ),
    Misconception(
        "threshold_leaves_all_ties", "without_smallest",
        "`<` a threshold leaves every weight that ties with it, so the count is too low. After those below, "
        "remove as many of "
        "the equal ones as are still missing, lowest index first.",
        lambda weights, sparsity: _threshold(weights, sparsity, False),
    ),
    Misconception(
        "count_half_up", "without_smallest",
        "The count is Python's round(sparsity * n), where 2.5 gives 2 (half to even); int(v + 0.5) gives 3.",
        lambda weights, sparsity: _chosen(weights, sparsity, count=lambda v: math.floor(v + 0.5)),
    ),
    Misconception(
        "count_rounded_up", "without_smallest",
        "The count is round(sparsity * n); yours is rounded up.",
        lambda weights, sparsity: _chosen(weights, sparsity, count=math.ceil),
    ),
    Misconception(
        "count_rounded_down", "without_smallest",
        "The count is round(sparsity * n); int() and // round down.",
        lambda weights, sparsity: _chosen(weights, sparsity, count=math.floor),
    ),
    Misconception(
        "threshold_from_a_quantile", "without_smallest",
        "A quantile is a value, and a share of the weights only roughly: the count must be exactly round(sparsity "
        "* n).",
        _quantile,
    ),
    Misconception(
        "threshold_off_by_one", "without_smallest",
        "One weight too few goes: sorted from 0, the last of `remove` weights has index remove - 1.",
        lambda weights, sparsity: _chosen(weights, sparsity, count=lambda v: max(0, round(v) - 1)),
    ),
    Misconception(
        "one_too_many", "without_smallest",
        "One weight too many goes. If you took the threshold from sorted[remove], that weight is the first that STAYS.",
        lambda weights, sparsity: _chosen(weights, sparsity, count=lambda v: round(v) + 1),
    ),
    Misconception(
        "sparsity_is_what_stays", "without_smallest",
        "sparsity is the share that GOES; you keep that share and remove the rest.",
        lambda weights, sparsity: _chosen(weights, 1 - sparsity),
    ),
    Misconception(
        "each_row_alone", "without_smallest",
        "The count is over all weights together; you take the same share of each row, so a row of small weights "
        "keeps too many.",
        lambda weights, sparsity: {
            "masks": [np.stack([_chosen([row], sparsity)["masks"][0] for row in w]) for w in weights]
        },
    ),
    Misconception(
        "sign_not_dropped", "without_smallest",
        "You compare the weights themselves, so the most negative go first. What counts is the magnitude |w|.",
        lambda weights, sparsity: _chosen(weights, sparsity, size=lambda w: w),
    ),
    Misconception(
        "largest_removed", "without_smallest",
        "You remove the LARGEST weights. True means kept, and the smallest go.",
        lambda weights, sparsity: _chosen(weights, sparsity, smallest=False),
    ),
    Misconception(
        "mask_means_pruned", "without_smallest",
        "Your masks are True where a weight goes. True means kept.",
        lambda weights, sparsity: {"masks": [~mask for mask in _chosen(weights, sparsity)["masks"]]},
    ),
    Misconception(
        "each_matrix_alone", "without_smallest",
        "The count is over all arrays together; you take the same share of each.",
        _each_alone,
    ),
    Misconception(
        "zeros_not_counted", "without_smallest",
        "n counts every weight, those that are zero already too; you take the share of the others only.",
        lambda weights, sparsity: _chosen(weights, sparsity, of=np.count_nonzero),
    ),
    Misconception(
        "scopes_swapped", "magnitude",
        '"layer" removes the same share of every matrix, "global" the smallest of all together. Yours are swapped.',
        _scopes(_chosen, _each_alone),
    ),
    Misconception(
        "scope_ignored", "magnitude",
        '"global" compares the weights of all matrices with one another; you give each its own share for both scopes.',
        _scopes(_each_alone, _each_alone),
    ),
    Misconception(
        "scope_always_global", "magnitude",
        '"layer" takes the same share of each matrix; you compare all matrices with one another for both scopes.',
        _scopes(_chosen, _chosen),
    ),
    Misconception(
        "groups_down_the_columns", "nm",
        "The m neighbours lie along a ROW (the input dimension, the last axis); yours go down a column.",
        _columns,
    ),
    Misconception(
        "groups_are_strided", "nm",
        "Neighbours are m entries side by side: reshape to (..., m), not (m, ...).",
        _strided,
    ),
    Misconception(
        "n_counts_the_removed", "nm",
        "n of every m are KEPT; you remove n.",
        lambda weight, n, m: _groups(weight, n, m, remove=n),
    ),
    Misconception(
        "nm_keeps_the_smallest", "nm",
        "The n LARGEST of a group stay; yours keeps the smallest.",
        lambda weight, n, m: _groups(weight, n, m, largest=False),
    ),
    Misconception(
        "nm_sign_not_dropped", "nm",
        "Sort by magnitude |w|: yours removes negative weights first, however large.",
        lambda weight, n, m: _groups(weight, n, m, size=lambda w: w),
    ),
    Misconception(
        "nm_ties_from_the_end", "nm",
        "Among equals the lowest index goes first. Does your sort keep equal entries in order (kind='stable')?",
        lambda weight, n, m: _groups(weight, n, m, last=True),
    ),
    Misconception(
        "nm_by_threshold", "nm",
        "Comparing with the n-th largest keeps all that tie with it: more than n of m stay. Choose by position, "
        "not by value.",
        _group_threshold,
    ),
    Misconception(
        "nm_over_the_whole_row", "nm",
        "Each group of m keeps n of its own; you keep the largest of the whole row, so groups have more or fewer.",
        _whole_row,
    ),
    Misconception(
        "forward_unmasked", "masked_forward",
        "The forward pass sees weights under the mask. Momentum, decay or a perturbation may have written there: "
        "use keep * weight.",
        lambda x, weight, bits: {"dense": weight, "out": x @ weight.T},
    ),
    Misconception(
        "only_out_unmasked", "masked_forward",
        "`dense` is masked, but `out` is computed with the raw weight.",
        lambda x, weight, bits: {"dense": _dense(weight, bits), "out": x @ weight.T},
    ),
    Misconception(
        "masked_after_the_update_only", "masked_backward",
        "dweight is not masked. out depends on keep * weight, so the chain rule brings keep into the gradient as "
        "well; setting "
        "weights to zero after the update does not keep such gradients out of Adam's momenta and of clipping.",
        lambda dout, cache: _layer_backward(dout, cache, grad_mask=False),
    ),
    Misconception(
        "dx_through_pruned_weights", "masked_backward",
        "dx goes through the raw weight. The forward pass used keep * weight, so its backward must too.",
        lambda dout, cache: _layer_backward(dout, cache, weight_mask=False),
    ),
    Misconception(
        "gradient_though_unwanted", "masked_backward_frozen",
        "The weight's gradient is not wanted here (a frozen base under an adapter): return (dx, {}) and save the "
        "product.",
        _gradient_all_the_same,
    ),
    Misconception(
        "rows_gradient_unmasked", "masked_rows_backward",
        "The embedding's gradient is not masked: what goes for the product goes for the lookup.",
        _rows_backward,
    ),
    Misconception(
        "not_constrained", "constrain",
        "constrain_ must set pruned weights back to zero in the array it is given, after the optimizer moved them.",
        lambda weight, bits, writeable: {"weight": weight},
    ),
    Misconception(
        "constrains_read_only", "constrain",
        "A read-only array was not trained and must be left alone: look at weight.flags.writeable first.",
        raises="ValueError",
    ),
    Misconception(
        "packs_what_is_not_zero", "sparse_pack",
        "You keep what is not zero; the mask says what is kept, and a kept weight may be exactly 0. With fewer "
        "values than set bits the "
        "file cannot be read again.",
        lambda weight, bits: {"values": (lambda w: w[w != 0])(np.where(_values(bits, weight.shape), weight, 0))},
    ),
    Misconception(
        "packs_the_pruned", "sparse_pack",
        "You store the weights that were removed. A set bit means kept.",
        lambda weight, bits: {"values": weight[~_values(bits, weight.shape)]},
    ),
    Misconception(
        "packs_by_column", "sparse_pack",
        "The kept weights go into the file row by row; yours go down the columns.",
        lambda weight, bits: {"values": weight.T[_values(bits, weight.shape).T]},
    ),
    Misconception(
        "packs_zeros_too", "sparse_pack",
        "Your values still hold a zero for every pruned weight, so the file is no smaller: keep the kept ones alone.",
        lambda weight, bits: {"values": np.where(_values(bits, weight.shape), weight, 0).ravel()},
    ),
    Misconception(
        "unpacks_to_the_front", "sparse_unpack",
        "The values stand one after the other at the front; each belongs where its bit is set.",
        _scatter,
    ),
    Misconception(
        "report_counts_nonzero", "report",
        "`kept` is the number of set bits. A kept weight may be exactly 0; counting what is not zero misses it.",
        lambda weight, bits, pattern: _report(
            weight, bits, pattern=pattern, kept=(k := int(np.count_nonzero(_dense(weight, bits)))),
            density=k / weight.size, stored=k * weight.itemsize + bits.nbytes,
        ),
    ),
    Misconception(
        "mask_bytes_forgotten", "report",
        "The bits take memory and space in the file too: one byte for eight weights, in resident_bytes as in "
        "stored_bytes.",
        lambda weight, bits, pattern: _report(
            weight, bits, pattern=pattern, resident=weight.nbytes,
            stored=int(_values(bits, weight.shape).sum()) * weight.itemsize,
        ),
    ),
    Misconception(
        "resident_as_if_packed", "report",
        "In memory a pruned matrix is as large as before, plus its bits: zeros take as much as any other number.",
        lambda weight, bits, pattern: _report(
            weight, bits, pattern=pattern,
            resident=int(_values(bits, weight.shape).sum()) * weight.itemsize + bits.nbytes,
        ),
    ),
    Misconception(
        "density_is_sparsity", "report",
        "density is the share that is KEPT; yours is the share that is gone.",
        lambda weight, bits, pattern: _report(
            weight, bits, pattern=pattern, density=1 - int(_values(bits, weight.shape).sum()) / weight.size
        ),
    ),
]  # fmt: skip
