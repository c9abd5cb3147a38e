"""A tiny GGUF whose every answer is known: a real llama-server runs it, and its text can be compared to the letter.

The model is a bigram in the llama architecture. Attention and feed-forward weights are zero, so that the residual
stream is the last token's embedding (one-hot), and the output matrix maps each token to its one successor. The chat
template (chat_template.jinja beside this file) picks the first token of the answer:

    thinking (default)  THOUGHT as reasoning, then ANSWER
    no thinking         ANSWER: ask with `"chat_template_kwargs": {"enable_thinking": false}`
    tool TOOL_NAME      one call with TOOL_ARGUMENTS, unless the last message is a tool's result; offer it with
                        TOOL_PARAMETERS, because the server holds the call to the tool's schema

The constants are to the letter what the server prints. With `"ignore_eos": true` the answer repeats without end, a
space between (thousands of tokens/s on one core). An assistant message that ends within the answer is continued from
there. Under a grammar or a JSON schema ask for temperature 0: all allowed tokens are then alike to the model. Any text
is taken as a prompt, a token a byte, but for the words of the answer and the thought. A slot's context may be up to
CONTEXT_LENGTH tokens and costs 256 bytes of memory a token. Run it with

    llama-server -m tiny.gguf --jinja -np 4 -c 163840

The same bytes are written each time. Format: GGUF version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
(little-endian; header, metadata, tensor table, then the tensors, each at a multiple of 32 bytes).
"""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import attrs

ANSWER = (
    "The quick brown fox jumps over a lazy dog while counting one two three four five six seven eight nine ten"
    " stars above silent winter hills"
)
THOUGHT = "Let me think about this request before answering"
TOOL_NAME = "get_weather"
TOOL_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL_ARGUMENTS = '{"city": "Paris"}'
N_ANSWER_TOKENS = len(ANSWER.split()) + 1  # with the end of the turn, which usage counts and nobody sees
CONTEXT_LENGTH = 131072

_CALL = ('\n{"name": "', TOOL_NAME, '", "arguments": {"', "city", '": "', "Par", "is", '"}}')
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPECIAL = ("<unk>", "<s>", "</s>")  # their places are fixed: 0, 1, 2
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|use_tool|>", "<|reason|>")  # tokens that the server hides
_MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # text that it must see to parse the answer
_SPACE = "\u2581"
_ANSWER_PIECES = tuple(re.findall(r" ?\S+", ANSWER))
_THOUGHT_PIECES = tuple(re.findall(r" ?\S+", THOUGHT))  # no word of the answer: a token has one successor
_AGAIN = f" {_ANSWER_PIECES[0]}"  # begins the answer once more after its end
_PIECES = (*_SPECIAL, *_BYTES, *_CONTROL, *_MARKERS, *_CALL, *_ANSWER_PIECES, _AGAIN, *_THOUGHT_PIECES, _SPACE)
_TOKEN_ID = {piece: token for token, piece in enumerate(_PIECES)}

_EMBEDDING, _FEED_FORWARD = 512, 32  # the vocabulary must fit into one-hot embeddings
_HEADS, _HEAD = 1, 64  # small: attention does nothing here, but its cost grows with the square of the prompt
_CERTAIN, _SECOND = 30.0, 15.0  # logits of the successor and of what follows if that is forbidden; all others are 0
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's value types
_NORMAL, _UNKNOWN, _CONTROL_TOKEN, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # GGUF's token types
_TENSOR_F32 = 0


@attrs.frozen
class _Tensor:
    """A float32 tensor. `shape` as GGUF has it: the dimension whose elements lie side by side comes first."""

    name: str
    shape: tuple[int, ...]
    content: bytes


def write_tiny_model(path: Path, *, feed_forward: int = _FEED_FORWARD) -> None:
    """Write the model (2 MB) to `path`, which is then either whole or as it was before.

    Args:
        path: of the file.
        feed_forward: the length of that layer, which adds nothing but time: with 16,384 (97 MiB) a token of a prompt
            takes a core as long as one of a small model that is of use.

    Raises:
        OSError: the folder is missing, not writable, or full.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(tiny_model(feed_forward))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def tiny_model(feed_forward: int = _FEED_FORWARD) -> bytes:
    """Return the GGUF file's bytes."""
    metadata, tensors = _metadata(feed_forward), _tensors(feed_forward)
    head = b"".join(
        [
            struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)),
            *metadata,
            *_tensor_table(tensors),
        ]
    )
    return b"".join(map(_padded, [head, *(tensor.content for tensor in tensors)]))


def _token_type(token: int, piece: str) -> int:
    if token == 0:
        return _UNKNOWN
    if piece in _SPECIAL or piece in _CONTROL:
        return _CONTROL_TOKEN
    if piece in _BYTES:
        return _BYTE
    # User-defined tokens are found whole in a prompt too, so that an answer that was cut short can be continued.
    return _NORMAL if piece == _SPACE else _USER_DEFINED


