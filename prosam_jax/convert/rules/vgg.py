"""Rules of torchvision's and VRP-SAM's VGG-16, by model name.

torchvision numbers all convolutions, norms, ReLUs and pools in turn, as features.N. VRP-SAM starts
again with each stage, which ends with its pool, as layerK.j. timm's ports have torchvision's names
but for the classifier, whose linear layers are convolutions.
"""

from prosam_jax.convert.engine import Ignored, Rule, conv
from prosam_jax.convert.rules.resnet import COUNTERS, LEARNED, NORM

DEPTHS = (2, 2, 3, 3, 3)  # convolutions in layer0 to layer4


def _rules(batch_norm: bool) -> tuple[Rule, ...]:
    step = 3 if batch_norm else 2  # convolution, norm if any, ReLU
    rules = []
    for stage, depth in enumerate(DEPTHS):
        start = sum(step * before + 1 for before in DEPTHS[:stage])
        for i in range(depth):
            source, norm = (
                rf"(?:features\.{start + j}|layer{stage}\.{j})" for j in (step * i, step * i + 1)
            )
            target = f"layer{stage}.convs.{i}"
            rules.append(Rule(rf"{source}\.weight", f"{target}.conv.kernel", conv))
            rules.append(Rule(rf"{source}\.bias", f"{target}.conv.bias"))
            if batch_norm:
                rules.append(Rule(rf"{norm}\.{NORM}", rf"{target}.bn.\1"))
    return tuple(rules)


RULES = {"vgg16": _rules(batch_norm=False), "vgg16_bn": _rules(batch_norm=True)}
IGNORED = (
    COUNTERS,
    Ignored(
        r"(classifier\.\d|pre_logits\.fc[12]|head\.fc)\.(weight|bias)",
        "the classifier, not needed for features",
    ),
    LEARNED,
)
