"""Write a set of goldens with other sizes than the recorded one: `python -m tests.checkpoints.synthetic DIR [SET]`.

The reference is this package, not the original: such a set says nothing about parity. It shows that neither the golden
tests nor the code under them is tuned to the recorded set: depths, widths, grids, vocabulary offsets, image sizes, code
width and guidance differ, the head is untied, the text tokenizer has merges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusers_focus.checkpoints.dualvitok import DUALVITOK, SEMANTIC_HEADS
from diffusers_focus.checkpoints.illume import ILLUME_PLUS, WITHOUT_NEW_PARTS
from diffusers_focus.checkpoints.plan import make_reverse_plan, target_shapes
from diffusers_focus.checkpoints.table import Family
from diffusers_focus.processing import grids
from diffusers_focus.processing import vocabulary as V
from diffusers_focus.processing.grammar import filter_logits, guide_logits, process_logits, unconditional_ids
from diffusers_focus.processing.images import make_inputs
from diffusers_focus.processing.prompts import IMAGE, render_prompt
from diffusers_focus.steps import denoise
from diffusers_focus.steps.encode import encode_tensors
from diffusers_focus.steps.sequence import FocusContext, batch_rows, encode_prefix, extend, image_block, run_suffixes
from diffusers_focus.steps.settings import RESOLUTION_GROUP

from tests.checkpoints.goldens import Golden, Prompt, decoder, multimodal, prompts_of, size_of, visual_tokenizer
from tests.checkpoints.originals import CLASSES
from tests.checkpoints.test_goldens_decoder import denoised
from tests.checkpoints.test_goldens_generation import grammar_for, grammar_of, prompt_rows, sampling_of, start_of
from tests.checkpoints.test_goldens_language import IMAGE_ID, parts_of

SEED = 23
DIM, CODES = 4, (48, 80)
VIT = {"depth": 3, "embed_dim": 32, "hidden_size": 56, "num_heads": 2, "mlp_ratio": 3}
PIXEL_ENCODER = {"channels": 32, "channel_mult": [1, 1, 1, 2, 3], "num_res_blocks": 1, "attention_stages": [3, 4]}
TOKENIZER_SIZES = [[64, 96], [112, 128]]
IMAGE_SIZES = [[96, 64], [112, 160], [384, 512]]
RESOLUTION = (384, 512)
GRID = (3, 2, 3, 5)
LANGUAGE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
}
TEXTS = ["What is shown in this picture?", "Compare the three.", "turn the boat red", "a yellow house", "two boats"]


def write(folder: Path, name: str = "b") -> None:
    """Write all six families of a set into an existing folder."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        tokenizer = write_dualvitok(folder, name)
        vision = write_vision(folder, name)
        write_forward(folder, name, vision)
        write_generation(folder, name)
        write_end_to_end(folder, name, vision)
        write_decoder(folder, name, tokenizer)


def save(golden: Golden, facts: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Golden:
    """Write a golden, its tensors once they are known; returns it as a reader finds it."""
    facts = {"seed": SEED, "set": golden.name, **facts}
    if tensors is not None:
        facts["tensors"] = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}
        stored = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
        save_file(stored, golden.folder / f"{golden}.safetensors")
    (golden.folder / f"{golden}.json").write_text(json.dumps(facts), encoding="utf-8")
    return Golden(golden.folder, golden.family, golden.name)


