import json

import golden_modules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import told
from flax import nnx
from golden_recipe import check_input, image, normal, unpack_bits

from prosam_jax import backbone, equations, model, resize
from prosam_jax.config import Config
from prosam_jax.errors import UserError
from prosam_jax.types import Episode, Features


@pytest.fixture(scope="module")
def prosam():
    return golden_modules.prosam((16, 16))


def _features(prosam, target_image, reference_image, reference_mask, embeddings):
    """What `encode` makes, from images that are normalised already and a given SAM embedding."""
    query, support = (golden_modules.nhwc(x) for x in (target_image, reference_image))
    size = (query.shape[1] // 8, query.shape[2] // 8)
    mask = resize.nearest(jnp.asarray(reference_mask, jnp.float32)[..., None], size)[..., 0]

    @jax.jit
    def encode(query, support, mask):
        return Features(
            golden_modules.nhwc(embeddings),
            backbone.target_taps(prosam.backbone, query),
            backbone.reference_taps(prosam.backbone, support, mask),
            mask,
        )

    return encode(query, support, mask)


@pytest.mark.slow
def test_training_chain_matches_torch(golden, prosam):
    """Prompt encoder -> SAM's heads -> loss, and the gradient of every learned tensor."""
    arrays = golden("train_chain_resnet50")
    meta = json.loads(str(arrays["meta"]))
    b, h, w = meta["batch"], meta["H"], meta["W"]
    target_image, reference_image = (
        image(meta[f"{x}_seed"], b, h, w) for x in ("query", "support")
    )
    embeddings = normal(meta["emb_seed"], (b, 256, 16, 16))
    check_input(arrays, "query_img", target_image)
    check_input(arrays, "image_embeddings", embeddings)
    mask, target = (unpack_bits(arrays, x).reshape(b, h, w) for x in ("support_mask", "target"))
    features = _features(prosam, target_image, reference_image, mask, embeddings)
    graph, params, frozen = nnx.split(prosam, model.learned, ...)

    @jax.jit
    @jax.value_and_grad
    def loss_and_grad(params):
        whole = nnx.merge(graph, params, frozen)
        prompts = whole.posterior(features).mean
        logits = whole.decode(features.image_embeddings, prompts, (h, w))
        return equations.mask_loss(logits, jnp.asarray(target))

    loss, grads = loss_and_grad(params)
    np.testing.assert_allclose(loss, arrays["loss"][0], rtol=2e-6)
    logits = jax.jit(lambda f: prosam.decode(f.image_embeddings, prosam.posterior(f).mean, (h, w)))(
        features
    )
    np.testing.assert_allclose(logits[:, ::4, ::4], arrays["logits_sub"][:, 0], rtol=0, atol=5e-5)
    _check_gradients(arrays, grads)


def _check_gradients(arrays, grads):
    """Puts our gradients into torch's names and layout, by the conversion's own rules."""
    from prosam_jax.convert import vrp_sam_to_flax

    ours = {
        ".".join(map(str, path[1:])): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(grads)
    }
    block_of = {target: source for source, target in vrp_sam_to_flax.BLOCKS.items()}
    theirs = {
        "downsample_query.0.weight": ours["features.reduce.kernel"].T,
        "merge_1.0.weight": ours["features.merge.kernel"].T,
        "transformer_decoder.supp_q_feat.weight": ours["decoder.queries"],
    }
    for target, source in block_of.items():
        part = {k.removeprefix(f"decoder.{target}"): v for k, v in ours.items() if target in k}
        prefix = f"transformer_decoder.{source}"
        qkv = ("q_proj", "k_proj", "v_proj")
        theirs |= {
            f"{prefix}.in_proj_weight": np.concatenate([part[f".{x}.kernel"].T for x in qkv]),
            f"{prefix}.in_proj_bias": np.concatenate([part[f".{x}.bias"] for x in qkv]),
            f"{prefix}.out_proj.weight": part[".out_proj.kernel"].T,
            f"{prefix}.out_proj.bias": part[".out_proj.bias"],
            f"{prefix.rpartition('.')[0]}.norm.weight": part["_norm.scale"],
            f"{prefix.rpartition('.')[0]}.norm.bias": part["_norm.bias"],
        }
    names = [name.removeprefix("grad/") for name in arrays if name.startswith("grad/")]
    assert sorted(names) == sorted(theirs)
    for name in names:
        found, expected = theirs[name].ravel(), arrays[f"grad/{name}"]
        l2, largest, stride, size = arrays[f"gradnorm/{name}"]
        assert found.size == size
        # The file asks for 1e-3 and 1e-4; a key bias has no gradient beyond rounding.
        error = np.linalg.norm(found[:: int(stride)] - expected)
        assert error <= 1e-3 * np.linalg.norm(expected), name
        np.testing.assert_allclose(np.linalg.norm(found), l2, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(np.abs(found).max(), largest, rtol=5e-4, err_msg=name)


@pytest.mark.slow
def test_five_shots_match_torch(golden, prosam):
    arrays = golden("nshot_resnet50")
    meta = json.loads(str(arrays["meta"]))
    b, shots, h, w = meta["batch"], meta["shots"], meta["H"], meta["W"]
    target_image = image(meta["query_seed"], b, h, w)
    # Reference k of every target, stacked to (b * s) with those of one target together.
    reference_image = np.stack([image(meta["support_seed"] + k, b, h, w) for k in range(shots)], 1)
    masks = unpack_bits(arrays, "support_masks").reshape(b * shots, h, w)
    features = _features(
        prosam,
        target_image,
        reference_image.reshape(b * shots, 3, h, w),
        masks,
        normal(meta["emb_seed"], (b, 256, 16, 16)),
    )

    @jax.jit
    def run(features):
        prompts = prosam.posterior(features).mean
        return prompts, prosam.decode(features.image_embeddings, prompts, (h, w))

    prompts, logits = run(features)
    assert prompts.shape == (b, shots * 50, 256)
    np.testing.assert_allclose(prompts[:, ::3], arrays["prompts_sub"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[:, ::2, ::2], arrays["logits_sub"][:, 0], rtol=0, atol=5e-5)
    np.testing.assert_allclose((logits > 0).mean(), arrays["frac_positive"][0], atol=1e-4)


def _episode(seed, b=2, s=1, size=32):
    rng = np.random.default_rng(seed)
    return Episode(
        reference_image=rng.integers(0, 256, (b, s, size, size, 3), np.uint8),
        reference_mask=rng.random((b, s, size, size)) > 0.5,
        target_image=rng.integers(0, 256, (b, size, size, 3), np.uint8),
        target_mask=rng.random((b, size, size)) > 0.5,
        target_ignore=np.zeros((b, size, size), bool),
        class_id=np.full(b, 3, np.int32),
        index=np.arange(b, dtype=np.int32),
        valid=np.ones(b, bool),
        target_size=np.full((b, 2), size, np.int32),
    )


def _small(**distribution):
    """Tiny frozen networks at random, to be compiled often."""
    return model.build(
        Config.from_dict(
            {
                "sam": {"model": "tiny", "weights": "random", "image_size": 64},
                "backbone": {"name": "tiny", "weights": "random"},
                "prompt": {"num_queries": 5},
                "distribution": distribution,
            }
        )
    )


@pytest.mark.slow
def test_encode_feeds_the_frozen_networks_as_the_reference_does():
    small, episode = _small(), _episode(0, s=2)
    features = jax.jit(small.encode)(episode)
    query = resize.normalize(jnp.asarray(episode.target_image))
    large = resize.bilinear(query, (64, 64), align_corners=True)
    np.testing.assert_allclose(
        features.image_embeddings, jax.jit(small.sam.encode_image)(large), atol=1e-5
    )
    assert features.reference_mask.shape == (4, 4, 4)
    np.testing.assert_array_equal(
        features.reference_mask.reshape(2, 2, 4, 4), episode.reference_mask[:, :, ::8, ::8]
    )
    assert features.reference.prior.shape == (4, 4, 4, 256)
    assert not bool((features.reference.prior[features.reference_mask == 0] != 0).any())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vrp",
        "student_t",
        pytest.param("gaussian", marks=pytest.mark.exhaustive),
        pytest.param("t3vae", marks=pytest.mark.exhaustive),
    ],
)
def test_objective_is_the_mean_over_samples(name):
    whole = _small(name=name, **({} if name == "vrp" else {"samples": 3}))
    episode = _episode(1)
    target = jnp.asarray(episode.target_mask)
    key = jax.random.key(7)

    @jax.jit
    def run(episode):
        features = whole.encode(episode)
        loss, aux = whole.objective(features, target, key)
        dropout_key, sample_key = jax.random.split(key)
        posterior = whole.posterior(features, dropout_key)
        if posterior.log_scale is None:
            prompts = posterior.mean[None]
        else:
            prompts = equations.sample_prompts(sample_key, posterior, 3, sampler=name, nu=5.0)
        one_by_one = [
            equations.mask_loss(whole.decode(features.image_embeddings, p, (32, 32)), target)
            for p in prompts
        ]
        return loss, aux, jnp.stack(one_by_one)

    loss, aux, one_by_one = run(episode)
    np.testing.assert_allclose(loss, one_by_one.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, aux["bce"] + aux["dice"], rtol=1e-5)
    assert ("scale_mean" in aux) == (name != "vrp")
    assert (aux["intersection"] <= aux["union"]).all()


@pytest.mark.slow
def test_entropy_weight_rewards_wide_scales():
    episode, key = _episode(2), jax.random.key(0)

    def losses(weight):
        whole = _small(samples=1, entropy_weight=weight)

        @jax.jit
        def run(episode):
            features = whole.encode(episode)
            loss, _ = whole.objective(features, jnp.asarray(episode.target_mask), key)
            dropout_key, _ = jax.random.split(key)
            return loss, whole.posterior(features, dropout_key).log_scale.mean()

        return run(episode)

    (plain, log_scale), (rewarded, _) = losses(0.0), losses(0.5)
    np.testing.assert_allclose(rewarded, plain - 0.5 * log_scale, rtol=1e-5)


def _loss_and_posterior(whole, episode, key):
    """The objective, its values to log, and what it was computed from."""

    @jax.jit
    def run(episode):
        features = whole.encode(episode)
        loss, aux = whole.objective(features, jnp.asarray(episode.target_mask), key)
        dropout_key, sample_key = jax.random.split(key)
        posterior = whole.posterior(features, dropout_key)
        return loss, aux, features.image_embeddings, posterior, sample_key

    return run(episode)


@pytest.fixture
def smooth_decoder(monkeypatch):
    """Masks that bend with the prompts and have no kinks, whose curvature differences would see."""

    def decode(self, image_embeddings, prompts, size):
        weight = jax.random.normal(jax.random.key(0), (prompts.shape[-1], size[0] * size[1]))
        logits = jnp.sin(2 * prompts.sum(1) @ weight / np.sqrt(len(weight))) * 3
        return logits.reshape(-1, *size)

    monkeypatch.setattr(model.ProSAM, "decode", decode)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variance"), [("gaussian", 1.0), ("student_t", 5 / 3)])
def test_laplacian_objective_is_equation_13(name, variance, smooth_decoder):
    """L(mean) and half of variance * z^T H z, computed from the gradient by differences."""
    whole = _small(name=name, objective="laplacian", samples=2, init_scale=0.1)
    episode = _episode(3)
    target = jnp.asarray(episode.target_mask)
    loss, aux, embeddings, posterior, key = _loss_and_posterior(whole, episode, jax.random.key(4))
    mean, sigma = posterior.mean, jnp.exp(posterior.log_scale)

    @jax.jit
    @jax.value_and_grad
    def of_prompts(prompts):
        return equations.mask_loss(whole.decode(embeddings, prompts, (32, 32)), target)

    signs = jax.random.rademacher(key, (2, *mean.shape), mean.dtype)
    step, halves = 0.05, []
    for x in sigma[None] * signs:
        up, down = (of_prompts(mean + s * step * x)[1] for s in (1, -1))
        halves.append(jnp.vdot(x, up - down) / (2 * step) / 2)
    at_mean = of_prompts(mean)[0]
    np.testing.assert_allclose(loss, at_mean + aux["gap"], rtol=1e-5)
    np.testing.assert_allclose(aux["gap"], variance * np.mean(halves), rtol=0.02)
    np.testing.assert_allclose(at_mean, aux["bce"] + aux["dice"], rtol=1e-5)


@pytest.mark.slow
def test_laplacian_objective_has_gradients_of_mean_and_scale(smooth_decoder):
    """Against differences of the objective itself, in a direction of each."""
    whole = _small(name="student_t", objective="laplacian", samples=2, init_scale=0.3)
    episode, key = _episode(3), jax.random.key(4)
    *_, embeddings, posterior, key = _loss_and_posterior(whole, episode, key)
    target = jnp.asarray(episode.target_mask)

    @jax.jit
    @jax.value_and_grad
    def run(posterior):
        return whole.expected_loss(embeddings, posterior, target, key)[0]

    _, gradient = run(posterior)
    for i in (0, 1):
        along = [jnp.zeros_like(x) for x in posterior]
        along[i] = gradient[i] / jnp.linalg.norm(gradient[i])
        step = 0.02
        up, down = (
            run(type(posterior)(*(x + s * step * d for x, d in zip(posterior, along, strict=True))))
            for s in (1, -1)
        )
        np.testing.assert_allclose(
            (up[0] - down[0]) / (2 * step), jnp.linalg.norm(gradient[i]), rtol=0.05
        )


@pytest.mark.slow
def test_prior_is_weighed_against_the_loss():
    key, episode = jax.random.key(0), _episode(2)
    plain, *_, posterior, _ = _loss_and_posterior(_small(name="gaussian", samples=2), episode, key)
    whole = _small(name="gaussian", samples=2, prior_weight=0.3, prior_scale=0.2)
    loss, aux, *_ = _loss_and_posterior(whole, episode, key)
    width = 0.2 * np.sqrt(np.square(posterior.mean).mean(-1, keepdims=True))
    ratio = np.exp(posterior.log_scale) / width
    expected = (np.square(ratio) / 2 - 0.5 - np.log(ratio)).mean()
    np.testing.assert_allclose(aux["prior_kl"], expected, rtol=1e-4)
    np.testing.assert_allclose(loss, plain + 0.3 * aux["prior_kl"], rtol=1e-5)


def test_missing_weights_are_named_with_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        model.build(Config())
    told(error, "weights/sam_vit_h.safetensors", "prosam weights convert sam --model vit_h")
    cfg = Config.from_dict({"sam": {"model": "tiny", "weights": "random"}})
    with pytest.raises(UserError) as error:
        model.build(cfg)
    told(error, "weights/resnet50.safetensors", "prosam weights convert backbone --model resnet50")
