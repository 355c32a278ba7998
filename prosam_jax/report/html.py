"""Self-contained HTML pages: rendering of templates, with pictures and figures inlined."""

import base64
import io
import re
from typing import Any

import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("prosam_jax.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Renders a template of this folder, such as "comparison.html.jinja"; plain text is escaped."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(image: Float[np.ndarray, "h w 3"]) -> str:
    """A data URI for an `<img>`, from an image with values in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def inline_svg(figure: Figure) -> Markup:
    """A figure as an `<svg>` element with text as text and without background.

    Black text of the figure gets no colour, so it takes the page's `fill`.
    """
    buffer = io.StringIO()
    # Without a salt, the ids of its elements would differ each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prosam_jax"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    element = buffer.getvalue().partition("<svg")[2]
    return Markup("<svg" + re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", element).rstrip())
