r"""Photographs in VOC's form, with the small networks of the package: a trial, no result to quote.

    prosam train --config photos --config.data.root=VOCdevkit/VOC2012 --config.data.fold=0 \
        --config.data.annotation=mask --workdir runs/photos0

Needs no GPU and no weights. The frozen networks know generated shapes only and see the photographs
at 128 x 128, so scores show that everything works, and nothing about the method.
"""

BASE = "shapes"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"data": {"name": "pascal"}}
