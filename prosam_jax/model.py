"""ProSAM: a reference, its annotation and a target -> K prompts -> SAM's decoder -> masks."""

import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from prosam_jax import backbone, curvature, equations, equations_fast, platforms, resize, sampling
from prosam_jax.config import HUB, Config
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.sam import build_sam
from prosam_jax.sam.build_sam import embed
from prosam_jax.sam.model import Sam
from prosam_jax.types import Episode, Features, Posterior, Taps
from prosam_jax.weights import files, pretrained, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints


class ProSAM(nnx.Module):
    """A frozen SAM, a frozen semantic backbone and the trained prompt encoder.

    Attributes:
        sam: Frozen.
        backbone: Frozen.
        prompt_encoder: The only part with gradients (`learned` selects its parameters).
    """

    def __init__(
        self,
        cfg: Config,
        sam: Sam,
        backbone: backbone.Backbone,
        *,
        rngs: nnx.Rngs,
        prompt_encoder: ReferencePromptEncoder | None = None,
    ):
        """Puts the parts together; `rngs` initialises a prompt encoder if none is given."""
        self.sam = sam
        self.backbone = backbone
        self.prompt_encoder = prompt_encoder or ReferencePromptEncoder(
            cfg.prompt, cfg.distribution, backbone.merged_channels, rngs=rngs
        )
        self.distribution = cfg.distribution
        self.downsample = cfg.data.downsample
        self.join = cfg.eval.join

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **overrides: Any) -> "ProSAM":
        """A trained model.

        Args:
            name: "prosam-shapes", which comes with the package; the file of a trained prompt
                encoder (`prosam export`); a run's folder, from which the best checkpoint is taken,
                or the latest if none was validated; or "user/name" on a hub.
            overrides: Groups of settings that differ from the training's, such as
                `sam={"weights": "elsewhere/sam_vit_h.safetensors", "dtype": "bfloat16"}`.

        Raises:
            UserError: There is no such model, its frozen weights are missing or are not those it
                was trained with, or a setting is unknown or belongs to the training.
        """
        return load(name, overrides)[0]

    def encode(
        self, episode: Episode, image_embeddings: Float[Array, "b i j e"] | None = None
    ) -> Features:
        """Runs the frozen networks.

        Args:
            episode: A batch.
            image_embeddings: `embed` of its targets, if already computed.
        """
        b, s, h, w, _ = episode.reference_image.shape
        images = episode.reference_image.reshape(b * s, h, w, 3)
        annotated = episode.reference_mask.reshape(b * s, h, w)
        embeddings, query = self.encode_targets(episode.target_image, image_embeddings)
        references = self.encode_references(images, annotated, query.merged.shape[1:3])
        return Features(embeddings, query, *references)

    def encode_targets(
        self,
        images: UInt8[Array, "b h w 3"],
        image_embeddings: Float[Array, "b i j e"] | None = None,
    ) -> tuple[Float[Array, "b i j e"], Taps]:
        """SAM's embedding of each target, unless it is given, and its backbone features."""
        if image_embeddings is None:
            image_embeddings = embed(self.sam, images)
        return image_embeddings, backbone.target_taps(self.backbone, resize.normalize(images))

    def encode_references(
        self,
        images: UInt8[Array, "r h w 3"],
        annotated: Bool[Array, "r h w"],
        size: tuple[int, int],
        downsample: str | None = None,
    ) -> tuple[Taps, Float[Array, "r i j"]]:
        """Backbone features of references, and their annotations at the features' size.

        Args:
            images: The references.
            annotated: Which of their pixels are annotated.
            size: (height, width) of the backbone's merged features.
            downsample: How annotations are shrunk to that size, as in `data.downsample`; None for
                the training's rule.
        """
        mask = resize.annotation(annotated.astype(jnp.float32), size, downsample or self.downsample)
        return backbone.reference_taps(self.backbone, resize.normalize(images), mask), mask

    def posterior(self, features: Features, dropout_key: PRNGKeyArray | None = None) -> Posterior:
        """q(p | I_r, A_r, I_t) of Eq. 5; with s references s times as many prompts per target."""
        b = len(features.image_embeddings)
        query = jax.tree.map(lambda x: jnp.repeat(x, features.shots, axis=0), features.target)
        per_reference = self.prompt_encoder(
            query, features.reference, features.reference_mask, dropout_key
        )
        return jax.tree.map(lambda x: x.reshape(b, -1, x.shape[-1]), per_reference)

    def decode(
        self,
        image_embeddings: Float[Array, "b i j c"],
        prompts: Float[Array, "b q c"],
        size: tuple[int, int],
    ) -> Float[Array, "b h w"]:
        """Eq. 2: M^ = D(F, p), the single mask's logits at `size`.

        The prompts are SAM's only sparse tokens and the dense embedding is the no-mask one. The
        resize aligns corners, as VRP-SAM's does.
        """
        return self.decode_with_iou(image_embeddings, prompts, size)[0]

    def decode_with_iou(
        self,
        image_embeddings: Float[Array, "b i j c"],
        prompts: Float[Array, "b q c"],
        size: tuple[int, int],
    ) -> tuple[Float[Array, "b h w"], Float[Array, " b"]]:
        """`decode`, and the IoU that SAM expects of each mask."""
        low_res, iou = self.decode_low_res(image_embeddings, prompts)
        return resize.bilinear_map(low_res, size), iou

    def decode_low_res(
        self,
        image_embeddings: Float[Array, "b i j c"],
        prompts: Float[Array, "b q c"],
        shots: int = 1,
    ) -> tuple[Float[Array, "b h w"], Float[Array, " b"]]:
        """Logits in the decoder's own size, and the IoU that SAM expects of each mask.

        Args:
            image_embeddings: SAM's embeddings of the targets.
            prompts: The prompts of all references of a target, one reference after the other.
            shots: Number of references. The decoder takes the prompts of all together, as in
                VRP-SAM's code; with `eval.join=logits` it takes those of each reference alone, and
                logits and IoU are the means over the references.
        """
        if shots > 1 and self.join == "logits":
            b, q, c = prompts.shape
            each = prompts.reshape(b, shots, q // shots, c).swapaxes(0, 1)
            found = jax.vmap(lambda p: self.decode_low_res(image_embeddings, p))(each)
            return jax.tree.map(lambda x: x.mean(0), found)
        sparse, dense = self.sam.prompt_encoder(prompts=prompts)
        logits, iou = self.sam.decode(image_embeddings, sparse, dense)
        return logits[:, 0], iou[:, 0]

    def predict(
        self, episode: Episode, image_embeddings: Float[Array, "b i j e"] | None = None
    ) -> Float[Array, "b h w"]:
        """Logits of the target masks from the mean prompts alone; arguments as of `encode`."""
        _, h, w, _ = episode.target_image.shape
        return self.segment(self.encode(episode, image_embeddings), (h, w))

    def segment(self, features: Features, size: tuple[int, int]) -> Float[Array, "b h w"]:
        """`predict` for features already computed."""
        mean = self.posterior(features).mean
        low_res, _ = self.decode_low_res(features.image_embeddings, mean, features.shots)
        return resize.bilinear_map(low_res, size)

    def objective(
        self, features: Features, target: Bool[Array, "b h w"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Eq. 10, or Eq. 13 if `distribution.objective` is "laplacian", with training's dropout.

        Args:
            features: Output of `encode`.
            target: The true masks.
            key: Draws dropout and samples.

        Returns:
            The loss, and a dict: "bce" and "dice" (Eq. 4's terms), "intersection" and "union" (b)
            of the samples' masks (averaged over K), and for the probabilistic variants
            "scale_mean", "scale_p05", "scale_p95" (of sigma) and "scale_to_norm" (|sigma| / |mu|).
            With Eq. 13 also "gap", its second term, and masks and terms are those of the mean
            prompts; with a prior also "prior_kl".
        """
        dropout_key, sample_key = jax.random.split(key)
        posterior = self.posterior(features, dropout_key)
        return self.expected_loss(features.image_embeddings, posterior, target, sample_key)

    def expected_loss(
        self,
        image_embeddings: Float[Array, "b i j c"],
        posterior: Posterior,
        target: Bool[Array, "b h w"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """`objective` for a posterior already computed; `key` draws the samples."""
        cfg = self.distribution
        _, h, w = target.shape

        def loss(prompts):
            logits = self.decode(image_embeddings, prompts, (h, w))
            bce = equations.bce_loss(logits, target)
            dice = equations.dice_loss(logits, target)
            mask = equations.foreground(logits)
            aux = {
                "bce": bce,
                "dice": dice,
                "intersection": (mask & target).sum((1, 2)),
                "union": (mask | target).sum((1, 2)),
            }
            return bce + dice, aux

        if posterior.log_scale is None:
            return loss(posterior.mean)
        mean, sigma = posterior.mean, equations.scale(posterior.log_scale)
        noise = sampling.draw_noise(
            key,
            (cfg.samples, *mean.shape),
            cfg.name,
            cfg.nu,
            draws=cfg.draws,
            shared_delta=cfg.shared_delta,
        )
        prompts = equations.reparameterise(mean, sigma, noise, cfg.nu)
        if cfg.objective == "laplacian":
            value, aux = loss(mean)
            aux["gap"] = self._noise_gap(lambda p: loss(p)[0], mean, sigma, key)
            value += aux["gap"]
        else:
            group = cfg.sample_group or platforms.samples_at_once(cfg.samples)
            value, aux = equations_fast.monte_carlo(loss, prompts, group)
            aux = {name: x.mean(0) for name, x in aux.items()}
        aux |= _scale_statistics(mean, sigma)
        if cfg.prior_weight:
            aux["prior_kl"] = sampling.kl_to_prior(
                prompts, mean, sigma, cfg.prior_scale, sampler=cfg.name, nu=cfg.nu
            )
            value += cfg.prior_weight * aux["prior_kl"]
        return value - cfg.entropy_weight * posterior.log_scale.mean(), aux

    def _noise_gap(
        self,
        loss: Callable[[Float[Array, "b q c"]], Float[Array, ""]],
        mean: Float[Array, "b q c"],
        sigma: Float[Array, "b q c"],
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        """The second term of Eq. 13 with a sigma for each coordinate, by Hutchinson's estimate.

        Its gradient has third derivatives. They are computed for one random sign after the other:
        jaxlib 0.10 crashes on a CPU where they are computed for several together.
        """
        cfg = self.distribution

        def of_noise(z: Float[Array, "b q c"]) -> Float[Array, ""]:
            return loss(mean + sigma * z)

        @jax.checkpoint
        def half_square(signs: Float[Array, "b q c"]) -> Float[Array, ""]:
            product = curvature.hessian_vector(of_noise, jnp.zeros_like(mean), signs)
            return jnp.vdot(signs, product) / 2

        signs = jax.random.rademacher(key, (cfg.samples, *mean.shape), mean.dtype)
        variance = curvature.noise_variance(cfg.name, cfg.nu, mean.shape[-1])
        return variance * jax.lax.map(half_square, signs).mean()


def _scale_statistics(mean: Array, sigma: Array) -> dict[str, Array]:
    low, high = jnp.quantile(sigma, jnp.asarray([0.05, 0.95]))
    ratio = jnp.linalg.norm(sigma, axis=-1) / jnp.linalg.norm(mean, axis=-1)
    return {
        "scale_mean": sigma.mean(),
        "scale_p05": low,
        "scale_p95": high,
        "scale_to_norm": ratio.mean(),
    }


def learned(path: tuple, value: object) -> bool:
    """An `nnx` filter: what training changes and checkpoints hold."""
    return path[0] == "prompt_encoder"


def fetch(cfg: Config) -> None:
    """Fetches the frozen weights that the settings have on a hub and that are not here yet.

    Raises:
        UserError: They cannot be fetched, or are not those of the network.
    """
    if cfg.sam.weights == HUB:
        build_sam.fetch(cfg.sam.model)
    if cfg.backbone.weights == HUB:
        backbone.fetch(cfg.backbone.name)


def build(cfg: Config) -> ProSAM:
    """The model of a run: frozen weights from their files, and a prompt encoder.

    The prompt encoder is a new one from the seed, or the trained one in the file `prompt.weights`.

    Raises:
        UserError: A weight file is missing or does not match the settings; the message names it
            and the command that makes it, or the settings that it needs.
    """
    fetch(cfg)
    if cfg.prompt.weights:
        prompt_encoder.check_fit(cfg.prompt.weights, cfg)
    sam = build_sam.build_sam(cfg.sam, cfg.seed)
    semantic = backbone.load(cfg.backbone, cfg.seed)
    channels, file = semantic.merged_channels, cfg.prompt.weights
    return ProSAM(
        cfg,
        sam,
        semantic,
        rngs=nnx.Rngs(jax.random.key(cfg.seed)),
        prompt_encoder=load_prompt_encoder(file, cfg, channels) if file else None,
    )


def load_prompt_encoder(
    path: str | os.PathLike[str], cfg: Config, merged_channels: int
) -> ReferencePromptEncoder:
    """The prompt encoder in a file.

    Raises:
        UserError: The file is missing or damaged, or its arrays are not exactly those of the
            prompt encoder that `cfg` describes.
    """
    return files.load(
        lambda rngs: ReferencePromptEncoder(
            cfg.prompt, cfg.distribution, merged_channels, rngs=rngs
        ),
        path,
        kind=prompt_encoder.KIND,
        architecture=cfg.distribution.name,
        made_by=prompt_encoder.MADE_BY,
    )


def load(
    name: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> tuple[ProSAM, Config]:
    """A trained model and its settings; see `ProSAM.from_pretrained`.

    Args:
        name: A name, a file, a run's folder or a repository on a hub.
        overrides: Settings by dotted name, or nested in groups.
    """
    path = pretrained.find(name)
    cfg = pretrained.usable(pretrained.settings_of(path), overrides or {})
    if not path.is_dir():
        return build(cfg), cfg
    which = "latest" if Checkpoints(path).best is None else "best"
    return nnx.merge(*restored(cfg, path, which)[0]), cfg


def restored(cfg: Config, workdir: pathlib.Path, checkpoint: str) -> tuple["Parts", int]:
    """The model at a checkpoint of a run, and the checkpoint's step.

    Args:
        cfg: Settings of the run.
        workdir: The run's folder.
        checkpoint: "best" (by validation mIoU), "latest" or a step.

    Raises:
        UserError: There is no such checkpoint, or the files do not match the settings.
    """
    trained_on = prompt_encoder.read_frozen(workdir)
    fetch(cfg)
    prompt_encoder.check_frozen(workdir, trained_on, prompt_encoder.frozen_weights(cfg))
    checkpoints = Checkpoints(workdir)
    checkpoints.find(checkpoint)  # before the minutes that large networks take
    parts = split(build(cfg))
    step, params = checkpoints.restore_params(checkpoint, parts.params)
    return parts._replace(params=params), step


class Parts(NamedTuple):
    """A model taken apart: its structure, its trained and its frozen parameters."""

    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State


def split(model: ProSAM) -> Parts:
    """Takes the model apart; `nnx.merge(*parts)` puts it together."""
    return Parts(*nnx.split(model, learned, ...))


def stream(seed: int, name: str) -> PRNGKeyArray:
    """The random key for one purpose; fold in the step to get the key of a step."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
