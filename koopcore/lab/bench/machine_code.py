"""Loops that do one thing at the processor's rate: read, write, or multiply and add; made by LLVM.

llvmlite (which Numba needs anyway) compiles them here for the widest vectors of this processor, so
that a roof is neither an interpreter's rate nor a library's. Every loop is called through ctypes,
which releases the interpreter's lock: several threads run at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

FMA_CHAINS = 12  # independent sums: more than latency (4 cycles) times units (2) can use
LINE = 64  # bytes of a cache line, and of one step of a reading or writing loop

READS = ((1, 8, 0), (1, 8, 1024), (4, 2, 0), (8, 2, 0), (16, 1, 0))
"""(streams, lines a turn, bytes fetched ahead): which one is fastest depends on the prefetchers."""


def vector_bytes() -> int:
    """Bytes of this processor's widest vectors."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") else 16


@cache
def _functions() -> tuple[Any, dict[str, int]]:
    """The engine that owns the code, and the address of every loop."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    width = vector_bytes()
    names = {"fma": _fma_loop(width // 8)}
    names |= {_store_name(past): _store_loop(width, past) for past in (True, False)}
    names |= {_read_name(*shape): _read_loop(width, *shape) for shape in READS}
    module = llvm.parse_assembly("\n".join([_declarations(width), *names.values()]))
    module.verify()
    # LLVM halves 512-bit vectors on processors where they lower the clock; a roof must not.
    features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, {name: engine.get_function_address(name) for name in names}


def fma_loop() -> Callable[[int, float], float]:
    """f(turns, x): FMA_CHAINS vectors y ← y·x + x per turn, in registers; float64."""
    kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_double)
    return kind(_functions()[1]["fma"])


def read_loop(streams: int, lines: int, ahead: int) -> Callable[[int, int, int], int]:
    """f(address, bytes, distance): the exclusive or of ``streams`` pieces ``distance`` apart."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return kind(_functions()[1][_read_name(streams, lines, ahead)])


def store_loop(past_caches: bool) -> Callable[[int, int], None]:
    """f(address, bytes): zeros, by non-temporal stores or ordinary ones; 64 divides the address."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    return kind(_functions()[1][_store_name(past_caches)])


def _read_name(streams: int, lines: int, ahead: int) -> str:
    return f"read_{streams}_{lines}_{ahead}"


def _store_name(past_caches: bool) -> str:
    return "store_past_caches" if past_caches else "store"


def _declarations(width: int) -> str:
    lanes = width // 8
    vector = f"<{lanes} x double>"
    return f"""
declare {vector} @llvm.fma.v{lanes}f64({vector}, {vector}, {vector})
declare i64 @llvm.vector.reduce.xor.v{lanes}i64(<{lanes} x i64>)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
!0 = !{{i32 1}}"""


def _fma_loop(lanes: int) -> str:
    v, chains = f"<{lanes} x double>", range(FMA_CHAINS)
    sums = [f"%s{c} = fadd {v} {f'%s{c - 1}' if c > 1 else '%b0'}, %b{c}" for c in chains if c]
    return "\n".join(
        [
            "define double @fma(i64 %turns, double %x) {",
            "entry:",
            f"%first = insertelement {v} poison, double %x, i32 0",
            f"%xs = shufflevector {v} %first, {v} poison, <{lanes} x i32> zeroinitializer",
            "br label %loop",
            "loop:",
            "%i = phi i64 [0, %entry], [%next, %loop]",
            *(f"%a{c} = phi {v} [%xs, %entry], [%b{c}, %loop]" for c in chains),
            *(
                f"%b{c} = call {v} @llvm.fma.v{lanes}f64({v} %a{c}, {v} %xs, {v} %xs)"
                for c in chains
            ),
            *_turn("%turns", 1),
            *sums,
            f"%result = extractelement {v} %s{FMA_CHAINS - 1}, i32 0",
            "ret double %result",
            "}",
        ]
    )


def _read_loop(width: int, streams: int, lines: int, ahead: int) -> str:
    v = f"<{width // 8} x i64>"
    vectors = lines * LINE // width
    each = [(s, u) for s in range(streams) for u in range(vectors)]
    body = []
    for s, u in each:
        body += [
            f"%i{s}_{u} = add i64 %i, {u * width}",
            f"%q{s}_{u} = getelementptr i8, ptr %p{s}, i64 %i{s}_{u}",
            f"%l{s}_{u} = load {v}, ptr %q{s}_{u}, align 4",
            f"%b{s}_{u} = xor {v} %a{s}_{u}, %l{s}_{u}",
        ]
        if ahead and u * width % LINE == 0:
            body += [
                f"%f{s}_{u} = getelementptr i8, ptr %q{s}_{u}, i64 {ahead}",
                f"call void @llvm.prefetch.p0(ptr %f{s}_{u}, i32 0, i32 3, i32 1)",
            ]
    total, sums = "%b0_0", []
    for k, (s, u) in enumerate(each[1:]):
        sums.append(f"%x{k} = xor {v} {total}, %b{s}_{u}")
        total = f"%x{k}"
    return "\n".join(
        [
            f"define i64 @{_read_name(streams, lines, ahead)}"
            "(ptr %p, i64 %bytes, i64 %distance) {",
            "entry:",
            *(f"%o{s} = mul i64 %distance, {s}" for s in range(streams)),
            *(f"%p{s} = getelementptr i8, ptr %p, i64 %o{s}" for s in range(streams)),
            "br label %loop",
            "loop:",
            "%i = phi i64 [0, %entry], [%next, %loop]",
            *(
                f"%a{s}_{u} = phi {v} [zeroinitializer, %entry], [%b{s}_{u}, %loop]"
                for s, u in each
            ),
            *body,
            *_turn("%bytes", lines * LINE),
            *sums,
            f"%result = call i64 @llvm.vector.reduce.xor.v{width // 8}i64({v} {total})",
            "ret i64 %result",
            "}",
        ]
    )


def _store_loop(width: int, past_caches: bool) -> str:
    v = f"<{width // 8} x i64>"
    hint = ", !nontemporal !0" if past_caches else ""
    body = []
    for u in range(LINE // width):
        body += [
            f"%i{u} = add i64 %i, {u * width}",
            f"%q{u} = getelementptr i8, ptr %p, i64 %i{u}",
            f"store {v} zeroinitializer, ptr %q{u}, align {width}{hint}",
        ]
    return "\n".join(
        [
            f"define void @{_store_name(past_caches)}(ptr %p, i64 %bytes) {{",
            "entry:",
            "br label %loop",
            "loop:",
            "%i = phi i64 [0, %entry], [%next, %loop]",
            *body,
            *_turn("%bytes", LINE),
            "ret void",
            "}",
        ]
    )


def _turn(end: str, step: int) -> list[str]:
    return [
        f"%next = add i64 %i, {step}",
        f"%more = icmp ult i64 %next, {end}",
        "br i1 %more, label %loop, label %done",
        "done:",
    ]
