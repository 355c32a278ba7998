"""The package `segment_anything`'s SAM at any size, with random weights."""

import functools
import importlib.util
import sys
import types
import typing

import numpy as np
import torch
from PIL import Image

from prosam_jax.config import SAMConfig

if typing.TYPE_CHECKING:
    from prosam_jax.sam.model import Sam


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """`torchvision.ops.batched_nms` for boxes of one category, which is all that SAM has."""
    assert not idxs.any()
    order = scores.sort(descending=True, stable=True)[1]
    boxes, area = boxes[order], box_area(boxes[order])
    corners = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    sides = (torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corners).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    above = (overlap / (area[:, None] + area - overlap)).double() > iou_threshold
    keep = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if keep[i]:
            keep[i + 1 :] &= ~above[i, i + 1 :]
    return order[keep]


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """`torchvision.ops.box_area`."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _stub_torchvision() -> list[str]:
    """Lets `segment_anything` be imported without torchvision; it uses a few of its functions."""
    functions = {
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms.functional": {
            "to_pil_image": Image.fromarray,
            "resize": lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR),
        },
    }
    parents = ["torchvision", "torchvision.ops", "torchvision.transforms"]
    for name in [*parents, *functions]:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(functions.get(name, {}))
    return [*parents, *functions]


stubs = _stub_torchvision() if importlib.util.find_spec("torchvision") is None else []
from segment_anything import modeling, sam_model_registry  # noqa: E402
from segment_anything.modeling import image_encoder  # noqa: E402

for stub in stubs:  # else transformers takes them for torchvision
    del sys.modules[stub]


class FusedAttention(image_encoder.Attention):
    """Attention through PyTorch's fused kernels; the relative positions are their bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, h, w, c) to the same."""
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = None
        if self.use_rel_pos:
            grid = q.unflatten(2, (h, w))
            rows = image_encoder.get_rel_pos(h, h, self.rel_pos_h)
            columns = image_encoder.get_rel_pos(w, w, self.rel_pos_w)
            of_rows = torch.einsum("bnhwd,hid->bnhwi", grid, rows)
            of_columns = torch.einsum("bnhwd,wjd->bnhwj", grid, columns)
            bias = of_rows[..., :, None] + of_columns[..., None, :]
            bias = bias.reshape(b, self.num_heads, h * w, h * w)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, -1))


def use_sdpa(encoder: modeling.ImageEncoderViT) -> None:
    """Gives an image encoder `FusedAttention`; `segment_anything`'s own writes all scores."""
    for block in encoder.blocks:
        assert isinstance(block, image_encoder.Block)
        block.attn.__class__ = FusedAttention


def build(cfg: SAMConfig, seed: int) -> modeling.Sam:
    """A SAM of the architecture `cfg`, in eval mode, with every parameter drawn from `seed`.

    `segment_anything` builds only square image encoders. For other image sizes, the position
    embedding and the global blocks' relative positions get tables of the right lengths.
    """
    dim = cfg.prompt_embed_dim
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=cfg.image_size[0],
            patch_size=cfg.patch_size,
            embed_dim=cfg.embed_dim,
            depth=cfg.depth,
            num_heads=cfg.num_heads,
            mlp_ratio=cfg.mlp_ratio,
            out_chans=dim,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            use_abs_pos=cfg.use_abs_pos,
            use_rel_pos=cfg.use_rel_pos,
            window_size=cfg.window_size,
            global_attn_indexes=cfg.global_attn_indexes,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=dim,
            image_embedding_size=cfg.embedding_size,
            input_image_size=cfg.image_size,
            mask_in_chans=cfg.mask_in_chans,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=dim,
            transformer=modeling.TwoWayTransformer(
                depth=cfg.decoder_depth,
                embedding_dim=dim,
                num_heads=cfg.decoder_num_heads,
                mlp_dim=cfg.decoder_mlp_dim,
            ),
            num_multimask_outputs=cfg.num_multimask_outputs,
            iou_head_depth=cfg.iou_head_depth,
            iou_head_hidden_dim=cfg.iou_head_hidden_dim,
        ),
    )
    _fit_positions(sam.image_encoder, cfg)
    draw(sam, seed)
    return sam.eval().requires_grad_(False)


def _fit_positions(encoder: modeling.ImageEncoderViT, cfg: SAMConfig) -> None:
    h, w = cfg.embedding_size
    head_dim = cfg.embed_dim // cfg.num_heads
    if cfg.use_abs_pos:
        encoder.pos_embed = torch.nn.Parameter(torch.empty(1, h, w, cfg.embed_dim))
    for block in encoder.blocks:
        if cfg.use_rel_pos and not block.window_size:
            for name, size in (("rel_pos_h", h), ("rel_pos_w", w)):
                table = torch.nn.Parameter(torch.empty(2 * size - 1, head_dim))
                setattr(block.attn, name, table)


@torch.no_grad()
def draw(sam: torch.nn.Module, seed: int) -> None:
    """Draws every parameter of a SAM from `seed`, so that no activation vanishes or explodes."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {m.weight for m in sam.modules() if isinstance(m, torch.nn.Embedding)}
    buffers = [(n, x) for n, x in sam.named_buffers() if n.endswith("gaussian_matrix")]
    for name, tensor in [*sam.named_parameters(), *buffers]:
        tensor.normal_(generator=generator)
        if name.endswith("bias"):
            tensor.mul_(0.1)
        elif tensor.ndim == 1:  # a norm's gain
            tensor.mul_(0.1).add_(1)
        elif name.endswith("pos_embed"):
            tensor.mul_(0.3)
        elif name.endswith("weight") and tensor not in embeddings:
            tensor.mul_(tensor[0].numel() ** -0.5)
        elif "rel_pos" in name:
            tensor.mul_(0.3)


def published(model: str) -> modeling.Sam:
    """The untrained network of the published checkpoint of "vit_b", "vit_l" or "vit_h"."""
    return sam_model_registry[model]()


def of_jax(ours: "Sam") -> modeling.Sam:
    """`segment_anything`'s SAM with the weights of this library's.

    The conversion only moves numbers about. So it is undone by converting the places of all
    numbers, which are whole and below 2^24, and float32 has those exactly.
    """
    from prosam_jax.convert import engine
    from prosam_jax.convert.rules.sam import META_RULES
    from prosam_jax.weights import files

    twin = build(ours.cfg, 0)
    state = twin.state_dict()
    sizes = [x.numel() for x in state.values()]
    assert sum(sizes) < 2**24
    places = torch.arange(sum(sizes)).float().split(sizes)
    source = {n: x.view(state[n].shape).numpy() for n, x in zip(state, places, strict=True)}
    moved = files.leaves(
        engine.filled(lambda rngs: type(ours)(ours.cfg, rngs=rngs), source, META_RULES)
    )
    weights = torch.full((sum(sizes),), torch.nan)
    for name, values in files.leaves(ours).items():
        at = torch.from_numpy(np.array(moved[name]).astype(np.int64))
        weights[at] = torch.from_numpy(np.array(values))
    assert not weights.isnan().any()
    for tensor, values in zip(state.values(), weights.split(sizes), strict=True):
        tensor.copy_(values.view(tensor.shape))
    return twin
