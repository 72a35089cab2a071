"""Applications of the networks: predictions, style transfer, analysis and export."""
