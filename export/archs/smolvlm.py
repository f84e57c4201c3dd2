"""SmolVLM (256M, 500M, 2.2B and SmolVLM2): Idefics3 under another name and with other class defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.archs.idefics3 import Variant, whole_spec
from export.archspec import ArchSpec

SMOLVLM = Variant("smolvlm", tokens_by_name=True)


def arch_spec(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ArchSpec:
    return whole_spec(config, files, SMOLVLM)
