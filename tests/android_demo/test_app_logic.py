"""The app's logic on the desktop JVM: controller, saved conversation, benchmark; and rules for its sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from android_demo.apk.build import APP, JAVA, ROOT, java_sources, javac

PLAIN = ("SavedConversation", "ChatController", "Benchmark")
"""Classes of the app that need no Android."""


@pytest.fixture(scope="session")
def app_classes(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app's logic and its checks; the library stands beside them on the class path."""
    target = tmp_path_factory.mktemp("app")
    plain = [APP / "java" / "org" / "edgevlm" / "app" / f"{name}.java" for name in PLAIN]
    javac([*plain, *java_sources(ROOT / "app" / "src" / "test" / "java")], target, classes)
    return target


def test_controller(
    app_classes: Path, classes: Path, jni: Path, picture_package: Path, java: Any, tmp_path: Path
) -> None:
    path = f"{app_classes}:{classes}"
    output = java(path, "org.edgevlm.app.ControllerChecks", picture_package, tmp_path, library=jni)
    assert " 0 failed" in output and int(re.findall(r"(\d+) checks", output)[0]) >= 9


def test_benchmark_is_json(
    app_classes: Path, classes: Path, jni: Path, picture_package: Path, java: Any, tmp_path: Path
) -> None:
    output = java(f"{app_classes}:{classes}", "org.edgevlm.app.BenchmarkRunner", picture_package, library=jni)
    found = json.loads(output)
    assert found["format"] == 1 and len(found["runs"]) == 3
    assert {"prefill_ms", "decode_tok_per_s", "peak_rss_bytes"} <= found["runs"][0]["stages"].keys()


def test_library_uses_no_regex_and_no_normalizer() -> None:
    """Android's differ from the JVM's; nor anything that API 24 does not have."""
    forbidden = ("java.util.regex", "java.text.Normalizer", '.split("', "replaceAll(", '.matches("', "java.nio.file")
    found = [
        (path.name, word)
        for path in java_sources(*JAVA)
        for word in forbidden
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_both_languages_have_every_string() -> None:
    def names(folder: str) -> dict[str, list[str]]:
        text = (APP / "res" / folder / "strings.xml").read_text(encoding="utf-8")
        return {name: sorted(re.findall(r"%\d\$[.\d]*\w|%%", words)) for name, words in re.findall(
            r'<string name="(\w+)">(.*?)</string>', text)}  # fmt: skip

    assert names("values") == names("values-zh") and len(names("values")) > 25


def test_every_control_has_words_for_a_screen_reader() -> None:
    layouts = "".join(path.read_text(encoding="utf-8") for path in (APP / "res" / "layout").glob("*.xml"))
    for tag in re.findall(r"<(?:ImageButton|org\.edgevlm\.app\.TileGridView)[^>]*>", layouts):
        assert "android:contentDescription" in tag
    assert "android:hint" in layouts
    settings = (APP / "java" / "org" / "edgevlm" / "app" / "SettingsActivity.java").read_text(encoding="utf-8")
    assert "setLabelFor" in settings and layouts.count("<SeekBar") == settings.count("row(R.id.") == 3
