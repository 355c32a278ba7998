"""Rules of the ResNets of torchvision, semseg and VRP-SAM.

One table serves both stems: torchvision's has only `conv1` and `bn1`. VRP-SAM calls the deep
stem's parts layer0.*.
"""

from prosam_jax.convert.engine import Ignored, Rule, conv

NORM = "(weight|bias|running_mean|running_var)"

RULES = (
    Rule(r"(?:conv1|layer0\.0)\.weight", "stem.0.conv.kernel", conv),
    Rule(r"(?:conv2|layer0\.3)\.weight", "stem.1.conv.kernel", conv),
    Rule(r"(?:conv3|layer0\.6)\.weight", "stem.2.conv.kernel", conv),
    Rule(rf"(?:bn1|layer0\.1)\.{NORM}", r"stem.0.bn.\1"),
    Rule(rf"(?:bn2|layer0\.4)\.{NORM}", r"stem.1.bn.\1"),
    Rule(rf"(?:bn3|layer0\.7)\.{NORM}", r"stem.2.bn.\1"),
    Rule(r"(layer[1-4]\.\d+\.conv[123])\.weight", r"\1.conv.kernel", conv),
    Rule(rf"(layer[1-4]\.\d+)\.bn([123])\.{NORM}", r"\1.conv\2.bn.\3"),
    Rule(r"(layer[1-4]\.\d+\.downsample)\.0\.weight", r"\1.conv.kernel", conv),
    Rule(rf"(layer[1-4]\.\d+\.downsample)\.1\.{NORM}", r"\1.bn.\2"),
)

COUNTERS = Ignored(r".*\.num_batches_tracked", "a counter for training only")
LEARNED = Ignored(
    r"(downsample_query|merge_1|transformer_decoder)\..*",
    "VRP-SAM's trained part, for `prosam weights convert vrp-sam`",
)
IGNORED = (
    COUNTERS,
    Ignored(r"fc\.(weight|bias)", "the classifier, not needed for features"),
    LEARNED,
)
