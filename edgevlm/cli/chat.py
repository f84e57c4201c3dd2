"""`edgevlm chat`: a conversation, read line by line from a terminal or a pipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.cli.interrupt import CancelOnInterrupt
from edgevlm.cli.options import add_load_options, add_sampling_options, load_arguments, sampling_arguments
from edgevlm.cli.output import OutputError, answer, json_object, note, printable
from edgevlm.cli.parser import Subparsers
from edgevlm.cli.paths import input_file, input_path, output_file, output_path
from edgevlm.cli.streams import require_text
from edgevlm.errors import EdgeVLMError, UsageError
from edgevlm.whole_file import check_writable, write_whole

if TYPE_CHECKING:
    from edgevlm.model import Model

JSON_FIELDS = {
    "messages": "list of {role, content, images, finish_reason}, in order",
    "error": "only when a line could not be carried out: {type, message, exit_code} of the first",
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
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the chat template's)")
    add_sampling_options(parser)
    add_load_options(parser)
    parser.add_argument("--trace", type=output_file, metavar="FILE", help="write a Chrome trace at the end")
    return parser


def run(args: argparse.Namespace) -> int:
    """Talks until the end of the input; returns the exit code, the first line's that could not be carried out."""
    from edgevlm.model import load

    if sys.stdin is None:
        raise UsageError("standard input is closed, and the conversation is read from it")
    if args.system is not None:
        require_text(args.system, "the system message")
    if args.trace is not None:
        check_writable(args.trace, "the trace")
    model = load(args.package, **load_arguments(args))
    try:
        with model:
            repl = _Repl(model, args)
            repl.talk()
    finally:
        if args.trace is not None:
            model.write_trace(args.trace)
    if args.json:
        json_object({"messages": repl.messages} | ({} if repl.error is None else {"error": repl.error}))
    return 0 if repl.error is None else int(repl.error["exit_code"])


class _Repl:
    """The loop and what was said so far."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.messages: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None
        """The first line of a script that could not be carried out."""
        self._model = model
        self._system: str | None = args.system
        self._sampling = sampling_arguments(args)
        self._quiet: bool = args.json
        self._interactive = sys.stdin.isatty()
        self._images: list[str] = []
        self._lacks_picture = False
        self._conversation = model.chat(system=self._system)

    def talk(self) -> None:
        """Reads and answers lines until /quit or the end of the input. A line that fails ends nothing."""
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
                self._handle(require_text(line, "standard input").strip())
            except (OutputError, BrokenPipeError):
                raise  # there is no place for answers any more
            except EdgeVLMError as error:
                self._tell(type(error).__name__, str(error), error.exit_code)
            except OSError as error:
                what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
                self._tell("OSError", what, EdgeVLMError.exit_code)

    def _tell(self, kind: str, message: str, exit_code: int) -> None:
        one_line = printable(" ".join(message.split()))
        note(f"edgevlm: error: {one_line}")
        if not self._interactive and self.error is None:
            self.error = {"type": kind, "message": one_line, "exit_code": exit_code}

    def _read(self) -> str | None:
        if self._interactive and sys.stdout.isatty():
            try:
                return input("> ")
            except EOFError:
                return None
        if self._interactive:
            note("> ", end="")
        return sys.stdin.readline() or None

    def _handle(self, line: str) -> None:
        word, rest = [*line.split(maxsplit=1), "", ""][:2]
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
        elif word == "/image":
            self._attach(rest)
        elif word == "/save":
            if not rest:
                raise UsageError("/save needs a FILE to write to")
            self._save(output_path(rest))
        elif word == "/reset":
            self._conversation = self._model.chat(system=self._system)
            self._images, self._lacks_picture = [], False
            self.messages = []
            note("the conversation starts again")
        elif word == "/help":
            note(HELP)
        else:
            raise UsageError(f"{line[:80]!r} is not a command; /help lists them")

    def _attach(self, name: str) -> None:
        # On a terminal the user sees what failed; a script's next question would be about a wrong picture.
        self._lacks_picture = not self._interactive
        if not name:
            raise UsageError("/image needs a FILE to attach")
        path = input_path(name)
        self._conversation.attach(path)
        self._lacks_picture = False
        self._images.append(str(path))
        note(f"attached {path}")

    def _answer(self, text: str) -> None:
        if self._lacks_picture:
            self._lacks_picture = False
            raise UsageError(f"{text[:80]!r} is not asked: its picture could not be attached")
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
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n"
        check_writable(path, "the conversation")
        # what has no character, such as in a picture's name, becomes JSON's own escape
        write_whole(path, text.encode("utf-8", "backslashreplace"), "the conversation")
        note(f"saved {path}")
