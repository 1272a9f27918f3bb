"""file or folder -> Opened: what an importer is, and those for files that we wrote ourselves."""
