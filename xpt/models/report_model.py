"""A pretrained encoder on all films of a study, and a decoder that writes its report.

Shape suffixes: B studies, V films of a study, F = B x V films, M films that are there, L patches, W encoder
width, R reports (each study has one per language), T tokens, C vocabulary, S memory tokens, D width.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from xpt.config import EncoderConfig
from xpt.models.encoder import encoder_of
from xpt.models.language_model import LanguageModelDecoder
from xpt.models.mae import CHANNELS, all_patches
from xpt.models.report_decoder import Memory, ReportDecoder


class ReportModel(nn.Module):
    """`connector` makes a `Memory` of the encoder's tokens."""

    def __init__(
        self,
        model: EncoderConfig,
        connector: nn.Module,
        decoder: ReportDecoder | LanguageModelDecoder,
        *,
        drop_path: float,
        is_frozen: bool,
    ) -> None:
        super().__init__()
        self.patch, self.is_frozen = model.patch, is_frozen
        self.encoder = encoder_of(model, CHANNELS, drop_path=0.0 if is_frozen else drop_path)
        self.encoder.requires_grad_(not is_frozen)
        self.connector, self.decoder = connector, decoder

    def forward(
        self,
        image_FCHW: UInt8[Tensor, "F 1 H W"],
        is_valid_FL: Bool[Tensor, "F L"],
        there_M: Int64[Tensor, "M"],
        study_R: Int64[Tensor, "R"],
        ids_RT: Int64[Tensor, "R T"],
        studies: int,
    ) -> Float[Tensor, "R T C"]:
        """Logits after each token; a study is encoded once, whatever the number of its reports.

        Args:
            there_M: films that are looked at; the others only fill the rows of studies with fewer.
            study_R: which study each report is of.
        """
        tokens_BVLW, is_valid_BVL = self.tokens(image_FCHW, is_valid_FL, there_M, studies)
        memory = self.connector(tokens_BVLW, is_valid_BVL)
        return self.decoder(ids_RT, memory.of(study_R))

    def tokens(
        self, image_FCHW: Tensor, is_valid_FL: Tensor, there_M: Tensor, studies: int
    ) -> tuple[Float[Tensor, "B V L W"], Bool[Tensor, "B V L"]]:
        """Normalised patch tokens, zero for films that are not there, and which of them show film."""
        patches_MLP, ids_ML = all_patches(image_FCHW[there_M], self.patch, next(self.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            tokens_MLW = self.encoder(patches_MLP, ids_ML)[:, 1:]
        tokens_FLW = tokens_MLW.new_zeros(len(image_FCHW), *tokens_MLW.shape[1:])
        is_there_F1 = torch.zeros_like(is_valid_FL[:, :1]).index_fill(0, there_M, True)
        return (
            tokens_FLW.index_copy(0, there_M, tokens_MLW).unflatten(0, (studies, -1)),
            (is_valid_FL & is_there_F1).unflatten(0, (studies, -1)),
        )

    def remember(self, image_FCHW: Tensor, is_valid_FL: Tensor, there_M: Tensor, studies: int) -> Memory:
        """What the decoder looks at."""
        return self.connector(*self.tokens(image_FCHW, is_valid_FL, there_M, studies))
