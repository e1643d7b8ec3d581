"""Titans: a window of attention for the near past, a memory that learns for the far past."""

import torch
from torch import Tensor, nn

from clplat.layers.attention import SlidingWindowAttention, attend
from clplat.layers.layer import Layer, State, check_state, per_head
from clplat.layers.memory import Gates, TitansMemory, initial_weights
from clplat.layers.norm import RMSNorm, unit
from clplat.layers.rotary import rotate
from clplat.ops.neural_memory import neural_memory
from clplat.ops.neural_memory.inner import answer
from clplat.ops.neural_memory.rule import LONGEST_CHUNK


class TitansLayer(Layer):
    """Memory as a layer: attention on what the memory says (Behrouz et al. 2025, MAL).

    y = attention(norm(memory(x))), sliding-window attention with `persistent` learned tokens.
    Parameters, cost and state: those of TitansMemory and of SlidingWindowAttention.
    """

    def __init__(
        self, width: int, heads: int = 4, window: int = 32, persistent: int = 4, chunk: int = 16
    ):
        super().__init__(width)
        self.memory = TitansMemory(width, heads, chunk)
        self.norm = RMSNorm(width)
        self.attention = SlidingWindowAttention(width, heads, window, persistent)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        far, near = (None, None) if state is None else state
        remembered, far = self.memory(x, far)
        y, near = self.attention(self.norm(remembered), near)
        return y, (far, near)


class TitansGate(Layer):
    """Memory as a gate: attention and memory side by side, multiplied (Behrouz et al. 2025, MAG).

    y = norm(attention(x)) sigmoid(norm(memory(x))); attention as for TitansLayer. Parameters,
    cost and state: those of TitansMemory and of SlidingWindowAttention.
    """

    def __init__(
        self, width: int, heads: int = 4, window: int = 32, persistent: int = 4, chunk: int = 16
    ):
        super().__init__(width)
        self.memory = TitansMemory(width, heads, chunk)
        self.attention = SlidingWindowAttention(width, heads, window, persistent)
        self.far_norm, self.near_norm = RMSNorm(width), RMSNorm(width)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        far, near = (None, None) if state is None else state
        remembered, far = self.memory(x, far)
        attended, near = self.attention(x, near)
        return self.near_norm(attended) * self.far_norm(remembered).sigmoid(), (far, near)


class TitansContext(Layer):
    """Memory as context: attention reads what the memory recalls (Behrouz et al. 2025, MAC).

    The sequence goes by in segments. A token recalls h = M(W x) from the memory as it was at its
    segment's start, attends to `persistent` learned tokens and to h and x of its segment up to
    itself, and the memory learns from what attention gives, y; out = W_o (y sigmoid(norm(M(y)))).
    Causal inside a segment too (our reading). Parameters: 8 width^2 and the memory's, and a token
    costs 11 width^2, the memory's, and up to 4 segment width multiplications. State: keys and
    values of the segment so far, (B, t, 2, heads, width / heads) each, and the memory's (see
    TTTMLP).
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        segment: int = 16,
        persistent: int = 4,
        hidden: int = 2,
    ):
        super().__init__(width)
        per = per_head(width, heads)
        if not 1 <= segment <= LONGEST_CHUNK:
            raise ValueError(f"TitansContext: segment={segment}; expected 1 to {LONGEST_CHUNK}")
        self.heads, self.segment = heads, segment
        self.recall = nn.Linear(width, width, bias=False)
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent, width))
        self.learn = nn.Linear(width, 3 * width, bias=False)
        self.gates = Gates(width, heads, segment, momentum=True, decay=True)
        self.weights = initial_weights(heads, per, hidden * per)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        cache, learned = (None, None) if state is None else state
        if cache is not None and learned is not None:
            for part in cache:
                check_state(self, part, len(x), learned[3], 2, self.heads, self.width // self.heads)
            for part, weight in zip(learned[2], self.weights, strict=True):
                check_state(self, part, len(x), *weight.shape)
        outputs, start = [], 0
        while start < x.shape[1]:
            taken = 0 if learned is None else learned[3]
            part = x[:, start : start + self.segment - taken]
            y, cache = self._attend(part, self._recalled(part, learned), cache)
            remembered, learned = self._learn(y, learned)
            if learned[3] == 0:
                cache = None
            outputs.append(y * self.norm(remembered).sigmoid())
            start += part.shape[1]
        if cache is None:
            empty = x.new_zeros(len(x), 0, 2, self.heads, self.width // self.heads)
            cache = empty, empty
        return self.output(torch.cat(outputs, 1)), (cache, learned)

    def _recalled(self, x: Tensor, learned: State) -> Tensor:
        """What the memory of the segment's start answers."""
        q = unit(self.recall(x).unflatten(2, (self.heads, -1)))
        first, second = self.weights if learned is None else learned[2]
        return answer(q.transpose(1, 2), [first.to(q), second.to(q)]).transpose(1, 2).flatten(2)

    def _attend(self, x: Tensor, recalled: Tensor, cache: State) -> tuple[Tensor, State]:
        q, *pair = self.input(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        _, *recalled_pair = self.input(recalled).unflatten(2, (3, self.heads, -1)).unbind(2)
        past = 0 if cache is None else cache[0].shape[1]
        position = torch.arange(past, past + x.shape[1], device=x.device)[None]
        pair[0], recalled_pair[0] = rotate(pair[0], position), rotate(recalled_pair[0], position)
        both = [torch.stack(two, 2) for two in zip(pair, recalled_pair, strict=True)]
        if cache is not None:
            both = [torch.cat([old.to(new), new], 1) for old, new in zip(cache, both, strict=True)]

        count = len(self.persistent)
        learned = self.input(self.persistent).unflatten(1, (3, self.heads, -1))
        k, v = (
            torch.cat([learned[None, :, place].expand(len(x), -1, -1, -1), part.flatten(1, 2)], 1)
            for place, part in ((1, both[0]), (2, both[1]))
        )
        seen = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device)
        seen = seen.tril(past).repeat_interleave(2, 1)  # of a token, itself and its recollection
        seen = nn.functional.pad(seen, (count, 0), value=True)
        heads_first = (part.transpose(1, 2) for part in (rotate(q, position), k, v))
        y = attend(*heads_first, attn_mask=seen)
        return y.transpose(1, 2).flatten(2), tuple(both)

    def _learn(self, y: Tensor, learned: State) -> tuple[Tensor, State]:
        q, k, v = self.learn(y).unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k = unit(q), unit(k)
        rate, momentum, decay = self.gates(y)
        remembered, learned = neural_memory(
            q,
            k,
            v,
            rate,
            tuple(self.weights),
            learned,
            momentum=momentum,
            decay=decay,
            chunk=self.segment,
        )
        return remembered.flatten(2), learned
