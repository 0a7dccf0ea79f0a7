"""Registries of variants: losses, encoders, probes and so on, each registered by decorating a function."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Self, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound="Traits")


class InputError(ValueError):
    """The user's input is wrong; the message is one plain sentence. The command line exits with 2."""


class UnknownNameError(InputError):
    """A name is not registered; `kind` says as what, for example ``loss``."""

    def __init__(self, sentence: str, kind: str = "") -> None:
        super().__init__(sentence)
        self.kind = kind


FORMER_NAMES = {
    "loss": "arms",
    "pairs": "train_pairs",
    "lr_factors": "lr_multipliers",
    "lr_factor": "lr_multiplier",
    "lr": "lr_multiplier",
    "matched": "budget",
    "scalar_lr": "scalar_lr_multiplier",
    "schedule": "lr_schedule",
    "stream": "rng_stream",
    "further": "extra_modalities",
    "locked": "frozen",
    "reprojected": "renormalized",
    "tolerate": "max_invalid_share",
    "words": "vocab_size",
    "length": "max_tokens",
    "tokens": "tokenizer",
    "over": "axis",
    "against": "against_measure",
    "scale": "transform",
    "late": "tail_mean",
    "area": "mean_after_warmup",
    "chance-log": "log_above_chance",
    "of-chance": "relative_to_chance",
    "sensitivity": "lr_sensitivity",
    "matched_noise": "matched_gradient_noise",
    "read": "load_results",
    "analyse": "analyze",
    "summarise": "summarize",
    "retain": "retain_graph",
    "replicas": "batched",
    "chunk": "chunk_size",
    "hessian_high": "hessian_max_eigenvalue",
    "hessian_low": "hessian_min_eigenvalue",
    "filter_sharpness_matched": "filter_sharpness_same_scale",
    "clipped": "grad_clipped_fraction",
    "duplicate_share": "false_negative_fraction",
}
"""Names that keys, options, measures and functions had before, and those that they have now."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence about an unknown name: the nearest known name, then all of them.

    >>> nearest("infonce", ["clip", "siglip"])
    ' (known: clip, siglip)'
    >>> nearest("siglp", ["clip", "siglip"])
    "; did you mean 'siglip'? (known: clip, siglip)"
    """
    names = sorted(known)
    former = FORMER_NAMES.get(name)
    close = [former] if former in names else difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names) or 'none'})"


def shortened(value: object) -> str:
    """Return the repr of a value for an error sentence, truncated to 60 characters.

    >>> shortened("digits"), len(shortened(list(range(100))))
    ("'digits'", 60)
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""Types of options in words, for error sentences."""


def snake_case(name: Any) -> Any:
    """Return a name with ``-`` replaced by ``_``; anything that is not a string is returned unchanged.

    >>> snake_case("gradient-noise"), snake_case(3)
    ('gradient_noise', 3)
    """
    return name.replace("-", "_") if isinstance(name, str) else name


@dataclass(frozen=True)
class Traits:
    """What a decorator declares about a variant; each registry has a subclass with the fields that it knows.

    Attributes:
        least: Lower bounds of options, by name.
        several: Options that also accept a list of values.
    """

    least: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    several: tuple[str, ...] = field(default=(), kw_only=True)

    @classmethod
    def declared(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return the traits with these *values*.

        Raises:
            InputError: A trait is unknown, or one without a default is missing.
        """
        known = {trait.name: trait for trait in fields(cls)}
        for name in values:
            if name not in known:
                raise InputError(f"{where} has no trait {name!r}{nearest(name, known)}")
        for name, trait in known.items():
            if name not in values and trait.default is trait.default_factory is MISSING:
                raise InputError(f"{where} does not declare the trait {name!r}")
        return cls(**values)


@dataclass(frozen=True)
class Variant(Generic[T]):
    """One entry of a registry.

    Attributes:
        kind: What the registry contains, such as ``loss``.
        name: The name under which it is registered.
        function: The decorated function.
        options: Its keyword-only parameters.
        traits: What the decorator declared.
        source: Of a variant from outside of this package: the digest of its file, or its package with the version.
        package: The installed package that provides it, with its version; empty for all others.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    options: Mapping[str, inspect.Parameter]
    traits: T
    source: str = ""
    package: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def check_options(self, options: Mapping[str, Any], where: str) -> None:
        """Raise `InputError` for an option that the function does not have or whose value is not allowed."""
        for key, value in options.items():
            if key not in self.options:
                hint = nearest(key, self.options)
                raise InputError(f"{where}.{key}: {self.kind} {self.name!r} has no such option{hint}")
            default = self.options[key].default
            several = key in self.traits.several
            values = value if several and isinstance(value, list) and value else [value]
            if default is not inspect.Parameter.empty and not all(_fits(item, default) for item in values):
                allowed = f"{KINDS.get(type(default), type(default).__name__)}, as {default!r}"
                allowed += ", or a list of them" * several
                raise InputError(f"{where}.{key}: got {shortened(value)}; allowed: {allowed}")
            least = self.traits.least.get(key)
            if least is not None and min(values) < least:
                raise InputError(f"{where}.{key}: got {value!r}; allowed: {least} or more")


def _fits(value: object, default: object) -> bool:
    if default is None or type(value) is type(default):
        return True
    return isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)


