"""COCO to Pascal: trained on a fold of COCO-20i, tested on VOC's images (Table 3 of the paper).

    python train.py --config configs/coco_to_pascal.py --config.data.root=COCO2014 \
        --config.data.test_root=VOC2012 --config.data.fold=0 --workdir=runs/coco_to_pascal0

Tests the classes of VOC that are novel in the fold of COCO-20i. What the paper's table tested is
not known; `docs/data.md` has both readings. A run of `configs/coco.py` needs no new training:
`python evaluate.py --workdir=runs/coco0 --config.data.test=pascal_disjoint
--config.data.test_root=VOC2012`.
"""


def get_config() -> dict:
    """What differs from the defaults of `prosam_jax.config`."""
    return {"data": {"name": "coco", "test": "pascal_disjoint"}, "train": {"batch_size": 8}}
