"""edge methods"""

from edge.cli._output import Json, print_json, print_table


def command(json: Json = False) -> None:
    """List the compression methods and the options they take."""
    import msgspec

    from edge.core.plugins import METHODS

    rows = []
    for name in METHODS.names():
        module = METHODS.load(name)
        options = {f.name: f.default for f in msgspec.structs.fields(module.METHOD.options_type)}
        rows.append({"name": name, "summary": module.METHOD.summary, "paper": module.METHOD.paper, "options": options})
    if json:
        print_json(rows)
        return
    shown = [(r["name"], ", ".join(f"{k}={v}" for k, v in r["options"].items()), r["summary"]) for r in rows]
    print_table(("method", "options and defaults", "what it does"), shown)
