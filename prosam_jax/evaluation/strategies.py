"""The paper's five ways to merge the masks of K sampled prompts (section 9.3, Table 8).

The text says no more than that logit masks or binary masks are merged, "given a threshold of 0.5".
Here logits are merged in the decoder's own size and resized afterwards (if they were resized first,
their maximum would be the maximum of the binary masks); and a pixel that exactly half of the masks
have is foreground in their mean, which reaches 0.5, and background in a vote, which needs a
majority. With an odd K these two are the same.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float

from prosam_jax.equations import foreground

MAX_LOGITS = "max of logit masks"
MEAN_LOGITS = "mean of logit masks"
MAX_BINARY = "max of binary masks"
MEAN_BINARY = "mean of binary masks"
VOTE = "majority vote of binary masks"

NAMES = (MAX_LOGITS, MEAN_LOGITS, MAX_BINARY, MEAN_BINARY, VOTE)
"""In the order of the table."""


def merged(
    low_res: Float[Array, "k b i j"],
    resized: Callable[[Float[Array, "b i j"]], Float[Array, "b h w"]],
) -> dict[str, Bool[Array, "b h w"]]:
    """The merged masks, by name.

    Args:
        low_res: Logits of each sample's masks, in the decoder's own size.
        resized: Brings logits of b masks to the size in which pixels are counted.
    """
    binary = foreground(jax.vmap(resized)(low_res))
    share = binary.mean(0)
    return {
        MAX_LOGITS: foreground(resized(low_res.max(0))),
        MEAN_LOGITS: foreground(resized(low_res.mean(0))),
        MAX_BINARY: binary.any(0),
        MEAN_BINARY: share >= 0.5,
        VOTE: share > 0.5,
    }
