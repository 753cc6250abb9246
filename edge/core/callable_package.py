"""`edge.compress(...)` beside `edge.compress.run`: a package that is also the function of its name in `edge.api`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module("edge.api"), self.__name__.rpartition(".")[2])(*args, **options)


def make_callable(package: str) -> None:
    """Python's own way to give a module behaviour: replace its class."""
    sys.modules[package].__class__ = _CallablePackage
