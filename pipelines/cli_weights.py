"""The commands about weights of other frameworks: import, export-weights."""

from collections.abc import Sequence

from pipelines.terminal import parse, show, table


def import_(arguments: Sequence[str]) -> None:
    """Read weights into a checkpoint and tell what became of them."""
    from pipelines import import_weights

    config = parse(import_weights.ImportConfig, arguments, "import", positional=True)
    result = import_weights.run(config)
    show(table(("setting", "value", "known by"), result.settings()))
    if config.verbose:
        show("\n" + table(("their name", "our name", "what was done"), result.every_key()))
    show("\n" + table(("keys", ""), result.key_counts()))
    names = ", ".join(info.name for info in result.order.classes)
    show(f"\n{len(result.order.classes)} classes ({result.order.why}): {names}")
    for notice in result.notices:
        show(f"note: {notice}")
    show(f"checkpoint: {result.checkpoint}")


def export_weights(arguments: Sequence[str]) -> None:
    """Write a checkpoint as weights of another framework."""
    from pipelines import export_weights as command

    config = parse(command.ExportConfig, arguments, "export-weights", positional=True)
    show(f"{command.run(config)} tensors: {config.out}")
