"""The earlier names of `cktf.data.image_decoding`, for code that imports them."""

from cktf.data.image_decoding import decode_image as decode
from cktf.data.image_decoding import open_image_file as open_image

__all__ = ["decode", "open_image"]
