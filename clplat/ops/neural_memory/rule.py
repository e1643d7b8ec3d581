"""How a memory learns, and how its tokens fall into chunks."""

from typing import NamedTuple


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
