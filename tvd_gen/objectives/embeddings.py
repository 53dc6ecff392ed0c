"""A frozen model's word embeddings, and the words nearest to each."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**22  # similarities at a time


class Embeddings:
    """(V, E) embeddings that do not change, and the nearest words to those that were asked for.

    Each word is compared with all others once. What was found takes 4 V `count` bytes.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self._found: dict[int, Tensor] = {}
        self._coming = torch.empty(0, dtype=torch.long, device=weight.device)

    @staticmethod
    def of(weight: "Tensor | Embeddings | None", coming: Tensor) -> "Embeddings | None":
        """As given, or of a weight; words (n,) that will be asked for are found together."""
        made = Embeddings(weight) if isinstance(weight, Tensor) else weight
        if made is not None:
            made._coming = coming
        return made

    @torch.no_grad()
    def nearest(self, words: Tensor, count: int) -> Tensor:
        """(n,) words -> (n, count): the word itself, then others by falling cosine."""
        with torch.inference_mode(False):  # what is kept must outlive it
            found = self._found.get(count)
            if found is None:
                found = torch.full((len(self.weight), count), -1, device=words.device)
                found = self._found[count] = found.int()
            if (found[words, 0] < 0).any():
                asked = torch.unique(torch.cat([words, self._coming]))
                self._find(asked[found[asked, 0] < 0], found)
            return found[words].long()

    def _find(self, words: Tensor, found: Tensor) -> None:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        unit = F.normalize(self.weight.to(wide), dim=-1)
        for part in torch.split(words, max(BLOCK // len(unit), 1)):
            near = unit[part] @ unit.T
            near.scatter_(-1, part.unsqueeze(-1), torch.inf)  # first, rounding or not
            found[part] = near.topk(found.shape[-1], -1).indices.int()
