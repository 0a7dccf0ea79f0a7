"""Loads a user's losses, encoders or optimizers from one file, which is read once and executed here and in the workers.

Nothing else that the suite loads can execute code. The digest of a file's source is part of the identity of the runs
that use what it defines.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stability.check import validate_loss
from stability.encoders import encoder
from stability.losses import loss
from stability.optimizers import optimizer
from stability.optimizers.validation import validate_optimizer
from stability.registry import InputError, Registry, Variant, nearest

CATALOGUES: dict[str, Registry] = {"loss": loss, "encoder": encoder, "optimizer": optimizer}
"""The registries that a file may add to, by the kind that the command line names."""

CHECKED = ("loss", "optimizer")
"""What `stability check` knows."""

UNUSED = {
    "encoder": ('the study has no tower {0!r}; write image = "{0}" (or text, or extra_modalities) under its [model]'),
    "optimizer": (
        'the study trains with no optimizer {0!r}; write optimizer = "{0}" under its [train], or train = '
        '{{ optimizer = "{0}" }} in an arm'
    ),
}
"""Why a file that was passed cannot be meant, by kind, with the name of a variant."""

READ = ("image", "text", "extra_modalities", "any")
"""Allowed values of an encoder's modality."""


@dataclass(frozen=True)
class Plugin:
    """A file with losses, encoders or optimizers.

    Attributes:
        path: The path as the user gave it.
        name: The requested variant; "" for the only one.
        source: The text of the file.
        kind: ``loss``, ``encoder`` or ``optimizer``: what is wanted of it.
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


def find_checked(spec: str) -> tuple[Variant, ...]:
    """Return the losses and optimizers that ``FILE.py``, ``FILE.py:NAME`` or the name of a registered one specifies.

    Raises `InputError` as `load_plugin` does, and if there is neither such a file nor such a name.
    """
    registries = [CATALOGUES[kind] for kind in CHECKED]
    if found := tuple(registry[spec] for registry in registries if spec in registry):
        return found
    if ".py" not in spec:
        known = itertools.chain(*registries)
        raise InputError(f"{spec}: is neither a file FILE.py nor a known loss or optimizer{nearest(spec, known)}")
    plugin = read_plugin(spec)
    _execute(plugin)
    defined = [variant for registry in registries for variant in _variants_of(registry, plugin).values()]
    if not defined:
        decorators = " or ".join(f"@stability.{kind}(...)" for kind in CHECKED)
        raise InputError(f"{plugin.path}: defines no loss and no optimizer; decorate a function with {decorators}")
    chosen = tuple(variant for variant in defined if plugin.name in ("", variant.name))
    if not chosen:
        names = [variant.name for variant in defined]
        raise InputError(f"{plugin.path}: defines no loss or optimizer {plugin.name!r}{nearest(plugin.name, names)}")
    _check_all(plugin, chosen)
    return chosen


def load_named(kind: str, specs: Sequence[str]) -> tuple[Plugin, ...]:
    """Load each ``FILE.py`` or ``FILE.py:NAME`` of one kind, so that studies can name its variants.

    Args:
        kind: ``encoder`` or ``optimizer``.
        specs: the files.

    Returns:
        The plugins.
    """
    plugins = tuple(read_plugin(spec, kind) for spec in specs)
    load_plugins(plugins)
    return plugins


def load_encoders(specs: Sequence[str]) -> tuple[Plugin, ...]:
    """Load the encoders of each ``FILE.py`` or ``FILE.py:NAME``, so that studies can name them; return the plugins."""
    return load_named("encoder", specs)


def load_optimizers(specs: Sequence[str]) -> tuple[Plugin, ...]:
    """Load the optimizers of each ``FILE.py`` or ``FILE.py:NAME`` for studies to name; return the plugins."""
    return load_named("optimizer", specs)


def refuse_unused(plugins: Iterable[Plugin], used: Mapping[str, Iterable[str]]) -> None:
    """Raise `InputError` if a study uses nothing of a file with encoders or optimizers.

    Args:
        plugins: the files.
        used: the names that the study uses, by kind.
    """
    for plugin in plugins:
        variants = _variants_of(CATALOGUES[plugin.kind], plugin)
        if not {*used[plugin.kind]} & ({plugin.name} if plugin.name else {*variants}):
            requested = plugin.name or min(variants)
            raise InputError(f"--{plugin.kind} {plugin.path}: {UNUSED[plugin.kind].format(requested)}")


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

    If no name was requested and the file defines several encoders or optimizers, the first by name is returned, since a
    study names those it uses. Loading the same file again changes nothing.

    Raises:
        InputError: The file cannot be executed or has no such variant, a loss cannot be called or does not return
            one number, or an optimizer cannot be called or returns no direction.
    """
    _execute(plugin)
    kind, variants = plugin.kind, _variants_of(CATALOGUES[plugin.kind], plugin)
    if not variants:
        raise InputError(f"{plugin.path}: defines no {kind}; decorate a function with @stability.{kind}(...)")
    if plugin.name and plugin.name not in variants:
        raise InputError(f"{plugin.path}: defines no {kind} {plugin.name!r}{nearest(plugin.name, variants)}")
    if not plugin.name and len(variants) > 1 and kind == "loss":
        raise InputError(f"{plugin.path}: defines several losses; name one, as {plugin.path}:{min(variants)}")
    _check_all(plugin, [variants[plugin.name]] if plugin.name else variants.values())
    return variants[plugin.name or min(variants)]


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Load all *plugins*; a worker does so before its first group."""
    for plugin in plugins:
        load_plugin(plugin)


def _check_all(plugin: Plugin, variants: Iterable[Variant]) -> None:
    """Raise `InputError`, with the path of the file, for the first of its variants that cannot be used."""
    try:
        for variant in variants:
            _check_usable(variant)
    except InputError as error:
        raise InputError(f"{plugin.path}: {error}") from error


def _check_usable(variant: Variant) -> None:
    """Raise `InputError` if a loss or an optimizer is invalid, or an encoder by its declaration.

    An encoder may have an unknown modality, or an option without a default.

    The outputs of an encoder are checked later, when the study says which modality it reads.
    """
    if variant.kind in CHECKED:
        (validate_loss if variant.kind == "loss" else validate_optimizer)(variant)
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


def _execute(plugin: Plugin) -> None:
    """Execute the file, which registers its variants, and note its digest as their source."""
    module = types.ModuleType(_module_name(plugin))
    module.__file__ = plugin.path
    # Some decorators of the standard library look up the module of a function in sys.modules.
    sys.modules[module.__name__] = module
    _run(plugin, module)
    for registry in CATALOGUES.values():
        for name in _variants_of(registry, plugin):
            registry.annotate(name, source=plugin.digest)


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
