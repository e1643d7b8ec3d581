"""General samples replay for language models, GeRe (Zhang et al. 2025).

Before the first text is learned, the model's last hidden states on fixed general texts are kept.
With CE the mean of two cross-entropies, of the text to learn and of the general ones (or the one of
these that a batch has),

    L = CE + w D,    D a distance from the kept states (`strategies.threshold_margin`),

w a number, or "dynamic": CE / (D + 1e-8), no gradient through it, so that w D is as large as CE.
Ours: the dynamic w is at most 100, the largest the paper tried, for it has no bound as D falls;
`mix` adds texts to the loop's batches, where the authors' code lets them take the place of others;
states are kept with digests of their weights and texts, where that code goes by a file's name.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.func import functional_call

from clplat.data import Columns, tensors_of
from clplat.errors import InputError, at_least
from clplat.taps import Tap
from strategies.state_cache import StateCache, digest, last_states
from strategies.threshold_margin import divergence, l1, l2, threshold_margin, thresholds

FORMS = ("margin", "label", "kl", "l1", "l2")
GENERAL = ("first", "stream")
PADDING = -100  # a label that cross-entropy leaves out
LARGEST = 100.0  # dynamic weight


def dynamic_weight(entropy: Tensor, distance: Tensor) -> Tensor:
    """CE / (D + 1e-8), at most `LARGEST`; without gradient."""
    return (entropy.detach() / (distance.detach() + 1e-8)).clamp(max=LARGEST)


class Shuffled:
    """Batches of samples and texts shuffled together, the texts of a batch behind its samples.

    `chosen` are the texts of the last batch, by number.
    """

    def __init__(self, columns: Columns, texts: Columns, batch_size: int, order: torch.Generator):
        self.columns, self.texts = columns, texts
        self.batch_size, self.order = batch_size, order
        self.chosen = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return -(-(len(self.columns[1]) + len(self.texts[1])) // self.batch_size)

    def __iter__(self) -> Iterator[Columns]:
        fresh = len(self.columns[1])
        drawn = torch.randperm(fresh + len(self.texts[1]), generator=self.order)
        for rows in drawn.split(self.batch_size):
            self.chosen = rows[rows >= fresh] - fresh
            index = rows[rows < fresh].to(self.columns[0].device)
            yield _followed([column[index] for column in self.columns], self.texts, self.chosen)


class Joined:
    """A loader whose every batch is followed by `count` texts, drawn without replacement.

    `chosen` are the texts of the last batch, by number.
    """

    def __init__(self, batches: Iterable[Columns], texts: Columns, count: int):
        self.batches, self.texts, self.count = batches, texts, count
        self.chosen = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Columns]:
        for batch in self.batches:
            self.chosen = torch.randperm(len(self.texts[1]))[: self.count]
            yield _followed(batch, self.texts, self.chosen)


def _followed(batch: Columns, texts: Columns, chosen: Tensor) -> Columns:
    index = chosen.to(texts[0].device)
    return [torch.cat([b.to(t.device), t[index]]) for b, t in zip(batch, texts, strict=True)]


class GeRe(SupervisedPlugin):
    """Replays general texts, and holds the last hidden states on them where they were.

    `general`: "first", experience 0, which is learned without; or "stream", the scenario's third
    stream, of a model that knows it as it comes. The first `samples` of it are kept. `form`:
    "margin", the paper's; "label", the cross-entropy alone; "kl" (of logits, at temperature 2),
    "l1" or "l2". `mix`: so many general texts are added to each batch; 0: all are shuffled among
    the experience's samples, which are then held on the device. Where a label is -100 is padding.
    """

    keeps_samples = True
    owns = ("the batches", "the forward pass")

    def __init__(
        self,
        form: str = "margin",
        weight: float | str = 1.0,
        general: str = "first",
        samples: int = 1000,
        mix: int = 0,
    ):
        super().__init__()
        for key, value, known in (("form", form, FORMS), ("general", general, GENERAL)):
            if value not in known:
                raise InputError(
                    f"strategy.{key}={value}: expected one of {', '.join(known)}; choose one of "
                    "these"
                )
        if weight != "dynamic" and (isinstance(weight, str) or not 0 <= weight < float("inf")):
            raise InputError(
                f"strategy.weight={weight}: expected a number of at least 0, or dynamic; change it"
            )
        at_least("strategy", 1, samples=samples)
        at_least("strategy", 0, mix=mix)
        self.form, self.weight, self.general = form, weight, general
        self.samples, self.mix = samples, mix
        self.texts: Columns = []  # x, y and task of the general samples
        self.cache: StateCache | None = None
        self.thresholds: Columns = []
        self.head: dict[str, Tensor] = {}  # as it was: of the logits
        self._source: Any = None  # the dataset of general texts
        self._encoder: Any = None  # that is trained
        self._restored: str | None = None  # the digest of its weights when this state was saved
        self._loader: Shuffled | Joined | None = None
        self._padded = False
        self._tap: Tap | None = None
        self._batch: tuple[Tensor, Tensor, Tensor | None] | None = None  # logits, labels, states
        self._fresh = 0  # samples of the batch that are the experience's own

    def check(self, scenario: Any) -> None:
        """Refuse what is no language modelling; else take note of where the general texts are."""
        if scenario.vocabulary is None or scenario.head != "single":
            raise InputError(
                "strategy: GeRe replays texts to a language model, and this scenario does not ask "
                "for the next token at every position; set scenario=text, or choose another "
                "strategy"
            )
        if self.general == "stream" and "general" not in scenario.streams:
            raise InputError(
                "strategy.general=stream: this scenario has no general texts apart from its "
                "experiences; name some by scenario.general, or set strategy.general=first"
            )
        streams = scenario.streams
        self._source = streams["general" if self.general == "stream" else "train"][0].dataset

    def check_model(self, model: Any) -> None:
        """Refuse a model whose last hidden states cannot be read."""
        if not hasattr(model, "encoder") or not hasattr(model, "head"):
            raise InputError(
                "strategy: GeRe reads what an encoder gives to a head, and this model has no such "
                "parts; set hypernet=none, or choose another strategy"
            )

    # --- general texts and their states -------------------------------------------------------

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.general == "first" and strategy.experience.current_experience == 0:
            return
        self._encoder = strategy.model.encoder
        if self._restored is not None:
            self._check_restored(strategy)
        elif not self.texts:
            self._read(strategy)
        self.texts = [column.to(strategy.device) for column in self.texts]
        self._padded = bool((self.texts[1] == PADDING).any())
        self._loader = strategy.dataloader = self._mixed(strategy)
        if self.cache is not None:
            self._tap = Tap(self._encoder)

    def _read(self, strategy: Any) -> None:
        """Keep the general texts, and what the model makes of them now."""
        self.texts = self._general_texts(strategy)
        if self.form == "label":
            return
        weights = digest(self._encoder.state_dict())
        self.cache = StateCache(last_states(strategy, self.texts), weights, _of_texts(self.texts))
        if self.form == "margin":
            mask = self.texts[1] != PADDING
            self.thresholds = thresholds(self.cache.states.float(), mask)
        if self.form == "kl":
            self.head = {n: t.clone() for n, t in strategy.model.head.state_dict().items()}

    def _general_texts(self, strategy: Any) -> Columns:
        if self._source is None:
            raise InputError(
                "strategy: GeRe has not been shown the scenario; call its check(scenario) before "
                "training"
            )
        columns = tensors_of(self._source, stored=hasattr(strategy, "prepare"))
        return [column[: self.samples].to(strategy.device, copy=True) for column in columns]

    def _check_restored(self, strategy: Any) -> None:
        """Refuse kept states that are of another model or of other texts than those of this run."""
        assert self.cache is not None
        assert self._restored is not None
        texts, weights = self._general_texts(strategy), digest(self._encoder.state_dict())
        self.cache.check(_of_texts(texts), weights, self._restored)
        self.cache.states = self.cache.states.to(strategy.device)
        self.thresholds = [bound.to(strategy.device) for bound in self.thresholds]
        self.head = {name: t.to(strategy.device) for name, t in self.head.items()}
        self._restored = None

    def _mixed(self, strategy: Any) -> "Shuffled | Joined":
        if self.mix:
            return Joined(strategy.dataloader, self.texts, self.mix)
        columns = tensors_of(strategy.adapted_dataset, stored=hasattr(strategy, "prepare"))
        order = getattr(strategy, "order", None)
        if order is None:  # Avalanche's loop has none
            order = torch.Generator().manual_seed(torch.initial_seed())
        columns = [column.to(strategy.device) for column in columns]
        return Shuffled(columns, self.texts, strategy.train_mb_size, order)

    # --- training ----------------------------------------------------------------------------

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Set the general texts apart, so that the loop's own loss is the experience's."""
        self._batch = None
        if self._loader is None:
            return
        states = None if self._tap is None else self._tap.take()
        self._fresh = len(strategy.mb_y) - len(self._loader.chosen)
        general = slice(self._fresh, len(strategy.mb_y))
        if not len(self._loader.chosen):
            return
        kept = None if states is None else states[general].float()
        self._batch = (strategy.mb_output[general], strategy.mb_y[general], kept)
        if self._fresh:
            strategy.mbatch = [column[: self._fresh] for column in strategy.mbatch]
            strategy.mb_output = strategy.mb_output[: self._fresh]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._batch is None:
            return
        logits, labels, states = self._batch
        entropy = strategy._criterion(logits, labels)
        if self._fresh:  # otherwise the loop's loss is the general one
            own = strategy.criterion()
            strategy.loss = strategy.loss + (entropy - own) / 2
            entropy = (entropy + own) / 2
        if states is not None:
            distance = self._distance(strategy, logits, labels, states)
            dynamic = self.weight == "dynamic"
            weight: Any = dynamic_weight(entropy, distance) if dynamic else self.weight
            strategy.loss = strategy.loss + weight * distance
        self._batch = None

    def _distance(self, strategy: Any, logits: Tensor, labels: Tensor, states: Tensor) -> Tensor:
        """Of what the model gives for the batch's general texts from what it gave for them."""
        assert self.cache is not None
        assert self._loader is not None
        stored = self.cache.states[self._loader.chosen.to(states.device)].float()
        mask = labels != PADDING if self._padded else None
        if self.form == "margin":
            low, high = self.thresholds
            return threshold_margin(states, stored, low, high, mask)
        if self.form == "kl":
            with torch.no_grad():
                old = functional_call(strategy.model.head, self.head, (stored,))
            return divergence(logits, old, mask)
        return (l1 if self.form == "l1" else l2)(states, stored, mask)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._loader = self._batch = None
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    # --- state -------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        """Of the texts, their states and what is made of them."""
        states = [] if self.cache is None else [self.cache.states]
        held = [*self.texts, *states, *self.thresholds, *self.head.values()]
        return sum(t.numel() * t.element_size() for t in held)

    def state_dict(self) -> dict[str, Any]:
        state = {"texts": self.texts, "thresholds": self.thresholds, "head": self.head}
        if self.cache is None:
            return {**state, "cache": None, "trained": None}
        trained = self._restored or digest(self._encoder.state_dict())
        return {**state, "cache": dict(vars(self.cache)), "trained": trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.texts, self.thresholds, self.head = state["texts"], state["thresholds"], state["head"]
        self.cache = None if state["cache"] is None else StateCache(**state["cache"])
        self._restored = state["trained"]


def _of_texts(texts: Columns) -> str:
    return digest({"x": texts[0], "y": texts[1]})
