"""What the command line does before and after Lightning: run directories, resuming, messages."""
