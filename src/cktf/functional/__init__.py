"""The mathematics: one pure function per method, tensors in, scalar out."""

from cktf.functional.kd import kd_loss
from cktf.functional.nce import nce_loss

__all__ = ["kd_loss", "nce_loss"]
