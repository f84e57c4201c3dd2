"""How the engine shares decode attention out over threads: every key once, and shares of equal length."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.edgevlm.engine_build import ENGINE, compile_c

SOURCE = Path(__file__).parent / "sanitizers" / "attention_shares.c"
UNIT_KEYS = {64: 256, 128: 128}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.c with kernels that write their arguments down."""
    others = sorted(path for path in ENGINE.glob("*.c") if path.name != "run.c")
    table = tmp_path_factory.mktemp("shares") / "table.c"
    table.write_text(
        '#include "kernels.h"\nconst ev_variant ev_variant_table[1] = {{.name = "none"}};\n'
        "const int32_t ev_variant_count = 0;\n"
    )
    return compile_c(table.with_name("attention_shares"), [SOURCE, table, *others], "-O1")


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (9, 3), (12, 2), (14, 2)])
@pytest.mark.parametrize(("head_dim", "keys"), [(64, 8192), (64, 8100), (128, 8192), (64, 300), (128, 1)])
def test_shares_differ_by_one_tile(
    program: Path, heads: int, kv_heads: int, head_dim: int, keys: int, threads: int
) -> None:
    words = [*map(str, (heads, kv_heads, head_dim, keys, threads))]
    result = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    seen = Counter((kv_head, key) for _, kv_head, begin, end in rows for key in range(begin, end))
    assert seen == Counter((kv_head, key) for kv_head in range(kv_heads) for key in range(keys))
    tiles = Counter(part for part, *_ in rows)
    shares = [tiles[part] for part in range(threads)]
    assert max(shares) - min(shares) <= 1
    assert all(end - begin <= UNIT_KEYS[head_dim] and begin % UNIT_KEYS[head_dim] == 0 for _, _, begin, end in rows)
    # Negative control: whole KV heads dealt to threads leave shares that differ by all tiles of a head.
    by_head = Counter(kv_head % threads for _, kv_head, _, _ in rows)
    if keys > UNIT_KEYS[head_dim] and kv_heads % threads:
        assert max(by_head[part] for part in range(threads)) - min(by_head[part] for part in range(threads)) > 1
