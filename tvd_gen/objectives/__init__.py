"""Objectives by what they see of a prediction: a token's log p, a sequence's, or every logit.

>>> OBJECTIVES["tailr"](gamma=0.1, min_weight=0.3)
TaiLr(gamma=0.1, min_weight=0.3)
"""

from tvd_gen.objectives.base import Objective
from tvd_gen.objectives.distribution import (
    ASFT,
    EAFT,
    GEM,
    ConfidencePenalty,
    D2GPo,
    DistributionObjective,
    Predictions,
    Unlikelihood,
)
from tvd_gen.objectives.embeddings import Embeddings
from tvd_gen.objectives.sequence import (
    GOLD,
    GOLDP,
    LossTruncation,
    SequenceObjective,
    Sequences,
    State,
)
from tvd_gen.objectives.token import (
    DFT,
    GCE,
    CrossEntropy,
    Focal,
    MixCE,
    Poly1,
    TaiLr,
    TaylorCE,
    Threshold,
    TokenObjective,
)

OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls
    for cls in (
        *(CrossEntropy, TaiLr, DFT, GCE, Focal, MixCE, Poly1, TaylorCE, Threshold),
        *(LossTruncation, GOLD, GOLDP),
        *(ConfidencePenalty, Unlikelihood, D2GPo, GEM, EAFT, ASFT),
    )
}

__all__ = [
    "ASFT",
    "DFT",
    "EAFT",
    "GCE",
    "GEM",
    "GOLD",
    "GOLDP",
    "OBJECTIVES",
    "ConfidencePenalty",
    "CrossEntropy",
    "D2GPo",
    "DistributionObjective",
    "Embeddings",
    "Focal",
    "LossTruncation",
    "MixCE",
    "Objective",
    "Poly1",
    "Predictions",
    "SequenceObjective",
    "Sequences",
    "State",
    "TaiLr",
    "TaylorCE",
    "Threshold",
    "TokenObjective",
    "Unlikelihood",
]
