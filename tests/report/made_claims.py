"""An experiment on claims with known numbers."""

import numpy as np

from dexcore.measures.effects import effect
from dexcore.measures.verdicts import Verdict, judge
from dexcore.report.claims import Beside, Claim, Experiment, Finding, Remedied, Remedy, Shown


def made_effect(value, spread=0.02, seeds=5):
    drawn = np.random.default_rng(0).normal(value, 0.01, (200, 1)) + np.zeros(seeds)
    return effect(value + spread * np.linspace(-1, 1, seeds), drawn, 120)


def made_claim(name, margin=0.05):
    return Claim(
        name=name,
        title=f"What {name} says",
        statement=f"The statement of {name}: experts specialise without being told, which is claimed, & <asked> here.",
        source="He, You, Li 2026, section 4",
        effect="Normalized mutual information of modality and expert, minus its null.",
        refuted_by="An interval below the margin.",
        margin=margin,
    )


def made_experiment(seeds=5):
    effects = {"routing": made_effect(0.4, seeds=seeds), "transfer": made_effect(0.01, seeds=seeds)}
    judged = judge(effects, dict.fromkeys(effects, 0.05))
    controls = [
        Beside(
            arm,
            made_effect(value, seeds=seeds),
            expected,
            judge({arm: made_effect(value, seeds=seeds)}, {arm: 0.05})[arm],
        )
        for arm, value, expected in (
            ("oracle-routing", 0.9, Verdict.SUPPORTED),
            ("fixed-routing", 0.0, Verdict.REFUTED),
        )
    ]
    arms = tuple(Beside(f"{arm}, linear probe", made_effect(0.7, seeds=seeds)) for arm in ("dex", "dense-wide"))
    few, sizes = ("Few cases: 12.",), Shown(0.08, 0.4)
    findings = (
        Finding(made_claim("routing"), effects["routing"], judged["routing"], Shown(0.03, 0.97), (), tuple(controls)),
        Finding(made_claim("transfer"), effects["transfer"], judged["transfer"], sizes, arms, (), few),
        Finding(made_claim("missing"), None, None, Shown(), notes=("Not measured: there is no arm dense-wide.",)),
    )
    long = "a-long-name-of-a-folder-without-any-place-to-break-it-and-so-on-and-on-to-the-end"
    facts = {"Command": f"python examples/verify_claims.py --out {long}", "Store": "f" * 64}
    tried = Remedied("What transfer says", made_effect(0.03, seeds=seeds), made_effect(0.02, seeds=seeds))
    remedies = (Remedy("dex-wider", "model.mlp_ratio 8.0", (tried,)),)
    return Experiment("synthetic images", findings, seeds, ("A flag that all must read.",), facts, remedies)
