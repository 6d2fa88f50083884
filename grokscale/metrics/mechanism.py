"""The papers' explanations put to the test: which way gradients, updates and their slow parts point."""

from __future__ import annotations

import torch

from grokscale.entries import Measure
from grokscale.metrics.base import Look, Probe, State, Step, Values, cosine, minus
from grokscale.transform import Params, Roles, Transform

ALPHA = 0.98  # decay of the slow part
ALLOWED = frozenset({"val_accuracy", "roles", "lr"})  # what a compared method may ask for


def alignment() -> Probe:
    """Does the update point down the gradient on test better than the raw gradient does; does the slow part?

    g: raw gradient.  u: update, G: gradient on test at the same parameters, so -u is compared with g and G.
    mu <- .98 mu + .02 g is the slow part (mu_1 = g_1), g - mu the fast one.
    """

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return {k: torch.zeros_like(p) for k, p in params.items()}

    def every(seen: Step, state: State) -> State:
        old = seen.grads if seen.step == 1 else state
        return {k: ALPHA * old[k] + (1 - ALPHA) * g for k, g in seen.grads.items()}

    def look(seen: Look, state: State) -> Values:
        assert seen.test_grads is not None
        g, test, down = seen.grads, seen.test_grads, minus(seen.update)
        u_test, g_test = cosine(down, test), cosine(g, test)
        return {
            "cos_g_u": cosine(g, down), "cos_u_test": u_test, "cos_g_test": g_test, "gain": u_test - g_test,
            "cos_mu_test": cosine(state, test),
            "cos_fast_test": cosine({k: g[k] - state[k] for k in g}, test),
        }  # fmt: skip

    return Probe(init=init, every=every, look=look, test=True)


def compare(one: tuple[str, Transform], two: tuple[str, Transform]) -> Probe:
    """Cosines between what two methods make of the trial's own stream of raw gradients.

    Each keeps a state of its own and sees every gradient, whatever method the trial trains with; neither's answer is
    used.  Raises ValueError for methods that ask for more than the gradient, the parameters and the last accuracy.
    """
    for name, transform in (one, two):
        extra = sorted(transform.needs - ALLOWED)
        if extra or transform.after is not None:
            what = ", ".join(extra) or "a step after the optimiser's"
            raise ValueError(f"{name} cannot be compared on another's gradients: it asks for {what}")
    (a, first), (b, second) = one, two

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        seen = next(iter(params.values())).new_full((3,), torch.nan, dtype=torch.float64)
        return first.init(params, roles, generator), second.init(params, roles, generator), seen

    def every(seen: Step, state: State) -> State:
        answers, states = [], []
        for transform, old in zip((first, second), state[:2], strict=True):
            extra = {name: getattr(seen, name) for name in transform.needs}
            answer, new = transform.update(seen.grads, old, seen.params, step=seen.step, **extra)
            answers.append(answer)
            states.append(new)
        x, y = answers
        return *states, torch.stack([cosine(x, y), cosine(x, seen.grads), cosine(y, seen.grads)])

    def look(seen: Look, state: State) -> Values:
        return dict(zip((f"cos/{a}/{b}", f"cos_g/{a}", f"cos_g/{b}"), state[2], strict=True))

    return Probe(init=init, every=every, look=look)


def method() -> Probe:
    """What the trial's own methods say of themselves: `Transform.diagnostics`."""
    return Probe(look=lambda seen, state: {f"method/{k}": v for k, v in seen.method.items()})


def outer() -> Probe:
    """Loss on the rows that the methods hold back from training; silent where they hold back none."""

    def look(seen: Look, state: State) -> Values:
        return {} if seen.outer_loss is None else {"outer_loss": seen.outer_loss(seen.params)}

    return Probe(look=look)


MEASURES = [
    Measure(
        "alignment",
        {
            "cos_g_u": "cosine of the raw gradient g and the update -u", "cos_u_test": "of -u and the gradient on test",
            "cos_g_test": "of g and the gradient on test", "gain": "cos_u_test - cos_g_test",
            "cos_mu_test": "of the slow part mu (EMA of g, alpha .98) and the gradient on test",
            "cos_fast_test": "of g - mu and the gradient on test",
        },
        "issue: mechanism", "a step: one pass over N; a look: a gradient on up to 2048 rows of test; memory: N",
        alignment,
    ),
    Measure(
        "compare",
        {"cos/A/B": "cosine of what methods A and B make of the same gradients", "cos_g/A": "of A's and the gradient"},
        "issue: mechanism", "a step: both methods' updates; memory: both methods' states", compare, methods=2,
    ),
    Measure(
        "method", {"method/NAME": "what the trial's methods say of themselves, such as an amplifier's entropy"},
        "issue: mechanism", "nothing a step; a look: what the methods compute for it", method,
    ),
    Measure(
        "outer", {"outer_loss": "loss on the rows that the methods hold back from training"},
        "methods.md 5.5", "nothing a step; a look: a forward pass on these rows", outer,
    ),
]  # fmt: skip
