"""The vocabulary: images to ids and back, the small tokenizer (the original's layout: tests/checkpoints)."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import AutoTokenizer

from diffusers_focus.processing import vocabulary as V
from diffusers_focus.processing.images import FocusImageProcessor

TEXTS = [
    "Please segment the target referred to by the language description.",
    "remove the large striped red circle",
    "the blue star left of the small red heart",
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = V.build_tiny_tokenizer(TEXTS, 600)
    V.extend_tokenizer(tokenizer, 32, 64, tag_step=16)
    return tokenizer


@pytest.fixture(scope="module")
def vocab(tokenizer):
    return V.FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=len(tokenizer) + 5, tag_step=16)


def test_ids_and_text_of_an_image_agree(tokenizer, vocab):
    semantic, pixel = torch.randint(32, (4, 3)), torch.randint(64, (8, 5))
    ids = vocab.image_ids(semantic, pixel, 128, 64)
    text = V.resolution_text(128, 64) + vocab.image_text(semantic, pixel)
    assert ids.tolist() == tokenizer(text).input_ids
    codes = vocab.parse_image_ids(ids)
    assert torch.equal(codes.semantic, semantic) and torch.equal(codes.pixel, pixel)
    assert (codes.height, codes.width) == (128, 64)
    assert vocab.parse_image_ids(ids[2:]).height is None


def test_a_batch_of_images_is_written_at_once(vocab):
    semantic, pixel = torch.randint(32, (2, 4, 4)), torch.randint(64, (2, 8, 8))
    both = vocab.image_ids(semantic, pixel, with_tag=False)
    assert both.shape == (2, 6 + 4 * 5 + 8 * 9)
    assert torch.equal(both[1], vocab.image_ids(semantic[1], pixel[1], with_tag=False))


def test_text_and_images_are_told_apart(vocab):
    image = vocab.image_ids(torch.zeros(2, 2), torch.ones(3, 3), 32, 16).tolist()
    parts = vocab.split_images([1, 2, *image, 3, *image[2:], 4])
    assert [part if isinstance(part, list) else part.height for part in parts] == [[1, 2], 32, [3], None, [4]]
    with pytest.raises(ValueError, match="cut off"):
        vocab.split_images([1, *image[:-1]])


@pytest.mark.parametrize(
    "damage", [lambda ids: ids[:-1], lambda ids: ids[:5] + ids[6:], lambda ids: ids[:4] + [0] + ids[5:]]
)
def test_broken_images_are_refused(vocab, damage):
    ids = vocab.image_ids(torch.zeros(2, 2), torch.ones(3, 3), with_tag=False).tolist()
    with pytest.raises(ValueError):
        vocab.parse_image_ids(damage(ids))


def test_words_are_whole_with_and_without_a_space(tokenizer):
    for word in ("red", "circle", "striped", "remove", "description"):
        assert len(tokenizer.tokenize(word)) == len(tokenizer.tokenize(" " + word)) == 1
    assert tokenizer.tokenize("<|im_start|>user") != []
    assert tokenizer.decode(tokenizer("Café 12,\n<|im_end|>").input_ids) == "Café 12,\n<|im_end|>"


def test_training_a_tokenizer_is_repeatable():
    assert V.build_tiny_tokenizer(TEXTS, 400).get_vocab() == V.build_tiny_tokenizer(TEXTS, 400).get_vocab()
    assert len(V.build_tiny_tokenizer(TEXTS, 300)) == 300
    with pytest.raises(ValueError, match="259"):
        V.build_tiny_tokenizer(TEXTS, 100)


def test_tokenizer_and_image_processor_survive_a_pipeline(tokenizer, vocab, tmp_path):
    class Holder(DiffusionPipeline):
        def __init__(self, lm_tokenizer, image_processor):
            super().__init__()
            self.register_modules(lm_tokenizer=lm_tokenizer, image_processor=image_processor)

    processor = FocusImageProcessor(buckets=[[128, 128]], tag_step=16, high_resolution=None, decode_scale=1)
    Holder(tokenizer, processor).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["lm_tokenizer"] == ["transformers", "Qwen2Tokenizer"]
    assert index["image_processor"] == ["diffusers_focus.processing.images", "FocusImageProcessor"]
    loaded = Holder.from_pretrained(tmp_path)
    assert loaded.lm_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (
        V.FocusVocabulary.from_tokenizer(loaded.lm_tokenizer, embedding_rows=vocab.embedding_rows, tag_step=16) == vocab
    )
    assert loaded.image_processor.to_dict() == processor.to_dict()
    text = "<|im_start|>user\nremove the red<height_128><|image_level0_3|> circle<|im_end|>\n"
    assert loaded.lm_tokenizer(text).input_ids == tokenizer(text).input_ids
    again = AutoTokenizer.from_pretrained(tmp_path / "lm_tokenizer")
    assert (again.eos_token, again.pad_token) == (V.END_OF_TURN, V.END_OF_DOCUMENT)
    assert again(text).input_ids == tokenizer(text).input_ids


def test_wrong_layouts_are_refused(tokenizer, vocab):
    with pytest.raises(ValueError, match="tag_step"):
        V.FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=2000, tag_step=64)
    with pytest.raises(ValueError, match="Resize"):
        V.FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=100, tag_step=16)
    with pytest.raises(ValueError, match="no unused row"):
        _ = V.FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=len(tokenizer), tag_step=16).mask_trigger
    with pytest.raises(ValueError, match="already has"):
        V.extend_tokenizer(tokenizer, 4, 4)
    with pytest.raises(ValueError, match="multiples of 16 up to 256"):
        vocab.resolution_tag(128, 272)
