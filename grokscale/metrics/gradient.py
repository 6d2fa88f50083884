"""What single gradients and weights look like: entropies, spectra, norms (methods.md 2.1, 2.3, 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from grokscale.entries import Measure
from grokscale.metrics.base import Look, Probe, State, Values, flat, norm
from grokscale.transform import Params, Roles

ENERGY = 0.95  # share of the squared singular values that the robust condition number looks at
TOP = 16  # singular values that are kept


def absolute_entropy(values: Tensor) -> Tensor:
    """H = -sum |x| ln |x| with 0 ln 0 = 0, float64, 0-d; entries above 1 count negatively.

    Not scale-free: H(s x) = s H(x) - s ln(s) ||x||_1.  Source: NeuralGrok (AGE), arXiv 2405.12755 (AWE); ambiguity 16.
    """
    return torch.special.entr(values.abs().double()).sum()


def shannon_entropy(values: Tensor) -> Tensor:
    """-sum q ln q of q = |x| / ||x||_1: 0 ... ln N, float64, 0-d; scale-free. NaN for all zeros."""
    q = values.abs().double()
    return torch.special.entr(q / q.sum()).sum()


def entropy() -> Probe:
    """Entropy of the gradient as computed and as the optimiser got it, and of the weights."""

    def weights(params: Params, state: State, roles: Roles) -> Values:
        return {"awe": absolute_entropy(flat(params))}

    def look(seen: Look, state: State) -> Values:
        raw, used = flat(seen.grads), flat(seen.used)
        return {
            "age_raw": absolute_entropy(raw), "age_used": absolute_entropy(used),
            "entropy_raw": shannon_entropy(raw), "entropy_used": shannon_entropy(used),
        }  # fmt: skip

    return Probe(weights=weights, look=look)


def spectral(g: Tensor) -> Values:
    """kappa = s_1 / s_min, kappa95 = s_1 / s_q, stable_rank = ||G||_F^2 / s_1^2, effective_rank = exp(H(s / sum s)).

    g: (m, n).  q: the fewest singular values with 95 % of the energy sum s^2.  singular: the 16 greatest (fewer in a
    smaller matrix), float64. NaN for a matrix with a non-finite entry, on which the decomposition would raise.
    """
    finite = torch.isfinite(g).all()
    s = torch.linalg.svdvals(torch.where(finite, g, torch.zeros_like(g)).double())
    s = torch.where(finite, s, torch.full_like(s, torch.nan))
    energy = (s * s).cumsum(-1)
    enough = energy >= ENERGY * energy[-1]
    q = torch.where(enough, s, torch.zeros_like(s)).max()  # s falls, so the first that is enough is the greatest
    share = s / s.sum()
    return {
        "kappa": s[0] / s[-1], "kappa95": s[0] / q, "stable_rank": energy[-1] / (s[0] * s[0]),
        "effective_rank": torch.special.entr(share).sum().exp(), "singular": s[:TOP],
    }  # fmt: skip


def spectrum() -> Probe:
    """Singular values of the raw gradient of every hidden matrix."""

    def look(seen: Look, state: State) -> Values:
        out: Values = {}
        for name, g in seen.grads.items():
            if seen.roles[name].kind == "hidden" and g.ndim == 2:
                out |= {f"{column}/{name}": value for column, value in spectral(g).items()}
        return out

    return Probe(look=look)


def norms() -> Probe:
    """Lengths of weights, gradients and updates, and the distance from the first parameters."""

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return {k: p.clone() for k, p in params.items()}

    def weights(params: Params, state: State, roles: Roles) -> Values:
        heads = {k: p for k, p in params.items() if roles[k].kind == "head"}
        return {
            "weight_norm": norm(params),
            **({"weight_norm_last": norm(heads)} if heads else {}),
            **{f"weight_norm/{k}": norm({k: p}) for k, p in params.items()},
            "distance": norm({k: p - state[k] for k, p in params.items()}),
        }

    def look(seen: Look, state: State) -> Values:
        return {"grad_norm": norm(seen.grads), "used_norm": norm(seen.used), "update_norm": norm(seen.update)}

    return Probe(init=init, weights=weights, look=look)


MEASURES = [
    Measure(
        "entropy",
        {
            "age_raw": "AGE of the gradient, -sum |g| ln |g|", "age_used": "AGE of what the optimiser was given",
            "entropy_raw": "-sum q ln q, q = |g| / |g|_1", "entropy_used": "the same of what the optimiser was given",
            "awe": "AWE, -sum |w| ln |w| over all parameters",
        },
        "NeuralGrok, arXiv 2504.17243; methods.md 2.1", "nothing a step; a look: 5 passes over N", entropy,
    ),
    Measure(
        "spectrum",
        {
            "kappa/HIDDEN": "s_1 / s_min of the raw gradient of a hidden matrix",
            "kappa95/HIDDEN": "s_1 / s_q, q singular values with 95 % of the energy",
            "stable_rank/HIDDEN": "||G||_F^2 / s_1^2", "effective_rank/HIDDEN": "exp(H(s / sum s))",
            "singular/HIDDEN": "the 16 greatest singular values",
        },
        "EGD, arXiv 2510.04930, Figure 4; methods.md 2.3",
        "nothing a step; a look: singular values of every hidden matrix in float64", spectrum,
    ),
    Measure(
        "norms",
        {
            "weight_norm": "||w|| over all parameters", "weight_norm_last": "||w|| of the head",
            "weight_norm/TENSOR": "||w|| of one tensor", "distance": "||w - w_0||", "grad_norm": "||g||, raw",
            "used_norm": "||g'||, what the optimiser was given: the effective norm",
            "update_norm": "||u||, what the optimiser added",
        },
        "methods.md 1.2.4, 2.3, 2.4", "nothing a step; a look: 5 passes over N; memory: N", norms,
    ),
]  # fmt: skip
