"""Counts of compiled programs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.analysis import hlo

HLO = """\
HloModule jit_update, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%gathering (p: bf16[24,32]) -> bf16[96,32] {
  %p = bf16[24,32]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[96,32]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %all-gather-start.1 = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%v), replica_groups=[2,4]<=[8], dimensions={0}
  %all-gather-done.1 = f32[32,4]{1,0} all-gather-done(%all-gather-start.1)
  %fusion.1 = bf16[96,32]{1,0} fusion(%w), kind=kCustom, calls=%gathering
}

%condition (s: (s32[], f32[8,4])) -> pred[] {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %constant.4 = s32[]{:T(128)} constant(5)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.4), direction=LT
}

ENTRY %main.1_spmd (a: f32[8,4], b: u8[64]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body
  %all-reduce.7 = (f32[100]{0:T(1024)S(1)}, bf16[3,5]{1,0}, /*index=2*/f32[]) all-reduce(%g, %h, %i), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %get-tuple-element.1 = f32[100]{0} get-tuple-element(%all-reduce.7), index=0
  %psum.2 = f32[10]{0} all-reduce-start(%j), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
  %reduce-scatter.1 = f32[16]{0} reduce-scatter(%k), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %collective-permute-start.1 = (u8[64]{0}, u8[64]{0}, u32[], u32[]) collective-permute-start(%b)
  ROOT %all-to-all.1 = pred[8,4]{1,0} all-to-all(%a), dimensions={0}
}
"""  # noqa: E501


def test_collectives_of_a_program_are_counted_by_kind():
    gathered, fused, halved = 32 * 4 * 4, 96 * 32 * 2, 10 * 4
    reduced = 100 * 4 + 15 * 2 + 4
    assert hlo.count_costs(HLO, devices=8).collectives == {
        "all-reduce": (2, reduced + halved, 2 * 7 / 8 * reduced + 2 * 1 / 2 * halved),
        "all-gather": (10, 5 * (gathered + fused), 5 * 3 / 4 * (gathered + fused)),
        "reduce-scatter": (1, 64, 3 * 64),
        "all-to-all": (1, 32, 7 / 8 * 32),
        "collective-permute": (1, 64, 64),
    }


def counted(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.count_costs(jax.jit(function).lower(*shapes).compile().as_text(), devices=1)


def test_matmuls_are_counted_in_loops_and_functions():
    def step(x, w):
        x = jax.lax.map(lambda row: jnp.tanh(row @ w), x)  # 6 matmuls (4, 8) x (8, 8)
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x)  # 3 of (24, 8)

    once = 2 * 24 * 8 * 8
    assert counted(step, (6, 4, 8), (8, 8)).flops == once + 3 * once


@pytest.mark.parametrize(
    ("padding", "places"),
    [("VALID", 3 * 3 * 7 * 7), ("SAME", (3 * 9 - 2) ** 2)],  # one of three is outside at an end
)
def test_padding_is_not_multiplied(padding, places):
    def convolve(x, w):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=dims)

    assert counted(convolve, (2, 9, 9, 4), (3, 3, 4, 5)).flops == 2 * 2 * places * 4 * 5


def test_a_convolution_that_is_a_batch_of_matmuls_is_counted_as_one():
    """As TPUs compile it: the batch, of 16 and 3, is two axes with dilation."""
    text = """\
ENTRY %main (q: bf16[16,3,197,64], k: bf16[16,3,197,64]) -> f32[16,3,197,197] {
  %q = bf16[16,3,197,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[16,3,197,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.82 = f32[16,3,197,197]{2,3,1,0:T(8,128)} convolution(%q, %k), window={size=16x3 stride=15x2 lhs_dilate=16x3}, dim_labels=01bf_01oi->01bf, metadata={}
}
"""  # noqa: E501
    found = hlo.count_costs(text, devices=1)
    assert found.flops == 2 * 16 * 3 * 197 * 197 * 64
    written, read = 4 * 16 * 3 * 197 * 197, 2 * 16 * 3 * 197 * 64  # %k is in fast memory
    assert found.bytes_accessed == written + read


def test_copies_between_memories_access_what_they_copy():
    """As TPUs prefetch: 4 of 64 rows into fast memory, then all into it, then out of it."""
    text = """\
ENTRY %main (x: bf16[64,768]) -> bf16[64,768] {
  %x = bf16[64,768]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[64,768]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %slice-start = ((bf16[64,768]{1,0:T(8,128)(2,1)}), bf16[4,768]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)S(2)}) slice-start(%x), slice={[0:4], [0:768]}
  %slice-done = bf16[4,768]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %copy-start = (bf16[64,768]{1,0:T(8,128)(2,1)S(1)}, bf16[64,768]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-start.1 = (bf16[64,768]{1,0:T(8,128)(2,1)}, bf16[64,768]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%y)
  ROOT %copy-done = bf16[64,768]{1,0:T(8,128)(2,1)} copy-done(%copy-start.1)
}
"""  # noqa: E501
    assert hlo.count_costs(text, devices=1).bytes_accessed == 2 * 768 * (4 + 64 + 64)


def test_of_what_a_loop_slices_and_sets_a_part_is_accessed():
    """Five times, as each adds 2 to the counter: a row is read, and one written in its place."""
    text = """\
%fused (a: f32[5,10], b: f32[5,10], i: s32[]) -> f32[5,10] {
  %a = f32[5,10]{1,0} parameter(0)
  %b = f32[5,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,10]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,10}
  ROOT %set = f32[5,10]{1,0} dynamic-update-slice(%b, %row, %i, %zero)
}

