"""A SIMD vector of float64 as a Numba type, so that kernels do not depend on the auto-vectorizer.

`load`, `store` and `fill` act on WIDTH neighbouring numbers of a C-contiguous 1-D array, at any
offset, and check no bounds; nor does `gather`. `+ - * /` and negation work on vectors as on floats.
LLVM maps them to the registers of the processor at hand: two or four each where those are narrower.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")

WIDTH = 8 if "+avx512f" in _FEATURES else 4
"""Numbers in a vector; part of what a cached kernel is compiled for, as the features are."""

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, WIDTH)
_SINGLES = ir.VectorType(ir.FloatType(), WIDTH)


class Float64Vector(types.Type):
    """The type of a vector of WIDTH float64 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"Float64Vector{WIDTH}")


vector = Float64Vector()


@register_model(Float64Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _define_operator(symbol: Callable[..., Any], instruction: str, operands: int) -> None:
    class Typing(AbstractTemplate):
        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            if args == (vector,) * operands:
                return signature(vector, *args)
            return None

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, instruction)(*args)

    infer_global(symbol)(Typing)
    lower_builtin(symbol, *(vector,) * operands)(lower)


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_symbol, _instruction, 2)
_define_operator(operator.neg, "fneg", 1)


def _address(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, at: Any) -> ir.Value:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [at])


def _read(
    context: Any, builder: ir.IRBuilder, sig: Any, args: tuple[Any, ...], is_vector: bool
) -> ir.Value:
    """float64 from an array of float32 or float64; unaligned."""
    single = sig.args[0].dtype == types.float32
    wide = (_SINGLES if single else _VECTOR) if is_vector else None
    address = _address(context, builder, sig.args[0], *args)
    if wide is not None:
        address = builder.bitcast(address, wide.as_pointer())
    value = builder.load(address, align=4 if single else 8)
    return builder.fpext(value, _VECTOR if is_vector else _DOUBLE) if single else value


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), lanes)


_I32 = ir.IntType(32)


@intrinsic
def load(typingctx: Any, array: Any, at: Any) -> Any:
    """array[at : at + WIDTH] as float64."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return _read(context, builder, sig, args, True)

    return vector(array, types.intp), lower


@intrinsic
def fill(typingctx: Any, array: Any, at: Any) -> Any:
    """array[at] in every lane."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return _spread(builder, _read(context, builder, sig, args, False))

    return vector(array, types.intp), lower


@intrinsic
def gather(typingctx: Any, array: Any, base: Any, places: Any, at: Any) -> Any:
    """Lane l = array[base + places[at + l]] as float64."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        single = sig.args[0].dtype == types.float32
        value = ir.Constant(_SINGLES if single else _VECTOR, ir.Undefined)
        for lane in range(WIDTH):
            here = builder.add(args[3], ir.Constant(args[3].type, lane))
            place = builder.load(_address(context, builder, sig.args[2], args[2], here))
            place = builder.add(args[1], place)
            number = builder.load(_address(context, builder, sig.args[0], args[0], place))
            value = builder.insert_element(value, number, ir.Constant(_I32, lane))
        return builder.fpext(value, _VECTOR) if single else value

    return vector(array, types.intp, places, types.intp), lower


@intrinsic
def fetch(typingctx: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array[at], which will be read soon."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        to_read, in_all_caches, data = (ir.Constant(_I32, number) for number in (0, 3, 1))
        builder.call(call, [address, to_read, in_all_caches, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), lower


@intrinsic
def constant(typingctx: Any, value: Any) -> Any:
    """The number in every lane."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return _spread(builder, args[0])

    return vector(types.float64), lower


@intrinsic
def store(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
    """array[at : at + WIDTH] = value, rounded to the array's type."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        single = sig.args[0].dtype == types.float32
        kind = _SINGLES if single else _VECTOR
        address = _address(context, builder, sig.args[0], args[0], args[1])
        number = builder.fptrunc(args[2], _SINGLES) if single else args[2]
        builder.store(number, builder.bitcast(address, kind.as_pointer()), align=4 if single else 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), lower


def _define_call(name: str, operands: int) -> Callable[..., Any]:
    def call(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * operands)
        full = f"llvm.{name}.v{WIDTH}f64"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), args)

    return call


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the processor can."""
    return vector(vector, vector, vector), _define_call("fmuladd", 3)


@intrinsic
def sqrt(typingctx: Any, a: Any) -> Any:
    """Square roots; nan where negative."""
    return vector(vector), _define_call("sqrt", 1)


@intrinsic
def clip(typingctx: Any, a: Any, limit: Any) -> Any:
    """The nearest numbers in [-limit, limit]; nan stays nan."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        value, limit = args
        low = builder.fneg(limit)
        value = builder.select(builder.fcmp_ordered(">", value, limit), limit, value)
        return builder.select(builder.fcmp_ordered("<", value, low), low, value)

    return vector(vector, vector), lower


@intrinsic
def absolute(typingctx: Any, a: Any) -> Any:
    """|a|."""
    return vector(vector), _define_call("fabs", 1)


def _define_choice(comparison: str) -> Callable[..., Any]:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        a, b, true, false = args
        return builder.select(builder.fcmp_ordered(comparison, a, b), true, false)

    return lower


@intrinsic
def where_less(typingctx: Any, a: Any, b: Any, true: Any, false: Any) -> Any:
    """``true`` in lanes where a < b, elsewhere ``false``: also where either is nan."""
    return vector(vector, vector, vector, vector), _define_choice("<")


@intrinsic
def where_at_most(typingctx: Any, a: Any, b: Any, true: Any, false: Any) -> Any:
    """``true`` in lanes where a <= b, elsewhere ``false``: also where either is nan."""
    return vector(vector, vector, vector, vector), _define_choice("<=")


@intrinsic
def add_sums(typingctx: Any, out: Any, at: Any, values: Any) -> Any:
    """out[at + i] += the sum over the lanes of values[i], for a tuple of a multiple of WIDTH."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        rows = cgutils.unpack_tuple(builder, args[2])
        for first in range(0, len(rows), WIDTH):
            level, reach = rows[first : first + WIDTH], 1
            while reach < WIDTH:  # neighbouring vectors share one: half the work of one by one
                level = [
                    _fold(builder, level[i], level[i + 1], reach) for i in range(0, len(level), 2)
                ]
                reach *= 2
            place = builder.add(args[1], ir.Constant(args[1].type, first))
            address = _address(context, builder, sig.args[0], args[0], place)
            address = builder.bitcast(address, _VECTOR.as_pointer())
            builder.store(builder.fadd(builder.load(address, align=8), level[0]), address, align=8)
        return context.get_dummy_value()

    return types.void(out, types.intp, values), lower


def _fold(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, reach: int) -> ir.Value:
    """Add lanes ``reach`` apart: sums of a in the even blocks of as many lanes, of b in the odd."""
    low, high = [], []
    for lane in range(WIDTH):
        odd = (lane // reach) % 2
        low.append(WIDTH + lane - reach if odd else lane)
        high.append(WIDTH + lane if odd else lane + reach)
    kind = ir.VectorType(_I32, WIDTH)
    return builder.fadd(
        builder.shuffle_vector(a, b, ir.Constant(kind, low)),
        builder.shuffle_vector(a, b, ir.Constant(kind, high)),
    )
