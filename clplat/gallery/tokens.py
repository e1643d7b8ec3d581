"""Pictures of scenarios that are made of bits or tokens."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from clplat.gallery.canvas import EMPTY, Cell, draw_cells, picture, tint

GAP: list[Cell] = [None]


def bits_figure(title: str, bits: Tensor, labels: Tensor, lengths: Sequence[int]) -> Figure:
    """Strings of bits (B, T), brackets around the last N of them, and labels (B, len(lengths))."""
    figure = picture(title, 1.5 + 0.24 * len(bits))
    left, right = figure.subplots(1, 2, width_ratios=[bits.shape[1], 1.6 * len(lengths)])

    def cell(bit: int) -> Cell:
        return str(bit), tint(0) if bit else EMPTY

    draw_cells(left, [[cell(int(bit)) for bit in row] for row in bits])
    draw_cells(right, [[cell(int(label)) for label in row] for row in labels])
    end = bits.shape[1] - 0.5
    for k, length in enumerate(lengths):
        height = len(bits) + 0.1 + 0.75 * k
        left.plot([end - length + 0.1, end - 0.1], [height] * 2, color="black", linewidth=2)
        left.text(end - length - 0.2, height, f"N={length}", ha="right", va="center", fontsize=7.5)
    left.set_ylim(len(bits) + 0.75 * len(lengths), -0.5)
    right.set_ylim(len(bits) + 0.75 * len(lengths), -0.5)
    left.set_title("string, a bit a step", fontsize=8.5)
    right.set_title("labels after the last bit", fontsize=8.5)
    for k, length in enumerate(lengths):
        right.text(k, len(bits), f"N={length}", ha="center", va="center", fontsize=7.5)
    return figure


def strings_figure(
    title: str, experiences: Sequence[tuple[str, Tensor, Tensor, str]], columns: int
) -> Figure:
    """Of each experience (name, tokens (N, T), labels (N,), its symbols), and 0 before a string.

    Tokens count from 1 up in `symbols`; of each string the last `columns` tokens are drawn.
    """
    strings = sum(len(tokens) for _, tokens, _, _ in experiences)
    figure = picture(title, 0.45 + 0.2 * strings + 0.25 * len(experiences))
    heights = [len(tokens) for _, tokens, _, _ in experiences]
    grid = figure.subplots(len(experiences), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, tokens, labels, symbols) in zip(grid, experiences, strict=True):
        letters: list[Cell] = [("", EMPTY), *((s, tint(k)) for k, s in enumerate(symbols))]
        draw_cells(
            axes,
            [
                [letters[int(token)] for token in row[-columns:]]
                + GAP
                + [(f"{int(label)}", tint(int(label)))]
                for row, label in zip(tokens, labels, strict=True)
            ],
        )
        axes.set_title(name, fontsize=8.5, pad=3, loc="left")
        axes.set_title("label", fontsize=8.5, pad=3, loc="right")
    return figure


Asked = Sequence[tuple[Tensor, Tensor]]  # of each segment the keys (Q,) and their values (Q,)


def recall_figure(
    title: str, streams: Sequence[tuple[str, int, Sequence[tuple[Tensor, Asked]]]]
) -> Figure:
    """Of each stream (name, kinds of key, rows): tokens read (T,), as many segments as are asked.

    Token 0 is filler, keys follow it, and values follow them.
    """
    rows = [len(rows) for _, _, rows in streams]
    figure = picture(title, 0.5 + 0.24 * sum(rows) + 0.35 * len(rows))
    grid = figure.subplots(len(streams), 1, height_ratios=rows, squeeze=False)[:, 0]
    for axes, (name, keys, stages) in zip(grid, streams, strict=True):
        longest = max(len(read) for read, _ in stages)

        def cell(token: int, segment: int, keys: int = keys) -> Cell:
            if token == 0:
                return "", EMPTY
            if token <= keys:
                return f"k{token - 1}", tint(segment, 0.75)
            return f"v{token - 1 - keys}", tint(segment, 0.35)

        drawn: list[list[Cell]] = []
        for read, asked in stages:
            length = len(read) // len(asked)
            row = [cell(int(token), t // length) for t, token in enumerate(read)]
            row += (longest - len(read) + 1) * GAP
            for j, pairs in enumerate(asked):
                for key, value in zip(*pairs, strict=True):
                    row += [cell(int(key), j), cell(1 + keys + int(value), j)]
            drawn.append(row)
        draw_cells(axes, drawn, size=6)
        axes.set_yticks(range(len(stages)), [f"row {i}" for i in range(len(stages))], fontsize=8)
        axes.set_title(name, fontsize=8.5, pad=3, loc="left")
        axes.set_title("asked: keys, and their values", fontsize=8.5, pad=3, loc="right")
    return figure


def letter(byte: int) -> str:
    """A byte as it is shown: what prints as itself, a new line and a space as signs, else hex."""
    if byte in b"\n ":
        return "↵" if byte == 10 else "␣"
    return chr(byte) if 32 < byte < 127 else f"{byte:02x}"


def text_figure(
    title: str, texts: Sequence[tuple[str, Tensor, Tensor]], columns: int = 44
) -> Figure:
    """Of each text (name, bytes (T,), the next bytes (T,)): the begin of a window, and targets."""
    figure = picture(title, 0.4 + 0.8 * len(texts))
    for k, (axes, (name, x, y)) in enumerate(
        zip(figure.subplots(len(texts), 1, squeeze=False)[:, 0], texts, strict=True)
    ):
        draw_cells(
            axes,
            [
                [(letter(int(token)), tint(k, 0.5)) for token in x[:columns]],
                [(letter(int(token)), tint(k, 0.2)) for token in y[:columns]],
            ],
            size=7.5,
        )
        axes.set_yticks([0, 1], ["read", "predict"], fontsize=8)
        axes.set_title(name, fontsize=8.5, pad=3, loc="left")
    return figure
