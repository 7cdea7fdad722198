"""Vector instructions that numba does not find by itself, written for LLVM: they run on any processor.

Indices are uint64, count elements in the memory of contiguous arrays, and are not looked at.
"""

from __future__ import annotations

from dials_diffuse.kernels.jit import intrinsic


def _pointer(context, builder, kind, array, index, lanes=None):
    """Pointer to an element of an array, in its memory, or to ``lanes`` of them."""
    from llvmlite import ir

    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    if lanes is None:
        return pointer
    return builder.bitcast(pointer, ir.VectorType(context.get_data_type(kind.dtype), lanes).as_pointer())


@intrinsic
def running_sums(typing, value, first, n, table, running):
    """Pack what is summed of each pixel into three integers, and sum through a tile.

    value : int32, from ``first`` on n numbers 2 m + 1 where a pixel counts, else 0
    table : (32 * 4,) int64, rows of four; a pixel in column u of its row adds row u times (1, m, m, 0)
    running : (4 * (n + 1),) int64, written: sums of the pixels before each
    """
    from llvmlite import ir
    from numba.core import cgutils, types

    def write(context, builder, signature, arguments):
        i32, i64 = ir.IntType(32), ir.IntType(64)
        four = ir.VectorType(i64, 4)
        values, _, _, entries, sums = signature.args
        zero, one = ir.Constant(i64, 0), ir.Constant(i64, 1)
        pixel = _pointer(context, builder, values, arguments[0], arguments[1])
        words = _pointer(context, builder, entries, arguments[3], zero, 4)
        out = _pointer(context, builder, sums, arguments[4], zero, 4)
        total = cgutils.alloca_once_value(builder, ir.Constant(four, [0] * 4))
        builder.store(ir.Constant(four, [0] * 4), out, align=8)
        undefined = ir.Constant(four, ir.Undefined)
        with cgutils.for_range(builder, arguments[2], intp=i64) as loop:
            both = builder.sext(builder.load(builder.gep(pixel, [loop.index])), i64)
            both = builder.insert_element(undefined, both, ir.Constant(i32, 0))
            both = builder.shuffle_vector(both, undefined, ir.Constant(ir.VectorType(i32, 4), [0] * 4))
            counts = builder.lshr(both, ir.Constant(four, [0, 1, 1, 1]))
            counts = builder.and_(counts, ir.Constant(four, [1, -1, -1, 0]))
            column = builder.and_(loop.index, ir.Constant(i64, 31))
            word = builder.load(builder.gep(words, [column]), align=8)
            new = builder.add(builder.load(total), builder.mul(counts, word))
            builder.store(new, total)
            builder.store(new, builder.gep(out, [builder.add(loop.index, one)]), align=8)
        return context.get_dummy_value()

    return types.void(value, first, n, table, running), write


@intrinsic
def add_run(typing, running, begin, end, factors, row, cells, cell):
    """Add to eight numbers from cells[cell] on those from factors[row] on times (a, a, a, b, b, b, c, d).

    (a, b, c, d) : running[end : end + 4] - running[begin : begin + 4]; all are int64
    """
    from llvmlite import ir
    from numba.core import types

    def write(context, builder, signature, arguments):
        four = ir.VectorType(ir.IntType(64), 4)
        sums, _, _, table, _, target, _ = signature.args
        ends = [builder.load(_pointer(context, builder, sums, arguments[0], arguments[k], 4), align=8) for k in (2, 1)]
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0, 0, 0, 1, 1, 1, 2, 3])
        spread = builder.shuffle_vector(builder.sub(*ends), ir.Constant(four, ir.Undefined), lanes)
        factor = builder.load(_pointer(context, builder, table, arguments[3], arguments[4], 8), align=8)
        place = _pointer(context, builder, target, arguments[5], arguments[6], 8)
        new = builder.add(builder.load(place, align=8), builder.mul(spread, factor))
        builder.store(new, place, align=8)
        return context.get_dummy_value()

    return types.void(running, begin, end, factors, row, cells, cell), write


