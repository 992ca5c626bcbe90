"""What lies beside an exported network: all that whoever answers with it must know.

In: an export's folder. Out: a `Manifest`: format, classes, how a photo becomes the network's input,
when the answer is none of these, the model's files with their hashes. `fieldmark export` writes it,
`Classifier.load` reads it and has it `verify` the files before anything of them is opened. It says
what is inside and does not sign it: who can exchange the model can exchange the manifest as well.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fieldmark import files
from fieldmark.decision import Decision
from fieldmark.errors import FieldmarkError
from fieldmark.images import ImageSpec

Format = Literal["openvino", "onnx", "litert", "saved_model", "keras"]
Precision = Literal["float32", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)

# The files of an export beside the model's own.
MANIFEST = "manifest.json"
PARITY = "parity.json"
BENCH = "bench.json"

LONGEST = 16 << 20  # bytes of a manifest: ImageNet's full tree of classes takes one
LARGEST = 8 << 30  # bytes of one of the model's files
MOST_FILES = 64
MOST_CLASSES = 100_000


def _inside(name: str) -> str:
    """Return a file's name, which must not lead out of the folder."""
    path = PurePosixPath(name)
    plain = "\\" not in name and ":" not in name and "\0" not in name and name == str(path)
    if path.is_absolute() or ".." in path.parts or not path.name or not plain:
        raise ValueError(f"{name!r} is no name of a file in the folder")
    return name


Name = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Content(_Frozen):
    """What a file must hold."""

    sha256: Sha256
    bytes: int = Field(ge=0, le=LARGEST)


class Tensor(_Frozen):
    """What goes into the graph or comes out of it; none in a shape: as many as there are photos."""

    name: str
    type: Literal["uint8", "float32"]
    shape: tuple[int | None, ...]


class Proof(_Frozen):
    """What `parity.json` says, in short."""

    photos: int = Field(ge=0)  # held out, that both networks were asked about
    largest_difference: float = Field(ge=0, le=1)  # of a probability, the odd photos included
    agreement: float | None = Field(ge=0, le=1)  # share of the photos with the same first class


class Manifest(_Frozen):
    """An export, described."""

    schema_version: Literal[1] = 1
    format: Format
    precision: Precision
    classes: tuple[str, ...] = Field(min_length=1, max_length=MOST_CLASSES)  # as the output's
    specification: ImageSpec  # its scaling is done within the graph
    decision: Decision | None
    input: Tensor  # pixels, 0 to 255
    output: Tensor  # probabilities
    licence: str
    weights_sha256: Sha256  # of the run's weights that it was made from
    made_with: dict[str, str]  # package: version
    files: dict[Name, Content] = Field(min_length=1, max_length=MOST_FILES)
    parity: Proof

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        """Raise where the parts contradict each other."""
        side = self.specification.size
        if len({*self.classes}) != len(self.classes):
            raise ValueError("a class is named twice")
        if self.input.shape[1:] != (side, side, 3):
            raise ValueError("the input's shape is not the specification's")
        if self.output.shape[1:] != (len(self.classes),):
            raise ValueError("the output's shape is not that of the classes")
        return self

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of an export; raises a FieldmarkError for anything else."""
        path = folder / MANIFEST
        try:
            with path.open("rb") as file:
                text = file.read(LONGEST + 1)
        except OSError as error:
            raise FieldmarkError(
                f"{path} cannot be read ({error.strerror or error}): name the folder that "
                "`fieldmark export` wrote."
            ) from error
        if len(text) > LONGEST:
            raise FieldmarkError(f"{path} is too large for a manifest: export the run anew.")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise FieldmarkError(
                f"{path} is damaged, or of another version of fieldmark ({where}: "
                f"{first['msg']}): export the run anew."
            ) from error

    def verify(self, folder: Path) -> None:
        """Raise where a file of the model is not the one that was exported."""
        for name, content in self.files.items():
            path = folder / name
            try:
                # The size first: what is cut short, or far too large, is not read at all.
                same = (
                    path.stat().st_size == content.bytes and files.sha256_of(path) == content.sha256
                )
            except OSError as error:
                raise FieldmarkError(
                    f"{path} cannot be read ({error.strerror or error}): copy the whole folder "
                    "again, or export the run anew."
                ) from error
            if not same:
                raise FieldmarkError(
                    f"{path} is not the file that was exported, it is damaged or another's: copy "
                    "the whole folder again, or export the run anew."
                )


def contents(folder: Path) -> dict[str, Content]:
    """Describe all files in a folder and below it."""
    return {
        path.relative_to(folder).as_posix(): Content(
            sha256=files.sha256_of(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
