"""README's table of commands is made from the commands' own help: `python edge/cli/tests/test_readme.py` writes it."""

from pathlib import Path

import typer

from edge.cli import app

README = Path(__file__).parents[3] / "README.md"
BEGIN, END = "<!-- commands -->", "<!-- /commands -->"


def command_table() -> str:
    rows = ["| command | what it does |", "|---|---|"]
    for name, command in commands("edge", typer.main.get_command(app)):
        arguments = " ".join(p.name.upper() for p in command.params if p.param_type_name == "argument")
        rows.append(f"| `{' '.join(filter(None, (name, arguments)))}` | {command.help.splitlines()[0]} |")
    return "\n".join(rows)


def commands(name, group):
    """Every command with its whole name, those of sub-commands too."""
    for own, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(f"{name} {own}", command)
        else:
            yield f"{name} {own}", command


def with_table(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{command_table()}\n{END}{after}"


def test_the_table_of_commands_is_up_to_date():
    text = README.read_text()
    assert text == with_table(text), "run: python edge/cli/tests/test_readme.py"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
