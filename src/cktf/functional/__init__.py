"""The mathematics: one pure function per method, tensors in, scalar out."""

from cktf.functional.infonce import infonce_loss, infonce_loss_all
from cktf.functional.kd import kd_loss
from cktf.functional.nce import nce_loss, nce_loss_all

__all__ = ["infonce_loss", "infonce_loss_all", "kd_loss", "nce_loss", "nce_loss_all"]
