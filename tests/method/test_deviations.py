"""Each table of what differs from a paper and its code is whole, and the presets are what they say they are."""

from __future__ import annotations

import pytest

from immunelab.method import catalogue, get
from immunelab.sweep import choose


@pytest.mark.parametrize("name", catalogue.names("defense"))
def test_a_defense_with_a_papers_preset_says_what_differs(name: str) -> None:
    entry = catalogue.entry("defense", name)
    for deviation in entry.deviations:
        assert deviation.what
        assert deviation.paper or deviation.code
        assert deviation.here or "could not be had" in deviation.code
    if "official-code" in entry.presets and entry.trains:
        assert entry.deviations


def test_presets_have_the_released_numbers() -> None:
    """Numbers of the papers and of the released scripts, each from its source."""
    t_vaccine = get("defense", "t-vaccine").presets
    assert t_vaccine["paper"] == t_vaccine["official-code"]
    assert (t_vaccine["paper"].learning_rate, t_vaccine["paper"].weight_decay, t_vaccine["paper"].rank) == (
        1e-3,
        0.1,
        8,
    )
    assert choose("immunize", "t-vaccine", corpus="own.jsonl").knobs["steps"] == 4000  # own corpora start from `paper`
    assert get("defense", "repnoise").presets["official-code"].weight_decay == 0.01
    vectors = get("defense", "security-vectors").presets["paper"]
    assert (vectors.targets, vectors.samples, vectors.rank) == ("q_proj,v_proj", 100, 8)
    adversarial = get("defense", "adversarial-loss").presets["paper"]
    assert adversarial.samples * 4 == adversarial.steps * adversarial.batch_size == 40_000  # 10,000 rows, four epochs
    assert get("defense", "lisa").presets["official-code"].free == 2001
    seam = get("defense", "seam").presets["official-code"]
    assert not seam.in_fp32()  # the released code runs on weights in bf16
    assert get("defense", "seam").presets["paper"].in_fp32()
