"""The command line, generated from the config dataclasses of each command.

A command's module is imported when that command is chosen, so that ``maskray --help`` answers at once. This is the
only module that prints results and that ends the process.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_USAGE = """usage: maskray COMMAND ...

Mask R-CNN as a distributed workflow on Ray. Paths may be local or URIs (s3://, gs://, ...).

{commands}

Each command explains itself: maskray COMMAND --help
"""


def _parse(
    kind: type[T], arguments: Sequence[str], command: str, default: T | None = None, positional: bool = False
) -> T:
    """The config of a command line; `positional` takes its required fields without their names."""
    import tyro

    parsed: T = tyro.cli(
        kind,
        args=list(arguments),
        prog=f"maskray {command}",
        default=default,
        config=(tyro.conf.EnumChoicesFromValues, *([tyro.conf.PositionalRequiredArgs] if positional else [])),
    )
    return parsed


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def metrics_rows(name: str, metrics: Any) -> list[object]:
    """A table row of COCO metrics in percent."""
    return [name, *(_percent(getattr(metrics, key)) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))]


_METRIC_HEADERS = ("", "AP", "AP50", "AP75", "APs", "APm", "APl")


def _show(text: str) -> None:
    print(text)


def _choose(arguments: Sequence[str], choices: Sequence[str], command: str, what: str) -> tuple[str, Sequence[str]]:
    """The first word, one of `choices`, and the rest.

    Raises:
        ValueError: another word, or none.
    """
    if arguments and arguments[0] in choices:
        return arguments[0], arguments[1:]
    listed = ", ".join(choices)
    if arguments and arguments[0] in ("-h", "--help"):
        _show(f"usage: maskray {command} {what.upper()} ...\n\n{what}: one of {listed}\n\n"
              f"Then: maskray {command} {what.upper()} --help")  # fmt: skip
        raise SystemExit(0)
    got = f"got {arguments[0]!r}" if arguments else "got none"
    raise ValueError(f"{command} needs a {what}, {got}: one of {listed}".strip())


def _prepare(arguments: Sequence[str]) -> None:
    from pipelines import prepare
    from pipelines.progress import Progress

    kinds: dict[str, Any] = {"coco": prepare.PrepareCoco, "images": prepare.PrepareImages}
    source, rest = _choose(arguments, tuple(kinds), "prepare", "source")
    config: prepare.PrepareConfig = _parse(kinds[source], rest, f"prepare {source}")
    progress = Progress("prepare", 0, "pictures")
    manifest = prepare.run(config, on_progress=lambda now: progress.update(now.rows_done, total=now.rows_total))
    progress.close()
    rows = [
        ("pictures", manifest.rows_in, manifest.rows_written, manifest.rows_rejected),
        ("objects", manifest.instances_in, manifest.instances_kept, manifest.instances_rejected),
    ]
    _show(_table(("", "in", "written", "rejected"), rows))
    _show(f"{len(manifest.shards)} shards, {len(manifest.classes)} classes: {config.out}")


def _inspect(arguments: Sequence[str]) -> None:
    from pipelines import inspect
    from pipelines.dataset import Dataset
    from pipelines.gallery import save_gallery

    config = _parse(inspect.InspectConfig, arguments, "inspect", positional=True)
    result = inspect.run(config)
    _show(result.text)
    if config.gallery:
        _show(f"gallery: {save_gallery(Dataset(config.uri), config.gallery)}")
    if result.problems:
        raise SystemExit(1)


def _train(arguments: Sequence[str]) -> None:
    from pipelines import train
    from pipelines.presets import PRESETS, preset

    name, rest = _choose(arguments, tuple(PRESETS), "train", "preset")
    base = preset(name)
    config = _parse(type(base), rest, f"train {name}", default=base)
    result = train.run(config, lambda plan: _show(f"{name}: {plan}"))
    _show(f"checkpoint: {result.checkpoint}")
    if result.best:
        _show(f"best by {config.evaluation.metric}: {result.best}")
    if result.model:
        _show(f"registered: {result.model}")
    if config.val:
        from pipelines import evaluate

        found = evaluate.run(
            evaluate.EvaluateConfig(
                checkpoint=result.checkpoint, data=config.val, out=f"{config.out.rstrip('/')}/evaluation",
                gpu=config.execution.gpu, address=config.execution.address,
            )
        )  # fmt: skip
        train.log_evaluation(result, found, result.steps)
        _show_evaluation(found)


def _show_evaluation(found: Any) -> None:
    rows = [metrics_rows(name, part) for name, part in (("box", found.box), ("mask", found.mask)) if part is not None]
    _show(_table(_METRIC_HEADERS, rows))


def _evaluate(arguments: Sequence[str]) -> None:
    from pipelines import evaluate

    config = _parse(evaluate.EvaluateConfig, arguments, "evaluate")
    found = evaluate.run(config)
    _show_evaluation(found)
    if found.predictions:
        _show(f"metrics and predictions: {found.predictions}")


def _predict(arguments: Sequence[str]) -> None:
    from pipelines import predict

    config = _parse(predict.PredictConfig, arguments, "predict")
    manifest = predict.run(config)
    _show(f"{manifest.detections} detections on {manifest.pictures} pictures: {config.out}")


def _distill(arguments: Sequence[str]) -> None:
    from pipelines import distill

    config = _parse(distill.DistillConfig, arguments, "distill")
    result = distill.run(config)
    rows = [
        (row.name, f"{row.labelled_rate:.2f}", row.wanted, row.found, row.kept, f"{row.threshold:.3f}",
         "few labels: unsure" if row.few_labels else "")
        for row in result.selection
    ]  # fmt: skip
    _show(_table(("class", "labels a picture", "wanted", "found", "kept", "threshold", ""), rows))
    _show(f"{result.manifest.rows_written} pictures with pseudo-labels: {config.out}")


def _report(arguments: Sequence[str]) -> None:
    from pipelines import run_report

    _show(f"report: {run_report.run(_parse(run_report.ReportConfig, arguments, 'report', positional=True))}")


def _demo(arguments: Sequence[str]) -> None:
    from pipelines import demo

    config = _parse(demo.DemoConfig, arguments, "demo")
    result = demo.run(config, _show)
    rows = [
        metrics_rows(f"{who} {kind}", part)
        for who, found in (("teacher", result.teacher), ("student", result.student))
        for kind, part in (("box", found.box), ("mask", found.mask))
    ]
    _show(_table(_METRIC_HEADERS, rows))
    _show(f"report: {result.report}")


def _list(arguments: Sequence[str]) -> None:
    from pipelines.presets import PRESETS

    what, _ = _choose(arguments, ("presets", "datasets"), "list", "kind")
    if what == "presets":
        rows = []
        for name, make in PRESETS.items():
            config = make()
            backbone = config.detector.backbone
            length = f"{config.optim.epochs} epochs" if config.optim.epochs else f"{config.optim.steps} steps"
            rows.append((name, f"ResNet-{backbone.depth}", config.optim.batch, length,
                         (make.__doc__ or "").split("\n", maxsplit=1)[0]))  # fmt: skip
        _show(_table(("preset", "backbone", "batch", "length", ""), rows))
    else:
        _show(_table(("source", ""), [("coco", "COCO instances json and its pictures"),
                                      ("images", "pictures without labels: folder, glob or list")]))  # fmt: skip


class _Command(NamedTuple):
    run: Callable[[Sequence[str]], None]
    about: str


COMMANDS: dict[str, _Command] = {
    "demo": _Command(_demo, "the whole road on a generated data set, in minutes on two CPU cores"),
    "prepare": _Command(_prepare, "raw pictures and annotations -> checked, committed shards"),
    "inspect": _Command(_inspect, "what a data set holds; --verify checks it all again, --gallery draws it"),
    "train": _Command(_train, "train a preset with Ray Train; the same command goes on where it stopped"),
    "evaluate": _Command(_evaluate, "COCO AP of boxes and masks"),
    "predict": _Command(_predict, "label every picture of a data set"),
    "distill": _Command(_distill, "choose pseudo-labels among predictions -> a data set to train on"),
    "report": _Command(_report, "one HTML page on a training run: curves, AP by class, best and worst pictures"),
    "list": _Command(_list, "presets and data sources"),
}


def _quiet() -> None:
    """Keep other packages' notices out of the way of our own output."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("ray").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with 0, 1 (it failed), 2 (bad input) or 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        _show(_USAGE.format(commands=_table(("command", ""), [(name, c.about) for name, c in COMMANDS.items()])))
        raise SystemExit(0 if words else 2)
    _quiet()
    try:
        name, rest = _choose(words, tuple(COMMANDS), "", "command")
        COMMANDS[name].run(rest)
    except KeyboardInterrupt as interrupt:
        # 128 + the signal's number, as shells have it: SIGTERM is named by who caught it.
        _fail("interrupted; the same command goes on where it stopped", 143 if interrupt.args else 130)
    # ImportError: the operators are not built, and the message says what to run.
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        if os.environ.get("MASKRAY_TRACEBACK"):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        # What a store refuses (no permission, no space, no connection) is no fault of the command line.
        _fail(" ".join(str(text).split()), 1 if isinstance(error, OSError) else 2)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"maskray: {message}\n")
    raise SystemExit(code)
