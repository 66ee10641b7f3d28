"""Comparisons of methods, and the published figures beside them."""

from cktf.bench.published import Published, published

__all__ = ["Published", "published"]
