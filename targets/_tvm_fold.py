"""Constants that are only moved about, folded by numpy: TVM's own folding compiles a function for each of them.

And changes of layout around a border, which TVM's own pass does not carry through it.
"""

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
            return relax.const(np.ascontiguousarray(made), str(made.dtype))  # float64 would become float32

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator,unused-ignore]
    def run(module: Any, _context: Any) -> Any:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                folder = Folder(module)
                module[name] = folder.visit_expr(function)
        return module

    return run


def bordered() -> Any:
    """A pass that puts a transpose in front of a border, so that it meets the one before and both go."""
    import tvm
    from tvm import relax
    from tvm.relax import op

    @relax.expr_functor.mutator
    class Mover(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.permute_dims" or call.attrs.axes is None:
                return call
            axes = [int(a) for a in call.attrs.axes]
            before = self.made(call.args[0])
            if getattr(before.op, "name", "") != "relax.nn.pad" or len(axes) != 4:
                return call
            pairs = [int(v) for v in before.attrs.pad_width]
            width = [v for a in axes for v in pairs[2 * a : 2 * a + 2]]
            turned = self.turned(before.args[0], axes)
            return op.nn.pad(turned, width, str(before.attrs.pad_mode), float(before.attrs.pad_value))

        def made(self, value: Any) -> Any:
            found = self.lookup_binding(value) if isinstance(value, relax.Var) else None
            return found if isinstance(found, relax.Call) else relax.Call(relax.ExternFunc("none"), [])

        def turned(self, value: Any, axes: list[int]) -> Any:
            before = self.made(value)
            if getattr(before.op, "name", "") == "relax.permute_dims" and before.attrs.axes is not None:
                first = [int(a) for a in before.attrs.axes]
                if [first[a] for a in axes] == list(range(len(axes))):
                    return before.args[0]
            return self.builder_.emit(op.permute_dims(value, axes))

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator,unused-ignore]
    def run(module: Any, _context: Any) -> Any:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[name] = Mover(module).visit_expr(function)
        return module

    return run
