"""docs/android.md: the example compiles against the library and the stubs, in under 30 lines."""

from __future__ import annotations

import re
from pathlib import Path

from android_demo.apk.build import JAVA, ROOT, java_sources, javac

PAGE = ROOT.parent / "docs" / "android.md"


def test_example_compiles(home: Path, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    example = re.search(r"<!-- example:begin -->\n```java\n(.*?)```\n<!-- example:end -->", text, re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) < 30
    source = tmp_path / "Example.java"
    body = "\n".join("        " + line for line in example[1].splitlines())
    source.write_text(
        "import android.content.Context;\nimport android.graphics.Bitmap;\nimport java.io.File;\n"
        "import org.edgevlm.*;\n"
        "class Example {\n    void show(String text) {\n    }\n\n    void log(String text) {\n    }\n\n"
        "    void run(Context context, File source, Bitmap bitmap) throws EdgeVlmException {\n" + body + "\n    }\n}\n"
    )
    stubs, classes = tmp_path / "stubs", tmp_path / "classes"
    javac(java_sources(ROOT / "stubs" / "src"), stubs, warnings=False)
    javac([source, *java_sources(*JAVA[:2])], classes, stubs)
    assert (classes / "Example.class").exists()
