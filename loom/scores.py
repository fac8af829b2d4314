"""How much texts have in common with texts that are known to be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loom.app import Metrics


def bleu_and_chrf(texts: Sequence[str], references: Sequence[Sequence[str]], lower: bool) -> Metrics:
    """BLEU and chrF of all texts together, from 0 to 100, by sacrebleu with its default tokenizer.

    Args:
        texts: To be scored.
        references: For each text one or several right ones.
        lower: Whether case counts for nothing in BLEU.
    """
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    # sacrebleu takes one list for all first references, one for all second ones, and None where there is none.
    streams: Any = [[known[place] if place < len(known) else None for known in references] for place in range(most)]
    measures = {"bleu": BLEU(lowercase=lower), "chrf": CHRF(lowercase=lower)}
    return {name: float(measure.corpus_score(list(texts), streams).score) for name, measure in measures.items()}
