"""Knowledge distillation (KD): match the teacher's softened class probabilities.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
arXiv 1503.02531, section 2. Departure: none; the divergence is formed from log-probabilities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import _check

_LOWEST = torch.finfo(torch.float32).min


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """`T² · mean over the batch of KL(softmax(teacher/T) ‖ softmax(student/T))`.

    Args:
        student_logits: [B, classes].
        teacher_logits: [B, classes]; carries no gradient; -inf for a class that is ruled out.
        temperature: T > 0, by which both logits are divided.

    Returns:
        Scalar float32, in nats times T².

    Raises:
        ShapeError: the logits are not of one batch over the same classes.

    >>> import torch
    >>> kd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item()
    0.0
    """
    _check.paired_logits("KD", student_logits, teacher_logits)
    student, teacher = (
        # A class that both rule out, with a logit of -inf, adds 0 · log 0 = 0.
        F.log_softmax(logits.float() / temperature, dim=1).clamp_min(_LOWEST)
        for logits in (student_logits, teacher_logits.detach())
    )
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return total * (temperature**2 / len(student))
