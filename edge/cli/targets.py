"""edge targets"""

from edge.cli._output import Json, print_json, print_table


def command(json: Json = False) -> None:
    """List the platforms that bundles are built for."""
    from edge.core.plugins import TARGETS

    targets = [TARGETS.load(name).TARGET for name in TARGETS.names()]
    if json:
        print_json(targets)
        return
    rows = [(t.name, ", ".join(t.runtimes), ", ".join(t.isa), t.description) for t in targets]
    print_table(("target", "runtimes", "instruction sets", "what it is"), rows)
