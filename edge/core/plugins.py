"""The file name is the registry: a `Family` is a package whose modules are its members, plus installed entry points."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from edge.core.errors import UsageError, nearest


class Family:
    """Modules of `package` and entry points of the group of the same name, listed without importing any of them.

    A sub-package or a module whose name starts with an underscore is not a member. A module name stands for a member
    with `_` shown as `-`; either is understood.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package

    def names(self) -> list[str]:
        """Names of all members, sorted."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            return []
        modules = pkgutil.iter_modules(spec.submodule_search_locations)
        own = {m.name.replace("_", "-") for m in modules if not m.ispkg and not m.name.startswith("_")}
        return sorted(own | {point.name for point in entry_points(group=self.package)})

    def load(self, name: str) -> ModuleType:
        """Import one member. Raises `UsageError` with the nearest right name."""
        known, asked = self.names(), name
        name = name if name in known else name.replace("_", "-")
        if name not in known:
            raise UsageError(f"{self.kind}.unknown", f"no {self.kind} is called '{asked}'", nearest(asked, known))
        for point in entry_points(group=self.package):
            if point.name == name:
                return point.load()  # type: ignore[no-any-return]
        return importlib.import_module(f"{self.package}.{name.replace('-', '_')}")


METHODS = Family("method", "edge.compress.methods")
RUNTIMES = Family("runtime", "edge.runtimes")
TRANSPORTS = Family("transport", "edge.runtimes.transports")
TARGETS = Family("target", "edge.exporters")
ARCHITECTURES = Family("architecture", "edge.models.architectures")
IMPORTS = Family("import", "edge.profiles.imports")
