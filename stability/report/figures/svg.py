"""Conversion of a figure to SVG markup for a page with other figures: compact, scalable, recolorable, reproducible."""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

from matplotlib.figure import Figure

from stability.report import style

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
GEOMETRY = ("d", "x", "y", "width", "height", "points")

LONG = 120
"""Length of a path in characters from which its coordinates are rounded more coarsely."""

ElementTree.register_namespace("", SVG)


def svg(figure: Figure, prefix: str, *, label: str = "", themed: bool = False) -> str:
    """Return a figure as one ``<svg role="img" viewBox=...>`` element without a size; equal figures give equal bytes.

    Args:
        figure: The figure.
        prefix: The start of every id in the markup.
        label: The aria-label of the element.
        themed: Leave colors and font to the page, whose colors `style.theme_css` defines.
    """
    root = ElementTree.fromstring(_savefig(figure))
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    # Matplotlib's style sheet selects "*", which would apply to the whole page.
    for parent in root.findall(f"{{{SVG}}}defs"):
        if parent.find(f"{{{SVG}}}style") is not None:
            root.remove(parent)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    _rename(root, prefix)
    for element in root.iter():
        element.tail = None
        if element.tag != f"{{{SVG}}}text":
            element.text = None
        for name in GEOMETRY:
            if name in element.attrib:
                element.set(name, _shortened(name, element.attrib[name]))
        if "style" in element.attrib:
            declared = element.attrib["style"].replace(": ", ":").replace("; ", ";")
            element.set("style", _themed(declared) if themed else declared)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    _flatten(root)
    _classify(root, prefix)
    attributes = {"role": "img", **({"aria-label": label} if label else {}), "style": "stroke-linejoin:round"}
    root.attrib.update(attributes)
    return ElementTree.tostring(root, encoding="unicode")


def _savefig(figure: Figure) -> str:
    file = io.StringIO()
    with style.styled(), warnings.catch_warnings():
        # Text stays text, so the reader's font supplies the glyphs that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _flatten(parent: ElementTree.Element) -> None:
    """Replace groups without attributes by their children, and drop invisible elements."""
    kept: list[ElementTree.Element] = []
    for child in list(parent):
        _flatten(child)
        if child.tag == f"{{{SVG}}}g" and not child.attrib:
            kept += list(child)
        elif child.get("style") != "fill:none":
            kept.append(child)
    parent[:] = kept


def _classify(root: ElementTree.Element, prefix: str) -> None:
    """Declare each style once, as a class, instead of on every element."""
    classes: dict[str, str] = {}
    for element in root.iter():
        if declared := element.attrib.pop("style", None):
            element.set("class", classes.setdefault(declared, f"{prefix}-s{len(classes) + 1}"))
    sheet = ElementTree.Element(f"{{{SVG}}}style")
    sheet.text = "".join(f".{name}{{{declared}}}" for declared, name in classes.items())
    root.insert(0, sheet)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Number the ids that are referenced, in order, and drop the others."""
    used = {name for element in root.iter() for value in element.attrib.values() for name in _references(value)}
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


def _shortened(name: str, geometry: str) -> str:
    """Round geometry: short shapes such as markers to two decimals, long ones to one, paths with relative points."""
    if len(geometry) < LONG:
        return _rounded(geometry, 2)
    return relative_path(geometry) if name == "d" and not set("CQAHVST") & set(geometry) else _rounded(geometry, 1)


def relative_path(path: str) -> str:
    """Return a path of straight lines with relative points, rounded to a tenth without accumulated error.

    >>> relative_path("M 10.04 20 L 12.51 19.52 L 12.53 19.49 L 13 20 z M 1 1 L 2 1.26")
    'M10 20l2.5-.5 .5.5zM1 1l1 .3'
    """
    parts, position = [""], (0, 0)
    for command, x, y in re.findall(r"([MLz])\s*(?:(-?[\d.]+(?:e-?\d+)?)\s+(-?[\d.]+(?:e-?\d+)?))?", path):
        if command == "z":
            parts.append("z")
            continue
        target = round(10 * float(x)), round(10 * float(y))
        if command == "M":
            parts.append("M" + pair_of_tenths(*target))
        elif target != position:
            joined = " " if parts[-1][0] in "l " else "l"
            parts.append(joined + pair_of_tenths(target[0] - position[0], target[1] - position[1]))
        position = target
    return "".join(parts).replace(" -", "-")


def pair_of_tenths(x: int, y: int) -> str:
    """Return two numbers, given in tenths, in as few characters as SVG permits."""
    first, second = (f"{n / 10:g}".replace("0.", ".") if abs(n) < 10 else f"{n / 10:g}" for n in (x, y))
    joined = second.startswith("-") or (second.startswith(".") and "." in first)
    return first + second if joined else f"{first} {second}"


def _rounded(geometry: str, digits: int) -> str:
    r"""Return coordinates rounded to *digits* decimals, with minimal white space.

    >>> _rounded("M 10.123456 20.5 \nL 3.999 1e-05 \n", 1)
    'M10.1 20.5L4 0'
    """
    short = re.sub(r"-?\d+\.?\d*(e[-+]?\d+)?", lambda match: f"{round(float(match[0]), digits) + 0.0:g}", geometry)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(short.split()))


def _themed(declared: str) -> str:
    """Replace the colors of a style by variables of the page, and drop its font."""
    roles = {color: role for role, color in style.LIGHT.items()}
    declared = re.sub(
        r"#[0-9a-f]{6}",
        lambda match: f"var(--figure-{roles[match[0]]},{match[0]})" if match[0] in roles else match[0],
        declared,
    )
    return re.sub(r"font-family:[^;]*;?", "", declared)
