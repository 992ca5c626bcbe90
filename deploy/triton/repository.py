"""An export -> a model repository as the Triton Inference Server wants it.

In: an export for ONNX or OpenVINO, and the repository's folder. Out: `NAME/config.pbtxt`,
`NAME/labels.txt` and `NAME/1/` with the model's files, which are verified first.

    python deploy/triton/repository.py run/export/onnx repository --name fieldmark

A repository that has the model gets the next version of it, whose input and output must be as they
are there; Triton takes it in where it polls.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from fieldmark.errors import FieldmarkError
from fieldmark.files import whole_folder
from fieldmark.manifest import Manifest, Tensor

BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
BATCH = 16  # photos together, as `fieldmark serve` has it


def config(name: str, manifest: Manifest) -> str:
    """Return the model's configuration.

    Triton puts the photos of several requests together for ONNX Runtime. Its backend for OpenVINO
    has trouble with that, as its authors say, and is told to take batches as they are sent.
    """
    batched = manifest.format == "onnx"
    lines = [f'name: "{name}"', f'backend: "{BACKENDS[manifest.format]}"']
    lines += [f"max_batch_size: {BATCH if batched else 0}"]
    lines += ["input [", *tensor(manifest.input, batched), "]"]
    labels = '    label_filename: "labels.txt"'
    lines += ["output [", *tensor(manifest.output, batched, labels), "]"]
    lines += ["dynamic_batching { }"] if batched else []
    return "\n".join([*lines, "version_policy { latest { num_versions: 1 } }", ""])


def tensor(found: Tensor, batched: bool, *more: str) -> list[str]:
    """Return the lines about a tensor."""
    shape = found.shape[1:] if batched else found.shape
    dims = ", ".join("-1" if each is None else str(each) for each in shape)
    facts = (f'    name: "{found.name}"', f"    data_type: {TYPES[found.type]}")
    return ["  {", *facts, f"    dims: [ {dims} ]", *more, "  }"]


def make(export: Path, repository: Path, *, name: str = "fieldmark") -> Path:
    """Write a model, or its next version, into a repository, and return the version's folder."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise FieldmarkError(f"The name {name} is to be a folder's: take letters and -.")
    manifest = Manifest.read(export)
    if manifest.format not in BACKENDS:
        raise FieldmarkError(
            f"{export} is for {manifest.format}, which Triton does not take from fieldmark: "
            "`fieldmark export RUN --format onnx` is."
        )
    manifest.verify(export)
    model = repository / name
    text, labels = config(name, manifest), "".join(f"{each}\n" for each in manifest.classes)
    files = {model / "config.pbtxt": text, model / "labels.txt": labels}
    for file, content in files.items():
        if file.is_file() and file.read_text(encoding="utf-8") != content:
            raise FieldmarkError(
                f"{file} is of a model with other classes or another size: take another --name."
            )
    taken = [int(each.name) for each in model.glob("*") if each.name.isdecimal()]
    version = model / str(max(taken, default=0) + 1)
    model.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        file.write_text(content, encoding="utf-8")
    with whole_folder(version) as folder:  # whole or not at all: Triton may be looking
        for each in manifest.files:
            shutil.copyfile(export / each, folder / each)
    return version


def main() -> None:
    """Write a repository."""
    parser = argparse.ArgumentParser(description="An export -> a model repository for Triton.")
    parser.add_argument("export", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--name", default="fieldmark")
    asked = parser.parse_args()
    try:
        print(make(asked.export, asked.repository, name=asked.name))
    except FieldmarkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
