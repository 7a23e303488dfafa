"""Where the time of a compiled step goes: its operations, from XLA's profiler and its program."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.harness.tables import Line

_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def operations(step: Callable[[], Any], program: str, times: int = 3) -> list[Line]:
    """The operations of a step, the most costly first.

    Args:
      step: runs the compiled step once and waits for its end.
      program: its optimised HLO (compiled.as_text()).
      times: steps to run under the profiler.

    Returns:
      of each operation: its name in the program, seconds a step, share of all operations, the
      bytes of its operands and results, and the JAX operation that it comes from
    """
    step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(times):
                step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    known = instructions(program)
    nanoseconds: Counter[str] = Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                # On GPU a kernel carries the name of its operation beside its own.
                name = dict(event.stats).get("hlo_op", event.name)
                if name in known:
                    nanoseconds[name] += event.duration_ns
    total = sum(nanoseconds.values())
    return [
        {
            "operation": name,
            "seconds": spent / 1e9 / times,
            "share": spent / total,
            **known[name],
        }
        for name, spent in nanoseconds.most_common()
    ]


def kind_of(name: str, opcode: str) -> str | None:
    """What sort of kernel an instruction is; None for one that does nothing."""
    if opcode in ("parameter", "constant", "tuple", "get-tuple-element", "bitcast"):
        return None
    if opcode.startswith("__cudnn$conv"):
        return "convolutions"
    if opcode.startswith("__cublas"):
        return "products"
    return "transposes" if re.search("transpose|copy", name) else "fusions"


def kind_within_step(name: str, opcode: str, origin: str) -> str:
    """What a kernel of a training step is for, by its names in the program and in JAX."""
    if opcode.startswith("__cudnn$conv"):
        passes = {"BackwardFilter": "gradient to kernel", "BackwardInput": "gradient to input"}
        what = (said for end, said in passes.items() if opcode.endswith(end))
        return f"convolutions, {next(what, 'forward')}"
    if "/norm/" in origin:
        return "norms"
    return kind_of(name, opcode) or opcode


def stage_of(origin: str) -> str:
    """The stage of the network that JAX's name of an operation lies in, "stage 0" or "heads"."""
    if "heads/" in origin:
        return "heads"
    found = re.search(r"(?:encoder|decoder)/stage_(\d+)", origin)
    return f"stage {found[1]}" if found else "loss, optimiser and others"


def summed(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Seconds a step of the `operations` by kind and by stage, the most costly first."""
    kinds, stages = Counter[str](), Counter[str]()
    for line in lines:
        kinds[kind_within_step(line["operation"], line["opcode"], line["jax"])] += line["seconds"]
        stages[stage_of(line["jax"])] += line["seconds"]
    return {"by_kind": dict(kinds.most_common()), "by_stage": dict(stages.most_common())}


def instructions(program: str) -> dict[str, dict[str, Any]]:
    """Of every instruction of the entry computation: opcode, bytes, and JAX's name of it."""
    entry = program[program.index("\nENTRY ") :]
    sizes: dict[str, int] = {}
    found = {}
    for text in entry.splitlines():
        match = _INSTRUCTION.match(text)
        if match is None:
            continue
        name, result, opcode, rest = match.groups()
        arrays = _ARRAY.findall(result)
        if opcode == "custom-call":
            arrays = arrays[:1]  # the others are room that cuDNN and cuBLAS may use
        sizes[name] = sum(
            _WIDTHS.get(kind, 0) * math.prod(int(n) for n in shape.split(",") if n)
            for kind, shape in arrays
        )
        operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
        origin = re.search(r'op_name="([^"]*)"', rest)
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        found[name] = {
            "opcode": target.group(1) if target else opcode,
            "bytes": sizes[name] + sum(sizes.get(operand, 0) for operand in operands),
            "jax": origin.group(1) if origin else "",
        }
    return found
