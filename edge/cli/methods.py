"""edge methods"""

from edge.cli._output import Json, print_json, print_table


def command(json: Json = False) -> None:
    """List the compression methods and the options they take."""
    import msgspec

    from edge.compress.method import load_method, reads_text
    from edge.core.plugins import METHODS

    rows = []
    for name in METHODS.names():
        method = load_method(name)
        options = {field.name: field.default for field in msgspec.structs.fields(method.Options)}
        summary = (method.__doc__ or "").strip().splitlines()[0]
        row = {"name": name, "calibrated": reads_text(method), "options": options, "summary": summary}
        rows.append({**row, "takes_tensors": any(hasattr(method, f) for f in ("compress", "plan_steps"))})
    if json:
        print_json(rows)
        return
    shown = [
        (
            row["name"],
            "yes" if row["calibrated"] else "no",
            ", ".join(f"{key}={value}" for key, value in row["options"].items()),
            row["summary"],
        )
        for row in rows
    ]
    print_table(("method", "needs text", "options and defaults", "what it does"), shown)
