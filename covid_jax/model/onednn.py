"""oneDNN's 3D convolutions on the CPU, called from XLA's programs (jax.ffi).

They need the extra `onednn` (Linux on x86-64) and a C++ compiler: onednn.cc is compiled once, in a
few seconds, and kept in the user's cache. Where either is missing, conv.py has XLA's own forms.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from covid_jax.cache import cache_folder

Triple = tuple[int, int, int]

_SOURCE = Path(__file__).with_suffix(".cc")
_PASSES = ("forward", "gradient_to_input", "gradient_to_kernel")


def forward(x: Array, kernel: Array, strides: Triple) -> Array:
    """The convolution of x (N, D, H, W, C) with kernel (kd, kh, kw, C, features), as conv.py's."""
    size = [-(-n // stride) for n, stride in zip(x.shape[1:4], strides, strict=True)]
    return _call("forward", (x.shape[0], *size, kernel.shape[4]), x, kernel, strides)


def gradient_to_input(dy: Array, kernel: Array, strides: Triple, size: Sequence[int]) -> Array:
    """The gradient to an input of spatial `size`, from that to its output."""
    shape = (dy.shape[0], *size, kernel.shape[3])
    return _call("gradient_to_input", shape, dy, kernel, strides)


def gradient_to_kernel(x: Array, dy: Array, kernel_size: Sequence[int], strides: Triple) -> Array:
    """The gradient (kd, kh, kw, C, features) to the kernel, from that to the output."""
    shape = (*kernel_size, x.shape[4], dy.shape[4])
    return _call("gradient_to_kernel", shape, x, dy, strides)


@functools.cache
def available() -> bool:
    """Whether the calls can be made here; the first time, it compiles and registers them.

    A compiler that fails is told in a warning: XLA's forms give the same numbers, slower.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if sys.platform != "linux" or compiler is None or not _installed():
        return False
    try:
        library = ctypes.cdll.LoadLibrary(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"oneDNN's convolutions cannot be used, XLA's slower ones are: {told.strip()}",
            stacklevel=2,
        )
        return False
    for name in _PASSES:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(_target(name), capsule, platform="cpu")
    return True


def _call(name: str, shape: tuple[int, ...], a: Array, b: Array, strides: Triple) -> Array:
    if not available():
        raise RuntimeError("oneDNN's convolutions need the extra onednn and a C++ compiler")
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.ffi.ffi_call(_target(name), result)(a, b, strides=np.array(strides, np.int64))


def _target(name: str) -> str:
    return f"covid_jax_onednn_{name}"


def _installed() -> bool:
    try:
        return bool(metadata.files("onednn-devel-cpu-gomp"))
    except metadata.PackageNotFoundError:
        return False


def _compiled(compiler: str) -> Path:
    """The library of onednn.cc, compiled where the cache has none for these versions."""
    header = _installed_file("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp")
    library = _installed_file("onednn-cpu-gomp", "libdnnl.so.3")
    versions = [metadata.version(name) for name in ("onednn-cpu-gomp", "jaxlib")]
    recipe = " ".join([_SOURCE.read_text(), compiler, str(library), *versions])
    target = cache_folder("onednn") / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Whole or absent: several processes may compile it at once.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "made.so"
            include = [f"-I{folder}" for folder in (jax.ffi.include_dir(), header.parents[2])]
            link = [str(library), f"-Wl,-rpath,{library.parent}"]
            command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", *include, str(_SOURCE)]
            subprocess.run(
                [*command, *link, "-o", str(made)], check=True, capture_output=True, text=True
            )
            made.replace(target)
    return target


def _installed_file(distribution: str, name: str) -> Path:
    for file in metadata.files(distribution) or ():
        if str(file).endswith(f"/{name}"):
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"{distribution} is installed without its {name}")
