"""The classic losses in the formulation of their published results: whole tensors, no care taken.

They are the reference for values, gradients, time and memory; `benchmarks/methods.py` times them.
"""

from itertools import pairwise

import torch
from torch.nn import functional as F


def fit(student, teacher):
    """Both maps at the smaller side."""
    side = min(student.shape[2], teacher.shape[2])
    return F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)


def kd(student, teacher, temperature=4.0):
    p = F.softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return (p * (p.log() - log_q)).sum() * temperature**2 / len(student)


def energy(feature_map):
    return F.normalize(feature_map.pow(2).mean(1).view(len(feature_map), -1))


def at(students, teachers):
    pairs = [fit(s, t) for s, t in zip(students, teachers, strict=True)]
    return sum((energy(s) - energy(t)).pow(2).mean() for s, t in pairs)


def sp(student, teacher):
    grams = []
    for feature_map in (student, teacher):
        rows = feature_map.reshape(len(feature_map), -1)
        grams.append(F.normalize(torch.mm(rows, rows.t())))
    return (grams[1] - grams[0]).pow(2).sum() / len(student) ** 2


def cc(student, teacher):
    delta = torch.abs(student - teacher)
    return torch.mean((delta[:-1] * delta[1:]).sum(1))


def vid(mean, teacher, log_scale):
    variance = torch.log(1.0 + torch.exp(log_scale)) + 1e-5
    variance = variance.view(1, -1, 1, 1)
    return torch.mean(0.5 * ((mean - teacher) ** 2 / variance + torch.log(variance)))


def distances(rows):
    squared = rows.pow(2).sum(1)
    squared = squared.unsqueeze(0) + squared.unsqueeze(1) - 2 * rows @ rows.t()
    found = squared.clamp(min=1e-12).sqrt() * (1 - torch.eye(len(rows)))
    return found / found[found > 0].mean()


def angles(rows):
    directions = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)
    return torch.bmm(directions, directions.transpose(1, 2)).view(-1)


def rkd(student, teacher):
    with torch.no_grad():
        wanted = distances(teacher), angles(teacher)
    distance = F.smooth_l1_loss(distances(student), wanted[0])
    return 25 * distance + 50 * F.smooth_l1_loss(angles(student), wanted[1])


def pkt(student, teacher, eps=1e-7):
    chances = []
    for rows in (student, teacher):
        rows = rows / (rows.pow(2).sum(1, keepdim=True).sqrt() + eps)
        similarity = (torch.mm(rows, rows.t()) + 1) / 2
        chances.append(similarity / similarity.sum(1, keepdim=True))
    return torch.mean(chances[1] * torch.log((chances[1] + eps) / (chances[0] + eps)))


def ab(students, teachers, margin=1.0):
    total = 0.0
    for k, (s, t) in enumerate(zip(students, teachers, strict=True)):
        low = ((s > -margin) & (t <= 0)).float()
        high = ((s <= margin) & (t > 0)).float()
        part = (s + margin).pow(2) * low + (s - margin).pow(2) * high
        total = total + 2.0 ** (k + 1 - len(students)) * part.sum()
    return total * 3 / (1000 * len(students[0]))


def ft(student, teacher):
    student, teacher = fit(student, teacher)
    return (energy(student) - energy(teacher)).abs().mean()


def flows(maps):
    found = []
    for earlier, later in pairwise(maps):
        earlier, later = fit(earlier, later)
        batch, c, d = len(earlier), earlier.shape[1], later.shape[1]
        products = earlier.reshape(batch, c, 1, -1) * later.reshape(batch, 1, d, -1)
        found.append(products.mean(-1))
    return found


def fsp(students, teachers):
    both = zip(flows(students), flows(teachers), strict=True)
    return sum((s - t).pow(2).mean() for s, t in both)


def kernel(a, b):
    return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)


def nst(students, teachers):
    total = 0.0
    for s, t in zip(students, teachers, strict=True):
        s, t = (F.normalize(m.reshape(*m.shape[:2], -1), dim=2) for m in fit(s, t))
        total = total + kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()
    return total


def kdsvd(students, teachers):
    """Channels as the axis; the value only, as its gradient is infinite for equal values."""
    total, before = 0.0, None
    for maps in zip(students, teachers, strict=True):
        rows = [m.reshape(*m.shape[:2], -1).transpose(1, 2) for m in maps]
        student, teacher = (
            torch.linalg.svd(r, full_matrices=False)[2].transpose(1, 2)[..., :k]
            for r, k in zip(rows, (4, 1), strict=True)
        )
        cosine = student.transpose(1, 2) @ teacher
        largest = cosine.abs().amax(1, keepdim=True)
        student = student @ torch.where(cosine.abs() == largest, cosine.sign(), 0.0)
        if before is not None:
            relation = [
                torch.exp(-(now.unsqueeze(2) - then.unsqueeze(1)).pow(2) / 8)
                for now, then in zip((student, teacher), before, strict=True)
            ]
            total = total + (relation[0] - relation[1]).pow(2).sum() / len(student)
        before = student, teacher
    return total
