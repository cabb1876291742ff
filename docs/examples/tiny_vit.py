"""A vision transformer (Dosovitskiy et al. 2021) for small images.

python run.py --net_name docs/examples/tiny_vit.py:ViT --net_args dim=32,depth=2 --optimizer_name adam --lr 0.002
"""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and an MLP, each behind LayerNorm and around a residual connection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of the image and a token of their own -> blocks -> logits from the token.

    Args:
        n_classes, input_shape: of the data; the runner gives them to every factory that names them.
        dim: width. depth: blocks. heads: of attention. patch: height and width of a patch.
    """

    def __init__(
        self,
        n_classes: int,
        input_shape: tuple[int, int, int],
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        patch: int = 2,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        n_patches = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + n_patches, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])
