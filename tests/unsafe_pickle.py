"""A pickle that acts when it is loaded."""

import os


class MakesFolder:
    """Makes a folder while it is unpickled: whoever loads it has run foreign code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
