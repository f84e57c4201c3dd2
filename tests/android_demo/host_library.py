"""The Java library and its JNI part on this machine: compiled, and run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from android_demo.apk.build import ROOT, java_sources, javac

LIBRARY = ROOT / "library" / "src"
ENGINE_HEADERS = ROOT.parent / "edgevlm" / "engine"
C_FLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")


def compile_classes(target: Path) -> Path:
    """Compiles the library and its Java tests for Java 8 with every warning an error."""
    javac(java_sources(LIBRARY / "main" / "java", LIBRARY / "test" / "java"), target)
    return target


def compile_jni(home: Path, engine: Path, target: Path) -> Path:
    """Compiles the JNI part with the headers of the JDK in `home` and links it with this machine's engine."""
    includes = [f"-I{ENGINE_HEADERS}", f"-I{home}/include", f"-I{home}/include/linux"]
    sources = [str(path) for path in sorted((LIBRARY / "main" / "c").glob("*.c"))]
    command = ["cc", *C_FLAGS, *includes, *sources, str(engine.resolve()), f"-Wl,-rpath,{engine.resolve().parent}"]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run_java(classpath: Path | str, name: str, *arguments: object, library: Path | None = None) -> str:
    """Runs a class and returns its stdout; a failure, or a wrong use of JNI, is an AssertionError."""
    options = ["-Xcheck:jni", f"-Dorg.edgevlm.library={library}"] if library is not None else []
    command = ["java", "-Xmx512m", *options, "-cp", str(classpath), name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert "FATAL ERROR in native method" not in done.stdout and "WARNING in native method" not in done.stdout
    return done.stdout


def run_conversations(
    classes: Path, jni: Path, package: Path, conversations: Sequence[dict[str, Any]], scratch: Path
) -> list[list[dict[str, Any]]]:
    """Returns what ConversationRunner found for each turn of each conversation."""
    given, found = scratch / "conversations.json", scratch / "results.json"
    given.write_text(json.dumps(list(conversations)), encoding="utf-8")
    run_java(classes, "org.edgevlm.ConversationRunner", package, given, found, library=jni)
    return list(json.loads(found.read_text(encoding="utf-8")))
