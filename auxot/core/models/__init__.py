"""The model registry: which models there are, where their files are, and how much memory they take. Pure."""
