"""Where models and programs are downloaded from when nothing else is configured."""

from __future__ import annotations

HUB = "https://huggingface.co"
LLAMA_RELEASES = "https://api.github.com/repos/ggml-org/llama.cpp/releases"
LLAMA_RELEASE = "b10375"  # its hashes stand in worker/fetch/releases.py
NO_RELEASE = "none"
