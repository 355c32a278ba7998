"""Pages that need nothing but themselves: templates of this folder, pictures and figures inside."""

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
    """The text of a template, such as "comparison.html.jinja"; what is no markup is escaped."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(image: Float[np.ndarray, "h w 3"]) -> str:
    """An image with values in [0, 1] as the address of an `<img>` that holds its own data."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def inline_svg(figure: Figure) -> Markup:
    """A figure as an `<svg>` element without background, whose text is text.

    Text that the figure leaves black has no colour of its own: it takes the page's `fill`.
    """
    buffer = io.StringIO()
    # Without a salt the ids of its parts would be others each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prosam_jax"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    element = buffer.getvalue().partition("<svg")[2]
    return Markup("<svg" + re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", element).rstrip())
