"""The contrastive engine: memory banks and negatives; `cktf.functional.nce_loss` scores them."""

from cktf.contrast.bank import DTYPES, Storage, random_bank, update_bank
from cktf.contrast.negatives import NegativeSampler

__all__ = ["DTYPES", "NegativeSampler", "Storage", "random_bank", "update_bank"]
