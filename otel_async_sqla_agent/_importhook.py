"""
Call back when a module has been imported.

Standard library only, and little of it: the finder stands in every process that the agent is armed in.
"""

from __future__ import annotations

import importlib
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Callback = Callable[[ModuleType], None]


class ImportHook:
    """
    A finder on `sys.meta_path` that finds nothing itself, but hears of the modules in its table.

    Args:
        callbacks: What to call with the module, by module name, once the module has been executed. Where it is
            imported already, the call is made at once. A callback must not raise: it would break the
            application's import.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self._callbacks = callbacks
        self._in_progress: set[tuple[int, str]] = set()

    def install(self) -> None:
        """
        Start to listen.
        """
        sys.meta_path.insert(0, self)
        for name, callback in self._callbacks.items():
            if name in sys.modules:
                # import_module waits while another thread is still executing the module.
                callback(importlib.import_module(name))

    def uninstall(self) -> None:
        """
        Leave `sys.meta_path`.
        """
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """
        Return the other finders' spec, with a loader that calls back; None for modules not in the table.
        """
        if name not in self._callbacks:
            return None
        # wrapt's import hook asks all finders again, this one too: the inner call stands back.
        key = (get_ident(), name)
        if key in self._in_progress:
            return None
        self._in_progress.add(key)
        try:
            spec = self._ask_others(name, path, target)
        finally:
            self._in_progress.discard(key)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _CallingLoader(spec.loader, self._callbacks[name])  # type: ignore[assignment]
        return spec

    def _ask_others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


class _CallingLoader:
    """
    Stand in for a module's loader until the module is about to be executed.
    """

    def __init__(self, loader: Any, callback: Callback) -> None:
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask before there is a loader
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """
        Let the real loader make the module.
        """
        create: Callable[[ModuleSpec], ModuleType | None] = self._loader.create_module
        return create(spec)

    def exec_module(self, module: ModuleType) -> None:
        """
        Put the real loader back, execute the module, call back.
        """
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback(module)
