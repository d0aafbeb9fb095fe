"""A build: options, the workshop, verdicts, the bundle, and `build()` itself in `run`."""