%body (s: (s32[], f32[5,10], f32[5,10])) -> (s32[], f32[5,10], f32[5,10]) {
  %s = (s32[], f32[5,10]{1,0}, f32[5,10]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[5,10]{1,0} get-tuple-element(%s), index=1
  %y = f32[5,10]{1,0} get-tuple-element(%s), index=2
  %fusion = f32[5,10]{1,0} fusion(%x, %y, %n), kind=kLoop, calls=%fused
  %two = s32[] constant(2)
  %next = s32[]{:S(6)} add(%n, %two)
  ROOT %t = (s32[], f32[5,10]{1,0}, f32[5,10]{1,0}) tuple(%next, %x, %fusion)
}

%condition (s: (s32[], f32[5,10], f32[5,10])) -> pred[] {
  %s = (s32[], f32[5,10]{1,0}, f32[5,10]{1,0}) parameter(0)
  %n = u32[] get-tuple-element(%s), index=0
  %nine = u32[] constant(9)
  ROOT %lt = pred[] compare(%n, %nine), direction=LT
}

ENTRY %main (s: (s32[], f32[5,10], f32[5,10])) -> (s32[], f32[5,10], f32[5,10]) {
  %s = (s32[], f32[5,10]{1,0}, f32[5,10]{1,0}) parameter(0)
  ROOT %while = (s32[], f32[5,10]{1,0}, f32[5,10]{1,0}) while(%s), condition=%condition, body=%body
}
"""
    row, number = 40, 4
    adding, comparing = 2 * number, 2 * number + 1
    assert hlo.count_costs(text, devices=1).bytes_accessed == 5 * (
        2 * row + number + adding + comparing
    )


# As GPUs compile a matmul with a bias, a convolution and attention: by libraries, which get
# workspace with their results.
LIBRARIES = """\
ENTRY %main (x: bf16[40,8]) -> bf16[40,6] {
  %x = bf16[40,8]{1,0} parameter(0)
  %w = bf16[8,6]{1,0} parameter(1)
  %b = bf16[6]{0} parameter(2)
  %product = (bf16[40,6]{1,0}, s8[4194304]{0}) custom-call(%x, %w, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"BIAS"}}
  %images = bf16[2,32,32,3]{3,2,1,0} parameter(3)
  %kernel = bf16[5,16,16,3]{3,2,1,0} parameter(4)
  %conv = (bf16[2,2,2,5]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), window={size=16x16 stride=16x16}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", backend_config={}
  %q = bf16[2,10,3,8]{3,2,1,0} parameter(5)
  %k = bf16[2,10,3,8]{3,2,1,0} parameter(6)
  %v = bf16[2,10,3,8]{3,2,1,0} parameter(7)
  %lengths = s32[2]{0} parameter(8)
  ROOT %attention = (bf16[2,3,10,8]{3,1,2,0}, f32[2,3,10]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %v, %lengths, %lengths), custom_call_target="__cudnn$fmhaSoftmax", backend_config={}
}
"""  # noqa: E501


def test_what_libraries_compute_is_counted():
    found = hlo.count_costs(LIBRARIES, devices=1)
    scores = 2 * 2 * 3 * 10 * 10 * 8
    assert found.flops == 2 * 40 * 8 * 6 + 2 * (2 * 2 * 2) * (16 * 16 * 3) * 5 + 2 * scores
    elements = 40 * 8 + 8 * 6 + 6 + 40 * 6  # of the matmul
    elements += 2 * 32 * 32 * 3 + 5 * 16 * 16 * 3 + 2 * 2 * 2 * 5
    elements += 4 * 2 * 10 * 3 * 8
    assert found.bytes_accessed == 2 * elements + 4 * 2 * 3 * 10 + 2 * 4 * 2
    # The derivative by q, k and v computes the scores again: five such matmuls instead of two.
    backward = hlo.count_costs(LIBRARIES.replace("fmhaSoftmax", "fmhaSoftmaxBackward"), devices=1)
    assert backward.flops - found.flops == 3 * scores


def test_derivatives_of_a_convolution_take_as_much_as_it():
    forward = hlo.count_costs(LIBRARIES, devices=1).flops
    images, kernel, result = "bf16[2,32,32,3]", "bf16[5,16,16,3]", "bf16[2,2,2,5]"
    for name, operands, out in (
        ("convBackwardFilter", (images, result), kernel),
        ("convBackwardInput", (result, kernel), images),
    ):
        text = LIBRARIES.replace("convForward", name)
        for old, new in zip(
            (f"%images = {images}", f"%kernel = {kernel}", f"({result}"),
            (f"%images = {operands[0]}", f"%kernel = {operands[1]}", f"({out}"),
            strict=True,
        ):
            assert old in text
            text = text.replace(old, new)
        assert hlo.count_costs(text, devices=1).flops == forward


def test_what_other_libraries_compute_is_not_known():
    text = LIBRARIES.replace("__cudnn$convForward", "__cudnn$norm")
    assert hlo.count_costs(text, devices=1).flops is None
