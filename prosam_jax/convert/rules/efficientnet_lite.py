"""Rules of EfficientNet-Lite checkpoints, for `prosam_jax.backbone.efficientnet_lite`.

Their names are those of the package efficientnet-lite-pytorch, each with a leading underscore.
"""

from prosam_jax.convert.engine import Rule, conv, linear
from prosam_jax.convert.rules.resnet import COUNTERS, NORM

RULES = (
    Rule(r"_(conv_stem|conv_head)\.weight", r"\1.kernel", conv),
    Rule(rf"_bn([01])\.{NORM}", r"bn\1.\2"),
    Rule(
        r"_(blocks\.\d+)\._(expand_conv|depthwise_conv|project_conv)\.weight",
        r"\1.\2.kernel",
        conv,
    ),
    Rule(rf"_(blocks\.\d+)\._bn([012])\.{NORM}", r"\1.bn\2.\3"),
    Rule(r"_fc\.weight", "fc.kernel", linear),
    Rule(r"_fc\.bias", "fc.bias"),
)
IGNORED = (COUNTERS,)
