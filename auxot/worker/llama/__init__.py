"""llama-server: finding or building it, keeping it alive, talking to it."""
