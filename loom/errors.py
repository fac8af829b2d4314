"""The one kind of error that a command shows as a single line, without a traceback."""


class UserError(Exception):
    """A person's mistake: one line that says what is wrong, where, and what to do; the command exits with status 2."""
