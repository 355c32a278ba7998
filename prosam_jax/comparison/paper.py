"""The tables of the paper (arXiv 2506.21835): what each row is, and the values it has there.

Values are mIoU in percent by fold, as printed. Some contradict each other: the means of points and
boxes with VRP-SAM in Table 1 are not those of their folds (39.59, 63.10 and 68.63 instead of 39.85,
63.35 and 68.75), and Tables 4 and 7 have 70.29 for fold 2 of ProSAM, where Tables 1, 2 and 9 have
70.09. The mean 72.04, which also Table 4 has, is that of 70.09. Table 3 (COCO to Pascal) has rows
here but no values: the text that this file was made from lacks them.

Table 6 calls its numbers rates, but the four of a column add up to 100, so they are shares of all
pixels; and with 64 to 78 percent "TPR" must be background, since the object of an episode covers
14, 24, 23 and 21 percent of its target on average over the test pictures of folds 0 to 3. Read here
as: TPR background left alone, TNR object found, FPR background taken for object, FNR object missed.
TNR + FNR is then what the truth covers, 12, 22, 20 and 19 percent, and the same for both methods,
as it must be on the same episodes. The standard rates are in every `results.json`.

Table 8 names neither its fold nor the number of samples. Its "mean prompt only" is fold 0's 75.26,
and 10 is the number of samples in training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from prosam_jax.comparison.methods import OWN, Scoring
from prosam_jax.evaluation import strategies
from prosam_jax.evaluation.metrics import COUNTS
from prosam_jax.evaluation.prediction import RESULT

Benchmark = Literal["coco", "pascal"]

FOLDS = (0, 1, 2, 3)

VRP, VRP_2LINEAR, GAUSSIAN, STUDENT_T = "vrp", "vrp_2linear", "gaussian", "student_t"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        labels: What is in its first columns.
        benchmark: What it is trained and tested on.
        method: `distribution.name`.
        values: The paper's value for each fold that the row has; None where it is not known.
        mean: The paper's mean; None if it has none.
        annotation: `data.annotation`.
        backbone: `backbone.name`; "" for the recipe's.
        variant: What tells its runs from the method's own in the names of their folders; "" for
            those.
        settings: What a variant's training changes, by dotted name.
        scored: What of an evaluation the row shows: `RESULT`, or the name of a strategy.
        share: For a share of all pixels instead of the mIoU, its place in `metrics.COUNTS`.
        scoring: How the run is scored, if not by its own settings.
        below: Labels of the row that this one is compared with, which is another method's.
    """

    labels: tuple[str, ...]
    benchmark: Benchmark
    method: str
    values: Mapping[int, float | None]
    mean: float | None = None
    annotation: str = "mask"
    backbone: str = ""
    variant: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    scored: str = RESULT
    share: int | None = None
    scoring: Scoring = OWN
    below: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Its number in the paper, or a name if it is not one of the paper's.
        title: What it shows.
        heads: Heads of the columns of `Row.labels`.
        rows: Its rows that this library can run.
        unit: What its values are.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "mIoU in percent"

    @property
    def stem(self) -> str:
        """The name of its files, without suffix."""
        return f"table{self.name}" if self.name.isdecimal() else self.name


TITLES = {
    VRP: "VRP-SAM",
    VRP_2LINEAR: "VRP-SAM + 2 linear",
    GAUSSIAN: "ProSAM with a Gaussian",
    STUDENT_T: "ProSAM",
}

BENCHMARKS: dict[Benchmark, str] = {"coco": "COCO-20i", "pascal": "Pascal-5i"}


def _row(
    labels: tuple[str, ...],
    benchmark: Benchmark,
    method: str,
    values: tuple[float | None, ...],
    **more: Any,
) -> Row:
    """A row with the values of all folds, and their mean where it is printed."""
    mean = values[len(FOLDS)] if len(values) > len(FOLDS) else None
    return Row(labels, benchmark, method, dict(zip(FOLDS, values, strict=False)), mean, **more)


