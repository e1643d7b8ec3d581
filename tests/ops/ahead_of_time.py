"""Compile, without a GPU, the very launches that an op makes."""

import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
REGISTERS = {
    "sm_89": 255,
    "sm_80": 255,
    "sm_90": 255,
    "sm_100": 255,
    "gfx942": 512,
}
SMALLER = {"sm_89": GPUTarget("cuda", 89, 32)}  # in what a block may have of shared memory
SHARED_LIMIT = {
    "sm_89": 101_376,
    "sm_80": 166_912,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass
class Launch:
    """A kernel and what it was called with."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


@dataclass
class Compiled:
    """What a compiled kernel takes of the card, and its assembly."""

    shared: int  # bytes
    registers: int  # a thread
    stack: int  # bytes a thread, spilled registers among them
    assembly: str

    @property
    def multiplies_matrices(self) -> bool:
        """By the card's matrix instructions."""
        return bool(re.search(r"wgmma|mma\.sync|tcgen05\.mma|v_mfma", self.assembly))


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The kernels that `call` would launch; nothing runs, so tensors may be on "meta"."""
    seen: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        options = {name: value for name, value in kwargs.items() if name not in names}
        own = {name: value for name, value in kwargs.items() if name in names}
        bound = inspect.signature(self.fn).bind(*args, **own)
        bound.apply_defaults()
        seen.append(Launch(self, dict(bound.arguments), options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return seen


def built_for(target: str) -> AbstractContextManager:
    """PyTorch says that it was built for the target, so that tiers launch what they would there."""
    return mock.patch.object(torch.version, "hip", "7" if target == "gfx942" else None)


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Specialised as Triton would at run time: on None, on 1, and on multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        fixed = parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (value == 1 and not fixed):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not fixed:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(
        fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes
    )
    built = triton.compile(source, target=(TARGETS | SMALLER)[target], options=launch.options)
    if target == "gfx942":
        text = built.asm["amdgcn"]
        return Compiled(
            built.metadata.shared,
            int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]),
            int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1]),
            text,
        )
    usage = _usage(built.asm["cubin"])
    return Compiled(built.metadata.shared, usage["REG"], usage["STACK"], built.asm["ptx"])


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", shown.stdout)}


def kernels(tier: ModuleType) -> set[str]:
    """The names of the kernels that a tier launches."""
    return {
        name
        for name, value in vars(tier).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }


def assert_compiles(
    calls: list[Callable[[], Any]],
    tier: ModuleType,
    target: str,
    registers: int | None = None,
    matrices: tuple[str, ...] = (),
) -> None:
    """Every kernel of the tier is launched by `calls`, compiles for the target, fits its shared
    memory, keeps to a budget of registers (None: what a thread can have) and spills none; those in
    `matrices` multiply by the matrix units.
    """
    with built_for(target):
        found = [launch for call in calls for launch in launches(call)]
    registers = registers or REGISTERS[target]
    assert {launch.name for launch in found} == kernels(tier)
    for launch in found:
        built = compile_launch(launch, target)
        assert built.shared <= SHARED_LIMIT[target], f"{launch.name}: {built.shared} bytes shared"
        assert built.stack == 0, f"{launch.name}: spills {built.stack} bytes a thread"
        assert built.registers <= registers, f"{launch.name}: {built.registers} registers"
        if launch.name in matrices:
            assert built.multiplies_matrices, f"{launch.name}: no matrix instructions"
