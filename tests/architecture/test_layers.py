"""The layer table: who may import whom. A new module takes a place in the table, or these tests fail."""

import ast
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Lowest first. A module imports only from rows above its own, neighbours (|) never import each other, and the modules
# of a listed package are neighbours too; a name stands for all below it that is not listed itself.
LAYERS = """
model.config.check | model.config.switches
model.config.backbone | model.config.rpn | model.config.heads
model.config.detector
model.config.fit
model.config | model.settings | model.structures | model.boxes | model.ops.extension
model.presets.rules
model.presets.backbones | model.presets.heads
model.presets.own | model.presets.torchvision | model.presets.detectron2 | model.presets.mmdetection
    | model.presets.driving | model.presets.paper
model.presets.named
model.presets
model.ops | model.fusion | model.anchors | model.matching
model.norms | model.picture
model.backbones.blocks | model.views | model.merge
model.backbones.resnet | model.backbones.fpn
model.backbones
model.pooler | model.rpn | model.heads.box | model.heads.mask | model.heads.keypoint | model.heads.semantic
model.heads
model.roi.sampling
model.roi.stages
model.roi.cascade | model.roi.standard | model.roi.htc
model.roi
model.detector
model.build | model.fold | model.checkpoint | model.convert.names | model.convert.steps
model.convert.blocks
model.convert.torchvision | model.convert.detectron2 | model.convert.mmdetection
model.convert.conversion
model.convert.architecture | model.convert.strict | model.convert.transfer
model.convert.description | model.convert.mmdetection_config
model.convert | model.convert.origins

pipelines.secrets | pipelines.attempts | pipelines.collection
pipelines.storage | pipelines.records | pipelines.rejections | pipelines.decode | pipelines.masks | pipelines.order
    | pipelines.array_pickle | pipelines.shard_cache | pipelines.making
    | pipelines.geometry | pipelines.optim | pipelines.draw | pipelines.charts | pipelines.outlines
    | pipelines.run_lengths | pipelines.shape_drawing | pipelines.progress | pipelines.courier | pipelines.ray_session
    | pipelines.looking | pipelines.host
    | pipelines.network | pipelines.shard_runner | pipelines.job_wheel | pipelines.cluster_access | pipelines.terminal
pipelines.mask_crops
pipelines.commit | pipelines.shards | pipelines.shapes | pipelines.transforms | pipelines.polygons
    | pipelines.job_cluster | pipelines.foreign_weights | pipelines.tracking | pipelines.sweep_state
pipelines.manifest | pipelines.html | pipelines.config | pipelines.recipes | pipelines.coco_rows
    | pipelines.jobs | pipelines.node_facts | pipelines.sweep_history | pipelines.sweep_leaks
pipelines.presets.preset | pipelines.checkpoint_files
pipelines.presets.own | pipelines.presets.torchvision | pipelines.presets.detectron2 | pipelines.presets.mmdetection
    | pipelines.presets.driving | pipelines.presets.paper
pipelines.presets.named
pipelines.presets.listing
pipelines.dataset | pipelines.source_index | pipelines.predictions | pipelines.checkpoints | pipelines.presets
    | pipelines.train_state | pipelines.doctor | pipelines.coco_metrics
    | pipelines.config_file | pipelines.sweep_space
pipelines.datasets | pipelines.check_instance | pipelines.check_semantic | pipelines.dataset_writer
    | pipelines.loading | pipelines.sampling | pipelines.inference | pipelines.gallery | pipelines.picture_score
    | pipelines.coco_export
    | pipelines.leakage | pipelines.labelled_rates | pipelines.holdout | pipelines.selection | pipelines.provenance
pipelines.remote_loading
pipelines.check | pipelines.cityscapes_results | pipelines.prepare_config | pipelines.comparison | pipelines.train_feed
    | pipelines.train_window | pipelines.checkpoint_writer | pipelines.class_lists | pipelines.starting_weights
    | pipelines.labeller | pipelines.watchdog | pipelines.paper_sweeps | pipelines.sweep_search
    | pipelines.pool_shards | pipelines.distill_outputs | pipelines.run_file | pipelines.elastic
    | pipelines.small_cityscapes | pipelines.small_nuimages
pipelines.pseudo_labels
pipelines.loop | pipelines.review | pipelines.figures | pipelines.generate
pipelines.inbox | pipelines.validation
pipelines.train_worker | pipelines.evaluator
pipelines.follower
pipelines.careful | pipelines.predict | pipelines.verify | pipelines.report
pipelines.shard_task | pipelines.inspect | pipelines.evaluate | pipelines.launch | pipelines.import_weights
    | pipelines.export_weights
    | pipelines.audit | pipelines.distill_config | pipelines.distill_folds
pipelines.part_files | pipelines.train | pipelines.distill_report | pipelines.distill_inputs
pipelines.prepare | pipelines.distill
pipelines.run_report | pipelines.sweep_trial | pipelines.sweeps
pipelines.sweep_results | pipelines.sweep_runner | pipelines.tune_config
pipelines.sweep_tracking | pipelines.sweep_floors
pipelines.tune
pipelines.demo | pipelines.cli_clusters | pipelines.cli_distill | pipelines.cli_weights
pipelines.cli
pipelines.__main__
"""

