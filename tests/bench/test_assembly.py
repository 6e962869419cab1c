"""What is read from a compiled kernel's texts."""

import pytest

from bench.assembly import conversions, dots, ptx_loop, sass_outside

# Around a loop over tiles: one that multiplies, and a longer one that does not.
PTX = """
.visible .entry kernel(
	.param .u64 pointer
)
{
	.reg .b32 	%r<4>;
	mov.u32 	%r1, %tid.x;
$L__BB0_1:                              // =>This Loop Header
	mov.u32 	%r2, 0;
	// a remark; of no account
$L__BB0_2:
	wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%r3,%r4}, %rd1, %rd2, %p1, 1, 1, 0, 1;
	add.s32 	%r2, %r2, 1;
	@%p1 bra 	$L__BB0_2;
$L__BB0_3:
	@%p3 bra 	$L__BB0_4;
	add.s32 	%r2, %r2, 1;
	add.s32 	%r2, %r2, 1;
	add.s32 	%r2, %r2, 1;
$L__BB0_4:
	@%p2 bra 	$L__BB0_3;
	@%p4 bra 	$L__BB0_1;
	cvt.rn.bf16x2.f32 	%r3, %r1, %r2;
	cvt.rz.f16.f32 	%rs3, %r1;
	cvt.f32.bf16 	%r3, %rs1;
	cvt.rn.f32.s32 	%r3, %r1;
	ret;
}
"""

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;           /* 0x00000a0000017a02 */
                                                                    /* 0x000fe40000000f00 */
        /*0010*/              @!P5 BRA 0x50 ;                       /* 0x0 */
        /*0020*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24 ;   /* 0x0 */
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;          /* 0x0 */
        /*0040*/               @P1 BRA 0x20 ;                       /* 0x0 */
        /*0050*/                   STG.E [R2], R3 ;                 /* 0x0 */
        /*0060*/                   EXIT ;                           /* 0x0 */
        /*0070*/                   BRA 0x70;                        /* 0x0 */
        /*0080*/                   NOP;                             /* 0x0 */
"""

DOTS = """
    %1 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x64xbf16> -> tensor<64x64xf32>
    %2 = tt.dot %d, %e, %c, inputPrecision = tf32x3 : tensor<64x32xf32> * tensor<32x64xf32> -> tensor<64x64xf32>
    %3 = tt.dot %d, %e, %c : tensor<64x32xf32> * tensor<32x64xf32> -> tensor<64x64xf32>
"""


def test_the_main_loop_is_the_innermost_one_that_multiplies_without_its_branch():
    assert ptx_loop(PTX) == 2


def test_without_a_loop_nothing_is_in_it():
    assert ptx_loop("\tmov.u32 \t%r1, %tid.x;\n\tret;\n") == 0


def test_outside_of_the_loop_is_what_is_left_without_the_padding():
    assert sass_outside(SASS) == 5  # MOV, BRA, STG, EXIT, and the BRA to itself that ends every kernel


def test_conversions_to_half_precision_alone_are_listed():
    assert conversions("", PTX) == ["cvt.rn.bf16x2.f32", "cvt.rz.f16.f32"]


@pytest.mark.parametrize(
    ("ttir", "found"),
    [
        ("%1 = arith.truncf %0 : tensor<128xf32> to tensor<128xbf16>", ["arith.truncf"]),
        ("%1 = tt.fp_to_fp %0, rounding = rtz : tensor<128xf32> -> tensor<128xbf16>", ["rtz"]),
        ("%1 = arith.addf %0, %0 : tensor<128xf32>", []),
    ],
)
def test_where_there_is_no_ptx_ttir_says_how(ttir, found):
    assert conversions(ttir, None) == found


def test_dots_are_told_apart_by_operands_and_by_the_precision_of_float32():
    assert dots(DOTS) == ["bf16", "ieee", "tf32x3"]
