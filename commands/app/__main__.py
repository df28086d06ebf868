"""Page to explore a tokenizer and its generator: `python -m commands.app --tokenizer RUN --generator RUN`.

Serves a page on this machine until it is stopped (Ctrl-C): reconstructions with each subspace on or off, exchange of
codes between two images, patches of equal codes, and samples. See docs/app.md.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from commands.app.explored import Explored
from commands.program import best_device, new_parser, run, whole_number
from polytoken.errors import UserError

INSTALL = ".venv/bin/uv pip install --python .venv/bin/python 'gradio>=6.31,<7'"


def work(given: Namespace) -> None:
    """Load the runs and serve the page."""
    explored = Explored.load(given.tokenizer, given.generator, given.preset, given.max_images, best_device())
    if find_spec("gradio") is None:
        raise UserError(f"the package gradio is missing: install the extra `app` ({INSTALL})")
    from commands.app.page import build, launch

    print(f"the page is http://{given.host}:{given.port}; Ctrl-C stops it", flush=True)
    launch(build(explored), given.host, given.port)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.app", __doc__)
    parser.add_argument("--tokenizer", type=Path, help="run or exported folder: runs/digits/tokenizer/fq_dual")
    parser.add_argument("--generator", type=Path, help="the same of a generator: runs/digits/stage2/fq_dual")
    parser.add_argument("--preset", help="preset of the validation images (default: those of the tokenizer's run)")
    parser.add_argument(
        "--max-images", type=whole_number(1), default=500, help="most validation images (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address that is listened on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
