"""What travels between the parts: named tuples of arrays, no logic.

The arrays are NumPy's on the side of the data and JAX's on the side of the model.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int32, UInt8


class Episode(NamedTuple):
    """A batch of episodes: reference images with their annotation, a target and its truth.

    Attributes:
        reference_image: RGB, 0-255.
        reference_mask: The pixels marked in each reference image, by mask, box, scribble or point.
        target_image: RGB, 0-255.
        target_mask: The truth, pixels of the episode's class.
        target_ignore: Pixels that no metric counts (label 255); the loss takes them as background.
        class_id: Class of the episode, numbered as in the dataset.
        index: Index of the episode in its list or stream.
        valid: False for the repetitions that fill up a last, short batch.
    """

    reference_image: UInt8[Any, "b s h w 3"]
    reference_mask: Bool[Any, "b s h w"]
    target_image: UInt8[Any, "b h w 3"]
    target_mask: Bool[Any, "b h w"]
    target_ignore: Bool[Any, "b h w"]
    class_id: Int32[Any, " b"]
    index: Int32[Any, " b"]
    valid: Bool[Any, " b"]


class Taps(NamedTuple):
    """Frozen backbone features of one set of images.

    Attributes:
        merged: Middle layers, concatenated, that the prompt encoder reduces (8.1).
        prior: High-level features that make the pseudo mask.
    """

    merged: Float[Any, "b h w c"]
    prior: Float[Any, "b h w d"]


class Posterior(NamedTuple):
    """q(p | I_r, A_r, I_t) of Eq. 5: one distribution for each prompt vector.

    Attributes:
        mean: mu, the prompts used at inference.
        log_scale: log sigma, or None for the deterministic variants.
    """

    mean: Float[Any, "b q c"]
    log_scale: Float[Any, "b q c"] | None


class Features(NamedTuple):
    """All that the frozen networks say about a batch of episodes; r = b * s references.

    Attributes:
        image_embeddings: SAM's embedding F of each target.
        target: Backbone features of the targets.
        reference: Backbone features of the references, those of one target together.
        reference_mask: The annotations at the size of the merged features: weights in [0, 1], of
            which "nearest" knows 0 and 1 only.
    """

    image_embeddings: Float[Any, "b i j e"]
    target: Taps
    reference: Taps
    reference_mask: Float[Any, "r h w"]

    @property
    def empty_annotations(self) -> Bool[Any, " r"]:
        """Of which references nothing annotated is left at this size."""
        return ~self.reference_mask.any((1, 2))
