"""SAM's architecture in its published and packaged sizes."""

import dataclasses
from typing import ClassVar, Self

from prosam_jax.config.checks import check_choice
from prosam_jax.config.choices import SAM_MODELS, Attention, DType
from prosam_jax.config.fields import Group
from prosam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SAMConfig(Group):
    """Architecture of SAM (Kirillov et al. 2023, arXiv 2304.02643), names as in `segment_anything`.

    Attributes:
        image_size: (height, width) of the image encoder's input, in pixels.
        patch_size: Side of a patch in pixels, which is the stride of the image embedding.
        embed_dim: Width of the ViT.
        depth: Number of ViT blocks.
        num_heads: Attention heads of a ViT block.
        mlp_ratio: Hidden width of a ViT block's MLP, relative to `embed_dim`.
        window_size: Side of the attention windows in patches, 0 for no windows.
        global_attn_indexes: Blocks that attend globally instead of in windows.
        use_abs_pos: Whether absolute positions are added; without them, any image size works.
        use_rel_pos: Whether decomposed relative positions are added to the attention scores.
        prompt_embed_dim: Channels of the image embedding and of every prompt.
        mask_in_chans: Channels inside the mask prompt's downscaling.
        decoder_depth: Blocks of the two-way transformer.
        decoder_num_heads: Attention heads of the two-way transformer.
        decoder_mlp_dim: Hidden width of the two-way transformer's MLPs.
        num_multimask_outputs: Masks of the multimask output, in addition to the single mask.
        iou_head_depth: Layers of the MLP that predicts the masks' IoU.
        iou_head_hidden_dim: Hidden width of that MLP.
        dtype: Type of the activations of encoder and mask decoder; parameters stay float32.
        attention: How the ViT computes attention, see `SAMSettings`.
    """

    PREFIX: ClassVar[str] = "sam."

    image_size: tuple[int, int] = (1024, 1024)
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    prompt_embed_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    dtype: DType = "float32"
    attention: Attention = "auto"

    def __post_init__(self) -> None:
        """Checks what the modules rely on: raises UserError if two fields do not fit."""
        super().__post_init__()
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError(f"sam.attention='cudnn' needs sam.dtype='bfloat16', not {self.dtype!r}")
        if min(self.image_size) < self.patch_size:
            raise UserError(
                f"image_size={self.image_size} must be at least patch_size={self.patch_size}"
            )

    @property
    def embedding_size(self) -> tuple[int, int]:
        """(height, width) of the image embedding in patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def encoder_operations(self, *, padded: bool = False) -> int:
        """Operations of the image encoder's products and convolutions for one image.

        A multiplication and an addition are two.

        Args:
            padded: Whether the windows' padding goes through the projections, as it does in
                `segment_anything` and not here. It is attended to in any case.
        """
        h, w = self.embedding_size
        dim, out_dim = self.embed_dim, self.prompt_embed_dim
        hidden, positions = int(self.mlp_ratio * dim), h * w
        total = positions * dim * 3 * self.patch_size**2
        for index in range(self.depth):
            size = 0 if index in self.global_attn_indexes else self.window_size
            rows, cols = (size, size) if size else (h, w)
            attended = -(-h // rows) * -(-w // cols) * rows * cols
            total += (attended if padded else positions) * 4 * dim * dim
            total += attended * 2 * rows * cols * dim
            if self.use_rel_pos:
                total += attended * (rows + cols) * dim
            total += positions * 2 * dim * hidden
        total += positions * (dim * out_dim + 9 * out_dim * out_dim)
        return 2 * total

    @classmethod
    def vit_b(cls) -> Self:
        """ViT-B, as in `sam_vit_b_01ec64.pth`."""
        return cls()

    @classmethod
    def vit_l(cls) -> Self:
        """ViT-L, as in `sam_vit_l_0b3195.pth`."""
        return cls(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))

    @classmethod
    def vit_h(cls) -> Self:
        """ViT-H, as in `sam_vit_h_4b8939.pth`, which the paper uses."""
        return cls(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))

    @classmethod
    def shapes(cls) -> Self:
        """A small SAM for pictures like those of Shapes-5i; its weights come with the package."""
        return cls(
            image_size=(128, 128),
            patch_size=8,
            embed_dim=96,
            depth=5,
            num_heads=3,
            mlp_ratio=3.0,
            window_size=8,
            global_attn_indexes=(2, 4),
            prompt_embed_dim=96,
            mask_in_chans=8,
            decoder_num_heads=4,
            decoder_mlp_dim=160,
            iou_head_hidden_dim=64,
        )

    @classmethod
    def tiny(cls) -> Self:
        """A few layers for tests and trials; there are no trained weights of this size."""
        return cls(
            image_size=(256, 256),
            embed_dim=48,
            depth=3,
            num_heads=2,
            window_size=5,
            global_attn_indexes=(1,),
            decoder_mlp_dim=128,
        )

    @classmethod
    def named(cls, name: str) -> Self:
        """The size called `name`; UserError with the nearest names if there is none."""
        check_choice("sam.model", name, SAM_MODELS)
        return getattr(cls, name)()
