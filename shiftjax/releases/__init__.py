"""Released weights: the manifest that lists them, and the Hub that serves them."""
