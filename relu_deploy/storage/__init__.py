"""Files on disk: atomic writes, folders, the members of a bundle and its manifest."""
