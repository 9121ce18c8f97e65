"""What the checks of a1 may ask of a student's files."""

from __future__ import annotations


def rms_norm_forward(student, x, weight, eps):
    out, cache = student.layers.rms_norm_forward(x, weight, eps)
    return {"out": out, "rstd": cache[2]}


def rms_norm_backward(student, dout, cache):
    dx, dweight = student.layers.rms_norm_backward(dout, tuple(cache))
    return {"dx": dx, "dweight": dweight}


def layer_norm_forward(student, x, weight, bias, eps):
    out, cache = student.layers.layer_norm_forward(x, weight, bias, eps)
    return {"out": out, "mean": cache[2], "rstd": cache[3]}


def layer_norm_backward(student, dout, cache):
    dx, dweight, dbias = student.layers.layer_norm_backward(dout, tuple(cache))
    return {"dx": dx, "dweight": dweight, "dbias": dbias}


def embedding_backward(student, dout, cache):
    ids, shape = cache
    return {"dweight": student.layers.embedding_backward(dout, (ids, tuple(shape)))}


def linear_backward(student, dout, cache):
    dx, dweight = student.layers.linear_backward(dout, tuple(cache))
    return {"dx": dx, "dweight": dweight}


def linear_backward_frozen(student, dout, cache):
    dx, dweight = student.layers.linear_backward(dout, tuple(cache), need_dweight=False)
    return {"dx": dx, "dweight": dweight}


def rotary_forward(student, x, cos, sin):
    return {"out": student.layers.rotary_forward(x, cos, sin)[0]}


def rotary_backward(student, dout, cache):
    return {"dx": student.layers.rotary_backward(dout, tuple(cache))}


def swiglu_backward(student, dout, cache):
    dgate, dup = student.layers.swiglu_backward(dout, tuple(cache))
    return {"dgate": dgate, "dup": dup}


def gelu_backward(student, dout, cache):
    return {"dx": student.layers.gelu_backward(dout, tuple(cache))}


def cross_entropy_forward(student, logits, targets, weights):
    loss, cache = student.loss.cross_entropy_forward(logits, targets, weights)
    return {"loss": loss, "lse": cache[3]}


def cross_entropy_backward(student, dout, cache):
    return {"dlogits": student.loss.cross_entropy_backward(dout, tuple(cache))}


def attention_forward(student, q, k, v):
    out, cache = student.attention.attention_forward(q, k, v)
    return {"out": out, "lse": cache[4]}


def attention_backward(student, dout, cache):
    dq, dk, dv = student.attention.attention_backward(dout, tuple(cache))
    return {"dq": dq, "dk": dk, "dv": dv}
