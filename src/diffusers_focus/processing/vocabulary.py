"""The vocabulary: text, markers, resolution tags and two codebooks in one table of ids.

Paper: FOCUS (arXiv 2506.16806) inherits the layout of ILLUME+ (arXiv 2504.01934, Apache-2.0): everything visual is an
ordinary token appended to Qwen2.5's tokenizer, so one `lm_head` predicts words and image codes alike.

    text | 7 markers | 16 height tags | 16 width tags | semantic codes (level 0) | pixel codes (level 1) | unused rows

The embedding table is larger than the tokenizer (the text part is padded to a round number of rows before the visual
tokens are counted), which leaves unused rows at the end. The first of them is the mask trigger: writing it tells the
system that masks follow. It has no text form.

An image is written as

    <height_H><width_W> <start_of_image> <start_of_level0> (row <end_of_line>) * h1 <end_of_level0>
                                         <start_of_level1> (row <end_of_line>) * h2 <end_of_level1> <end_of_image>
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
CHAT_TOKENS = (END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN)
MARKERS = (
    "<start_of_image>",
    "<end_of_image>",
    "<end_of_line>",
    "<start_of_level0>",
    "<end_of_level0>",
    "<start_of_level1>",
    "<end_of_level1>",
)
NUM_TAGS = 16

# How Qwen2 cuts text into words before merging bytes.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ImageCodes(NamedTuple):
    """An image as codebook indices.

    Attributes:
        semantic: int64 [rows, columns] indices into the semantic codebook.
        pixel: int64 [rows, columns] indices into the pixel codebook.
        height, width: the token resolution its tag names in pixels; None where it was written without a tag.
    """

    semantic: torch.Tensor
    pixel: torch.Tensor
    height: int | None = None
    width: int | None = None


def level_token(level: int, index: int) -> str:
    """Text form of a code: level 0 is semantic, level 1 pixel."""
    return f"<|image_level{level}_{index}|>"


def resolution_text(height: int, width: int) -> str:
    """Text form of a resolution tag, in pixels: `<height_512><width_512>`."""
    return f"<height_{height}><width_{width}>"


@dataclass(frozen=True)
class FocusVocabulary:
    """Where everything visual sits in the table of ids. All fields are ids unless said otherwise.

    Attributes:
        start_of_image .. end_of_level1: the seven markers; level 0 is semantic, level 1 pixel.
        height_tags, width_tags: 16 ids each; tag i names (i + 1) * tag_step pixels.
        tag_step: pixels.
        level0_range, level1_range: (first, one past the last) id of the semantic and the pixel codes.
        end_of_text: what ends an answer (`<|im_end|>`).
        pad: `<|endoftext|>`.
        embedding_rows: rows of the language model's table, at least one more than the ids in use where masks are
            written.
    """

    start_of_image: int
    end_of_image: int
    end_of_line: int
    start_of_level0: int
    end_of_level0: int
    start_of_level1: int
    end_of_level1: int
    height_tags: tuple[int, ...]
    width_tags: tuple[int, ...]
    level0_range: tuple[int, int]
    level1_range: tuple[int, int]
    end_of_text: int
    pad: int
    embedding_rows: int
    tag_step: int = 64

    def __post_init__(self) -> None:
        for name in ("height_tags", "width_tags", "level0_range", "level1_range"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        for name in ("level0_range", "level1_range"):
            first, stop = getattr(self, name)
            if not 0 <= first < stop:
                raise ValueError(
                    f"{name} must be (first id, one past the last id) of at least one code, got {(first, stop)}."
                )
        if self.embedding_rows < self.level1_range[1]:
            raise ValueError(
                f"The language model has {self.embedding_rows} embedding rows, but the vocabulary uses ids up to "
                f"{self.level1_range[1] - 1}. Resize its embeddings to at least {self.level1_range[1] + 1} rows."
            )

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase | Tokenizer, *, embedding_rows: int, tag_step: int = 64
    ) -> FocusVocabulary:
        """Read the layout off a tokenizer that has the visual tokens.

        Args:
            tokenizer: an extended tokenizer, see `extend_tokenizer`; that of `tokenizers` inside it will do.
            embedding_rows: rows of the language model's embedding table (its `config.vocab_size`).
            tag_step: pixels between two resolution tags: 64 for the originals.

        Raises:
            ValueError: a token is missing, or codes are not consecutive.
        """
        vocab = tokenizer.get_vocab()

        def ids(tokens: Iterable[str]) -> tuple[int, ...]:
            tokens = list(tokens)
            missing = [token for token in tokens if token not in vocab]
            if missing:
                raise ValueError(
                    f"The tokenizer lacks {len(missing)} of the visual tokens, for example {missing[0]!r}. Use the "
                    f"tokenizer of a FOCUS or ILLUME+ checkpoint with its own tag_step (asked for: {tag_step}), or add "
                    "the tokens with extend_tokenizer."
                )
            return tuple(vocab[token] for token in tokens)

        ranges = []
        for level in (0, 1):
            (first,) = ids([level_token(level, 0)])
            count = 1
            while vocab.get(level_token(level, count)) == first + count:
                count += 1
            if level_token(level, count) in vocab:
                raise ValueError(
                    f"The codes of level {level} are not consecutive ids at {level_token(level, count)!r}."
                )
            ranges.append((first, first + count))
        end_of_document, end_of_turn = ids([END_OF_DOCUMENT, END_OF_TURN])
        return cls(
            *ids(MARKERS),
            height_tags=ids(f"<height_{tag_step * (i + 1)}>" for i in range(NUM_TAGS)),
            width_tags=ids(f"<width_{tag_step * (i + 1)}>" for i in range(NUM_TAGS)),
            level0_range=ranges[0],
            level1_range=ranges[1],
            end_of_text=end_of_turn,
            pad=end_of_document,
            embedding_rows=embedding_rows,
            tag_step=tag_step,
        )

    @property
    def semantic_codes(self) -> int:
        """Size of the semantic codebook."""
        return self.level0_range[1] - self.level0_range[0]

    @property
    def pixel_codes(self) -> int:
        """Size of the pixel codebook."""
        return self.level1_range[1] - self.level1_range[0]

    @property
    def mask_trigger(self) -> int:
        """The id after which masks follow: the first unused row. Raises ValueError where the table has none."""
        if self.embedding_rows <= self.level1_range[1]:
            raise ValueError(
                f"The embedding table has no unused row for the mask trigger: {self.embedding_rows} rows, all in use. "
                f"Resize the language model's embeddings to at least {self.level1_range[1] + 1} rows."
            )
        return self.level1_range[1]

    @property
    def resolution_tags(self) -> tuple[int, ...]:
        """All height and width tags."""
        return self.height_tags + self.width_tags

    def resolution_tag(self, height: int, width: int) -> list[int]:
        """The two ids that name a token resolution.

        Raises:
            ValueError: there is no tag for that many pixels.
        """
        tags = []
        for name, side, ids in (("height", height, self.height_tags), ("width", width, self.width_tags)):
            index, rest = divmod(side, self.tag_step)
            if rest or not 1 <= index <= len(ids):
                raise ValueError(
                    f"There is no resolution tag for a {name} of {side} pixels: tags are multiples of {self.tag_step} "
                    f"up to {self.tag_step * len(ids)}. Pick one of the buckets of the image processor."
                )
            tags.append(ids[index - 1])
        return tags

    def image_ids(
        self,
        semantic_indices: torch.Tensor,
        pixel_indices: torch.Tensor,
        height: int | None = None,
        width: int | None = None,
        with_tag: bool = True,
    ) -> torch.Tensor:
        """The ids an image is written with.

        Args:
            semantic_indices: integer [..., h1, w1].
            pixel_indices: integer [..., h2, w2], same leading dimensions and device.
            height, width: token resolution in pixels; needed for the tag only.
            with_tag: whether the resolution tag comes first.

        Returns:
            int64 [..., length], length = 6 + h1 * (w1 + 1) + h2 * (w2 + 1), plus 2 with the tag.

        Raises:
            ValueError: wrong shapes, or no tag for that size.
        """
        semantic = torch.as_tensor(semantic_indices).long()
        pixel = torch.as_tensor(pixel_indices).long()
        if semantic.dim() < 2 or semantic.shape[:-2] != pixel.shape[:-2]:
            raise ValueError(
                f"Indices must be [..., rows, columns] with equal leading dimensions, got {list(semantic.shape)} "
                f"semantic and {list(pixel.shape)} pixel indices."
            )
        if with_tag and (height is None or width is None):
            raise ValueError("The resolution tag needs height and width in pixels. Pass both, or with_tag=False.")
        lead = semantic.shape[:-2]

        def run(*ids: int) -> torch.Tensor:
            return semantic.new_tensor(ids).expand(*lead, len(ids))

        def rows(indices: torch.Tensor, offset: int) -> torch.Tensor:
            ends = indices.new_full((*indices.shape[:-1], 1), self.end_of_line)
            return torch.cat([indices + offset, ends], dim=-1).flatten(-2)

        tag = self.resolution_tag(height, width) if with_tag else ()
        parts = [
            run(*tag, self.start_of_image, self.start_of_level0),
            rows(semantic, self.level0_range[0]),
            run(self.end_of_level0, self.start_of_level1),
            rows(pixel, self.level1_range[0]),
            run(self.end_of_level1, self.end_of_image),
        ]
        return torch.cat(parts, dim=-1)

    def image_text(self, semantic_indices: torch.Tensor, pixel_indices: torch.Tensor) -> str:
        """The text form of an image [h1, w1] + [h2, w2], without its tag."""
        text = MARKERS[0]
        for level, indices in enumerate((semantic_indices, pixel_indices)):
            rows = torch.as_tensor(indices).tolist()
            body = "".join("".join(level_token(level, i) for i in row) + MARKERS[2] for row in rows)
            text += f"<start_of_level{level}>{body}<end_of_level{level}>"
        return text + MARKERS[1]

    def parse_image_ids(self, ids: torch.Tensor | Sequence[int]) -> ImageCodes:
        """The inverse of `image_ids` for one image, with or without its tag.

        Raises:
            ValueError: the ids are not one complete image.
        """
        ids = [int(i) for i in ids]
        height = width = None
        if len(ids) > 2 and ids[0] in self.height_tags and ids[1] in self.width_tags:
            height = (self.height_tags.index(ids[0]) + 1) * self.tag_step
            width = (self.width_tags.index(ids[1]) + 1) * self.tag_step
            ids = ids[2:]
        if len(ids) < 6 or ids[0] != self.start_of_image or ids[-1] != self.end_of_image:
            raise ValueError(
                f"{len(ids)} ids are not an image: it must begin with <start_of_image> ({self.start_of_image}) and end "
                f"with <end_of_image> ({self.end_of_image}). Was the answer cut off by max_new_tokens?"
            )
        grids = []
        position = 1
        for level in (0, 1):
            first, stop = self.level0_range if level == 0 else self.level1_range
            start = self.start_of_level0 if level == 0 else self.start_of_level1
            end = self.end_of_level0 if level == 0 else self.end_of_level1
            if ids[position] != start or end not in ids[position:]:
                raise ValueError(f"The image lacks <start_of_level{level}> or <end_of_level{level}> in its place.")
            close = ids.index(end, position)
            rows: list[list[int]] = [[]]
            for i in ids[position + 1 : close]:
                if i == self.end_of_line:
                    rows.append([])
                elif first <= i < stop:
                    rows[-1].append(i - first)
                else:
                    raise ValueError(
                        f"Id {i} is not a code of level {level} ({first} to {stop - 1}) nor an end of line."
                    )
            if rows.pop() or not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
                raise ValueError(f"The rows of level {level} are missing, unfinished or of unequal length.")
            grids.append(torch.tensor(rows))
            position = close + 1
        if position != len(ids) - 1:
            raise ValueError(f"{len(ids) - 1 - position} ids are left between the last level and <end_of_image>.")
        return ImageCodes(grids[0], grids[1], height, width)

    def split_images(self, ids: torch.Tensor | Sequence[int]) -> list[list[int] | ImageCodes]:
        """Cut a written sequence into runs of text ids and images, in order. A tag before an image belongs to it.

        Raises:
            ValueError: an image in it is unfinished.
        """
        ids = [int(i) for i in ids]
        parts: list[list[int] | ImageCodes] = []
        text: list[int] = []
        position = 0
        while position < len(ids):
            if ids[position] != self.start_of_image:
                text.append(ids[position])
                position += 1
                continue
            if self.end_of_image not in ids[position:]:
                raise ValueError("An image begins but never ends. Was the answer cut off by max_new_tokens?")
            stop = ids.index(self.end_of_image, position) + 1
            tagged = len(text) >= 2 and text[-2] in self.height_tags and text[-1] in self.width_tags
            tag, text = (text[-2:], text[:-2]) if tagged else ([], text)
            if text:
                parts.append(text)
            parts.append(self.parse_image_ids(tag + ids[position:stop]))
            text, position = [], stop
        if text:
            parts.append(text)
        return parts


def visual_tokens(semantic_codes: int, pixel_codes: int, tag_step: int = 64) -> list[str]:
    """All visual tokens in the original's order."""
    tags = [f"<{side}_{tag_step * (i + 1)}>" for side in ("height", "width") for i in range(NUM_TAGS)]
    codes = [level_token(0, i) for i in range(semantic_codes)] + [level_token(1, i) for i in range(pixel_codes)]
    return [*MARKERS, *tags, *codes]


