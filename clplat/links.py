"""Where to look in TensorBoard."""

import os
import shlex
from pathlib import Path
from urllib.parse import urlencode


def tensorboard_link(port: int = 6006) -> str:
    """The metrics, one colour a configuration, with no smoothing to bend curves of five points."""
    # What is equal in the brackets has one colour: a run's place without its seed.
    colours = "regex:^(.*?)/?(?:seed_[^/]*)?$"
    view = {"smoothing": 0, "tagFilter": "metrics", "runColorGroup": colours}
    return f"http://localhost:{port}/?{urlencode(view, safe=':/')}#timeseries"


def tensorboard_links(port: int = 6006) -> dict[str, str]:
    """Where in TensorBoard each thing is compared."""
    return {
        "metrics": tensorboard_link(port),
        "table": f"http://localhost:{port}/#hparams",
        "experiences": f"http://localhost:{port}/#custom_scalars&_smoothingWeight=0",
        "matrices": f"http://localhost:{port}/#images",
    }


def tensorboard_told(folder: Path) -> str:
    """The command that shows a folder's runs, and what to open then."""
    here = folder.absolute().is_relative_to(Path.cwd())
    shown = os.path.relpath(folder) if here else str(folder)
    lines = [f"compare: tensorboard --logdir {shlex.quote(shown)}"]
    lines += [f"  {what}: {link}" for what, link in tensorboard_links().items()]
    return "\n".join(lines)
