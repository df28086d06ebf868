"""What a user reads when a command cannot run."""


class CommandError(Exception):
    """A mistake of the user's; its text is all that is printed."""
