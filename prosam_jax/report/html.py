"""Self-contained HTML pages: rendering of templates, with pictures and figures inlined."""

import base64
import io
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("prosam_jax.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

_SIDE = 256
"""Pixels of a side that a picture of a page has at most: twice what it is shown with."""


def render(template: str, **values: Any) -> str:
    """Renders a template of this folder, such as "comparison.html.jinja"; plain text is escaped."""
    return _TEMPLATES.get_template(template).render(values)


class Panel(NamedTuple):
    """A picture of a page: its data URI and its caption."""

    uri: str
    caption: str


def panel(image: Float[np.ndarray, "h w 3"], caption: str = "") -> Panel:
    """A picture from an image with values in [0, 1]; a large one is made smaller."""
    picture = Image.fromarray(np.round(image * 255).astype(np.uint8))
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return Panel(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", caption)


def inline_svg(figure: Figure, hints: Mapping[str, str] | None = None) -> Markup:
    """A figure as an `<svg>` element with text as text and without background.

    Black text of the figure gets no colour, so it takes the page's `fill`.

    Args:
        figure: The figure.
        hints: Words that a pointer over a part shows, by the part's gid.
    """
    buffer = io.StringIO()
    # Without a salt, the ids of its elements would differ each time.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prosam_jax"}),
        warnings.catch_warnings(),
    ):
        # Names may be in a script that this font has not; the reader's has.
        warnings.filterwarnings("ignore", "Glyph")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    element = buffer.getvalue().partition("<svg")[2]
    element = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", element).rstrip()
    for part, words in (hints or {}).items():
        element = element.replace(f'<g id="{part}">', f"<g><title>{escape(words)}</title>")
    return Markup("<svg" + element)
