"""A figure as SVG markup that can live in a page beside others: small, scalable, recoloured, the same each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from xml.etree import ElementTree

from matplotlib.figure import Figure

from stability.report import style

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
GEOMETRY = ("d", "x", "y", "width", "height", "points")

ElementTree.register_namespace("", SVG)


def svg(figure: Figure, prefix: str, dark: bool = False, *, label: str = "", themed: bool = False) -> str:
    """Return a figure as one ``<svg role="img" viewBox=...>`` element without size, every id starting with *prefix*.

    *label* becomes its aria-label. *dark* draws it for a dark page; *themed* leaves the choice to the page, whose
    `style.theme_css` defines the colours, and takes its font. Equal figures give equal bytes.
    """
    root = ElementTree.fromstring(_written(figure))
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    # Matplotlib styles "*", which would reach beyond the figure into the page.
    for parent in root.findall(f"{{{SVG}}}defs"):
        if parent.find(f"{{{SVG}}}style") is not None:
            root.remove(parent)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    _rename(root, prefix)
    recolour = _recolour(dark, themed)
    for element in root.iter():
        element.tail = None
        if element.tag != f"{{{SVG}}}text":
            element.text = None
        for name in GEOMETRY:
            if name in element.attrib:
                # Marker shapes are small, so they keep more digits than lines.
                element.set(name, _rounded(element.attrib[name], 2 if len(element.attrib[name]) < 600 else 1))
        if "style" in element.attrib:
            element.set("style", recolour(element.attrib["style"].replace(": ", ":").replace("; ", ";")))
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    _flatten(root)
    _classify(root, prefix)
    attributes = {"role": "img", **({"aria-label": label} if label else {}), "style": "stroke-linejoin:round"}
    root.attrib.update(attributes)
    return ElementTree.tostring(root, encoding="unicode")


def _written(figure: Figure) -> str:
    file = io.StringIO()
    with style.styled(), warnings.catch_warnings():
        # Text is written as text: the reader's font has the glyphs that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _flatten(parent: ElementTree.Element) -> None:
    """Replace groups that say nothing by what they hold, and drop what is invisible."""
    kept: list[ElementTree.Element] = []
    for child in list(parent):
        _flatten(child)
        if child.tag == f"{{{SVG}}}g" and not child.attrib:
            kept += list(child)
        elif child.get("style") != "fill:none":
            kept.append(child)
    parent[:] = kept


def _classify(root: ElementTree.Element, prefix: str) -> None:
    """Say each style once, as a class, instead of on every element."""
    classes: dict[str, str] = {}
    for element in root.iter():
        if declared := element.attrib.pop("style", None):
            element.set("class", classes.setdefault(declared, f"{prefix}-s{len(classes) + 1}"))
    sheet = ElementTree.Element(f"{{{SVG}}}style")
    sheet.text = "".join(f".{name}{{{declared}}}" for declared, name in classes.items())
    root.insert(0, sheet)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Number the ids that something refers to, in order, and drop the rest."""
    used = {found for element in root.iter() for value in element.attrib.values() for found in _references(value)}
    names: dict[str, str] = {}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            names[name] = f"{prefix}-{len(names) + 1}"
            element.set("id", names[name])
    for element in root.iter():
        if HREF in element.attrib:
            element.set("href", "#" + names[element.attrib.pop(HREF)[1:]])
        if "clip-path" in element.attrib:
            element.set("clip-path", f"url(#{names[element.attrib['clip-path'][5:-1]]})")


def _references(value: str) -> list[str]:
    return re.findall(r"^(?:url\()?#([^()]+)\)?$", value)


def _rounded(geometry: str, digits: int) -> str:
    """Return coordinates to so many digits after the point, with no more white space than they need.

    >>> _rounded("M 10.123456 20.5 \\nL 3.999 1e-05 \\n", 1)
    'M10.1 20.5L4 0'
    """
    short = re.sub(r"-?\d+\.?\d*(e[-+]?\d+)?", lambda found: f"{round(float(found[0]), digits) + 0.0:g}", geometry)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(short.split()))


def _recolour(dark: bool, themed: bool) -> Callable[[str], str]:
    if not dark and not themed:
        return lambda declared: declared
    shown: Mapping[str, str] = {
        light: f"var(--figure-{role},{light})" if themed else style.DARK[role] for role, light in style.LIGHT.items()
    }

    def recolour(declared: str) -> str:
        declared = re.sub(r"#[0-9a-f]{6}", lambda found: shown.get(found[0], found[0]), declared)
        return re.sub(r"font-family:[^;]*;?", "", declared) if themed else declared

    return recolour
