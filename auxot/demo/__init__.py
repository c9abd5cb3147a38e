"""The demonstration: the whole product in one process tree, on a model whose answers are known."""