def _successors() -> dict[int, int]:
    """Map every token to the one that follows it; a token on no chain is followed by the answer's first word."""
    chains = (
        ("<0x0A>", *_ANSWER_PIECES, "<|im_end|>"),
        (_AGAIN, _ANSWER_PIECES[1]),
        ("<|use_tool|>", "<tool_call>", *_CALL, "</tool_call>", "<|im_end|>"),
        ("<|reason|>", "<think>", *_THOUGHT_PIECES, "</think>", _ANSWER_PIECES[0]),
    )
    follow = dict.fromkeys(_TOKEN_ID.values(), _TOKEN_ID[_ANSWER_PIECES[0]])
    for chain in chains:
        ids = [_TOKEN_ID[piece] for piece in chain]
        follow.update(pairwise(ids))
    return follow


def _metadata(feed_forward: int) -> list[bytes]:
    chat_template = files("auxot.demo").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    return [
        _entry("general.architecture", _STRING, _string("llama")),
        _entry("general.name", _STRING, _string("tiny-bigram")),
        _uint32("llama.context_length", CONTEXT_LENGTH),
        _uint32("llama.embedding_length", _EMBEDDING),
        _uint32("llama.block_count", 1),
        _uint32("llama.feed_forward_length", feed_forward),
        _uint32("llama.attention.head_count", _HEADS),
        _uint32("llama.attention.head_count_kv", _HEADS),
        _entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        _uint32("llama.attention.key_length", _HEAD),
        _uint32("llama.attention.value_length", _HEAD),
        _uint32("llama.rope.dimension_count", _HEAD),
        _uint32("llama.vocab_size", len(_PIECES)),
        _uint32("general.file_type", 0),  # all float32
        _entry("tokenizer.ggml.model", _STRING, _string("llama")),
        _array("tokenizer.ggml.tokens", _STRING, [_string(piece) for piece in _PIECES]),
        _array("tokenizer.ggml.scores", _FLOAT32, [struct.pack("<f", -float(token)) for token in range(len(_PIECES))]),
        _array("tokenizer.ggml.token_type", _INT32, [struct.pack("<i", _token_type(*x)) for x in enumerate(_PIECES)]),
        _uint32("tokenizer.ggml.bos_token_id", _TOKEN_ID["<s>"]),
        _uint32("tokenizer.ggml.eos_token_id", _TOKEN_ID["<|im_end|>"]),
        _uint32("tokenizer.ggml.unknown_token_id", _TOKEN_ID["<unk>"]),
        _entry("tokenizer.ggml.add_bos_token", _BOOL, b"\x01"),
        _entry("tokenizer.ggml.add_space_prefix", _BOOL, b"\x00"),
        _entry("tokenizer.chat_template", _STRING, _string(chat_template)),
    ]


def _tensors(feed_forward: int) -> list[_Tensor]:
    tokens = range(len(_PIECES))
    vocabulary = (_EMBEDDING, len(_PIECES))
    into_head, out_of_head = (_EMBEDDING, _HEADS * _HEAD), (_HEADS * _HEAD, _EMBEDDING)
    up, down, vector = (_EMBEDDING, feed_forward), (feed_forward, _EMBEDDING), (_EMBEDDING,)
    ones = struct.pack("<f", 1.0) * _EMBEDDING
    logits = {(after, token): _CERTAIN for token, after in _successors().items()}
    logits[_TOKEN_ID[_AGAIN], _TOKEN_ID[_ANSWER_PIECES[-1]]] = _SECOND  # ignore_eos forbids the end of the turn
    return [
        _sparse("token_embd", vocabulary, {(token, token): 1.0 for token in tokens}),
        _sparse("output", vocabulary, logits),
        _Tensor("output_norm.weight", vector, ones),
        _Tensor("blk.0.attn_norm.weight", vector, ones),
        _Tensor("blk.0.ffn_norm.weight", vector, ones),
        *(_sparse(f"blk.0.attn_{name}", into_head, {}) for name in ("q", "k", "v")),
        _sparse("blk.0.attn_output", out_of_head, {}),
        _sparse("blk.0.ffn_gate", up, {}),
        _sparse("blk.0.ffn_up", up, {}),
        _sparse("blk.0.ffn_down", down, {}),
    ]


def _sparse(name: str, shape: tuple[int, int], weights: dict[tuple[int, int], float]) -> _Tensor:
    """Return a matrix of zeros but for `weights`, which maps (row, column) to a value."""
    n_columns, n_rows = shape
    content = bytearray(4 * n_rows * n_columns)
    for (row, column), weight in weights.items():
        struct.pack_into("<f", content, 4 * (row * n_columns + column), weight)
    return _Tensor(f"{name}.weight", shape, bytes(content))


def _tensor_table(tensors: list[_Tensor]) -> list[bytes]:
    rows, offset = [], 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        rows.append(_string(tensor.name) + dimensions + struct.pack("<IQ", _TENSOR_F32, offset))
        offset += len(_padded(tensor.content))
    return rows


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _entry(key: str, value_type: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", value_type) + value


def _uint32(key: str, number: int) -> bytes:
    return _entry(key, _UINT32, struct.pack("<I", number))


def _array(key: str, item_type: int, items: list[bytes]) -> bytes:
    return _entry(key, _ARRAY, struct.pack("<IQ", item_type, len(items)) + b"".join(items))


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % _ALIGNMENT)


if __name__ == "__main__":  # python -m auxot.demo.tiny_model tiny.gguf
    write_tiny_model(Path(sys.argv[1]))
