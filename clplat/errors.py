"""The error a user can mend."""


class InputError(ValueError):
    """Bad input, found before training: one line of what was given, what was expected, the mend.

    The command line prints the line alone and exits with status 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on, such as a loss that is not finite; exit status 1."""
