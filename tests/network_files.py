"""Python files that build networks, as users write them."""

USER_CODE = """
from torch import nn
print("ran")

def small(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def fixed():
    return small(3)

def usual(num_classes=3):
    return small(num_classes)

class Wrapped(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.model = small(num_classes)
        self.forward = self.model.forward

def number(num_classes):
    return num_classes

def broken(num_classes):
    raise RuntimeError("out of luck")
"""

# A dataclass with postponed annotations, assigned names, and imports of neighboring files.
USER_CODE_WITH_IMPORTS = """
from __future__ import annotations
from dataclasses import dataclass
from functools import partial
from torch import nn
from blocks_beside import Linear

@dataclass
class Options:
    width: int = 8

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), Linear(Options().width, num_classes))
        self.origin = __name__

made = partial(Net, 7)
typed: partial = made

def late(num_classes):
    import late_beside
    return Net(num_classes)
"""
