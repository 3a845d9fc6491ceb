"""A Hugging Face causal language model in the place of `ReportDecoder`.

Shape suffixes: B studies, S memory tokens, T text tokens, W width, C vocabulary.

What the decoder looks at stands before the text, as in R2GenGPT (arXiv 2309.09812). Our special tokens
(their ids are the lowest) have an embedding and logits of their own; the model's ids follow them, so its
tokenizer and its weights stay as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xpt.models.report_decoder import Memory


@dataclass(frozen=True, kw_only=True)
class PastTokens:
    """Keys and values that the language model keeps between tokens."""

    past: Any
    is_seen_BT: Tensor

    def select(self, rows: Int64[Tensor, "B"]) -> "PastTokens":
        """The rows that beams continue."""
        self.past.reorder_cache(rows)
        return PastTokens(past=self.past, is_seen_BT=self.is_seen_BT[rows])


class LanguageModelDecoder(nn.Module):
    """Logits of the next token. Raises ValueError where the folder holds no causal language model."""

    def __init__(self, folder: Path, *, special: int) -> None:
        super().__init__()
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ValueError("--report.language_model needs: pip install -e '.[language-model]'") from error
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--report.language_model {folder}: no config.json; wanted one that save_pretrained wrote"
            )
        self.language_model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        embed: Any = self.language_model.get_input_embeddings()
        self.width: int = embed.embedding_dim
        self.special = nn.Embedding(special, self.width)
        nn.init.normal_(self.special.weight, std=embed.weight.std().item())
        self.special_head = nn.Linear(self.width, special)

    def forward(self, ids_BT: Int64[Tensor, "B T"], memory: Memory) -> Float[Tensor, "B T C"]:
        """After each token of texts that begin with their language's token; for training."""
        return self.start(ids_BT, memory)[0]

    def start(
        self, ids_BT: Int64[Tensor, "B T"], memory: Memory
    ) -> tuple[Float[Tensor, "B T C"], PastTokens]:
        is_text_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        x_BNW = torch.cat([memory.tokens_BSD, self._embedded(ids_BT)], 1)
        logit_BNC, past = self._run(x_BNW, torch.cat([memory.is_valid_BS, is_text_BT], 1), None)
        return logit_BNC[:, -ids_BT.shape[1] :], past

    def step(
        self, ids_B1: Int64[Tensor, "B 1"], cache: PastTokens
    ) -> tuple[Float[Tensor, "B 1 C"], PastTokens]:
        """After one more token."""
        is_seen_BT = torch.cat([cache.is_seen_BT, torch.ones_like(ids_B1, dtype=torch.bool)], 1)
        return self._run(self._embedded(ids_B1), is_seen_BT, cache.past)

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        special = self.special.num_embeddings
        own = self.special(ids_BT.clamp(max=special - 1))
        theirs = self.language_model.get_input_embeddings()((ids_BT - special).clamp(min=0))
        return torch.where((ids_BT < special)[..., None], own, theirs)

    def _run(self, x_BTW: Tensor, is_seen_BT: Tensor, past: Any) -> tuple[Tensor, PastTokens]:  # noqa: ANN401
        place_BT = (is_seen_BT.cumsum(1) - 1).clamp(min=0)[:, -x_BTW.shape[1] :]
        out = self.language_model(
            inputs_embeds=x_BTW,
            attention_mask=is_seen_BT.long(),
            position_ids=place_BT,
            cache=past,
            use_cache=True,
            output_hidden_states=True,
        )
        own_BTC = self.special_head(out.hidden_states[-1])
        return torch.cat([own_BTC, out.logits], 2), PastTokens(past=out.cache, is_seen_BT=is_seen_BT)