def num_visual_tokens(semantic_codes: int, pixel_codes: int) -> int:
    """How many tokens `extend_tokenizer` adds; embedding rows = padded text rows + this."""
    return len(MARKERS) + 2 * NUM_TAGS + semantic_codes + pixel_codes


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, semantic_codes: int, pixel_codes: int, tag_step: int = 64
) -> int:
    """Add the visual tokens to `tokenizer`, in place, as ordinary tokens in the original's order.

    Returns:
        How many were added.

    Raises:
        ValueError: the tokenizer already has some of them.
    """
    tokens = visual_tokens(semantic_codes, pixel_codes, tag_step)
    vocab = tokenizer.get_vocab()
    present = [token for token in tokens if token in vocab]
    if present:
        raise ValueError(
            f"The tokenizer already has {len(present)} of the visual tokens, for example {present[0]!r}. Extend the "
            "plain text tokenizer instead."
        )
    return tokenizer.add_tokens(tokens)


def build_tiny_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """A small tokenizer of Qwen2's kind: byte-level BPE trained on `texts`, then the three chat tokens.

    Every word counts both with and without a leading space, so that with room enough in the vocabulary each is one
    token wherever it stands. The same texts always give the same tokenizer.

    Args:
        texts: what the model will read and write.
        vocab_size: largest number of tokens, bytes and chat tokens included; at least 259.

    Raises:
        ValueError: `vocab_size` cannot hold the 256 bytes and the chat tokens.
    """
    smallest = 256 + len(CHAT_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and the chat tokens), got {vocab_size}.")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CHAT_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = list(texts)
    words = sorted({word for text in texts for word in text.split()})
    trained.train_from_iterator(texts + [form for word in words for form in (word, " " + word)], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    for token in CHAT_TOKENS:  # placed by hand: the class would add them in an order of its own
        vocab[token] = len(vocab)
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token=END_OF_TURN,
        pad_token=END_OF_DOCUMENT,
        additional_special_tokens=[START_OF_TURN],
        clean_up_tokenization_spaces=False,
    )
