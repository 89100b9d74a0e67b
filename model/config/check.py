"""The one-line error of a config field that is out of range."""


def require(condition: bool, what: str, got: object, wanted: str) -> None:
    """Raise ValueError with what, got and wanted unless `condition` holds."""
    if not condition:
        raise ValueError(f"{what} must be {wanted}, got {got!r}")


def require_fields(config: object, part: str, names: tuple[str, ...], low: float, high: float | None = None) -> None:
    """Require each named field of `config` to lie in low..high (no upper limit: None)."""
    for name in names:
        value = getattr(config, name)
        wanted = f">= {low:g}" if high is None else f"in {low:g}..{high:g}"
        require(value >= low and (high is None or value <= high), f"{part}.{name}", value, wanted)
