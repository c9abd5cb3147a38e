"""Downloads of models and of llama.cpp's releases: resumed, verified, and in place only when they are whole.

huggingface_hub would serve for the first: it is synchronous (a cancelled worker would wait for its threads), fetches a
file over one connection unless a further compiled package is there, and knows nothing of the second. httpx is here
already and runs on Trio.
"""
