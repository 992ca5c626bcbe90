"""What `deploy/` has for other servers, against those servers' own descriptions of it.

Triton's and KServe's are installed by hand, as `docs/deploy.md` says; without them the tests that
need them say so.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from fieldmark.predict import Classifier
from fieldmark.run import Run

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

SCRIPT = ROOT / "deploy" / "triton" / "repository.py"
SERVICES = sorted((ROOT / "deploy" / "kserve").glob("*.yaml"))


@pytest.fixture(scope="module")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for ONNX Runtime; for reading only."""
    from fieldmark.export import export

    return export(trained.folder, "onnx", out=tmp_path_factory.mktemp("export") / "model")


def make(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as its docstring says."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_repository_has_what_triton_wants(exported: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for version in ("1", "2"):
        done = make(exported, repository, "--name", "birds")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(repository / "birds" / version)
    files = {str(each.relative_to(repository)) for each in repository.rglob("*") if each.is_file()}
    assert files == {
        "birds/config.pbtxt",
        "birds/labels.txt",
        "birds/1/model.onnx",
        "birds/2/model.onnx",
    }
    classes = Classifier.load(exported).classes
    labels = (repository / "birds" / "labels.txt").read_text(encoding="utf-8")
    assert tuple(labels.splitlines()) == classes


def test_the_repository_s_network_is_as_its_configuration_says(
    exported: Path, tmp_path: Path
) -> None:
    """By ONNX Runtime, which is what Triton has inside for it."""
    import onnxruntime

    make(exported, tmp_path / "repository")
    model = tmp_path / "repository" / "fieldmark"
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert re.findall(r'\bname: "([^"]*)"', text) == ["fieldmark", given.name, found.name]
    dims = [
        [int(each) for each in line.split(",")] for line in re.findall(r"dims: \[ (.*) \]", text)
    ]
    assert dims == [given.shape[1:], found.shape[1:]]
    assert (given.type, found.type) == ("tensor(uint8)", "tensor(float)")
    squares = np.zeros((16, *dims[0]), np.uint8)  # as many as the configuration lets in
    (answers,) = session.run(None, {given.name: squares})
    assert answers == pytest.approx(Classifier.load(exported).engine(squares), abs=1e-6)


def test_what_is_no_model_for_it_is_refused(exported: Path, trained: Run, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert make(exported, repository).returncode == 0
    labels = repository / "fieldmark" / "labels.txt"
    labels.write_text("others\n")
    for words, said in (
        ((exported, repository), "other classes"),
        ((exported, repository, "--name", "../out"), "a folder's"),
        ((trained.folder, repository), "manifest"),
    ):
        done = make(*words)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(each.name for each in repository.rglob("*")) == [
        "1", "config.pbtxt", "fieldmark", "labels.txt", "model.onnx"
    ]  # fmt: skip


# In a process of its own: KServe brings other messages of the same names.
PARSE = """
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as description

found = text_format.Parse(sys.stdin.read(), description.ModelConfig())
assert found.input[0].data_type == description.TYPE_UINT8
assert found.HasField("dynamic_batching")
print(found.backend, found.max_batch_size, found.output[0].label_filename)
"""


def parsed(text: str) -> subprocess.CompletedProcess[str]:
    """Have Triton's description of a configuration read one."""
    code = f"import sys\nsys.path[:] = {sys.path!r}\n{PARSE}"
    return subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient is not installed")
def test_triton_s_own_description_takes_the_configuration(exported: Path, tmp_path: Path) -> None:
    make(exported, tmp_path / "repository")
    text = (tmp_path / "repository" / "fieldmark" / "config.pbtxt").read_text(encoding="utf-8")
    done = parsed(text)
    assert done.stdout == "onnxruntime 16 labels.txt\n", done.stderr
    assert "no field named" in parsed(text.replace("max_batch_size", "max_batch")).stderr


def built(kind: str, found: Any, types: Any) -> Any:
    """Build one of KServe's own types from what a file says; what is unknown there is an error."""
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        return [built(inner[1], each, types) for each in found]
    if not hasattr(types, kind):  # Kubernetes' own, or plain
        return found
    wanted = getattr(types, kind)
    names = {name: key for key, name in wanted.attribute_map.items()}
    assert set(found) <= set(names), f"{kind} has no {set(found) - set(names)}"
    return wanted(
        **{
            names[name]: built(wanted.openapi_types[names[name]], value, types)
            for name, value in found.items()
        }
    )


@pytest.mark.parametrize("file", SERVICES, ids=[each.stem for each in SERVICES])
def test_kserve_s_own_types_take_the_service(file: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    types = pytest.importorskip("kserve.models", reason="kserve is not installed")
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert built("V1beta1InferenceService", found, types).spec.predictor.max_replicas == 4
    predictor = found["spec"]["predictor"]
    # The containers are Kubernetes' own: as a pod of them.
    containers = predictor.get("containers") or [
        {"name": "kserve-container", "image": "x", "resources": predictor["model"]["resources"]}
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    kubernetes.validate({**pod, "spec": {"containers": containers}}, "1.33", strict=True)
    predictor["minReplica"] = 1
    with pytest.raises(AssertionError, match="minReplica"):
        built("V1beta1InferenceService", found, types)


def test_the_service_runs_what_the_command_takes(trained: Run) -> None:
    """The arguments in the file are those of `fieldmark serve`, and so are the addresses."""
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    from fieldmark import cli
    from fieldmark.endpoints import OPEN

    found = yaml.safe_load((ROOT / "deploy" / "kserve" / "fieldmark.yaml").read_text())
    (container,) = found["spec"]["predictor"]["containers"]
    _, bound, _ = cli.app.parse_args(["serve", *container["args"]])
    port = bound.arguments["port"]
    assert bound.arguments["host"] == "0.0.0.0"
    assert port == container["ports"][0]["containerPort"]
    for probe in ("readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port
        assert asked["path"] in OPEN


def test_the_client_in_the_docs_is_answered(exported: Path, birds: Path, tmp_path: Path) -> None:
    """By `fieldmark serve`, which speaks Triton's protocol."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    photo = next(birds.rglob("*.jpg"))
    server = subprocess.Popen(
        [sys.executable, "-m", "fieldmark", "serve", str(exported), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]
        code = code.replace("http://127.0.0.1:8000", address).replace("a.jpg", str(photo))
        done = subprocess.run(
            [sys.executable, "-c", code.replace("run/export/onnx", str(exported))],
            capture_output=True,
            text=True,
            check=False,
        )
        server.terminate()
    classifier = Classifier.load(exported)
    found = classifier.engine(classifier.square(photo.read_bytes())[None])[0]
    assert done.stdout.strip() == classifier.classes[int(found.argmax())], done.stderr