_TABLE_1: dict[tuple[Benchmark, str, str], tuple[float, ...]] = {
    ("coco", VRP, "point"): (32.03, 39.36, 46.44, 40.52, 39.85),
    ("coco", VRP, "scribble"): (44.83, 48.22, 51.61, 47.66, 48.08),
    ("coco", VRP, "box"): (44.63, 49.2, 56.56, 49.34, 49.93),
    ("coco", VRP, "mask"): (47.02, 54.24, 59.91, 51.95, 53.28),
    ("coco", STUDENT_T, "point"): (33.32, 40.23, 47.82, 41.2, 40.64),
    ("coco", STUDENT_T, "scribble"): (47.37, 48.97, 53.44, 48.39, 49.54),
    ("coco", STUDENT_T, "box"): (45.39, 50.01, 57.92, 50.41, 50.93),
    ("coco", STUDENT_T, "mask"): (48.74, 55.55, 60.72, 53.49, 54.63),
    ("pascal", VRP, "point"): (63.69, 70.95, 63.22, 54.53, 63.35),
    ("pascal", VRP, "scribble"): (70.04, 74.67, 65.93, 59.12, 67.44),
    ("pascal", VRP, "box"): (71.3, 75.98, 65.95, 61.27, 68.75),
    ("pascal", VRP, "mask"): (74.01, 76.77, 69.46, 64.34, 71.14),
    ("pascal", STUDENT_T, "point"): (64.71, 72.11, 63.89, 55.64, 64.08),
    ("pascal", STUDENT_T, "scribble"): (71.16, 75.69, 66.31, 60.93, 68.52),
    ("pascal", STUDENT_T, "box"): (72.38, 76.81, 67.07, 62.76, 69.76),
    ("pascal", STUDENT_T, "mask"): (75.26, 77.57, 70.09, 65.22, 72.04),
}

_TABLE_6 = (  # what the paper calls it and it is read as; VRP-SAM's values and ProSAM's
    ("TPR", "background left alone", "tn",
     (78.14, 68.21, 65.88, 64.39), (78.47, 68.97, 66.97, 66.37)),
    ("TNR", "object found", "tp",
     (11.54, 19.89, 17.22, 16.67), (11.55, 19.91, 17.82, 16.74)),
    ("FPR", "background taken for object", "fp",
     (9.53, 10.25, 13.84, 16.12), (9.21, 9.5, 12.75, 14.13)),
    ("FNR", "object missed", "fn",
     (0.78, 1.64, 3.05, 2.82), (0.78, 1.62, 2.46, 2.75)),
)  # fmt: skip

_TABLE_8 = (
    ("mean prompt only", RESULT, 75.26),
    ("max of logit masks", strategies.MAX_LOGITS, 74.69),
    ("mean of logit masks", strategies.MEAN_LOGITS, 75.16),
    ("max of binary masks", strategies.MAX_BINARY, 74.67),
    ("mean of binary masks", strategies.MEAN_BINARY, 74.92),
    ("majority vote of binary masks", strategies.VOTE, 75.05),
)

_SAMPLED = Scoring("strategies", (("eval.samples", 10), ("eval.controls", False)))
_TRANSFER = {
    name: Scoring(f"pascal_{name}", (("data.test", f"pascal_{name}"),))
    for name in ("disjoint", "standard")
}
_UNKNOWN = (None,) * 5


def _backbones(
    name: str,
    benchmark: Benchmark,
    other: tuple[str, str],
    printed: Mapping[str, tuple[float, ...]],
) -> Table:
    """A table of both methods with ResNet-50 and with another backbone: title and name."""
    rows = []
    for method, values in printed.items():
        for title, backbone, of_backbone in (
            ("ResNet-50", "", _TABLE_1[benchmark, method, "mask"]),
            (*other, values),
        ):
            below = (TITLES[VRP], title) if method != VRP else None
            labels = (TITLES[method], title)
            row = _row(labels, benchmark, method, of_backbone, backbone=backbone, below=below)
            rows.append(row)
    title = f"The backbone, on {BENCHMARKS[benchmark]}"
    return Table(name, title, ("method", "backbone"), tuple(rows))


