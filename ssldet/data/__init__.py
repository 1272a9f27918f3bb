"""Images on disk -> batches: reading, geometry, colour, padding, order."""
