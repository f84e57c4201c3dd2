"""Before any test is read: libraries that tests import themselves send nothing and note nothing either."""

from __future__ import annotations

from edgevlm.telemetry import switch_off

switch_off()
