"""Tables that the paper does not have, made as its own are (`comparison.reproduce`)."""

from prosam_jax.comparison.methods import Scoring
from prosam_jax.comparison.paper import (
    FOLDS,
    GAUSSIAN,
    STUDENT_T,
    TITLES,
    VRP,
    Row,
    Table,
)
from prosam_jax.config import ANNOTATIONS

METHODS = (VRP, GAUSSIAN, STUDENT_T)

_NO_VALUES: dict[int, float | None] = {fold: None for fold in FOLDS}


def _trained_with(annotation: str, method: str) -> Row:
    below = None if method == VRP else (annotation, TITLES[VRP])
    labels = annotation, TITLES[method]
    return Row(labels, "pascal", method, _NO_VALUES, annotation=annotation, below=below)


def _shown(annotation: str, method: str, trained_with: str) -> Row:
    """Also how much better training with masks is than with the annotation that is shown."""
    labels = annotation, TITLES[method], trained_with
    if trained_with == annotation:
        return Row(labels, "pascal", method, _NO_VALUES, annotation=annotation)
    changes = ("data.annotation", annotation), ("eval.controls", False)
    scoring, below = Scoring(f"with_{annotation}", changes), (*labels[:2], annotation)
    return Row(labels, "pascal", method, _NO_VALUES, scoring=scoring, below=below)


TABLES = {
    table.name: table
    for table in (
        Table(
            "methods",
            "All methods, by annotation",
            ("annotation", "method"),
            tuple(_trained_with(x, method) for x in ANNOTATIONS for method in METHODS),
        ),
        Table(
            "shown",
            "Trained with masks, shown another annotation",
            ("shown", "method", "trained with"),
            tuple(
                _shown(x, method, trained_with)
                for x in ANNOTATIONS
                if x != "mask"
                for method in METHODS
                for trained_with in (x, "mask")
            ),
        ),
    )
}
