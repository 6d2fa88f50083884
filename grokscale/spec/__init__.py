"""What to run: an experiment file in; checked settings, canonical JSON and hashes out. No torch, no Ray.

where      the place of a key, for messages           tables    the file's keys, types, ranges, defaults
messages   errors of the tables in words              load      TOML and overrides -> Experiment
settings   one spelling per value, ranges             resolve   Experiment + registry -> Resolved
trial      TrialSpec, trial_id, seeds                 arms      one arm of it;  resolved: what comes out
"""

from grokscale.spec.load import load, parse, resolve_file
from grokscale.spec.resolve import resolve
from grokscale.spec.resolved import Resolved, ResolvedArm
from grokscale.spec.tables import Experiment
from grokscale.spec.trial import ENGINE_VERSION, TrialSpec, canonical_json, seed_for

__all__ = [
    "ENGINE_VERSION",
    "Experiment",
    "Resolved",
    "ResolvedArm",
    "TrialSpec",
    "canonical_json",
    "load",
    "parse",
    "resolve",
    "resolve_file",
    "seed_for",
]
