"""A checkpoint for another number of ranks.

ZeRO's files hold each rank's share of the optimizer. DeepSpeed's universal form holds every parameter
whole, and any number of ranks of the same ZeRO stage can load it. It is made beside the checkpoint when
it is needed, and goes when it is loaded.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

log = logging.getLogger("xpt")


def universal_copy(checkpoint: Path) -> Path:
    """The universal form of `checkpoint`, in a folder of the same layout; as large as the checkpoint.

    Raises OSError where it cannot be written.
    """
    copy = checkpoint.with_name(f".{checkpoint.name}.universal.tmp")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    # A process of its own: the conversion prints and leaves its memory behind.
    program = "import sys; from xpt.training.engine import convert_to_universal as c; c(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(checkpoint), str(copy)]
    done = subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(copy, ignore_errors=True)
        raise OSError(
            f"{checkpoint}: DeepSpeed could not convert it for another number of ranks. Start with the "
            f"number that wrote it, or mend what follows.\n{done.stdout[-2000:]}"
        )
    return copy


def _environment() -> dict[str, str]:
    """Ours without the variables that would make the converter one of the job's ranks."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ranks}
