"""What a run came to, on this machine or on a device, and how it is handed over."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from edge.core.errors import EdgeError
from edge.core.files import full_disk_is_an_error, write_json
from edge.core.measurement import Measurement


@dataclass(frozen=True)
class Outcome:
    """A measurement; with `error` one that failed on the way, whose `problem` says so.

    folder: the journal and what belongs to it, to be taken up again or to be forgotten.
    """

    measurement: Measurement
    folder: Path
    error: EdgeError | None = None

    def deliver(self, output: Path | None) -> Measurement:
        """Write the result, also of a failed run; then forget the journal, or raise the error.

        The journal stays while there is something to take up: after an error, and where the result can't be written.
        """
        if output is not None:
            with full_disk_is_an_error(output):
                output.parent.mkdir(parents=True, exist_ok=True)
                write_json(output, self.measurement)
        if self.error is not None:
            raise self.error
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.measurement
