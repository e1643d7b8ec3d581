"""Where the states at the chunks' starts lie, the same in every form of the op.

They are rows of one tensor (rows, E, N). Sequence n, whose first token is token b of all, holds
the rows from b // CHUNK + n on, one a chunk: ranges that never overlap, whatever the lengths, and
whose end is known without looking at them. Rows between them are never written.
"""

CHUNK = 64  # steps between the states that the forward pass keeps for the backward pass


def count_rows(tokens: int, sequences: int) -> int:
    return tokens // CHUNK + sequences
