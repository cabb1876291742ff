"""What a training step minimises, example by example."""

import torch.nn.functional as F
from torch import Tensor

from optim.batches import Batch


def losses_of(logits: Tensor, batch: Batch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(cross-entropies with the given labels, what is minimised in their place), both (n,).

    A share of every label may be spread evenly over all classes (Szegedy et al. 2016), and the losses of a mixed example with
    its own label and with its partner's are added up by their shares.
    """
    labels = batch.examples.labels
    plain = F.cross_entropy(logits, labels, reduction="none")
    if batch.partners is None and label_smoothing == 0:
        return plain, plain
    own = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    if batch.partners is None:
        return plain, own
    theirs = F.cross_entropy(logits, batch.partners.labels, reduction="none", label_smoothing=label_smoothing)
    return plain, batch.share * own + (1 - batch.share) * theirs
