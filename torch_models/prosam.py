"""ProSAM without its frozen image networks: prompt encoder, sampling and objective.

Maps are NCHW. `PromptEncoder` names its tensors as VRP-SAM's checkpoints do; the two heads of
ProSAM, of which no checkpoint is published, are `mean` and `log_scale`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from torch_models.sam import modeling


class Attended(nn.Module):
    """Attention, added to its queries and normalised."""

    def __init__(self, kind: str, dim: int, heads: int):
        super().__init__()
        self.kind = kind
        setattr(self, kind, nn.MultiheadAttention(dim, heads, batch_first=True))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Keeps the shape of the queries `x`."""
        attention = getattr(self, self.kind)
        return self.norm(x + attention(x, keys, values, need_weights=False)[0])


class QueryDecoder(nn.Module):
    """Learned queries attend to the reference, themselves, the target and themselves."""

    def __init__(self, dim: int, queries: int, heads: int):
        super().__init__()
        self.supp_q_feat = nn.Embedding(queries, dim)
        for suffix in ("_0", ""):  # the reference, the target
            for name, kind in (
                ("cross_attention", "multihead_attn"),
                ("self_attention", "self_attn"),
            ):
                block = nn.ModuleList([Attended(kind, dim, heads)])
                setattr(self, f"transformer_{name}_layers{suffix}", block)

    def forward(self, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Maps (b, c, h, w) of the reference and of the target -> (b, q, c)."""
        x = self.supp_q_feat.weight.expand(len(support), -1, -1)
        _, channels, h, w = support.shape
        positions = sine_positions(h, w, channels).to(support)
        for suffix, maps in (("_0", support), ("", query)):
            values = maps.flatten(2).mT
            cross = getattr(self, f"transformer_cross_attention_layers{suffix}")[0]
            own = getattr(self, f"transformer_self_attention_layers{suffix}")[0]
            x = cross(x, values + positions, values)
            x = own(x, x, x)
        return x


class PromptEncoder(nn.Module):
    """Features of a reference, its annotation and features of a target -> mu and log sigma."""

    def __init__(self, channels: int, *, dim: int = 256, queries: int = 50, heads: int = 4):
        super().__init__()
        self.downsample_query = nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.ReLU())
        self.merge_1 = nn.Sequential(nn.Conv2d(2 * dim + 1, dim, 1, bias=False), nn.ReLU())
        self.transformer_decoder = QueryDecoder(dim, queries, heads)
        self.mean = nn.Linear(dim, dim)
        self.log_scale = nn.Linear(dim, dim)

    def forward(
        self,
        query: tuple[torch.Tensor, torch.Tensor],
        support: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Without dropout.

        Args:
            query: Merged and high-level features of the targets.
            support: The same for the references.
            mask: (b, h, w), the annotations at the size of the merged features.
        """
        return self.heads(self.prompt_features(query, support, mask))

    def prompt_features(
        self,
        query: tuple[torch.Tensor, torch.Tensor],
        support: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Input of the heads, (b, q, c); arguments as for `forward`."""
        mask = mask[:, None]
        reduced = self.downsample_query(query[0])
        support_reduced = self.downsample_query(support[0])
        prototype = (support_reduced * mask).sum((2, 3)) / (mask.sum((2, 3)) + 5e-4)
        pseudo_mask = cosine_prior(query[1], support[1], mask)
        augmented = [
            self.merge_1(torch.cat([x, prototype[:, :, None, None].expand_as(x), 10 * m], 1))
            for x, m in ((support_reduced, mask), (reduced, pseudo_mask))
        ]
        return self.transformer_decoder(*augmented)

    def heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt features -> mu and log sigma."""
        return self.mean(features), self.log_scale(features)


def cosine_prior(query: torch.Tensor, support: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each target position's greatest similarity to an annotated one, at the mask's size."""
    size = support.shape[2:]
    weight = F.interpolate(mask, size, mode="bilinear", align_corners=True)
    weighted = (support * weight).flatten(2)
    norms = [x.flatten(2).norm(dim=1) for x in (query, support)]
    products = torch.bmm(query.flatten(2).mT, weighted)
    products /= norms[0][:, :, None] * norms[1][:, None] + 1e-7
    prior = products.amax(2).view(len(query), 1, *query.shape[2:])
    return F.interpolate(prior, mask.shape[2:], mode="bilinear", align_corners=True)


def sine_positions(height: int, width: int, dim: int) -> torch.Tensor:
    """Sine positions of DETR, (height * width, dim): y first, then x."""
    half = dim // 2
    frequency = 10000 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)

    def encode(size: int) -> torch.Tensor:
        turn = 2 * math.pi * torch.arange(1, size + 1) / (size + 1e-6)
        angle = turn[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    y = encode(height)[:, None].expand(height, width, half)
    x = encode(width)[None].expand(height, width, half)
    return torch.cat([y, x], 2).flatten(0, 1)


def sample(
    mean: torch.Tensor, log_scale: torch.Tensor, eps: torch.Tensor, delta: torch.Tensor, nu: float
) -> torch.Tensor:
    """Prompts of the t-distribution from the noise eps (k, b, q, c) and delta (k, b, q, 1)."""
    return mean + log_scale.exp() * eps * (nu / delta).sqrt()


def decode(
    sam: modeling.Sam, embeddings: torch.Tensor, prompts: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """Logits (b, h, w) of SAM's single mask; the other masks are not computed.

    `segment_anything`'s own `MaskDecoder.forward` takes prompts of one image only, so this calls
    its parts.

    Args:
        sam: The package's.
        embeddings: (b, c, i, j).
        prompts: (b, q, c).
        size: (h, w).
    """
    decoder, batch = sam.mask_decoder, len(prompts)
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(batch, -1, -1), prompts], 1)
    image = embeddings + sam.prompt_encoder.no_mask_embed.weight[:, :, None, None]
    positions = sam.prompt_encoder.get_dense_pe().to(image).expand(batch, -1, -1, -1)
    tokens, attended = decoder.transformer(image, positions, tokens)
    upscaled = decoder.output_upscaling(attended.mT.reshape(image.shape))
    weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
    logits = (weights[:, None] @ upscaled.flatten(2)).view(batch, 1, *upscaled.shape[2:])
    return F.interpolate(logits.float(), list(size), mode="bilinear", align_corners=True)[:, 0]


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus Dice with a smoothing of 1."""
    p = logits.sigmoid()
    overlap = (p * target).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def objective_folded(
    sam: modeling.Sam, embeddings: torch.Tensor, prompts: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The mean loss of prompts (k, b, q, c); samples and images are decoded as one batch."""
    samples = len(prompts)
    repeated = embeddings.repeat(samples, 1, 1, 1)
    logits = decode(sam, repeated, prompts.flatten(0, 1), target.shape[1:])
    return mask_loss(logits, target.repeat(samples, 1, 1))


def backward_one_by_one(
    sam: modeling.Sam, embeddings: torch.Tensor, prompts: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The same mean loss, and its gradients, one sample after the other.

    Each sample's graph is freed before the next is built, to save memory.
    """
    leaf = prompts.detach().requires_grad_()
    total = torch.zeros((), device=prompts.device)
    for sample_prompts in leaf:
        logits = decode(sam, embeddings, sample_prompts, target.shape[1:])
        loss = mask_loss(logits, target) / len(prompts)
        loss.backward()
        total += loss.detach()
    prompts.backward(leaf.grad)
    return total
