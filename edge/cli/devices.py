"""edge devices"""

from edge.cli._output import Json, print_json, print_table, size


def command(json: Json = False) -> None:
    """List the devices that `edge profile` can use now."""
    from edge.profiles.devices import devices

    found = devices()
    if json:
        print_json(found)
        return
    rows = [(d.name, d.transport, d.model, str(d.cores), size(d.memory_bytes), d.problem or "ready") for d in found]
    print_table(("device", "over", "model", "cores", "memory", "state"), rows)
