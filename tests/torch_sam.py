"""The torch oracle: `segment_anything`'s SAM at any size, with random weights."""

import functools
import importlib.util
import sys
import types

import torch

from convert import engine, sam_to_flax
from prosam_jax import weights
from prosam_jax.config import SAMConfig
from prosam_jax.sam.model import Sam


def _stub_torchvision():
    """Lets `segment_anything` be imported: parts of it unused here want torchvision."""
    names = {
        "torchvision.ops.boxes": ("batched_nms", "box_area"),
        "torchvision.transforms.functional": ("resize", "to_pil_image"),
    }
    for name, functions in names.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            parent = ".".join(parts[:end])
            sys.modules.setdefault(parent, types.ModuleType(parent))
        for function in functions:
            setattr(sys.modules[name], function, None)


if importlib.util.find_spec("torchvision") is None:
    _stub_torchvision()

from segment_anything import modeling, sam_model_registry  # noqa: E402


def build_torch_sam(cfg: SAMConfig, seed: int) -> modeling.Sam:
    """A torch SAM of the architecture `cfg`, in eval mode, every parameter drawn from `seed`.

    `segment_anything` builds square image encoders only; for other image sizes the position
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
    _draw(sam, seed)
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
def _draw(sam: modeling.Sam, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = {m.weight for m in sam.modules() if isinstance(m, torch.nn.Embedding)}
    for name, tensor in [*sam.named_parameters(), *sam.prompt_encoder.pe_layer.named_buffers()]:
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


def published_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the published checkpoint of "vit_b", "vit_l", "vit_h"."""
    with torch.device("meta"):
        state = sam_model_registry[model]().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def convert_to_flax(torch_sam: modeling.Sam, cfg: SAMConfig) -> Sam:
    """The same SAM in JAX, through the rules of the conversion command."""
    module = weights.abstract(lambda rngs: Sam(cfg, rngs=rngs))
    source = {name: tensor.numpy() for name, tensor in torch_sam.state_dict().items()}
    arrays = engine.convert(source, sam_to_flax.RULES, (), weights.leaves(module))
    return weights.fill(module, arrays.__getitem__)
