"""Grids: buckets, sizes outside the table, latents (the original's table and counts: tests/checkpoints)."""

import pytest

from diffusers_focus.processing import grids


def test_sizes_outside_the_table_are_floored():
    assert grids.vit_size(128, 128) == (112, 112)
    assert grids.vit_size(16, 40) == (28, 28)
    assert grids.semantic_grid(160, 224) == (5, 8) and grids.pixel_grid(160, 224) == (10, 14)


def test_every_bucket_of_the_originals_is_in_the_table():
    assert set(grids.ORIGINAL_BUCKETS) == set(grids.RESOLUTION_MAPPING)


def test_nearest_bucket_goes_by_aspect_ratio():
    buckets = grids.BUCKETS_512
    assert grids.nearest_bucket(3000, 4000, buckets) == (384, 512)
    assert grids.nearest_bucket(4000, 3000, buckets) == (512, 384)
    assert grids.nearest_bucket(10, 100, buckets) == (256, 1024)
    for bucket in buckets:
        assert grids.nearest_bucket(*bucket, buckets) == bucket


def test_nearest_bucket_breaks_ties_by_area():
    assert grids.nearest_bucket(300, 300, grids.ORIGINAL_BUCKETS) == (256, 256)
    assert grids.nearest_bucket(2000, 2000, grids.ORIGINAL_BUCKETS) == (512, 512)


def test_latents_and_high_resolution():
    assert grids.latent_grid(512, 384, decode_scale=2, vae_scale_factor=8) == (128, 96)
    assert grids.high_resolution_size(512, 512, 768) == (768, 768)
    assert grids.high_resolution_size(256, 1024, 768) == (384, 1536)
    for bucket in grids.ORIGINAL_BUCKETS:
        assert all(side % 32 == 0 for side in grids.high_resolution_size(*bucket, 768))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        grids.pixel_grid(100, 128)
    with pytest.raises(ValueError, match="no multiple of the VAE"):
        grids.latent_grid(48, 48, decode_scale=1, vae_scale_factor=32)
    with pytest.raises(ValueError, match="no buckets"):
        grids.nearest_bucket(4, 4, [])
