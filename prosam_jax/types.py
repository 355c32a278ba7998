"""Named tuples of arrays that the packages pass to each other; no logic.

The arrays are NumPy arrays in the data code and JAX arrays in the model.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int32, UInt8


class Episode(NamedTuple):
    """A batch of episodes: annotated reference images, a target image and its true mask.

    Attributes:
        reference_image: RGB, 0-255.
        reference_mask: Annotated pixels of each reference image (a mask, box, scribble or points).
        target_image: RGB, 0-255.
        target_mask: The true mask: pixels of the episode's class.
        target_ignore: Pixels that metrics ignore (label 255); the loss treats them as background.
        class_id: Class of the episode, numbered as in the dataset.
        index: Index of the episode in its list or stream.
        valid: False for the repeated episodes that pad a short last batch.
        target_size: (height, width) of the target's own pixels. If metrics count those
            (`EpisodeSource.canvas`), the true mask has them, padded at the bottom and right with
            pixels to ignore.
    """

    reference_image: UInt8[Any, "b s h w 3"]
    reference_mask: Bool[Any, "b s h w"]
    target_image: UInt8[Any, "b h w 3"]
    target_mask: Bool[Any, "b H W"]
    target_ignore: Bool[Any, "b H W"]
    class_id: Int32[Any, " b"]
    index: Int32[Any, " b"]
    valid: Bool[Any, " b"]
    target_size: Int32[Any, "b 2"]


class Taps(NamedTuple):
    """Frozen backbone features of one set of images.

    Attributes:
        merged: Concatenated middle layers, which the prompt encoder reduces (section 8.1).
        prior: High-level features, from which the pseudo mask is computed.
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
    """Everything the frozen networks compute for a batch of episodes; r = b * s references.

    Attributes:
        image_embeddings: SAM's embedding F of each target.
        target: Backbone features of the targets.
        reference: Backbone features of the references, grouped by target.
        reference_mask: The annotations at the size of the merged features: weights in [0, 1], which
            are only 0 and 1 with `data.downsample=nearest`.
    """

    image_embeddings: Float[Any, "b i j e"]
    target: Taps
    reference: Taps
    reference_mask: Float[Any, "r h w"]

    @property
    def shots(self) -> int:
        """References of each target."""
        return len(self.reference_mask) // len(self.image_embeddings)

    @property
    def empty_annotations(self) -> Bool[Any, " r"]:
        """Which references have no annotated cell left at this size."""
        return ~self.reference_mask.any((1, 2))