@intrinsic
def changes(typing, cell, i):
    """Where cell[i + k] is not cell[i + k - 1], as bit k of 32; cell : (n,) int32."""
    from llvmlite import ir
    from numba.core import types

    def write(context, builder, signature, arguments):
        kind, array = signature.args[0], arguments[0]
        before = builder.sub(arguments[1], ir.Constant(ir.IntType(64), 1))
        two = [
            builder.load(_pointer(context, builder, kind, array, index, 32), align=4)
            for index in (arguments[1], before)
        ]
        return builder.bitcast(builder.icmp_unsigned("!=", *two), ir.IntType(32))

    return types.uint32(cell, i), write


@intrinsic
def lowest_bit(typing, bits):
    """Place of the lowest bit of a uint32 that is set, 32 where none is."""
    from llvmlite import ir
    from numba.core import types

    def write(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint32(bits), write


@intrinsic
def number_of_bits(typing, bits):
    """How many bits of a uint32 are set."""
    from numba.core import types

    def write(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint32(bits), write


@intrinsic
def multiply_add(typing, a, b, c):
    """a b + c of float32, rounded once where the processor has an instruction for it."""
    from llvmlite import ir
    from numba.core import types

    def write(context, builder, signature, arguments):
        kind = ir.FloatType()
        function = ir.FunctionType(kind, 3 * [kind])
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [kind], function), arguments)

    return types.float32(types.float32, types.float32, types.float32), write


@intrinsic
def shifted(typing, number, bits):
    """number << bits of two int32, as int32: numba makes int64 of them, of which a vector holds half as many."""
    from numba.core import types

    def write(context, builder, signature, arguments):
        return builder.shl(*arguments)

    return types.int32(types.int32, types.int32), write


@intrinsic
def fetch(typing, array, index):
    """Begin to bring the cache line with an element of an array, counted in its memory."""
    from llvmlite import ir
    from numba.core import cgutils, types

    def write(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        i32 = ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], function)
        builder.call(prefetch, [builder.bitcast(pointer, cgutils.voidptr_t), *(ir.Constant(i32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, index), write


@intrinsic
def add_product(typing, out, begin, factor, one, first, other, second, n):
    """out[begin + k] += factor * one[first + k] * other[second + k] for n of k, four at a time; all are float64.

    numba's own vectors are longer than the rows of a peak.
    """
    from llvmlite import ir
    from numba.core import cgutils, types

    def write(context, builder, signature, arguments):
        i32, i64, number = ir.IntType(32), ir.IntType(64), ir.DoubleType()
        four = ir.VectorType(number, 4)
        places = [(signature.args[k], arguments[k], arguments[k + 1]) for k in (0, 3, 5)]
        undefined = ir.Constant(four, ir.Undefined)
        wide = builder.insert_element(undefined, arguments[2], ir.Constant(i32, 0))
        wide = builder.shuffle_vector(wide, undefined, ir.Constant(ir.VectorType(i32, 4), [0] * 4))

        def add(k, scale, lanes):
            target, *sources = [
                _pointer(context, builder, kind, array, builder.add(start, k), lanes) for kind, array, start in places
            ]
            left, right = [builder.load(pointer, align=8) for pointer in sources]
            product = builder.fmul(builder.fmul(scale, left), right)
            builder.store(builder.fadd(builder.load(target, align=8), product), target, align=8)

        fours = builder.lshr(arguments[7], ir.Constant(i64, 2))
        with cgutils.for_range(builder, fours, intp=i64) as loop:
            add(builder.shl(loop.index, ir.Constant(i64, 2)), wide, 4)
        done = builder.shl(fours, ir.Constant(i64, 2))
        with cgutils.for_range(builder, builder.sub(arguments[7], done), intp=i64) as loop:
            add(builder.add(done, loop.index), arguments[2], None)
        return context.get_dummy_value()

    return types.void(out, begin, factor, one, first, other, second, n), write
