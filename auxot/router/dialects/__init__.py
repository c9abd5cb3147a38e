"""The APIs that clients speak, as pure folds: request body -> Job, JobEvents -> bytes of the answer."""
