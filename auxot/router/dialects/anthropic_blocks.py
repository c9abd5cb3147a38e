"""Content blocks of Anthropic's messages as OpenAI's content parts, which is what chat templates know.

    text                    text
    image                   image_url: a data URL, or an address on the web
    document                its title and context, then its text
    search_result           its title and source, then its text

What becomes of each type of block stands in `anthropic_fields`; a block's field that is not read here is ignored.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from auxot.router.dialects.anthropic_fields import DOCUMENT_SOURCES, IMAGE_SOURCES, Entry, block_entry
from auxot.router.dialects.field_table import Status
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.openai_messages import read_image_url

Part = dict[str, Any]
"""A content part, as OpenAI has it: `{"type": "text", "text": ...}` or `{"type": "image_url", ...}`."""

_INNER_BLOCKS = ("image", "text")  # no block holds another of its own kind: the depth is bounded


def kind_of(block: Fields) -> str:
    """Return a block's type.

    Raises:
        RefusedError: it has none, or one that cannot be honoured.
    """
    kind = block.required_string("type")
    entry = block_entry(kind)
    if entry is not None and entry.status is Status.REFUSED:
        raise block.refused("type", entry.note)
    return kind


def is_ignored(block: Fields) -> bool:
    """Whether a block is read over."""
    entry = block_entry(kind_of(block))
    return entry is not None and entry.status is Status.IGNORED


def read_parts(block: Fields) -> list[Part]:
    """Read a block of a user's message or of a tool's result.

    Raises:
        RefusedError: one of its fields is wrong, or it is of a type that has no place there.
    """
    kind = kind_of(block)
    if kind == "text":
        return [text_part(read_text(block, "text"))]
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": _read_image_url(block.required_object("source"))}}]
    if kind == "document":
        return _titled(block, ("title", "context"), _read_document(block.required_object("source")))
    if kind == "search_result":
        return _titled(block, ("title", "source"), _read_inner_blocks(block))
    if is_ignored(block):
        return []
    raise block.refused("type", "must be one of document, image, search_result, text, tool_result")


def read_text(block: Fields, name: str) -> str:
    """Read a text that must be there and may be empty."""
    text = block.string(name)
    if text is None:
        raise block.refused(name, "Field required")
    return text


def text_part(text: str) -> Part:
    """Return a text as a content part."""
    return {"type": "text", "text": text}


def content_of(parts: list[Part]) -> Any:
    """Return the content of a message: the text itself if that is all there is."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _read_inner_blocks(fields: Fields) -> list[Part]:
    """Read a field `content`: a string, or text and image blocks."""
    content = fields.get("content")
    if type(content) is str:
        return [text_part(content)]
    parts: list[Part] = []
    for block in fields.objects("content") or ():
        if kind_of(block) not in _INNER_BLOCKS:
            raise block.refused("type", f"must be one of {', '.join(_INNER_BLOCKS)}")
        parts += read_parts(block)
    return parts


def _titled(block: Fields, names: tuple[str, ...], parts: list[Part]) -> list[Part]:
    heads = [head for head in map(block.string, names) if head]
    return [text_part("\n".join(heads)), *parts] if heads else parts


def _source_kind(source: Fields, sources: Mapping[str, Entry]) -> str:
    kind = source.word("type", sources)
    if kind is None:
        raise source.refused("type", "Field required")
    if sources[kind].status is Status.REFUSED:
        raise source.refused("type", sources[kind].note)
    return kind


def _read_document(source: Fields) -> list[Part]:
    kind = _source_kind(source, DOCUMENT_SOURCES)
    if kind == "text":
        return [text_part(read_text(source, "data"))]
    if kind == "content":
        return _read_inner_blocks(source)
    return [text_part(_read_base64_text(source))]


def _read_base64_text(source: Fields) -> str:
    media_type = source.required_string("media_type").lower()
    if not media_type.startswith("text/"):
        raise source.refused("media_type", "must be text/plain: other documents cannot be read here, send their text")
    try:
        return base64.b64decode(source.required_string("data"), validate=True).decode()
    except (binascii.Error, ValueError) as exc:  # ValueError: not ASCII, or not UTF-8 inside
        raise source.refused("data", "must be UTF-8 text in base64") from exc


def _read_image_url(source: Fields) -> str:
    if _source_kind(source, IMAGE_SOURCES) == "url":
        return read_image_url(source, "url")
    media_type = source.required_string("media_type")
    if not media_type.startswith("image/") or "," in media_type:
        raise source.refused("media_type", "must be an image's")
    return f"data:{media_type};base64,{source.required_string('data')}"
