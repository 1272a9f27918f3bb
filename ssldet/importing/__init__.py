"""file or folder -> Opened: the interface of importers, and the importers of our own files."""
