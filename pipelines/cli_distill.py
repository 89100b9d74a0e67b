"""The command line of distillation."""

from collections.abc import Sequence

from pipelines.terminal import parse, show, table


def distill(arguments: Sequence[str]) -> None:
    """Choose pseudo-labels and print what was chosen a class, and how good it is where that was asked for."""
    from pipelines import audit, distill_config
    from pipelines import distill as command

    config = parse(distill_config.DistillConfig, arguments, "distill")
    result = command.run(config)
    rows = [
        (row.name, f"{row.labelled_rate:.2f}", row.wanted, row.found, row.kept, row.uncertain, f"{row.threshold:.3f}",
         "few labels: unsure" if row.few_labels else "")
        for row in result.selection
    ]  # fmt: skip
    show(table(("class", "labels a picture", "wanted", "found", "kept", "uncertain", "threshold", ""), rows))
    if result.leak.count:
        show(f"left out as labelled or validation pictures: {result.leak}")
    if result.audit is not None:
        show(f"\naudit on {result.audit.pictures} pictures that the teacher held out:")
        shares = [(row[:3], ["-" if share is None else f"{100 * share:.1f}" for share in row[3:6]], row[6:])
                  for row in audit.table(result.audit)]  # fmt: skip
        headers = ("class", "objects", "labels", "precision", "recall", "mean mask IoU", "missed but ignored")
        show(table(headers, [(*first, *middle, *last) for first, middle, last in shares]))
    show(f"{result.manifest.rows_written} pictures with pseudo-labels: {config.out}")
