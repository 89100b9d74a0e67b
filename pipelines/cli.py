"""The command line, generated from the config dataclasses of each command.

A command's module is imported when that command is chosen, so that ``maskray --help`` answers at once. This module
and those it is made of alone print results and end the process.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipelines import cli_clusters, cli_distill, cli_weights
from pipelines.terminal import parse, show, table

_USAGE = """usage: maskray COMMAND ...

Mask R-CNN as a distributed workflow on Ray. Paths may be local or URIs (s3://, gs://, ...).

{commands}

Each command explains itself: maskray COMMAND --help
"""


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def metrics_rows(name: str, metrics: Any) -> list[object]:
    """A table row of COCO metrics in percent."""
    return [name, *(_percent(getattr(metrics, key)) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))]


_METRIC_HEADERS = ("", "AP", "AP50", "AP75", "APs", "APm", "APl")


def _choose(
    arguments: Sequence[str], choices: Sequence[str], command: str, what: str, listed: str = ""
) -> tuple[str, Sequence[str]]:
    """The first word, one of `choices`, and the rest; `listed` stands for choices that are too many to list.

    Raises:
        ValueError: another word, or none.
    """
    if arguments and arguments[0] in choices:
        return arguments[0], arguments[1:]
    listed = listed or ", ".join(choices)
    if arguments and arguments[0] in ("-h", "--help"):
        show(f"usage: maskray {command} {what.upper()} ...\n\n{what}: one of {listed}\n\n"
              f"Then: maskray {command} {what.upper()} --help")  # fmt: skip
        raise SystemExit(0)
    got = f"got {arguments[0]!r}" if arguments else "got none"
    raise ValueError(f"{command} needs a {what}, {got}: one of {listed}".strip())


def _prepare(arguments: Sequence[str]) -> None:
    from pipelines import prepare, prepare_config
    from pipelines.progress import Progress

    kinds: dict[str, Any] = {
        "coco": prepare_config.PrepareCoco,
        "cityscapes": prepare_config.PrepareCityscapes,
        "nuimages": prepare_config.PrepareNuimages,
        "images": prepare_config.PrepareImages,
    }
    source, rest = _choose(arguments, tuple(kinds), "prepare", "source")
    config: prepare_config.PrepareConfig = parse(kinds[source], rest, f"prepare {source}")
    progress = Progress("prepare", 0, "pictures")
    manifest = prepare.run(config, on_progress=lambda now: progress.update(now.rows_done, total=now.rows_total))
    progress.close()
    rows = [
        ("pictures", manifest.rows_in, manifest.rows_written, manifest.rows_rejected),
        ("objects", manifest.instances_in, manifest.instances_kept, manifest.instances_rejected),
    ]
    show(table(("", "in", "written", "rejected"), rows))
    show(f"{len(manifest.shards)} shards, {len(manifest.classes)} classes: {config.out}")


def _inspect(arguments: Sequence[str]) -> None:
    from pipelines import inspect
    from pipelines.dataset import Dataset
    from pipelines.gallery import save_gallery

    config = parse(inspect.InspectConfig, arguments, "inspect", positional=True)
    result = inspect.run(config)
    show(result.text)
    if config.gallery:
        show(f"gallery: {save_gallery(Dataset(config.uri), config.gallery)}")
    if result.problems:
        raise SystemExit(1)


def _train(arguments: Sequence[str]) -> None:
    from pipelines import config_file, train
    from pipelines.presets import PRESETS, preset

    if list(arguments[:1]) == ["--config"] and len(arguments) > 1:
        name, rest = arguments[1], arguments[2:]
        base = config_file.load(name)
    else:
        if arguments and not arguments[0].startswith("-"):
            preset(arguments[0])  # its error knows what was probably meant
        listed = f"the {len(PRESETS)} that `maskray list presets` shows"
        name, rest = _choose(arguments, tuple(PRESETS), "train", "preset", listed)
        base = preset(name)
    config = parse(type(base), rest, f"train {name}", default=base)
    result = train.run(config, lambda plan: show(f"{name}: {plan}"))
    show(f"checkpoint: {result.checkpoint}")
    if result.best:
        show(f"best by {config.metric}: {result.best}")
    if result.model:
        show(f"registered: {result.model}")
    if config.val:
        from pipelines import evaluate, storage

        found = evaluate.run(
            evaluate.EvaluateConfig(
                checkpoint=result.checkpoint, data=config.val, out=storage.child_uri(config.out, "evaluation"),
                gpu=config.execution.gpu, address=config.execution.address,
            )
        )  # fmt: skip
        train.log_evaluation(result, found, result.steps)
        _show_evaluation(found)


def _show_evaluation(found: Any) -> None:
    rows = [metrics_rows(name, part) for name, part in (("box", found.box), ("mask", found.mask)) if part is not None]
    if rows:
        show(table(_METRIC_HEADERS, rows))
    if found.without_mask:
        show(f"{found.without_mask} annotated objects have no mask: AP of masks ignores them and what lies on them")
    if found.keypoints is not None:
        headers = ("AP", "AP50", "AP75", "APm", "APl", "AR")
        cells = [_percent(getattr(found.keypoints, key)) for key in headers]
        show(table(("", *headers), [("keypoints", *cells)]))
    if found.cityscapes is not None:
        official = found.cityscapes
        classes = [
            (name, _percent(value), _percent(official.per_class50[name])) for name, value in official.per_class.items()
        ]
        classes.append(("all", _percent(official.AP), _percent(official.AP50)))
        show(table(("cityscapes mask", "AP", "AP50"), classes))


def _evaluate(arguments: Sequence[str]) -> None:
    from pipelines import evaluate

    config = parse(evaluate.EvaluateConfig, arguments, "evaluate")
    found = evaluate.run(config)
    _show_evaluation(found)
    if found.predictions:
        show(f"metrics and predictions: {found.predictions}")


def _predict(arguments: Sequence[str]) -> None:
    from pipelines import predict

    config = parse(predict.PredictConfig, arguments, "predict")
    manifest = predict.run(config)
    if manifest.account is not None and manifest.account.rejected:
        show(f"{manifest.account.rejected} pictures could not be looked at: their reasons are kept in the predictions")
    show(f"{manifest.detections} detections on {manifest.pictures} pictures: {config.out}")


def _submit(arguments: Sequence[str]) -> None:
    cli_clusters.submit(arguments, tuple(COMMANDS))


def _report(arguments: Sequence[str]) -> None:
    from pipelines import run_report

    show(f"report: {run_report.run(parse(run_report.ReportConfig, arguments, 'report', positional=True))}")


def _demo(arguments: Sequence[str]) -> None:
    from pipelines import demo

    config = parse(demo.DemoConfig, arguments, "demo")
    result = demo.run(config, show)
    rows = [
        metrics_rows(f"{who} {kind}", part)
        for who, found in (("teacher", result.teacher), ("student", result.student))
        for kind, part in (("box", found.box), ("mask", found.mask))
    ]
    show(table(_METRIC_HEADERS, rows))
    show(f"report: {result.report}")


def _generate(arguments: Sequence[str]) -> None:
    from pipelines import generate

    source, rest = _choose(arguments, tuple(generate.SOURCES), "generate", "source")
    config = parse(generate.GenerateConfig, rest, f"generate {source}")
    following = generate.run(source, config)
    show(f"{config.train} + {config.val} labelled and {config.unlabelled} unlabelled pictures: {config.out}")
    show(f"then: {following}")


def _list(arguments: Sequence[str]) -> None:
    what, rest = _choose(arguments, ("presets", "datasets", "sweeps"), "list", "kind")
    if what == "presets":
        _list_presets(rest)
    elif what == "sweeps":
        from pipelines.sweeps import SWEEPS

        about = [(name, (known.make.__doc__ or "").split("\n", maxsplit=1)[0]) for name, known in SWEEPS.items()]
        show(table(("sweep", ""), about))
    else:
        show(table(("source", ""), [("coco", "COCO instances or keypoints json and its pictures; semantic maps"),
                                      ("cityscapes", "leftImg8bit and gtFine: eight classes, groups ignored"),
                                      ("nuimages", "key frames of the tables: ten classes, semantic maps"),
                                      ("images", "pictures without labels: folder, glob or list")]))  # fmt: skip


def _list_presets(arguments: Sequence[str]) -> None:
    from pipelines.presets import listing

    config = parse(listing.ListPresetsConfig, arguments, "list presets", positional=True)
    runs = listing.matching(config.words)
    if config.json:
        show(listing.as_json(runs))
        return
    show(table(listing.HEADERS, [listing.row(run) for run in runs]))
    if config.words and (notes := listing.notes(runs)):
        show("".join(f"\n{note}" for note in notes))
    show(f"\n{listing.FOOTNOTE}")


class _Command(NamedTuple):
    run: Callable[[Sequence[str]], None]
    about: str


COMMANDS: dict[str, _Command] = {
    "demo": _Command(_demo, "the whole road on a generated data set, in minutes on two CPU cores"),
    "generate": _Command(_generate, "the demo's pictures as a small copy of COCO, Cityscapes or nuImages"),
    "prepare": _Command(_prepare, "raw pictures and annotations -> checked, committed shards"),
    "inspect": _Command(_inspect, "what a data set holds; --verify checks it all again, --gallery draws it"),
    "train": _Command(_train, "train a preset with Ray Train; the same command goes on where it stopped"),
    "evaluate": _Command(_evaluate, "COCO AP of boxes and masks"),
    "predict": _Command(_predict, "label every picture of a data set"),
    "distill": _Command(cli_distill.distill, "choose pseudo-labels among predictions -> a data set to train on"),
    "import": _Command(cli_weights.import_, "weights of torchvision, Detectron2 or MMDetection -> a checkpoint"),
    "export-weights": _Command(
        cli_weights.export_weights, "a checkpoint -> weights of torchvision, Detectron2 or MMDetection"
    ),
    "report": _Command(_report, "one HTML page on a training run: curves, AP by class, best and worst pictures"),
    "tune": _Command(cli_clusters.tune, "many trainings that differ in a few settings, with Ray Tune"),
    "doctor": _Command(
        cli_clusters.doctor, "check a cluster: token, versions, CPUs, GPUs, storage, network of every node"
    ),
    "submit": _Command(_submit, "run a command as a job on a cluster: maskray submit [--address URL] -- COMMAND ..."),
    "jobs": _Command(cli_clusters.jobs, "the jobs of a cluster; --attach follows one, --stop stops it"),
    "list": _Command(_list, "presets, data sources and sweeps"),
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
        show(_USAGE.format(commands=table(("command", ""), [(name, c.about) for name, c in COMMANDS.items()])))
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
        text = _with_advice(text, error)
        # What a store refuses (no permission, no space, no connection) is no fault of the command line.
        _fail(" ".join(str(text).split()), 1 if isinstance(error, OSError) else 2)


def _with_advice(text: str, error: Exception) -> str:
    """What went wrong, with what to do where an object store said it."""
    from pipelines.storage import advice_on

    advice = advice_on(error)
    return text if advice in text else f"{text}; {advice}"


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"maskray: {message}\n")
    raise SystemExit(code)
