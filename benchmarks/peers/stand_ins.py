"""Stand-ins for libraries that nnU-Net and our readers import, and that benchmarks never call.

Both read scans by them; a machine that is lent for its GPU may lack them, and what is measured
there begins with arrays. What is installed is left as it is; a stand-in fails where it is used.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LIBRARIES = ("SimpleITK", "nibabel", "pydicom", "skimage", "tensorboard", "tifffile")


class _Unusable(Exception):  # noqa: N818 - also a class of errors, where an except clause names one
    def __init__(self, *_: Any, **__: Any) -> None:
        name = f"{type(self).__module__}.{type(self).__name__}"
        raise ImportError(f"{name} is called, and its library is not installed")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type[_Unusable]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Unusable,), {"__module__": self.__name__})


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        library = fullname.partition(".")[0]
        # A module that an installed library lacks stays missing.
        absent = library in LIBRARIES and (
            fullname == library or isinstance(sys.modules.get(library), _StandIn)
        )
        return ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_missing() -> None:
    """From here on an import of LIBRARIES that are not installed gives something to hold."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def before_nnunet() -> None:
    """From here on nnU-Net can be imported, and does not warn of folders that nobody uses."""
    stand_in_for_missing()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, "unused")


def missing(*modules: str) -> list[str]:
    """Those of `modules` that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]
