"""The one exception meant for people.

Everything that a user can put right is raised as a `FieldmarkError`: one or two sentences that
say what is wrong, with which file or value, and what to do. The command line prints it and exits
with 2; any other exception is a bug of ours and keeps its traceback.
"""


class FieldmarkError(Exception):
    """What is wrong, with which file or value, and what to do about it."""
