"""A stranger's loss or encoder: one file that its user names, read once, run here and in the workers.

Nothing else that the suite loads can run code. The digest of a file's source is part of the identity of the runs that
use what it defines.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stability.check import validate_loss
from stability.encoders import encoder, reads
from stability.losses import loss
from stability.registry import InputError, Registry, Variant, nearest

CATALOGUES: dict[str, Registry] = {"loss": loss, "encoder": encoder}
"""What a file may add, by the kind that the command line names it as."""

READ = ("image", "text", "extra_modalities", "any")
"""What an encoder may declare to read."""


@dataclass(frozen=True)
class Plugin:
    """A file with losses or encoders: its path as named, which one is meant (empty: its only one), source and kind."""

    path: str
    name: str
    source: str
    kind: str = "loss"

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


def load_encoders(named: Sequence[str]) -> tuple[Plugin, ...]:
    """Load the encoders of each ``FILE.py`` or ``FILE.py:NAME``, for studies that name them, and return the plugins."""
    plugins = tuple(read_plugin(each, "encoder") for each in named)
    load_plugins(plugins)
    return plugins


def refuse_unused(plugins: Iterable[Plugin], used: Iterable[str]) -> None:
    """Raise `InputError` for a file with encoders none of which is among the names that a study *used*."""
    names = {*used}
    for plugin in plugins:
        made = _made(encoder, plugin)
        if not names & ({plugin.name} if plugin.name else {*made}):
            asked = plugin.name or min(made)
            raise InputError(
                f'--encoder {plugin.path}: the study has no tower {asked!r}; write image = "{asked}" (or text, or '
                "further) under its [model]"
            )


def read_plugin(named: str, kind: str = "loss") -> Plugin:
    """Return the plugin that ``FILE.py`` or ``FILE.py:NAME`` names. Nothing is run yet."""
    path, colon, name = named.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = named, ""
    try:
        return Plugin(path, name, Path(path).read_text(encoding="utf-8-sig"), kind)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error


def load_plugin(plugin: Plugin) -> Variant:
    """Run the file and return the variant that is meant, registered under its name with all others that it defines.

    Of several encoders the first by name is returned: a study names those it uses. Raises `InputError` with one
    sentence if the file cannot be run, has no such variant, or a loss cannot be called or is not one number. Loading
    the same file again changes nothing.
    """
    module = types.ModuleType(_module(plugin))
    module.__file__ = plugin.path
    # Some decorators of the standard library look a function's module up by its name.
    sys.modules[module.__name__] = module
    _run(plugin, module)
    for registry in CATALOGUES.values():
        for name in _made(registry, plugin):
            registry.annotate(name, source=plugin.digest)
    kind, made = plugin.kind, _made(CATALOGUES[plugin.kind], plugin)
    if not made:
        raise InputError(f"{plugin.path}: defines no {kind}; decorate a function with @stability.{kind}(...)")
    if plugin.name and plugin.name not in made:
        raise InputError(f"{plugin.path}: defines no {kind} {plugin.name!r}{nearest(plugin.name, made)}")
    if not plugin.name and len(made) > 1 and kind == "loss":
        raise InputError(f"{plugin.path}: defines several losses; name one, as {plugin.path}:{min(made)}")
    try:
        for variant in [made[plugin.name]] if plugin.name else made.values():
            _admit(variant)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error
    return made[plugin.name or min(made)]


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Load several plugins, as a worker does before its first group."""
    for plugin in plugins:
        load_plugin(plugin)


def _admit(variant: Variant) -> None:
    """Raise `InputError` on what cannot be used at all; what a tower does is tried once its modality is known."""
    if variant.kind == "loss":
        validate_loss(variant)
        return
    if reads(variant) not in READ:
        raise InputError(f"encoder {variant.name!r}: modality={reads(variant)!r}; allowed: {', '.join(READ)}")
    for name, parameter in variant.options.items():
        if parameter.default is parameter.empty:
            raise InputError(f"encoder {variant.name!r}: option {name!r} has no default; give it one")


def _module(plugin: Plugin) -> str:
    return f"stability_plugin_{plugin.digest}"


def _made(registry: Registry, plugin: Plugin) -> dict[str, Variant]:
    return registry.defined_in(_module(plugin))


def _run(plugin: Plugin, module: types.ModuleType) -> None:
    try:
        code = compile(plugin.source, plugin.path, "exec")
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"{plugin.path}: {line}{getattr(error, 'msg', error)}") from error
    try:
        exec(code, module.__dict__)  # noqa: S102 (the one file that the user named to be run)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{plugin.path}: {_place(error, plugin.path)}{type(error).__name__}: {error}") from error


def _place(error: BaseException, path: str) -> str:
    """Return the last line of the file that the error passed through."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
