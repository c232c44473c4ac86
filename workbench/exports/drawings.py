"""The figures of a page as files: each drawing as SVG, and as PNG at twice its size."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from bs4 import Tag

from workbench.exports.markdown import tag

FOLDER = "images"
SCALE = 2
_NAMES = """
altGlyph clipPath feBlend feColorMatrix feComponentTransfer feComposite feConvolveMatrix
feDiffuseLighting feDisplacementMap feDistantLight feDropShadow feFlood feFuncA feFuncB feFuncG
feFuncR feGaussianBlur feImage feMerge feMergeNode feMorphology feOffset fePointLight
feSpecularLighting feSpotLight feTile feTurbulence foreignObject linearGradient radialGradient
textPath baseFrequency clipPathUnits diffuseConstant edgeMode filterUnits gradientTransform
gradientUnits kernelMatrix kernelUnitLength lengthAdjust limitingConeAngle markerHeight markerUnits
markerWidth maskContentUnits maskUnits numOctaves pathLength patternContentUnits patternTransform
patternUnits pointsAtX pointsAtY pointsAtZ preserveAlpha preserveAspectRatio primitiveUnits refX
refY specularConstant specularExponent spreadMethod startOffset stdDeviation stitchTiles
surfaceScale tableValues targetX targetY textLength viewBox xChannelSelector yChannelSelector
"""
_CASES = {name.lower(): name for name in _NAMES.split()}
"""HTML has no upper case in names and SVG has: the list of the HTML standard, 13.2.6.5."""
_INTERACTIVE = "This figure is interactive. Open the page (HTML) or the notebook to see it."
_MOST_LETTERS = 40
_LONG_ALT = 300
_GATES = re.compile(
    r"^(Use [a-z ]+ with caution|[A-Z][a-z ]+ are (not valid|rough) \([a-z ]+\)): [^.]*\. "
)
"""What a figure says first if a gate failed."""


def save_drawings(page: Tag, folder: Path) -> None:
    """Write the figures of a page into `folder/images`; an `img` and a link take their place.

    Names count from 01 in the order of the page. Images of an earlier page are deleted. A figure
    that only a browser can draw becomes a sentence that says so.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for earlier in (folder / FOLDER).glob("[0-9][0-9]-*.*"):
        earlier.unlink()
    drawings = [image for image in page(["svg", "img"]) if image.find_parent("svg") is None]
    for number, drawing in enumerate(drawings, 1):
        alt = str(drawing.get("aria-label") or drawing.get("alt") or "A figure.")
        name = f"{FOLDER}/{number:02}-{_slug(alt)}"
        if drawing.name == "svg":
            svg = svg_text(drawing)
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
            (folder / f"{name}.png").write_bytes(png_of(svg))
            shown = f"{name}.png"
        else:
            head, _, data = str(drawing.get("src", "")).partition(";base64,")
            if not data:  # the page has taken its address away
                drawing.replace_with(tag("em", alt))
                continue
            kind = re.sub(r"\W.*", "", head.rpartition("/")[2])
            shown = f"{name}.{kind}"
            (folder / shown).write_bytes(base64.b64decode(data))
        below = drawing.find_parent("figure")
        drawing.replace_with(tag("img", src=shown, alt=_short(alt)))
        if below is not None and shown.endswith(".png") and drawing.name == "svg":
            caption = below.find("figcaption") or tag("figcaption")
            caption.extend([" (", tag("a", "SVG", href=f"{name}.svg"), ")"])
            below.append(caption)
    for figure in page("figure"):
        if figure.find("img") is None:
            figure.replace_with(tag("p", _INTERACTIVE))


def svg_text(drawing: Tag) -> str:
    """A drawing of a page as the text of an SVG file of its own."""
    for node in (drawing, *drawing(True)):
        node.name = _CASES.get(node.name, node.name)
        node.attrs = {_CASES.get(name, name): value for name, value in node.attrs.items()}
    drawing["xmlns"] = "http://www.w3.org/2000/svg"
    drawing["xmlns:xlink"] = "http://www.w3.org/1999/xlink"
    return drawing.decode(formatter="minimal") + "\n"


def png_of(svg: str) -> bytes:
    """A drawing as PNG at twice its size, in a font that is the same on every machine."""
    from matplotlib import get_data_path
    from resvg_py import svg_to_bytes

    fonts = sorted(Path(get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf"))
    return svg_to_bytes(
        svg_string=svg,
        zoom=SCALE,
        background="white",
        skip_system_fonts=True,
        font_files=[str(font) for font in fonts],
        font_family="DejaVu Sans",
        sans_serif_family="DejaVu Sans",
    )


def _short(alt: str) -> str:
    """The beginning of a long description, so that the Markdown stays readable as text."""
    if len(alt) <= _LONG_ALT:
        return alt
    return f"{alt[:_LONG_ALT].rpartition(' ')[0]} ... The tables have all numbers."


def _slug(alt: str) -> str:
    """A file's name from a figure's first sentence that is not about gates."""
    alt = _GATES.sub("", alt)
    words = re.sub(r"[^a-z0-9]+", "-", re.split(r"[.,] ", alt)[0].lower()).strip("-")
    return words[:_MOST_LETTERS].rpartition("-")[0] if len(words) > _MOST_LETTERS else words
