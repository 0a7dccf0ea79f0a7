"""A stranger's loss: one file that its user names, read once, run here and in the workers.

Nothing else that the suite loads can run code. The digest of a plugin's source is part of the identity of its runs.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stability.check import admit
from stability.losses import loss
from stability.registry import InputError, Variant, nearest


@dataclass(frozen=True)
class Plugin:
    """A file with losses: its path as named, which loss is meant (empty: its only one), and its source."""

    path: str
    name: str
    source: str

    @property
    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def find_loss(named: str) -> tuple[Variant, tuple[Plugin, ...]]:
    """Return the loss that ``FILE.py``, ``FILE.py:NAME`` or a name of the catalogue means, and the plugins it needs.

    Raises `InputError` as `load_plugin` does, and where there is neither such a file nor such a loss.
    """
    if named in loss:
        return loss[named], ()
    if ".py" not in named:
        raise InputError(f"{named}: is neither a file FILE.py nor a known loss{nearest(named, loss)}")
    plugin = read_plugin(named)
    return load_plugin(plugin), (plugin,)


def read_plugin(named: str) -> Plugin:
    """Return the plugin that ``FILE.py`` or ``FILE.py:NAME`` names. Nothing is run yet."""
    path, colon, name = named.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = named, ""
    try:
        return Plugin(path, name, Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error


def load_plugin(plugin: Plugin) -> Variant:
    """Run the file and return its loss, registered under its name.

    Raises `InputError` with one sentence if the file cannot be run, has no such loss, or the loss cannot be called or
    is not one number. Loading the same file again changes nothing.
    """
    module = types.ModuleType(f"stability_plugin_{plugin.digest}")
    module.__file__ = plugin.path
    # Some decorators of the standard library look a function's module up by its name.
    sys.modules[module.__name__] = module
    _run(plugin, module)
    made = {name: variant for name, variant in loss.items() if variant.function.__module__ == module.__name__}
    if not made:
        raise InputError(f"{plugin.path}: defines no loss; decorate a function with @stability.loss(...)")
    if plugin.name and plugin.name not in made:
        raise InputError(f"{plugin.path}: defines no loss {plugin.name!r}{nearest(plugin.name, made)}")
    if not plugin.name and len(made) > 1:
        raise InputError(f"{plugin.path}: defines several losses; name one, as {plugin.path}:{min(made)}")
    variant = loss.annotate(plugin.name or min(made), source=plugin.digest)
    try:
        admit(variant)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error
    return variant


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Load several plugins, as a worker does before its first group."""
    for plugin in plugins:
        load_plugin(plugin)


def _run(plugin: Plugin, module: types.ModuleType) -> None:
    try:
        code = compile(plugin.source, plugin.path, "exec")
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise InputError(f"{plugin.path}: {line}{getattr(error, 'msg', error)}") from error
    try:
        exec(code, module.__dict__)  # noqa: S102 (the one file that the user named to be run)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error
    except Exception as error:
        raise InputError(f"{plugin.path}: {_place(error, plugin.path)}{type(error).__name__}: {error}") from error


def _place(error: Exception, path: str) -> str:
    """Return the last line of the file that the error passed through."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
