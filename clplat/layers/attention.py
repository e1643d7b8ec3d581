"""Softmax attention: the yardsticks, and its form as a recurrence."""

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State, check_state, per_head
from clplat.layers.rotary import positions, rotate
from clplat.ops.linear_scan import linear_scan
from clplat.ops.tier import state_dtype

attend = nn.functional.scaled_dot_product_attention


class CausalAttention(Layer):
    """Multi-head softmax attention on all tokens so far, rotary (Vaswani et al. 2017).

    y_t = W_o sum_s softmax_s(q_t . k_s / sqrt(width / heads)) v_s, s <= t. Parameters: 4 width^2,
    and token t costs those and 2 t width multiplications. State: keys and values of all tokens,
    (B, t, heads, width / heads) each: it grows.
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__(width)
        per_head(width, heads)
        self.heads = heads
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self.input(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        past = 0
        if state is not None:
            check_state(self, state[0], len(x), "t", *k.shape[2:])
            past = state[0].shape[1]
            check_state(self, state[1], len(x), past, *k.shape[2:])
        position = torch.arange(past, past + x.shape[1], device=x.device)[None]
        q, k = rotate(q, position), rotate(k, position)
        if state is not None:
            k, v = (
                torch.cat([old.to(new), new], 1) for old, new in zip(state, (k, v), strict=True)
            )
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=x.device).tril(past)
        y = attend(*(part.transpose(1, 2) for part in (q, k, v)), attn_mask=seen)
        return self.output(y.transpose(1, 2).flatten(2)), (k, v)


class SlidingWindowAttention(Layer):
    """Softmax attention on the last `window` tokens, itself among them (Beltagy et al. 2020).

    As CausalAttention with t - window < s <= t, and on `persistent` learned tokens that are always
    seen (Behrouz et al. 2025). Parameters: 4 width^2 + persistent width, and a token costs those
    and 2 window width multiplications. State: keys and values of the last window - 1 tokens, (B,
    window - 1, heads, width / heads) each, and the count of tokens (B,).
    """

    def __init__(self, width: int, heads: int = 4, window: int = 32, persistent: int = 0):
        super().__init__(width)
        per_head(width, heads)
        if window < 1:
            raise ValueError(f"SlidingWindowAttention: window={window}; expected at least 1")
        self.heads, self.window = heads, window
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent, width)) if persistent else None
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        batch, time = x.shape[:2]
        before = self.window - 1
        q, k, v = self.input(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        if state is None:
            old = k.new_zeros(batch, before, *k.shape[2:])
            state = old, old, None
        for old in state[:2]:
            check_state(self, old, batch, before, *k.shape[2:])
        position, taken = positions(x, state[2])
        q, k = rotate(q, position), rotate(k, position)
        k, v = (torch.cat([old.to(new), new], 1) for old, new in zip(state, (k, v), strict=False))

        # Blocks of `window` queries; each sees a stretch of 2 window - 1 keys, some of them masked.
        blocks = -(-time // self.window)
        fill = blocks * self.window - time
        q = nn.functional.pad(q, (0, 0, 0, 0, 0, fill)).unflatten(1, (blocks, self.window))
        stretch = before + self.window
        keys, values = (
            nn.functional.pad(part, (0, 0, 0, 0, 0, fill)).unfold(1, stretch, self.window).mT
            for part in (k, v)
        )  # (B, blocks, heads, 2 window - 1, width / heads) after the transposition
        seen = self._seen(position[:, 0], blocks, stretch)
        if self.persistent is not None:
            keys, values, seen = self._with_persistent(keys, values, seen)
        y = attend(q.transpose(2, 3), keys, values, attn_mask=seen[:, :, None])
        y = y.transpose(2, 3).flatten(1, 2)[:, :time].flatten(2)
        return self.output(y), (k[:, time:], v[:, time:], taken)

    def _seen(self, start: Tensor, blocks: int, stretch: int) -> Tensor:
        """Which keys of its stretch each query sees: (B, blocks, window, stretch)."""
        query = torch.arange(self.window, device=start.device)[:, None]
        key = torch.arange(stretch, device=start.device)
        near = (query <= key) & (key < query + self.window)
        first = self.window * torch.arange(blocks, device=start.device)[:, None] - self.window + 1
        real = start[:, None, None] + first + key >= 0  # (B, blocks, stretch)
        return near & real[:, :, None]

    def _with_persistent(self, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.persistent is not None
        learned = self.input(self.persistent).unflatten(1, (3, self.heads, -1)).transpose(0, 2)
        always = torch.ones_like(seen[..., :1]).expand(*seen.shape[:-1], len(self.persistent))
        k, v = (
            torch.cat([part.to(full).expand(*full.shape[:2], -1, -1, -1), full], 3)
            for part, full in ((learned[:, 1], k), (learned[:, 2], v))
        )
        return k, v, torch.cat([always, seen], -1)


class Aaren(Layer):
    """Attention as an RNN: a learned query for each head over the prefix (Feng et al. 2024).

    y_t = W_o sum_{s <= t} softmax_s(q . k_s / sqrt(width / heads)) v_s, from running sums of
    exp(q . k_s - m_t) v_s and exp(q . k_s - m_t), m_t the greatest score so far, by a prefix scan.
    Parameters: 3 width^2 + width, and a token costs those. State: the sums (B, heads,
    width / heads + 1) and m (B, heads).
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__(width)
        self.heads, self.scale = heads, per_head(width, heads) ** -0.5
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.input = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        projected = self.input(x)
        k, v = projected.to(state_dtype(projected)).unflatten(2, (2, self.heads, -1)).unbind(2)
        score = self.scale * (k * self.query.to(k)).sum(-1)  # (B, T, heads)
        sums, greatest = (None, None) if state is None else state
        if sums is not None and greatest is not None:
            check_state(self, sums, len(x), self.heads, v.shape[-1] + 1)
            check_state(self, greatest, len(x), self.heads)
        # The greatest score only keeps the exponentials in range: the output is free of it.
        running = score.detach().cummax(1).values
        if greatest is not None:
            running = torch.maximum(running, greatest[:, None])
        first = running[:, :1] if greatest is None else greatest[:, None]
        decay = (torch.cat([first, running[:, :-1]], 1) - running).exp()
        value = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        value = (score - running).exp()[..., None] * value  # (B, T, heads, width / heads + 1)
        decay = decay[..., None].expand_as(value)
        sums = None if sums is None else sums.flatten(1)
        h, sums = linear_scan(decay.flatten(2), value.flatten(2), sums)
        h = h.unflatten(2, (self.heads, -1))
        y = (h[..., :-1] / h[..., -1:]).flatten(2)
        return self.output(y.to(x)), (sums.unflatten(1, (self.heads, -1)), running[:, -1])
