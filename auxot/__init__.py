"""Auxot: one URL that speaks the OpenAI and Anthropic APIs, backed by your own GPUs."""

__version__ = "0.1.0"
