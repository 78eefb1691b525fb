"""Chats: lists of messages in a corpus, and the text that a model's own template makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import jinja2
import pyarrow as pa

from llm_entropy.errors import ReportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
"""The role that a model speaks in: its last message is continued; behind any other its answer begins."""


class Rendered(NamedTuple):
    """A chat as a model reads it."""

    text: str
    turn_start: int
    """Where its last message begins, in characters, with what introduces that."""


class ChatText(str):
    """Messages as JSON, of a chat that was given in memory."""


def is_messages(value: Any) -> bool:
    """Return whether a value is a list of messages, each with a role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value)
    )


def holds_messages(kind: pa.DataType) -> bool:
    """Return whether the values of a type are lists of messages."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return {"role", "content"} <= {field.name for field in kind.value_type}


def messages_text(messages: Optional[Sequence[dict[str, Any]]]) -> Optional[str]:
    """Return messages as JSON, which a corpus holds in place of a text; None where there are none."""
    if not messages:
        return None
    # Where some messages have more keys than others, those that a message lacks are null in a column.
    return json.dumps(
        [{name: value for name, value in message.items() if value is not None} for message in messages],
        ensure_ascii=False,
    )


def refuse_without_template(tokenizer: PreTrainedTokenizerBase, key: str, kind: str) -> None:
    """Refuse a model that reads no chats.

    Raises:
        ReportedError: It is masked, or its tokenizer has no chat template.
    """
    if kind == "masked":
        raise ReportedError(f"models.{key}: the corpus holds chats, which a masked model does not read; give it text")
    if not tokenizer.chat_template:
        raise ReportedError(
            f"models.{key}: the corpus holds chats, and the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; give a model that was trained on chats, or a corpus of text"
        )
    if not tokenizer.is_fast:
        raise ReportedError(
            f"models.{key}: the corpus holds chats, and the tokenizer of {tokenizer.name_or_path!r} does not say where "
            "its tokens stand in the text; give one that does (a fast one), or a corpus of text"
        )


def render(tokenizer: PreTrainedTokenizerBase, text: str, sentence_id: int) -> Rendered:
    """Return a chat as its model's template writes it.

    A last message of the assistant stays open, to be continued; behind one of another role stands what introduces the
    assistant's answer.

    Args:
        tokenizer: With a chat template.
        text: The messages, as `messages_text` returns them.
        sentence_id: Row of the corpus, for the message.

    Raises:
        ReportedError: The template does not take these messages.
    """
    messages = json.loads(text)
    is_open = messages[-1]["role"] == ASSISTANT
    try:
        whole = tokenizer.apply_chat_template(
            messages, tokenize=False, continue_final_message=is_open, add_generation_prompt=not is_open
        )
        before = tokenizer.apply_chat_template(messages[:-1], tokenize=False) if len(messages) > 1 else ""
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise ReportedError(
            f"data.text_column: the chat in row {sentence_id} does not fit the template of {tokenizer.name_or_path!r}: "
            f"{' '.join(str(error).split())}"
        ) from error
    assert isinstance(whole, str)
    shared = next(
        (i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), min(len(whole), len(before))
    )
    return Rendered(whole, shared)