class Registry(Mapping[str, Variant[T]]):
    """The registry of one kind of variant, used as a decorator with or without traits.

    A variant's name is that of the function, without a trailing underscore (as in ``lambda_``); it can also be looked
    up with dashes for underscores. Installed packages add variants through entry points of
    the *group*, each under the variant's name; such a package is imported only when one of its variants is looked up.

    >>> @dataclass(frozen=True)
    ... class FruitTraits(Traits):
    ...     sour: bool = False
    >>> fruit = Registry("fruit", FruitTraits)
    >>> @fruit
    ... def red_apple(*, size: int = 3):
    ...     '''A red one.'''
    >>> @fruit(sour=True)
    ... def lemon(): ...
    >>> list(fruit), fruit["lemon"].traits.sour, fruit["red-apple"].summary
    (['red_apple', 'lemon'], True, 'A red one.')
    >>> fruit.get_or_explain("lemmon", "study.toml: fruit")
    Traceback (most recent call last):
    stability.registry.UnknownNameError: study.toml: fruit: unknown fruit 'lemmon'; did you mean 'lemon'? (known: lemon,
    red_apple)
    >>> @fruit(sower=True)
    ... def lime(): ...
    Traceback (most recent call last):
    stability.registry.InputError: fruit 'lime' has no trait 'sower'; did you mean 'sour'? (known: least, several, sour)
    """

    def __init__(self, kind: str, traits: type[T], group: str = "") -> None:
        self.kind = kind
        self.traits_type = traits
        self.group = group
        self._variants: dict[str, Variant[T]] = {}

    def __getitem__(self, name: str) -> Variant[T]:
        name = snake_case(name)
        if name not in self._variants and name in self.packaged:
            self._import(self.packaged[name])
        return self._variants[name]

    def __contains__(self, name: object) -> bool:
        name = snake_case(name)
        return name in self._variants or name in self.packaged

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._variants, *self.packaged)))

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    @property
    def packaged(self) -> dict[str, EntryPoint]:
        """Return the entry points through which installed packages add variants, by name; nothing is imported."""
        return {snake_case(point.name): point for point in entry_points(group=self.group)} if self.group else {}

    def _import(self, point: EntryPoint) -> None:
        """Import the package that provides a variant; its name and version become the variant's *source*."""
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        where = f"{self.kind} {point.name!r} of the package {package}"
        try:
            point.load()
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        except Exception as error:
            raise InputError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
        name = snake_case(point.name)
        if name not in self._variants:
            raise InputError(f"{where}: {point.value} does not define it; decorate it with @stability.{self.kind}")
        self.annotate(name, source=package, package=package)

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(self, /, *, name: str = "", **traits: Any) -> Callable[[F], F]: ...

    def __call__(self, function: Callable[..., Any] | None = None, /, *, name: str = "", **traits: Any) -> Any:
        """Register *function* and return it unchanged."""
        if function is None:
            return lambda decorated: self._add(decorated, name, traits)
        return self._add(function, name, traits)

    def _add(self, function: F, name: str, traits: dict[str, Any]) -> F:
        parameters = inspect.signature(function).parameters
        options = {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        name = snake_case(name or function.__name__.rstrip("_"))
        if name in self._variants and self._variants[name].function.__module__ != function.__module__:
            raise InputError(f"{self.kind} {name!r} exists already; give yours another name")
        declared = self.traits_type.declared(traits, f"{self.kind} {name!r}")
        self._variants[name] = Variant(self.kind, name, function, options, declared)
        return function

    def defined_in(self, module: str) -> dict[str, Variant[T]]:
        """Return the variants that the module with this name has registered, by name."""
        return {name: variant for name, variant in self._variants.items() if variant.function.__module__ == module}

    def annotate(self, name: str, *, source: str, package: str = "") -> None:
        """Set the source and the package of the variant called *name*."""
        self._variants[name] = replace(self._variants[name], source=source, package=package)

    def get_or_explain(self, name: str, where: str) -> Variant[T]:
        """Return the variant called *name*, or raise `UnknownNameError` with the nearest name."""
        if name not in self:
            raise UnknownNameError(f"{where}: unknown {self.kind} {name!r}{nearest(name, self)}", self.kind)
        return self[name]


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that a new file registers its variants without an import elsewhere."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")
