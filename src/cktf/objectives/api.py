"""The public names of `cktf.objectives`, which imports this module at their first use."""

from cktf.objectives.ab import AB
from cktf.objectives.at import AT
from cktf.objectives.base import BuildContext, Loss, Objective, Phase, WeightedSum
from cktf.objectives.cc import CC
from cktf.objectives.cktf import CKTF
from cktf.objectives.crd import CRD
from cktf.objectives.cross_entropy import CrossEntropy
from cktf.objectives.fitnet import FitNet
from cktf.objectives.fsp import FSP
from cktf.objectives.ft import FT
from cktf.objectives.kd import KD
from cktf.objectives.kdsvd import KDSVD
from cktf.objectives.method_string import parse, term_names
from cktf.objectives.nst import NST
from cktf.objectives.pkt import PKT
from cktf.objectives.presets import PRESETS, expand_preset
from cktf.objectives.registry import METHODS, compose, features_read
from cktf.objectives.rkd import RKD
from cktf.objectives.sp import SP
from cktf.objectives.vid import VID

__all__ = [
    "AB",
    "AT",
    "CC",
    "CKTF",
    "CRD",
    "FSP",
    "FT",
    "KD",
    "KDSVD",
    "METHODS",
    "NST",
    "PKT",
    "PRESETS",
    "RKD",
    "SP",
    "VID",
    "BuildContext",
    "CrossEntropy",
    "FitNet",
    "Loss",
    "Objective",
    "Phase",
    "WeightedSum",
    "compose",
    "expand_preset",
    "features_read",
    "parse",
    "term_names",
]
