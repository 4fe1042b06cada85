"""One adapter per client, all of one shape: see `base.Client`."""
