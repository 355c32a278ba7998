"""Scores on novel classes of what needs no training of ProSAM's prompt encoder.

    python tools/shapes_baselines.py --config configs/shapes.py --config.data.fold=0

Everything foreground; the cosine prior above the one threshold that suits the test episodes best;
SAM prompted by a click at the prior's peak; SAM without any prompt; the untrained prompt encoder.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool
from ml_collections import config_flags

from prosam_jax import cli, equations, model, resize
from prosam_jax.config import Config
from prosam_jax.data.loader import make_loader
from prosam_jax.training import metrics
from prosam_jax.training.evaluation import test_episodes
from prosam_jax.types import Episode

CONFIG = config_flags.DEFINE_config_file("config", help_string="recipe", lock_config=True)
THRESHOLDS = np.linspace(0.02, 0.98, 49, dtype=np.float32)


def predictions(prosam: model.ProSAM, episode: Episode) -> dict[str, Bool[Array, "b h w"]]:
    """The masks of every baseline, the prior's once for each threshold."""
    features = prosam.encode(episode)
    b, h, w = episode.query_mask.shape
    prior = equations.cosine_prior(features.query.prior, features.support.prior)
    prior = resize.bilinear(prior[..., None], (h, w), align_corners=True)[..., 0]
    peak = prior.reshape(b, -1).argmax(1)
    height, width = prosam.sam.cfg.image_size
    points = jnp.stack([peak % w * (width / w), peak // w * (height / h)], axis=-1)[:, None]
    clicks, _ = prosam.sam.prompt_encoder(points=points, labels=jnp.ones((b, 1), jnp.int32))
    none = jnp.zeros((b, 0, clicks.shape[-1]))
    return {
        "everything foreground": jnp.ones((b, h, w), bool),
        "no prompt": prosam.decode(features.image_embeddings, none, (h, w)) >= 0,
        "untrained prompt encoder": prosam.predict(episode) >= 0,
        "click at the prior's peak": prosam.decode(features.image_embeddings, clicks, (h, w)) >= 0,
    } | {f"prior above {t:.2f}": prior > t for t in THRESHOLDS.tolist()}


def baselines(cfg: Config) -> dict[str, metrics.Scores]:
    """Scores by name; of the thresholds only the best."""
    prosam, source = model.build(cfg), test_episodes(cfg)

    @jax.jit
    def areas(episode):
        found = predictions(prosam, episode)
        target, ignore = episode.query_mask, episode.query_ignore
        return {name: metrics.areas(mask, target, ignore) for name, mask in found.items()}

    sums: dict[str, metrics.IoU] = {}
    for episode in make_loader(source, batch_size=cfg.eval.batch_size):
        valid = episode.valid
        for name, found in areas(episode).items():
            kept = metrics.Areas(*(np.asarray(x)[valid] for x in found))
            sums.setdefault(name, metrics.IoU()).add(kept, episode.class_id[valid])
    scores = {name: iou.scores() for name, iou in sums.items()}
    priors = {name: s for name, s in scores.items() if name.startswith("prior above")}
    best = max(priors, key=lambda name: priors[name].miou)
    return {name: s for name, s in scores.items() if name == best or name not in priors}


def main() -> None:
    """Prints a table."""
    for name, scores in baselines(Config.from_dict(CONFIG.value)).items():
        print(f"{name:28} mIoU {100 * scores.miou:6.2f}  FB-IoU {100 * scores.fb_iou:6.2f}")


if __name__ == "__main__":
    flags.adopt_module_key_flags(config_flags)
    cli.run(main)
