"""`optimum-cli export edge`: compress and export in one command, for people who already use optimum."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from edge.cli import compress, export, guarded


class EdgeExportCommand(BaseOptimumCLICommand):
    """Prints and fails as `edge compress` and `edge export` do."""

    COMMAND = CommandInfo("edge", help="Export a transformer for a phone, a Jetson or a CPU, compressed by a recipe.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Hugging Face folder, hub id or GGUF file.")
        output = parser.add_mutually_exclusive_group(required=True)
        output.add_argument("output", nargs="?", type=Path, help="Bundle folder to write.")
        output.add_argument("-o", "--output", dest="named_output", metavar="OUTPUT", type=Path, help="The same.")
        parser.add_argument("--recipe", help="Preset (`edge recipes`) or TOML file; without one nothing is compressed.")
        parser.add_argument("--calibration-text", type=Path, help="Text file for calibrated methods.")
        parser.add_argument("--target", default="cpu", help="Platform: `edge targets`.")
        parser.add_argument("--runtime", default="onnx", help="Engine that runs the bundle.")
        parser.add_argument("--kernels", default="edge", help="`edge` for ours, `builtin` for a stock runtime.")
        parser.add_argument("--context", type=int, help="Tokens that the caches hold; at most 2048 by default.")
        parser.add_argument("--force", action="store_true", help="Replace the output if it exists.")

    def run(self) -> None:
        guarded(self._run)

    def _run(self) -> None:
        output = self.args.output or self.args.named_output
        options = {name: getattr(self.args, name) for name in ("target", "runtime", "kernels", "context", "force")}
        if self.args.recipe is None:
            export.command(self.args.model, output, **options)
            return
        from edge.core.files import refuse_existing

        refuse_existing(output, force=self.args.force)
        output.parent.mkdir(parents=True, exist_ok=True)
        # beside the output, where there is room for a model
        with tempfile.TemporaryDirectory(prefix=".edge-", dir=output.parent) as folder:
            small = Path(folder) / "compressed"
            compress.command(self.args.model, small, self.args.recipe, self.args.calibration_text)
            export.command(str(small), output, **options)


REGISTER_COMMANDS = [(EdgeExportCommand, ExportCommand)]
