"""A pre-trained causal language model of the package transformers as a backbone."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clplat.errors import InputError, at_least

TRAINABLE = ("all", "head", "lora")


def _pretrained(path: str) -> Any:
    """The model in a folder, without its output layer, in float32."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"backbone.path={path}: no such folder; expected one on this machine, for nothing is "
            "fetched; download the model (hf download NAME --local-dir FOLDER), and name its folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"backbone.path={path}: no *.safetensors in it; expected config.json and weights as "
            "save_pretrained leaves them, for pickled weights are not read; convert them"
        )
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise InputError(
            "backbone=causal_lm: needs the package transformers, which is not installed; "
            "pip install 'clplat[text]'"
        ) from error
    disable_progress_bar()  # a run has its own
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"backbone.path={path}: transformers cannot load it as a causal language model "
            f"({str(error).splitlines()[0]}); choose one whose code is in transformers itself, or "
            "fetch it again"
        ) from error
    return model.base_model


def _add_lora(model: nn.Module, rank: int) -> None:
    """Give all linear layers of a model a low-rank change, 0 at first, that is trained instead.

    Hu et al. 2022 (LoRA), scaled by 2 (alpha = 2 rank), without dropout.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            "backbone.trainable=lora: needs the package peft, which is not installed; "
            "pip install 'clplat[text]'"
        ) from error
    with warnings.catch_warnings():  # of layers whose weights lie transposed, as GPT-2's do
        warnings.simplefilter("ignore")
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        inject_adapter_in_model(config, model)


class CausalLM(nn.Module):
    """Tokens (B, T) to the last hidden states (B, T, width) of a pre-trained model.

    `path`: a folder with config.json and *.safetensors. `trainable`: "all"; "head", so that the
    language model stays as it is; or "lora", adapters of `rank` at its linear layers. Its own
    output layer is left out; the platform's head follows.
    InputError: no such folder, no safetensors, code that would have to be fetched, more tokens
    than the model has positions for.
    """

    pretrained = True

    def __init__(
        self, input_shape: Sequence[int], path: str, trainable: str = "all", rank: int = 8
    ):
        super().__init__()
        if trainable not in TRAINABLE:
            raise InputError(
                f"backbone.trainable={trainable}: expected one of {', '.join(TRAINABLE)}; choose "
                "one of these"
            )
        at_least("backbone", 1, rank=rank)
        if len(input_shape) != 1:
            raise InputError(
                f"backbone=causal_lm: reads tokens (T,), and the scenario gives "
                f"{tuple(input_shape)}; choose a scenario of tokens, such as text"
            )
        self.model = _pretrained(path)
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and input_shape[0] > positions:
            raise InputError(
                f"backbone.path={path}: has {positions} positions, and the scenario's samples have "
                f"{input_shape[0]} tokens; lower scenario.window, or choose another model"
            )
        self.path, self.width = path, config.hidden_size
        self.model.requires_grad_(trainable == "all")
        if trainable == "lora":
            _add_lora(self.model, rank)

    def train(self, mode: bool = True) -> "CausalLM":
        """Without dropout in a language model that stays as it is."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.long()
        try:
            return self.model(input_ids=tokens, use_cache=False).last_hidden_state
        except IndexError as error:  # looked at only here: to check every batch would cost time
            rows = self.model.get_input_embeddings().num_embeddings
            raise InputError(
                f"backbone.path={self.path}: knows tokens from 0 to {rows - 1}, and the data has "
                f"{int(tokens.max())}; set scenario.tokenizer={self.path}"
            ) from error
