"""FocusMaskConditioner: an edit mask as a sequence for the UNet's cross-attention, and as guidance of visual tokens.

Paper: FOCUS (arXiv 2506.16806), "Diffusion decoder with mask guidance": the mask is downsampled to the latent grid,
flattened and linearly projected to a sequence f_m that the SDXL UNet reads through its cross-attention. The paper
leaves position, length and content open. Here the mask is cut into patches (256 of them at 1024 pixels, instead of
16,384 cells); each row also carries its 2-D position and, as a content key, the mean token embedding under the
patch, by which a UNet query can find its own place.

The last projection is zero and has no bias: at initialisation f_m is exactly zero, and since SDXL's key and value
projections have no bias either, zero rows contribute zero values.

With `guidance_dim` it also guides the visual tokens that the language model writes (`cell_guidance`), which the paper does not
have; that part starts silent as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from torch import nn

from ..sharing.publish import FocusHubMixin
from ._cell_guidance import CellGuidance, cell_places
from ._position import sine_position_2d


@dataclass
class FocusMaskConditionerOutput(BaseOutput):
    """What the UNet's cross-attention reads of a mask.

    Args:
        sequence (`torch.Tensor`): f_m [B, T, cross_attention_dim], patches in raster order, in the dtype of the weights. Patches
            without mask are present too: the decoder must know where not to edit.
    """

    sequence: torch.Tensor


class MaskConditionerMLP(nn.Sequential):
    """Layers in turn, [B, T, hidden_dim]: the model's only block, and what `compile_repeated_blocks` compiles.

    It runs as any `nn.Sequential`; torch compiles no code of its own on its own, and a container's forward is that.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return x


class FocusMaskConditioner(FocusHubMixin, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Mask on the latent grid -> cross-attention sequence.

    Args:
        patch_size: p, side of a patch in latent cells.
        code_channels: Channels of the token map (both code widths together).
        cross_attention_dim: Width of the UNet's `encoder_hidden_states`.
        hidden_dim: Inner width, a multiple of 4.
        guidance_dim: Inner width of the guidance of visual tokens; None has none.
        language_hidden_size: H, width of the language model that is guided; needed with `guidance_dim`.
        outline_dim: Inner width of the outlines of what is not there yet, a part of that guidance; None has none.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["MaskConditionerMLP"]
    # diffusers leaves out what is called proj_out; listed, since under an adapter its layers are called otherwise.
    _skip_layerwise_casting_patterns = ["norm", "proj_out"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 8,
        code_channels: int = 64,
        cross_attention_dim: int = 2048,
        hidden_dim: int = 512,
        guidance_dim: int | None = None,
        language_hidden_size: int | None = None,
        outline_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        if hidden_dim % 4:
            raise ValueError(
                f"hidden_dim is {hidden_dim}; it must be a multiple of 4 because it carries 2-D sine positions."
            )
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1 latent cell.")
        self.mask_in = nn.Linear(patch_size * patch_size, hidden_dim)
        self.position_in = nn.Linear(hidden_dim, hidden_dim)
        self.content_in = nn.Linear(code_channels, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.mlp = MaskConditionerMLP(
            nn.Linear(hidden_dim, 4 * hidden_dim), nn.GELU(), nn.Linear(4 * hidden_dim, hidden_dim)
        )
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.proj_out = nn.Linear(hidden_dim, cross_attention_dim, bias=False)
        nn.init.zeros_(self.proj_out.weight)
        self.cell_guidance = None
        if guidance_dim is not None:
            if language_hidden_size is None:
                raise ValueError(
                    f"guidance_dim is {guidance_dim}, but language_hidden_size is not given; it is the width of the language model "
                    "whose visual tokens are guided."
                )
            self.cell_guidance = CellGuidance(language_hidden_size, guidance_dim, outline_dim)
        elif outline_dim is not None:
            raise ValueError(
                f"outline_dim is {outline_dim} without guidance_dim; outlines are a part of the guidance of tokens, so give both."
            )

    def places(self, objects: torch.Tensor, changes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Where the cells of a token grid lie in what is edited, for `guide`: float32 [B, rows * columns, P], see `cell_places`.

        Args:
            objects: [B, 1, H, W] in 0..1 on the canvas, what each edit is about.
            changes: [B, 1, H, W] in 0..1, where its pixels may change.
            grid: rows and columns of the tokens.
        """
        return cell_places(objects, changes, grid)

    def guide(self, states: torch.Tensor, places: torch.Tensor, outlines: torch.Tensor | None = None) -> torch.Tensor:
        """States [..., H] that visual tokens are read from, guided by the places [..., P] of their cells; as they are without
        `guidance_dim`. `outlines` are those of `self.outlines`, where they are known already.
        """
        return states if self.cell_guidance is None else self.cell_guidance(states, places, outlines)

    def outlines(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor | None:
        """Where in their cells the thing will be that an edit draws: logits [..., 64] of 8 x 8 points, row by row; None without
        `outline_dim`. Arguments as those of `guide`.
        """
        return None if self.cell_guidance is None else self.cell_guidance.outlines(states, places)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a `height` x `width` latent grid; their product is the sequence length T."""
        p = self.config.patch_size
        return math.ceil(height / p), math.ceil(width / p)

    def forward(
        self, mask: torch.Tensor, token_map: torch.Tensor, return_dict: bool = True
    ) -> FocusMaskConditionerOutput | tuple[torch.Tensor]:
        """Encode masks.

        Args:
            mask: [B, 1, h, w] in 0..1 on the latent grid; 1 is where pixels may change.
            token_map: [B, code_channels, hp, wp], the embeddings that also condition the UNet, on any grid.
            return_dict: False returns a tuple.

        Returns:
            `FocusMaskConditionerOutput`.

        Raises:
            ValueError: a shape does not fit.
        """
        config = self.config
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be [B, 1, h, w] on the latent grid.")
        if token_map.ndim != 4 or token_map.shape[:2] != (mask.shape[0], config.code_channels):
            raise ValueError(
                f"token_map has shape {tuple(token_map.shape)}; it must be [{mask.shape[0]}, {config.code_channels}, "
                "hp, wp] (batch of the mask, code_channels of this model)."
            )
        p = config.patch_size
        height, width = mask.shape[-2:]
        rows, columns = self.grid_size(height, width)
        pad = (0, columns * p - width, 0, rows * p - height)

        patches = F.pixel_unshuffle(F.pad(mask.to(self.dtype), pad), p).flatten(2).transpose(1, 2)
        # Nearest, like the resize with which the token map joins the latents; padding does not dilute the means.
        content = F.interpolate(token_map.to(self.dtype), size=(height, width), mode="nearest")
        inside = F.avg_pool2d(F.pad(content.new_ones(1, 1, height, width), pad), p)
        content = (F.avg_pool2d(F.pad(content, pad), p) / inside).flatten(2).transpose(1, 2)
        extent = (rows * p / height, columns * p / width)
        position = sine_position_2d(rows, columns, config.hidden_dim, mask.device, self.dtype, extent)

        h = self.mask_in(patches) + self.content_in(content) + self.position_in(position)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            h = h + self._gradient_checkpointing_func(self.mlp, self.norm(h))
        else:
            h = h + self.mlp(self.norm(h))
        sequence = self.proj_out(self.norm_out(h))
        return FocusMaskConditionerOutput(sequence) if return_dict else (sequence,)
