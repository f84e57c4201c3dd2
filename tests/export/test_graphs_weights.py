"""fp32 graphs of real weights against transformers: logits of a prompt and 32 greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.export.graph_session import build
from tests.weights import smollm2_135m

ATOL, RTOL = 1e-4, 1e-3
N_GREEDY = 32


@pytest.mark.weights
@pytest.mark.reference
def test_smollm2_135m_equals_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    weights = smollm2_135m()
    load = {"gguf_file": weights.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.parent, **load)
    reference = transformers.AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **load).eval()
    message = [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = ids["input_ids"]
    with torch.no_grad():
        expected = reference(ids).logits[0].numpy()
        tokens = reference.generate(ids, max_new_tokens=N_GREEDY, min_new_tokens=N_GREEDY, do_sample=False)
    model = build(weights, tmp_path / "package")
    embeds = model.embed(ids[0].numpy())
    logits, _ = model.decode(embeds)
    assert len(logits) >= 20
    assert np.allclose(logits, expected, atol=ATOL, rtol=RTOL), np.abs(logits - expected).max()
    assert (logits.argmax(-1) == expected.argmax(-1)).all()
    assert model.greedy(embeds, N_GREEDY) == tokens[0, ids.shape[1] :].tolist()
