"""Byte-level BPE of both languages, trained on the training split.

All 256 bytes are tokens, so no text has an unknown word and every text comes back exactly. Digits are
tokens of their own ("12 mm" is not one of a thousand words but four tokens); runs of Chinese characters
are split from what surrounds them and merged within, so no word segmentation is needed.

The special tokens have ids below the BPE's and are no strings at all: no report can spell one.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from xpt.files import write_atomically
from xpt.text.normalise import LANGUAGES, Language, normalise

PAD, EOS = 0, 1
LANGUAGE_TOKEN: dict[Language, int] = {language: 2 + i for i, language in enumerate(LANGUAGES)}
SPECIAL = 2 + len(LANGUAGES)
"""Ids below this one are no text."""

_BYTES = 256
_LONGEST = 24
"""Bytes of a merged token: eight Chinese characters. Longer ones would be whole sentences of templates."""


class ReportTokenizer:
    """Text to ids and back. A report is its language's token, the text, and EOS."""

    def __init__(self, bpe: Tokenizer) -> None:
        self._bpe = bpe

    @classmethod
    def train(cls, reports: Iterable[str], vocabulary: int = 4096) -> "ReportTokenizer":
        """Learn merges from the reports of the training split, in whatever order.

        Args:
            reports: in all languages; normalised here.
            vocabulary: ids at most, special tokens included; fewer where the reports hold fewer merges.

        Raises:
            ValueError: without a report, or for a vocabulary that does not hold all bytes.
        """
        if vocabulary < SPECIAL + _BYTES:
            raise ValueError(
                f"vocabulary: got {vocabulary}, wanted at least {SPECIAL + _BYTES}: "
                f"{_BYTES} bytes and {SPECIAL} special tokens"
            )
        texts = sorted(text for text in map(normalise, reports) if text)
        if not texts:
            raise ValueError("training the tokenizer: got no report with text in the training split")
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocabulary - SPECIAL,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=_LONGEST,
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    def __len__(self) -> int:
        """Number of ids: rows of the embedding."""
        return SPECIAL + self._bpe.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary and merges, for the checkpoint of the model that was trained on them."""
        return _sha256(self._bpe.to_str())

    def encode(self, text: str, language: Language) -> list[int]:
        """Ids of the normalised text between its language's token and EOS."""
        ids = self._bpe.encode(normalise(text), add_special_tokens=False).ids
        return [LANGUAGE_TOKEN[language], *(SPECIAL + i for i in ids), EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first EOS; bytes that end in the middle of a character give U+FFFD."""
        text = []
        for i in ids:
            if i == EOS:
                break
            if i >= SPECIAL:
                text.append(i - SPECIAL)
        return self._bpe.decode(text, skip_special_tokens=False)

    def save(self, path: Path) -> None:
        write_atomically(path, self._bpe.to_str())

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> "ReportTokenizer":
        """Read what `save` wrote.

        Args:
            fingerprint: of the tokenizer that is wanted, from the model's checkpoint; None takes any.

        Raises:
            ValueError: if the file holds no tokenizer, or that of another run.
        """
        try:
            tokenizer = cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"tokenizer {path}: cannot be read ({error})") from error
        if fingerprint is not None and tokenizer.fingerprint != fingerprint:
            raise ValueError(
                f"tokenizer {path}: it is another run's: got fingerprint {tokenizer.fingerprint[:12]}, "
                f"wanted {fingerprint[:12]}, with which this model was trained. Its ids would mean other "
                "words. Take the tokenizer of the model's own run folder."
            )
        return tokenizer


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
