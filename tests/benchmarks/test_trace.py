"""What is read from a compiled program."""

import pytest

from benchmarks.harness.trace import instructions, kind_of, summed

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
        ("convolutions", image + kernel + result),
        ("products", 2 * result),
    }


def test_kernels_are_summed_by_what_they_are_for_and_where():
    step, back = "jit(train_step)/jvp(UNet)", "jit(train_step)/transpose(jvp(UNet))"
    lines = [
        ("conv.1", "__cudnn$convForward", f"{step}/encoder/stage_0/block_0/conv/conv", 3.0),
        ("conv.2", "__cudnn$convBackwardFilter", f"{back}/decoder/stage_0/block_1/conv/conv", 2.5),
        ("conv.3", "__cudnn$convBackwardInput", f"{back}/encoder/stage_1/block_0/conv/conv", 2.0),
        ("fusion.4", "fusion", f"{step}/adapted_encoder/stage_1/block_0/norm/mul", 1.5),
        ("gemm.5", "__cublas$lt$matmul", f"{step}/heads/stage_0/dot_general", 1.0),
        ("fusion.6", "fusion", "jit(train_step)/sub", 0.5),
    ]
    names = ("operation", "opcode", "jax", "seconds")
    found = summed([dict(zip(names, line, strict=True)) for line in lines])
    assert found["by_kind"] == pytest.approx(
        {
            "convolutions, forward": 3.0,
            "convolutions, gradient to kernel": 2.5,
            "convolutions, gradient to input": 2.0,
            "norms": 1.5,
            "products": 1.0,
            "fusions": 0.5,
        }
    )
    assert found["by_stage"] == pytest.approx(
        {"stage 0": 5.5, "stage 1": 3.5, "heads": 1.0, "loss, optimiser and others": 0.5}
    )
