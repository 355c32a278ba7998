"""DINOv2 with patches of 14 pixels, with or without registers, in plain PyTorch.

The state dict has the names and shapes of dinov2_vits14_pretrain.pth and the larger models' files.
"""

import torch
import torch.nn.functional as F
from torch import nn

from torch_models.random_weights import draw

PATCH = 14


class PatchEmbed(nn.Module):
    """One linear map of every patch."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) to (b, n, c), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.num_heads = num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mixes the tokens of (b, n, c)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales the channels."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block whose residual branches are scaled."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nn.Module):
    """The network; calling it gives the features of `prosam_jax.backbone.target_taps`, in NCHW.

    The position table has `grid` x `grid` patches and is interpolated for other sizes. Registers
    lie between the class token and the patches.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, grid: int = 37, registers: int = 0):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.grid = grid
        self.registers = registers

    def positions(self, h: int, w: int) -> torch.Tensor:
        """The table for h x w patches, (1, 1 + h w, c), by the original's default rule."""
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.registers:
            table = F.interpolate(table, (h, w), mode="bicubic", antialias=True)
        else:
            factor = ((h + 0.1) / self.grid, (w + 0.1) / self.grid)
            table = F.interpolate(table, scale_factor=factor, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def tokens(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Normalised (b, 3, H, W) of whole patches -> tokens after each block, (b, 1 + r + n, c).

        r is the number of registers.
        """
        h, w = images.shape[2] // PATCH, images.shape[3] // PATCH
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions(h, w)
        if self.registers:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def trunk(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of any size -> (two middle blocks concatenated, the last one).

        The images are first resized to the nearest whole number of patches. The blocks are the
        ends of the second, the third and the last quarter, after the final norm.
        """
        h, w = (max(1, (n + PATCH // 2) // PATCH) for n in images.shape[2:])
        images = F.interpolate(images, (h * PATCH, w * PATCH), mode="bilinear")
        depth = len(self.blocks)
        outputs = self.tokens(images)
        second, third, last = (
            self.norm(outputs[i - 1])[:, 1 + self.registers :].transpose(1, 2).unflatten(2, (h, w))
            for i in (depth // 2, 3 * depth // 4, depth)
        )
        return torch.cat([second, third], dim=1), last

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """The identity: attention mixes the whole image from the first block on."""
        return x

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> (two middle blocks concatenated, the last one)."""
        return self.trunk(images)


def random(
    dim: int, depth: int, num_heads: int, seed: int, grid: int = 37, registers: int = 0
) -> DINOv2:
    """A network of any size with random weights."""
    model = draw(DINOv2(dim, depth, num_heads, grid, registers), seed)
    # `draw` scales the position table like a kernel, which makes it too small to matter.
    model.pos_embed *= model.pos_embed[0].numel() ** 0.5
    return model


def vits14(seed: int) -> DINOv2:
    """The network of dinov2_vits14_pretrain.pth; random weights."""
    return random(384, 12, 6, seed)


def vitb14(seed: int) -> DINOv2:
    """The network of dinov2_vitb14_pretrain.pth; random weights."""
    return random(768, 12, 12, seed)


def vitl14(seed: int) -> DINOv2:
    """The network of dinov2_vitl14_pretrain.pth; random weights."""
    return random(1024, 24, 16, seed)


def vitl14_reg(seed: int) -> DINOv2:
    """The network of dinov2_vitl14_reg4_pretrain.pth; random weights."""
    return random(1024, 24, 16, seed, registers=4)
