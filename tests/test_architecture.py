"""Who may import whom, walked in the source; and that `pipeline` really stands alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "model_store", "workers")
BELOW = {"pipeline": set(), "model_store": {"pipeline"}, "workers": {"pipeline", "model_store"}}

# Where a library may be imported; what is not named here may be imported anywhere.
ONLY_IN = {
    "workers": "faust mode kafka aiokafka aiohttp prometheus_client structlog click rich opentelemetry",
    "model_store": "redis",
    "pipeline": "torch torchvision faiss scipy",
    "pipeline model_store": "safetensors",
}
# The same rule's exceptions: module -> library, each with its reason.
PERMITTED = {
    ("workers/desk.py", "torch"),  # the type of pictures on their way to who learns of them
    ("workers/outcomes.py", "torch"),  # the type of a map on its way to the publisher
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
LINES_MAX = 300
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES)

ALONE = """
import importlib, importlib.abc, pkgutil, sys

BLOCKED = {"faust", "mode", "kafka", "aiokafka", "redis", "aiohttp", "structlog", "prometheus_client", "click", "rich"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED | {"workers", "model_store"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
import pipeline
for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    importlib.import_module(module.name)

from pipeline.backbone import resolve
from pipeline.commissioning import commission
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.view import View
from pipeline.methods import make_config
from pipeline.synthetic import draw, encode

goods = [Frame(frame_id=str(k), image=encode(draw("cap", seed=k, size=(64, 64)).image)) for k in range(10)]
made = commission(
    goods, method="patchcore", config=make_config("patchcore", {"coreset": 0.1}), view=View(size=(64, 64)),
    backbone=resolve("resnet18", ("layer2",), weights=None, random_weights=True, factories=()),
    limits=Limits(), rate=0.1,
)
print(len(made.inspector.inspect(goods).verdicts))
"""

LIGHT_ALONE = """
import sys
import pipeline.data, pipeline.errors, pipeline.settings
import model_store.frames_disk, model_store.frames_redis
print(sorted({"torch", "numpy", "scipy", "PIL", "safetensors"} & sys.modules.keys()))
"""

WITHOUT_TORCH = """
import sys
import workers.commands.gate, workers.commands.camera
print("torch" in sys.modules)
"""


def imports(path: Path) -> set[str]:
    """Full dotted names of all that a module imports, wherever in it; `from a import b` gives a and a.b."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*origin, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "__import__"}:
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_is_something_to_walk():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    assert "pipeline.data" in imports(ROOT / "pipeline/inspection.py")


@each_module
def test_dependencies_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert tops(path) & set(PACKAGES) <= BELOW[package] | {package}


@each_module
def test_nothing_imports_the_tests(path):
    assert not tops(path) & {"tests", "conftest"}


@each_module
def test_libraries_stay_where_they_belong(path):
    name = str(path.relative_to(ROOT))
    for packages, libraries in ONLY_IN.items():
        if name.partition("/")[0] not in packages.split():
            assert {(name, library) for library in tops(path) & set(libraries.split())} <= PERMITTED


def test_no_permission_outlives_its_need():
    assert {(n, library) for n, library in PERMITTED if library not in tops(ROOT / n)} == set()


def methods():
    return [p for p in (ROOT / "pipeline/methods").glob("*.py") if p.stem not in {"__init__", "base"}]


@pytest.mark.parametrize("path", methods(), ids=lambda path: path.stem)
def test_methods_never_import_each_other(path):
    own = f"pipeline.methods.{path.stem}"
    others = {i for i in imports(path) if i.startswith("pipeline.methods.") and not f"{i}.".startswith(f"{own}.")}
    assert {i for i in others if i.split(".")[2] != "base"} == set()
    # `from pipeline.methods import x` would bring the table, and with it every method.
    assert "pipeline.methods" not in imports(path)


@pytest.mark.parametrize("path", methods(), ids=lambda path: path.stem)
def test_methods_know_nothing_of_the_walk(path):
    above = {
        "inspection",
        "commissioning",
        "decide",
        "decode",
        "settings",
        "heatmap",
        "evaluation",
        "synthetic",
        "view",
    }
    assert {i.split(".")[1] for i in imports(path) if i.startswith("pipeline.")} & above == set()


def test_only_the_walk_knows_the_table_of_methods():
    inside = [p for p in MODULES if p.is_relative_to(ROOT / "pipeline")]
    users = {str(p.relative_to(ROOT)) for p in inside if any(i.startswith("pipeline.methods") for i in imports(p))}
    assert {u for u in users if "/methods/" not in u} <= {
        "pipeline/tiling.py",
        "pipeline/inspection.py",
        "pipeline/commissioning.py",
        "pipeline/growth.py",
        "pipeline/choosing.py",
        "pipeline/speed/checkout_peer.py",
        "pipeline/refit.py",
        "pipeline/evaluation/trial.py",
        "pipeline/speed/cost.py",
        "pipeline/speed/exactness.py",
        "pipeline/speed/fit.py",
        "pipeline/speed/frames.py",
        "pipeline/speed/score.py",
    }


@each_module
def test_nothing_is_unpickled(path):
    assert not tops(path) & UNPICKLERS
    assert not imports(path) & {"torch.load", "torch.jit.load", "numpy.load", "torch.hub"}
    calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
    called = {ast.unparse(call.func) for call in calls}
    assert not called & {"torch.load", "torch.jit.load", "torch.export.load", "np.load", "numpy.load", "eval", "exec"}


@each_module
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@each_module
def test_a_module_is_at_most_300_lines(path):
    longer = len(path.read_text(encoding="utf-8").splitlines()) > LINES_MAX
    assert not longer


def test_docker_is_no_package():
    assert not (ROOT / "docker/__init__.py").exists(), "it would shadow the SDK of that name"


def test_pipeline_imports_and_runs_where_no_client_is_installed():
    assert run(ALONE) == "10"


def test_frames_verdicts_and_settings_are_had_without_torch():
    assert run(LIGHT_ALONE) == "[]"


def test_cameras_and_gates_start_without_torch():
    assert run(WITHOUT_TORCH) == "False"
