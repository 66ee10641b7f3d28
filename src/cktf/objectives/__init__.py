"""Objectives: what a student minimises, one file per paper."""

from cktf.objectives.base import Loss, Objective, Phase, Setting, WeightedSum
from cktf.objectives.cktf import CKTF
from cktf.objectives.crd import CRD
from cktf.objectives.cross_entropy import CrossEntropy
from cktf.objectives.kd import KD
from cktf.objectives.registry import METHODS, Method, compose, features_read, parse, term_names

__all__ = [
    "CKTF",
    "CRD",
    "KD",
    "METHODS",
    "CrossEntropy",
    "Loss",
    "Method",
    "Objective",
    "Phase",
    "Setting",
    "WeightedSum",
    "compose",
    "features_read",
    "parse",
    "term_names",
]
