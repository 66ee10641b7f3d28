"""Files of tensors: read by their content, and named for what they are."""

import gzip
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from unsafe_pickle import MakesFolder

from cktf.errors import CheckpointError
from cktf.models import create, load_weights, read_state_dict

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def saved(content=STATE, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def in_tar(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def numpy_file(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
REFUSED = {
    "Git LFS": (POINTER, "Git LFS pointer.*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><title>Sign in</title>", "web page"),
    "web page with a mark": (b"\xef\xbb\xbf<HTML><body>", "web page"),
    "JSON": (b'{"error": "no such repository"}', "is text that begins .*no such repository"),
    "not found": (b"404: Not Found", "is text that begins"),
    "empty": (b"", "is empty"),
    "gzip": (gzip.compress(saved()), "is compressed. Unpack"),
    "tar": (in_tar(saved()), "is a tar archive. Unpack"),
    "zip": (zipped("weights.pth", saved()), "zip archive of weights.pth. Unpack"),
    "TorchScript": (zipped("net/constants.pkl", b""), "TorchScript archive.*state_dict"),
    "npz": (numpy_file(np.savez, a=np.ones(2)), "NumPy or Keras"),
    "npy": (numpy_file(np.save, arr=np.ones(2)), "is a NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*Keras"),
    "GGUF": (b"GGUF\x03" + bytes(99), "GGUF"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch\x1a\x05", "ONNX or TensorFlow"),
    "Flax": (b"\x81\xa6params\x82", "Flax"),
    "cut zip": (saved()[:300], "damaged or cut off"),
    "cut legacy": (saved(_use_new_zipfile_serialization=False)[:300], "damaged or cut off"),
    "bytes": (b"\x13\x37" * 99, "damaged or cut off"),
    "new pickle": (pickle.dumps({"a": 1}, 5), "pickle of protocol 3 or newer"),
    "module": (saved(nn.Linear(2, 2)), r"whole pickled module \(torch.*Linear\).*weights_only"),
    "module in a dict": (saved({"model": nn.Linear(2, 2)}), "whole pickled module.*weights_only"),
    "old module": (
        saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "could run code, so it was not opened.*weights_only.*state_dict",
    ),
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_named_for_what_they_are(kind, name, tmp_path):
    content, message = REFUSED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s){name} .*{message}"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors", "w"])
def test_the_name_of_a_file_decides_nothing(name, tmp_path):
    path = tmp_path / name
    contents = [saved(), saved(_use_new_zipfile_serialization=False)]
    save_file(STATE, path)
    contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        state = read_state_dict(path, STATE.keys())
        assert all(torch.equal(state[key], STATE[key]) for key in STATE)
        network = nn.Sequential()
        network.add_module("fc", nn.Linear(3, 2))
        load_weights(network, path)
        assert torch.equal(network.fc.weight, STATE["fc.weight"])
    path.write_bytes(contents[-1][:-4])
    with pytest.raises(CheckpointError, match="safetensors file that is damaged or cut off"):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_weights_run_no_code(legacy, tmp_path):
    """The class of an object is neither imported nor called; what acts by a system call stops."""

    class Evil(MakesFolder):
        def __reduce__(self):
            return exec, (f"import os; os.mkdir({str(self.path)!r})",)

    path, made = tmp_path / "w.pth", tmp_path / "made"
    options = {"_use_new_zipfile_serialization": not legacy}
    path.write_bytes(saved({"state_dict": STATE, "args": Evil(made)}, **options))
    assert read_state_dict(path, STATE.keys()).keys() == STATE.keys()
    path.write_bytes(saved({"state_dict": STATE, "args": MakesFolder(made)}, **options))
    with pytest.raises(CheckpointError, match="could run code, so it was not opened"):
        read_state_dict(path)
    assert not made.exists()
    # The trap works.
    path.write_bytes(saved({"state_dict": STATE, "args": Evil(made)}, **options))
    torch.load(path, weights_only=False)
    assert made.exists()


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(saved(create("resnet8", 10).state_dict()))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(CheckpointError, match=r"w.pth cannot be read \(Permission denied\)"):
        read_state_dict(path)
