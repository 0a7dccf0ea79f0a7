"""Loads a user's loss or encoders from one file, which is read once and executed here and in the workers.

Nothing else that the suite loads can execute code. The digest of a file's source is part of the identity of the runs
that use what it defines.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stability.check import validate_loss
from stability.encoders import encoder
from stability.losses import loss
from stability.registry import InputError, Registry, Variant, nearest

CATALOGUES: dict[str, Registry] = {"loss": loss, "encoder": encoder}
"""The registries that a file may add to, by the kind that the command line names."""

READ = ("image", "text", "extra_modalities", "any")
"""Allowed values of an encoder's modality."""


@dataclass(frozen=True)
class Plugin:
    """A file with losses or encoders.

    Attributes:
        path: The path as the user gave it.
        name: The requested variant; "" for the only one.
        source: The text of the file.
        kind: ``loss`` or ``encoder``.
    """

    path: str
    name: str
    source: str
    kind: str = "loss"

    @property
    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def find_loss(spec: str) -> tuple[Variant, tuple[Plugin, ...]]:
    """Return the loss that ``FILE.py``, ``FILE.py:NAME`` or the name of a registered loss specifies, and its plugins.

    Raises `InputError` as `load_plugin` does, and if there is neither such a file nor such a loss.
    """
    if spec in loss:
        return loss[spec], ()
    if ".py" not in spec:
        raise InputError(f"{spec}: is neither a file FILE.py nor a known loss{nearest(spec, loss)}")
    plugin = read_plugin(spec)
    return load_plugin(plugin), (plugin,)


def load_encoders(specs: Sequence[str]) -> tuple[Plugin, ...]:
    """Load the encoders of each ``FILE.py`` or ``FILE.py:NAME``, so that studies can name them; return the plugins."""
    plugins = tuple(read_plugin(spec, "encoder") for spec in specs)
    load_plugins(plugins)
    return plugins


def refuse_unused(plugins: Iterable[Plugin], used: Iterable[str]) -> None:
    """Raise `InputError` if none of the encoders of a file is among the names that a study *used*."""
    names = {*used}
    for plugin in plugins:
        variants = _variants_of(encoder, plugin)
        if not names & ({plugin.name} if plugin.name else {*variants}):
            requested = plugin.name or min(variants)
            raise InputError(
                f'--encoder {plugin.path}: the study has no tower {requested!r}; write image = "{requested}" (or text, '
                "or extra_modalities) under its [model]"
            )


def read_plugin(spec: str, kind: str = "loss") -> Plugin:
    """Return the plugin that ``FILE.py`` or ``FILE.py:NAME`` specifies, without executing the file."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = spec, ""
    try:
        return Plugin(path, name, Path(path).read_text(encoding="utf-8-sig"), kind)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error


def load_plugin(plugin: Plugin) -> Variant:
    """Execute the file, register all variants that it defines, and return the requested one.

    If no name was requested and the file defines several encoders, the first by name is returned, since a study names
    those it uses. Loading the same file again changes nothing.

    Raises:
        InputError: The file cannot be executed or has no such variant, or a loss cannot be called or does not return
            one number.
    """
    module = types.ModuleType(_module_name(plugin))
    module.__file__ = plugin.path
    # Some decorators of the standard library look up the module of a function in sys.modules.
    sys.modules[module.__name__] = module
    _run(plugin, module)
    for registry in CATALOGUES.values():
        for name in _variants_of(registry, plugin):
            registry.annotate(name, source=plugin.digest)
    kind, variants = plugin.kind, _variants_of(CATALOGUES[plugin.kind], plugin)
    if not variants:
        raise InputError(f"{plugin.path}: defines no {kind}; decorate a function with @stability.{kind}(...)")
    if plugin.name and plugin.name not in variants:
        raise InputError(f"{plugin.path}: defines no {kind} {plugin.name!r}{nearest(plugin.name, variants)}")
    if not plugin.name and len(variants) > 1 and kind == "loss":
        raise InputError(f"{plugin.path}: defines several losses; name one, as {plugin.path}:{min(variants)}")
    try:
        for variant in [variants[plugin.name]] if plugin.name else variants.values():
            _check_usable(variant)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error
    return variants[plugin.name or min(variants)]


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Load all *plugins*; a worker does so before its first group."""
    for plugin in plugins:
        load_plugin(plugin)


def _check_usable(variant: Variant) -> None:
    """Raise `InputError` if a loss is invalid, or an encoder has an unknown modality or an option without a default.

    The outputs of an encoder are checked later, when the study says which modality it reads.
    """
    if variant.kind == "loss":
        validate_loss(variant)
        return
    if (modality := variant.traits.modality) not in READ:
        raise InputError(f"encoder {variant.name!r}: modality={modality!r}; allowed: {', '.join(READ)}")
    for name, parameter in variant.options.items():
        if parameter.default is parameter.empty:
            raise InputError(f"encoder {variant.name!r}: option {name!r} has no default; give it one")


def _module_name(plugin: Plugin) -> str:
    return f"stability_plugin_{plugin.digest}"


def _variants_of(registry: Registry, plugin: Plugin) -> dict[str, Variant]:
    return registry.defined_in(_module_name(plugin))


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
        raise InputError(f"{plugin.path}: {_line_prefix(error, plugin.path)}{type(error).__name__}: {error}") from error


def _line_prefix(error: BaseException, path: str) -> str:
    """Return "line N: " for the last line of the file in the traceback, or "" if the file is not in it."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
