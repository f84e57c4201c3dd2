"""Signs an APK: with a debug key that is made on this machine once, or with a keystore of one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from android_demo.apk.tools import cache_directory, require, run
from edgevlm.errors import BackendError, UsageError

PASSWORD_VARIABLE = "EDGEVLM_KEYSTORE_PASSWORD"
_DEBUG_PASSWORD = "android"
_DEBUG_ALIAS = "edgevlm-debug"


def debug_keystore() -> Path:
    """Returns the debug keystore, made when there is none."""
    require(["keytool"])
    path = cache_directory() / "debug.keystore"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("debug.keystore.partial")
    partial.unlink(missing_ok=True)
    run(
        [
            "keytool", "-genkeypair", "-keystore", partial, "-storetype", "PKCS12", "-storepass", _DEBUG_PASSWORD,
            "-alias", _DEBUG_ALIAS, "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000",
            "-dname", "CN=edgevlm debug",
        ],
        "keytool",
    )  # fmt: skip
    partial.replace(path)
    return path


def sign(unsigned: Path, signed: Path, keystore: Path | None) -> None:
    """Writes `signed` with signatures of schemes v2 and v3. The password of a given keystore is in the environment.

    Raises UsageError when the keystore or its password is missing, BackendError when apksigner refuses.
    """
    require(["apksigner", "java"])
    password = _DEBUG_PASSWORD
    if keystore is not None:
        if not keystore.is_file():
            raise UsageError(f"{keystore}: there is no keystore here")
        password = os.environ.get(PASSWORD_VARIABLE, "")
        if not password:
            raise UsageError(f"put the password of {keystore} into the environment variable {PASSWORD_VARIABLE}")
    store = keystore or debug_keystore()
    # zipalign's 4 KB pages would undo our 16 KB ones; apksigner leaves entries where they are.
    command = [
        shutil.which("apksigner") or "apksigner", "sign", "--v1-signing-enabled", "false", "--v2-signing-enabled",
        "true", "--v3-signing-enabled", "true", "--ks", str(store), "--ks-pass", f"env:{PASSWORD_VARIABLE}",
        "--out", str(signed), str(unsigned),
    ]  # fmt: skip
    environment = {**os.environ, PASSWORD_VARIABLE: password}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BackendError(f"apksigner failed: {(done.stderr or done.stdout).strip()[-500:]}")
