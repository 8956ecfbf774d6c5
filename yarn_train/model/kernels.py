"""Attention over rectangles, made of kernels that take one rectangle or, on a GPU, many documents.

Shapes are those of :mod:`.primitives`: q, out, dout [B, H, Sq, D]; k, v [B, Hkv, Sk, D]; lse [B, H, Sq].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .merge import Gradients, Merger, Results, accumulator, new_lse, seq_major
from .primitives import PRIMITIVES, Primitive
from .spans import Rectangle, cuts, disjoint
from .varlen import Cuts


def attend(primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Sequence[Rectangle]) -> Results:
    """Attention over rectangles that cover every query row."""
    if (whole := _at_once(primitive, q, k, v, scale, spans)) is not None:
        out, lse = whole
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()
    if disjoint((s.q0, s.q1) for s in spans):
        out, lse = seq_major(q), new_lse(q)
        for s in spans:
            rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
            parts = (q[:, :, rows], k[:, :, keys], v[:, :, keys])
            out[:, :, rows], lse[:, :, rows] = PRIMITIVES[primitive].forward(*parts, s.causal, scale)
        return out, lse
    merger = Merger(q)
    attend_into(merger, primitive, q, k, v, scale, spans)
    return merger.result()


def attend_into(
    merger: Merger, primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Sequence[Rectangle]
) -> None:
    """Add attention over `spans` to what `merger` has."""
    if (whole := _at_once(primitive, q, k, v, scale, spans)) is not None:
        merger.add(slice(None), *whole)
        return
    for s in spans:
        rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
        part = PRIMITIVES[primitive].forward(q[:, :, rows], k[:, :, keys], v[:, :, keys], s.causal, scale)
        merger.add(rows, *part)


def attend_backward(
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Rectangle],
) -> Gradients:
    """Gradients of :func:`attend`, in the dtype of q, k and v."""
    if (whole := _backward_at_once(primitive, dout, q, k, v, out, lse, scale, spans)) is not None:
        dq, dk, dv = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in whole)
        return dq, dk, dv
    # where no row meets two rectangles there is nothing to sum, so nothing to sum in float32
    once = disjoint((s.q0, s.q1) for s in spans) and disjoint((s.k0, s.k1) for s in spans)
    sums = [seq_major(t, None if once else accumulator(t), zero=True) for t in (q, k, v)]
    backward_into(sums[0], sums[1], sums[2], primitive, dout, q, k, v, out, lse, scale, spans)
    return sums[0].to(q.dtype), sums[1].to(k.dtype), sums[2].to(v.dtype)


def backward_into(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Rectangle],
) -> None:
    """Add the gradients of attention over `spans`; `out` and `lse` are those over ALL keys, here or elsewhere."""
    if (whole := _backward_at_once(primitive, dout, q, k, v, out, lse, scale, spans)) is not None:
        for total, part in zip((dq, dk, dv), whole, strict=True):
            total.add_(part)
        return
    for s in spans:
        rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
        mine = (dout[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows])
        parts = PRIMITIVES[primitive].backward(*mine, s.causal, scale)
        for total, part in zip((dq[:, :, rows], dk[:, :, keys], dv[:, :, keys]), parts, strict=True):
            total.add_(part)


def _at_once(
    primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Sequence[Rectangle]
) -> Results | None:
    """The results of all rows where one kernel call gives them, else None."""
    run = PRIMITIVES[primitive]
    if _is_whole(spans, q, k):
        return run.forward(q, k, v, spans[0].causal, scale)
    found = _documents(run, spans, q, k)
    if run.varlen is None or found is None:
        return None
    out, lse = run.varlen.attend(_tokens(q), _tokens(k), _tokens(v), found, scale)
    return _sequence(out), lse.unsqueeze(0)


def _backward_at_once(
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Rectangle],
) -> Gradients | None:
    """The gradients of :func:`_at_once`."""
    run = PRIMITIVES[primitive]
    if _is_whole(spans, q, k):
        return run.backward(dout, q, k, v, out, lse, spans[0].causal, scale)
    found = _documents(run, spans, q, k)
    if run.varlen is None or found is None:
        return None
    mine = (_tokens(dout), _tokens(q), _tokens(k), _tokens(v), _tokens(out), lse[0])
    dq, dk, dv = run.varlen.attend_backward(*mine, found, scale)
    return _sequence(dq), _sequence(dk), _sequence(dv)


def _is_whole(spans: Sequence[Rectangle], q: Tensor, k: Tensor) -> bool:
    return len(spans) == 1 and spans[0][:4] == (0, q.shape[2], 0, k.shape[2])


def _documents(run: Primitive, spans: Sequence[Rectangle], q: Tensor, k: Tensor) -> Cuts | None:
    """Where documents are cut, if the spans are just documents that this kernel takes in one call."""
    if run.varlen is None or not spans or q.shape[0] > 1 or q.shape[2] != k.shape[2]:
        return None
    found = cuts(spans, q.shape[2])
    return found if found is not None and run.varlen.suits(found) else None


def _tokens(t: Tensor) -> Tensor:
    """[1, H, S, D] -> [S, H, D]."""
    return t.squeeze(0).transpose(0, 1)


def _sequence(t: Tensor) -> Tensor:
    """[S, H, D] -> [1, H, S, D]."""
    return t.transpose(0, 1).unsqueeze(0)
