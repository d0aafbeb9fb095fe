"""Constants that are only moved about, folded by numpy: TVM's own folding compiles a function for each of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def folded() -> Any:
    """A pass that computes transposes, reshapes and added axes of constants."""
    import tvm
    from tvm import relax

    @relax.expr_functor.mutator
    class Folder(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            name = getattr(call.op, "name", "")
            if name not in ("relax.permute_dims", "relax.reshape", "relax.expand_dims"):
                return call
            value = call.args[0]
            if isinstance(value, relax.Var):
                value = self.lookup_binding(value)
            if not hasattr(value, "value") or not hasattr(value.value, "numpy"):
                return call
            array = value.value.numpy()
            if name == "relax.permute_dims":
                axes = call.attrs.axes
                made = array.transpose(None if axes is None else [int(a) for a in axes])
            else:
                made = array.reshape([int(d) for d in call.ty.shape])
            return relax.const(np.ascontiguousarray(made))

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator,unused-ignore]
    def run(module: Any, _context: Any) -> Any:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                folder = Folder(module)
                module[name] = folder.visit_expr(function)
        return module

    return run