def _tables() -> dict[str, Table]:
    vrp, prosam = TITLES[VRP], TITLES[STUDENT_T]
    tables = [
        Table(
            "1",
            "Methods with SAM, by annotation",
            ("data", "method", "annotation"),
            tuple(
                _row(
                    (BENCHMARKS[benchmark], TITLES[method], annotation),
                    benchmark,
                    method,
                    values,
                    annotation=annotation,
                    below=(BENCHMARKS[benchmark], vrp, annotation) if method != VRP else None,
                )
                for (benchmark, method, annotation), values in _TABLE_1.items()
            ),
        ),
        Table(
            "2",
            "Few-shot methods; only ProSAM's row can be run here",
            ("data", "method"),
            tuple(
                _row((title, prosam), benchmark, STUDENT_T, _TABLE_1[benchmark, STUDENT_T, "mask"])
                for benchmark, title in BENCHMARKS.items()
            ),
        ),
        Table(
            "3",
            "From COCO to Pascal, by both protocols",
            ("tested classes", "method"),
            tuple(
                _row(
                    (protocol, title),
                    "coco",
                    method,
                    _UNKNOWN,
                    scoring=scoring,
                    below=(protocol, vrp) if method != VRP else None,
                )
                for protocol, scoring in _TRANSFER.items()
                for method, title in ((VRP, vrp), (STUDENT_T, prosam))
            ),
        ),
        Table(
            "4",
            "The distribution",
            ("method",),
            (
                _row((TITLES[GAUSSIAN],), "pascal", GAUSSIAN, (74.2, 77.11, 69.67, 64.66, 71.41)),
                _row(
                    (prosam,),
                    "pascal",
                    STUDENT_T,
                    (75.26, 77.57, 70.29, 65.22, 72.04),
                    below=(TITLES[GAUSSIAN],),
                ),
            ),
        ),
        _backbones(
            "5",
            "coco",
            ("DINOv2 ViT-B/14", "dinov2_vitb14"),
            {
                VRP: (53.68, 59.74, 60.24, 58.96, 58.15),
                STUDENT_T: (54.49, 60.57, 61.81, 59.8, 59.16),
            },
        ),
        Table(
            "6",
            "What becomes of each pixel",
            ("the paper calls it", "read as", "method"),
            tuple(
                _row(
                    (called, read_as, title),
                    "pascal",
                    method,
                    values,
                    share=COUNTS.index(count),
                    below=(called, read_as, vrp) if method != VRP else None,
                )
                for called, read_as, count, of_vrp, of_prosam in _TABLE_6
                for method, title, values in ((VRP, vrp, of_vrp), (STUDENT_T, prosam, of_prosam))
            ),
            unit="a share of all pixels in percent",
        ),
        Table(
            "7",
            "VRP-SAM with as many parameters",
            ("method",),
            (
                _row((vrp,), "pascal", VRP, (74.01, 76.77, 69.46, 64.34)),
                _row(
                    (TITLES[VRP_2LINEAR],),
                    "pascal",
                    VRP_2LINEAR,
                    (74.04, 76.55, 69.71, 63.98),
                    below=(vrp,),
                ),
                _row(
                    (prosam,),
                    "pascal",
                    STUDENT_T,
                    (75.26, 77.57, 70.29, 65.22),
                    below=(TITLES[VRP_2LINEAR],),
                ),
            ),
        ),
        Table(
            "8",
            "Inference strategies, 10 sampled prompts",
            ("strategy",),
            tuple(
                _row(
                    (title,),
                    "pascal",
                    STUDENT_T,
                    (value,),
                    scored=name,
                    scoring=_SAMPLED,
                    below=(_TABLE_8[0][0],) if name != RESULT else None,
                )
                for title, name, value in _TABLE_8
            ),
        ),
        _backbones(
            "9",
            "pascal",
            ("VGG-16", "vgg16_bn"),
            {
                VRP: (69.72, 74.74, 67.12, 61.84, 68.35),
                STUDENT_T: (70.53, 75.3, 68.25, 62.99, 69.27),
            },
        ),
    ]
    return {table.name: table for table in tables}


TABLES = _tables()
