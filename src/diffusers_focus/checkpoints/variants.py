"""The two published variants as data: component name -> class and configuration.

One code path serves both sizes; only these numbers differ. `focus-3b` holds the sizes of FOCUS section 4 and of the models it
inherits (Qwen2.5-3B, Qwen2-VL's ViT, ConvNeXt-L, ILLUME+'s tokenizer, SDXL's UNet and VAE); `focus-tiny` is the embedded
default. `TEST` is smaller still, for tests.
"""

from __future__ import annotations

from typing import Any

TINY_TEXT_ROWS = 512  # rows of the padded text table; the visual tokens follow, as in the original's layout
TINY_VOCABULARY = {"text_rows": TINY_TEXT_ROWS, "semantic_codes": 512, "pixel_codes": 1024, "tag_step": 16}

TINY: dict[str, dict[str, Any]] = {
    "vae": {
        "block_out_channels": [16, 32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "sample_size": 128,
        "force_upcast": False,
    },
    "vision_encoder": {
        "vision_tower": {"depth": 3, "embed_dim": 96, "hidden_size": 192, "num_heads": 4, "mlp_ratio": 3},
        "pyramid_depths": [1, 1, 3, 1],
        "pyramid_channels": [24, 48, 96, 160],
        "pyramid_layer_scale_init": 0.3,
        "fusion_level": 2,
        "fusion_num_heads": 4,
        "fusion_dim": 128,
        "num_query_tokens": 10,
        "query_dim": 128,
        "query_num_heads": 4,
        "query_mlp_ratio": 3,
        "query_levels": [1, 2, 3],
        "language_hidden_size": 192,
        "pixel_feature_dim": 8,
        "region_dim": 96,
    },
    "mask_decoder": {
        "in_channels": [24, 48, 96, 160],
        "language_hidden_size": 192,
        "hidden_dim": 96,
        "mask_dim": 64,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 192,
        "decoder_ffn_dim": 256,
        "num_slots": 10,
        "num_points": 2,
        "instance_dim": 32,
        "norm_groups": 8,
    },
    "visual_tokenizer": {
        "code_dim": 8,
        "semantic_input_dim": 192,
        "semantic_embed_dim": 128,
        "semantic_num_blocks": 2,
        "semantic_num_heads": 4,
        "semantic_codebook_size": 512,
        "pixel_channels": 16,
        "pixel_decoder_channels": 16,
        "pixel_channel_mult": [1, 2, 3, 4, 6],
        "pixel_num_res_blocks": 1,
        "pixel_attention_stages": [],
        "pixel_codebook_size": 1024,
        "norm_groups": 4,
    },
}
