"""exp, tanh, sigmoid and erf as arithmetic that runs in vector registers; libm would be called lane by lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_STEP = 0.3275911


def expanded(name: str, x: Any) -> Any | None:
    """The function called `name` (as TensorIR calls it) of a float32 expression; None when it stays a call."""
    function = _FUNCTIONS.get(name)
    return None if function is None or str(x.ty.dtype) != "float32" else function(x)


def _f(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


def _let(value: Any, body: Callable[[Any], Any]) -> Any:
    """`body` of a value that is computed once."""
    from tvm import tirx

    var = tirx.Var("t", "float32")
    return tirx.Let(var, value, body(var))


def _exp(x: Any) -> Any:
    """Cephes' expf: within 2 units in the last place; saturates where float32 does, never infinite."""
    from tvm import tirx

    def scaled(x: Any, n: Any) -> Any:
        r = x - n * _f(_LN2_HIGH) - n * _f(_LN2_LOW)
        return _let(r, lambda r: _polynomial(r) * _power(n))

    def _polynomial(r: Any) -> Any:
        p = _f(_EXP[0])
        for c in _EXP[1:]:
            p = p * r + _f(c)
        return p * r * r + r + _f(1.0)

    def _power(n: Any) -> Any:
        return tirx.reinterpret("float32", (n.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32"))

    clamped = tirx.max(tirx.min(x, _f(88.02)), _f(-87.33))
    return _let(clamped, lambda x: _let(tirx.nearbyint(x * _f(_LOG2E)), lambda n: scaled(x, n)))


def _sigmoid(x: Any) -> Any:
    return _f(1.0) / (_f(1.0) + _exp(_f(0.0) - x))


def _tanh(x: Any) -> Any:
    return _f(1.0) - _f(2.0) / (_exp(x * _f(2.0)) + _f(1.0))


def _erf(x: Any) -> Any:
    """Abramowitz and Stegun 7.1.26: within 2e-7."""
    from tvm import tirx

    def signed(x: Any, t: Any) -> Any:
        p = _f(_ERF[0])
        for c in _ERF[1:]:
            p = p * t + _f(c)
        y = _f(1.0) - p * t * _exp(_f(0.0) - x * x)
        return _let(y, lambda y: tirx.Select(x < _f(0.0), _f(0.0) - y, y))

    def reduced(x: Any) -> Any:
        size = tirx.max(x, _f(0.0) - x)
        return _let(_f(1.0) / (_f(1.0) + _f(_ERF_STEP) * size), lambda t: signed(x, t))

    return _let(x, reduced)


def _rsqrt(x: Any) -> Any:
    from tvm import tirx

    return _f(1.0) / tirx.sqrt(x)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "tirx.exp": _exp,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
    "tirx.rsqrt": _rsqrt,
}
