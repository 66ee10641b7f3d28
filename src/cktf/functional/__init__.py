"""The mathematics: one pure function per method, tensors in, scalar out."""

from cktf.functional.ab import ab_loss
from cktf.functional.at import at_loss
from cktf.functional.cc import cc_loss
from cktf.functional.fitnet import fitnet_loss
from cktf.functional.fsp import fsp_loss
from cktf.functional.ft import ft_loss
from cktf.functional.infonce import infonce_loss, infonce_loss_all
from cktf.functional.kd import kd_loss
from cktf.functional.kdsvd import kdsvd_loss
from cktf.functional.nce import nce_loss, nce_loss_all
from cktf.functional.nst import nst_loss
from cktf.functional.pkt import pkt_loss
from cktf.functional.rkd import rkd_loss
from cktf.functional.sp import sp_loss
from cktf.functional.vid import vid_loss

__all__ = [
    "ab_loss",
    "at_loss",
    "cc_loss",
    "fitnet_loss",
    "fsp_loss",
    "ft_loss",
    "infonce_loss",
    "infonce_loss_all",
    "kd_loss",
    "kdsvd_loss",
    "nce_loss",
    "nce_loss_all",
    "nst_loss",
    "pkt_loss",
    "rkd_loss",
    "sp_loss",
    "vid_loss",
]
