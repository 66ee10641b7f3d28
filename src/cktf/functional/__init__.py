"""The mathematics: one pure function per method, tensors in, scalar out."""

from cktf.functional.kd import kd_loss
from cktf.functional.nce import nce_loss
from cktf.functional.nce_all import nce_loss_all

__all__ = ["kd_loss", "nce_loss", "nce_loss_all"]
