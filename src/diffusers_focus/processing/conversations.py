"""Conversations as callers write them: chat messages -> earlier turns and the question that is open.

The form is that of transformers' chat templates: [{"role": "user", "content": "how many?"}, {"role": "assistant", "content":
"two"}, {"role": "user", "content": "which colours?"}]. What is said in which place of a turn, and between which control tokens,
is the prompt style's business (`prompts.py`); it renders what the template of Qwen2.5's tokenizer renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EXAMPLE = '[{"role": "user", "content": "how many objects are there?"}]'


@dataclass(frozen=True, eq=False)
class Turn:
    """An earlier question with its answer.

    Args:
        text: the question.
        answer: what was said to it; may be empty.
        region: what the question was about, as `understand` takes it, or None.
    """

    text: str
    answer: str
    region: Any = None


@dataclass(frozen=True, eq=False)
class Conversation:
    """A question and what went before it.

    Args:
        text: the question; None for the prompt style's own (a caption).
        history: earlier turns, oldest first.
        region: what the question is about, where the message says so.
        images: image placeholders in the messages; 0 where they do without.
    """

    text: str | None
    history: tuple[Turn, ...] = ()
    region: Any = None
    images: int = 0


def conversation(prompt: Any, name: str = "prompt") -> Conversation:
    """One question, or one list of messages.

    Args:
        prompt: a text, None, or messages. A message has "role" and "content" (a text, or parts {"type": "text", "text": ...} and
            {"type": "image"}), one of the user may have a "region". Images stand in the first message of the user.

    Raises:
        TypeError: neither text nor messages.
        ValueError: roles out of order, or an empty message.
    """
    if prompt is None:
        return Conversation(None)
    if isinstance(prompt, str):
        return Conversation(_text(prompt, name))
    if not is_messages(prompt):
        raise TypeError(
            f"{name} must be a string or a list of strings, or chat messages such as {_EXAMPLE}, got {type(prompt).__name__}."
        )
    messages = list(prompt)
    roles = [message["role"] for message in messages]
    expected = ["user", "assistant"] * len(roles)
    if roles != expected[: len(roles)] or roles[-1] != "user":
        raise ValueError(
            f"The roles of a conversation are user and assistant in turns, from a user's question to a user's question; {name} has "
            f"{', '.join(map(str, roles))}. The model has one system text of its own, so leave such messages out."
        )
    said, images = [], 0
    for index, message in enumerate(messages):
        text, count = _content(message.get("content"), f"Message {index} of {name}")
        if count and index:
            raise ValueError(f"Message {index} of {name} holds an image; images stand in the first message.")
        images += count
        if message["role"] == "user":
            text = _text(text, f"Message {index} of {name}")
        said.append(text)
    regions = [message.get("region") for message in messages]
    turns = tuple(Turn(said[i], said[i + 1], regions[i]) for i in range(0, len(said) - 1, 2))
    return Conversation(said[-1], turns, regions[-1], images)


def conversations(prompt: Any, name: str = "prompt") -> Conversation | list[Conversation]:
    """What a caller asks: one conversation, or a list of them (a batch)."""
    if isinstance(prompt, (list, tuple)) and not is_messages(prompt):
        if len(prompt) == 0:
            raise ValueError(f"{name} is an empty list. Pass at least one entry, or leave it out.")
        return [conversation(one, name) for one in prompt]
    return conversation(prompt, name)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, and not a batch of prompts."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def _content(content: Any, where: str) -> tuple[str, int]:
    """The text of a message and the number of images in it."""
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise TypeError(f"{where} has the content {content!r}; allowed are a text and a list of parts.")
    texts, images = [], 0
    for part in content:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image" and set(part) == {"type"}:
            images += 1
        else:
            raise ValueError(
                f'{where} has the part {dict(part)!r}; allowed are {{"type": "text", "text": ...}} and {{"type": "image"}}. Images '
                "themselves are given beside the messages."
            )
    return "".join(texts), images


def _text(value: str, name: str) -> str:
    if not value.strip():
        raise ValueError(f"{name} is empty. Write at least one word.")
    return value
