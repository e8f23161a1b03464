"""T-Vaccine: Vaccine in a few layers at a time, drawn by how much harmful text pulls at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from immunelab.errors import UserError
from immunelab.method import Batch, Deviation, Feed, Memory, Tokens, knob, register
from immunelab.training import chance, sublayers
from immunelab.training import gradients as g
from immunelab.training.alignment import Alignment
from immunelab.training.losses import Scored
from immunelab.training.models import deterministic
from immunelab.training.perturbation import perturbed, sensitivity

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("defense")
@dataclass(frozen=True, kw_only=True)
class TVaccine(Alignment):
    """L = max_{‖ε‖≤ρ} CE(refusal; e_l + ε_l in the layers l ∈ S), S: γ layers drawn by p_l = s_l/Σs.

    "Targeted Vaccine: Safety Alignment for Large Language Models against Harmful Fine-Tuning via Layer-wise
    Perturbation", arXiv:2410.09760. Every K steps a harmful minibatch ranks the layers by s_l = ‖∂CE(harmful)/∂e_l‖,
    e_l what attention puts out; every J steps S is drawn from p without replacement. Only the layers in S are
    perturbed and trained; the others, embeddings, final norm and head stay as they are, bit for bit.

    The draw is a function of the run's seed, the step and p; step, p and S are in its memory, so that a resumed run
    goes on exactly. The released code ranks with one harmful row, this with a minibatch. `rank` = 0 trains all weights
    of a layer, the authors an adapter. `retain` is not in the paper and off in the preset `paper`.
    """

    name: ClassVar[str] = "t-vaccine"
    title: ClassVar[str] = "T-Vaccine: targeted Vaccine"
    display: ClassVar[str] = "T-Vaccine"
    paper: ClassVar[str] = "arXiv:2410.09760"
    stage: ClassVar[str] = "alignment"
    streams: ClassVar[tuple[str, ...]] = ("refusal", "harmful", "benign")

    rho: float = knob(3.0, "length of the shift over the drawn layers", symbol="ρ", low=0, high=1e4)
    layers: int = knob(8, "layers that train at a time, at most all there are", symbol="γ", low=1, high=1000)
    draw_every: int = knob(20, "steps between draws", symbol="J", low=1, high=1_000_000)
    rank_every: int = knob(200, "steps between rankings", symbol="K", low=1, high=1_000_000)

    @property
    def prepares(self) -> bool:
        """Always: it freezes what is in no layer."""
        return True

    def prepare(self, model: PreTrainedModel, batches: Feed) -> PreTrainedModel:
        """The model with what is in no layer frozen; nothing is ranked or drawn yet."""
        model = super().prepare(model, batches)
        for weight, layer in zip(g.trainable(model), g.layer_of(model), strict=True):
            weight.requires_grad_(layer is not None)
        shares = torch.zeros(len(sublayers.attentions(model)))
        Memory.of(model).tensors = {"step": torch.tensor(0), "shares": shares, "drawn": shares.clone()}
        return model

    def after(self, model: PreTrainedModel) -> PreTrainedModel:
        """The plain model, everything trainable again."""
        return super().after(model).requires_grad_(True)

    def step(self, model: PreTrainedModel, batch: Batch) -> dict[str, float]:
        """Rank and draw where due, then Vaccine's two passes on the drawn layers; the rest has no direction."""
        refusal, harmful, benign = batch.take(self)
        modules, weights = sublayers.attentions(model), g.trainable(model)
        with deterministic(model):
            shares, drawn = self.drawn(model, harmful)
            active = [w for w, layer in zip(weights, g.layer_of(model), strict=True) if layer in drawn]
            direction, traced = perturbed(model, active, [modules[i] for i in drawn], Scored(refusal), radius=self.rho)
            for weight in weights:
                weight.grad = None
            traced = self.leave(model, active, direction, benign, traced)
        for i, share in enumerate(shares.tolist()):
            traced |= {f"layers/share/layer/{i}": share, f"layers/drawn/layer/{i}": float(i in drawn)}
        return traced

    def drawn(self, model: PreTrainedModel, harmful: Tokens) -> tuple[Tensor, list[int]]:
        """The ranking p, and this step's layers in order; a step is `accumulation` minibatches."""
        remembered = Memory.of(model).tensors
        if not remembered:
            raise UserError("T-Vaccine remembers its ranking from step to step: call `prepare` first.")
        shares, mask, minibatch = remembered["shares"], remembered["drawn"], int(remembered["step"])
        if minibatch % (self.rank_every * self.accumulation) == 0:
            q = sensitivity(model, sublayers.attentions(model), Scored(harmful))[1]
            lengths = g.dots(q, q).sqrt()
            shares.copy_(lengths / lengths.sum())
        if minibatch % (self.draw_every * self.accumulation) == 0:
            generator = chance.generator(torch.device("cpu"), minibatch)
            wanted = min(self.layers, int((shares > 0).sum()))
            chosen = torch.multinomial(shares.cpu(), wanted, replacement=False, generator=generator)
            mask.zero_()[chosen] = 1
        remembered["step"] += 1
        return shares, mask.nonzero().flatten().tolist()


# The paper's numbers are not known to us; those of the released code: 2,000 refusals, 20 epochs.
_code = TVaccine(learning_rate=1e-3, steps=4000, batch_size=10, weight_decay=0.1, rank=8)
TVaccine.presets = {
    "paper": _code,
    "official-code": _code,
    # Two of Fable's four layers at a time. Three values of ρ on the world of seed 0, one seed each, all broken at 3e-4.
    "fable": TVaccine(
        learning_rate=3e-4, steps=300, batch_size=16, rho=20.0, layers=2, draw_every=10, rank_every=50, retain=2.0
    ),
}

TVaccine.deviations = (
    Deviation("the numbers", "not known to us", "README and script", "`paper` has those of the released code"),
    Deviation(
        "what trains",
        "LoRA of r 8",
        "r 8, α 4 on seven linear layers, dropout 0.1; only attention is frozen",
        "r 8 on q, k, v, no dropout; layers are frozen whole",
    ),
    Deviation("ranking", "a harmful batch", "one harmful row", "a minibatch", "less noise"),
    Deviation(
        "more than 26 layers",
        "",
        "the layer before each in S is not checkpointed",
        "no difference",
        "it concerns memory alone",
    ),
    Deviation("clipping", "not stated", "norm 1.0 (the trainer's default)", "off"),
)
