"""Published detectors -> `Opened`, as a labelled task."""
