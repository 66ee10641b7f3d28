"""Factor transfer (FT): the student's factors follow the teacher's paraphrase of its own map.

Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
NeurIPS 2018, arXiv 1802.04977, equation 3, with factors reduced to where they are active, as in the
published results.
"""

from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.functional.at import attention
from cktf.functional.maps import pool_to_smaller


def ft_loss(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Mean of `|F(s) − F(t)|`, with `F(f)` the rows of unit length of the mean of f² over channels.

    Args:
        student_factor: [B, C_s, H_s, W_s], what the translator gave.
        teacher_factor: [B, C_t, H_t, W_t], what the paraphraser gave; carries no gradient.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal batch sizes, or an input that is no map.

    >>> import torch
    >>> factor = torch.rand(2, 3, 4, 4)
    >>> ft_loss(factor, factor).item()
    0.0
    """
    _check.paired_maps("FT", [student_factor], [teacher_factor])
    student, teacher = pool_to_smaller(student_factor, teacher_factor)
    return F.l1_loss(attention(student), attention(teacher))