# What each package may use besides the standard library.
USES = {
    "model": {"model", "torch", "numpy", "safetensors"},
    "model.ops": {"model", "torch", "numpy", "torchvision"},
    "model.picture": {"model", "torch", "numpy", "PIL", "cv2"},
    "model.backbones.timm": {"model", "torch", "timm"},
    "model.fusion": {"model", "torch", "numpy", "ensemble_boxes"},
    "pipelines.host": {"torch", "cv2"},
    "pipelines": {
        "model",
        "pipelines",
        "torch",
        "numpy",
        "ray",
        "pyarrow",
        "PIL",
        "pycocotools",
        "faster_coco_eval",
        "cityscapesscripts",
        "simplejpeg",
        "mlflow",
        "tyro",
    },
}
PACKAGES = ("model", "pipelines")

# Packages that other code takes names from, not modules.
NAMES = ("model.ops", "model.config", "model.convert", "model.presets", "pipelines.presets")


def parse_table(text: str) -> dict[str, int]:
    """The row of each listed name; a line that begins with | goes on with the row before it."""
    joined = text.replace("\n    |", " |")
    rows = [line for line in joined.splitlines() if line.strip()]
    names = [(name.strip(), number) for number, line in enumerate(rows) for name in line.split("|")]
    assert len(names) == len(dict(names)), "a module is listed twice"
    return dict(names)


TABLE = parse_table(LAYERS)


def longest_prefix(name: str, known: dict) -> str | None:
    """The entry of `known` that stands for the dotted name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in known), None)


def module_name(path: str) -> str:
    """model/ops/nms.py -> model.ops.nms; a package is named by its folder."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_names(path: str, source: str) -> Iterator[str]:
    """Every imported module or `module.name`, wherever it is imported; "." for what hides from this test."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." if node.level else f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield "."


def violations(sources: dict[str, str]) -> Iterator[str]:
    """What the source files, by their paths, do against the table; one line each."""
    for path, source in sources.items():
        name = module_name(path)
        entry = longest_prefix(name, TABLE)
        if entry is None and name not in PACKAGES:  # the packages' own __init__ are empty: see below
            yield f"{name} is in no layer"
            continue
        for target in imported_names(path, source):
            yield from import_violations(path, entry, target)


def import_violations(path: str, entry: str | None, target: str) -> Iterator[str]:
    name, root = module_name(path), target.split(".", maxsplit=1)[0]
    if target == ".":
        yield f"{name} has a relative or computed import"
    elif root not in USES[longest_prefix(name, USES)] | sys.stdlib_module_names:
        yield f"{name} may not use {root}: it imports {target}"
    elif root in PACKAGES and not (path.endswith("/__init__.py") and target.startswith(f"{name}.")):
        there = longest_prefix(target, TABLE)
        if there is None or entry is None:
            yield f"{name} imports {target}, which is in no layer"
        elif TABLE[there] >= TABLE[entry]:
            yield f"{name} imports sideways or upward: {target}"


def sources() -> dict[str, str]:
    files = itertools.chain.from_iterable((ROOT / package).rglob("*.py") for package in PACKAGES)
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted(files)}


def test_no_import_goes_up_or_sideways():
    assert list(violations(sources())) == []


def test_the_table_lists_no_module_that_is_gone():
    names = {module_name(path) for path in sources()}
    assert sorted(TABLE.keys() - names) == []


def is_name_only(statement: ast.stmt, package: str) -> bool:
    """An import of the package's own children, or __all__."""
    if isinstance(statement, ast.ImportFrom):
        return statement.level == 0 and f"{statement.module}.".startswith(f"{package}.")
    return isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["__all__"]