def original_keys(family: Family, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Names and shapes of an original checkpoint that our components of these sizes hold."""
    with torch.device("meta"):
        models = {name: CLASSES[name](**config) for name, config in sizes.items()}
    stored = {name: {key: model.state_dict()[key] for key in target_shapes(model)} for name, model in models.items()}
    return {step.key: list(step.shape) for step in make_reverse_plan(family, stored).steps}


def write_dualvitok(folder: Path, name: str) -> Golden:
    encoder = {f"pixel_{key}": value for key, value in PIXEL_ENCODER.items() if key != "attention_stages"}
    sizes = {
        "code_dim": DIM,
        "semantic_input_dim": VIT["hidden_size"],
        "semantic_embed_dim": 128,
        "semantic_num_blocks": 1,
        "semantic_num_heads": SEMANTIC_HEADS,
        "semantic_codebook_size": CODES[0],
        "vision_tower": VIT,
        **encoder,
        "pixel_attention_stages": PIXEL_ENCODER["attention_stages"],
        "pixel_decoder_channels": 64,
        "pixel_codebook_size": CODES[1],
    }
    shared = {"ch_mult": PIXEL_ENCODER["channel_mult"], "num_res_blocks": PIXEL_ENCODER["num_res_blocks"]}
    facts = {
        "vit": VIT,
        "config": {
            "semantic_encoder": {"embed_dim": 128, "num_blocks": 1},
            "semantic_quantizer": {"dim": DIM, "codebook_size": CODES[0]},
            "pixel_encoder": {"ch": PIXEL_ENCODER["channels"], **shared},
            "pixel_quantizer": {"dim": DIM, "codebook_size": CODES[1]},
            "pixel_decoder": {"ch": 64, **shared},
        },
        "sizes": TOKENIZER_SIZES,
        "keys": original_keys(DUALVITOK, {"visual_tokenizer": sizes}),
    }
    golden = save(Golden(folder, "dualvitok", name), facts)
    model, tensors = visual_tokenizer(golden), {}
    for height, width in TOKENIZER_SIZES:
        image = torch.rand(1, 3, height, width) * 2 - 1
        low, _ = make_inputs(image, grids.vit_size(height, width), None)
        out = model.encode(image, pixel_values_low=low)
        recorded = {
            "image": image,
            "semantic_indices": out.semantic_indices,
            "pixel_indices": out.pixel_indices,
            "semantic_target": out.semantic_target.movedim(-1, 1),
            "semantic_quant": out.semantic_codes,
            "pixel_quant": out.pixel_codes,
            "reconstruction": model.decode(out.semantic_codes, out.pixel_codes),
            "semantic_reconstruction": model.decode_semantic(out.semantic_codes).movedim(-1, 1),
        }
        tensors |= {f"{height}x{width}.{key}": value for key, value in recorded.items()}
    return save(golden, facts, tensors)


# The language model


def write_tokenizer(folder: Path, name: str, text_rows: int) -> dict[str, Any]:
    """A text tokenizer with merges and the visual tokens; returns the facts of its layout."""
    tokenizer = V.build_tiny_tokenizer(TEXTS, text_rows)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    first = len(tokenizer)
    visual = {token: first + i for i, token in enumerate(V.visual_tokens(*CODES))}
    chat = {token: model["vocab"].pop(token) for token in V.CHAT_TOKENS}
    added = [{"content": token, "id": i} for token, i in {**chat, **visual}.items()]
    (folder / f"tokenizer_{name}.json").write_text(
        json.dumps({"model": model, "added_tokens": added}), encoding="utf-8"
    )
    markers = {token: visual[token] for token in V.MARKERS}
    tags, codes = first + len(V.MARKERS), first + len(V.MARKERS) + 2 * V.NUM_TAGS
    return {
        "tokenizer_file": f"tokenizer_{name}.json",
        "special_tokens": markers,
        "special_tokens_ids": list(markers.values()),
        "height_tag_ids": list(range(tags, tags + V.NUM_TAGS)),
        "width_tag_ids": list(range(tags + V.NUM_TAGS, codes)),
        "level0_range": [codes, codes + CODES[0]],
        "level1_range": [codes + CODES[0], codes + sum(CODES)],
        "endoftext": chat[V.END_OF_DOCUMENT],
        "im_start": chat[V.START_OF_TURN],
        "im_end": chat[V.END_OF_TURN],
        "len_tokenizer": first + len(visual),
        "embedding_rows": first + len(visual) + 9,
        "tied_lm_head": False,
    }


def image_cases() -> dict[str, dict[str, Any]]:
    """Cases as prompts_of reads them; full prompts are rendered from them."""
    names = [f"{height}x{width}" for height, width in IMAGE_SIZES]
    size = {"resolution": list(RESOLUTION), "tag": V.resolution_text(*RESOLUTION)}
    size["max_new_tokens"] = grids.num_image_tokens(*RESOLUTION).max_new_tokens
    three = "<image>\n<image>\n<image>\n" + TEXTS[1]
    return {
        "understand": {"prompt": TEXTS[0], "images": names[1:2], "counts": [1]},
        "understand_three": {"prompt": three, "images": [names[0], names[1], names[0]], "counts": [3]},
        "understand_batch": {"prompt": TEXTS[:2], "images": names[:2], "counts": [1, 1]},
        "edit": {"prompt": "", "instruction": TEXTS[2], "images": names[2:], "counts": [1], **size},
        "edit_uncond": {"prompt": "", "images": names[2:], "counts": [1]},
        "t2i": {"prompt": "", "contents": TEXTS[2:], "images": [], "counts": [0, 0, 0], **size},
        "t2i_uncond": {"prompt": "", "images": [], "counts": [0, 0, 0]},
    }


def write_vision(folder: Path, name: str) -> Golden:
    layout = write_tokenizer(folder, name, 290)
    config = {
        **LANGUAGE,
        "vocab_size": layout["embedding_rows"],
        "pad_token_id": layout["endoftext"],
        "eos_token_id": layout["im_end"],
    }
    encoder = {
        **WITHOUT_NEW_PARTS,
        "vision_tower": VIT,
        "language_hidden_size": LANGUAGE["hidden_size"],
        "pixel_feature_dim": DIM,
        "pixel_encoder": {**PIXEL_ENCODER, "z_channels": DIM},
    }
    cases = image_cases()
    for facts in cases.values():
        facts["full_prompts"] = ["<image>" * count for count in facts.pop("counts")]  # until they are known
    shapes = {
        f"{h}x{w}": {"semantic": list(grids.semantic_grid(h, w)), "pixel": list(grids.pixel_grid(h, w))}
        for h, w in IMAGE_SIZES
    }
    facts = {
        **layout,
        "spec": {"vit": VIT},
        "llm_config": config,
        "image_shapes": shapes,
        "cases": cases,
        "keys": original_keys(ILLUME_PLUS, {"language_model": config, "vision_encoder": encoder}),
    }
    golden = save(Golden(folder, "mllm_vision", name), facts)
    prompts = {case: prompts_of(golden, case) for case in cases}
    for case, rows in prompts.items():
        parts = [[part for half in parts_of(golden, prompt) for part in half] for prompt in rows]
        cases[case]["full_prompts"] = [render_prompt(row) for row in parts]
    tensors: dict[str, torch.Tensor] = {}
    for index, image in enumerate(shapes):
        tensors |= image_tensors(golden, image, flipped=index == 0)
    golden = save(golden, facts, tensors)
    for case, rows in prompts.items():
        tensors |= case_tensors(golden, case, rows)
    return save(golden, facts, tensors)


def image_tensors(golden: Golden, name: str, flipped: bool) -> dict[str, torch.Tensor]:
    model = multimodal(golden)
    context, table = FocusContext.of(model), model.language_model.get_input_embeddings()
    picture = torch.randint(256, (*size_of(name), 3), dtype=torch.uint8)
    pixel_values = picture.permute(2, 0, 1)[None] / 127.5 - 1
    vision: Any = encode_tensors(model, torch.cat([pixel_values, pixel_values.flip(-1)])).vision
    blocks = image_block(model, context.vocabulary, vision.vision_tokens, vision.pixel_tokens)
    same = (blocks[0][:, None] == table.weight).all(-1)
    pixels = torch.arange(len(blocks[0])) > 2 + vision.vision_tokens[0, ..., 0].numel() + vision.vision_tokens.shape[1]
    layout = torch.where(same.any(1), same.int().argmax(1), torch.where(pixels, -2, -1))
    tensors = {
        f"image.{name}.uint8": picture,
        f"image.{name}.pixel_values": pixel_values,
        f"{name}.semantic_features": vision.image_features[0].flatten(0, 1),
        f"{name}.pixel_features": vision.pixel_features[0].flatten(1).T,
        f"{name}.semantic_projected": vision.vision_tokens[0].flatten(0, 1),
        f"{name}.pixel_projected": vision.pixel_tokens[0].flatten(0, 1),
        f"{name}.image_embeds": blocks[0],
        f"{name}.layout": layout.int(),
    }
    return {**tensors, f"{name}.hflip_image_embeds": blocks[1]} if flipped else tensors


def case_tensors(golden: Golden, case: str, rows: list[Prompt]) -> dict[str, torch.Tensor]:
    """A case's prompts as ids, embeddings and layout, left-padded."""
    model = multimodal(golden)
    context, table = FocusContext.of(model), model.language_model.get_input_embeddings()
    found: dict[str, list[torch.Tensor]] = {"input_ids": [], "inputs_embeds": [], "layout": []}
    for prompt in rows:
        ids, embeds, layout = [], [], []
        for segment in context.segments([part for half in parts_of(golden, prompt) for part in half]):
            if segment.kind == IMAGE:
                image = prompt.images[segment.index or 0]
                ids.append(torch.tensor([IMAGE_ID]))
                embeds.append(golden.tensors[f"{image}.image_embeds"])
                layout.append(golden.tensors[f"{image}.layout"].long())
            else:
                ids.append(torch.tensor(segment.ids))
                embeds.append(table(ids[-1]))
                layout.append(ids[-1])
        for name, pieces in zip(found, (ids, embeds, layout)):
            found[name].append(torch.cat(pieces))
    tensors = {f"{case}.{name}": left_padded(values) for name, values in found.items()}
    masks = {"input_attention_mask": "input_ids", "attention_mask": "layout"}
    return tensors | {
        f"{case}.{name}": left_padded([torch.ones(len(row), dtype=torch.uint8) for row in found[like]])
        for name, like in masks.items()
    }


def left_padded(rows: list[torch.Tensor]) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.stack([torch.cat([row.new_zeros(length - len(row), *row.shape[1:]), row]) for row in rows])


def write_forward(folder: Path, name: str, vision: Golden) -> None:
    model, tensors = multimodal(vision).language_model, {}
    for case in vision.facts["cases"]:
        mask = vision.tensors[f"{case}.attention_mask"].long()
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
        embeds = vision.tensors[f"{case}.inputs_embeds"]
        hidden = model.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
        tensors[f"{case}.last_hidden_state"] = hidden * mask[..., None]
        tensors[f"{case}.logits_last16"] = model.lm_head(hidden)[:, -16:]
        if not mask.all():
            tensors[f"{case}.position_ids"] = positions.int()
    keys = {key: shape for key, shape in vision.facts["keys"].items() if "tower" not in key and "projector" not in key}
    facts = {"inputs": f"{vision}.safetensors: <case>.inputs_embeds", "keys": keys, "tied_lm_head": False}
    save(Golden(folder, "mllm_forward", name), facts, tensors)


# Writing images


def sampling(temperatures: tuple[float, float, float], top_k: tuple[int, int, int], top_p: float) -> dict[str, float]:
    names = ("default", "level0", "level1")
    return {
        **{f"{name}_temp": value for name, value in zip(names, temperatures)},
        **{f"{name}_top_k": value for name, value in zip(names, top_k)},
        **{f"{name}_top_p": top_p for name in names},
    }


def write_generation(folder: Path, name: str) -> None:
    start, first = 31, 31 + len(V.MARKERS)
    codes = first + 2 * V.NUM_TAGS
    vocab = {
        "size": codes + 12 + 20 + 6,
        "endoftext": 3,
        "im_start": 4,
        "end_of_text": 5,
        **{token: start + i for i, token in enumerate(V.MARKERS)},
        "height_ids": [first, first + V.NUM_TAGS],
        "width_ids": [first + V.NUM_TAGS, codes],
        "level0_range": [codes, codes + 12],
        "level1_range": [codes + 12, codes + 32],
    }
    grid = dict(zip(("level0_rows", "level0_cols", "level1_rows", "level1_cols"), (3, 1, 2, 7)))
    length = grids.block_length((3, 1), (2, 7))
    off, on = sampling((1.0, 1.0, 1.0), (0, 0, 0), 1.0), sampling((0.9, 1.2, 0.6), (4, 3, 7), 0.85)
    prompt = [4, 9, first + 2, first + V.NUM_TAGS + 1]
    marker = "InterleavedLogitsProcessor"
    plans: dict[str, dict[str, Any]] = {
        "g1": {"guidance": 1.0, "sampling": off, "boosted": {"1": start}},
        "g3": {"guidance": 3.0, "sampling": off, "boosted": {"4": start}},
        "filtered": {"guidance": 1.5, "sampling": on, "boosted": {"1": start, "30": start}},
        "tagged": {"guidance": 2.0, "sampling": off, "boosted": {"0": prompt[2], "1": prompt[3], "2": start}},
        "prefilled": {
            "guidance": 2.0,
            "sampling": on,
            "boosted": {},
            "prefix_ids": [7, start],
            "uncond_ids": [*prompt, start],
        },
        "batch3": {"guidance": 2.0, "sampling": off, "boosted": {"0": start}, "batch": 3},
        "older": {"guidance": 2.0, "sampling": on, "boosted": {}, "chain": "older", "steps": length + 1},
        "older_g1": {"guidance": 1.0, "sampling": off, "boosted": {}, "chain": "older", "steps": length + 1},
    }
    cases, tensors = {}, {}
    semantic, pixel = [[3], [11], [0]], [[19, 4, 4, 1, 0, 7, 8], [2, 2, 9, 5, 5, 6, 0]]
    facts = {
        "vocab": vocab,
        "grid": grid,
        "block_len_after_soi": length - 1,
        "cases": cases,
        **text_facts(semantic, pixel),
    }
    golden = save(Golden(folder, "generation", name), facts)
    for case, plan in plans.items():
        cases[case] = {
            "chain": marker,
            "batch": 1,
            "prefix_ids": None,
            "uncond_ids": prompt,
            "steps": length + 6,
            **plan,
        }
        tensors |= {f"{case}.{key}": value for key, value in run_chain(golden, cases[case]).items()}
    save(golden, facts, tensors)


def text_facts(semantic: list[list[int]], pixel: list[list[int]]) -> dict[str, Any]:
    """What the original's functions around images give."""
    counts = {f"{h}x{w}": grids.num_image_tokens(h, w) for h, w in grids.ORIGINAL_BUCKETS}
    tokens = V.visual_tokens(32768, 98304)
    special = {token.strip("<>"): 151665 + i for i, token in enumerate(tokens[: len(V.MARKERS)])}
    first = 151665 + len(V.MARKERS) + 2 * V.NUM_TAGS
    special |= {"level0_range": [first, first + 32768], "level1_range": [first + 32768, first + 131072]}
    rows = [[*row, "\n"] for row in semantic], [[*row, "\n"] for row in pixel]
    text = V.MARKERS[0]
    for level, lines in enumerate(rows):
        body = "".join(V.MARKERS[2] if code == "\n" else V.level_token(level, code) for line in lines for code in line)
        text += f"<start_of_level{level}>{body}<end_of_level{level}>"
    text += V.MARKERS[1]
    flat = [[code for row in level for code in row] for level in (semantic, pixel)]
    return {
        "calculate_image_token_num": {k: v._asdict() | {"grid": list(v.grid)} for k, v in counts.items()},
        "RESOLUTION_MAPPING_hw": {f"{h}x{w}": size for (h, w), size in grids.RESOLUTION_MAPPING.items()},
        "encode_image_token_into_code": {"semantic": semantic, "pixel": pixel, "string": text},
        "parse_interleaved_text_image": {
            "input": f"{text} then {text}",
            "text": "<image> then <image>",
            "indices": [flat, flat],
            "parts": [text, text],
        },
        "check_image_token_num": {"inputs": [[4], [1, 2, 3]], "expected": [3, 2], "output": [[4, 4, 4], [1, 2]]},
        "upstream_special_tokens": special,
    }


def run_chain(golden: Golden, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write with one of the two chains on random logits; adds the calls of the unconditional branch to the case."""
    grammar, chosen = grammar_of(golden), sampling_of(case)
    vocabulary, shape = grammar.vocabulary, (case["batch"], case["steps"], grammar.vocabulary.embedding_rows)
    cond, uncond = torch.randn(shape) * 2, torch.randn(shape) * 2
    for step, token in case["boosted"].items():
        cond[:, int(step), token] = 40.0
    written = torch.tensor([case["prefix_ids"] or []] * case["batch"], dtype=torch.long)
    prompt, given = torch.tensor([case["uncond_ids"]] * case["batch"]), written.shape[1]
    found: dict[str, list[torch.Tensor]] = {"processed": [], "grammar_allowed": [], "allowed": [], "tokens": []}
    case["uncond_model_calls"] = calls = []
    for step in range(case["steps"]):
        logits, seen = (cond[:, step], uncond[:, step]), written[:, given:]
        if case["chain"] == "older":
            plain = guide_logits(*logits, case["guidance"]) if case["guidance"] != 1.0 else logits[0]
            inside = step < len(grammar)
            others = torch.arange(shape[2]) != vocabulary.end_of_text
            plain = grammar.constrain(plain, step) if inside else plain.masked_fill(others, float("-inf"))
            how = list(chosen.values())[grammar.modes[step] if inside else 0]
            scores, called, begins = filter_logits(plain, how.temperature, how.top_k, how.top_p), True, step == 0
            ids = prompt if begins else seen[:, -1:]
        else:
            position = grammar.positions(written)
            plain = process_logits(*logits, position, grammar, guidance_scale=case["guidance"])
            scores = process_logits(*logits, position, grammar, guidance_scale=case["guidance"], **chosen)
            called = bool((position >= 0).any())
            begins = seen.shape[1] == 0 or bool((seen[:, -1] == vocabulary.start_of_image).all())
            ids = unconditional_ids(prompt, seen, vocabulary.start_of_image) if begins else seen[:, -1:]
        if called and case["guidance"] != 1.0:
            calls.append({"step": step, "input_ids": ids.tolist(), "with_cache": not begins})
        tokens = scores.argmax(-1)
        for key, value in zip(found, (scores, plain.isfinite(), scores.isfinite(), tokens)):
            found[key].append(value.to({"processed": torch.float32, "tokens": torch.int32}.get(key, torch.uint8)))
        written = torch.cat([written, tokens[:, None]], dim=1)
    return {"cond_logits": cond, "uncond_logits": uncond, **{key: torch.stack(rows, 1) for key, rows in found.items()}}


def write_end_to_end(folder: Path, name: str, vision: Golden) -> None:
    facts: dict[str, Any] = {
        "inputs": f"{vision}: edit, t2i",
        "grid": list(GRID),
        "eos_token_id": vision.facts["im_end"],
    }
    facts["cases"] = {
        f"{case}.g{str(scale).replace('.', '_')}": {"guidance": scale, "grid": list(GRID)}
        for case in ("edit", "t2i")
        for scale in (1.0, 2.5)
    }
    golden, tensors = save(Golden(folder, "generation_e2e", name), facts), {}
    for case, setup in facts["cases"].items():
        source, model, encoding, prompts, without = start_of(golden, case)
        grammar, context, count = grammar_for(golden, case, model), FocusContext.of(model), len(prompts)
        prefix = encode_prefix(model, context, encoding, task=prompts[0].task)
        batch = batch_rows(model, prompt_rows(source, [*prompts, *without]))
        hidden, cache, mask = run_suffixes(model, prefix, torch.zeros(2 * count, dtype=torch.long), batch)
        found: dict[str, list[torch.Tensor]] = {
            "cond_logits": [],
            "processed": [],
            "uncond_logits": [],
            "uncond_used": [],
        }
        written = torch.zeros(count, 0, dtype=torch.long)
        for step in range(grammar.length + 2):
            cond, uncond = model.language_model.lm_head(hidden[:, -1]).chunk(2)
            if step == 0:
                cond[:, context.vocabulary.start_of_image] = cond.amax(-1) + 5
            position = grammar.positions(written)
            scores = process_logits(cond, uncond, position, grammar, guidance_scale=setup["guidance"])
            used = torch.tensor([setup["guidance"] != 1.0 and int(position[0]) >= 0])
            for key, value in zip(found, (cond[:1], scores[:1], uncond[:1], used)):
                found[key].append(value.clone())
            ids = scores.argmax(-1)
            written = torch.cat([written, ids[:, None]], dim=1)
            new = model.language_model.get_input_embeddings()(ids.repeat(2))[:, None]
            hidden, mask = extend(model, new, cache, mask)
        tensors[f"{case}.sequences"] = written.int()
        stacked = {key: torch.stack(rows, 1) for key, rows in found.items()}
        stacked["uncond_used"] = stacked["uncond_used"].to(torch.uint8)
        if setup["guidance"] == 1.0:
            del stacked["uncond_logits"], stacked["uncond_used"]
        tensors |= {f"{case}.{key}": value for key, value in stacked.items()}
    save(golden, facts, tensors)


# The diffusion decoder


def write_decoder(folder: Path, name: str, tokenizer: Golden) -> None:
    parts = {
        "unet": {
            "sample_size": 32,
            "in_channels": 4 + 2 * DIM,
            "out_channels": 4,
            "cross_attention_dim": 24,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "block_out_channels": [32, 32, 64],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 1328,
        },
        "vae": {
            "block_out_channels": [8, 8, 16, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "scaling_factor": 0.2,
        },
    }
    with torch.device("meta"):
        keys = {
            part: {k: list(v.shape) for k, v in CLASSES[part](**parts[part]).state_dict().items()} for part in parts
        }
    scheduler = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "prediction_type": "epsilon"}
    first, second = (f"{height}x{width}" for height, width in TOKENIZER_SIZES)
    cases: dict[str, dict[str, Any]] = {
        "sq.g3": {"indices": first, "height": 512, "width": 512, "guidance": 3.0, "steps": 2, "batch": 1},
        "wide.g1": {"indices": second, "height": 384 * 2, "width": 512 * 2, "guidance": 1.0, "steps": 1, "batch": 1},
        "pair.g2": {"indices": second, "height": 512, "width": 512, "guidance": 2.0, "steps": 1, "batch": 2},
    }
    facts = {
        "tokenizer": f"{tokenizer}.json",
        "unet_config": parts["unet"],
        "vae_config": parts["vae"],
        "scheduler_class": "EulerDiscreteScheduler",
        "scheduler_config": scheduler,
        "cases": cases,
        "resolution_group_width_height": [str(size) for size in RESOLUTION_GROUP],
        "keys": keys,
    }
    golden = save(Golden(folder, "decoder", name), facts)
    pipe, tensors = decoder(golden), {}
    for number, (case, setup) in enumerate(cases.items()):
        maps = [tokenizer.tensors[f"{setup['indices']}.{level}_indices"] for level in ("semantic", "pixel")]
        place = setup["indices"]
        if setup["batch"] == 2:
            maps, place = [torch.cat([indices, indices.flip(-1)]) for indices in maps], case
        setup["noise"] = f"noise{number}"
        tensors[setup["noise"]] = torch.randn(setup["batch"], 4, setup["height"] // 8, setup["width"] // 8)
        tensors |= {f"{place}.semantic_indices": maps[0], f"{place}.pixel_indices": maps[1]}
        tensors[f"{place}.condition_map"] = denoise.token_map(pipe, *maps)
    golden = save(golden, facts, tensors)
    for case, setup in cases.items():
        run = denoised(golden, case)
        call = run["calls"][0]
        tensors |= {f"{case}.latents_{step}": latents for step, (_, latents) in enumerate(run["steps"])}
        tensors |= {
            f"{case}.unet_in_0": call["in"],
            f"{case}.unet_out_0": call["out"],
            f"{case}.time_ids": call["time_ids"],
        }
        setup["timesteps"] = [timestep for timestep, _ in run["steps"]]
        setup["sigmas"] = pipe.scheduler.sigmas.tolist()
        setup["init_noise_sigma"] = float(pipe.scheduler.init_noise_sigma)
        setup["time_ids"] = call["time_ids"].tolist()
        setup["unet_input"], setup["text_embeds"] = list(call["in"].shape), list(call["text_embeds"].shape)
        setup["encoder_hidden_states"] = list(call["text"].shape)
    image = denoise.decode_latents(pipe.vae, denoised(golden, "sq.g3")["latents"])
    tensors["sq.g3.decoded_stride2"] = image[..., ::2, ::2]
    unit = image[0].add(1).div(2).clamp(0, 1).mul(255).round()
    tensors["sq.g3.image_uint8"] = unit.permute(1, 2, 0).to(torch.uint8)
    save(golden, facts, tensors)


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:3])
