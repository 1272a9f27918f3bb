"""Foreign weight files <-> the sections of our detectors."""
