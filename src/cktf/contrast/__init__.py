"""The contrastive engine: memory banks and negatives; `cktf.functional.nce_loss` scores them."""

from cktf.contrast.bank import random_bank, update_bank
from cktf.contrast.negatives import NegativeSampler

__all__ = ["NegativeSampler", "random_bank", "update_bank"]
