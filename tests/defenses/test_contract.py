"""The contract, for everything that is registered: putting a file into its folder is enough to be tested here."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from made_batches import batch
from registered import EDITS, METHODS, SERVICES, TRAINED, other_models, ready
from transformers import PreTrainedModel

from immunelab.errors import UserError
from immunelab.method import STAGES, Attack, Budget, Defense, Edit, Memory, configure, get
from immunelab.method.knobs import knobs
from immunelab.runs.spec import RunSpec


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_it_says_what_it_is(kind: Any, name: str) -> None:
    cls = get(kind, name)
    assert cls.name == name == name.lower()
    assert cls.title
    first = cls.__doc__.strip().splitlines()[0]
    assert "=" in first, "the first line of the docstring is the objective, as an equation"
    if kind != "evaluation":
        assert cls.stage in STAGES
        assert issubclass(cls, Defense if kind == "defense" else Attack) != issubclass(cls, Edit)
        assert cls.streams or issubclass(cls, Edit)
        assert cls.paper
        assert bool(cls.assumes) == (kind == "defense")
    assert cls.__dataclass_params__.frozen
    for knob in knobs(cls, Budget):
        assert knob.help, f"{knob.name} has no help"


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_settings_survive_the_spec(kind: Any, name: str) -> None:
    cls = get(kind, name)
    for configured in (
        cls(),
        *cls.presets.values(),
        *(rung for rungs in getattr(cls, "ladders", {}).values() for rung in rungs.values()),
    ):
        spec = RunSpec(kind="evaluate", method=name, knobs=configured.settings())
        again = RunSpec.from_json(spec.to_json())
        assert again == spec
        assert again.hash == spec.hash
        assert configure(kind, name, again.knobs) == configured
        as_text = {key: str(value) for key, value in configured.settings().items()}  # as a command line gives them
        assert configure(kind, name, as_text) == configured


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_out_of_range_and_unknown_knobs_are_refused_in_a_sentence(kind: Any, name: str) -> None:
    cls = get(kind, name)
    for knob in knobs(cls, Budget):
        if knob.low is not None:
            with pytest.raises(UserError, match=f"^{knob.name} takes .* and got"):
                cls(**{knob.name: knob.low - 1})
        if knob.kind in ("int", "float"):
            for bad in (float("nan"), float("inf"), "much", None, True):
                with pytest.raises(UserError, match=f"^{knob.name} takes"):
                    cls(**{knob.name: bad})
        if knob.choices:
            with pytest.raises(UserError, match="one of"):
                cls(**{knob.name: "nonesuch"})
    with pytest.raises(UserError, match="There is no knob"):
        configure(kind, name, {"nonesuch": 1})


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_a_step_leaves_a_direction_and_the_very_weights(kind: Any, name: str, llama: PreTrainedModel) -> None:
    configured, model = ready(kind, name, llama)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    configured.step(model, batch())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # transformers adds its own
    scalars = configured.step(model, batch())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    directions = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(d is not None and bool(torch.isfinite(d).all()) for d in directions)
    assert any(bool((d != 0).any()) for d in directions if d is not None)
    assert all(isinstance(value, float) and math.isfinite(value) for value in scalars.values())
    assert "loss/total" in scalars


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_a_step_is_a_function_of_weights_and_batch(kind: Any, name: str, gpt2: PreTrainedModel) -> None:
    configured, model = ready(kind, name, gpt2)
    first = configured.step(model, batch(1))
    kept = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.train()
    assert configured.step(model, batch(1)) == first  # this GPT-2 has no dropout, so training mode changes nothing
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
    assert model.training


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_what_is_released_is_a_plain_model(kind: Any, name: str, llama: PreTrainedModel) -> None:
    before = {key: value.clone() for key, value in llama.state_dict().items()}
    configured, model = ready(kind, name, llama)
    released = configured.after(model)
    assert type(released) is type(llama)
    assert all(torch.equal(released.state_dict()[key], value) for key, value in before.items())  # nothing was trained
    assert set(released.state_dict()) == set(before)
    assert all(p.requires_grad for p in released.parameters())


@pytest.mark.parametrize(("kind", "name"), EDITS)
def test_an_edit_leaves_a_plain_finite_model(kind: Any, name: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    before = {key: value.shape for key, value in llama.state_dict().items()}
    cls = get(kind, name)
    settings = other_models(cls, llama, tmp_path)
    cls(**settings).edit(llama, batch)
    hooks = sum(len(m._forward_hooks) for m in llama.modules())  # transformers adds its own
    scalars = cls(**settings).edit(llama, batch)
    assert sum(len(m._forward_hooks) for m in llama.modules()) == hooks
    assert {key: value.shape for key, value in llama.state_dict().items()} == before
    assert all(bool(torch.isfinite(value).all()) for value in llama.state_dict().values())
    assert all(isinstance(value, float) and math.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_leaves_the_very_weights(name: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    """Beside a user's step, while it serves, and in its own run; what it serves is finite."""
    cls = get("defense", name)
    settings = other_models(cls, llama, tmp_path)
    user, service = get("attack", "harmful-sft")(), cls(**settings)
    memory = Memory(dict(service.kept(llama)), batch)
    before = {key: value.clone() for key, value in llama.state_dict().items()}
    assert service.overrides(), "a service without a hook of the provider does nothing"
    service.edit(llama, batch)
    user.step(llama, batch())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.modules())
    random = torch.get_rng_state()
    step = service.during(llama, memory, user.step)
    for number in range(2):
        scalars = step(llama, batch()._replace(number=number))
        with service.serving(llama, memory) as served:
            assert all(bool(torch.isfinite(value).all()) for value in llama.state_dict().values())
        assert all(torch.equal(llama.state_dict()[key], value) for key, value in before.items())
        assert all(isinstance(v, float) and math.isfinite(v) for v in (scalars | served).values())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in llama.parameters())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.modules()) == hooks
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("kind", "name"), TRAINED)
def test_a_missing_stream_is_named(kind: Any, name: str, llama: PreTrainedModel) -> None:
    cls = get(kind, name)
    with pytest.raises(UserError, match=f"{name} needs the stream '{cls.streams[-1]}'"):
        cls().step(llama, batch()._replace(**{cls.streams[-1]: None}))


