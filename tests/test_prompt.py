import functools
import json

import golden_modules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_recipe import check_input, image, unpack_bits

from prosam_jax import backbone, equations, layers, resize
from prosam_jax.backbone.vgg import VGG
from prosam_jax.config import DISTRIBUTIONS, DistributionConfig, PromptConfig
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.prompt.posterior import PosteriorHead
from prosam_jax.types import Taps


@functools.cache
def _networks(name):
    make = {"resnet50": golden_modules.resnet, "vgg16": golden_modules.vgg}[name]
    return make(), golden_modules.prompt_encoder(name)


def _layer2(network, images, merged):
    """Layer 2 in its own size; that of VGG is merged in layer 3's."""
    if isinstance(network, VGG):
        return network.layer2(network.layer1(network.layer0(images)))
    return merged[..., :512]


def _keys_and_values(features):
    """Keys have positions, values have none."""
    b, h, w, c = features.shape
    positions = layers.sine_positions(h, w, c)[None]
    return (features + positions).reshape(b, h * w, c), features.reshape(b, h * w, c)


def _tokens(golden, meta, name, x, atol):
    stride = meta["strides"][name]["stride"]
    stride = stride[0] if isinstance(stride, list) else stride
    np.testing.assert_allclose(x[:, ::stride], golden[f"{name}_sub"], rtol=0, atol=atol)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("vrp_resnet50", marks=pytest.mark.slow),
        "vrp_edge_masks",
        pytest.param("vrp_vgg16", marks=pytest.mark.slow),
    ],
)
def test_every_step_matches_torch(golden, case):
    arrays = golden(case)
    meta = json.loads(str(arrays["meta"]))
    networks = _networks(meta["backbone"])
    b, h, w = meta["batch"], meta["H"], meta["W"]
    target_image = image(meta["query_seed"], b, h, w)
    reference_image = image(meta["support_seed"], b, h, w)
    check_input(arrays, "query_img", target_image)
    check_input(arrays, "support_img", reference_image)
    mask = unpack_bits(arrays, "support_mask")

    @jax.jit
    def steps(networks, target_image, reference_image, mask):
        network, encoder = networks
        query = backbone.target_taps(network, target_image)
        small = resize.nearest(mask[..., None], query.merged.shape[1:3])[..., 0]
        support = backbone.reference_taps(network, reference_image, small)
        support_layer3 = network.trunk(reference_image)[1]
        features, decoder = encoder.features, encoder.decoder
        query_reduced, support_reduced = (features.reduced(t.merged) for t in (query, support))
        prototype = equations.masked_average(support_reduced, small)
        pseudo_mask = features.pseudo_mask(query, support, small)
        query_merged = features.augmented(query_reduced, prototype, pseudo_mask)
        support_merged = features.augmented(support_reduced, prototype, small)
        x = jnp.broadcast_to(decoder.queries[...], (b, 50, 256))
        dec1 = decoder.support_cross(x, *_keys_and_values(support_merged))
        dec1 = decoder.support_cross_norm(x + dec1)
        dec2 = decoder.support_self_norm(dec1 + decoder.support_self(dec1, dec1, dec1))
        dec3 = decoder.query_cross(dec2, *_keys_and_values(query_merged))
        dec3 = decoder.query_cross_norm(dec2 + dec3)
        dec4 = decoder.query_self_norm(dec3 + decoder.query_self(dec3, dec3, dec3))
        maps = {
            "query_layer2": _layer2(network, target_image, query.merged),
            "query_layer3": query.merged[..., -support_layer3.shape[-1] :],
            "query_layer4": query.prior,
            "support_layer2": _layer2(network, reference_image, support.merged),
            "support_layer3": support_layer3,
            # The file keeps layer 4 of the masked layer 3 before it is masked again.
            "support_layer4": network.tail(support_layer3 * small[..., None]),
            "query_reduced": query_reduced,
            "support_reduced": support_reduced,
            "query_merged": query_merged,
            "support_merged": support_merged,
        }
        decoded = {
            "dec1_cross_support": dec1,
            "dec2_self": dec2,
            "dec3_cross_query": dec3,
            "dec4_self": dec4,
        }
        whole = encoder(query, support, small)
        return maps, decoded, small, pseudo_mask, prototype, whole

    maps, decoded, small, pseudo_mask, prototype, whole = steps(
        networks,
        golden_modules.nhwc(target_image),
        golden_modules.nhwc(reference_image),
        mask.astype(np.float32),
    )
    for name, x in maps.items():
        golden_modules.check_map(arrays, name, x, meta)
    for name, x in decoded.items():
        _tokens(arrays, meta, name, x, 1e-5)
    np.testing.assert_array_equal(small, arrays["mask_small"][:, 0])
    np.testing.assert_allclose(pseudo_mask, arrays["pseudo_mask"][:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(prototype, arrays["prototype"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(whole.mean, arrays["prompts"], rtol=0, atol=1e-5)
    assert whole.log_scale is None


def _random_inputs(seed, b=2, h=5, w=7, channels=12):
    keys = jax.random.split(jax.random.key(seed), 5)
    taps = [
        Taps(
            jax.random.normal(keys[2 * i], (b, h, w, channels)),
            jax.nn.relu(jax.random.normal(keys[2 * i + 1], (b, h, w, 9))),
        )
        for i in range(2)
    ]
    mask = (jax.random.uniform(keys[4], (b, h, w)) > 0.5).astype(jnp.float32)
    return *taps, mask


def _encoder(name, **changes):
    cfg = PromptConfig(dim=16, num_queries=3, num_heads=2, **changes)
    return ReferencePromptEncoder(cfg, DistributionConfig.of(name=name), 12, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_parameter_count_of_the_paper(name):
    model = nnx.eval_shape(
        lambda: ReferencePromptEncoder(
            PromptConfig(), DistributionConfig.of(name=name), 1536, rngs=nnx.Rngs(0)
        )
    )
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    assert count == (1_592_064 if name == "vrp" else 1_723_648)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_each_variant_has_its_heads(name):
    query, support, mask = _random_inputs(0)
    model = _encoder(name)
    posterior = jax.jit(model)(query, support, mask)
    query_features, support_features = jax.jit(model.features)(query, support, mask)
    features = jax.jit(model.decoder)(support_features, query_features)
    head = model.head
    if name == "vrp":
        expected = features
    elif name == "vrp_2linear":
        expected = head.linear2(head.linear1(features))
    else:
        expected = head.mean(features)
        np.testing.assert_allclose(posterior.log_scale, head.log_scale(features), atol=1e-5)
    np.testing.assert_allclose(posterior.mean, expected, atol=1e-5)
    assert (posterior.log_scale is None) == name.startswith("vrp")


@pytest.mark.parametrize("init_scale", [0.1, 1.0, 3.0])
def test_scale_starts_where_it_is_told(init_scale):
    head = PosteriorHead(DistributionConfig(init_scale=init_scale), 256, rngs=nnx.Rngs(3))
    log_scale = head(jax.random.normal(jax.random.key(0), (4, 50, 256))).log_scale
    np.testing.assert_allclose(log_scale.mean(), np.log(init_scale), atol=0.05)


def _wide(**changes):
    """Features, what a head of width 256 makes of them, and its layers."""
    cfg = DistributionConfig.of(init_scale=0.5, **changes)
    head = PosteriorHead(cfg, 256, rngs=nnx.Rngs(3))
    features = jax.random.normal(jax.random.key(0), (2, 50, 256))
    return features, head(features), head


def test_relative_scale_is_a_share_of_each_prompts_root_mean_square():
    features, (mean, log_scale), head = _wide(scale="relative")
    rms = np.sqrt(np.square(mean).mean(-1, keepdims=True))
    share = np.exp(head.log_scale(features))
    np.testing.assert_allclose(np.exp(log_scale), share * rms, rtol=1e-4)
    np.testing.assert_allclose(share.mean(), 0.5, rtol=0.3)


def test_fixed_scale_is_not_learned():
    _, (mean, log_scale), head = _wide(scale="fixed")
    rms = np.sqrt(np.square(mean).mean(-1, keepdims=True))
    expected = np.broadcast_to(0.5 * rms, mean.shape)
    np.testing.assert_allclose(np.exp(log_scale), expected, rtol=1e-5)
    assert not hasattr(head, "log_scale")


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_floor_is_added_to_the_scale(scale):
    _, (mean, plain), _ = _wide(scale=scale)
    _, (_, raised), _ = _wide(scale=scale, min_scale=0.7)
    unit = 1 if scale == "absolute" else np.sqrt(np.square(mean).mean(-1, keepdims=True))
    np.testing.assert_allclose(np.exp(raised), np.exp(plain) + 0.7 * unit, rtol=1e-4)


def test_prior_is_normalised_only_when_asked():
    query, support, mask = _random_inputs(1)
    support = support._replace(prior=support.prior * mask[..., None])
    raw, stretched = (
        _encoder("vrp", normalize_prior=on).features.pseudo_mask(query, support, mask)
        for on in (False, True)
    )
    expected = equations.cosine_prior(query.prior, support.prior, mask)
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    np.testing.assert_allclose(stretched.min((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(stretched.max((1, 2)), 1, atol=1e-5)


def test_dropout_is_alive_in_training_only():
    query, support, mask = _random_inputs(2)
    model = jax.jit(_encoder("vrp"))
    calm = model(query, support, mask).mean
    np.testing.assert_array_equal(calm, model(query, support, mask).mean)
    first, again, other = (model(query, support, mask, jax.random.key(i)).mean for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    assert float(jnp.abs(first - calm).max()) > 1e-3
    without = jax.jit(_encoder("vrp", dropout=0.0))(query, support, mask, jax.random.key(0)).mean
    np.testing.assert_allclose(without, calm, atol=1e-6)


def test_dropout_draws_query_and_support_apart():
    query, _, mask = _random_inputs(3)
    model = _encoder("vrp")
    dropped = []
    model.features.augmented = lambda x, prototype, mask: dropped.append(x) or x
    model.features(query, query, mask, jax.random.key(0))
    zero = [(x == 0).all((1, 2)) for x in dropped]
    assert bool((zero[0] != zero[1]).any())
