"""Released weights: the manifest that lists them, and the hub that serves them."""
