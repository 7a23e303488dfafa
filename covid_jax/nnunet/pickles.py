"""Reads pickles and PyTorch checkpoints without executing what is in them, and without PyTorch.

A pickle is a program that may call anything. This reader knows the few names that nnU-Net's files
need: containers, numbers, numpy arrays, and tensors, which become numpy arrays. Any other name
ends the reading before it is looked up.
"""

import collections
import contextlib
import functools
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from covid_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # how torch.save began before PyTorch 1.6

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# fmt: off
_OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
    "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
))
# fmt: on

Storages = Callable[[np.dtype, str, int], np.ndarray]
"""(dtype, key, number of elements) -> the flat array of a tensor's storage"""


def load_pickle(path: Path) -> Any:
    """The content of a pickle of plain values and numpy arrays.

    Raises:
      UserError: missing, damaged, or in need of anything else; names what.
    """
    with _reading(path):
        return _Reader(io.BytesIO(path.read_bytes()), path).load()


def load_checkpoint(path: Path) -> Any:
    """The content of a file of torch.save, of any version; its tensors are numpy arrays.

    Raises:
      UserError: missing, damaged, or in need of anything but plain values, arrays and tensors.
    """
    with _reading(path):
        return _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)


def _load_zip(path: Path) -> Any:
    """archive/data.pkl, and each storage as archive/data/KEY."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = program.removesuffix("/data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("a compressed archive")  # of which a little may become very much

        @functools.cache  # weights of an encoder stand under several names
        def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
            content = archive.read(f"{folder}/data/{key}")
            if len(content) != size * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(content)} bytes")
            return np.frombuffer(content, dtype)

        return _Reader(io.BytesIO(archive.read(program)), path, storage).load()


def _load_legacy(path: Path) -> Any:
    """Five pickles one after the other, of which the fourth is the content; then the storages."""
    storages: dict[str, np.ndarray] = {}
    content = path.read_bytes()

    def storage(dtype: np.dtype, key: str, size: int) -> np.ndarray:
        if size * dtype.itemsize > len(content):
            raise ValueError(f"storage {key} is larger than the file")
        return storages.setdefault(key, np.zeros(size, dtype))  # filled below

    stream = io.BytesIO(content)
    if _Reader(stream, path).load() != _LEGACY_MAGIC:
        raise ValueError("neither a zip nor the file of an older PyTorch")
    _Reader(stream, path).load()  # the protocol's version
    _Reader(stream, path).load()  # sizes of integers
    loaded = _Reader(stream, path, storage).load()
    for key in _Reader(stream, path).load():
        size = int.from_bytes(stream.read(8), "little")
        flat = storages[key]
        if size != flat.size:
            raise ValueError(f"storage {key} has {size} elements")
        flat[:] = np.frombuffer(stream.read(flat.nbytes), flat.dtype)
    return loaded


class _Reader(pickle.Unpickler):
    """An unpickler that finds the names below and no others."""

    def __init__(self, stream: io.BytesIO, path: Path, storages: Storages | None = None) -> None:
        _check_program(stream)
        super().__init__(stream)
        self._path = path
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the name; a UserError for a name that is not known."""
        known = _KNOWN.get((module, name))
        if known is None:
            raise UserError(
                f"{self._path}: refused, nothing of it was executed: it calls {module}.{name}, "
                "which weights and plans do not need"
            )
        return known

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage of a tensor: ("storage", its type, key, place, number of elements, ...)."""
        kind, dtype, key, _, size = pid[:5]
        if kind != "storage" or self._storages is None or not isinstance(dtype, np.dtype):
            raise ValueError(f"unknown reference {pid!r}")
        return self._storages(dtype, key, size)


def _check_program(stream: io.BytesIO) -> None:
    """Raises a ValueError for opcodes that weights and plans do not need, before any runs.

    Some of them make objects in other ways than by the names that find_class sees, some take
    memory by a number in the file, as does the place of a memo.
    """
    start = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        # genops itself takes no more than the stream has.
        if opcode.name not in _OPCODES or ("PUT" in opcode.name and int(argument or 0) > count):
            raise ValueError(f"opcode {opcode.name} {argument}")
    stream.seek(start)


def _tensor(
    storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> np.ndarray:
    """A view of a storage, which must lie inside it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = 0 in size or last < storage.size >= math.prod(size)
    if min((offset, *size, *stride)) < 0 or not inside:
        raise ValueError(f"a tensor of {size} lies outside of its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


class _Dtype:
    """What a pickle says of a dtype, of numbers or text alone.

    numpy's own takes whatever its state says, such as that a field of objects is none.
    """

    def __init__(self, kind: Any, *_: Any) -> None:
        """By its name, such as "f8"."""
        if not (isinstance(kind, str) and re.fullmatch(r"[<>|=]?[biufcSU]\d+", kind)):
            raise ValueError(f"an array of {kind!r}")
        self.value = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """By its byte order; any part of it makes it another dtype."""
        _, order, subarray, names, fields, *_ = state
        if not (subarray is names is fields is None and order in tuple("<>|=")):
            raise ValueError(f"an array of {state!r:.100}")
        self.value = self.value.newbyteorder(order)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """A numpy number."""
    return np.frombuffer(content, dtype.value)[0]


def _empty_array(*_: Any) -> "_Array":
    """An array whose shape, dtype and content follow."""
    return np.ndarray.__new__(_Array, 0)


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array as pickles of protocol 5 hold it."""
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)  # type: ignore[call-overload]


class _Array(np.ndarray):
    """An array of numbers or text; one of objects would be built by their own code."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, *rest = state
        super().__setstate__((version, shape, dtype.value, *rest))


def _bytes(text: str, _: str) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    return text.encode("latin1")


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",  # an argument only: nothing may call it
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _empty_array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *place: ":".join(map(str, place)),
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything, says the pickle module
        raise UserError(
            f"{path}: damaged, or not what torch.save wrote ({type(error).__name__}: {error})"
        ) from error
