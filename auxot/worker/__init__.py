"""auxot-worker: dials out to a router, runs llama-server and streams its tokens back."""
