from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader

from auxot.demo.tiny_model import ANSWER, CONTEXT_LENGTH, tiny_model, write_tiny_model

EMBEDDING = 512


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> GGUFReader:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_model(path)
    return GGUFReader(path)


def test_metadata_is_read_back_by_the_reference_reader(reader: GGUFReader) -> None:
    """The file would not be a GGUF of the llama architecture, with its tokenizer and chat template."""
    field = {name: reader.fields[name].contents() for name in reader.fields}
    assert field["GGUF.version"] == 3
    assert field["general.architecture"] == "llama"
    assert field["llama.context_length"] == CONTEXT_LENGTH
    assert field["llama.embedding_length"] == EMBEDDING
    assert field["tokenizer.ggml.model"] == "llama"
    tokens = field["tokenizer.ggml.tokens"]
    assert field["llama.vocab_size"] == len(tokens) == len(set(tokens)) <= EMBEDDING
    assert len(field["tokenizer.ggml.scores"]) == len(field["tokenizer.ggml.token_type"]) == len(tokens)
    assert tokens[field["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert "<|use_tool|>" in field["tokenizer.chat_template"]


def test_tensors_are_read_back_by_the_reference_reader(reader: GGUFReader) -> None:
    """A tensor would have the wrong shape or lie at the wrong place."""
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    n_tokens = reader.fields["llama.vocab_size"].contents()
    assert len(tensors) == 12
    assert tensors["token_embd.weight"].shape == tensors["output.weight"].shape == (n_tokens, EMBEDDING)
    assert (tensors["token_embd.weight"].argmax(axis=1) == range(n_tokens)).all()
    assert (tensors["output_norm.weight"] == 1).all()
    assert not tensors["blk.0.attn_q.weight"].any()
    assert tensors["blk.0.ffn_down.weight"].shape == (EMBEDDING, 32)


def test_output_matrix_spells_the_answer(reader: GGUFReader) -> None:
    """The most likely successors, from the end of the prompt on, would not be the answer."""
    output = next(tensor.data for tensor in reader.tensors if tensor.name == "output.weight")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    token, pieces = tokens.index("<0x0A>"), []
    while tokens[token := int(output[:, token].argmax())] != "<|im_end|>":
        pieces.append(tokens[token])
    assert "".join(pieces) == ANSWER


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """Two written models would differ, and with them what a test of one proves about the other."""
    write_tiny_model(tmp_path / "a.gguf")
    write_tiny_model(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() == tiny_model()


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A write that fails would leave half a model or a temporary file."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_tiny_model(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
