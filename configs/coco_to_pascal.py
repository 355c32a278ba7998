r"""COCO to Pascal: trained on a fold of COCO-20i, tested on VOC's images (Table 3 of the paper).

    prosam train --config coco_to_pascal --config.data.root=COCO2014 \
        --config.data.test_root=VOC2012 --config.data.fold=0 --workdir runs/coco_to_pascal0

Tests the VOC classes that are novel in the fold of COCO-20i; with
`--config.data.test=pascal_standard`, those of the fold of Pascal-5i. Which classes the paper's
table tested is not known; `docs/data.md` describes both readings. One H200 would take 17 to 34
hours a fold in bfloat16, 1.8 to 3.6 with a feature cache (`docs/train.md`): computed, not measured.

A run of the recipe `coco` need not be trained again:

    prosam evaluate --workdir runs/coco0 --config.data.test=pascal_disjoint \
        --config.data.test_root=VOC2012
"""

BASE = "coco"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"data": {"test": "pascal_disjoint"}}