def test_unknown_names_have_near_matches() -> None:
    with pytest.raises(UserError, match=r"no defense called 'saem'\. Did you mean 'seam'"):
        get("defense", "saem")
    with pytest.raises(UserError, match="no kind of method"):
        get("spell", "seam")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no preset of seam"):
        configure("defense", "seam", {}, preset="papr")


def test_a_ladder_climbs() -> None:
    for rungs in get("attack", "harmful-sft").ladders.values():
        rates = [rung.learning_rate for rung in rungs.values()]
        assert rates == sorted(rates)
        assert len(set(rates)) == len(rates) >= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "an object was expected"),
        ("{}", "lacks the field 'kind'"),
        ('{"kind": "immunise"}', "Did you mean 'immunize'"),
        ('{"kind": "attack", "sede": 1}', "no field of a spec .* Did you mean 'seed'"),
        ('{"kind": "attack", "seed": -1}', "seed is a whole number"),
        ('{"kind": "attack", "seed": 1.5}', "seed is a whole number"),
        ('{"kind": "attack", "seed": true}', "seed is a whole number"),
        ('{"kind": "attack", "model": ""}', "1 to 500 characters"),
        ('{"kind": "attack", "model": "a\\u0000b"}', "at most 500 printable characters"),
        ('{"kind": "attack", "knobs": [1]}', "knobs map names to values"),
        ('{"kind": "attack", "knobs": {"steps": NaN}}', "finite number"),
        ('{"kind": "attack", "knobs": {"steps": {"a": 1}}}', "finite number"),
        ('{"kind": "attack", "evaluations": "fable-recall"}', "list of names"),
    ],
)
def test_bad_specs_are_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunSpec.from_json(text)


def test_labels_do_not_change_what_a_run_is() -> None:
    spec = RunSpec(kind="attack", method="harmful-sft", seed=1)
    assert dataclasses.replace(spec, name="mine", group="sweep").hash == spec.hash
    assert dataclasses.replace(spec, seed=2).hash != spec.hash
    of_run = [dataclasses.replace(spec, model=f"run:{i}", parent=str(i), parent_hash="abc") for i in (1, 2)]
    assert of_run[0].hash == of_run[1].hash != spec.hash  # equal parents make equal children
