"""`auxot bench`: what the router adds, measured on the user's machine, and beside any other gateway."""