def init_violations(sources: dict[str, str]) -> Iterator[str]:
    for path, source in sources.items():
        if not path.endswith("/__init__.py"):
            continue
        name, module = module_name(path), ast.parse(source)
        body = module.body[1:] if ast.get_docstring(module) is not None else module.body
        if name in PACKAGES and source:
            yield f"{path} must be empty"
        elif name in NAMES and not all(is_name_only(statement, name) for statement in body):
            yield f"{path} must hold names of its own modules only"
        elif name not in NAMES and body:
            yield f"{path} must hold a docstring at most"


def test_packages_do_nothing_when_imported():
    assert list(init_violations(sources())) == []


# The checks themselves.


@pytest.mark.parametrize(
    ("path", "source", "wanted"),
    [
        pytest.param("model/boxes.py", "def f():\n    import model.build", "sideways or upward", id="lazy-upward"),
        pytest.param("model/boxes.py", "from model.detector import Detector", "sideways or upward", id="upward"),
        pytest.param("model/boxes.py", "from model import detector", "sideways or upward", id="upward-as-a-name"),
        pytest.param("model/heads/box.py", "from model.heads import mask", "sideways or upward", id="sibling"),
        pytest.param("model/heads/box.py", "from model import rpn", "sideways or upward", id="neighbour"),
        pytest.param("model/rpn.py", "from model.rpn import x", "sideways or upward", id="itself"),
        pytest.param("model/ops/extension.py", "import model.ops.nms", "sideways or upward", id="row-in-a-package"),
        pytest.param("pipelines/evaluate.py", "from pipelines import train", "sideways or upward", id="command"),
        pytest.param("model/heads/box.py", "from model.heads import anchors", "sideways or upward", id="in-a-package"),
        pytest.param("model/boxes.py", "import ray", "may not use ray", id="ray-in-model"),
        pytest.param("model/boxes.py", "if 1:\n    import ray.data as d", "may not use ray", id="ray-by-its-child"),
        pytest.param("model/rpn.py", "from torchvision.ops import nms", "may not use torchvision", id="torchvision"),
        pytest.param("model/rpn.py", "import pipelines.train", "may not use pipelines", id="pipelines-in-model"),
        pytest.param("pipelines/draw.py", "import tests.oracles", "may not use tests", id="tests"),
        pytest.param("pipelines/draw.py", "import matplotlib", "may not use matplotlib", id="undeclared"),
        pytest.param("model/surprise.py", "", "model.surprise is in no layer", id="unlisted"),
        pytest.param("model/detectors.py", "", "model.detectors is in no layer", id="unlisted-with-a-known-beginning"),
        pytest.param("model/build.py", "from model import surprise", "which is in no layer", id="unlisted-target"),
        pytest.param("model/build.py", "import model", "which is in no layer", id="root"),
        pytest.param("model/heads/box.py", "from ..boxes import clip", "relative", id="relative"),
        pytest.param("model/build.py", "import importlib\nimportlib.import_module(x)", "computed", id="computed"),
        pytest.param("model/build.py", "__import__('model.rpn')", "computed", id="dunder-import"),
    ],
)
def test_the_check_finds(path, source, wanted):
    found = list(violations({path: source}))
    assert len(found) == 1
    assert wanted in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/ops/nms.py", "from model.ops import extension\nimport torchvision.ops, math"),
        ("model/ops/__init__.py", "from model.ops.nms import nms"),
        ("model/heads/box.py", "from model import boxes as box_ops\nfrom torch import nn"),
        ("pipelines/cli.py", "def f():\n    from pipelines.train import train\n    import ray"),
        ("model/__init__.py", ""),
    ],
)
def test_the_check_lets_pass(path, source):
    assert list(violations({path: source})) == []


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("model/__init__.py", "", 0),
        ("model/__init__.py", '"""Words."""', 1),
        ("model/heads/__init__.py", '"""Words."""', 0),
        ("model/heads/__init__.py", "from model.heads.box import BoxHead", 1),
        ("model/ops/__init__.py", '"""Words."""\nfrom model.ops.nms import nms\n__all__ = ["nms"]', 0),
        ("model/ops/__init__.py", "from model.boxes import clip", 1),
        ("model/ops/__init__.py", "from model.ops.extension import load\nload()", 1),
        ("model/ops/nms.py", "x = 1", 0),
    ],
)
def test_the_check_of_packages(path, source, count):
    assert len(list(init_violations({path: source}))) == count
