"""How a memory learns, and how its tokens fall into chunks."""

from typing import NamedTuple

LOSSES = ("l2", "huber", "lp")
RETENTIONS = ("decay", "lq", "softmax")
LONGEST_CHUNK = 64


class Rule(NamedTuple):
    """The settings of `neural_memory`, and the tokens that its current chunk already took."""

    loss: str
    loss_parameter: float
    retention: str
    retention_parameter: float
    chunk: int
    position: int

    @property
    def exact(self) -> bool:
        """Tokens read the weights after them, not the newest anchor."""
        return self.retention == "decay"


class Plan(NamedTuple):
    """Chunks of equal length that hold all tokens, with places left free at either end."""

    chunk: int
    front: int  # free places before the first token
    number: int  # of chunks
    time: int

    @property
    def complete(self) -> bool:
        """The last chunk ends with the last token."""
        return self.front + self.time == self.chunk * self.number


def plan(rule: Rule, time: int) -> Plan:
    """Tokens of one chunk alone take no more places than they need: a step costs a step."""
    end = rule.position + time
    if end <= rule.chunk:
        return Plan(time + (end < rule.chunk), 0, 1, time)
    return Plan(rule.chunk, rule.position, -(-end // rule.chunk), time)


def check_settings(
    loss: str, loss_parameter: float, retention: str, retention_parameter: float, chunk: int
) -> None:
    """Raises ValueError for what `neural_memory` cannot be set to."""
    if loss not in LOSSES:
        raise ValueError(f"neural_memory: loss is {loss!r}; expected one of {', '.join(LOSSES)}")
    if retention not in RETENTIONS:
        expected = ", ".join(RETENTIONS)
        raise ValueError(f"neural_memory: retention is {retention!r}; expected one of {expected}")
    if loss == "huber" and not loss_parameter > 0:
        raise ValueError(
            f"neural_memory: loss_parameter is {loss_parameter}; huber clamps to a positive number"
        )
    if loss == "lp" and not loss_parameter >= 1:
        raise ValueError(
            f"neural_memory: loss_parameter is {loss_parameter}; lp takes a power of at least 1"
        )
    if retention == "lq" and not retention_parameter >= 1:
        raise ValueError(
            f"neural_memory: retention_parameter is {retention_parameter}; "
            "lq takes a norm of at least 1"
        )
    if not 1 <= chunk <= LONGEST_CHUNK:
        raise ValueError(f"neural_memory: chunk is {chunk}; expected 1 to {LONGEST_CHUNK}")
