"""Files that a run leaves on disk: formats, definitions, readers and writers."""
