r"""Photographs in VOC's form with the small frozen networks of the package.

prosam train --config photos --config.data.root=VOC2012 --workdir runs/photos
"""

BASE = "shapes"


def get_config() -> dict:
    """The settings that differ from those of `shapes`."""
    return {"data": {"name": "pascal"}}
