"""What is read from a compiled program."""

from benchmarks.trace import instructions, kind_of

PROGRAM = """HloModule step

ENTRY %main (image: bf16[2,8,4]) -> bf16[2,8,16] {
  %image = bf16[2,8,4]{2,1,0} parameter(0)
  %kernel = bf16[16,4]{1,0} constant({...})
  %wrapped_transpose = bf16[2,4,8]{2,1,0} fusion(%image), kind=kInput, calls=%t
  %cudnn-conv.1 = (bf16[2,8,16]{2,1,0}, u8[32]{0}) custom-call(%wrapped_transpose, %kernel), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/conv"}
  %part = bf16[2,8,16]{2,1,0} get-tuple-element(%cudnn-conv.1), index=0
  ROOT %product = bf16[2,8,16]{2,1,0} custom-call(%part), custom_call_target="__cublas$lt$matmul"
}
"""


def test_kernels_are_told_apart_and_their_bytes_are_those_of_operands_and_results():
    found = {
        (kind_of(name, one["opcode"]), one["bytes"]) for name, one in instructions(PROGRAM).items()
    }
    image, kernel, result = 2 * 8 * 4 * 2, 16 * 4 * 2, 2 * 8 * 16 * 2
    assert found - {pair for pair in found if pair[0] is None} == {
        ("transposes", 2 * image),
        ("convolutions", image + kernel + result + 32),
        ("products", 2 * result),
    }
