"""auxot-router: takes requests, queues them, hands them to workers, streams the answers back."""
