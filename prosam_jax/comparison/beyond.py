"""Tables that the paper does not have, made as its own are (`comparison.reproduce`)."""

import dataclasses
from typing import Any

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


RECIPE = ("as the recipe",)


def _variant(label: str, variant: str, method: str = STUDENT_T, **settings: Any) -> Row:
    """A row that changes settings of the distribution, compared with the recipe."""
    changes = tuple((f"distribution.{name}", value) for name, value in settings.items())
    return Row(
        (label,), "pascal", method, _NO_VALUES, variant=variant, settings=changes, below=RECIPE
    )


_NOISE = (
    Row(RECIPE, "pascal", STUDENT_T, _NO_VALUES),
    *(_variant(f"K = {k}", f"k{k}", samples=k) for k in (1, 5, 10, 20)),
    *(_variant(f"nu = {nu:g}", f"nu{nu:g}", nu=nu) for nu in (1.0, 2.5, 10.0, 30.0)),
    Row(("nu = infinity: Gaussian",), "pascal", GAUSSIAN, _NO_VALUES, below=RECIPE),
    Row(("t3VAE's noise",), "pascal", "t3vae", _NO_VALUES, below=RECIPE),
    _variant("antithetic pairs", "antithetic", draws="antithetic"),
    _variant("stratified", "stratified", draws="stratified"),
    _variant("one delta for all prompts", "shared-delta", shared_delta=True),
    _variant("Eq. 13 in place of samples", "laplacian", objective="laplacian"),
)
"""Noise and objective; the recipe has K = 2, nu = 5 and independent noise."""


def _scales() -> tuple[Row, ...]:
    """Every row over VRP-SAM, since that is what a scale has to gain over."""
    relative = {"scale": "relative"}
    rows = (
        Row(RECIPE, "pascal", STUDENT_T, _NO_VALUES),
        *(_variant(f"from {s:g}", f"from{s:g}", init_scale=s) for s in (0.3, 1.0)),
        *(
            _variant(f"relative, from {s:g}", f"relative{s:g}", init_scale=s, **relative)
            for s in (0.1, 0.3, 1.0)
        ),
        *(
            _variant(f"fixed at {s:g}", f"fixed{s:g}", init_scale=s, scale="fixed")
            for s in (0.1, 0.3, 1.0)
        ),
        *(
            _variant(f"relative, at least {s:g}", f"floor{s:g}", min_scale=s, **relative)
            for s in (0.1, 0.3)
        ),
        *(
            _variant(
                f"relative, prior {s:g}", f"prior{s:g}", prior_weight=0.1, prior_scale=s, **relative
            )
            for s in (0.1, 0.3)
        ),
    )
    vrp = Row((TITLES[VRP],), "pascal", VRP, _NO_VALUES)
    return (vrp, *(dataclasses.replace(row, below=vrp.labels) for row in rows))


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
        Table("noise", "Noise and objective", ("training",), _NOISE),
        Table("scale", "What sigma is, and how it is kept", ("sigma",), _scales()),
    )
}
