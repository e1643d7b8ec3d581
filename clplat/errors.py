"""The errors that the command line explains."""

from signal import Signals


class InputError(ValueError):
    """Bad input, found before training: one line of what was given, what was expected, the mend.

    The command line prints the line alone and exits with status 2.
    """


class Locked(InputError):
    """Another process is at this very run."""


def at_least(section: str, least: int, **values: int) -> None:
    """Refuse the first of some whole numbers of a config's section, by their keys, that is less."""
    for key, value in values.items():
        if not isinstance(value, int):
            raise InputError(f"{section}.{key}={value}: expected a whole number, {least} or more")
        if value < least:
            raise InputError(f"{section}.{key}={value}: expected at least {least}; raise it")


def not_negative(section: str, **values: float) -> None:
    """Refuse the first of some values of a config's section, by their keys, that is below 0."""
    for key, value in values.items():
        if isinstance(value, str) or not value >= 0:  # nor is nan, which YAML may take for a word
            raise InputError(f"{section}.{key}={value}: expected 0 or more; raise it")


class TrainingError(RuntimeError):
    """A run that cannot go on, such as a loss that is not finite; exit status 1."""


class Interrupted(BaseException):
    """A run that stopped, once it was saved, because a signal asked it to; status 128 + signal.

    As KeyboardInterrupt it is no Exception, which Hydra would keep until a sweep is over.
    """

    def __init__(self, number: int, saved: bool = True):
        how = ", and saved; the same command goes on from there"
        if not saved:
            how = " before there was anything to save"
        super().__init__(f"stopped by {Signals(number).name}{how}")
        self.number = number
