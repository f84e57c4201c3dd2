"""`edgevlm chat`: a conversation, read line by line from a terminal or a pipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.cli.interrupt import CancelOnInterrupt
from edgevlm.cli.options import add_load_options, add_sampling_options, load_arguments, sampling_arguments
from edgevlm.cli.output import answer, json_object, note
from edgevlm.cli.parser import Subparsers
from edgevlm.errors import EdgeVLMError, UsageError

if TYPE_CHECKING:
    from edgevlm.model import Model

JSON_FIELDS = {
    "messages": "list of {role, content, images, finish_reason}, in order",
}

HELP = """\
/image FILE   attach a picture to the next question (it is encoded while you type)
/reset        forget the conversation
/save FILE    write the conversation as JSON
/help         print this list
/quit         leave (so does the end of the input)
Ctrl-C stops an answer; a second one leaves."""


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        description="Talk with a model, line by line. Lines that start with / are commands:\n\n" + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("package", metavar="PACKAGE", help="package directory")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the chat template's)")
    add_sampling_options(parser)
    add_load_options(parser)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace at the end")
    return parser


def run(args: argparse.Namespace) -> int:
    """Talks until the end of the input; returns the exit code."""
    from edgevlm.model import load

    model = load(args.package, **load_arguments(args))
    try:
        with model:
            repl = _Repl(model, args)
            repl.talk()
    finally:
        if args.trace is not None:
            model.write_trace(args.trace)
    if args.json:
        json_object({"messages": repl.messages})
    return 0


class _Repl:
    """The loop and what was said so far."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.messages: list[dict[str, Any]] = []
        self._model = model
        self._system: str | None = args.system
        self._sampling = sampling_arguments(args)
        self._quiet: bool = args.json
        self._interactive = sys.stdin.isatty()
        self._images: list[str] = []
        self._conversation = model.chat(system=self._system)

    def talk(self) -> None:
        """Reads and answers lines until /quit or the end of the input."""
        if self._interactive:
            note("Type a question, /help for the commands.")
        interrupted = False
        while True:
            try:
                line = self._read()
                interrupted = False
            except KeyboardInterrupt:
                if interrupted or not self._interactive:
                    raise
                interrupted = True
                note("\nCtrl-C again or /quit leaves.")
                continue
            if line is None or line.strip() == "/quit":
                return
            try:
                self._handle(line.strip())
            except EdgeVLMError as error:
                # On a terminal the user can correct the line; a script must not go on with a wrong picture.
                if not self._interactive:
                    raise
                note(f"edgevlm: error: {error}")

    def _read(self) -> str | None:
        if self._interactive and sys.stdout.isatty():
            try:
                return input("> ")
            except EOFError:
                return None
        if self._interactive:
            sys.stderr.write("> ")
            sys.stderr.flush()
        return sys.stdin.readline() or None

    def _handle(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
        elif word == "/image" and rest:
            self._conversation.attach(Path(rest.strip()).expanduser())
            self._images.append(rest.strip())
            note(f"attached {rest.strip()}")
        elif word == "/save" and rest:
            self._save(Path(rest.strip()).expanduser())
        elif word == "/reset":
            self._conversation = self._model.chat(system=self._system)
            self._images = []
            self.messages = []
            note("the conversation starts again")
        elif word == "/help":
            note(HELP)
        else:
            raise UsageError(f"{line!r} is not a command; /help lists them")

    def _answer(self, text: str) -> None:
        n_turns = len(self._conversation.turns)
        said, finish_reason = "", None
        with CancelOnInterrupt(self._model.cancel):
            for chunk in self._conversation.send(text, **self._sampling):
                said += chunk.text
                finish_reason = chunk.response.finish_reason if chunk.response else finish_reason
                if not self._quiet:
                    answer(chunk.text, end="")
        if not self._quiet:
            answer("")
        if finish_reason == "cancelled":
            note("(stopped)")
        if len(self._conversation.turns) > n_turns:  # else it was stopped before its first token, and is forgotten
            self.messages.append({"role": "user", "content": text, "images": self._images, "finish_reason": None})
            self.messages.append({"role": "assistant", "content": said, "images": [], "finish_reason": finish_reason})
            self._images = []

    def _save(self, path: Path) -> None:
        path.write_text(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        note(f"saved {path}")
