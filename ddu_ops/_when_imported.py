"""What waits until somebody else imports a module."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``name`` where Python does, and has ``then`` imported after it."""

    def __init__(self, name: str, then: str) -> None:
        self._name, self._then = name, then

    def waits_for(self, name: str, then: str) -> bool:
        return (self._name, self._then) == (name, then)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(self._then)

            spec.loader.exec_module = execute_both  # type: ignore[method-assign]  # of this loader, made for this spec
        return spec


def when_imported(name: str, then: str) -> None:
    """Imports the module ``then`` as soon as the module ``name`` is imported, or now if it is."""
    if name not in sys.modules:
        if not any(isinstance(finder, _Finder) and finder.waits_for(name, then) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name, then))
        # Another thread may have looked for it just before: wait as an import statement does, till it is imported.
        with contextlib.suppress(AttributeError):  # private to CPython, from 3.3 on
            importlib._bootstrap._lock_unlock_module(name)  # type: ignore[attr-defined]
    if name in sys.modules:
        importlib.import_module(then)
